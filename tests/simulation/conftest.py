"""A simulation to look into."""

from __future__ import annotations

import pytest

from crowdsurf.protocol.sim.simulation import Simulation
from tests.simulation.runs import Setting, simulation
from tests.simulation.told import STEPS


@pytest.fixture
def running() -> Simulation:
    """A run in the middle of a step."""
    made = simulation(Setting(peers=3, steps=STEPS), 1)
    for host in made.hosts:
        host.start()
    first = made.hosts[0]
    made.timeline.run(lambda: first.step == 1 and first.node.machine is not None and bool(first.disk.signed()), 100.0)
    return made
