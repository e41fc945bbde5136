"""The worker's work where machines differ: compared with what is here, and kept for others to compare."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer.compute.errors import WorkFailed
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.protocol import effects, events, limits
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.tolerance import COMPARED_STEPS, Compared
from tests.peer.shell import STATE_BYTES, soon
from tests.peer.test_duties import FINDER, PARTS, Setup, recomputation

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    await made.begin()
    yield made
    made.blobs.close()


async def test_where_machines_differ_work_that_is_not_finite_cannot_be_checked(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def diverge(*_: Any) -> None:
        raise WorkFailed("not finite")

    await setup.begin(audit=AuditSection(comparison="tolerance", relative_l2_max=1e-3))
    monkeypatch.setattr(setup.client, "recompute", diverge)
    await setup.duties.recompute(recomputation(Digest(bytes(32))))
    assert await setup.inbox.event() == events.RecomputeFailed(0, Digest(bytes(32)), FINDER)


async def test_work_is_compared_with_what_is_here_of_what_was_committed_to(setup: Setup) -> None:
    names = await setup.work()
    asked = recomputation(digest("state", bytes(STATE_BYTES)))
    idle = setup.pool.idle_bytes
    for _ in range(2):
        await setup.duties.recompute(dataclasses.replace(asked, committed=(names[0], digest("test", b"?"))))
        found = await setup.inbox.event()
        assert isinstance(found, events.WorkRecomputed)
        assert found.compared == (Compared(0.0, found.norms[0]), None)
    assert setup.pool.idle_bytes > idle  # what it took it gave back


@pytest.mark.parametrize("ends", ["answered", "worker dies", "cancelled"])
async def test_many_cases_take_the_memory_of_one(setup: Setup, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """A gradient and what it is compared with, whatever becomes of the one that has its turn."""
    names = await setup.work()
    asked = dataclasses.replace(recomputation(digest("state", bytes(STATE_BYTES))), committed=names)
    held, most = 0, 0
    take, release, turn, may_go = setup.pool.take, setup.pool.release, asyncio.Event(), asyncio.Event()

    def counted_take(nbytes: int) -> Segment:
        nonlocal held, most
        held, most = held + 1, max(most, held + 1)
        return take(nbytes)

    def counted_release(segment: Segment) -> None:
        nonlocal held
        held -= 1
        release(segment)

    async def wait(command: str) -> None:
        if command == "recompute":
            turn.set()
            await may_go.wait()

    monkeypatch.setattr(setup.pool, "take", counted_take)
    monkeypatch.setattr(setup.pool, "release", counted_release)
    setup.client.before = wait
    cases = [asyncio.create_task(setup.duties.recompute(asked)) for _ in range(limits.CASES_PER_ACCUSER_MAX)]
    await soon(turn.wait())
    if ends == "cancelled":
        cases[0].cancel()
    elif ends == "worker dies":
        setup.client.kill()
    may_go.set()
    await soon(asyncio.gather(*cases, return_exceptions=True))
    assert (held, most) == (0, 2)
    told = [setup.inbox.events.get_nowait() for _ in range(setup.inbox.events.qsize())]
    found = sum(isinstance(event, events.WorkRecomputed) for event in told)
    assert found == len(cases) - (ends != "answered")


async def test_gradients_of_steps_that_may_be_compared_are_kept(setup: Setup) -> None:
    await setup.begin(audit=AuditSection(comparison="tolerance", relative_l2_max=1e-3))
    names = [await setup.work(step) for step in range(COMPARED_STEPS + 1)]
    await setup.duties.apply(effects.ApplyUpdate(COMPARED_STEPS, (b"",) * PARTS))
    assert isinstance(await setup.inbox.event(), events.StateReady)
    assert all(setup.blobs.holds(name) for parts in names for name in parts)
    names.append(await setup.work(COMPARED_STEPS + 1))
    await setup.duties.apply(effects.ApplyUpdate(COMPARED_STEPS + 1, (b"",) * PARTS))
    assert [setup.blobs.own_gradient(step) is not None for step in range(3)] == [False, True, True]
