"""Streams between peers of one process: for the demo without a network, and for tests.

The idea: each direction of a stream is a bounded buffer with one writer and one reader, so that
back-pressure, aborts and lost peers look as they do over a real network, and without any waiting for time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

from crowdsurf.peer.transport.base import (
    CONNECT_TIMEOUT_SECONDS,
    Buffer,
    Handler,
    Stream,
    StreamBroken,
    StreamClosed,
    Transport,
)
from crowdsurf.peer.transport.streams import StreamTable
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import PeerId, peer_text, short

PIPE_BYTES_MAX = 256 * 1024
"""Bytes one direction of a stream holds before its sender waits; what a yamux window starts with."""


class _Pipe:
    """One direction: bytes that were sent and not received yet."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.ended = False
        self._receiver: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None

    def end(self, *, discard: bool) -> None:
        """Nothing more is sent; an abort also discards what is held."""
        self.ended = True
        if discard:
            self.held.clear()
        _wake(self._receiver)
        _wake(self._sender)

    async def receive_some(self, view: memoryview) -> int:
        """Move up to len(view) bytes; 0 means that the stream ended."""
        while not self.held and not self.ended:
            self._receiver = asyncio.get_running_loop().create_future()
            await self._receiver
        moved = min(len(view), len(self.held))
        view[:moved] = memoryview(self.held)[:moved]
        del self.held[:moved]
        _wake(self._sender)
        return moved

    async def send_some(self, view: memoryview) -> int:
        """Hold up to len(view) bytes; 0 means that the stream ended."""
        while len(self.held) >= PIPE_BYTES_MAX and not self.ended:
            self._sender = asyncio.get_running_loop().create_future()
            await self._sender
        if self.ended:
            return 0
        moved = min(len(view), PIPE_BYTES_MAX - len(self.held))
        self.held += view[:moved]
        _wake(self._receiver)
        return moved


def _wake(waiter: asyncio.Future[Any] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class MemoryStream(Stream):
    """One end of a pair of pipes."""

    def __init__(
        self, peer: PeerId, protocol: str, incoming: _Pipe, outgoing: _Pipe, on_end: Callable[[Stream], None]
    ) -> None:
        super().__init__(peer, protocol)
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_end = on_end
        self._ended = False
        self._receiving = False
        self._sending = False

    async def receive_into(self, view: memoryview[Any]) -> None:
        if self._receiving:
            raise MisuseError("two tasks receive from one stream at once; give it one receiver")
        view = view.cast("B")
        filled = 0
        self._receiving = True
        try:
            while filled < len(view):
                self._require_open()
                moved = await self._incoming.receive_some(view[filled:])
                if moved == 0:
                    self._require_open()
                    self.abort()
                    raise (
                        StreamBroken("the stream ended in mid-message") if filled else StreamClosed("the stream ended")
                    )
                filled += moved
        finally:
            self._receiving = False
            if 0 < filled < len(view):
                self.abort()

    async def send(self, *buffers: Buffer) -> None:
        if self._sending:
            raise MisuseError("two tasks send on one stream at once; give it one sender")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        sent, total = 0, sum(len(view) for view in views)
        self._sending = True
        try:
            for view in views:
                done = 0
                while done < len(view):
                    self._require_open()
                    moved = await self._outgoing.send_some(view[done:])
                    if moved == 0:
                        self.abort()
                        raise StreamBroken("the stream ended before everything was sent")
                    done += moved
                    sent += moved
        finally:
            self._sending = False
            if 0 < sent < total:
                self.abort()

    async def close(self) -> None:
        self._end(discard=False)

    def abort(self) -> None:
        self._end(discard=True)

    def _end(self, *, discard: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._incoming.end(discard=True)
        self._outgoing.end(discard=discard)
        self._on_end(self)

    def _require_open(self) -> None:
        if self._ended:
            raise StreamBroken("the stream was ended on this side")


class MemoryNetwork:
    """The peers of one process that can reach each other."""

    def __init__(self) -> None:
        self._transports: dict[PeerId, MemoryTransport] = {}

    def join(self, peer: PeerId) -> MemoryTransport:
        """A transport for `peer`. Raises MisuseError if it has one already."""
        if peer in self._transports:
            raise MisuseError(f"peer {short(peer)} is on this network already")
        transport = MemoryTransport(self, peer)
        self._transports[peer] = transport
        return transport

    def kill(self, peer: PeerId) -> None:
        """The peer is gone at once, as by SIGKILL: its streams break and it cannot be reached."""
        transport = self._transports.pop(peer, None)
        if transport is not None:
            transport.break_all()

    def find(self, peer: PeerId) -> MemoryTransport:
        """The transport of `peer`. Raises WorldError if it is not here."""
        transport = self._transports.get(peer)
        if transport is None:
            raise WorldError(f"peer {short(peer)} cannot be reached")
        return transport


class MemoryTransport(Transport):
    """One peer's side of a MemoryNetwork; made by `MemoryNetwork.join`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self._network = network
        self._table = StreamTable()

    async def addresses(self) -> list[str]:
        return [f"/memory/p2p/{peer_text(self.peer_id)}"]

    async def connect(
        self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> None:
        self._table.require_welcome(peer)
        self._network.find(peer)

    async def open(self, peer: PeerId, protocol: str, timeout_seconds: float) -> Stream:
        self._network.find(self.peer_id)
        self._table.require_welcome(peer)
        stream = self._network.find(peer).accept_from(self, protocol)
        if self._table.refuses(peer):
            stream.abort()
            self._table.require_welcome(peer)
        return stream

    async def serve(self, protocol: str, handler: Handler) -> None:
        self._table.register(protocol, handler)

    def refuse(self, peers: Container[PeerId]) -> None:
        self._table.refuse(peers)

    def prefer(self, peers: Container[PeerId]) -> None:
        self._table.prefer(peers)

    def abort(self, peer: PeerId, spared: Collection[Stream] = ()) -> None:
        self._table.abort_all(peer, spared)

    async def disconnect(self, peer: PeerId) -> None:
        self._table.abort_all(peer)

    async def close(self) -> None:
        self._network.kill(self.peer_id)
        await self._table.close()

    def break_all(self) -> None:
        """Abort every stream (the network does this when it kills the peer)."""
        self._table.abort_everything()

    def accept_from(self, dialler: MemoryTransport, protocol: str) -> Stream:
        """A new stream's end for `dialler`; ours goes to its handler. Raises WorldError without a handler."""
        if not self._table.serves(protocol):
            raise WorldError(f"peer {short(self.peer_id)} does not offer {protocol}")
        there, back = _Pipe(), _Pipe()
        theirs = MemoryStream(self.peer_id, protocol, back, there, dialler._table.remove)
        ours = MemoryStream(dialler.peer_id, protocol, there, back, self._table.remove)
        dialler._table.add(theirs)
        self._table.add(ours)
        self._table.accept(ours)
        return theirs
