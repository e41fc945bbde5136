"""Virtual time: a queue of things to do, each at its moment, run one after another in one thread.

The idea: nothing here waits. Time jumps to the next entry, entries of one moment run in the order in which they
were made, and that order is all there is: no sets, no addresses, no clock of the machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Timeline:
    """What will happen, soonest first."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual seconds since the simulation began."""
        self.done = 0
        """Entries carried out so far."""
        self._entries: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, time: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do something at a moment; at once after what is already due if the moment has passed."""
        self._order += 1
        heapq.heappush(self._entries, (max(time, self.now), self._order, action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do something `seconds` from now."""
        self._order += 1
        heapq.heappush(self._entries, (self.now + max(seconds, 0.0), self._order, action, arguments))

    def run(self, until: Callable[[], bool], seconds_max: float) -> bool:
        """Let time pass until `until()` holds (asked after every entry) or `seconds_max` virtual seconds have passed
        since the beginning; whether it holds. With nothing left to do, nothing can ever change: False at once."""
        while not until():
            if not self._entries or self._entries[0][0] > seconds_max:
                return False
            self.now, _, action, arguments = heapq.heappop(self._entries)
            self.done += 1
            action(*arguments)
        return True


@dataclass(slots=True)
class Timings:
    """What the clock of one host shows: `local = virtual * rate + offset`."""

    rate: float = 1.0
    offset: float = 0.0

    def local(self, virtual: float) -> float:
        """The host's clock at a virtual moment."""
        return virtual * self.rate + self.offset

    def virtual(self, local: float) -> float:
        """The virtual moment of a time on the host's clock."""
        return (local - self.offset) / self.rate
