"""What `crowdsurf simulate` and `crowdsurf story` show to people: plain lines, and a bar for many seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console

from crowdsurf.cli.output import size
from crowdsurf.peer.simulate_options import PEERS, STEPS, TASK, SimulateOptions
from crowdsurf.protocol.sim.story import Story

FAILURES_SHOWN_MAX = 10


def about(options: SimulateOptions) -> list[str]:
    """What is going to be simulated."""
    if options.swarm_test:
        return [f"A swarm test: everything is drawn from seed {options.seed}."]
    peers, steps = options.peers or PEERS, options.steps or STEPS
    line = f"{peers} peers, {steps} steps of {options.task or TASK}, seed {options.seed}"
    if options.byzantine:
        until = "" if options.attack_until is None else f" until step {options.attack_until}"
        line += f"; {options.byzantine} of them do {options.attack} from step {options.attack_from or 0} on{until}"
    return [line + "."]


def summary(answer: Mapping[str, Any]) -> list[str]:
    """What came of one simulation."""
    certified = f"{answer['certified_steps']} of {answer['steps']} steps certified"
    honest = f"by all {len(answer['state_digests'])} honest peers"
    took = f"{answer['virtual_s']:.1f} virtual seconds ({answer['wall_s']:.1f} s here, {answer['events']} events)"
    lines = [f"{certified} {honest} in {took}."]
    if answer["faults"]:
        lines.append(f"What went wrong on purpose: {in_words(answer['faults'])}.")
    if answer["attack"] is not None:
        lines.append(
            f"{answer['byzantine']} of {answer['peers']} did {answer['attack']} in {answer['steps_attacked']} steps."
        )
    if answer["banned"]:
        lines.append(bans_in_words(answer))
    if answer["diverged"]:
        lines.append("Training diverged: the numbers are no longer finite, and nobody can go on.")
    if answer["test_loss"] is not None and answer["initial_test_loss"] is not None:
        line = f"Test loss {answer['initial_test_loss']:.4g} → {answer['test_loss']:.4g}"
        if answer["test_accuracy"] is not None:
            line += f", test accuracy {answer['initial_test_accuracy']:.1%} → {answer['test_accuracy']:.1%}"
        lines.append(line + ".")
    lines.append(
        "All honest peers hold the same model: consensus." if answer["consensus"] else "There is NO consensus."
    )
    lines.append(
        f"Each sent {size(answer['bytes_sent_per_peer_step'])} a step, "
        f"{size(answer['control_bytes_sent_per_peer_step'])} of it messages about the work."
    )
    lines.append(f"Trace {answer['trace_digest']}.")
    if answer["violations"]:
        lines.append(f"BROKEN with seed {answer['seed']}: {answer['violations'][0]}")
        lines.append(f"{len(answer['violations'])} complaints in all. Faults: {in_words(answer['faults'])}.")
        lines.append(f"Replay it: {answer['replay']}")
    return lines


def bans_in_words(answer: Mapping[str, Any]) -> str:
    """Who was banned, and why."""
    reasons = Counter(row["reason"] for row in answer["banned"])
    why = ", ".join(f"{count} for {reason.replace('_', ' ')}" for reason, count in sorted(reasons.items()))
    line = f"Banned: {why}; honest ones among them: {answer['honest_banned']}."
    last = answer.get("all_byzantine_banned_at")
    return line if last is None else f"{line} The last attacker went in step {last}."


def failures(answer: Mapping[str, Any]) -> list[str]:
    """What came of many seeds."""
    lines = [
        f"{answer['runs']} simulations, {answer['certified_steps']} certified steps, {answer['events']} events, "
        f"{answer['virtual_s'] / 3600:.1f} virtual hours in {answer['wall_s']:.0f} s; {len(answer['failures'])} failed."
    ]
    for failure in answer["failures"][:FAILURES_SHOWN_MAX]:
        lines += [f"seed {failure['seed']}: {failure['violation']}", f"  replay it: {failure['replay']}"]
    if len(answer["failures"]) > FAILURES_SHOWN_MAX:
        lines.append(f"and {len(answer['failures']) - FAILURES_SHOWN_MAX} more")
    return lines


def in_words(faults: Mapping[str, float]) -> str:
    """A fault table for people: only what differs from a perfect run."""
    return ", ".join(_fault(name, value) for name, value in faults.items()) or "nothing"


def _fault(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if name.endswith("_rate"):
        return f"{words.removesuffix(' rate')} {value:.2g} a minute"
    if "_seconds" in name:
        kind = words.replace(" seconds", "")
        return f"{kind} {1000 * value:.0f} ms" if value < 1 else f"{kind} {value:.0f} s"
    if name == "bandwidth_bytes":
        return f"bandwidth {value / 1e6:.1f} MB/s"
    return f"{words} {value:.2g}×" if name.endswith("factor") else f"{words} {value:.1%}"


def story_lines(story: Story) -> list[str]:
    """One step of a trace for people."""
    if not story.happened:
        return [f"This trace says nothing about step {story.step}."]
    lines = [f"Step {story.step} began at {story.began:.3f} virtual seconds."]
    lines += [f"  {line}" for line in story.happened]
    if story.ended is None:
        lines.append("Nobody had it certified.")
    else:
        who = " ".join(map(str, sorted(story.contributors)))
        lines.append(
            f"Certified {story.ended - story.began:.3f} s after it began, with the work of {who}; "
            f"void parts: {story.void_parts}."
        )
    for title, entries in (
        ("Never arrived", story.lost),
        ("Arrived after the receiver had gone on to the next step", story.late),
        ("Refused", story.refused),
        ("Checkers complain", story.complaints),
    ):
        if entries:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
    others = story.complaints_in_all - len(story.complaints)
    if others:
        lines.append(f"There are {others} complaints about other steps.")
    return lines


class Progress:
    """How far a run over many seeds is: a bar on a terminal, a line per failure everywhere."""

    def __init__(self, console: Console, runs: int) -> None:
        self._console = console
        self._bar = rich.progress.Progress(console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("seeds", total=runs)

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, seed: int, answer: Mapping[str, Any]) -> None:
        """One more is done."""
        self._bar.advance(self._task)
        if answer["violations"]:
            self._console.print(f"seed {seed}: {answer['violations'][0]}")
