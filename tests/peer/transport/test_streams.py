"""Handlers: what their return, their expected failures and their bugs do to the stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crowdsurf.peer.transport.base import Stream, StreamEnded
from crowdsurf.peer.transport.memory import MemoryNetwork
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from tests.peer.transport.conformance import PROTOCOL, peer_of


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
