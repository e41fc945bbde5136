"""What recomputed work is compared with: asked of its holders, held up by none of them, secret while it must be."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crowdsurf.peer.blobs import BlobStore
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest
from tests.peer.shell import ELEMENTS, soon, until
from tests.peer.test_driver import OTHER, THIRD, Setup

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    await made.close()


PART = bytes(range(ELEMENTS // 3 * 4))
"""The first of three parts."""
PART_NAME = blob_digest(PART)


def recomputation(committed: tuple[bytes, ...], *holders: PeerId, seconds: float = 60.0) -> effects.RecomputeWork:
    """Work to be compared with bytes that these peers may have."""
    nothing = Digest(bytes(32))
    asked = effects.RecomputeWork(0, nothing, len(committed), nothing, OTHER)
    return dataclasses.replace(asked, committed=committed, holders=holders, patience_seconds=seconds)


async def gathered(setup: Setup, asked: effects.RecomputeWork) -> list[bool]:
    """Let the driver get what work is compared with; which parts were there when it was done."""
    found = []

    async def recompute(effect: effects.RecomputeWork) -> None:
        found.extend(setup.blobs.holds(Digest(name)) for name in effect.committed)
        setup.queue.offer(events.RecomputeFailed(effect.step, effect.seed, effect.finder))

    setup.duties.recompute = recompute
    setup.on_leave(asked)
    setup.run()
    await setup.heard(events.RecomputeFailed)
    return found


async def test_what_work_is_compared_with_is_asked_of_its_holders(setup: Setup) -> None:
    asked = []

    async def blob(peer: PeerId, name: Digest, blobs: BlobStore) -> bool:
        asked.append((peer, name))
        return name == PART_NAME and blobs.put(name, memoryview(PART))

    setup.fetcher.blob = blob
    never = blob_digest(b"never")
    assert await gathered(setup, recomputation((PART_NAME, never, b""), OTHER, THIRD, THIRD)) == [True, False, False]
    assert sorted(asked) == sorted([(OTHER, PART_NAME), (THIRD, never)])


@pytest.mark.parametrize("error", [Refusal(Code.WRONG_DIGEST, "not that"), WorldError("gone"), None])
async def test_a_holder_that_does_not_answer_well_holds_up_nobody_else(setup: Setup, error: Exception | None) -> None:
    async def blob(peer: PeerId, name: Digest, blobs: BlobStore) -> bool:
        if peer == OTHER and error is not None:
            raise error
        if peer == OTHER:
            await asyncio.get_running_loop().create_future()
        return blobs.put(name, memoryview(PART))

    setup.fetcher.blob = blob
    never = blob_digest(b"never")
    asked = recomputation((PART_NAME, never, b""), THIRD, OTHER, OTHER, seconds=0.05)
    assert await gathered(setup, asked) == [True, False, False]
    assert setup.metrics.refused == ({"wrong_digest": 1} if isinstance(error, Refusal) else {})


@pytest.mark.parametrize("discloses", [False, True])
async def test_gradients_of_others_are_secret_until_validators_have_committed(setup: Setup, discloses: bool) -> None:
    setup.driver.discloses_inputs = discloses
    setup.blobs.expect_part(effects.ExpectPart(0, 0, 3, 1, PART_NAME, len(PART)))
    setup.blobs.put(PART_NAME, memoryview(PART))
    certified = [effects.StepCertified(step, (), 0, 0, None, (), (), ()) for step in range(2)]
    setup.node.wanted = lambda event: (
        [certified[0]]
        if isinstance(event, events.LeaveAsked)
        else [certified[1], effects.Finished("done")]
        if isinstance(event, events.StateFailed)
        else []
    )
    running = setup.run()
    await until(lambda: setup.node.heard)
    await asyncio.sleep(0)
    with setup.blobs.lend(PART_NAME) as view:
        assert view is None
    setup.queue.offer(events.StateFailed())
    await soon(running)
    with setup.blobs.lend(PART_NAME) as view:
        assert (view is not None) == discloses
