"""One simulated swarm for a test: small, short, with the trouble it names and at most one kind of liar."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field

from crowdsurf.protocol.sim.adversaries import Adversary
from crowdsurf.protocol.sim.faults import Faults, draw
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Report, Simulation, plain_manifest


@dataclass(frozen=True)
class Setting:
    """What a swarm has to live with."""

    peers: int = 5
    steps: int = 8
    faults: Faults | None = field(default_factory=Faults)
    """None: drawn from the seed, as is the number of peers."""
    liar: type[Adversary] | None = None
    """What some of the peers do."""
    liars: int = 1


def simulation(setting: Setting, seed: int) -> Simulation:
    """The simulation of a setting; everything else about it follows from the seed."""
    chance = random.Random(f"plan {seed}")
    faults = setting.faults if setting.faults is not None else draw(chance)
    peers = setting.peers if setting.faults is not None else chance.randrange(2, 12)
    plan = Plan(peers=peers, seed=seed, faults=faults, byzantine=setting.liars if setting.liar is not None else 0)
    plan = dataclasses.replace(plan, faulty_seconds_max=120.0, liveness_seconds=120.0, step_seconds=10.0)
    made = Simulation(plan, plain_manifest(plan, setting.steps), NamesCompute())
    for host in made.hosts:
        if host.adversary is not None and setting.liar is not None:
            host.adversary = setting.liar(host.adversary.mind)
    return made


def run(setting: Setting, seed: int) -> Report:
    """Run a setting from a seed to its end."""
    return simulation(setting, seed).run()


def fired(report: Report) -> set[str]:
    """The checkers that saw a violation."""
    return {violation.checker for violation in report.violations}
