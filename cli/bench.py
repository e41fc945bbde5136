"""`crowdsurf bench`: measured figures, each beside the obvious alternative in the same run."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from crowdsurf.cli.output import JsonOption, answer, people, size


class Name(enum.StrEnum):
    """What can be measured."""

    STEP = "step"


class TransportName(enum.StrEnum):
    """What carries the streams between peers."""

    P2PD = "p2pd"
    MEMORY = "memory"


def bench(
    context: typer.Context,
    name: Annotated[Name, typer.Argument(help="step: a certified step beside a plain all-reduce.")],
    peers: Annotated[int, typer.Option(min=2, max=64, help="Peers, all on this machine.")] = 4,
    elements: Annotated[int, typer.Option(min=1000, help="Parameters of the model, about.")] = 4_000_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a block.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of blocks, one of each side.")] = 7,
    transport: Annotated[TransportName, typer.Option(help="What carries the streams.")] = TransportName.P2PD,
    json_output: JsonOption = False,
) -> None:
    """Measure this program beside the obvious alternative."""
    import uvloop

    from crowdsurf.peer.bench import StepBench, bench_step

    console = people(json_output)
    plan = StepBench(peers=peers, elements=elements, steps=steps, repeats=repeats, transport=transport.value)
    figures = uvloop.run(bench_step(plan, tell=console.print))
    if json_output:
        answer(context, figures)
    else:
        print_step(console, figures)


def print_step(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `bench step` for people."""
    from crowdsurf.peer.bench import CONTROL_PERCENT_GOAL, OVERHEAD_PERCENT_GOAL, RESIDENT_BYTES_GOAL

    table = Table("", "median", "p10", "p90", "mean")
    for title, side, key in (
        ("certified step, seconds", "ours", "step_seconds"),
        ("plain all-reduce, seconds", "baseline", "step_seconds"),
        ("certified step, processor seconds of all", "ours", "cpu_seconds_per_step"),
        ("plain all-reduce, processor seconds of all", "baseline", "cpu_seconds_per_step"),
    ):
        table.add_row(title, *_cells(figures[side][key]))
    table.add_row("certified ÷ plain, block by block", *_cells(figures["ratio_spread"]))
    console.print(table)
    console.print(f"The work unit's own {figures['work_unit_seconds']:.3f} s a step are taken off both sides.")
    console.print(
        f"overhead {figures['overhead_percent']:.0f} % {_goal(figures, 'overhead_percent', OVERHEAD_PERCENT_GOAL, '%')}"
    )
    ours = figures["ours"]
    control, part = size(ours["control_bytes_per_peer_and_step"]), size(ours["part_bytes_per_peer_and_step"])
    goal = _goal(figures, "control_percent", CONTROL_PERCENT_GOAL, "%")
    console.print(f"control {control} and parts {part} sent by a peer in a step: {figures['control_percent']} % {goal}")
    if figures.get("daemon_bytes_before_model"):
        before = size(figures["daemon_bytes_before_model"])
        goal = _goal(figures, "daemon_bytes_before_model", RESIDENT_BYTES_GOAL / 1e6, "MB", scale=1e6)
        rest = ", ".join(
            f"{title} {size(figures[key])}"
            for title, key in (
                ("at the end", "daemon_bytes_at_end"),
                ("worker", "worker_bytes"),
                ("p2pd", "p2pd_bytes"),
            )
            if figures[key]
        )
        console.print(f"daemon {before} resident before its model {goal}; {rest}")


def _cells(spread: dict[str, float]) -> list[str]:
    return [f"{spread[key]:.3f}" for key in ("median", "p10", "p90", "mean")]


def _goal(figures: dict[str, Any], key: str, most: float, unit: str, scale: float = 1.0) -> str:
    met = "met" if figures[key] / scale <= most else "missed"
    return f"(goal: at most {most:g} {unit}; {met})"
