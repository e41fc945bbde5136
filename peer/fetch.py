"""Fetch streams: one question, one answer, the end. For blobs, certificates, states and the manifest.

The idea: whoever lacks something asks one peer after the other; whoever is asked answers from memory, from the
journal or from disk, and owes nothing. Every answer proves itself (by digest or by certificate), so it does not
matter who gives it. SPEC.md §2, §7.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from pathlib import Path

from crowdsurf.peer import packets
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.bulk import check_digest, receive_blob, transfer_seconds
from crowdsurf.peer.candidates import Begun
from crowdsurf.peer.links import Refuse
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.state_store import StateStore
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, Transport
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.chain_answer import ChainAnswer
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import DIGEST_BYTES, Digest, PeerId
from crowdsurf.protocol.manifest import Manifest, decode_manifest, encode_manifest, run_id_of
from crowdsurf.protocol.messages import Certificate

CHUNK_BYTES = 1024 * 1024
OPEN_SECONDS, ANSWER_SECONDS = 10.0, 30.0
SERVED_AT_ONCE_MAX = 8
"""Questions of one kind that strangers are answered at the same time; others wait their turn in their sockets. Members
never wait for strangers, nor for each other: there are only so many, and identities of strangers are endless."""
SERVED_PER_PEER_MAX = 2
"""Of one peer: whoever reads its answers slowly keeps mostly itself from being answered."""
TURN_SECONDS = 30.0
"""How long a question may wait for its turn; whoever asked has gone then."""
END_SECONDS = 5.0
"""How long the other side may take to end a stream in order, which nothing depends on."""

Certificates = Callable[[int], Awaitable[Sequence[Certificate]]]
"""Certified steps from a given one on, as many as one answer may hold; more are not sent."""


class _Turn:
    """The streams of one peer that are answered or wait for it."""

    def __init__(self) -> None:
        self.streams = 0
        self.own = asyncio.Semaphore(SERVED_PER_PEER_MAX)


class FetchServer:
    """Answers fetch streams."""

    def __init__(
        self,
        manifest: Manifest,
        blobs: BlobStore,
        store: StateStore,
        certificates: Certificates,
        certified_state: Callable[[], int | None],
        refuse: Refuse,
        metrics: Metrics,
    ) -> None:
        """`certified_state` names the newest kept state that a certificate vouches for."""
        self._manifest = manifest
        self._blobs = blobs
        self._store = store
        self._certificates = certificates
        self._certified_state = certified_state
        self._refuse = refuse
        self._metrics = metrics
        # None for the manifest, which is small: it is all that somebody who has nothing yet can ask for.
        kinds = (FrameKind.GET_BLOB, FrameKind.GET_CHAIN, FrameKind.GET_STATE)
        self._turn_of_strangers = {kind: asyncio.Semaphore(SERVED_AT_ONCE_MAX) for kind in kinds}
        self._turns: dict[PeerId, _Turn] = {}
        self.members: Container[PeerId] = frozenset()
        """Who is not kept waiting by strangers."""
        self.serves_blobs: Callable[[], bool] = lambda: True
        """Whether it has the bytes that it has; a peer that misbehaves on purpose may say no."""

    async def serve(self, stream: Stream) -> None:
        """One question, one answer."""
        try:
            kind, payload = await frames.receive_frame(stream, 64, ANSWER_SECONDS)
            packets.check_size(kind, len(payload))
            async with self._turn_of(stream.peer, kind):
                await self._answer(stream, kind, payload)
            await _await_end(stream)
        except Refusal as refusal:
            self._refuse(stream.peer, refusal)
            stream.abort()

    @contextlib.asynccontextmanager
    async def _turn_of(self, peer: PeerId, kind: int) -> AsyncIterator[None]:
        """Wait until a question may be answered. Raises StreamTimeout."""
        turn = self._turns.setdefault(peer, _Turn())
        turn.streams += 1
        try:
            async with contextlib.AsyncExitStack() as taken:
                async with frames.deadline(TURN_SECONDS, "a turn to answer"):
                    await taken.enter_async_context(turn.own)
                    if kind in self._turn_of_strangers and peer not in self.members:
                        await taken.enter_async_context(self._turn_of_strangers[FrameKind(kind)])
                yield
        finally:
            turn.streams -= 1
            if not turn.streams:
                del self._turns[peer]

    async def _answer(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind == FrameKind.GET_MANIFEST:
            await self._send(stream, FrameKind.MANIFEST, encode_manifest(self._manifest))
        elif kind == FrameKind.GET_BLOB and len(payload) == DIGEST_BYTES:
            await self._answer_blob(stream, Digest(payload))
        elif kind == FrameKind.GET_CHAIN:
            await self._answer_chain(stream, wire.unpack(payload, int, 9))
        elif kind == FrameKind.GET_STATE:
            await self._answer_state(stream)
        else:
            raise Refusal(Code.UNKNOWN_KIND, f"frame kind {kind} is no question")
        await self._send(stream, FrameKind.END, b"")

    async def _answer_blob(self, stream: Stream, digest: Digest) -> None:
        if not self.serves_blobs():
            await self._send(stream, FrameKind.NOT_HERE, b"")
            return
        with self._blobs.lend(digest) as view:
            if view is not None:
                await self._send_bytes(stream, FrameKind.BLOB, digest, view)
                return
        nbytes = self._store.has_part(digest)
        buffer = memoryview(bytearray(nbytes or 0))
        read = nbytes is not None and await asyncio.to_thread(self._store.read_part, digest, buffer)
        if not read or not await check_digest(buffer, digest):
            await self._send(stream, FrameKind.NOT_HERE, b"")
            return
        await self._send_bytes(stream, FrameKind.BLOB, digest, buffer)

    async def _answer_chain(self, stream: Stream, first_step: int) -> None:
        certificates, answer = await self._certificates(first_step), ChainAnswer()
        async with frames.deadline(ANSWER_SECONDS, "the other side to read a chain"):
            for certificate in certificates:
                data = wire.pack(certificate)
                if not answer.takes(len(data)):
                    break  # whoever asks knows that there may be more
                await self._send(stream, FrameKind.CERTIFICATE, data)

    async def _answer_state(self, stream: Stream) -> None:
        step = self._certified_state()
        if step is None:
            await self._send(stream, FrameKind.NOT_HERE, b"")
            return
        await self._send_file(stream, step, self._store.state_path(step))

    async def _send_file(self, stream: Stream, step: int, path: Path) -> None:
        try:
            file = path.open("rb", buffering=0)
        except OSError:
            await self._send(stream, FrameKind.NOT_HERE, b"")
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            async with frames.deadline(transfer_seconds(size), "the other side to read a state"):
                await self._send(stream, FrameKind.STATE, wire.pack(packets.StateHeader(step, size)))
                buffer = memoryview(bytearray(CHUNK_BYTES))
                while count := await asyncio.to_thread(file.readinto, buffer):
                    await self._send_bytes(stream, FrameKind.CHUNK, b"", buffer[:count])
                    self._metrics.state_bytes_sent += count

    async def _send(self, stream: Stream, kind: FrameKind, payload: bytes) -> None:
        await frames.send_frame(stream, kind, payload, timeout_seconds=ANSWER_SECONDS)

    async def _send_bytes(self, stream: Stream, kind: FrameKind, head: bytes, view: memoryview) -> None:
        await frames.send_frame(stream, kind, head, view, timeout_seconds=transfer_seconds(len(view)))
        self._metrics.part_bytes_sent += len(view)


async def _await_end(stream: Stream) -> None:
    """Let the asker close first: closing a proxied stream can cut off what is still on its way."""
    await frames.receive_frame(stream, 0, END_SECONDS)


class ChainReader:
    """The certificates of one answer, unverified, each read when it is asked for: of an answer that is refused at its
    first certificate no second one is in memory."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._answer = ChainAnswer()

    @property
    def may_be_more(self) -> bool:
        """Once the answer has been read: whether it ended because it was full."""
        return self._answer.is_full

    async def next(self) -> Certificate | None:
        """The next certificate; None at the end. Raises Refusal for anything else, WorldError."""
        kind, nbytes = await frames.receive_header(self._stream, limits.CERTIFICATE_BYTES_MAX)
        if kind == FrameKind.END and not nbytes:
            return None
        if kind != FrameKind.CERTIFICATE:
            raise Refusal(Code.UNKNOWN_KIND, "not a chain of certificates")
        if not self._answer.takes(nbytes):
            raise Refusal(Code.OVERSIZED, "more certificates than one answer may have")
        payload = bytearray(nbytes)
        await frames.receive_payload(self._stream, memoryview(payload))
        return packets.decode_certificate(bytes(payload))


