"""Rules × attacks: the page that says how well each rule learns under each attack, measured by one command.

The idea: a cell is a handful of whole simulations of one small model, a seed each, so it is a claim about the product
and not about a formula. Every finished simulation is one line of a file next to the page; an interrupted table goes
on where it was, and whoever doubts a figure runs its seed again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdsurf.peer.finished_cells import open_for_more, read_cells
from crowdsurf.peer.simulate import SEED_SECONDS_MAX
from crowdsurf.peer.simulate_options import SimulateOptions, check_options, command
from crowdsurf.peer.workers import Job, run_jobs
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS

RULES = (
    *("mean", "centered_clip", "krum", "multi_krum", "median", "trimmed_mean", "geometric_median", "bulyan", "mda"),
    *("meamed", "sign_majority", "mixtailor", "nnm+trimmed_mean", "bucketing+krum"),
)
ATTACKS = ("none", *GRADIENT_ATTACKS)

RULE_PARAMETERS: dict[str, dict[str, Any]] = {"centered_clip": {"tau": 0.1}}
"""What a rule is given besides its share of attackers. The tau of CenteredClip has to be shorter than honest parts of
this model are far from each other."""


def rule_parameters(name: str) -> dict[str, Any]:
    """Those of the rule behind the pre-steps."""
    return RULE_PARAMETERS.get(name.split("+")[-1], {})


@dataclass(frozen=True, slots=True)
class Table:
    """What to measure."""

    rules: tuple[str, ...] = RULES
    attacks: tuple[str, ...] = ATTACKS
    seeds: tuple[int, ...] = (0, 1, 2)
    peers: int = 12
    byzantine: int = 5
    """Attackers, or fewer for a rule that is not made for so many; `mean` is made for none and gets them all."""
    attack_from: int = 5
    steps: int = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation of the table, by all that decides its result."""

    rule: str
    attack: str
    byzantine: int
    seed: int
    peers: int
    attack_from: int
    steps: int

    def options(self) -> SimulateOptions:
        """As a user of `crowdsurf simulate` would say it, but for the model (`overrides`)."""
        attacked = self.attack != "none"
        return SimulateOptions(
            peers=self.peers,
            byzantine=self.byzantine if attacked else None,
            attack=self.attack if attacked else None,
            attack_from=self.attack_from if attacked else None,
            steps=self.steps,
            seed=self.seed,
            validators=0,  # the rules alone
        )

    def overrides(self) -> dict[str, Any]:
        """What differs from the preset of digits: a smaller model, so that a cell takes seconds, and the rule."""
        share = self.byzantine / self.peers
        return {
            "task.parameters": {"model": "mlp", "hidden": 32},
            "work.micro_batch_samples": 32,
            "optimizer.learning_rate": 0.02,
            "optimizer.decay_steps": max(self.steps - 3, 0),
            "rule.name": self.rule,
            "rule.parameters": {"byzantine_share": share, **rule_parameters(self.rule)},
        }


def cells_of(table: Table) -> Iterator[Cell]:
    """All simulations of a table. Raises MisuseError for an unknown rule."""
    attackers = {rule: byzantine_of(rule, table) for rule in table.rules}
    for seed in table.seeds:
        for attack in table.attacks:
            for rule in table.rules:
                yield Cell(rule, attack, attackers[rule], seed, table.peers, table.attack_from, table.steps)


def byzantine_of(rule: str, table: Table) -> int:
    """How many attackers a rule has to stand. Raises MisuseError for an unknown rule."""
    from crowdsurf.peer.compute.rules import parse_rule

    bound = parse_rule(rule, rule_parameters(rule)).byzantine_max(table.peers)
    return min(table.byzantine, bound) or table.byzantine


