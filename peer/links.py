"""Control links: one outgoing stream to every contact, kept alive, and the incoming ones of everybody.

The idea: a link is a queue and a task. The task connects, says hello, sends what the queue holds, and starts
again after a pause when the stream breaks, or sooner if the other side comes back and links to us. The rules above
repeat what matters, so a full queue drops its oldest message and a broken stream loses what was in it. A link that
breaks is how a peer's death is noticed within milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Container, Coroutine, Sequence

from crowdsurf.peer import packets
from crowdsurf.peer.bans import Bans
from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, Transport
from crowdsurf.protocol import events
from crowdsurf.protocol.envelope import decode_envelope
from crowdsurf.protocol.errors import Code, Refusal, Severity, WorldError
from crowdsurf.protocol.ids import Digest, PeerId

QUEUED_FRAMES_MAX = 2048
"""Messages waiting for one peer; a step needs about seven per peer, so this is a peer that hangs."""
RETIRING_MAX = 64
"""Links that may live on for a moment: members that left, not every stranger that was answered."""
QUEUED_BYTES_MAX = 4 * 1024 * 1024
"""Their bytes: a large group's certificates have 50 KiB each, and many peers may hang at once."""
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX, PAUSE_GROWTH = 0.1, 5.0, 2.0
"""Pause before a broken link is tried again, and how much longer each one is than the one before."""
RETIRE_SECONDS = 1.0
"""How long the link of a peer that is no contact any more may still send, and then still stands."""
STRANGER_IDLE_SECONDS = 600.0
"""How long a stream of a peer that is no member may say nothing; whoever still wants it opens it again."""
OPEN_SECONDS, SEND_SECONDS, HELLO_SECONDS = 10.0, 30.0, 10.0

Post = Callable[[events.Event], Awaitable[None]]
"""Gives an event to the driver; waits while its queue is full, which makes the sender wait."""
Refuse = Callable[[PeerId, Refusal], None]
Addresses = Callable[[PeerId], Sequence[str]]


