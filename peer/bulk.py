"""Bulk streams: tensor parts pushed to those who expect them.

The idea: per receiver one stream and one short queue of digests. The receiver looks the digest up first: bytes it
expects go from the socket straight into shared memory, bytes it does not expect yet are left in the socket (the
sender waits, which is the back-pressure) until the rules expect them or patience ends. What arrives is digested
before anybody hears of it; wrong bytes end the stream and are reported.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Container

from crowdsurf.peer import packets
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.links import STRANGER_IDLE_SECONDS, Post, Refuse
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, StreamEnded, Transport
from crowdsurf.protocol import events, limits
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest

QUEUED_BLOBS_MAX = 2 * limits.ROSTER_PEERS_MAX
"""Parts waiting for one peer; older ones are dropped, a peer that still wants them pulls them."""
DIGEST_IN_THREAD_BYTES = 4 * 1024 * 1024
"""Above this the digest is taken in a thread (BLAKE3 lets the event loop go on): one to two milliseconds of work,
below which the way into a thread and back costs more than it saves on a busy machine."""
IDLE_SECONDS_MAX = 3600.0
"""An idle bulk stream is kept this long."""
BYTES_PER_SECOND_MIN = 64 * 1024
"""A transfer slower than this is given up; a home connection uploads ten times faster."""


def transfer_seconds(nbytes: int) -> float:
    """Longest acceptable duration of a transfer."""
    return 30.0 + nbytes / BYTES_PER_SECOND_MIN


async def check_digest(view: memoryview, digest: Digest) -> bool:
    """Whether bytes are what they are called."""
    if len(view) <= DIGEST_IN_THREAD_BYTES:
        return blob_digest(view) == digest
    return await asyncio.to_thread(blob_digest, view) == digest


class _Sender:
    """Pushes blobs to one peer, one after the other, on one stream."""

    def __init__(self, peer: PeerId, bulk: Bulk) -> None:
        self._peer = peer
        self._bulk = bulk
        self._queue: deque[tuple[int, Digest]] = deque(maxlen=QUEUED_BLOBS_MAX)
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="bulk sender")

    def push(self, step: int, digest: Digest) -> None:
        """Queue a blob."""
        self._queue.append((step, digest))
        self._wake.set()

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        stream: Stream | None = None
        try:
            while True:
                while self._queue:
                    stream = await self._send_next(stream)
                self._wake.clear()
                await self._wake.wait()
        finally:
            if stream is not None:
                stream.abort()

    async def _send_next(self, stream: Stream | None) -> Stream | None:
        """Send the first of the queue, on a new stream if there is none; the stream that still works, if any."""
        is_used = stream is not None
        item = self._queue.popleft()
        try:
            stream = stream or await self._open()
            await self._send(stream, *item)
            return stream
        except WorldError as error:
            if stream is not None:
                stream.abort()
            if is_used and isinstance(error, StreamEnded):
                self._queue.appendleft(item)  # the peer may have restarted since
            else:
                self._queue.clear()  # the peer, its link or its patience is gone; what it still needs it will pull
            return None

    async def _open(self) -> Stream:
        stream = await self._bulk.transport.open(self._peer, packets.BULK_STREAM, 10.0)
        await packets.send_hello(stream, self._bulk.run_id, 10.0)
        return stream

    async def _send(self, stream: Stream, step: int, digest: Digest) -> None:
        with self._bulk.blobs.lend(digest) as view:
            if view is None:
                return
            head = packets.PUSH_HEAD.pack(step, digest)
            seconds = transfer_seconds(len(view))
            await frames.send_frame(stream, FrameKind.PUSH, head, view, timeout_seconds=seconds)
            self._bulk.metrics.part_bytes_sent += len(view)


class Bulk:
    """Sends and receives pushed blobs."""

    def __init__(
        self,
        transport: Transport,
        run_id: Digest,
        blobs: BlobStore,
        post: Post,
        refuse: Refuse,
        metrics: Metrics,
        patience_seconds: float,
    ) -> None:
        """`patience_seconds` is how long bytes that are not expected yet may wait in their socket."""
        self.transport = transport
        self.run_id = run_id
        self.blobs = blobs
        self.metrics = metrics
        self.members: Container[PeerId] = frozenset()
        """Whose streams to us may be idle for long."""
        self._post = post
        self.post_from: Callable[[PeerId, events.Event], Awaitable[None]] = lambda peer, event: post(event)
        """The same for what a peer can cause again and again."""
        self._refuse = refuse
        self._patience_seconds = patience_seconds
        self._senders: dict[PeerId, _Sender] = {}

    async def start(self) -> None:
        """Accept bulk streams."""
        await self.transport.serve(packets.BULK_STREAM, self._serve)

    def push(self, peer: PeerId, step: int, digest: Digest) -> None:
        """Queue a blob for a peer."""
        if peer not in self._senders:
            self._senders[peer] = _Sender(peer, self)
        self._senders[peer].push(step, digest)

    async def keep(self, peers: set[PeerId]) -> None:
        """Forget senders to anybody else."""
        for peer in [peer for peer in self._senders if peer not in peers]:
            await self._senders.pop(peer).close()

    async def close(self) -> None:
        """End all transfers."""
        await self.keep(set())

    async def _serve(self, stream: Stream) -> None:
        try:
            await packets.receive_hello(stream, self.run_id, 10.0)
            while True:
                await self._receive_one(stream)
        except Refusal as refusal:
            self._refuse(stream.peer, refusal)
            stream.abort()

    async def _receive_one(self, stream: Stream) -> None:
        bytes_max = min(limits.BLOB_BYTES_MAX, frames.PAYLOAD_BYTES_MAX)
        idle_seconds = IDLE_SECONDS_MAX if stream.peer in self.members else STRANGER_IDLE_SECONDS
        kind, length = await frames.receive_header(stream, bytes_max, idle_seconds)
        if kind != FrameKind.PUSH or length <= packets.PUSH_HEAD.size:
            raise Refusal(Code.UNKNOWN_KIND, f"frame kind {kind} has no place on a bulk stream")
        head = bytearray(packets.PUSH_HEAD.size)
        await frames.receive_payload(stream, memoryview(head), 30.0)
        step, name = packets.PUSH_HEAD.unpack(head)
        digest, nbytes = Digest(name), length - len(head)
        if not await self.blobs.wait_expected(step, digest, self._patience_seconds):
            raise Refusal(Code.UNEXPECTED_BLOB, f"{nbytes} bytes that nobody here asked for")
        has_arrived = await receive_blob(stream, self.blobs, digest, nbytes)
        if has_arrived:
            self.metrics.part_bytes_received += nbytes
        if self.blobs.holds_for(step, digest):  # also if they were here before, as the bytes of something else
            event = events.BlobArrived(digest)
            await (self._post(event) if has_arrived else self.post_from(stream.peer, event))


async def receive_blob(stream: Stream, blobs: BlobStore, digest: Digest, nbytes: int, *, pulled: bool = False) -> bool:
    """Receive announced bytes into their place and check them; False if they are not needed (and were skipped).

    While another stream is at it, pushed bytes are skipped too. Those we `pulled` are not, nor those their author
    pushes: whoever pushes slowly must not keep us from getting them elsewhere. The first that is complete counts.

    Raises Refusal(UNEXPECTED_BLOB) for a wrong size, Refusal(WRONG_DIGEST) for wrong bytes, WorldError.
    """
    if not blobs.fits(digest, nbytes):
        raise Refusal(Code.UNEXPECTED_BLOB, f"{nbytes} bytes under the name of others")
    with blobs.receiving(digest, nbytes, stream.abort, stream.peer) as place:
        if place is not None:
            await frames.receive_payload(stream, place.view, transfer_seconds(nbytes))
            await _require_digest(place.view, digest)
            return blobs.arrived(digest, place)
    with blobs.receiving_beside(digest, stream.peer) as may_push:
        if may_push or (pulled and blobs.is_expected(digest)):
            beside = memoryview(bytearray(nbytes))
            await frames.receive_payload(stream, beside, transfer_seconds(nbytes))
            await _require_digest(beside, digest)
            return blobs.put(digest, beside)
    await _skip(stream, nbytes)
    return False


async def _require_digest(view: memoryview, digest: Digest) -> None:
    if not await check_digest(view, digest):
        raise Refusal(Code.WRONG_DIGEST, "the bytes are not what they are called")


async def _skip(stream: Stream, nbytes: int) -> None:
    """Read past bytes that are not needed, without holding them."""
    scratch = memoryview(bytearray(min(nbytes, 256 * 1024)))
    async with frames.deadline(transfer_seconds(nbytes), "bytes to skip"):
        while nbytes:
            piece = scratch[: min(nbytes, len(scratch))]
            await stream.receive_into(piece)
            nbytes -= len(piece)
