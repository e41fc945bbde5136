"""What the daemon needs from a network: authenticated byte streams between peers, and nothing else.

The idea: a transport knows no message of ours. It opens and accepts duplex byte streams, each named by a
protocol string and tied to a peer id that the transport itself authenticated, and it bounds what a remote
can make us hold. Bytes are received into memory of the caller's choice, so that a tensor part goes from
the socket straight into shared memory. Everything above (frames, messages, deadlines) is the same over
any transport.

What a stream's end means is kept deliberately weak, because a stream that a network daemon proxies has no
half-close and an abort arrives as a plain end: the end of a stream never says that the sender finished.
Frames carry their own end mark, a sender learns of success only from the receiver's answer, and a stream
that ended when more was expected means that its peer is gone as far as this stream is concerned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Container, Sequence
from typing import Any, TypeAlias

from crowdsurf.protocol.errors import WorldError
from crowdsurf.protocol.ids import PeerId

Buffer: TypeAlias = "bytes | bytearray | memoryview[Any]"
"""What can be sent: contiguous memory of any element type."""

STREAMS_PER_PEER_MAX = 128
"""Inbound streams one peer may hold open; a step uses a handful. More are aborted before a byte is read."""

STREAMS_MAX = 512
"""Inbound streams of all peers together: each costs a file descriptor here (1024 by default) and one more in
the network daemon. Beyond them whoever has the most gives one up for somebody who has less, or is not preferred
for somebody who is; else the new one is aborted before a byte is read."""

STRANGER_STREAMS_PER_PEER_MAX = 24
"""The same for one peer that is not preferred: who catches up fetches sixteen things at once."""

STRANGER_STREAMS_MAX = 256
"""The same for all of those together. Identities cost nothing, so the rest is for those that are preferred."""

CONNECT_TIMEOUT_SECONDS = 10.0
"""How long dialling a peer may take by default; a handshake across the world and one lost packet fit."""


class StreamEnded(WorldError):
    """The stream is over: no more bytes come and none can be sent."""


class StreamClosed(StreamEnded):
    """The stream ended between two receives. It may still have been an abort: see the module's text."""


class StreamBroken(StreamEnded):
    """The stream ended in the middle of a receive or a send, or was aborted on this side."""


class StreamTimeout(WorldError):
    """A deadline passed while waiting for the other side."""


class Stream(ABC):
    """One duplex byte stream to one authenticated peer, with at most one receiver and one sender at a time.

    A receive or send that is cancelled (by a deadline, say) before it moved a byte leaves the stream as it
    was; one that had moved some bytes aborts the stream, because its two ends no longer agree on where they are.
    """

    def __init__(self, peer: PeerId, protocol: str) -> None:
        self.peer = peer
        """The remote peer, authenticated by the transport."""
        self.protocol = protocol

    @abstractmethod
    async def receive_into(self, view: memoryview[Any]) -> None:
        """Fill `view` (any contiguous, writable memory) exactly.

        Raises StreamClosed if the stream ended before its first byte and StreamBroken if it ended later.
        """

    @abstractmethod
    async def send(self, *buffers: Buffer) -> None:
        """Send `buffers` one after the other; returns once they are handed over, not when they arrived.

        Waits while the other side does not read. Raises StreamBroken if the stream is over.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the stream in order. Bytes that were sent may still be lost if the receiver has not answered."""

    @abstractmethod
    def abort(self) -> None:
        """End the stream at once, in both directions; waiting receives and sends raise StreamBroken."""


Handler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. Returning closes it, raising aborts it; WorldError and Refusal are expected."""


class Transport(ABC):
    """Streams to and from peers, under one identity."""

    peer_id: PeerId
    """Our own identity."""

    @abstractmethod
    async def addresses(self) -> list[str]:
        """Where others can reach us: multiaddresses that end in `/p2p/<our id>`."""

    @abstractmethod
    async def connect(
        self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> None:
        """Make `peer` reachable. `addresses` may come from strangers: bad ones are skipped, too many are cut.

        Raises WorldError if it cannot be reached.
        """

    @abstractmethod
    async def open(self, peer: PeerId, protocol: str, timeout_seconds: float) -> Stream:
        """Open a stream. Raises WorldError if the peer cannot be reached, is refused or lacks the protocol.

        A peer that lacks the protocol, or refuses us, may also show only as a stream that ends at once.
        """

    @abstractmethod
    async def serve(self, protocol: str, handler: Handler) -> None:
        """Accept streams of this protocol. Raises MisuseError if it is served already."""

    @abstractmethod
    def refuse(self, peers: Container[PeerId]) -> None:
        """Whoever is in `peers`, now or later, gets nothing: the streams it opens are aborted before a byte is read,
        and it is neither dialled nor is a stream opened to it. Streams that are open already stay; see `abort`."""

    @abstractmethod
    def prefer(self, peers: Container[PeerId]) -> None:
        """Keep room for the streams of whoever is in `peers`, now or later; until this is called, for everybody."""

    @abstractmethod
    def abort(self, peer: PeerId, spared: Collection[Stream] = ()) -> None:
        """Abort the streams with `peer`, in both directions, but for those that are `spared`."""

    @abstractmethod
    async def disconnect(self, peer: PeerId) -> None:
        """Abort every stream with `peer` and drop the connection to it. Raises WorldError if the network is gone."""

    @abstractmethod
    async def close(self) -> None:
        """Abort every stream, end every handler and stop."""
