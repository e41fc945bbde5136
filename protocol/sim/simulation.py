"""A whole simulation: hosts, network, faults, adversaries and checkers from one seed, run to its end.

The idea: two phases, as TigerBeetle's. In the first one faults rain as the table says; then they stop, everybody
who is down comes back, and every honest peer must reach the end in a bounded time. Whatever happens is a function
of (plan, manifest, compute); the report says what came of it and which promise was broken, if any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from crowdsurf.protocol import effects
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import DeadlineSection, Manifest, OptimizerSection, TaskSection, run_id_of
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim.adversaries import ATTACKS, Mind
from crowdsurf.protocol.sim.checkers import Progress, Violation, all_checkers
from crowdsurf.protocol.sim.compute import Compute
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host, Observer, World
from crowdsurf.protocol.sim.keys import Registry, SimulatedSigner
from crowdsurf.protocol.sim.nemesis import Nemesis
from crowdsurf.protocol.sim.network import Network
from crowdsurf.protocol.sim.timeline import Timeline, Timings
from crowdsurf.protocol.sim.trace import TraceDigest

STRANGERS_MAX = 16
"""Peers that exist but are no founders: those that may join."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate."""

    peers: int = 8
    byzantine: int = 0
    attack: str = "none"
    strength: float = 1.0
    attack_from: int = 0
    attack_until: int | None = None
    adaptive: bool = False
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    faulty_share: float = 0.7
    """Faults stop when the first peer has done this share of the steps, at the latest after
    `faulty_seconds_max`."""
    faulty_seconds_max: float = 300.0
    liveness_seconds: float = 300.0
    """What honest peers may take for the rest, besides `step_seconds` for each step left."""
    step_seconds: float = 30.0


@dataclass(slots=True)
class Report:
    """What came of it."""

    virtual_seconds: float
    events: int
    trace_digest: str
    violations: list[Violation]
    certified_steps: int
    hosts: list[Host]
    compute: Compute
    faults_stopped_at: float

    @property
    def honest(self) -> list[Host]:
        """Hosts that follow the rules."""
        return [host for host in self.hosts if host.honest]


class Goal(Observer):
    """Knows, without asking everybody after every message, how far honest hosts are."""

    sees_effects = (effects.StepCertified, effects.Finished)

    def __init__(self, hosts: list[Host], step: int) -> None:
        self.step = step
        self.first_step = 0
        self._hosts = hosts
        self._look = True

    def on_effect(self, host: Host, effect: effects.Effect) -> None:
        """Note that a host got on."""
        self._look = True
        if host.honest and isinstance(effect, effects.StepCertified):
            self.first_step = max(self.first_step, effect.step + 1)

    def everybody_is_done(self) -> bool:
        """Whether every honest host that ever started has finished."""
        if self._look:
            self._look = False
            return all(host.finished for host in self._hosts if host.honest and host.started)
        return False


class Simulation:
    """One run. `observers` may be added before `run`."""

    def __init__(
        self, plan: Plan, manifest: Manifest, compute: Compute, observers: list[Observer] | None = None
    ) -> None:
        """`manifest` must name the founders that `founders(plan)` gives."""
        self.plan = plan
        self.manifest = manifest
        self.timeline = Timeline()
        self.chance = random.Random(f"simulation {plan.seed}")
        self.registry = Registry()
        self.network = Network(self.timeline, self.chance, plan.faults)
        self._opener = self.registry.opener(run_id_of(manifest))
        self.trace = TraceDigest()
        self.checkers = all_checkers(self.registry.verify)
        self.world = World(self.timeline, self.network, compute, self.chance, self._make_node)
        for observer in (self.trace, *self.checkers, *(observers or [])):
            self.world.watch(observer)
        self.hosts = self._make_hosts()
        self.nemesis = Nemesis(self.world, self.hosts, plan.peers)

    def _make_node(self, signer: SimulatedSigner) -> Node:
        return Node(self.manifest, signer, self.registry.verify, self.world.compute.elements, self._opener)

    def _make_hosts(self) -> list[Host]:
        plan, chance = self.plan, self.chance
        strangers = STRANGERS_MAX if plan.faults.join_rate else 0
        liars = set(chance.sample(range(plan.peers), plan.byzantine))
        mind = Mind(plan.attack, plan.strength, plan.attack_from, plan.attack_until, plan.adaptive)
        mind.chance = random.Random(f"mind {plan.seed}")
        hosts = []
        for number, signer in enumerate(signers(plan.seed, plan.peers + strangers)):
            adversary = ATTACKS[plan.attack](mind) if number in liars else None
            host = Host(self.world, number, signer, adversary)
            if adversary is not None:
                mind.members.append(host.id)
            offset = plan.faults.clock_offset_seconds_max * chance.random()
            host.clock = Timings(1.0 + plan.faults.clock_drift * chance.uniform(-1.0, 1.0), offset)
            self.registry.add(signer)
            self.world.hosts[host.id] = host
            hosts.append(host)
        return hosts

    def run(self) -> Report:
        """Both phases, then the verdict."""
        plan, timeline = self.plan, self.timeline
        goal = Goal(self.hosts, round(plan.faulty_share * self.manifest.steps))
        self.world.watch(goal)
        for host in self.hosts[: plan.peers]:
            host.start()
        self.nemesis.begin()
        honest = [host for host in self.hosts if host.honest]
        timeline.run(lambda: goal.first_step >= goal.step, plan.faulty_seconds_max)
        stopped_at = timeline.now
        self.nemesis.stop()
        left = self.manifest.steps - max((host.step for host in honest if host.alive), default=0)
        bound = timeline.now + plan.liveness_seconds + plan.step_seconds * max(left, 1)
        timeline.run(goal.everybody_is_done, bound)
        for checker in self.checkers:
            if isinstance(checker, Progress):
                for host in honest:
                    if host.started:
                        checker.finish(host, bool(host.finished))
        return Report(
            virtual_seconds=timeline.now,
            events=self.trace.events,
            trace_digest=self.trace.digest(),
            violations=sorted((v for c in self.checkers for v in c.violations), key=lambda v: v.time),
            certified_steps=max((host.step for host in honest if host.started), default=0),
            hosts=self.hosts,
            compute=self.world.compute,
            faults_stopped_at=stopped_at,
        )


def signers(seed: int, count: int) -> list[SimulatedSigner]:
    """The keys of a simulation's peers; the first ones are the founders'."""
    return [SimulatedSigner(seed, number) for number in range(count)]


def founders(plan: Plan) -> tuple[PeerId, ...]:
    """The peers a plan's manifest must name as founders."""
    return tuple(signer.peer_id for signer in signers(plan.seed, plan.peers))


def plain_manifest(plan: Plan, steps: int) -> Manifest:
    """A manifest for simulations that only test the rules (`NamesCompute`)."""
    peers = founders(plan)
    return Manifest(
        name="simulation",
        organizer=peers[0],
        founders=peers,
        task=TaskSection(name="names"),
        optimizer=OptimizerSection(name="sgd", learning_rate=0.1),
        deadlines=DeadlineSection(
            work_seconds_min=0.5,
            work_seconds_max=10.0,
            transfer_seconds_min=0.5,
            transfer_seconds_max=5.0,
            delivery_seconds=0.5,
        ),
        steps=steps,
        seed=plan.seed,
        peers_max=min(256, plan.peers + STRANGERS_MAX),
    )
