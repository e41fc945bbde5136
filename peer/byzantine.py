"""Attackers against verification: which simulations the page about them is made of, and how one is played.

The idea: the page claims that audits catch every attacker as soon as the theory says, that learning does not notice,
and that honest peers get away unharmed. Each claim is a table of whole simulations, a line each in files next to the
page; interrupted, it goes on where it was. A line is found again by everything that decides it, so one figure is
measured again by taking its line out. As a program this file is the worker that plays one simulation after another.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdsurf.peer import status
from crowdsurf.peer.finished_cells import open_for_more, read_cells
from crowdsurf.peer.garbage import collect_rarely
from crowdsurf.peer.rehearsal import parse_rehearsal
from crowdsurf.peer.simulate import SEED_SECONDS_MAX, Watcher, make_compute
from crowdsurf.peer.simulate_options import SimulateOptions, check_options, make_plan
from crowdsurf.peer.workers import Job, run_jobs, serve
from crowdsurf.protocol import effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import CrowdsurfError, MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, peer_text
from crowdsurf.protocol.sim.compute import Compute
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.simulation import Simulation

GRADIENT = (
    *("sign_flip", "random_direction", "label_flip", "delayed_gradient", "ipm:0.1", "ipm:0.6", "alie", "mimic"),
    *("min_max", "min_sum", "rop", "leave_out:3"),
)
"""Attacks on learning, NAME or NAME:STRENGTH; without one it is the literature's."""
BY_AGGREGATORS = ("leave_out:3",)
"""Those of them that nobody can play against a trusted server, because it aggregates itself."""
PROTOCOL = (
    *("equivocate", "false_accusation", "withhold_part", "withhold_reveal", "replay", "garbage", "nan", "inf", "huge"),
    *("lazy_validator", "slow", "wrong_aggregate", "wrong_projection", "colluding_aggregate", "late_aggregate"),
    *("withhold_projection", "two_faces", "split_objection", "withhold_cut", "split_views", "late_part"),
    "show_to_some",
)
"""Attacks on the protocol, played where nothing is learned."""
BORNE = (
    *("withhold_part", "withhold_reveal", "replay", "garbage", "slow", "late_aggregate", "withhold_projection"),
    *("withhold_cut", "split_views", "late_part", "show_to_some"),
)
"""Those that change no certified figure: at worst they cost time, and nobody can prove who did it."""
BASELINES = ("centered_clip", "geometric_median", "median", "mean")
"""Rules of a trusted server that checks nobody."""
TABLES = ("audited", "longer", "protocol", "baselines", "detection")
"""Kinds of simulations, in the order in which they are played: what is learned with audits; the same for longer after
attacks that do most harm; attacks on the protocol; what is learned without audits; how long many more runs take to
catch everybody."""
SLOW_TO_HEAL = ("alie", "min_max", "rop")
"""Gradient attacks that are played for longer too: does what they did before they were caught last?"""
DETECTION_STEPS_MAX = 1000
"""A run that only waits for the last ban may take so many steps; the theory gives it less than 10⁻⁹."""

VIOLATIONS_KEPT = 3
"""Of one run; the first one counts, the others tend to follow from it."""

NONE = "none"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Study:
    """What to measure."""

    tables: tuple[str, ...] = TABLES
    gradient: tuple[str, ...] = GRADIENT
    protocol: tuple[str, ...] = PROTOCOL
    baselines: tuple[str, ...] = BASELINES
    validators: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (0, 1, 2)
    runs: int = 2000
    """Of `detection`, for each number of validators."""
    peers: int = 16
    byzantine: int = 7
    attack_from: int = 50
    steps: int = 160
    """One validator a step needs 81 steps at the 99th percentile. What the last liar has done by then has another 29 to
    be learned over."""
    longer_steps: int = 320
    protocol_from: int = 10
    protocol_steps: int = 100

    @property
    def slow_to_heal(self) -> tuple[str, ...]:
        """Gradient attacks that are played for longer."""
        return tuple(attack for attack in self.gradient if attack in SLOW_TO_HEAL)

    @property
    def against_server(self) -> tuple[str, ...]:
        """Gradient attacks that are played against a trusted server, too."""
        return tuple(attack for attack in self.gradient if attack not in BY_AGGREGATORS)


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation, by all that decides its result."""

    table: str
    attack: str
    rule: str | None
    """None is the preset's."""
    validators: int
    seed: int
    peers: int
    byzantine: int
    attack_from: int
    steps: int

    @property
    def learns(self) -> bool:
        """Whether there is a model at all."""
        return self.table in ("audited", "longer", "baselines")

    def options(self) -> SimulateOptions:
        """As a user of `crowdsurf simulate` would say it, but for `overrides`."""
        attacked = self.attack != NONE
        wanted = parse_rehearsal(self.attack) if attacked else None
        return SimulateOptions(
            peers=self.peers,
            byzantine=self.byzantine if attacked else None,
            attack=wanted.attack if wanted else None,
            strength=wanted.strength if wanted else None,
            attack_from=self.attack_from if attacked else None,
            steps=self.steps,
            task="digits" if self.learns else "names",
            rule=self.rule,
            seed=self.seed,
            validators=self.validators,
        )

    def overrides(self) -> dict[str, Any]:
        """What differs from the preset of digits: the learning rate falls until the end of the run, so the attack meets
        it while it is high."""
        return {"optimizer.decay_steps": max(self.steps - 3, 0)} if self.learns else {}


