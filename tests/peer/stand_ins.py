"""Daemons and demos of a test get workers that compute nothing real, and the test gets to see them.

The idea: who makes workers is replaced, so all else is the product's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from crowdsurf.peer import daemon as daemon_module
from crowdsurf.peer import demo as demo_module
from tests.peer.shell import FakeCompute

Worker = TypeVar("Worker", bound=FakeCompute)


def daemons_use(monkeypatch: pytest.MonkeyPatch, hire: Callable[[int], Worker]) -> list[Worker]:
    """The worker of every daemon, in the order in which they start; `hire` takes a number of threads."""
    made: list[Worker] = []

    def make(threads: int = 1) -> Worker:
        made.append(hire(threads))
        return made[-1]

    monkeypatch.setattr(daemon_module, "ComputeClient", make)
    monkeypatch.setattr(daemon_module, "LINGER_SECONDS", 0.2)
    return made


def demos_use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo's own worker is a fake one too, and it looks at its peers often."""
    monkeypatch.setattr(demo_module, "ComputeClient", FakeCompute)
    monkeypatch.setattr(demo_module, "WATCH_SECONDS", 0.01)


def no_command(invite: str, home: Path, evaluate_steps: int) -> Sequence[str]:
    """Peers of a memory demo have no process."""
    raise RuntimeError("peers of a memory demo have no process")