async def measure(table: Table, file: Path, processes: int, tell: Callable[[str], None]) -> dict[Cell, dict[str, Any]]:
    """The result of every cell: those the file has, then the others in parallel, each written to it when it is done.
    Raises MisuseError, and WorldError if a simulation failed."""
    cells = list(cells_of(table))
    for cell in cells:
        check_options(cell.options())
    found = {cell: result for cell, result in read_cells(file, Cell).items() if cell in set(cells)}
    missing = [cell for cell in cells if cell not in found]
    tell(f"{len(cells)} simulations, {len(found)} of them done before")
    by_job = {json.dumps(_job(cell)): cell for cell in missing}
    failed: list[str] = []
    with open_for_more(file) as results:

        def done(job: Job, answer: Job) -> None:
            cell = by_job[json.dumps(job)]
            problem = answer.get("error") or "; ".join(answer.get("violations", ())[:1])
            if problem:
                failed.append(f"{cell}: {problem}")
                return
            kept = ("test_accuracy", "test_loss", "diverged", "certified_steps", "trace_digest")
            found[cell] = {name: answer[name] for name in kept}
            results.write(json.dumps(asdict(cell) | found[cell]) + "\n")
            results.flush()
            tell(f"{len(found)} of {len(cells)}: {cell.rule}, {cell.attack}, seed {cell.seed}: {_percent(found[cell])}")

        await run_jobs("crowdsurf.peer.simulate", map(_job, missing), processes, SEED_SECONDS_MAX, done)
    if failed:
        raise WorldError(f"{len(failed)} simulations failed, the first one was {failed[0]}")
    return found


def _job(cell: Cell) -> Job:
    return {"options": asdict(cell.options()), "overrides": cell.overrides()}


def page(table: Table, results: dict[Cell, dict[str, Any]], said: str) -> str:
    """The page in Markdown; `said` is the command that made it."""
    attackers = {rule: byzantine_of(rule, table) for rule in table.rules}
    lines = [
        "# Rules under attack",
        "",
        f"Held-out accuracy on digits, in percent, after {table.steps} steps of {table.peers} peers; the attack begins "
        f"with step {table.attack_from}.",
        f"Each cell: the mean of seeds {', '.join(map(str, table.seeds))}, and in brackets the lowest and the highest. "
        "10 is guessing. Nobody is verified and nobody is banned here: this is what a rule alone can do.",
        "",
        "Below each rule's name stands how many of the peers attack: as many as the rule is made for, at most "
        f"{table.byzantine}; `mean` is made for none and gets {table.byzantine}.",
        "Attacks have the strength of the literature and know every honest gradient; their formulas are in "
        "`peer/compute/attacks/`.",
        "",
        "Made with",
        "",
        f"    {said}",
        "",
        *_grid(table, results, attackers),
        "",
        "## One cell again",
        "",
        "A cell is a run of `crowdsurf simulate` with a smaller model; "
        f"`{command(next(iter(cells_of(table))).options())}` is the first one with the preset's.",
        "What differs from the preset:",
        "",
        "```json",
        json.dumps(next(iter(cells_of(table))).overrides(), indent=1),
        "```",
        "",
        "The rule's other parameters are their defaults, but for: "
        + (", ".join(f"{rule} {json.dumps(values)}" for rule, values in RULE_PARAMETERS.items()))
        + ". The line of every simulation, with the digest of its trace, is in the `.jsonl` file beside this page.",
        "",
    ]
    return "\n".join(lines)


def _grid(table: Table, results: dict[Cell, dict[str, Any]], attackers: dict[str, int]) -> Iterator[str]:
    yield "| attack | " + " | ".join(f"{rule}<br>{attackers[rule]}" for rule in table.rules) + " |"
    yield "|---" * (len(table.rules) + 1) + "|"
    for attack in table.attacks:
        row = []
        for rule in table.rules:
            cells = [
                Cell(rule, attack, attackers[rule], seed, table.peers, table.attack_from, table.steps)
                for seed in table.seeds
            ]
            row.append(_cell(results[cell] for cell in cells))
        yield f"| {attack} | " + " | ".join(row) + " |"


def _cell(results: Iterable[dict[str, Any]]) -> str:
    figures = [100.0 * result["test_accuracy"] for result in results]
    return f"{statistics.fmean(figures):.0f} ({min(figures):.0f}–{max(figures):.0f})"


def _percent(result: dict[str, Any]) -> str:
    return f"{result['test_accuracy']:.1%}" + (" (diverged)" if result["diverged"] else "")


def parse_names(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Names separated by commas; all of them if there is no text. Raises MisuseError for an empty one."""
    if text is None:
        return tuple(known)
    names = tuple(text.split(","))
    if not all(names):
        raise MisuseError(f"names are separated by commas, as in {known[0]},{known[1]}, not {text}")
    return names
