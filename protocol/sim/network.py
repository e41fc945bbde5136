"""The network between simulated peers: latency, bandwidth, loss, duplicates, reordering, cuts that heal.

The idea: one function decides what happens to one delivery, from the faults in force and the simulation's
chance. A sender's bytes queue behind each other on its uplink; every ordered pair of peers has its own latency;
a cut blocks ordered pairs, so it may be one-sided. Messages that are on their way when a cut comes still arrive.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.timeline import Timeline


class Network:
    """Deliveries between peers, which are known by number here."""

    def __init__(self, timeline: Timeline, chance: random.Random, faults: Faults) -> None:
        self.faults = faults
        self._timeline = timeline
        self._chance = chance
        self._latency: dict[tuple[int, int], float] = {}
        self._uplink_free: dict[int, float] = defaultdict(float)
        self._cut: set[tuple[int, int]] = set()
        self.bytes_sent: dict[int, int] = defaultdict(int)
        self.control_bytes_sent: dict[int, int] = defaultdict(int)

    def send(self, sender: int, receiver: int, nbytes: int, arrive: Callable[..., object], *arguments: Any) -> None:
        """Carry a control message."""
        self.control_bytes_sent[sender] += nbytes
        faults, chance = self.faults, self._chance
        delay = self._transmit(sender, receiver, nbytes)
        if delay is None:
            return
        if faults.message_reorder and chance.random() < faults.message_reorder:
            delay += chance.random() * faults.reorder_seconds_max
        self._timeline.after(delay, arrive, *arguments)
        if faults.message_duplicate and chance.random() < faults.message_duplicate:
            self._timeline.after(delay + chance.random() * faults.reorder_seconds_max, arrive, *arguments)

    def send_bulk(
        self, sender: int, receiver: int, nbytes: int, arrive: Callable[..., object], *arguments: Any
    ) -> bool:
        """Carry a blob; False if it never arrives."""
        delay = self._transmit(sender, receiver, nbytes)
        if delay is not None:
            self._timeline.after(delay, arrive, *arguments)
        return delay is not None

    def _transmit(self, sender: int, receiver: int, nbytes: int) -> float | None:
        """Seconds until the last byte is there; None if it is lost."""
        faults = self.faults
        self.bytes_sent[sender] += nbytes
        now = self._timeline.now
        free = max(self._uplink_free[sender], now) + nbytes / faults.bandwidth_bytes
        self._uplink_free[sender] = free
        link = sender, receiver
        if link in self._cut:
            return None
        if faults.message_loss and self._chance.random() < faults.message_loss:
            return None
        latency = self._latency.get(link) or self.latency(sender, receiver)
        return free - now + latency * (1.0 + faults.jitter * self._chance.random())

    def latency(self, sender: int, receiver: int) -> float:
        """A link's own latency, one way, in seconds; drawn on first use."""
        found = self._latency.get((sender, receiver))
        if found is None:
            found = self._chance.uniform(self.faults.latency_seconds_min, self.faults.latency_seconds_max)
            self._latency[(sender, receiver)] = found
        return found

    def blocks(self, sender: int, receiver: int) -> bool:
        """Whether a cut is between them in this direction."""
        return (sender, receiver) in self._cut

    def cut(self, side: list[int], rest: list[int], asymmetric: bool) -> Callable[[], None]:
        """Block everything from `side` to `rest` and, unless asymmetric, back; gives the function that heals it."""
        pairs = [(one, other) for one in side for other in rest]
        if not asymmetric:
            pairs += [(other, one) for one, other in pairs]
        new = [pair for pair in pairs if pair not in self._cut]
        self._cut.update(new)
        return lambda: self._cut.difference_update(new)

    def heal(self) -> None:
        """End all cuts."""
        self._cut.clear()
