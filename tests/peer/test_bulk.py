"""Pushed parts: straight into their place if they are expected, and of no cost to anybody else if they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from crowdsurf.peer import bulk as bulk_module
from crowdsurf.peer import packets
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.bulk import QUEUED_BLOBS_MAX, Bulk
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, StreamEnded
from crowdsurf.peer.transport.memory import PIPE_BYTES_MAX, MemoryNetwork, MemoryTransport
from crowdsurf.protocol import events
from crowdsurf.protocol.effects import ExpectPart
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest
from tests.peer.shell import PATIENCE_SECONDS, Inbox, key_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")

RUN = Digest(bytes(32))
ME, OTHER = key_of(0).peer_id, key_of(1).peer_id
ELEMENTS = 2_500_000
PART_BYTES = 5_000_000  # of two parts; more than a pipe holds and than is digested in the event loop
assert PART_BYTES > PIPE_BYTES_MAX
assert PART_BYTES > bulk_module.DIGEST_IN_THREAD_BYTES

DATA = bytes(range(250)) * (PART_BYTES // 250)
NAME = blob_digest(DATA)


class Side:
    """One peer's bulk transfers and what they tell."""

    def __init__(self, network: MemoryNetwork, peer: PeerId, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.transport: MemoryTransport = network.join(peer)
        self.inbox = Inbox()
        self.metrics = Metrics()
        self.blobs = BlobStore(ELEMENTS, SegmentPool(1 << 20))
        self.bulk = Bulk(
            self.transport, RUN, self.blobs, self.inbox.post, self.inbox.refuse, self.metrics, patience_seconds
        )

    def hold(self, step: int, *pieces: bytes) -> list[Digest]:
        """Have a gradient."""
        whole = b"".join(pieces)
        self.blobs.gradient(step, len(pieces)).view[: len(whole)] = whole
        names = tuple(blob_digest(piece) for piece in pieces)
        self.blobs.add_own_parts(step, names)
        return list(names)

    def expect(self, step: int, digest: Digest, member: int = 1) -> None:
        self.blobs.expect_part(ExpectPart(step, 0, 2, member, digest, PART_BYTES))

    def content(self, digest: Digest) -> bytes | None:
        with self.blobs.lend(digest) as view:
            return bytes(view) if view is not None else None

    async def close(self) -> None:
        await self.bulk.close()
        await self.transport.close()
        self.blobs.close()


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def me(network: MemoryNetwork) -> AsyncIterator[Side]:
    side = Side(network, ME)
    await side.bulk.start()
    yield side
    await side.close()


@pytest.fixture
async def them(network: MemoryNetwork) -> AsyncIterator[Side]:
    side = Side(network, OTHER)
    await side.bulk.start()
    yield side
    await side.close()


async def stream_to_me(them: Side) -> Stream:
    stream = await them.transport.open(ME, packets.BULK_STREAM, 1.0)
    await packets.send_hello(stream, RUN, 1.0)
    return stream


def push(stream: Stream, data: bytes, step: int = 0, digest: Digest | None = None) -> asyncio.Task[None]:
    """Send a part in the background: nobody may want it."""
    head = packets.PUSH_HEAD.pack(step, digest or blob_digest(data))
    return asyncio.create_task(frames.send_frame(stream, FrameKind.PUSH, head, data))


async def is_over(stream: Stream, *sending: asyncio.Task[None]) -> None:
    with pytest.raises(StreamEnded):
        await soon(stream.receive_into(memoryview(bytearray(1))))
    await asyncio.gather(*sending, return_exceptions=True)


async def test_an_expected_part_arrives_and_is_counted(me: Side, them: Side) -> None:
    (name, _) = them.hold(0, DATA, DATA[::-1])
    me.expect(0, name)
    them.bulk.push(ME, 0, name)
    assert await me.inbox.event() == events.BlobArrived(name)
    assert me.content(name) == DATA
    assert me.metrics.part_bytes_received == PART_BYTES
    assert them.metrics.part_bytes_sent == PART_BYTES


async def test_a_part_waits_in_its_socket_until_it_is_expected(me: Side, them: Side) -> None:
    names = them.hold(0, DATA, DATA[::-1])
    for name in names:
        them.bulk.push(ME, 0, name)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert them.metrics.part_bytes_sent == 0
    assert me.inbox.events.empty()
    me.expect(0, names[0], member=0)
    assert await me.inbox.event() == events.BlobArrived(names[0])
    me.expect(0, names[1], member=1)
    assert await me.inbox.event() == events.BlobArrived(names[1])


async def test_the_same_part_in_another_step_waits_until_it_is_expected_there(me: Side, them: Side) -> None:
    """It would else be taken for one that is here, and have no place among the inputs of its own step."""
    for step in (0, 1):
        (name, _) = them.hold(step, DATA, DATA[::-1])
        them.bulk.push(ME, step, name)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert me.inbox.events.empty()
        me.expect(step, name)
        assert await me.inbox.event() == events.BlobArrived(name)
        assert me.metrics.part_bytes_received == (step + 1) * PART_BYTES
        for side in (me, them):
            side.blobs.keep_inputs_secret(step)


async def test_a_part_nobody_asked_for_is_refused_when_patience_ends(network: MemoryNetwork, them: Side) -> None:
    side = Side(network, ME, patience_seconds=0.0)
    await side.bulk.start()
    stream = await stream_to_me(them)
    sending = push(stream, DATA)
    assert (await side.inbox.refusal()).code is Code.UNEXPECTED_BLOB
    await is_over(stream, sending)
    await side.close()


async def test_wrong_bytes_are_refused_and_the_right_ones_still_welcome(me: Side, them: Side) -> None:
    me.expect(0, NAME)
    stream = await stream_to_me(them)
    sending = push(stream, bytes(PART_BYTES), digest=NAME)
    assert (await me.inbox.refusal()).code is Code.WRONG_DIGEST
    await is_over(stream, sending)
    assert me.content(NAME) is None
    them.hold(0, DATA, DATA)
    them.bulk.push(ME, 0, NAME)
    assert await me.inbox.event() == events.BlobArrived(NAME)


@pytest.mark.parametrize("nbytes", [1, PART_BYTES - 1, PART_BYTES + 1, 3 * PART_BYTES])
async def test_a_wrong_size_is_refused_before_its_bytes_are_taken(me: Side, them: Side, nbytes: int) -> None:
    me.expect(0, NAME)
    stream = await stream_to_me(them)
    sending = push(stream, bytes(nbytes), digest=NAME)
    assert (await me.inbox.refusal()).code is Code.UNEXPECTED_BLOB
    await is_over(stream, sending)


@pytest.mark.parametrize(
    ("kind", "payload"), [(FrameKind.BLOB, bytes(60)), (FrameKind.ENVELOPE, bytes(60)), (FrameKind.PUSH, bytes(40))]
)
async def test_other_frames_have_no_place_on_a_bulk_stream(
    me: Side, them: Side, kind: FrameKind, payload: bytes
) -> None:
    stream = await stream_to_me(them)
    await frames.send_frame(stream, kind, payload)
    assert (await me.inbox.refusal()).code is Code.UNKNOWN_KIND
    await is_over(stream)


async def test_a_stream_of_another_run_is_refused(me: Side, them: Side) -> None:
    stream = await them.transport.open(ME, packets.BULK_STREAM, 1.0)
    await packets.send_hello(stream, blob_digest(b"another run"), 1.0)
    assert (await me.inbox.refusal()).code is Code.WRONG_RUN
    await is_over(stream)


async def test_what_is_here_already_or_comes_too_late_is_skipped(me: Side, them: Side) -> None:
    me.expect(3, NAME)
    stream = await stream_to_me(them)
    await push(stream, DATA, step=3)
    assert await me.inbox.event() == events.BlobArrived(NAME)
    await push(stream, DATA, step=3)
    assert await me.inbox.event() == events.BlobArrived(NAME)  # somebody may wait for the same bytes as something else
    me.blobs.retire(5)
    late = DATA[::-1]
    await push(stream, late, step=4)
    me.blobs.expect_part(ExpectPart(5, 0, 2, 1, NAME, PART_BYTES))
    await push(stream, DATA, step=5)
    assert await me.inbox.event() == events.BlobArrived(NAME)
    assert me.inbox.events.empty()
    assert me.inbox.refusals.empty()
    assert me.metrics.part_bytes_received == 2 * PART_BYTES


async def test_two_pushes_of_one_part_at_once_are_received_once(me: Side, them: Side) -> None:
    me.expect(0, NAME)
    streams = [await stream_to_me(them), await stream_to_me(them)]
    await asyncio.gather(*(push(stream, DATA) for stream in streams))
    assert await me.inbox.event() == events.BlobArrived(NAME)
    assert me.content(NAME) == DATA
    assert me.inbox.events.empty()


async def begin(transport: MemoryTransport, step: int = 0) -> Stream:
    """Begin to push NAME, and stop."""
    stream = await transport.open(ME, packets.BULK_STREAM, 1.0)
    await packets.send_hello(stream, RUN, 1.0)
    head = packets.PUSH_HEAD.pack(step, NAME)
    await stream.send(bytes([FrameKind.PUSH]) + (len(head) + PART_BYTES).to_bytes(4, "big"), head, bytes(1))
    return stream


@pytest.mark.parametrize("author", [OTHER, None])
async def test_a_push_that_never_ends_keeps_no_other_away(
    network: MemoryNetwork, me: Side, them: Side, author: PeerId | None
) -> None:
    """Digests are public: anybody can begin to push the bytes of somebody else, before they are expected even."""
    stranger = network.join(key_of(2).peer_id)
    held = [await begin(stranger) for _ in range(2)]
    me.blobs.expect_part(ExpectPart(0, 0, 2, 1, NAME, PART_BYTES), author)
    await until(lambda: NAME in me.blobs._receiving)
    them.hold(0, DATA, DATA)
    them.bulk.push(ME, 0, NAME)
    assert await me.inbox.event() == events.BlobArrived(NAME)
    assert me.content(NAME) == DATA
    assert not me.blobs._received_beside
    await is_over(held[0])
    await stranger.close()


async def test_each_author_of_the_same_bytes_is_heard_and_others_only_if_none_is_known(
    network: MemoryNetwork, me: Side, them: Side
) -> None:
    """A liar can commit to the digest of somebody else's part, and be late with it."""
    liars = [network.join(key_of(number).peer_id) for number in (2, 3)]
    me.blobs.expect_part(ExpectPart(0, 0, 2, 0, NAME, PART_BYTES), liars[0].peer_id)
    me.blobs.expect_part(ExpectPart(0, 0, 2, 1, NAME, PART_BYTES), OTHER)
    await begin(liars[0])
    await until(lambda: NAME in me.blobs._receiving)
    with me.blobs.receiving_beside(NAME, liars[1].peer_id) as may_push:
        assert not may_push
    with me.blobs.receiving_beside(NAME, OTHER) as first, me.blobs.receiving_beside(NAME, OTHER) as second:
        assert (first, second) == (True, False)
    them.hold(0, DATA, DATA)
    them.bulk.push(ME, 0, NAME)
    assert await me.inbox.event() == events.BlobArrived(NAME)
    for liar in liars:
        await liar.close()


async def test_a_peer_that_vanishes_in_the_middle_leaves_the_place_free(me: Side, them: Side) -> None:
    me.expect(0, NAME)
    stream = await stream_to_me(them)
    head = packets.PUSH_HEAD.pack(0, NAME)
    await stream.send(bytes([FrameKind.PUSH]) + (len(head) + PART_BYTES).to_bytes(4, "big"), head, DATA[:1000])
    await until(lambda: NAME in me.blobs._receiving)
    stream.abort()
    await until(lambda: NAME not in me.blobs._receiving)
    them.hold(0, DATA, DATA)
    them.bulk.push(ME, 0, NAME)
    assert await me.inbox.event() == events.BlobArrived(NAME)


async def test_what_was_retired_before_its_turn_is_not_sent(me: Side, them: Side) -> None:
    first, second = them.hold(0, DATA, DATA[::-1])
    them.bulk.push(ME, 0, first)
    them.bulk.push(ME, 0, second)
    await until(lambda: not them.bulk._senders[ME]._queue or len(them.bulk._senders[ME]._queue) == 1)
    them.blobs.retire(1)
    me.expect(0, first, member=0)
    me.expect(0, second, member=1)
    assert await me.inbox.event() == events.BlobArrived(first)
    await until(lambda: not them.bulk._senders[ME]._queue)
    assert me.inbox.events.empty()


async def test_the_queue_is_bounded_and_drops_the_oldest(them: Side) -> None:
    names = [blob_digest(number.to_bytes(4, "big")) for number in range(QUEUED_BLOBS_MAX + 3)]
    for name in names:
        them.bulk.push(ME, 0, name)
    queue = them.bulk._senders[ME]._queue
    assert [digest for _, digest in queue] == names[3:]


async def test_nobody_there_empties_the_queue_and_the_next_push_tries_again(network: MemoryNetwork, them: Side) -> None:
    (name, _) = them.hold(0, DATA, DATA[::-1])
    them.bulk.push(ME, 0, name)
    await until(lambda: not them.bulk._senders[ME]._queue)
    side = Side(network, ME)
    await side.bulk.start()
    side.expect(0, name)
    them.bulk.push(ME, 0, name)
    assert await side.inbox.event() == events.BlobArrived(name)
    await side.close()


async def test_the_first_push_after_the_receiver_restarted_is_not_lost(network: MemoryNetwork, them: Side) -> None:
    names = them.hold(0, DATA, DATA[::-1])
    for name in names:
        side = Side(network, ME)
        await side.bulk.start()
        side.expect(0, name)
        them.bulk.push(ME, 0, name)
        assert await side.inbox.event() == events.BlobArrived(name)
        network.kill(ME)
        await side.close()


async def test_senders_to_peers_that_left_end_with_their_streams(me: Side, them: Side) -> None:
    (name, _) = them.hold(0, DATA, DATA[::-1])
    me.expect(0, name)
    them.bulk.push(ME, 0, name)
    await me.inbox.event()
    assert them.transport._table._streams
    await them.bulk.keep(set())
    assert not them.bulk._senders
    assert not them.transport._table._streams
    await until(lambda: not me.transport._table._tasks)


async def test_a_banned_peer_stops_in_the_middle_of_a_part_and_gets_none(me: Side, them: Side) -> None:
    banned: set[PeerId] = set()
    me.transport.refuse(banned)
    names = me.hold(0, bytes(PART_BYTES), DATA[::-1])
    them.expect(0, names[0])
    me.bulk.push(OTHER, 0, names[0])
    assert await them.inbox.event() == events.BlobArrived(names[0])
    me.blobs.expect_part(ExpectPart(1, 0, 2, 1, NAME, PART_BYTES))
    stream = await stream_to_me(them)
    head = packets.PUSH_HEAD.pack(1, NAME)
    await stream.send(bytes([FrameKind.PUSH]) + (len(head) + PART_BYTES).to_bytes(4, "big"), head, DATA[:1000])
    await until(lambda: NAME in me.blobs._receiving)
    banned.add(OTHER)
    me.transport.abort(OTHER)
    await until(lambda: NAME not in me.blobs._receiving)
    them.expect(0, names[1], member=0)
    me.bulk.push(OTHER, 0, names[1])  # on the stream that was aborted, then on a new one that is not opened
    await until(lambda: not me.bulk._senders[OTHER]._queue)
    assert not me.transport._table._streams
    assert not them.blobs.holds(names[1])
    assert me.inbox.refusals.empty()
