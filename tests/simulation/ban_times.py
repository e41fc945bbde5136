"""How long attackers last, one simulation a line: run as a worker process (`peer/workers.py`), or imported.

The idea: detection is a lottery whose law is known exactly (`protocol/sim/theory.py`), so the whole path from a forged
gradient to a ban is tested by comparing many runs with that law. Nobody watches these runs but who counts bans: the
same attack with all checkers on is in `test_justice.py`.
"""

from __future__ import annotations

import dataclasses
import gc

from crowdsurf.peer.workers import Job, serve
from crowdsurf.protocol import effects
from crowdsurf.protocol.messages import Ban
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest

STEPS_MAX = 400
SECONDS_MAX = 2000.0


@dataclasses.dataclass(frozen=True)
class Caught:
    """One attacker's end."""

    step: int
    """The step it was caught in."""
    banned: int
    """The step whose header bans it."""


class CountsBans(Observer):
    """Keeps every ban, as the first host that certifies it sees it."""

    sees_effects = (effects.PersistCertificate,)

    def __init__(self) -> None:
        self.bans: dict[bytes, tuple[int, Ban]] = {}

    def on_effect(self, host: Host, effect: effects.Effect) -> None:
        """Look at a certified header."""
        if isinstance(effect, effects.PersistCertificate):
            header = effect.certificate.header
            for ban in header.bans:
                self.bans.setdefault(ban.peer, (header.step, ban))


def caught(seed: int, peers: int = 16, byzantine: int = 7, attack: str = "sign_flip") -> list[Caught]:
    """Attack from the first step on until all attackers are banned."""
    plan = Plan(peers=peers, byzantine=byzantine, attack=attack, seed=seed)
    made = Simulation(plan, plain_manifest(plan, STEPS_MAX), NamesCompute())
    made.world.event_observers.clear()
    made.world.state_observers.clear()
    for observers in made.world.effect_observers.values():
        observers.clear()
    counts = CountsBans()
    made.world.watch(counts)
    for host in made.hosts:
        host.start()
    made.timeline.run(lambda: len(counts.bans) >= byzantine, SECONDS_MAX)
    return [Caught(ban.step, step) for step, ban in counts.bans.values()]


def answer(job: Job) -> Job:
    """One seed's steps: when attackers were caught, and when they were banned."""
    return {"caught": [[one.step, one.banned] for one in caught(job["seed"])]}


if __name__ == "__main__":
    gc.disable()  # a run is short, and lets go of nothing before its end
    serve(answer)
