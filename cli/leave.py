"""`crowdsurf leave`: the peer that runs on this machine leaves its run in order."""

from __future__ import annotations

import asyncio

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.status import HomeOption, RunOption, home_folder
from crowdsurf.peer import runs


def leave(
    context: typer.Context, home: HomeOption = None, run: RunOption = None, json_output: JsonOption = False
) -> None:
    """Ask the peer running here to leave its run in order, and wait until it has."""
    folder, found = runs.running_peer(home_folder(home), run)
    ended = asyncio.run(runs.leave(folder))
    if json_output:
        answer(context, {"peer": found["peer"], "leaving": True, "ended": ended})
    else:
        words = "has left." if ended else "is leaving, but has not ended yet; look again with `crowdsurf status`."
        people(False).print(f"Peer …{found['peer'][-8:]} {words}", markup=False)
