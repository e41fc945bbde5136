"""The driver asks others: whoever does not answer keeps nothing from it, and is asked last from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crowdsurf.peer import candidates as candidates_module
from crowdsurf.peer import driver as driver_module
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.candidates import Begun
from crowdsurf.peer.compute.segments import size_class
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest, digest
from crowdsurf.protocol.messages import Certificate
from tests.peer.shell import STATE_BYTES, key_of, soon, until
from tests.peer.test_driver import DATA, NAME, OTHER, THIRD, Setup, certificate

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    await made.close()


async def test_who_never_answers_is_passed_over_once_and_then_asked_last(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "LATE_SECONDS", 0.01)
    asked, story = [], []

    async def blob(peer: PeerId, name: Digest, blobs: BlobStore, begun: Begun) -> bool:
        asked.append(peer)
        if peer == OTHER:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                story.append("the first is told to stop")
        story.append("another answers")
        return True

    setup.fetcher.blob = blob
    setup.on_leave(effects.FetchBlob((OTHER, THIRD), NAME))
    setup.run()
    await setup.heard(events.BlobArrived)
    assert asked == [OTHER, THIRD]
    assert story == ["another answers", "the first is told to stop"]
    setup.node.heard.clear()
    setup.queue.offer(events.LeaveAsked())
    await setup.heard(events.BlobArrived)
    assert asked == [OTHER, THIRD, THIRD]


async def test_only_so_many_are_asked_for_one_blob_and_none_beside_one_that_answers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "LATE_SECONDS", 0.01)
    asked, answer = [], asyncio.Event()

    async def blob(peer: PeerId, name: Digest, blobs: BlobStore, begun: Begun) -> bool:
        asked.append((peer, name))
        if name == NAME:
            begun(STATE_BYTES * 2**20)
        await answer.wait()
        return False

    setup.fetcher.blob = blob
    peers = tuple(key_of(number).peer_id for number in range(2 * driver_module.ASKED_AT_ONCE_MAX))
    mute = blob_digest(b"of mute ones")
    setup.on_leave(effects.FetchBlob(peers, NAME), effects.FetchBlob(peers, mute))
    setup.run()
    await until(lambda: len(asked) == 1 + driver_module.ASKED_AT_ONCE_MAX)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert sorted(asked) == sorted([(peers[0], NAME), *((peer, mute) for peer in peers[: len(asked) - 1])])
    answer.set()
    await until(lambda: sum(isinstance(event, events.BlobFailed) for event in setup.node.heard) == 2)
    assert len(asked) == 2 * len(peers)


async def test_a_peer_that_never_answers_is_not_the_only_one_asked_for_the_chain(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "LATE_SECONDS", 0.01)

    async def chain(peer: PeerId, first_step: int) -> tuple[Certificate, ...]:
        if peer == OTHER:
            await asyncio.get_running_loop().create_future()
        return (certificate(first_step),)

    setup.fetcher.chain = chain
    setup.node.contacts = lambda: (OTHER, THIRD)
    setup.on_leave(effects.RequestChain(OTHER, 3))
    setup.run()
    assert await setup.heard(events.ChainReceived) == events.ChainReceived(THIRD, (certificate(3),))


async def test_a_peer_that_never_answers_does_not_keep_a_state_from_us(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "LATE_SECONDS", 0.01)
    loaded = []

    async def state(peer: PeerId, into: memoryview, begun: Begun) -> int:
        if peer == OTHER:
            into[:] = bytes(STATE_BYTES)
            await asyncio.get_running_loop().create_future()
        into[:] = DATA
        return 10

    async def load_fetched(step: int, segment: Any) -> Digest:
        loaded.append(bytes(segment.view[:STATE_BYTES]))
        return Digest(bytes(32))

    certified = SimpleNamespace(header=SimpleNamespace(state=digest("state", DATA)))
    setup.node.catch_up.certificate = lambda step: certified
    setup.fetcher.state, setup.duties.load_fetched = state, load_fetched
    setup.on_leave(effects.RequestState((OTHER, THIRD)))
    setup.run()
    assert await setup.heard(events.StateReady) == events.StateReady(10, Digest(bytes(32)), THIRD)
    assert loaded == [DATA]
    await until(lambda: setup.driver._parts.pool.idle_bytes == 2 * size_class(STATE_BYTES))


async def test_it_is_known_whose_part_is_expected(setup: Setup) -> None:
    head = SimpleNamespace(step=0, roster=SimpleNamespace(peers=(OTHER, THIRD)))
    setup.node.chain = SimpleNamespace(head=head)
    late = blob_digest(b"of a step that is over")
    setup.on_leave(
        effects.ExpectPart(0, 0, 2, 1, NAME, STATE_BYTES // 2),
        effects.ExpectPart(1, 0, 2, 0, late, STATE_BYTES // 2),
        effects.Finished("done"),
    )
    await soon(setup.run())
    assert setup.blobs._authors == {NAME: {THIRD}}
    assert setup.blobs.is_expected(late)