class Link:
    """The outgoing control stream to one peer."""

    def __init__(self, peer: PeerId, links: Links) -> None:
        self.peer = peer
        self.stream: Stream | None = None
        """The stream that is up."""
        self._links = links
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="link")

    @property
    def connected(self) -> bool:
        """Whether it is up."""
        return self.stream is not None

    def send(self, kind: FrameKind, payload: bytes) -> None:
        """Queue a frame. A full queue drops its oldest one."""
        self._queue.append((kind, payload))
        self._queued_bytes += len(payload)
        while len(self._queue) > QUEUED_FRAMES_MAX or self._queued_bytes > QUEUED_BYTES_MAX:
            self._take()
        self._idle.clear()
        self._wake.set()

    def came(self) -> None:
        """The other side has linked to us: no reason to wait longer before trying again."""
        self._came.set()

    def _take(self) -> tuple[int, bytes]:
        kind, payload = self._queue.popleft()
        self._queued_bytes -= len(payload)
        return kind, payload

    async def flush(self, timeout_seconds: float) -> None:
        """Wait until the queue is empty, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                if self.connected:
                    await self._idle.wait()

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = PAUSE_SECONDS_MIN
        while True:
            self._came.clear()
            try:
                stream = await self._open()
            except WorldError:
                pause = await self._wait(pause)
                continue
            pause = PAUSE_SECONDS_MIN
            self.stream = stream
            try:
                await self._links.post(events.PeerSeen(self.peer))
                await self._pump(stream)
            except WorldError:
                pass
            finally:
                self.stream = None
                stream.abort()
            await self._links.post(events.PeerGone(self.peer))
            await asyncio.sleep(pause)

    async def _wait(self, pause: float) -> float:
        """Wait before the next attempt; how long to wait after that one, if it fails, too. Whoever links to us again
        and again has us try no more often than that."""
        await asyncio.sleep(PAUSE_SECONDS_MIN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause - PAUSE_SECONDS_MIN):
                await self._came.wait()
                return PAUSE_SECONDS_MIN
        return min(PAUSE_GROWTH * pause, PAUSE_SECONDS_MAX)

    async def _open(self) -> Stream:
        transport = self._links.transport
        addresses = self._links.addresses(self.peer)
        if addresses:
            await transport.connect(self.peer, addresses)
        stream = await transport.open(self.peer, packets.CONTROL_STREAM, OPEN_SECONDS)
        await packets.send_hello(stream, self._links.run_id, SEND_SECONDS)
        return stream

    async def _pump(self, stream: Stream) -> None:
        """Send until the stream ends; the other side never sends on it, so its end is its only news."""
        ended = asyncio.create_task(self._await_end(stream))
        ended.add_done_callback(lambda _: self._wake.set())
        try:
            while not ended.done():
                while self._queue:
                    kind, payload = self._take()
                    await frames.send_frame(stream, kind, payload, timeout_seconds=SEND_SECONDS)
                    self._links.metrics.control_bytes_sent += frames.HEADER_BYTES + len(payload)
                self._idle.set()
                self._wake.clear()
                if not ended.done():
                    await self._wake.wait()
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _await_end(self, stream: Stream) -> None:
        with contextlib.suppress(WorldError):
            await stream.receive_into(memoryview(bytearray(1)))


class Links:
    """All control links of a peer."""

    def __init__(
        self,
        transport: Transport,
        run_id: Digest,
        addresses: Addresses,
        post: Post,
        refuse: Refuse,
        metrics: Metrics,
        bans: Bans | None = None,
    ) -> None:
        """`bans` are those that the transport refuses; `ban` adds to them."""
        self.transport = transport
        self.run_id = run_id
        self.addresses = addresses
        self.post = post
        self.metrics = metrics
        self.members: Container[PeerId] = frozenset()
        """Whose streams to us may be idle for as long as they like."""
        self.turn_away: Callable[[PeerId], None] = lambda peer: None
        """Has the transport give no more streams to a peer for a while, as long as it is no member."""
        self.charge_strangers: Callable[[float], None] = lambda seconds: None
        """Told how long it took to read what a stranger sent."""
        self._refuse = refuse
        self._bans = Bans() if bans is None else bans
        self._links: dict[PeerId, Link] = {}
        self._inbound: dict[PeerId, set[Stream]] = {}
        self._retiring: dict[asyncio.Task[None], list[Link]] = {}

    async def start(self) -> None:
        """Accept control streams."""
        await self.transport.serve(packets.CONTROL_STREAM, self._serve)

    async def keep(self, peers: Sequence[PeerId]) -> None:
        """Have links to exactly these peers, but to none that is banned."""
        for peer in [peer for peer in self._links if peer not in set(peers)]:
            link = self._links.pop(peer)
            if len(self._retiring) >= RETIRING_MAX:
                await link.close()
                continue
            self._start_retiring(self._retire(link), [link])
        for peer in peers:
            if peer not in self._links and peer not in self._bans:
                self._links[peer] = Link(peer, self)

    def ban(self, peers: Collection[PeerId]) -> None:
        """Have nothing to do with these peers from now on; whoever is banned already stays as it is.

        All streams with them end at once, except a control link that is up: it may send what is queued, above all the
        certificate that says why, for RETIRE_SECONDS as any other that retires. Then the connection is dropped.
        """
        new = self._bans.add(peers)
        linked = [*self._links.values(), *(link for links in self._retiring.values() for link in links)]
        farewells = [link for link in linked if link.peer in set(new)]
        for peer in new:
            self._links.pop(peer, None)
            self.transport.abort(peer, [link.stream for link in farewells if link.peer == peer and link.stream])
        if new:
            self._start_retiring(self._cut_off(new, farewells), farewells)

    def _start_retiring(self, work: Coroutine[None, None, None], links: list[Link]) -> None:
        retiring = asyncio.create_task(work, name="retiring links")
        self._retiring[retiring] = links
        retiring.add_done_callback(self._retiring.pop)

    async def _cut_off(self, peers: Sequence[PeerId], links: Sequence[Link]) -> None:
        """End the links of banned peers, and their connections."""
        await asyncio.gather(*(self._retire(link) for link in links))
        for peer in peers:
            with contextlib.suppress(WorldError):  # no connection, or a network process that is gone: as good
                await self.transport.disconnect(peer)

    async def _retire(self, link: Link) -> None:
        """End a link once what was queued is out: above all the certificate that tells a peer that it has left."""
        try:
            await link.flush(RETIRE_SECONDS)
            await asyncio.sleep(RETIRE_SECONDS)  # on its way: the end of a stream may overtake what was sent on it
        finally:
            await link.close()

    def send(self, peer: PeerId, kind: FrameKind, payload: bytes) -> None:
        """Queue a frame for a peer; a peer without a link gets one for the answer, and a banned one gets nothing."""
        if peer in self._bans:
            return
        if peer not in self._links:
            self._links[peer] = Link(peer, self)
        self._links[peer].send(kind, payload)

    def connected(self) -> set[PeerId]:
        """Peers whose outgoing link is up."""
        return {peer for peer, link in self._links.items() if link.connected}

    def listening_to(self) -> set[PeerId]:
        """Peers whose link to us is up. Who is done with a run ends its links."""
        return set(self._inbound)

    async def flush(self, timeout_seconds: float) -> None:
        """Let queued messages go out."""
        await asyncio.gather(*(link.flush(timeout_seconds) for link in self._links.values()))

    async def close(self) -> None:
        """End all links."""
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        # A task that was cancelled before it began has not ended its links.
        links = [*self._links.values(), *(link for links in retiring.values() for link in links)]
        await asyncio.gather(*(link.close() for link in links))
        self._links.clear()

    async def _serve(self, stream: Stream) -> None:
        """Read one peer's control stream until it ends. What is wrong with it is reported, and ends it."""
        try:
            await packets.receive_hello(stream, self.run_id, HELLO_SECONDS)
            self._inbound.setdefault(stream.peer, set()).add(stream)
            if stream.peer in self._links:
                self._links[stream.peer].came()
            try:
                await self._read(stream)
            finally:
                self._forget_inbound(stream)
        except Refusal as refusal:
            self._refuse(stream.peer, refusal)
            stream.abort()
            if refusal.severity is Severity.REJECT and stream.peer not in self.members:
                self.cut_short(stream.peer)

    def cut_short(self, peer: PeerId) -> None:
        """A peer has sent what no correct peer sends (SPEC R-2.14): its control streams to us end. A member may open
        others; a stranger loses every stream, and may not for a while."""
        if peer == self.transport.peer_id:
            return
        self.turn_away(peer)
        for stream in list(self._inbound.get(peer, ())):
            self._forget_inbound(stream)
            stream.abort()
        if peer not in self.members:
            self.transport.abort(peer)

    def _forget_inbound(self, stream: Stream) -> None:
        of_peer = self._inbound.get(stream.peer, set())
        of_peer.discard(stream)
        if not of_peer:
            self._inbound.pop(stream.peer, None)

    async def _read(self, stream: Stream) -> None:
        while stream in self._inbound.get(stream.peer, ()):  # what was received before it was cut short is not read
            patience = None if stream.peer in self.members else STRANGER_IDLE_SECONDS
            kind, length = await frames.receive_header(stream, max(packets.PAYLOAD_BYTES_MAX.values()), patience)
            packets.check_size(kind, length)
            payload = bytearray(length)
            await frames.receive_payload(stream, memoryview(payload), SEND_SECONDS)
            self.metrics.control_bytes_received += frames.HEADER_BYTES + length
            await self._on_frame(stream.peer, kind, bytes(payload))

    async def _on_frame(self, peer: PeerId, kind: int, payload: bytes) -> None:
        """Turn a frame into an event. A frame that cannot be read costs its sender the stream."""
        if peer in self.members:
            event = _event_of(peer, kind, payload)
        else:
            began = monotonic_seconds()
            event = _event_of(peer, kind, payload)
            self.charge_strangers(monotonic_seconds() - began)
        await self.post(event)


def _event_of(peer: PeerId, kind: int, payload: bytes) -> events.Event:
    """What a frame says. Raises Refusal."""
    if kind == FrameKind.ENVELOPE:
        return events.EnvelopeReceived(peer, decode_envelope(payload))
    if kind == FrameKind.CERTIFICATE:
        return events.CertificateReceived(peer, packets.decode_certificate(payload))
    if kind == FrameKind.WANT:
        return events.WantReceived(peer, packets.decode_want(payload))
    raise Refusal(Code.UNKNOWN_KIND, f"frame kind {kind} has no place on a control stream")
