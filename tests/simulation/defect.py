"""What a planted defect is, and the registry of them.

The idea: a defect is a few lines over the real code, such as a hurried author might write, with the swarm in which it
matters. A checker that no defect sets off proves nothing, and a defect that no checker sees is a promise nobody
watches over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from crowdsurf.protocol.sim.faults import Faults
from tests.simulation.runs import Setting

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Defect:
    """A way to break the rules."""

    name: str
    sentence: str
    checkers: frozenset[str]
    """Those that must see it, with one seed or another; others may too."""
    setting: Setting
    seeds: tuple[int, ...]
    """Some that found it when they were written down; one of them has to."""
    plant: Callable[[Patch], None]


DEFECTS: dict[str, Defect] = {}

LOSSY = Faults(message_loss=0.15)
CRASHY = Faults(crash_rate=3.0, restart_seconds_max=5.0)
ROUGH = Faults(crash_rate=3.0, restart_seconds_max=5.0, message_loss=0.2, partition_rate=4.0)
CUT = Faults(partition_rate=30.0, partition_asymmetric=0.0)
NEWCOMERS = Faults(join_rate=10.0)
COMERS_AND_GOERS = Faults(join_rate=10.0, leave_rate=2.0)


def defect(
    checkers: str, seeds: tuple[int, ...] = (0, 1, 2), **setting: Any
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a function that plants a defect; its docstring is the sentence."""

    def register(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name, sentence = plant.__name__, (plant.__doc__ or "").strip()
        DEFECTS[name] = Defect(name, sentence, frozenset(checkers.split()), Setting(**setting), seeds, plant)
        return plant

    return register


def nothing(*arguments: object, **named: object) -> None:
    """In place of a function that does something."""