class Fetcher:
    """Asks questions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def manifest(self, peer: PeerId, run_id: Digest) -> Manifest:
        """The manifest of a run. Raises Refusal if it is not the run's, WorldError if there is no answer."""
        stream = await self._ask(peer, FrameKind.GET_MANIFEST, b"")
        try:
            kind, payload = await frames.receive_frame(stream, limits.MANIFEST_BYTES_MAX, ANSWER_SECONDS)
            if kind != FrameKind.MANIFEST:
                raise Refusal(Code.UNKNOWN_KIND, "not a manifest")
            manifest = decode_manifest(payload)
            if run_id_of(manifest) != run_id:
                raise Refusal(Code.WRONG_RUN, "the manifest is not the one the invite names")
            await self._finish(stream)
            return manifest
        finally:
            stream.abort()

    @contextlib.asynccontextmanager
    async def reading_chain(self, peer: PeerId, first_step: int) -> AsyncIterator[ChainReader]:
        """Certificates from a step on, as they arrive. Raises Refusal, WorldError. The caller sets the deadline."""
        stream = await self._ask(peer, FrameKind.GET_CHAIN, wire.pack(first_step))
        try:
            yield ChainReader(stream)
            await self._say_end(stream)
        finally:
            stream.abort()

    async def chain(self, peer: PeerId, first_step: int) -> tuple[Certificate, ...]:
        """Certificates from a step on, unverified, as many as one answer holds. Raises Refusal, WorldError."""
        found: list[Certificate] = []
        deadline = frames.deadline(ANSWER_SECONDS, "a chain of certificates")
        async with self.reading_chain(peer, first_step) as reader, deadline:
            while (certificate := await reader.next()) is not None:
                found.append(certificate)
        return tuple(found)

    async def blob(self, peer: PeerId, digest: Digest, blobs: BlobStore, begun: Begun = lambda nbytes: None) -> bool:
        """Get expected bytes into their place; False if the peer does not have them. `begun` hears how many bytes come
        once they do. Raises Refusal, WorldError."""
        stream = await self._ask(peer, FrameKind.GET_BLOB, digest)
        try:
            bytes_max = min(limits.BLOB_BYTES_MAX, frames.PAYLOAD_BYTES_MAX)
            kind, length = await frames.receive_header(stream, bytes_max, ANSWER_SECONDS)
            if kind == FrameKind.NOT_HERE:
                return False
            if kind != FrameKind.BLOB or length <= DIGEST_BYTES:
                raise Refusal(Code.UNKNOWN_KIND, "not the bytes asked for")
            name = bytearray(DIGEST_BYTES)
            await frames.receive_payload(stream, memoryview(name), ANSWER_SECONDS)
            if bytes(name) != digest:
                raise Refusal(Code.UNEXPECTED_BLOB, "other bytes than asked for")
            nbytes = length - DIGEST_BYTES
            if blobs.is_expected(digest) and blobs.fits(digest, nbytes):
                begun(nbytes)
            arrived = await receive_blob(stream, blobs, digest, nbytes, pulled=True)
            await self._finish(stream)
            return arrived
        finally:
            stream.abort()

    async def state(self, peer: PeerId, into: memoryview, begun: Begun = lambda nbytes: None) -> int | None:
        """Get a whole state of exactly `len(into)` bytes; the step it is before, None if the peer has none.

        `begun` hears how many bytes come once they do. Raises Refusal, WorldError. The caller checks the digest
        against a certificate.
        """
        stream = await self._ask(peer, FrameKind.GET_STATE, b"")
        try:
            kind, payload = await frames.receive_frame(stream, 32, ANSWER_SECONDS)
            if kind == FrameKind.NOT_HERE:
                return None
            if kind != FrameKind.STATE:
                raise Refusal(Code.UNKNOWN_KIND, "not a state")
            header = wire.unpack(payload, packets.StateHeader, 32)
            if header.state_bytes != len(into):
                raise Refusal(Code.OVERSIZED, f"a state of {header.state_bytes} bytes where {len(into)} are expected")
            begun(len(into))
            async with frames.deadline(transfer_seconds(len(into)), "a state"):
                await self._receive_chunks(stream, into)
            await self._finish(stream)
            return header.step
        finally:
            stream.abort()

    async def _receive_chunks(self, stream: Stream, into: memoryview) -> None:
        position = 0
        while position < len(into):
            kind, length = await frames.receive_header(stream, len(into) - position, ANSWER_SECONDS)
            if kind != FrameKind.CHUNK or not length:
                raise Refusal(Code.UNKNOWN_KIND, "not a piece of a state")
            await frames.receive_payload(stream, into[position : position + length])
            position += length

    async def _ask(self, peer: PeerId, kind: FrameKind, payload: bytes) -> Stream:
        stream = await self._transport.open(peer, packets.FETCH_STREAM, OPEN_SECONDS)
        try:
            await frames.send_frame(stream, kind, payload, timeout_seconds=ANSWER_SECONDS)
        except WorldError:
            stream.abort()
            raise
        return stream

    async def _finish(self, stream: Stream) -> None:
        """Read the end mark and answer it, so the other side may close. What was asked for is here already."""
        with contextlib.suppress(WorldError, Refusal):
            await frames.receive_frame(stream, 0, END_SECONDS)
            await self._say_end(stream)

    async def _say_end(self, stream: Stream) -> None:
        with contextlib.suppress(WorldError):
            await frames.send_frame(stream, FrameKind.END, timeout_seconds=END_SECONDS)
