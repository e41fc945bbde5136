"""What can go wrong in a simulation: a table of named probabilities, and how a run draws its own.

The idea: every fault is one number with one meaning, far above what real networks do, and none of them by itself
may break a promise. `none()` is a perfect network, `draw()` makes the table of one seed: most faults are off in
most runs, because a run with everything at once finds less (swarm testing: Groce et al., ISSTA 2012).
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities are per message or per event, rates per peer and virtual minute."""

    latency_seconds_min: float = 0.01
    """Fastest link, one way; every ordered pair of peers draws its own between the two."""
    latency_seconds_max: float = 0.05
    """Slowest link, one way."""
    jitter: float = 0.2
    """A delivery takes up to this share longer than its link's latency."""
    bandwidth_bytes: float = 12.5e6
    """What one peer can send in a second, all its links together (12.5e6: 100 Mbit/s)."""
    message_loss: float = 0.0
    """A control message or a blob never arrives."""
    message_duplicate: float = 0.0
    """A control message arrives twice."""
    message_reorder: float = 0.0
    """A control message is held up, by up to `reorder_seconds_max`."""
    reorder_seconds_max: float = 2.0
    partition_rate: float = 0.0
    """Times a minute that a random set of peers is cut off from the rest."""
    partition_asymmetric: float = 0.5
    """Such a cut blocks one direction only."""
    partition_seconds_max: float = 20.0
    """A cut heals after up to this long."""
    crash_rate: float = 0.0
    """A peer's process dies at a random effect; what was not synced is torn."""
    crash_unnoticed: float = 0.3
    """A crash or cut breaks no connection, so nobody is told."""
    restart_seconds_max: float = 15.0
    """A crashed peer comes back after up to this long."""
    worker_death_rate: float = 0.0
    """The compute worker dies and its state with it; the daemon lives on."""
    work_failure: float = 0.0
    """A work unit cannot be computed."""
    straggle: float = 0.0
    """A work unit takes `straggle_factor` times as long."""
    straggle_factor: float = 20.0
    aggregate_failure: float = 0.0
    """An aggregate is never computed (its memory was not there, or no row was finite)."""
    clock_offset_seconds_max: float = 0.0
    """Clocks of peers differ by up to this much."""
    clock_drift: float = 0.0
    """Clocks of peers run faster or slower by up to this share."""
    join_rate: float = 0.0
    """Strangers that ask to join, a minute, for the whole swarm."""
    leave_rate: float = 0.0
    """A member leaves in order."""

    def calm(self) -> Faults:
        """The same network after faults have stopped: latencies, bandwidth and clocks stay as they are."""
        kept = {name: getattr(self, name) for name in _CONDITIONS}
        return Faults(**kept)


_CONDITIONS = (
    "latency_seconds_min",
    "latency_seconds_max",
    "jitter",
    "bandwidth_bytes",
    "clock_offset_seconds_max",
    "clock_drift",
)

DRAWN: dict[str, tuple[float, float]] = {
    "message_loss": (0.01, 0.3),
    "message_duplicate": (0.01, 0.5),
    "message_reorder": (0.01, 0.5),
    "partition_rate": (0.5, 6.0),
    "crash_rate": (0.2, 4.0),
    "worker_death_rate": (0.2, 3.0),
    "work_failure": (0.01, 0.3),
    "straggle": (0.01, 0.2),
    "aggregate_failure": (0.01, 0.3),
    "clock_offset_seconds_max": (0.1, 600.0),
    "clock_drift": (0.001, 0.05),
    "join_rate": (1.0, 10.0),
    "leave_rate": (0.1, 2.0),
}
"""The range a fault is drawn from when a run has it, logarithmically."""

_HAVING = 0.35
"""The share of runs that have a fault."""


def draw(chance: random.Random) -> Faults:
    """The table of one run of a swarm test."""
    slow = chance.uniform(0.005, 0.4)
    found: dict[str, float] = {
        "latency_seconds_min": slow * chance.random(),
        "latency_seconds_max": slow,
        "jitter": chance.uniform(0.0, 2.0),
        "bandwidth_bytes": 10 ** chance.uniform(6.0, 8.0),
        "crash_unnoticed": chance.random(),
        "partition_asymmetric": chance.random(),
    }
    for name, (low, high) in DRAWN.items():
        if chance.random() < _HAVING:
            found[name] = low * (high / low) ** chance.random()
    return dataclasses.replace(Faults(), **found)


def describe(faults: Faults) -> str:
    """What differs from a perfect run, for people and for logs."""
    plain = Faults()
    changed = [
        f"{field.name}={getattr(faults, field.name):.3g}"
        for field in dataclasses.fields(faults)
        if getattr(faults, field.name) != getattr(plain, field.name)
    ]
    return " ".join(changed) or "none"
