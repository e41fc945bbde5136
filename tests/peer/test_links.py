"""Control links: what is wrong with a stream ends it and is named, and a link comes back whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from crowdsurf.peer import links as links_module
from crowdsurf.peer import packets
from crowdsurf.peer.bans import Bans
from crowdsurf.peer.links import Links
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind, Hello
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, StreamEnded
from crowdsurf.peer.transport.memory import MemoryNetwork, MemoryTransport
from crowdsurf.protocol import events, limits, wire
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Kind, Vote, Want
from tests.peer.shell import Inbox, key_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")

RUN = Digest(bytes(32))
ME, OTHER = key_of(0), key_of(1)


class Side:
    """One peer's links and what they tell."""

    def __init__(self, network: MemoryNetwork, peer: PeerId) -> None:
        self.transport: MemoryTransport = network.join(peer)
        self.inbox = Inbox()
        self.metrics = Metrics()
        self.bans = Bans()
        self.transport.refuse(self.bans)
        self.links = Links(
            self.transport, RUN, lambda _: ("/memory",), self.inbox.post, self.inbox.refuse, self.metrics, self.bans
        )

    async def close(self) -> None:
        await self.links.close()
        await self.transport.close()


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def me(network: MemoryNetwork) -> AsyncIterator[Side]:
    side = Side(network, ME.peer_id)
    await side.links.start()
    yield side
    await side.close()


@pytest.fixture
async def other(network: MemoryNetwork) -> AsyncIterator[MemoryTransport]:
    """A peer that speaks as it likes."""
    transport = network.join(OTHER.peer_id)
    yield transport
    await transport.close()


def vote(step: int = 0) -> bytes:
    return wire.pack(seal(OTHER, RUN, Slot(step, 0, Kind.VOTE, b""), Vote(bytes(32))).envelope)


async def stream_to(me: Side, other: MemoryTransport, run: Digest = RUN) -> Stream:
    stream = await other.open(me.transport.peer_id, packets.CONTROL_STREAM, 1.0)
    await packets.send_hello(stream, run, 1.0)
    return stream


async def is_over(stream: Stream) -> None:
    """The other side has ended the stream."""
    with pytest.raises(StreamEnded):
        await soon(stream.receive_into(memoryview(bytearray(1))))


async def test_messages_become_events(me: Side, other: MemoryTransport) -> None:
    stream = await stream_to(me, other)
    await frames.send_frame(stream, FrameKind.ENVELOPE, vote(7))
    await frames.send_frame(stream, FrameKind.WANT, wire.pack(Want((bytes(32),))))
    first, second = await me.inbox.event(), await me.inbox.event()
    assert isinstance(first, events.EnvelopeReceived)
    assert first.source == OTHER.peer_id
    assert first.envelope.step == 7
    assert second == events.WantReceived(OTHER.peer_id, (Digest(bytes(32)),))
    assert me.metrics.control_bytes_received == 2 * frames.HEADER_BYTES + len(vote(7)) + len(
        wire.pack(Want((bytes(32),)))
    )


BAD_FRAMES = [
    (99, b"", Code.UNKNOWN_KIND),
    (FrameKind.BLOB, b"x" * 40, Code.UNKNOWN_KIND),
    (FrameKind.HELLO, wire.pack(Hello(RUN)), Code.UNKNOWN_KIND),
    (FrameKind.END, b"", Code.UNKNOWN_KIND),
    (FrameKind.GET_MANIFEST, b"", Code.UNKNOWN_KIND),
    (FrameKind.ENVELOPE, bytes(limits.ENVELOPE_BYTES_MAX + 1), Code.OVERSIZED),
    (FrameKind.CERTIFICATE, bytes(limits.CERTIFICATE_BYTES_MAX + 1), Code.OVERSIZED),
    (FrameKind.WANT, bytes(packets.PAYLOAD_BYTES_MAX[FrameKind.WANT] + 1), Code.OVERSIZED),
    (FrameKind.ENVELOPE, b"", Code.MALFORMED),
    (FrameKind.ENVELOPE, b"\xc1garbage", Code.MALFORMED),
    (FrameKind.ENVELOPE, vote() + b"\0", Code.MALFORMED),
    (FrameKind.ENVELOPE, vote()[:-1], Code.MALFORMED),
    (FrameKind.CERTIFICATE, vote(), Code.MALFORMED),
    (FrameKind.WANT, wire.pack([[]]), Code.MALFORMED),
    (FrameKind.WANT, wire.pack([[b"short"]]), Code.MALFORMED),
]


