"""`crowdsurf simulate`: a whole swarm in one process under virtual time, from a seed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.simulate_view import Progress, about, failures, summary
from crowdsurf.peer.garbage import collect_rarely
from crowdsurf.peer.simulate import simulate as rehearse
from crowdsurf.peer.simulate import simulate_many
from crowdsurf.peer.simulate_options import SimulateOptions, check_options, warning
from crowdsurf.protocol.errors import MisuseError, WorldError

Result = TypeVar("Result")


def _option(text: str) -> Any:
    return typer.Option(help=text)


def simulate(
    context: typer.Context,
    peers: Annotated[int | None, _option("Peers of the swarm; 16 if not given.")] = None,
    byzantine: Annotated[int | None, _option("How many of them attack.")] = None,
    attack: Annotated[str | None, _option("What those do; with --swarm-test also `random`.")] = None,
    attack_from: Annotated[int | None, _option("First step of the attack.")] = None,
    attack_until: Annotated[int | None, _option("First step after it.")] = None,
    strength: Annotated[float | None, _option("Strength of the attack; the literature's if not given.")] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Attackers lie low while suspected.")] = False,
    steps: Annotated[int | None, _option("Certified steps; 50 if not given.")] = None,
    task: Annotated[str | None, _option("digits (default), quadratic, text, or names: nothing is computed.")] = None,
    seed: Annotated[int, _option("Everything that happens follows from it.")] = 0,
    rule: Annotated[str | None, _option("Aggregation rule instead of the preset's.")] = None,
    loss: Annotated[float | None, _option("Share of messages that are lost.")] = None,
    latency_ms: Annotated[str | None, _option("Fastest and slowest link, one way: 10:50.")] = None,
    partition: Annotated[float | None, _option("Cuts of the network a minute.")] = None,
    crash_rate: Annotated[float | None, _option("Crashes of a peer a minute.")] = None,
    churn: Annotated[float | None, _option("Times a minute that a member leaves; as many strangers join.")] = None,
    validators: Annotated[int | None, _option("Peers that validate in every step; 0 trusts everybody.")] = None,
    probation: Annotated[int, _option("Kept for probation; 0 only.")] = 0,
    swarm_test: Annotated[bool, typer.Option("--swarm-test", help="Draw peers, steps and faults too.")] = False,
    seeds: Annotated[str | None, _option("Many seeds in parallel processes: FROM:TO, without TO.")] = None,
    processes: Annotated[int | None, _option("Parallel processes for --seeds; all cores if not given.")] = None,
    trace: Annotated[Path | None, _option("Write who did what when to this file.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Rehearse a whole swarm in one process, with faults and attackers, under virtual time."""
    options = SimulateOptions(**{name: context.params[name] for name in SimulateOptions.__dataclass_fields__})
    console = people(json_output)
    warned = warning(options)
    if warned is not None:
        typer.echo(f"crowdsurf: note that {warned}", err=True)
    if seeds is not None:
        if trace is not None:
            raise MisuseError("--trace is for one seed; replay one with --seed")
        numbers = parse_seeds(seeds)
        with Progress(console, len(numbers)) as progress:
            found = run_until_terminated(simulate_many(options, numbers, _processes(processes), progress.show))
        lines = failures(found)
    else:
        check_options(options)
        for line in about(options):
            console.print(line)
        found = _rehearse(options, console.print, trace)
        lines = summary(found)
    for line in lines:
        console.print(line)
    if json_output:
        answer(context, found)
    if found["violations"]:
        raise WorldError(f"a promise was broken: {found['violations'][0]}")


def _rehearse(options: SimulateOptions, tell: Any, trace: Path | None) -> dict[str, Any]:
    collect_rarely()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        if trace is None:
            return rehearse(options, tell=tell)
        with trace.open("w", encoding="utf-8") as file:
            return rehearse(options, tell=tell, write_trace=file.write)
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_seeds(text: str) -> range:
    """`FROM:TO`. Raises MisuseError."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise MisuseError(f"--seeds must look like 0:300, first seed and the one after the last, not {text}")
    return range(int(first), int(last))


def _processes(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise MisuseError(f"--processes must be at least 1, not {wanted}")
    return wanted or len(os.sched_getaffinity(0))


def run_until_terminated(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it; SIGTERM ends it in order, as Ctrl-C does."""

    async def run() -> Result:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(run())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