def cells_of(study: Study) -> Iterator[Cell]:
    """All simulations of a study, the most telling ones first."""

    def cell(table: str, attack: str, rule: str | None, validators: int, seed: int) -> Cell:
        start, steps = {
            "protocol": (study.protocol_from, study.protocol_steps),
            "detection": (0, DETECTION_STEPS_MAX),
            "longer": (study.attack_from, study.longer_steps),
        }.get(table, (study.attack_from, study.steps))
        return Cell(table, attack, rule, validators, seed, study.peers, study.byzantine, start, steps)

    for table in TABLES:
        if table not in study.tables:
            continue
        if table == "detection":
            yield from (cell(table, "sign_flip", None, m, seed) for seed in range(study.runs) for m in study.validators)
            continue
        for seed in study.seeds:
            if table == "audited":
                yield from (cell(table, a, None, m, seed) for m in study.validators for a in (NONE, *study.gradient))
            elif table == "longer":
                yield from (cell(table, a, None, study.validators[0], seed) for a in (NONE, *study.slow_to_heal))
            elif table == "protocol":
                yield from (cell(table, a, None, study.validators[0], seed) for a in (NONE, *study.protocol))
            else:
                yield from (cell(table, a, rule, 0, seed) for a in study.against_server for rule in study.baselines)


# --- playing one --------------------------------------------------------------------------------------------


class History(Observer):
    """What a table needs to know of a run: when each step was certified, and how good the model was after it."""

    sees_effects = (effects.StepCertified,)

    def __init__(self, compute: Compute, learns: bool) -> None:
        self.accuracy: list[float] = []
        """By the number of certified steps the model has learned from."""
        self.certified_at: list[float] = []
        """Virtual seconds, by step."""
        self.bans = 0
        self._compute = compute
        self._learns = learns

    def on_effect(self, host: Host, effect: Effect) -> None:
        """A step is certified; the first honest peer counts."""
        if isinstance(effect, effects.StepCertified) and host.honest and effect.step >= len(self.certified_at):
            self.certified_at.append(host.world.timeline.now)
            self.bans = len(host.node.chain.bans)

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """A state that follows from a certified step."""
        if self._learns and host.honest and step >= len(self.accuracy):
            self.accuracy.append(round(self._compute.evaluate(digest)["test_accuracy"], 4))


def play(cell: Cell) -> dict[str, Any]:
    """One simulation and what is kept of it, broken promises included. Raises MisuseError, WorldError."""
    check_options(cell.options())
    plan, manifest = make_plan(cell.options(), cell.overrides())
    compute = make_compute(plan, manifest)
    watcher, history = Watcher(compute, manifest.steps, lambda text: None), History(compute, cell.learns)
    simulation = Simulation(plan, manifest, compute, [watcher, history])
    diverged = False
    try:
        if cell.table == "detection":
            for host in simulation.hosts:
                host.start()
            simulation.timeline.run(lambda: history.bans >= plan.byzantine, plan.step_seconds * manifest.steps)
        else:
            simulation.run()
    except WorldError as error:
        if type(error).__name__ != "WorkFailed":
            raise
        diverged = True
    broken = [str(violation) for checker in simulation.checkers for violation in checker.violations]
    broken = [] if diverged else broken[:VIOLATIONS_KEPT]  # who diverged cannot keep the promise to reach the end
    return _kept(cell, simulation, watcher, history) | {"diverged": diverged, "violations": broken}


