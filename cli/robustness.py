"""`crowdsurf robustness`: measure every rule under every attack, and write the page about it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.simulate import parse_seeds, run_until_terminated
from crowdsurf.peer.robustness import ATTACKS, RULES, Table, measure, page, parse_names

DEFAULT = Table()
Rules = Annotated[str | None, typer.Option(help="Rules, separated by commas; all if not given.")]
Attacks = Annotated[str | None, typer.Option(help="Attacks, separated by commas; all on the gradient if not given.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Parallel processes; all cores if not given.")]


def robustness(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Page to write; results are kept beside it.")],
    rules: Rules = None,
    attacks: Attacks = None,
    seeds: Annotated[str, typer.Option(help="FROM:TO, without TO.")] = "0:3",
    peers: Annotated[int, typer.Option(min=3, max=64, help="Peers of every swarm.")] = DEFAULT.peers,
    byzantine: Annotated[
        int, typer.Option(min=1, help="Attackers, where a rule is made for so many.")
    ] = DEFAULT.byzantine,
    attack_from: Annotated[int, typer.Option(min=0, help="First step of the attack.")] = DEFAULT.attack_from,
    steps: Annotated[int, typer.Option(min=1, help="Certified steps.")] = DEFAULT.steps,
    processes: Processes = None,
    json_output: JsonOption = False,
) -> None:
    """Measure how well each rule learns under each attack; an interrupted table goes on where it was."""
    chosen_rules, chosen_attacks = parse_names(rules, RULES), parse_names(attacks, ATTACKS)
    table = Table(chosen_rules, chosen_attacks, tuple(parse_seeds(seeds)), peers, byzantine, attack_from, steps)
    console = people(json_output)
    cells = out.with_suffix(".jsonl")
    count = processes or len(os.sched_getaffinity(0))
    results = run_until_terminated(measure(table, cells, count, console.print))
    said = "crowdsurf " + shlex.join(context.obj.arguments)
    out.write_text(page(table, results, said), encoding="utf-8")
    console.print(f"{out} is written; the results are in {cells}")
    if json_output:
        accuracy = {
            f"{cell.rule} {cell.attack} {cell.seed}": result["test_accuracy"] for cell, result in results.items()
        }
        answer(context, {"page": str(out), "results": str(cells), "simulations": len(results), "accuracy": accuracy})
