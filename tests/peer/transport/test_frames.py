"""Frames survive any cut of the byte stream, and nothing a peer sends makes us allocate more than the bound."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.peer.transport.base import Buffer, Stream, StreamBroken, StreamClosed, StreamEnded
from crowdsurf.peer.transport.frames import HEADER_BYTES, receive_frame, receive_header, send_frame
from crowdsurf.protocol.errors import Code, MisuseError, Refusal
from tests.peer.transport.conformance import peer_of


class Tape(Stream):
    """What was sent comes back, then the stream ends."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(peer_of(1), "/tape")
        self.content = bytearray(content)
        self.sends = 0

    async def receive_into(self, view: memoryview[Any]) -> None:
        if len(self.content) < len(view):
            raise StreamBroken("tape") if self.content else StreamClosed("tape")
        view[:] = self.content[: len(view)]
        del self.content[: len(view)]

    async def send(self, *buffers: Buffer) -> None:
        self.sends += 1
        for buffer in buffers:
            self.content += memoryview(buffer).cast("B")

    async def close(self) -> None:
        self.content.clear()

    def abort(self) -> None:
        self.content.clear()


async def read_all(tape: Tape, bytes_max: int) -> list[tuple[int, bytes]]:
    frames = []
    while tape.content:
        frames.append(await receive_frame(tape, bytes_max))
    return frames


@given(st.lists(st.tuples(st.integers(0, 255), st.lists(st.binary(max_size=200), max_size=3)), max_size=5))
def test_what_is_sent_is_received(frames: list[tuple[int, list[bytes]]]) -> None:
    async def scenario() -> list[tuple[int, bytes]]:
        tape = Tape()
        for kind, buffers in frames:
            await send_frame(tape, kind, *buffers)
        assert tape.sends == len(frames)  # header and payload leave together
        return await read_all(tape, 600)

    assert asyncio.run(scenario()) == [(kind, b"".join(buffers)) for kind, buffers in frames]


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_garbage_is_frames_a_refusal_or_the_end(content: bytes) -> None:
    async def scenario() -> list[tuple[int, bytes]] | BaseException:
        (outcome,) = await asyncio.gather(read_all(Tape(content), 32), return_exceptions=True)
        return outcome

    outcome = asyncio.run(scenario())
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, StreamEnded) or (isinstance(outcome, Refusal) and outcome.code is Code.OVERSIZED)
    else:
        assert sum(HEADER_BYTES + len(payload) for _, payload in outcome) == len(content)
        assert all(len(payload) <= 32 for _, payload in outcome)


async def test_an_oversized_frame_allocates_nothing() -> None:
    tape = Tape(b"\x01\xff\xff\xff\xff" + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as refused:
            await receive_frame(tape, 1000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code is Code.OVERSIZED
    assert peak_bytes < 64 * 1024


@pytest.mark.parametrize(("length", "accepted"), [(1000, True), (1001, False)])
async def test_the_bound_is_exact(length: int, accepted: bool) -> None:
    tape = Tape()
    await send_frame(tape, 1, bytes(length))
    if accepted:
        assert await receive_header(tape, 1000) == (1, length)
    else:
        with pytest.raises(Refusal):
            await receive_header(tape, 1000)


@pytest.mark.parametrize("kind", [-1, 256])
async def test_a_kind_is_one_byte(kind: int) -> None:
    with pytest.raises(MisuseError):
        await send_frame(Tape(), kind)


async def test_typed_memory_is_sent_as_its_bytes() -> None:
    tape = Tape()
    await send_frame(tape, 1, memoryview(bytearray(range(16))).cast("f"))
    assert await receive_frame(tape, 16) == (1, bytes(range(16)))
