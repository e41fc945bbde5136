"""`crowdsurf doctor`: is this machine fit for a run, and how exactly can peers of a mixed swarm be compared?"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from crowdsurf.cli import errors
from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.peer.doctor import Check, examine, manifest_of
from crowdsurf.peer.volunteer import node_config

if TYPE_CHECKING:
    from crowdsurf.peer.compute.calibration import Calibration

DEFAULT_RUN = "digits"


def doctor(
    context: typer.Context,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET_OR_RUN",
            help="Measure how far honest gradients are apart here, and how far the smallest cheat; suggest a bound for "
            "`audit.comparison: tolerance`. A preset, a config file, a run's folder or a home.",
        ),
    ] = None,
    units: Annotated[int, typer.Option(min=1, max=1000, help="--calibrate: work units to compute in every way.")] = 8,
    home: Annotated[str | None, typer.Option(help="Folder of key, journal and model [~/.crowdsurf].")] = None,
    config: Annotated[Path | None, typer.Option(help="Node config [node.yaml in the home, if any].")] = None,
    listen: Annotated[list[str] | None, typer.Option(help="Multiaddress to listen on (may be repeated).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:NUMBER [auto].")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the compute worker [1].")] = None,
    json_output: JsonOption = False,
) -> None:
    """Test disk, ports, device and determinism of this machine, and say how to fix what is wrong."""
    console = people(json_output)
    options = {"home": home, "listen": listen, "device": device, "threads": threads}
    node = node_config(config, os.environ, options)
    manifest = manifest_of(calibrate or DEFAULT_RUN)
    checks = asyncio.run(examine(node, manifest))
    _print_checks(console, checks)
    measured = None
    if calibrate is not None:
        # Imported here: this computes in our own process, so it loads torch.
        from crowdsurf.peer.compute.calibration import calibrate as measure

        measured = measure(manifest, units, lambda line: console.print(line, markup=False))
        _print_calibration(console, measured)
    if json_output:
        found = measured.as_json() if measured is not None else None
        answer(context, {"checks": [check.as_json() for check in checks], "calibration": found})
    if not all(check.ok for check in checks) or (measured is not None and measured.relative_l2_max is None):
        raise typer.Exit(errors.FAILED)


def _print_checks(console: Console, checks: list[Check]) -> None:
    for check in checks:
        console.print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}", markup=False)
        if check.fix:
            console.print(f"     to fix it: {check.fix}", markup=False)


def _print_calibration(console: Console, found: Calibration) -> None:
    table = Table("way", "is", "nearest", "median", "farthest", title=f"Distance from one plain thread, {found.task}")
    for way in found.ways:
        table.add_row(way.name, way.kind, f"{way.smallest:.1e}", f"{way.median:.1e}", f"{way.largest:.1e}")
    console.print(table)
    if found.relative_l2_max is not None:
        lines = [
            f"Honest ways differ by up to {found.honest_max:.1e}, the smallest cheat by {found.cheat_min:.1e} or more.",
            f"A bound between them: audit.relative_l2_max {found.relative_l2_max:g}. A run with it:",
            f"  crowdsurf create CONFIG --tolerance {found.relative_l2_max:g}",
        ]
    elif found.cheat_min is None:
        lines = ["This task shows no samples that could be left out, so there is nothing to measure a bound against."]
    else:
        lines = [
            f"No bound is safe: honest ways differ by up to {found.honest_max:.1e}, and a cheat by only "
            f"{found.cheat_min:.1e}.",
            "Keep audit.comparison exact and let the same kind of device and software join, or change the work unit: "
            "fewer samples make a cheat larger, smooth activations (no ReLU) make honest differences smaller.",
        ]
    for line in lines:
        console.print(line, markup=False)