@pytest.mark.parametrize(("kind", "payload", "code"), BAD_FRAMES)
async def test_a_bad_frame_is_named_and_ends_the_stream(
    me: Side, other: MemoryTransport, kind: int, payload: bytes, code: Code
) -> None:
    stream = await stream_to(me, other)
    sending = asyncio.create_task(frames.send_frame(stream, kind, payload))
    assert (await me.inbox.refusal()).code is code
    await is_over(stream)
    await asyncio.gather(sending, return_exceptions=True)
    assert me.inbox.events.empty()


async def test_another_spelling_of_a_message_is_refused(me: Side, other: MemoryTransport) -> None:
    stream = await stream_to(me, other)
    canonical = wire.pack(Want((bytes(32),)))
    assert canonical[0] == 0x91
    await frames.send_frame(stream, FrameKind.WANT, b"\xdc\x00\x01" + canonical[1:])
    assert (await me.inbox.refusal()).code is Code.NOT_CANONICAL
    await is_over(stream)


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (FrameKind.HELLO, wire.pack(Hello(bytes(31) + b"\1")), Code.WRONG_RUN),
        (FrameKind.HELLO, b"hello", Code.MALFORMED),
        (FrameKind.HELLO, bytes(65), Code.OVERSIZED),
        (FrameKind.ENVELOPE, wire.pack(Hello(RUN)), Code.UNKNOWN_KIND),
    ],
)
async def test_a_stream_begins_with_a_hello_of_this_run(
    me: Side, other: MemoryTransport, kind: int, payload: bytes, code: Code
) -> None:
    stream = await other.open(ME.peer_id, packets.CONTROL_STREAM, 1.0)
    await frames.send_frame(stream, kind, payload)
    assert (await me.inbox.refusal()).code is code
    await is_over(stream)


async def test_a_reader_waits_while_the_driver_is_busy_and_so_does_the_sender(
    network: MemoryNetwork, other: MemoryTransport
) -> None:
    side = Side(network, ME.peer_id)
    small: asyncio.Queue[events.Event] = asyncio.Queue(1)
    side.links.post = small.put
    await side.links.start()
    stream = await stream_to(side, other)
    payload = wire.pack(Want(tuple(bytes(32) for _ in range(200))))

    async def flood() -> None:
        for _ in range(400):
            await frames.send_frame(stream, FrameKind.WANT, payload)

    flooding = asyncio.create_task(flood())
    await until(small.full)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not flooding.done()
    assert small.qsize() == 1
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    await side.close()


async def test_what_is_queued_before_there_is_a_connection_is_sent(network: MemoryNetwork, me: Side) -> None:
    me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote(3))
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    event = await them.inbox.event()
    assert isinstance(event, events.EnvelopeReceived)
    assert event.envelope.step == 3
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    await until(lambda: me.metrics.control_bytes_sent == frames.HEADER_BYTES + len(vote(3)))
    assert me.links.connected() == {OTHER.peer_id}
    await them.close()


async def test_a_broken_link_is_noticed_and_comes_back(
    network: MemoryNetwork, me: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "PAUSE_SECONDS_MIN", 0.001)
    await me.links.keep([OTHER.peer_id])
    for step in range(3):
        them = Side(network, OTHER.peer_id)
        await them.links.start()
        assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
        me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote(step))
        event = await them.inbox.event()
        assert isinstance(event, events.EnvelopeReceived)
        assert event.envelope.step == step
        network.kill(OTHER.peer_id)
        assert await me.inbox.event() == events.PeerGone(OTHER.peer_id)
        assert me.links.connected() == set()
        await them.close()
    await until(lambda: not me.transport._table._streams)


