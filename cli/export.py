"""`crowdsurf export`: the model at the last certified step, as a file for others to use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.status import HomeOption, RunOption, home_folder
from crowdsurf.peer.export import export_model
from crowdsurf.peer.runs import the_run


def export(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="File to write, such as model.safetensors.")],
    home: HomeOption = None,
    run: RunOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write the model at the last certified step as safetensors. The peer may be running, or not."""
    exported = asyncio.run(export_model(the_run(home_folder(home), run), out))
    if json_output:
        answer(context, exported.as_json())
    else:
        people(False).print(
            f"{exported.path}: the model of run {exported.name} after {exported.step} certified steps "
            f"(state {exported.state_digest}, {'checked' if exported.checked else 'on the word of this peer'}).",
            markup=False,
        )
