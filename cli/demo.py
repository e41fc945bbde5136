"""`crowdsurf demo`: a real local swarm that trains a real model and ends by itself."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from crowdsurf.cli.demo_view import DemoScreen, summary
from crowdsurf.cli.output import JsonOption, answer, people, start_logging
from crowdsurf.peer.demo import Demo, DemoOptions, failed

Steps = Annotated[int | None, typer.Option(help="Certified steps; the task's preset says how many otherwise.")]
Rule = Annotated[str | None, typer.Option(help="Aggregation rule instead of the preset's, such as mean or median.")]
KillOneAt = Annotated[int | None, typer.Option(help="Kill one peer with SIGKILL when this step is reached.")]
Byzantine = Annotated[int, typer.Option(help="How many of the peers misbehave: less than half.")]
Attack = Annotated[str | None, typer.Option(help="What those do, such as sign_flip; docs/simulation.md has them all.")]
AttackFrom = Annotated[int | None, typer.Option(help="First step of the attack.")]
Strength = Annotated[float | None, typer.Option(help="Strength of the attack; the literature's if not given.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the peers' homes; a temporary one otherwise.")]


def demo(
    context: typer.Context,
    peers: Annotated[int, typer.Option(help="Peers to start.")] = 4,
    steps: Steps = None,
    task: Annotated[str, typer.Option(help="Preset or config to train: digits, text or a path.")] = "digits",
    transport: Annotated[str, typer.Option(help="p2pd (processes over libp2p) or memory (one process).")] = "p2pd",
    seed: Annotated[int, typer.Option(help="Seed of the initial model and of all public draws.")] = 0,
    rule: Rule = None,
    byzantine: Byzantine = 0,
    attack: Attack = None,
    attack_from: AttackFrom = None,
    strength: Strength = None,
    kill_one_at: KillOneAt = None,
    out: Out = None,
    json_output: JsonOption = False,
) -> None:
    """Run a real swarm on this machine: every peer a process, training until all steps are certified."""
    start_logging("error")
    folder = (out or Path(tempfile.mkdtemp(prefix="crowdsurf-demo-"))).absolute()
    options = DemoOptions(
        folder,
        peers,
        steps,
        task,
        transport,
        seed,
        rule,
        kill_one_at,
        byzantine=byzantine,
        attack=attack,
        attack_from=attack_from,
        strength=strength,
    )
    rehearsal = Demo(options, _peer_command)
    console = people(json_output)
    with DemoScreen(console) as screen:
        rehearsal.on_view = screen.show
        result = uvloop.run(_run(rehearsal))
    for line in summary(result):
        console.print(line)
    if json_output:
        answer(context, result)
    problem = failed(result)
    if problem is not None:
        raise problem


async def _run(rehearsal: Demo) -> dict[str, Any]:
    """Run it; SIGTERM ends it in order, as Ctrl-C does."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await rehearsal.run()


def _peer_command(invite: str, home: Path, evaluate_steps: int) -> Sequence[str]:
    """What a volunteer types, spelled for this interpreter."""
    command = [sys.executable, "-m", "crowdsurf.cli.main", "join", invite, "--home", str(home)]
    return [*command, "--evaluate-steps", str(evaluate_steps), "--json"]
