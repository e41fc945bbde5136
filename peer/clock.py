"""The only place that reads a clock.

The idea: time is an argument everywhere else, so a test or a simulation decides what time it is. Durations
and deadlines use the monotonic clock; the wall clock is only for what others must agree on, such as expiry.
"""

from __future__ import annotations

import time
from typing import Protocol


def monotonic_seconds() -> float:
    """Seconds since some fixed moment; never goes back. For durations and deadlines."""
    return time.monotonic()


def wall_seconds() -> float:
    """Unix time in seconds; may jump. For expiry times and for people."""
    return time.time()


def process_seconds() -> float:
    """Processor seconds this process has used. For benchmarks."""
    return time.process_time()


class Clock(Protocol):
    """Both clocks, as an argument."""

    def monotonic_seconds(self) -> float:
        """See the function of the same name."""
        ...

    def wall_seconds(self) -> float:
        """See the function of the same name."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_seconds(self) -> float:
        """See Clock."""
        return monotonic_seconds()

    def wall_seconds(self) -> float:
        """See Clock."""
        return wall_seconds()


class ManualClock:
    """A clock that moves only when told to; for tests."""

    def __init__(self, wall_seconds: float = 1_800_000_000.0) -> None:
        self._monotonic = 0.0
        self._wall = wall_seconds

    def monotonic_seconds(self) -> float:
        """See Clock."""
        return self._monotonic

    def wall_seconds(self) -> float:
        """See Clock."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back ({seconds} s)")
        self._monotonic += seconds
        self._wall += seconds
