"""Handlers: what their return, their expected failures and their bugs do to the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crowdsurf.peer.transport.base import (
    STRANGER_STREAMS_MAX,
    STRANGER_STREAMS_PER_PEER_MAX,
    STREAMS_MAX,
    STREAMS_PER_PEER_MAX,
    Stream,
    StreamEnded,
)
from crowdsurf.peer.transport.memory import MemoryNetwork, MemoryTransport
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from tests.peer.transport.conformance import PROTOCOL, Inbound, peer_of


async def reported_by_a_handler_that(raises: BaseException | None) -> list[dict[str, Any]]:
    """Run one handler, see its stream end, and return what the event loop was told."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
    network = MemoryNetwork()
    near, far = network.join(peer_of(1)), network.join(peer_of(2))

    async def handler(stream: Stream) -> None:
        if raises is not None:
            raise raises

    await far.serve(PROTOCOL, handler)
    stream = await near.open(far.peer_id, PROTOCOL, 1.0)
    with pytest.raises(StreamEnded):
        await stream.receive_into(memoryview(bytearray(1)))
    await near.close()
    await far.close()
    return reports


async def test_a_handler_that_returns_closes_the_stream() -> None:
    assert await reported_by_a_handler_that(None) == []


@pytest.mark.parametrize("error", [WorldError("the disk is full"), Refusal(Code.MALFORMED, "garbage")])
async def test_expected_failures_end_the_stream_only(error: Exception) -> None:
    assert await reported_by_a_handler_that(error) == []


async def test_a_bug_in_a_handler_is_reported_and_ends_the_stream() -> None:
    (report,) = await reported_by_a_handler_that(ZeroDivisionError())
    assert isinstance(report["exception"], ZeroDivisionError)


# --- who may have one ----------------------------------------------------------------------------------------


class Crowd:
    """Peers that hold streams open, and somebody whom they hold them to."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.far = self.network.join(peer_of(1))
        self.transports: dict[int, MemoryTransport] = {}
        self.held: list[Stream] = []

    async def hold(self, number: int, count: int) -> None:
        """Let a peer open streams, as many as it may."""
        if number not in self.transports:
            self.transports[number] = self.network.join(peer_of(number))
        for _ in range(count):
            self.held.append(await self.transports[number].open(self.far.peer_id, PROTOCOL, 1.0))

    def served(self, number: int) -> int:
        """How many of a peer's streams are served."""
        return len(self.far._table._inbound.get(peer_of(number), ()))

    async def close(self) -> None:
        """End all."""
        for transport in (self.far, *self.transports.values()):
            await transport.close()


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd()
    await crowd.far.serve(PROTOCOL, Inbound())
    yield crowd
    await crowd.close()


async def test_a_stranger_has_fewer_streams_than_a_member(crowd: Crowd) -> None:
    crowd.far.prefer({peer_of(2)})
    for number in (2, 3):
        await crowd.hold(number, STREAMS_PER_PEER_MAX + 1)
    assert (crowd.served(2), crowd.served(3)) == (STREAMS_PER_PEER_MAX, STRANGER_STREAMS_PER_PEER_MAX)


async def test_strangers_leave_room_for_members_and_for_other_strangers(crowd: Crowd) -> None:
    members = set(range(100, 110))
    crowd.far.prefer({peer_of(number) for number in members})
    greedy = range(2, 2 + STRANGER_STREAMS_MAX // STRANGER_STREAMS_PER_PEER_MAX + 5)
    for number in greedy:
        await crowd.hold(number, STRANGER_STREAMS_PER_PEER_MAX)
    assert sum(map(crowd.served, greedy)) == STRANGER_STREAMS_MAX
    await crowd.hold(50, 3)
    assert crowd.served(50) == 3
    assert sum(map(crowd.served, greedy)) == STRANGER_STREAMS_MAX - 3
    for number in members:
        await crowd.hold(number, 8)
    assert [crowd.served(number) for number in members] == [8] * len(members)
    assert sum(map(crowd.served, greedy)) == STRANGER_STREAMS_MAX - 3


async def test_members_with_many_streams_make_room_for_those_with_few(crowd: Crowd) -> None:
    greedy = range(2, 2 + STREAMS_MAX // STREAMS_PER_PEER_MAX)
    crowd.far.prefer({peer_of(number) for number in (*greedy, 50)})
    for number in greedy:
        await crowd.hold(number, STREAMS_PER_PEER_MAX)
    assert sum(map(crowd.served, greedy)) == STREAMS_MAX
    await crowd.hold(50, 4)
    assert crowd.served(50) == 4
    assert sum(map(crowd.served, greedy)) == STREAMS_MAX - 4
    await crowd.hold(60, 1)
    assert crowd.served(60) == 0  # a stranger takes nothing from members


async def test_a_member_takes_the_place_of_a_stranger_when_all_are_taken(crowd: Crowd) -> None:
    members = range(100, 100 + STREAMS_MAX // STREAMS_PER_PEER_MAX)
    crowd.far.prefer({peer_of(number) for number in members})
    await crowd.hold(2, 2)
    for number in members:
        await crowd.hold(number, STREAMS_PER_PEER_MAX)
    assert crowd.served(2) == 0
    assert sum(map(crowd.served, members)) == STREAMS_MAX


async def test_what_is_given_up_ends_and_so_does_its_handler(crowd: Crowd) -> None:
    for number in range(2, 3 + STREAMS_MAX // STREAMS_PER_PEER_MAX):
        await crowd.hold(number, STREAMS_PER_PEER_MAX)
    for _ in range(3):
        await asyncio.sleep(0)  # a task that was cancelled ends, and is forgotten
    assert len(crowd.far._table._tasks) == STREAMS_MAX
    assert len(crowd.far._table._streams) == len(crowd.transports)
    assert sum(map(len, crowd.far._table._streams.values())) == STREAMS_MAX
