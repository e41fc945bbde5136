"""A rehearsal: a whole swarm simulated in this process, and the answer that `crowdsurf simulate` gives about it.

The idea: options become a plan, a manifest and something that computes; `protocol/sim` does the rest. The answer is
that of a demo, with what only a simulation knows: virtual time, the digest of its trace, promises that were broken.
As a program (`python -m crowdsurf.peer.simulate`) it is the worker that answers many such jobs, one JSON line each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crowdsurf.peer import status
from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.garbage import collect_rarely
from crowdsurf.peer.simulate_options import SimulateOptions, check_options, command, make_plan
from crowdsurf.peer.workers import Job, run_jobs, serve
from crowdsurf.protocol import effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import CrowdsurfError, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_text
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.sim.compute import Compute
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation
from crowdsurf.protocol.sim.story import StoryWriter

KEEP_STATES_MAX = 64
"""States at which a real model can still be worked; only peers that were down for long need more than a few."""
EVALUATE_STEPS = 10

SEED_SECONDS_MAX = 1800.0
"""How long one of many simulations may take before its process is ended."""

Tell = Callable[[str], None]


class Watcher(Observer):
    """What the answer needs to know besides the report; sees every certified state once."""

    sees_effects = (effects.StepCertified,)

    def __init__(self, compute: Compute, steps: int, tell: Tell) -> None:
        self.began = monotonic_seconds()
        self.setup_seconds: float | None = None
        self.attacked: set[int] = set()
        """Certified steps in which an attack was on."""
        self.figures: dict[int, Mapping[str, float]] = {0: compute.evaluate(compute.initial_state())}
        """Held-out figures by the number of certified steps the model has learned from."""
        self.newest = 0, compute.initial_state()
        self._compute = compute
        self._steps = steps
        self._tell = tell
        self._liars: list[Host] = []
        self.honest_strikes = 0
        """Strikes that honest peers got, all together."""
        self._strikes: dict[bytes, int] = {}
        self._counted_step = -1

    def watch_for_attacks(self, hosts: list[Host]) -> None:
        """Whose attacks are counted."""
        self._liars = [host for host in hosts if not host.honest]

    def on_effect(self, host: Host, effect: Effect) -> None:
        """A step is certified: note when the first one was, and whether it was attacked."""
        if not isinstance(effect, effects.StepCertified) or not host.honest:
            return
        if self.setup_seconds is None:
            self.setup_seconds = monotonic_seconds() - self.began
        self._count_strikes(host, effect.step)
        here = (liar for liar in self._liars if liar.id in effect.contributors)
        if any(liar.adversary is not None and liar.adversary.attacking(effect.step) for liar in here):
            self.attacked.add(effect.step)

    def _count_strikes(self, host: Host, step: int) -> None:
        if step <= self._counted_step:
            return
        self._counted_step = step
        members = host.node.chain.head.roster.members
        strikes = {member.peer: member.strikes for member in members}
        honest = (peer for peer in strikes if host.world.hosts[PeerId(peer)].honest)
        self.honest_strikes += sum(max(0, strikes[peer] - self._strikes.get(peer, 0)) for peer in honest)
        self._strikes = strikes

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """A state that follows from a certified step; the first peer that has it lets us look at it."""
        if not host.honest or step <= self.newest[0]:
            return
        self.newest = step, digest
        if step % EVALUATE_STEPS == 0 or step == self._steps:
            self.figures[step] = self._compute.evaluate(digest)
            self._tell(f"step {step} of {self._steps} · {in_words(self.figures[step])}")

    def last_figures(self) -> Mapping[str, float]:
        """Those of the newest state, evaluated now if need be."""
        step, digest = self.newest
        if step not in self.figures:
            self.figures[step] = self._compute.evaluate(digest)
        return self.figures[step]


def simulate(
    options: SimulateOptions,
    overrides: Mapping[str, Any] | None = None,
    tell: Tell = lambda text: None,
    write_trace: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Rehearse once; the answer as `simulate --json` prints it. `overrides` replace fields of the task's preset by
    dotted path. `write_trace` is given the lines of the trace. Raises MisuseError, WorldError."""
    check_options(options)
    began = monotonic_seconds()
    plan, manifest = make_plan(options, overrides or {})
    compute = make_compute(plan, manifest)
    watcher = Watcher(compute, manifest.steps, tell if manifest.task.name != "names" else lambda text: None)
    watcher.began = began
    writer = StoryWriter(write_trace) if write_trace is not None else None
    simulation = Simulation(plan, manifest, compute, [watcher] + ([writer] if writer is not None else []))
    watcher.watch_for_attacks(simulation.hosts)
    try:
        violations = simulation.run().violations
        diverged = False
    except WorldError as error:
        if type(error).__name__ != "WorkFailed":
            raise
        violations = [violation for checker in simulation.checkers for violation in checker.violations]
        diverged = True
    if writer is not None:
        writer.finish(violations)
    answer = _answer(options, plan, manifest, simulation, watcher)
    answer["violations"] = [str(violation) for violation in violations]
    answer["diverged"] = diverged
    if violations:
        answer["replay"] = command(options, trace="trace.jsonl")
    return answer


