"""`crowdsurf byzantine`: measure what attackers achieve against verification, and write the page about it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.simulate import parse_seeds, run_until_terminated
from crowdsurf.peer import draws
from crowdsurf.peer.byzantine import TABLES, Study, choose, measure, read_results
from crowdsurf.peer.byzantine_page import Results, page
from crowdsurf.peer.byzantine_plots import check_matplotlib, draw_all
from crowdsurf.protocol.errors import WorldError

DEFAULT = Study()


def byzantine(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Page to write; results and pictures go into a folder beside it.")],
    tables: Annotated[
        str | None, typer.Option(help=f"Which of {', '.join(TABLES)}, with commas; all if not given.")
    ] = None,
    attacks: Annotated[str | None, typer.Option(help="Attacks, with commas between them; all if not given.")] = None,
    seeds: Annotated[str, typer.Option(help="FROM:TO, without TO.")] = "0:3",
    runs: Annotated[int, typer.Option(min=0, help="Runs that measure detection times.")] = DEFAULT.runs,
    processes: Annotated[int | None, typer.Option(min=1, help="Parallel processes; all cores if not given.")] = None,
    stored: Annotated[bool, typer.Option("--stored", help="Play nothing: write the page from what is there.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Measure how soon attackers are caught and what they achieve; an interrupted study goes on where it was."""
    whole = Study(seeds=tuple(parse_seeds(seeds)), runs=runs)
    study = choose(whole, attacks, tables)
    console, folder = people(json_output), out.with_suffix("")
    check_matplotlib()
    try:
        if not stored:
            if draws.read(folder) is None:
                console.print("throwing the rules' dice, which takes a minute or two")
                draws.measure(folder, whole.validators)
            count = processes or len(os.sched_getaffinity(0))
            run_until_terminated(measure(study, folder, count, console.print))
    finally:  # an interrupted study leaves an honest page too
        results = Results(whole, read_results(folder), draws.read(folder) or {})
        pictures = draw_all(results, folder)
        said = shlex.join(["crowdsurf", "byzantine", str(out), "--seeds", seeds, "--runs", str(runs)])
        out.write_text(page(results, said, [f"{folder.name}/{file.name}" for file in pictures]), encoding="utf-8")
        console.print(f"{out} is written; the results are in {folder}")
    broken = results.broken()
    if json_output:
        counts = {table: results.stored(table)[0] for table in TABLES}
        answer(context, {"page": str(out), "results": str(folder), "simulations": counts, "violations": broken})
    if broken:
        raise WorldError(f"a promise was broken in {len(broken)} runs, the first one is {broken[0]}")