def _kept(cell: Cell, simulation: Simulation, watcher: Watcher, history: History) -> dict[str, Any]:
    """What the page is made of. A ban: step of the offence, step of the header, why, whether it was deserved."""
    furthest = max((host for host in simulation.hosts if host.honest), key=lambda host: host.step)
    liars = {peer_text(host.id) for host in simulation.hosts if not host.honest}
    bans = [
        (row["offence_step"], row["step"], row["reason"], row["peer"] in liars)
        for row in status.banned(furthest.node.chain)
    ]
    if cell.table == "detection":
        if sum(ban[3] for ban in bans) < len(liars):
            raise WorldError("not every attacker was banned")
        return {"draws": max(ban[0] for ban in bans) - cell.attack_from + 1, "lag": max(b[1] - b[0] - 1 for b in bans)}
    rests = [peer_text(host.id) for host in simulation.hosts if host.id in _rested(furthest)]
    begin = history.certified_at[cell.attack_from - 1] if 0 < cell.attack_from <= len(history.certified_at) else 0.0
    return {
        "certified_steps": len(history.certified_at),
        "bans": bans,
        "honest_strikes": watcher.honest_strikes,
        "attackers_rested": sum(peer in liars for peer in rests),
        "honest_rested": sum(peer not in liars for peer in rests),
        "void_steps": sum(not any(certificate.header.parts) for certificate in furthest.disk.certificates),
        "attacked_s": round(history.certified_at[-1] - begin, 3),
        "accuracy": history.accuracy,
        "trace_digest": simulation.trace.digest(),
    }


def _rested(host: Host) -> set[bytes]:
    return {rest.peer for rest in host.node.chain.head.roster.resting}


def answer_job(job: Job) -> Job:
    """One cell for whoever started this worker; what went wrong is {"error": sentence}."""
    try:
        return play(Cell(**job))
    except CrowdsurfError as error:
        return {"error": str(error)}
    finally:
        gc.collect()  # a swarm holds gigabytes of gradients in cycles, and the next one is on its way


# --- measuring all ------------------------------------------------------------------------------------------


async def measure(study: Study, folder: Path, processes: int, tell: Tell) -> None:
    """Play every simulation of a study that the folder does not have yet, in parallel; each is written to it when it
    is done. Raises MisuseError, and WorldError if one of them failed."""
    cells = list(cells_of(study))
    for options in {cell.options() for cell in cells if cell.seed in study.seeds}:
        check_options(options)
    stored = read_results(folder)
    missing = [cell for cell in cells if cell not in stored]
    tell(f"{len(cells)} simulations, {len(cells) - len(missing)} of them done before")
    by_job = {json.dumps(asdict(cell)): cell for cell in missing}
    done, failed = 0, []

    def keep(job: Job, answer: Job) -> None:
        nonlocal done
        cell = by_job[json.dumps(job)]
        done += 1
        if "error" in answer:
            failed.append(f"{cell}: {answer['error']}")
            return
        with open_for_more(folder / f"{cell.table}.jsonl") as results:
            results.write(json.dumps(asdict(cell) | answer, separators=(",", ":")) + "\n")
        tell(f"{done} of {len(missing)}: {cell.table}, {cell.attack}, {cell.rule or cell.validators}, seed {cell.seed}")

    await run_jobs("crowdsurf.peer.byzantine", map(asdict, missing), processes, SEED_SECONDS_MAX, keep)
    if failed:
        raise WorldError(f"{len(failed)} simulations failed, the first one was {failed[0]}")


def read_results(folder: Path) -> dict[Cell, dict[str, Any]]:
    """Everything measured so far."""
    found: dict[Cell, dict[str, Any]] = {}
    for table in TABLES:
        found |= read_cells(folder / f"{table}.jsonl", Cell)
    return found


def choose(study: Study, attacks: str | None, tables: str | None) -> Study:
    """The part of a study that a user names; everything if nothing is. Raises MisuseError for unknown names."""
    changes: dict[str, Any] = {}
    if tables is not None:
        changes["tables"] = _names("--tables", tables, study.tables)
    if attacks is not None:
        wanted = _names("--attacks", attacks, study.gradient + study.protocol)
        changes["gradient"] = tuple(name for name in study.gradient if name in wanted)
        changes["protocol"] = tuple(name for name in study.protocol if name in wanted)
    values = {name: getattr(study, name) for name in Study.__dataclass_fields__}
    return Study(**values | changes)


def _names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise MisuseError(f"{option} must be some of {', '.join(known)}, with commas between them, not {unknown[0]!r}")
    return names


if __name__ == "__main__":
    collect_rarely()
    serve(answer_job)
