"""`crowdsurf why PEER`: the reasons behind a ban or a strike, checked again here and told in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crowdsurf.cli import errors
from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.status import HomeOption, RunOption, home_folder

if TYPE_CHECKING:
    from crowdsurf.peer.why import Why


def why(
    context: typer.Context,
    peer: Annotated[str, typer.Argument(help="Peer id, or the last characters of it.")],
    home: HomeOption = None,
    run: RunOption = None,
    file: Annotated[
        Path | None, typer.Option(help="An evidence file from anybody, to be checked with --manifest alone.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="The run's manifest, for --file.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write the evidence with all steps before the ban to this file, for anybody with the manifest."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Why a peer is banned, or what it has been struck for; checked again here, offline."""
    from crowdsurf.cli.why_view import sentences
    from crowdsurf.peer.runs import the_run
    from crowdsurf.peer.why import export_evidence, why_at_home, why_of_file
    from crowdsurf.protocol.errors import MisuseError

    if (file is None) != (manifest is None):
        raise MisuseError(
            "--file and --manifest go together: the manifest says whose signatures count, the file shows them"
        )
    if file is not None and export is not None:
        raise MisuseError("--export writes a file from a home: leave --file and --manifest out")
    found: Why
    if file is not None and manifest is not None:
        found = why_of_file(file, manifest, peer)
    else:
        folder = the_run(home_folder(home), run)
        found = why_at_home(folder, peer)
        if export is not None:
            found = export_evidence(found, folder, export)
    if json_output:
        answer(context, found.as_json())
    else:
        for sentence in sentences(found):
            people(False).print(sentence, markup=False)
    if found.problem is not None:
        raise typer.Exit(errors.FAILED)
