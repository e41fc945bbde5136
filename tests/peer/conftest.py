"""Shared by the shell's tests: nothing may be left behind."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.peer.shell import FakeCompute
from tests.peer.stand_ins import daemons_use


def shared_memories() -> int:
    """Anonymous shared files this process holds open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += "memfd:crowdsurf" in os.readlink(link)
        except OSError:
            continue
    return found


def children() -> set[str]:
    """Process ids of our children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split())


@pytest.fixture(scope="session")
def frozen() -> None:
    """What exists now (modules, above all) is not looked at again by every collection: ten times faster."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def tidy(frozen: None) -> AsyncIterator[None]:
    """Fail the test if a task, a process or shared memory is left, or if a task failed and nobody looked."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    tasks, memories, processes = asyncio.all_tasks(), shared_memories(), children()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - tasks - {asyncio.current_task()} if not task.done()]
    assert not left, f"tasks are left: {left}"
    assert not complaints, f"nobody looked at: {complaints}"
    # A thread that has just digested something may hold its view for a moment longer.
    try:
        async with asyncio.timeout(10):
            while shared_memories() > memories:  # noqa: ASYNC110 - nobody tells when a mapping goes
                await asyncio.sleep(0)
    except TimeoutError:
        pytest.fail("shared memory is left open")
    assert children() <= processes, "processes are left"


@pytest.fixture
def fake_compute(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompute]:
    """Daemons get a fake worker each; in the order in which they start."""
    return daemons_use(monkeypatch, FakeCompute)