def make_compute(plan: Plan, manifest: Manifest) -> Compute:
    """What a plan's peers compute with."""
    if manifest.task.name == "names":
        return NamesCompute()
    from crowdsurf.peer.compute.shared import SharedCompute

    keep = manifest.steps + 2 if plan.attack == "delayed_gradient" else KEEP_STATES_MAX
    return SharedCompute(manifest, keep_states=keep)


def _answer(
    options: SimulateOptions, plan: Plan, manifest: Manifest, simulation: Simulation, watcher: Watcher
) -> dict[str, Any]:
    """The fields of `demo --json` and those that only a simulation has; all are documented in the README."""
    hosts = [host for host in simulation.hosts if host.honest and host.started]
    there = [host for host in hosts if not (host.leaving and host.step < manifest.steps)]
    digests = {peer_text(host.id): digest_text(host.state) for host in there}
    certified = min((host.step for host in there), default=0)
    network, peer_steps = simulation.network, max(1, sum(host.step for host in hosts))
    sent, control = (
        round(sum(counted.get(host.number, 0) for host in hosts) / peer_steps)
        for counted in (network.bytes_sent, network.control_bytes_sent)
    )
    first, last = watcher.figures[0], watcher.last_figures()
    seconds = monotonic_seconds() - watcher.began
    liars = {peer_text(host.id) for host in simulation.hosts if not host.honest}
    furthest = max(hosts, key=lambda host: host.step)
    banned = [{**row, "byzantine": row["peer"] in liars} for row in status.banned(furthest.node.chain)]
    has_figures = manifest.task.name != "names"
    return {
        "peers": plan.peers,
        "byzantine": plan.byzantine,
        "attack": None if plan.attack == "none" else plan.attack,
        "task": manifest.task.name,
        "transport": "simulated",
        "steps": manifest.steps,
        "certified_steps": certified,
        "wall_s": round(seconds, 2),
        "setup_s": round(seconds if watcher.setup_seconds is None else watcher.setup_seconds, 2),
        "test_accuracy": _finite(last.get("test_accuracy")),
        "initial_test_accuracy": _finite(first.get("test_accuracy")),
        "test_loss": _finite(last["test_loss"]) if has_figures else None,
        "initial_test_loss": _finite(first["test_loss"]) if has_figures else None,
        "state_digests": digests,
        "consensus": len(set(digests.values())) == 1 and certified == manifest.steps,
        "banned": banned,
        "honest_banned": sum(1 for row in banned if not row["byzantine"]),
        "killed": [],
        "bytes_sent_per_peer_step": sent,
        "control_bytes_sent_per_peer_step": control,
        "journal": None,
        "virtual_s": round(simulation.timeline.now, 3),
        "violations": [],
        "all_byzantine_banned_at": _all_banned_at(liars, banned),
        "steps_attacked": len(watcher.attacked),
        "honest_strikes": watcher.honest_strikes,
        "rng": "seed",
        "seed": options.seed,
        "trace_digest": simulation.trace.digest(),
        "events": simulation.trace.events,
        "faults": changed_faults(plan.faults),
        "replay": None,
    }


