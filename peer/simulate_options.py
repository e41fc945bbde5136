"""What to simulate, as its user says it: options, what is wrong with them, and the command that says them again.

The idea: an option that was not given is None, so what the seed of a swarm test draws can not be set by mistake, and
the command that replays a failure names exactly what matters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from crowdsurf.peer.config import load_config
from crowdsurf.protocol import limits
from crowdsurf.protocol.assignment import rate_of
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.sim.adversaries import ATTACKS
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.simulation import Plan, founders, plain_manifest
from crowdsurf.protocol.sim.swarm_test import RANDOM_ATTACK, draw_plan

TASKS = ("names", "digits", "quadratic", "text")
"""What simulated peers can compute; `names` computes nothing, for tests of the rules alone."""
PEERS = 16
STEPS = 50
TASK = "digits"

QUADRATIC: dict[str, object] = {
    "name": "quadratic",
    "task.name": "quadratic",
    "task.parameters": {"dimension": 1024, "condition": 10.0, "noise": 1.0},
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.3,
    "optimizer.momentum": 0.0,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "optimizer.weight_decay": 0.0,
}
"""What makes the preset of digits one of the noisy quadratic, whose optimum is known."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of `crowdsurf simulate`; None where the default holds or, in a swarm test, the seed decides."""

    peers: int | None = None
    byzantine: int | None = None
    attack: str | None = None
    attack_from: int | None = None
    attack_until: int | None = None
    strength: float | None = None
    adaptive: bool = False
    steps: int | None = None
    task: str | None = None
    seed: int = 0
    rule: str | None = None
    loss: float | None = None
    latency_ms: str | None = None
    partition: float | None = None
    crash_rate: float | None = None
    churn: float | None = None
    validators: int | None = None
    probation: int = 0
    swarm_test: bool = False


DRAWN_NOT_SAID = (
    *("peers", "byzantine", "attack_from", "attack_until", "strength", "adaptive", "steps", "task", "rule"),
    *("loss", "latency_ms", "partition", "crash_rate", "churn", "validators"),
)
"""Options that a swarm test draws or has no use for."""


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def command(options: SimulateOptions, **more: object) -> str:
    """The command line that says the same; `more` are further options."""
    said = dataclasses.asdict(options)
    order = ["swarm_test", *(name for name in said if name != "swarm_test")]
    words = ["crowdsurf", "simulate"]
    for name in order:
        value = said[name]
        if value is True:
            words.append(flag(name))
        elif value is not None and value is not False and (name in ("seed", "validators") or value != 0):
            words += [flag(name), str(value)]
    for name, value in more.items():
        words += [flag(name), str(value)]
    return " ".join(words)


def check_options(options: SimulateOptions) -> None:
    """Raises MisuseError with everything that is wrong."""
    problems = [*_wrong_numbers(options), *_wrong_attack(options)]
    if options.task is not None and options.task not in TASKS:
        problems.append(f"--task must be one of {', '.join(TASKS)}, not {options.task}")
    if options.probation:
        problems.append("--probation must be 0: newcomers enter at once, probation comes with a later version")
    if options.validators is not None and not 0 <= 2 * options.validators <= (options.peers or PEERS):
        problems.append(f"--validators must be at most half of the peers, not {options.validators}")
    if options.rule is not None and options.task == "names":
        problems.append("--rule needs a task that computes; with --task names there are no numbers to aggregate")
    if options.swarm_test:
        said = [flag(name) for name in DRAWN_NOT_SAID if getattr(options, name) not in (None, False)]
        if said:
            problems.append(f"--swarm-test draws everything from the seed; leave out {', '.join(said)}")
    if options.latency_ms is not None:
        try:
            _latencies(options.latency_ms)
        except ValueError:
            problems.append(f"--latency-ms must look like 10:50, fastest and slowest link, not {options.latency_ms}")
    if problems:
        raise MisuseError("\n".join(problems))


def _wrong_numbers(options: SimulateOptions) -> list[str]:
    problems = []
    peers = PEERS if options.peers is None else options.peers
    if not 1 <= peers <= limits.ROSTER_PEERS_MAX:
        problems.append(f"--peers must be between 1 and {limits.ROSTER_PEERS_MAX}, not {peers}")
    if options.byzantine is not None and not 0 <= options.byzantine < max(peers, 1):
        problems.append(f"--byzantine must leave an honest peer among {peers}, so not {options.byzantine}")
    if options.steps is not None and options.steps < 1:
        problems.append(f"--steps must be at least 1, not {options.steps}")
    if options.seed < 0:
        problems.append(f"--seed must not be negative, not {options.seed}")
    for name in ("attack_from", "attack_until"):
        step = getattr(options, name)
        if step is not None and step < 0:
            problems.append(f"{flag(name)} must be a step, not {step}")
    for name in ("strength", "loss", "partition", "crash_rate", "churn"):
        value = getattr(options, name)
        if value is not None and not (0.0 <= value < math.inf):
            problems.append(f"{flag(name)} must be a number that is not negative, not {value}")
    if options.loss is not None and options.loss >= 1.0:
        problems.append("--loss must be less than 1: some messages have to arrive")
    return problems


