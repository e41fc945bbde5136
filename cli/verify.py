"""`crowdsurf verify`: anyone can re-check the past of a run from a copy of a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli import errors
from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.peer.offline import verify_path


def verify(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A run folder, a peer's home, or a demo's folder.")],
    json_output: JsonOption = False,
) -> None:
    """Re-check the certified steps in a journal, and the kept states and updates, offline."""
    checked = verify_path(folder)
    if json_output:
        answer(context, checked.as_json())
    else:
        journals = f" in {checked.journals} journals that agree" if checked.journals > 1 and checked.valid else ""
        people(False).print(
            f"{checked.steps} certified steps{journals}: "
            + ("all valid. " if checked.valid else f"INVALID at step {checked.first_invalid}: {checked.reason}. ")
            + f"Also compared: {checked.states_checked} kept states, {checked.updates_checked} kept updates.",
            markup=False,
        )
    if not checked.valid:
        raise typer.Exit(errors.FAILED)
