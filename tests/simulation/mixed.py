"""Swarms of machines that compute the same work unit a little differently, and compare it by its numbers.

The idea: as in `names.py` a vector is the name of how it was made, but here also of the machine that made it. Names of
one work unit are near each other, whatever the machine, and far from everything else.
"""

from __future__ import annotations

import dataclasses

import msgspec

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.sim.compute import Work
from crowdsurf.protocol.sim.names import NamesCompute, name_of
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest
from crowdsurf.protocol.tolerance import SKETCH_DIRECTIONS, Compared, pack_sketch

BOUND = 1e-4
NOISE = 1e-6
"""Distance of honest machines, as a share of the gradient's length."""
WRONG = 2.0
"""Distance of a gradient that is turned around."""


class Mixed(NamesCompute):
    """What one machine computes; `made` is what all of them know about names: the work unit and the part."""

    def __init__(self, number: int, made: dict[bytes, tuple[Digest, int]], wrong: float = WRONG) -> None:
        super().__init__()
        self._number = number
        self._made = made
        self._wrong = wrong

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        unit = name_of("gradient", state, seed)
        names = tuple(name_of(unit, part, self._number) for part in range(parts))
        self._made |= {name: (unit, part) for part, name in enumerate(names)}
        return Work(names, 1.0, 32, (1.0,) * parts)

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        drawn, noise = name_of("sketch", state, seed, finder), name_of("noise", state, seed, self._number)
        pairs = zip(drawn[:SKETCH_DIRECTIONS], noise[:SKETCH_DIRECTIONS], strict=True)
        return pack_sketch([(one - 128) / 64 + NOISE * (other - 128) / 128 for one, other in pairs])

    def compare(
        self, state: Digest, seed: Digest, parts: int, committed: tuple[bytes, ...]
    ) -> tuple[Compared | None, ...]:
        unit = name_of("gradient", state, seed)
        return tuple(
            Compared(NOISE if self._made.get(name) == (unit, part) else self._wrong, 1.0) if name else None
            for part, name in enumerate(committed)
        )


def mixed_swarm(plan: Plan, steps: int, wrong: float = WRONG, rate: float = 0.2) -> Simulation:
    """A swarm in which every peer has another kind of machine."""
    audit = AuditSection(rate=rate, comparison="tolerance", relative_l2_max=BOUND)
    manifest = msgspec.structs.replace(plain_manifest(plan, steps), audit=audit)
    made: dict[bytes, tuple[Digest, int]] = {}
    simulation = Simulation(dataclasses.replace(plan), manifest, Mixed(-1, made, wrong))
    machines = {host.number: Mixed(host.number, made, wrong) for host in simulation.hosts}
    simulation.world.machine = machines.__getitem__
    return simulation
