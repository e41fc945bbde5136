"""Frames: where one message ends and the next begins on a byte stream.

The idea: one byte of type, four bytes of length, the payload. The length is checked against a bound
before anything is allocated, and it is the frame's own end mark, because the end of a stream proves
nothing (see base.py). For bulk data a caller takes the header first and then receives the payload into
memory of its own, so that it is not copied on the way.
"""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Any

from crowdsurf.peer.transport.base import Buffer, Stream, StreamTimeout
from crowdsurf.protocol.errors import Code, MisuseError, Refusal

_HEADER = struct.Struct(">BI")
HEADER_BYTES = _HEADER.size
PAYLOAD_BYTES_MAX = 2**32 - 1
"""What four bytes can say; the bound that counts is the one each receiver gives."""


class deadline:
    """Raise StreamTimeout if the block takes longer than `timeout_seconds` (None: no limit, and no cost)."""

    def __init__(self, timeout_seconds: float | None, waiting_for: str) -> None:
        self._timeout_seconds = timeout_seconds
        self._waiting_for = waiting_for
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        if self._timeout_seconds is not None:
            self._timeout = asyncio.timeout(self._timeout_seconds)
            await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timeout is None:
            return
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            text = f"gave up after {self._timeout_seconds} s of waiting for {self._waiting_for}"
            raise StreamTimeout(text) from timeout


async def send_frame(stream: Stream, kind: int, *buffers: Buffer, timeout_seconds: float | None = None) -> None:
    """Send one frame whose payload is `buffers` joined; they are not copied.

    Raises MisuseError for a kind outside 0..255 or a payload of 4 GiB or more, StreamBroken, StreamTimeout.
    """
    length = sum(memoryview(buffer).nbytes for buffer in buffers)
    if not 0 <= kind <= 255:
        raise MisuseError(f"a frame's kind is one byte, got {kind}")
    if length > PAYLOAD_BYTES_MAX:
        raise MisuseError(f"a frame holds at most {PAYLOAD_BYTES_MAX} bytes, got {length}; send several")
    async with deadline(timeout_seconds, "the other side to read a frame"):
        await stream.send(_HEADER.pack(kind, length), *buffers)


async def receive_header(stream: Stream, bytes_max: int, timeout_seconds: float | None = None) -> tuple[int, int]:
    """The next frame's (kind, payload bytes); the caller then receives exactly that many bytes.

    Raises Refusal(OVERSIZED) above `bytes_max` (the stream is of no more use then), StreamClosed if the
    stream ended before the frame, StreamBroken if inside its header, StreamTimeout.
    """
    header = bytearray(HEADER_BYTES)
    async with deadline(timeout_seconds, "a frame"):
        await stream.receive_into(memoryview(header))
    kind, length = _HEADER.unpack(header)
    if length > bytes_max:
        raise Refusal(Code.OVERSIZED, f"a frame of {length} bytes where at most {bytes_max} are taken")
    return kind, length


async def receive_payload(stream: Stream, view: memoryview[Any], timeout_seconds: float | None = None) -> None:
    """Receive a payload announced by a header straight into `view`, which has exactly its size.

    Raises StreamEnded and StreamTimeout; after either the stream is of no more use.
    """
    async with deadline(timeout_seconds, "the rest of a frame"):
        await stream.receive_into(view)


async def receive_frame(stream: Stream, bytes_max: int, timeout_seconds: float | None = None) -> tuple[int, bytes]:
    """The next frame as (kind, payload), for small frames; `timeout_seconds` covers all of it.

    Raises what `receive_header` and `receive_payload` raise.
    """
    async with deadline(timeout_seconds, "a frame"):
        kind, length = await receive_header(stream, bytes_max)
        payload = bytearray(length)
        await receive_payload(stream, memoryview(payload))
    return kind, bytes(payload)
