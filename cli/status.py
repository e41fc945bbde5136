"""`crowdsurf status`: what the peer that runs on this machine sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from crowdsurf.cli.output import JsonOption, answer, people, size

HomeOption = Annotated[
    Path | None, typer.Option(envvar="CROWDSURF_HOME", help="Home folder of the peer [~/.crowdsurf].")
]
RunOption = Annotated[str | None, typer.Option(help="Beginning of the run id, where a home has several runs.")]


def home_folder(home: Path | None) -> Path:
    """The home that is meant."""
    return Path(os.path.abspath((home or Path("~/.crowdsurf")).expanduser()))


def status(
    context: typer.Context, home: HomeOption = None, run: RunOption = None, json_output: JsonOption = False
) -> None:
    """What the peer running here sees: step, loss, who is here, what it waits for."""
    from crowdsurf.peer.runs import running_peer

    folder, found = running_peer(home_folder(home), run)
    if json_output:
        answer(context, found | {"folder": str(folder)})
    else:
        _draw(people(False), found)


def _draw(console: Console, found: dict[str, Any]) -> None:
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(found):
        facts.add_row(name, value)
    console.print(facts)
    roster = found.get("roster") or []
    if roster:
        members = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("roster", "connected", "missed in a row"):
            members.add_column(name)
        for member in roster:
            here = "this peer" if member["me"] else "yes" if member["connected"] else "no"
            members.add_row(member["peer"], here, str(member["missed"]), style=None if here != "no" else "yellow")
        console.print()
        console.print(members)


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, for people."""
    facts = [("peer", found["peer"])]
    if found["step"] is None:
        return [*facts, ("phase", found["phase"])]
    last = f" of {found['steps']}" if found["steps"] else ""
    facts += [
        ("run", f"{found['name']} ({found['run'][:19]}…)"),
        ("step", f"{found['step']}{last}, phase {found['phase']}"),
        ("waits for", found["waiting_for"]),
        ("speed", f"{found['steps_per_second']} steps a second"),
    ]
    if found["train_loss"] is not None:
        facts.append(("training loss", f"{found['train_loss']:.4f}"))
    if found["test_loss"] is not None:
        facts.append(("test loss", f"{found['test_loss']:.4f} at step {found['evaluated_step']}"))
    if found["test_accuracy"] is not None:
        facts.append(("test accuracy", f"{found['test_accuracy']:.1%} at step {found['evaluated_step']}"))
    facts.append(
        (
            "sent",
            f"{size(found['part_bytes_sent'])} of gradient parts, {size(found['control_bytes_sent'])} of messages; "
            f"received {size(found['part_bytes_received'])} of parts",
        )
    )
    if found["candidates"]:
        facts.append(("want to join", ", ".join(f"…{peer[-8:]}" for peer in found["candidates"])))
    if found["refused"]:
        facts.append(("refused", ", ".join(f"{count} × {code}" for code, count in found["refused"].items())))
    return facts
