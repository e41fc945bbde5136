"""A stream over a non-blocking stream socket, with no Python copy of bulk bytes.

The idea: wait until the kernel says the socket is ready, then move bytes with one system call between the
kernel and the caller's own memory. Nothing is moved while waiting, so a cancelled wait loses nothing.
Only receives smaller than a page go through a small read-ahead buffer, so that a frame header and a small
payload cost one system call and not two; a bulk receive first empties it and then bypasses it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from crowdsurf.peer.transport.base import Buffer, Stream, StreamBroken, StreamClosed
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import PeerId

READ_AHEAD_BYTES = 4096
_BUFFERS_PER_CALL_MAX = 16
_TURN_BYTES = 1 << 20
"""Bytes one stream moves before it lets the rest of the event loop have a turn."""


class SocketStream(Stream):
    """A stream over `connection`, a connected non-blocking socket that it owns from now on."""

    def __init__(
        self, connection: socket.socket, peer: PeerId, protocol: str, on_end: Callable[[Stream], None]
    ) -> None:
        super().__init__(peer, protocol)
        self._socket = connection
        self._descriptor = connection.fileno()
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._watching = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._receiving = False
        self._sending = False
        self._ahead = memoryview(bytearray(READ_AHEAD_BYTES))
        self._ahead_start = 0
        self._ahead_end = 0

    async def receive_into(self, view: memoryview[Any]) -> None:
        if self._receiving:
            raise MisuseError("two tasks receive from one stream at once; give it one receiver")
        view = view.cast("B")
        filled, turn = 0, 0
        self._receiving = True
        try:
            while filled < len(view):
                moved = await self._receive_some(view[filled:])
                if moved == 0:
                    self.abort()  # there is no half-close: what we would send goes nowhere
                    raise (
                        StreamBroken("the stream ended in mid-message") if filled else StreamClosed("the stream ended")
                    )
                filled += moved
                turn += moved
                if turn >= _TURN_BYTES:
                    turn = 0
                    await asyncio.sleep(0)
        finally:
            self._receiving = False
            if 0 < filled < len(view):
                self.abort()

    async def send(self, *buffers: Buffer) -> None:
        if self._sending:
            raise MisuseError("two tasks send on one stream at once; give it one sender")
        waiting = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if len(view)]
        sent, turn = 0, 0
        self._sending = True
        try:
            while waiting:
                moved = await self._send_some(waiting[:_BUFFERS_PER_CALL_MAX])
                sent += moved
                turn += moved
                while waiting and moved >= len(waiting[0]):
                    moved -= len(waiting.pop(0))
                if moved:
                    waiting[0] = waiting[0][moved:]
                if turn >= _TURN_BYTES:
                    turn = 0
                    await asyncio.sleep(0)
        finally:
            self._sending = False
            if waiting and sent:
                self.abort()

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._socket.close()
        _wake(self._readable)
        _wake(self._writable)
        self._on_end(self)

    async def _receive_some(self, view: memoryview) -> int:
        """Move between 1 and len(view) bytes into `view`; 0 means the stream ended."""
        if self._ahead_start == self._ahead_end:
            if len(view) >= READ_AHEAD_BYTES:
                return await self._receive_from_kernel(view)
            received = await self._receive_from_kernel(self._ahead)
            self._ahead_start, self._ahead_end = 0, received  # only now: the wait may have been cancelled
        moved = min(len(view), self._ahead_end - self._ahead_start)
        view[:moved] = self._ahead[self._ahead_start : self._ahead_start + moved]
        self._ahead_start += moved
        return moved

    async def _receive_from_kernel(self, view: memoryview) -> int:
        while True:
            self._require_open()
            try:
                return self._socket.recv_into(view)
            except BlockingIOError:
                await self._wait_readable()
            except OSError:
                return 0  # a reset is an end like any other

    async def _send_some(self, views: list[memoryview]) -> int:
        while True:
            self._require_open()
            try:
                return self._socket.sendmsg(views)
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                self.abort()
                raise StreamBroken("the stream ended before everything was sent") from error

    def _require_open(self) -> None:
        if self._ended:
            raise StreamBroken("the stream was ended on this side")

    async def _wait_readable(self) -> None:
        self._readable = self._loop.create_future()
        if not self._watching:
            self._loop.add_reader(self._descriptor, self._on_readable)
            self._watching = True
        await self._readable

    def _on_readable(self) -> None:
        # Watching outlives the wait, because a stream of small frames waits for each: starting and stopping
        # costs more than the frame. It ends when bytes come that nobody waits for.
        if self._readable is None or self._readable.done():
            self._loop.remove_reader(self._descriptor)
            self._watching = False
        _wake(self._readable)

    async def _wait_writable(self) -> None:
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._descriptor, _wake, self._writable)
        try:
            await self._writable
        finally:
            if not self._ended:
                self._loop.remove_writer(self._descriptor)


def _wake(waiter: asyncio.Future[Any] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