async def test_who_comes_back_is_linked_to_at_once(
    network: MemoryNetwork, me: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may be shorter than the pause that has grown while it was away."""
    monkeypatch.setattr(links_module, "PAUSE_SECONDS_MIN", 0.001)
    monkeypatch.setattr(links_module, "PAUSE_SECONDS_MAX", 3600.0)
    monkeypatch.setattr(links_module, "PAUSE_GROWTH", 1e9)
    asked = asyncio.Semaphore(0)
    me.links.addresses = lambda _: asked.release() or ("/memory",)
    await me.links.keep([OTHER.peer_id])
    for _ in range(2):
        await soon(asked.acquire())
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    assert not me.links.connected()
    await them.links.keep([ME.peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    await them.close()


async def test_a_peer_that_takes_connections_but_no_hello_costs_no_streams(
    network: MemoryNetwork, me: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = asyncio.Semaphore(0)

    async def fail(stream: Stream, *_: object, **__: object) -> None:
        tries.release()
        raise StreamEnded("not today")

    them = network.join(OTHER.peer_id)
    await them.serve(packets.CONTROL_STREAM, lambda stream: stream.receive_into(memoryview(bytearray(1))))
    monkeypatch.setattr(links_module, "PAUSE_SECONDS_MIN", 0.001)
    monkeypatch.setattr(links_module, "PAUSE_SECONDS_MAX", 0.001)
    monkeypatch.setattr(frames, "send_frame", fail)
    await me.links.keep([OTHER.peer_id])
    for _ in range(20):
        await soon(tries.acquire())
    assert sum(len(streams) for streams in me.transport._table._streams.values()) <= 1
    assert me.inbox.events.empty()
    await them.close()


async def test_a_full_queue_drops_its_oldest_messages(network: MemoryNetwork, me: Side) -> None:
    for number in range(links_module.QUEUED_FRAMES_MAX + 5):
        me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote(number))
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    steps = []
    for _ in range(links_module.QUEUED_FRAMES_MAX):
        event = await them.inbox.event()
        assert isinstance(event, events.EnvelopeReceived)
        steps.append(event.envelope.step)
    assert steps == list(range(5, links_module.QUEUED_FRAMES_MAX + 5))
    await them.close()


async def test_a_queue_is_bounded_in_bytes_too(me: Side) -> None:
    large = bytes(limits.CERTIFICATE_BYTES_MAX)
    for _ in range(200):
        me.links.send(OTHER.peer_id, FrameKind.CERTIFICATE, large)
    link = me.links._links[OTHER.peer_id]
    assert sum(len(payload) for _, payload in link._queue) <= links_module.QUEUED_BYTES_MAX
    assert link._queued_bytes == sum(len(payload) for _, payload in link._queue)


async def test_it_is_known_who_has_a_link_to_us(me: Side, other: MemoryTransport) -> None:
    first, second = await stream_to_me_and_heard(me, other), await stream_to_me_and_heard(me, other)
    assert me.links.listening_to() == {OTHER.peer_id}
    first.abort()
    await frames.send_frame(second, FrameKind.ENVELOPE, vote())
    await me.inbox.event()
    assert me.links.listening_to() == {OTHER.peer_id}
    await frames.send_frame(second, 99)
    await me.inbox.refusal()
    await until(lambda: me.links.listening_to() == set())


async def stream_to_me_and_heard(me: Side, other: MemoryTransport) -> Stream:
    stream = await stream_to(me, other)
    await frames.send_frame(stream, FrameKind.ENVELOPE, vote())
    await me.inbox.event()
    return stream


async def test_links_are_kept_to_contacts_only(network: MemoryNetwork, me: Side) -> None:
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    await me.links.keep([OTHER.peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    for number in range(2, 200):
        me.links.send(key_of(number).peer_id, FrameKind.ENVELOPE, vote())
    await me.links.keep([OTHER.peer_id])
    assert list(me.links._links) == [OTHER.peer_id]
    await me.links.keep([])
    await until(lambda: not me.transport._table._streams)
    await them.close()


async def test_who_is_no_contact_any_more_still_gets_what_was_queued(network: MemoryNetwork, me: Side) -> None:
    """A peer that has left waits for one thing: the certificate that says so."""
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    await me.links.keep([OTHER.peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    for step in range(50):
        me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote(step))
    await me.links.keep([])
    assert not me.links._links
    for step in range(50):
        event = await them.inbox.event()
        assert isinstance(event, events.EnvelopeReceived)
        assert event.envelope.step == step
    await them.close()


async def test_flushing_waits_for_what_is_queued_but_not_for_the_dead(network: MemoryNetwork, me: Side) -> None:
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    await me.links.keep([OTHER.peer_id, key_of(2).peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    for _ in range(50):
        me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote())
        me.links.send(key_of(2).peer_id, FrameKind.ENVELOPE, vote())
    await soon(me.links.flush(60.0))
    assert me.metrics.control_bytes_sent == 50 * (frames.HEADER_BYTES + len(vote()))
    await them.close()


async def test_a_refusal_is_not_shared_between_streams_of_a_member(me: Side, other: MemoryTransport) -> None:
    me.links.members = {OTHER.peer_id}
    good, bad = await stream_to(me, other), await stream_to(me, other)
    await frames.send_frame(bad, 99)
    assert isinstance(await me.inbox.refusal(), Refusal)
    await frames.send_frame(good, FrameKind.ENVELOPE, vote())
    assert isinstance(await me.inbox.event(), events.EnvelopeReceived)


async def test_a_stranger_that_sends_garbage_loses_every_stream_and_is_turned_away(
    me: Side, other: MemoryTransport
) -> None:
    turned_away: list[PeerId] = []
    me.links.turn_away = turned_away.append
    good, bad = await stream_to_me_and_heard(me, other), await stream_to(me, other)
    await frames.send_frame(bad, 99)
    assert (await me.inbox.refusal()).code is Code.UNKNOWN_KIND
    await is_over(good)
    await is_over(bad)
    assert turned_away == [OTHER.peer_id]


async def test_who_is_cut_short_is_heard_no_more_but_a_member_may_come_back(me: Side, other: MemoryTransport) -> None:
    me.links.members = {OTHER.peer_id}
    stream = await stream_to_me_and_heard(me, other)
    me.links.cut_short(OTHER.peer_id)
    await is_over(stream)
    assert me.links.listening_to() == set()
    await stream_to_me_and_heard(me, other)
    assert me.links.listening_to() == {OTHER.peer_id}


async def test_what_was_received_before_a_stream_was_cut_short_is_not_read(
    me: Side, other: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport may have read ahead."""
    stream = await stream_to_me_and_heard(me, other)
    (inbound,) = me.links._inbound[OTHER.peer_id]
    monkeypatch.setattr(inbound, "abort", lambda: None)
    posting, may_post = asyncio.Event(), asyncio.Event()

    async def post(event: events.Event) -> None:
        posting.set()
        await may_post.wait()
        await me.inbox.post(event)

    me.links.post = post
    for _ in range(2):
        await frames.send_frame(stream, FrameKind.ENVELOPE, vote())
    await soon(posting.wait())
    me.links._forget_inbound(inbound)
    may_post.set()
    await is_over(stream)
    assert me.inbox.events.qsize() == 1


async def test_reading_what_a_stranger_sends_is_charged_to_strangers(me: Side, other: MemoryTransport) -> None:
    charged: list[float] = []
    me.links.charge_strangers = charged.append
    await stream_to_me_and_heard(me, other)
    assert len(charged) == 1
    me.links.members = {OTHER.peer_id}
    await stream_to_me_and_heard(me, other)
    assert len(charged) == 1


async def test_a_stream_that_says_nothing_is_kept_for_members_only(
    network: MemoryNetwork, me: Side, other: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "STRANGER_IDLE_SECONDS", 0.01)
    me.links.members = {OTHER.peer_id}
    stranger = network.join(key_of(2).peer_id)
    for transport in (other, stranger):
        await stream_to(me, transport)
    await until(lambda: not me.transport._table.has_open(stranger.peer_id))
    assert me.links.listening_to() == {OTHER.peer_id}
    await stranger.close()


# --- bans --------------------------------------------------------------------------------------------------


class Disconnects:
    """Notes whom a transport disconnects, and what was still open then."""

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: asyncio.Queue[tuple[PeerId, bool]] = asyncio.Queue()
        self.fails = False
        table, disconnect = side.transport._table, side.transport.disconnect

        async def note(peer: PeerId) -> None:
            self.seen.put_nowait((peer, table.has_open(peer)))
            await disconnect(peer)
            if self.fails:
                raise WorldError("the network process does not answer")

        monkeypatch.setattr(side.transport, "disconnect", note)


@pytest.fixture
async def linked(network: MemoryNetwork, me: Side) -> AsyncIterator[Side]:
    """Somebody with links to us, as we have links to it."""
    them = Side(network, OTHER.peer_id)
    await them.links.start()
    await me.links.keep([OTHER.peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    await them.links.keep([ME.peer_id])
    await until(lambda: me.links.listening_to() and them.links.listening_to())
    assert await them.inbox.event() == events.PeerSeen(ME.peer_id)
    yield them
    await them.close()


@pytest.mark.parametrize("is_leaving", [False, True])
async def test_a_banned_peer_still_hears_why_and_says_nothing_any_more(
    me: Side, linked: Side, is_leaving: bool
) -> None:
    stream = await stream_to(me, linked.transport)
    for step in range(50):
        me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote(step))
    if is_leaving:
        await me.links.keep([])  # the roster changed before the ban was carried out
    me.links.ban([OTHER.peer_id])
    with pytest.raises(StreamEnded):
        await frames.send_frame(stream, FrameKind.ENVELOPE, vote())
    await until(lambda: me.links.listening_to() == set())
    heard = 0
    while heard < 50:
        event = await linked.inbox.event()
        if isinstance(event, events.EnvelopeReceived):
            assert event.envelope.step == heard
            heard += 1
    assert not me.links._links
    assert me.inbox.events.empty()


async def test_nothing_is_sent_to_a_banned_peer_and_none_of_its_streams_is_read(
    me: Side, linked: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "RETIRE_SECONDS", 0.0)
    disconnects = Disconnects(me, monkeypatch)
    me.links.ban([OTHER.peer_id])
    me.links.send(OTHER.peer_id, FrameKind.ENVELOPE, vote())
    await me.links.keep([OTHER.peer_id, key_of(2).peer_id])
    assert list(me.links._links) == [key_of(2).peer_id]
    await soon(disconnects.seen.get())
    with pytest.raises(StreamEnded):
        await stream_to(me, linked.transport)
    assert me.links.listening_to() == set()
    assert me.links.connected() == set()
    assert me.inbox.events.empty()
    assert me.inbox.refusals.empty()


async def test_a_banned_peer_that_reads_nothing_is_cut_off_too(
    me: Side, other: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "RETIRE_SECONDS", 0.01)
    disconnects = Disconnects(me, monkeypatch)
    stopped = asyncio.Event()

    async def read_nothing(stream: Stream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await other.serve(packets.CONTROL_STREAM, read_nothing)
    await me.links.keep([OTHER.peer_id])
    assert await me.inbox.event() == events.PeerSeen(OTHER.peer_id)
    for _ in range(20):
        me.links.send(OTHER.peer_id, FrameKind.CERTIFICATE, bytes(limits.CERTIFICATE_BYTES_MAX))
    me.links.ban([OTHER.peer_id])
    assert await soon(disconnects.seen.get()) == (OTHER.peer_id, False)
    assert not me.transport._table._streams


async def test_a_ban_is_carried_out_once_and_for_each(me: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    disconnects = Disconnects(me, monkeypatch)
    disconnects.fails = True
    first, second, third = (key_of(number).peer_id for number in (2, 3, 4))
    me.links.ban([first, second])
    me.links.ban([first, second, third])
    me.links.ban([first, second, third])
    assert [await soon(disconnects.seen.get()) for _ in range(3)] == [(first, False), (second, False), (third, False)]
    await until(lambda: not me.links._retiring)
    assert disconnects.seen.empty()


async def test_links_can_be_closed_in_the_middle_of_a_ban(me: Side, linked: Side) -> None:
    me.links.ban([OTHER.peer_id])
    await soon(me.links.close())
    assert not me.transport._table.has_open(OTHER.peer_id)
