"""`crowdsurf demo`: a real local swarm that trains a real model and ends by itself."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from crowdsurf.cli.demo_view import DemoScreen, summary
from crowdsurf.peer.demo import Demo, DemoOptions, failed


def demo(
    peers: Annotated[int, typer.Option(help="Peers to start.")] = 4,
    steps: Annotated[
        int | None, typer.Option(help="Certified steps; the task's preset says how many otherwise.")
    ] = None,
    task: Annotated[str, typer.Option(help="Preset or config to train: digits, text or a path.")] = "digits",
    transport: Annotated[str, typer.Option(help="p2pd (processes over libp2p) or memory (one process).")] = "p2pd",
    seed: Annotated[int, typer.Option(help="Seed of the initial model and of all public draws.")] = 0,
    rule: Annotated[
        str | None, typer.Option(help="Aggregation rule instead of the preset's: mean, centered_clip.")
    ] = None,
    kill_one_at: Annotated[
        int | None, typer.Option(help="Kill one peer with SIGKILL when this step is reached.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the peers' homes; a temporary one otherwise.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Run a real swarm on this machine: every peer a process, training until all steps are certified."""
    folder = (out or Path(tempfile.mkdtemp(prefix="crowdsurf-demo-"))).absolute()
    options = DemoOptions(folder, peers, steps, task, transport, seed, rule, kill_one_at)
    rehearsal = Demo(options, _peer_command)
    console = Console(stderr=json_output)
    with DemoScreen(console) as screen:
        rehearsal.on_view = screen.show
        answer = uvloop.run(_run(rehearsal))
    for line in summary(answer):
        console.print(line, highlight=False, soft_wrap=True)
    if json_output:
        print(json.dumps(answer))
    problem = failed(answer)
    if problem is not None:
        raise problem


async def _run(rehearsal: Demo) -> dict[str, object]:
    """Run it; Ctrl-C ends it in order."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    if task is not None:
        import signal

        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await rehearsal.run()


def _peer_command(invite: str, home: Path, evaluate_steps: int) -> Sequence[str]:
    """What a volunteer types, spelled for this interpreter."""
    command = [sys.executable, "-m", "crowdsurf.cli.main", "join", invite, "--home", str(home)]
    return [*command, "--evaluate-steps", str(evaluate_steps), "--device", "auto", "--json"]
