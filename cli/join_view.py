"""What a volunteer sees: a sentence per event, and how the training goes.

The idea: on a terminal the newest state is one live line below the events. Elsewhere it is a line now and then, so
that a log file of a week stays readable.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from crowdsurf.cli.output import size
from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.daemon import Outcome
from crowdsurf.protocol.effects import StepCertified

LINE_SECONDS = 5.0
"""At most one line about steps in this time where there is no terminal."""


class JoinScreen:
    """Draws the life of one peer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(Text(""), console=console, transient=True) if console.is_terminal else None
        self._next_line_at = 0.0

    def __enter__(self) -> JoinScreen:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def tell(self, sentence: str) -> None:
        """One event."""
        self._console.print(sentence, markup=False)

    def step(self, story: StepCertified) -> None:
        """A certified step; most are not worth a line."""
        now = monotonic_seconds()
        if self._live is not None or now < self._next_line_at:
            return
        self._next_line_at = now + LINE_SECONDS
        loss = f", training loss {story.mean_loss:.4f}" if story.mean_loss is not None else ""
        void = f", parts left out: {story.void_parts}" if story.void_parts else ""
        self.tell(f"Step {story.step} is certified{loss}, contributions: {len(story.contributors)}{void}.")

    def status(self, status: dict[str, Any]) -> None:
        """The newest snapshot."""
        if self._live is not None and status["step"] is not None:
            self._live.update(live_line(status))

    def outcome(self, outcome: Outcome) -> None:
        """The last words."""
        self.tell(f"The end: {outcome.reason}.")
        if outcome.steps_here:
            self.tell(
                f"{outcome.steps_here} steps were certified while this peer was here; it sent "
                f"{size(outcome.part_bytes_sent + outcome.control_bytes_sent)}."
            )
        if outcome.test_accuracy is not None:
            self.tell(f"Test accuracy {outcome.test_accuracy:.1%}, test loss {outcome.test_loss:.3f}.")


def live_line(status: dict[str, Any]) -> Text:
    """Step, loss, speed, who is here and what is waited for, in one line."""
    last = f" of {status['steps']}" if status["steps"] else ""
    parts = [f"step {status['step']}{last}"]
    if status.get("train_loss") is not None:
        parts.append(f"loss {status['train_loss']:.3f}")
    if status.get("test_accuracy") is not None:
        parts.append(f"accuracy {status['test_accuracy']:.1%}")
    parts.append(f"{status.get('steps_per_second', 0):.1f} steps/s")
    parts.append(f"{len(status['roster'])} in the roster")
    parts.append(f"waits for {status['waiting_for']}")
    return Text(" · ".join(parts), style="bold", no_wrap=True, overflow="ellipsis")
