"""`crowdsurf join`: a volunteer's long-lived peer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from crowdsurf.cli.join_view import JoinScreen
from crowdsurf.cli.output import JsonOption, answer, people, start_logging
from crowdsurf.peer.volunteer import Volunteer, node_config, read_invite
from crowdsurf.protocol.errors import MisuseError


def join(
    context: typer.Context,
    invite: Annotated[str, typer.Argument(envvar="CROWDSURF_INVITE", help="The invite, or a file that holds it.")],
    home: Annotated[str | None, typer.Option(help="Folder of key, journal and model [~/.crowdsurf].")] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="CROWDSURF_CONFIG", help="Node config [node.yaml in the home, if any].")
    ] = None,
    listen: Annotated[list[str] | None, typer.Option(help="Multiaddress to listen on (may be repeated).")] = None,
    announce: Annotated[
        list[str] | None, typer.Option(help="Multiaddress to tell others instead (may be repeated).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:NUMBER [auto].")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the compute worker [1].")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [info].")] = None,
    evaluate_steps: Annotated[
        int,
        typer.Option(
            min=0, envvar="CROWDSURF_EVALUATE_STEPS", help="Evaluate on held-out data every N steps; 0 never."
        ),
    ] = 0,
    rehearse: Annotated[str | None, typer.Option(hidden=True)] = None,
    rehearse_from: Annotated[int, typer.Option(min=0, hidden=True)] = 0,
    colluders: Annotated[str, typer.Option(hidden=True)] = "",
    json_output: JsonOption = False,
) -> None:
    """Take part in a run: start the long-lived peer of this machine. Ctrl-C leaves in order.

    Every option can be set by environment too: CROWDSURF_HOME, CROWDSURF_LISTEN and so on.
    """
    options = {
        "home": home,
        "listen": listen,
        "announce": announce,
        "device": device,
        "threads": threads,
        "log_level": log_level,
    }
    node = node_config(config, os.environ, options)
    start_logging(node.log_level)
    rehearsal = None
    if rehearse is not None:
        from crowdsurf.peer.rehearsal import parse_rehearsal

        rehearsal = parse_rehearsal(rehearse, rehearse_from, colluders)
    elif rehearse_from or colluders:
        raise MisuseError("--rehearse-from and --colluders need --rehearse: the attack that this peer rehearses")
    volunteer = Volunteer(read_invite(invite), node, evaluate_steps, rehearsal)
    with JoinScreen(people(json_output)) as screen:
        volunteer.tell = screen.tell
        volunteer.on_step = screen.step
        volunteer.on_status = screen.status
        outcome = uvloop.run(volunteer.run())
    screen.outcome(outcome)
    if json_output:
        answer(context, outcome.as_json())
