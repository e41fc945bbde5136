"""The demo's live table, and one line per event where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crowdsurf.cli.output import size
from crowdsurf.peer.demo import View


class DemoScreen:
    """Draws views: in place on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
        self._last_step = -1
        self._last_here = -1
        self._bans_told = 0

    def __enter__(self) -> DemoScreen:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, view: View) -> None:
        """Draw the newest view."""
        if self._live is not None:
            self._live.update(Group(headline(view), table(view), invitation(view)))
        else:
            self._line(view)

    def _line(self, view: View) -> None:
        bans = view.leader.get("banned") or []
        for ban in bans[self._bans_told :]:
            self._console.print(f"        …{ban['peer'][-8:]} is {ban_in_words(ban)}", highlight=False)
        self._bans_told = max(self._bans_told, len(bans))
        step, here = view.leader.get("step") or 0, members(view)
        if step >= self._last_step + 10 or here != self._last_here or (step == view.steps and step != self._last_step):
            self._last_step, self._last_here = step, here
            self._console.print(headline(view), highlight=False)


def headline(view: View) -> Text:
    """One line that says it all."""
    leader = view.leader
    parts = [f"{view.seconds:5.1f} s", f"step {leader.get('step') or 0} of {view.steps}"]
    parts.append(f"{members(view)} peers in the roster")
    if leader.get("train_loss") is not None:
        parts.append(f"training loss {leader['train_loss']:.3f}")
    evaluated = next((peer.status for peer in view.peers if peer.status.get("test_loss") is not None), {})
    if evaluated:
        parts.append(f"test loss {evaluated['test_loss']:.3f}")
    if evaluated.get("test_accuracy") is not None:
        parts.append(f"test accuracy {evaluated['test_accuracy']:.1%}")
    return Text(" · ".join(parts), style="bold")


def members(view: View) -> int:
    """How many peers the furthest peer counts in the roster."""
    return len(view.leader.get("roster") or ())


def table(view: View) -> Table:
    """One row per peer of the demo, then one per guest that joined from elsewhere."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("peer", "id", "step", "phase", "sent", "of it control", "waits for"):
        grid.add_column(name, justify="right" if name in ("step", "sent", "of it control") else "left", no_wrap=True)
    bans = {ban["peer"]: ban for ban in view.leader.get("banned") or ()}
    for peer in view.peers:
        status = peer.status
        phase = "killed" if peer.killed else str(status.get("phase", "starting"))
        if peer.peer in bans:
            phase = ban_in_words(bans[peer.peer])
        sent = (status.get("part_bytes_sent") or 0) + (status.get("control_bytes_sent") or 0)
        control = status.get("control_bytes_sent") or 0
        waits = "" if peer.killed or peer.ended else str(status.get("waiting_for", ""))
        step = str(status.get("step") or 0)
        if peer.byzantine:
            phase = f"byzantine, {phase}"
        style = "red" if peer.killed else "magenta" if peer.byzantine else None
        grid.add_row(str(peer.number), f"…{peer.peer[-8:]}", step, phase, size(sent), size(control), waits, style=style)
    known = {peer.peer for peer in view.peers}
    for member in view.leader.get("roster") or ():
        if member["peer"] not in known:
            grid.add_row("guest", f"…{member['peer'][-8:]}", "", "in the roster", "", "", "", style="green")
    return grid


def ban_in_words(ban: dict[str, Any]) -> str:
    """When somebody was banned, and why."""
    return f"banned in step {ban['step']} for {ban['reason'].replace('_', ' ')} in step {ban['offence_step']}"


def invitation(view: View) -> Text:
    """How somebody in another terminal can take part."""
    if view.transport == "memory":
        return Text("")
    return Text(f"join from another terminal: crowdsurf join {view.invite} --home /tmp/guest", style="dim")


def summary(answer: dict[str, Any]) -> list[str]:
    """The demo's result in a few sentences."""
    lines = [
        f"{answer['certified_steps']} of {answer['steps']} steps certified in {answer['wall_s']:.0f} s "
        f"(first one after {answer['setup_s']:.0f} s), over {answer['transport']}."
    ]
    if answer["test_loss"] is not None and answer["initial_test_loss"] is not None:
        line = f"Test loss {answer['initial_test_loss']:.3f} → {answer['test_loss']:.3f}"
        if answer["test_accuracy"] is not None:
            line += f", test accuracy {answer['initial_test_accuracy']:.1%} → {answer['test_accuracy']:.1%}"
        lines.append(line + ".")
    kind = "surviving " if answer["killed"] else ""
    if answer["byzantine"]:
        kind += "honest "
        lines.append(
            f"{answer['byzantine']} of {answer['peers']} peers misbehaved ({answer['attack']}); "
            "the figures are those of the honest ones."
        )
    if answer["banned"]:
        caught = sum(1 for ban in answer["banned"] if ban["byzantine"])
        lines.append(
            f"Banned: {caught} of {answer['byzantine']} misbehaving peers and {answer['honest_banned']} honest ones. "
            f"See why: crowdsurf why {answer['banned'][0]['peer'][-8:]} --home {answer['journal']}/peer-0"
        )
    alike = f"All {kind}peers hold"
    lines.append(
        f"{alike} the same model: consensus." if answer["consensus"] else "The peers do NOT hold the same model."
    )
    lines.append(
        f"Each sent {size(answer['bytes_sent_per_peer_step'])} a step, "
        f"{size(answer['control_bytes_sent_per_peer_step'])} of it messages about the work."
    )
    lines.append(f"Check the certified steps yourself: crowdsurf verify {answer['journal']}")
    return lines
