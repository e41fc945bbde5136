"""`crowdsurf create`: an organizer makes a run and gets its invite."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.peer.organize import INVITE_FILE, Created, create_run

ADDRESS_HELP = "Where volunteers reach your peer, such as /ip4/203.0.113.7/tcp/31337 (may be repeated)."
LISTEN_HELP = "Where your peer listens; by default the port of --address, or a free port of this machine only."


def create(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A preset (digits, text, text-gpt2) or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="New folder for manifest, keys and invite [swarm-NAME].")] = None,
    address: Annotated[list[str] | None, typer.Option(help=ADDRESS_HELP)] = None,
    listen: Annotated[list[str] | None, typer.Option(help=LISTEN_HELP)] = None,
    founder: Annotated[
        list[str] | None, typer.Option(help="Peer id of one more member of the first group (may be repeated).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="End after so many certified steps, whatever the config says; 0 never.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Compare recomputed work within this relative L2 distance, for members on different kinds of device "
            "(`crowdsurf doctor --calibrate` measures it), whatever the config says."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a new run: check its config, write its manifest and keys, print the invite."""
    created = asyncio.run(create_run(config, out, address or (), listen or (), founder or (), steps, tolerance))
    if json_output:
        answer(context, created.as_json())
    else:
        for line in _story(created):
            people(False).print(line, markup=False)


def _story(created: Created) -> list[str]:
    home = shlex.quote(os.path.relpath(created.folder))
    lines = [
        f"Run {created.name} is ready in {home}: task {created.task} ({created.task_description}), "
        f"{created.parameters:,} parameters.",
        f"Keep {home}/organizer.key safe: whoever has it can invite in your name.",
    ]
    if created.only_this_machine:
        lines += [
            "Warning: the invite works on this machine only. For volunteers elsewhere make the run with "
            "--address /ip4/YOUR-PUBLIC-IP/tcp/PORT, and forward that port.",
        ]
    if len(created.founders) > 1:
        lines.append(f"It begins once more than half of its {len(created.founders)} founders are there.")
    return [
        *lines,
        "",
        "Start your own peer:",
        f"  crowdsurf join {home}/{INVITE_FILE} --home {home}",
        "Send this to volunteers:",
        f"  crowdsurf join {created.invite}",
    ]
