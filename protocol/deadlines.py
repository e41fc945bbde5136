"""Adaptive deadlines: wait as long as this swarm usually takes, within the manifest's bounds.

The idea: the median of recent arrivals plus a few median absolute deviations is not moved by a minority of
stragglers (who would otherwise teach everyone patience), and bounds keep it sane at the start and under
attack. SPEC R-4.30.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from crowdsurf.protocol.manifest import Manifest

_WINDOW = 128
"""Arrivals remembered: a few steps of a large group, a few dozen of a small one."""


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
        return min(self._seconds_max, max(self._seconds_min, middle + self._deviations * deviation))


@dataclass(slots=True)
class Timing:
    """Adaptive waits, kept across steps by the node."""

    work: Estimator
    transfer: Estimator
    delivery_seconds: float


def timing_of(manifest: Manifest) -> Timing:
    """Fresh estimators with the manifest's bounds."""
    bounds = manifest.deadlines
    return Timing(
        Estimator(bounds.work_seconds_min, bounds.work_seconds_max, bounds.deviations),
        Estimator(bounds.transfer_seconds_min, bounds.transfer_seconds_max, bounds.deviations),
        bounds.delivery_seconds,
    )
