"""Adaptive deadlines: wait as long as this swarm usually takes, within the manifest's bounds.

The idea: the median of recent arrivals plus a few median absolute deviations is not moved by a minority of
stragglers (who would otherwise teach everyone patience), and bounds keep it sane at the start and under
attack. SPEC R-4.30.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest

_WINDOW = 128
"""Arrivals remembered: a few steps of a large group, a few dozen of a small one."""
_USUAL_TIMES = 2.0
"""As many times the median are always allowed. A group that is much alike would else starve the one honest member whose
link is a little slower; it costs little, because nobody is waited for that was absent twice in a row."""
_WAITS_IN_VAIN = 2
"""So often in a row before patience ends."""


def median(values: list[float]) -> float:
    """Lower median of a non-empty list."""
    return sorted(values)[(len(values) - 1) // 2]


class Estimator:
    """Recent durations of one kind of wait, and the deadline they imply."""

    def __init__(self, seconds_min: float, seconds_max: float, deviations: float) -> None:
        self._seconds_min = seconds_min
        self._seconds_max = seconds_max
        self._deviations = deviations
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, seconds: float) -> None:
        """Record one arrival, in seconds after the wait began."""
        self._recent.append(seconds)

    def bound_seconds(self) -> float:
        """Longest sensible wait now: the maximum until something was observed."""
        if not self._recent:
            return self._seconds_max
        values = list(self._recent)
        middle = median(values)
        deviation = median([abs(value - middle) for value in values])
        usual = max(middle + self._deviations * deviation, _USUAL_TIMES * middle)
        return min(self._seconds_max, max(self._seconds_min, usual))


class Patience:
    """Whose bytes of one kind this peer has awaited in vain lately. It is waited for no more until they come again: who
    keeps parts back would otherwise cost everybody the longest wait in every step. Nobody is blamed for anything."""

    def __init__(self) -> None:
        self._in_vain: dict[PeerId, int] = {}

    def waited_in_vain(self, peers: set[PeerId]) -> None:
        """A wait for them was given up."""
        for peer in peers:
            self._in_vain[peer] = self._in_vain.get(peer, 0) + 1

    def came(self, peer: PeerId) -> None:
        """Something came after all, in time or not."""
        self._in_vain.pop(peer, None)

    def spent(self) -> set[PeerId]:
        """Those that are not waited for."""
        return {peer for peer, times in self._in_vain.items() if times >= _WAITS_IN_VAIN}

    def keep(self, peers: set[PeerId]) -> None:
        """Forget everybody else."""
        self._in_vain = {peer: times for peer, times in self._in_vain.items() if peer in peers}


@dataclass(slots=True)
class Timing:
    """Adaptive waits, kept across steps by the node."""

    work: Estimator
    transfer: Estimator
    delivery_seconds: float
    parts: Patience = field(default_factory=Patience)
    """With contributors whose parts this peer aggregates."""
    aggregates: Patience = field(default_factory=Patience)
    """With aggregators."""

    def keep(self, peers: set[PeerId]) -> None:
        """Remember nothing of others."""
        self.parts.keep(peers)
        self.aggregates.keep(peers)


def timing_of(manifest: Manifest) -> Timing:
    """Fresh estimators with the manifest's bounds."""
    bounds = manifest.deadlines
    return Timing(
        Estimator(bounds.work_seconds_min, bounds.work_seconds_max, bounds.deviations),
        Estimator(bounds.transfer_seconds_min, bounds.transfer_seconds_max, bounds.deviations),
        bounds.delivery_seconds,
    )