def _all_banned_at(liars: set[str], banned: list[dict[str, Any]]) -> int | None:
    """The step whose header banned the last attacker; None while one is left, or if there was none."""
    at = {row["peer"]: row["step"] for row in banned if row["byzantine"]}
    return max(at.values()) if liars and liars == set(at) else None


def _finite(value: float | None) -> float | None:
    """JSON has no infinities."""
    return value if value is not None and math.isfinite(value) else None


def changed_faults(faults: Faults) -> dict[str, float]:
    """What differs from a perfect run."""
    plain = Faults()
    names = [field.name for field in dataclasses.fields(faults)]
    return {name: getattr(faults, name) for name in names if getattr(faults, name) != getattr(plain, name)}


def in_words(figures: Mapping[str, float]) -> str:
    """Loss and accuracy for people."""
    parts = [f"test loss {figures['test_loss']:.4g}"]
    if "test_accuracy" in figures:
        parts.append(f"test accuracy {figures['test_accuracy']:.1%}")
    return " · ".join(parts)


async def simulate_many(
    options: SimulateOptions, seeds: Sequence[int], processes: int, on_answer: Callable[[int, Job], None]
) -> dict[str, Any]:
    """The same options with many seeds, in parallel processes; what came of all together. `on_answer(seed, answer)`
    is called as they end. Raises MisuseError."""
    check_options(options)
    make_plan(dataclasses.replace(options, seed=seeds[0]), {})
    began = monotonic_seconds()
    answers: dict[int, Job] = {}

    def done(job: Job, answer: Job) -> None:
        seed = job["options"]["seed"]
        if "error" in answer:
            answer = {"violations": [answer["error"]], **answer}
        if answer["violations"]:
            answer["replay"] = command(dataclasses.replace(options, seed=seed), trace="trace.jsonl")
        answers[seed] = answer
        on_answer(seed, answer)

    jobs = ({"options": dataclasses.asdict(dataclasses.replace(options, seed=seed))} for seed in seeds)
    await run_jobs("crowdsurf.peer.simulate", jobs, processes, SEED_SECONDS_MAX, done)
    everything = [answers[seed] for seed in seeds]
    failures = [
        {"seed": seed, "violation": answers[seed]["violations"][0], "replay": answers[seed]["replay"]}
        for seed in seeds
        if answers[seed]["violations"]
    ]
    digests = "".join(answer.get("trace_digest", "") for answer in everything)
    return {
        "runs": len(seeds),
        "first_seed": seeds[0],
        "violations": [failure["violation"] for failure in failures],
        "failures": failures,
        **{name: sum(answer.get(name, 0) for answer in everything) for name in ("certified_steps", "events")},
        "virtual_s": round(sum(answer.get("virtual_s", 0.0) for answer in everything), 3),
        "wall_s": round(monotonic_seconds() - began, 2),
        "processes": processes,
        "trace_digest": "b2:" + hashlib.blake2b(digests.encode(), digest_size=16).hexdigest(),
    }


def answer_job(job: Job) -> Job:
    """One simulation for whoever started this worker: {"options": {…}, "overrides": {…}} to an answer, or to
    {"error": sentence}. A bug of ours that a seed brings to light is reported with the seed as any other failure."""
    options = SimulateOptions(**job["options"])
    try:
        return simulate(options, job.get("overrides"))
    except CrowdsurfError as error:
        return {"error": str(error)}
    except Exception as error:  # our own bug: the run goes on with other seeds, and this one is reported
        traceback.print_exc()
        return {"error": f"a bug: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    collect_rarely()
    serve(answer_job)