def _wrong_attack(options: SimulateOptions) -> list[str]:
    attack, byzantine = options.attack or "none", options.byzantine or 0
    known = [*ATTACKS, RANDOM_ATTACK] if options.swarm_test else [*ATTACKS]
    if attack not in known:
        return [f"--attack must be one of {', '.join(known)}, not {attack}"]
    if options.swarm_test:
        return []
    if attack != "none" and not byzantine:
        return ["--attack needs --byzantine: how many peers attack"]
    if attack == "none" and byzantine:
        return ["--byzantine needs --attack: what those peers do"]
    return []


def make_plan(options: SimulateOptions, overrides: Mapping[str, Any]) -> tuple[Plan, Manifest]:
    """Plan and manifest of checked options; `overrides` as in `ConfigDraft.build`. Raises MisuseError."""
    if options.swarm_test:
        return draw_plan(options.seed, options.attack or "none")
    attack = options.attack or "none"
    plan = Plan(
        peers=PEERS if options.peers is None else options.peers,
        byzantine=options.byzantine or 0,
        attack=attack,
        strength=_default_strength(attack) if options.strength is None else options.strength,
        attack_from=options.attack_from or 0,
        attack_until=options.attack_until,
        adaptive=options.adaptive,
        seed=options.seed,
        faults=_faults(options),
    )
    steps = STEPS if options.steps is None else options.steps
    names = options.task == "names"
    manifest = plain_manifest(plan, steps) if names else _learning_manifest(plan, steps, options, overrides)
    if options.validators is not None:
        audit = msgspec.structs.replace(manifest.audit, rate=rate_of(options.validators, plan.peers))
        manifest = msgspec.structs.replace(manifest, audit=audit)
    return plan, manifest


def _default_strength(attack: str) -> float:
    """That of the literature, for attacks on the gradient."""
    if attack not in GRADIENT_ATTACKS:
        return 1.0
    from crowdsurf.peer.compute.attacks import DEFAULT_STRENGTH

    return DEFAULT_STRENGTH[attack]


def _faults(options: SimulateOptions) -> Faults:
    plain = Faults()
    peers = PEERS if options.peers is None else options.peers
    fastest, slowest = plain.latency_seconds_min, plain.latency_seconds_max
    if options.latency_ms is not None:
        fastest, slowest = _latencies(options.latency_ms)
    return Faults(
        latency_seconds_min=fastest,
        latency_seconds_max=slowest,
        message_loss=options.loss or 0.0,
        partition_rate=options.partition or 0.0,
        crash_rate=options.crash_rate or 0.0,
        leave_rate=options.churn or 0.0,
        join_rate=(options.churn or 0.0) * peers,
    )


def _latencies(text: str) -> tuple[float, float]:
    """Seconds from `A:B` in milliseconds. Raises ValueError."""
    fastest, slowest = (float(word) / 1000.0 for word in text.split(":"))
    if not 0.0 <= fastest <= slowest <= 60.0:
        raise ValueError(text)
    return fastest, slowest


def _learning_manifest(plan: Plan, steps: int, options: SimulateOptions, overrides: Mapping[str, Any]) -> Manifest:
    """The task's preset with the simulation's founders; the rule is told how many attackers to expect."""
    task = options.task or TASK
    peers = founders(plan)
    changes: dict[str, Any] = QUADRATIC if task == "quadratic" else {}
    changes = {**changes, "seed": plan.seed, "steps": steps, "peers_max": limits.ROSTER_PEERS_MAX, **overrides}
    manifest = load_config("digits" if task == "quadratic" else task).build(peers[0], peers, Digest(b""), **changes)
    rule = manifest.rule
    if options.rule not in (None, rule.name):
        rule = msgspec.structs.replace(rule, name=options.rule, parameters={})
    if plan.byzantine:
        share = min(plan.byzantine / plan.peers, BYZANTINE_SHARE_MAX)
        rule = msgspec.structs.replace(rule, parameters={**rule.parameters, "byzantine_share": share})
    return msgspec.structs.replace(manifest, rule=rule)


BYZANTINE_SHARE_MAX = 0.499
"""No rule defends against half or more."""


def warning(options: SimulateOptions) -> str | None:
    """What the user should know about a plan that can be simulated but not be survived."""
    peers = PEERS if options.peers is None else options.peers
    if options.byzantine and 2 * options.byzantine >= peers:
        return f"{options.byzantine} of {peers} peers attack, and every promise needs an honest majority"
    return None
