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
    SECURITY = "security"
    AGGREGATE = "aggregate"
    SIMULATE = "simulate"


PEERS = {Name.STEP: 4, Name.SECURITY: 8, Name.AGGREGATE: 16, Name.SIMULATE: 0}
"""Peers, unless the user says otherwise."""


class TransportName(enum.StrEnum):
    """What carries the streams between peers."""

    P2PD = "p2pd"
    MEMORY = "memory"


def bench(
    context: typer.Context,
    name: Annotated[
        Name,
        typer.Argument(
            help="step: a certified step beside a plain all-reduce. security: a step beside one in which nobody signs, "
            "projects or audits. aggregate: robust rules beside plain ones. "
            "simulate: a simulated message beside one through asyncio's queues."
        ),
    ],
    peers: Annotated[
        int | None, typer.Option(min=2, max=64, help="Peers, all on this machine; for aggregate, vectors.")
    ] = None,
    elements: Annotated[
        int, typer.Option(min=1000, help="Parameters of the model, about; or of a vector.")
    ] = 4_000_000,
    steps: Annotated[int, typer.Option(min=1, help="step: steps in a block.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each side is measured, in turn.")] = 7,
    transport: Annotated[TransportName, typer.Option(help="step: what carries the streams.")] = TransportName.P2PD,
    json_output: JsonOption = False,
) -> None:
    """Measure this program beside the obvious alternative."""
    console = people(json_output)
    count = peers or PEERS[name]
    if name is Name.STEP:
        import uvloop

        from crowdsurf.peer.bench import StepBench, bench_step

        plan = StepBench(peers=count, elements=elements, steps=steps, repeats=repeats, transport=transport.value)
        figures, show = uvloop.run(bench_step(plan, tell=console.print)), print_step
    elif name is Name.SECURITY:
        import uvloop

        from crowdsurf.peer.bench import StepBench
        from crowdsurf.peer.bench_security import bench_security

        plan = StepBench(peers=count, elements=elements, steps=steps, repeats=repeats, transport=transport.value)
        figures, show = uvloop.run(bench_security(plan, tell=console.print)), print_security
    elif name is Name.SIMULATE:
        from crowdsurf.peer.bench_simulate import SIZES, SimulateBench, bench_simulate
        from crowdsurf.peer.garbage import collect_rarely

        collect_rarely()
        sizes = SIZES if peers is None else (peers,)
        figures, show = bench_simulate(SimulateBench(repeats, sizes), console.print), print_simulate
    else:
        from crowdsurf.peer.clock import monotonic_seconds
        from crowdsurf.peer.compute.bench_aggregate import AggregateBench, bench_aggregate

        rules = AggregateBench(rows=count, elements=elements, repeats=repeats)
        figures, show = bench_aggregate(rules, monotonic_seconds, console.print), print_aggregate
    if json_output:
        answer(context, figures)
    else:
        show(console, figures)


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


def print_security(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `bench security` for people."""
    from crowdsurf.peer.bench_security import BYTES_RATIO_GOAL, SECONDS_RATIO_GOAL

    table = Table("", "median", "p10", "p90", "mean")
    for title, side, key in (
        ("checked step, seconds", "ours", "step_seconds"),
        ("unchecked step, seconds", "baseline", "step_seconds"),
        ("checked step, processor seconds of all", "ours", "cpu_seconds_per_step"),
        ("unchecked step, processor seconds of all", "baseline", "cpu_seconds_per_step"),
    ):
        table.add_row(title, *_cells(figures[side][key]))
    table.add_row("checked ÷ unchecked, block by block", *_cells(figures["ratio_spread"]))
    console.print(table)
    console.print(f"{figures['ratio']:.2f} times the time {_goal(figures, 'ratio', SECONDS_RATIO_GOAL, 'times')}")
    control = [size(figures[side]["control_bytes_per_peer_and_step"]) for side in ("ours", "baseline")]
    goal = _goal(figures, "bytes_ratio", BYTES_RATIO_GOAL, "times")
    console.print(
        f"{figures['bytes_ratio']:.4f} times the bytes {goal}: {control[0]} of control instead of {control[1]}"
    )
    console.print(f"{figures['audit_percent']:g} % of all work units are audits, as the manifest says")


def print_aggregate(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `bench aggregate` for people."""
    from crowdsurf.peer.compute import bench_aggregate as goals

    ours, baseline = figures["ours"], figures["baseline"]
    table = Table("", "median", "p10", "p90", "mean", title=f"{figures['peers']} × {figures['elements']}, seconds")
    table.add_row(f"CenteredClip to its fixed point, {ours['iterations']} iterations", *_cells(ours["seconds"]))
    table.add_row(f"{baseline['iterations']} plain iterations", *_cells(baseline["seconds"]))
    table.add_row("X Xᵀ and one weighted sum", *_cells(figures["floor"]["seconds"]))
    console.print(table)
    faster = 1 / figures["ratio"]
    met = "met" if figures["ratio"] <= goals.PLAIN_RATIO_GOAL else "missed"
    console.print(f"{faster:.1f} times faster than plain (goal: {1 / goals.PLAIN_RATIO_GOAL:.0f}; {met})")
    goal = _goal(figures, "floor_ratio", goals.FLOOR_RATIO_GOAL, "times")
    console.print(f"{figures['floor_ratio']:.2f} times X Xᵀ and one weighted sum {goal}")
    if ours["extra_bytes"] is not None:
        goal = _goal(ours, "extra_percent", goals.EXTRA_PERCENT_GOAL, "% of the vectors")
        console.print(f"memory rises by {size(ours['extra_bytes'])} meanwhile {goal}")
    table = Table("rule", "ours", "byzfl", "times faster", title=f"{figures['rules_elements']} elements, seconds")
    for row in figures["rules"]:
        theirs = "not installed" if row["byzfl"] is None else f"{row['byzfl']['median']:.3f}"
        times = "" if row["ratio"] is None else f"{1 / row['ratio']:.1f}"
        table.add_row(row["rule"], f"{row['ours']['median']:.3f}", theirs, times)
    console.print(table)


def print_simulate(console: Console, figures: dict[str, Any]) -> None:
    """The figures of `bench simulate` for people."""
    from crowdsurf.peer.bench_simulate import GROWTH_GOAL, MICROSECONDS_GOAL

    ours, baseline = figures["ours"], figures["baseline"]
    table = Table("", "median", "p10", "p90", "mean", title="processor microseconds for each message")
    for peers, found in ours["by_peers"].items():
        table.add_row(f"simulated, {peers} peers, {ours['messages'][peers]} messages", *_cells(found))
    table.add_row(f"asyncio's queues, {baseline['messages']} messages", *_cells(baseline["microseconds_per_message"]))
    console.print(table)
    median = ours["microseconds_per_message"]
    console.print(f"{median['median']:.1f} µs {_goal(median, 'median', MICROSECONDS_GOAL, 'µs')}")
    if len(ours["by_peers"]) > 1:
        sizes = list(ours["by_peers"])
        goal = _goal(figures, "growth", GROWTH_GOAL, "times")
        console.print(f"{figures['growth']:.2f} times as much at {sizes[-1]} peers as at {sizes[0]} {goal}")


def _cells(spread: dict[str, float]) -> list[str]:
    return [f"{spread[key]:.3f}" for key in ("median", "p10", "p90", "mean")]


def _goal(figures: dict[str, Any], key: str, most: float, unit: str, scale: float = 1.0) -> str:
    met = "met" if figures[key] / scale <= most else "missed"
    return f"(goal: at most {most:g} {unit}; {met})"
