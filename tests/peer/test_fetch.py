"""Questions and answers: every answer proves itself, and a server or asker that lies or dawdles hurts nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crowdsurf.peer import fetch as fetch_module
from crowdsurf.peer import packets
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.daemon import _stored_certificates
from crowdsurf.peer.fetch import SERVED_PER_PEER_MAX, Fetcher, FetchServer
from crowdsurf.peer.journal import Journal
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind, StateHeader
from crowdsurf.peer.state_store import StateStore
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, StreamTimeout
from crowdsurf.peer.transport.memory import MemoryNetwork, MemoryTransport
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.effects import ExpectAggregate
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, blob_digest
from crowdsurf.protocol.manifest import encode_manifest, run_id_of
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.recovery import RecordType
from tests.peer.shell import Inbox, key_of, manifest_of, soon, until
from tests.protocol.test_recovery import header

pytestmark = pytest.mark.usefixtures("tidy")

ME, OTHER = key_of(0).peer_id, key_of(1).peer_id
MANIFEST = manifest_of([key_of(0)])
ELEMENTS = 200_000
NBYTES = 4 * ELEMENTS
DATA = bytes(range(200)) * (NBYTES // 200)
NAME = blob_digest(DATA)
STATE = DATA * 7  # more than one chunk
CERTIFICATES = [Certificate(header(step), ((0, 0, bytes(64)),)) for step in range(100)]


def large_certificate(step: int) -> Certificate:
    """As in a group of 256, with a projection of everything."""
    names = tuple(bytes([number]) * 32 for number in range(256))
    fields = {"parts": names, "nonces": names, "projections": names}
    votes = tuple((index, 0, bytes(64)) for index in range(256))
    return Certificate(msgspec.structs.replace(header(step), **fields), votes)


LARGE = wire.pack(large_certificate(0))


async def chain_from(first_step: int) -> Sequence[Certificate]:
    return CERTIFICATES[max(0, first_step) :][: limits.CERTIFICATES_PER_RESPONSE_MAX]


class Server:
    """A peer that answers as it should."""

    def __init__(self, transport: MemoryTransport, folder: Path) -> None:
        self.transport = transport
        self.inbox = Inbox()
        self.metrics = Metrics()
        self.blobs = BlobStore(ELEMENTS, SegmentPool(1 << 20))
        self.store = StateStore(folder, ELEMENTS)
        self.state_step: int | None = None
        self.server = FetchServer(
            MANIFEST, self.blobs, self.store, chain_from, lambda: self.state_step, self.inbox.refuse, self.metrics
        )


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def transport(network: MemoryNetwork) -> AsyncIterator[MemoryTransport]:
    transport = network.join(ME)
    yield transport
    await transport.close()


@pytest.fixture
async def other(network: MemoryNetwork) -> AsyncIterator[MemoryTransport]:
    transport = network.join(OTHER)
    yield transport
    await transport.close()


@pytest.fixture
async def server(other: MemoryTransport, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(other, tmp_path)
    await other.serve(packets.FETCH_STREAM, server.server.serve)
    yield server
    await other.close()
    server.blobs.close()


@pytest.fixture
def blobs() -> Any:
    """Ours, which expect NAME."""
    store = BlobStore(ELEMENTS, SegmentPool(1 << 20))
    store.expect_aggregate(ExpectAggregate(0, 0, 1, NAME, NBYTES))
    yield store
    store.close()


@pytest.fixture
def fetcher(transport: MemoryTransport) -> Fetcher:
    return Fetcher(transport)


async def liar(other: MemoryTransport, answer: Callable[[Stream], Awaitable[None]]) -> None:
    """Serve fetch streams with an answer of the test's own."""

    async def serve(stream: Stream) -> None:
        await frames.receive_frame(stream, 64)
        await answer(stream)

    await other.serve(packets.FETCH_STREAM, serve)


async def refused(question: Awaitable[Any]) -> Code:
    with pytest.raises(Refusal) as caught:
        await soon(question)
    return caught.value.code


# --- honest answers ----------------------------------------------------------------------------------------


async def test_the_manifest(server: Server, fetcher: Fetcher) -> None:
    assert await fetcher.manifest(OTHER, run_id_of(MANIFEST)) == MANIFEST


async def test_a_chain_comes_in_answers_of_bounded_length(server: Server, fetcher: Fetcher) -> None:
    first = await fetcher.chain(OTHER, 0)
    assert [certificate.header.step for certificate in first] == list(range(limits.CERTIFICATES_PER_RESPONSE_MAX))
    assert len(await fetcher.chain(OTHER, 90)) == 10
    assert await fetcher.chain(OTHER, 100) == ()


async def test_a_blob_from_memory_from_disk_and_from_nowhere(
    server: Server, fetcher: Fetcher, blobs: BlobStore
) -> None:
    assert not await fetcher.blob(OTHER, NAME, blobs)
    server.blobs.gradient(0, 1).view[:] = DATA
    server.blobs.add_own_parts(0, (NAME,))
    assert await fetcher.blob(OTHER, NAME, blobs)
    server.blobs.retire(1)
    blobs.retire(1)
    server.store.save_update(0, (NAME,), memoryview(DATA))
    blobs.expect_aggregate(ExpectAggregate(1, 0, 1, NAME, NBYTES))
    assert await fetcher.blob(OTHER, NAME, blobs)
    with blobs.lend(NAME) as view:
        assert view == DATA


async def test_a_rotten_blob_on_disk_is_not_served(server: Server, fetcher: Fetcher, blobs: BlobStore) -> None:
    server.store.save_update(0, (NAME,), memoryview(bytes(NBYTES)))
    assert server.store.has_part(NAME) == NBYTES
    assert not await fetcher.blob(OTHER, NAME, blobs)


async def test_a_peer_that_withholds_says_that_it_has_no_bytes(
    server: Server, fetcher: Fetcher, blobs: BlobStore
) -> None:
    server.blobs.gradient(0, 1).view[:] = DATA
    server.blobs.add_own_parts(0, (NAME,))
    server.server.serves_blobs = lambda: False
    assert not await fetcher.blob(OTHER, NAME, blobs)
    assert await fetcher.manifest(OTHER, run_id_of(MANIFEST)) == MANIFEST


async def test_a_state_in_chunks_or_none(server: Server, fetcher: Fetcher) -> None:
    into = bytearray(len(STATE))
    assert await fetcher.state(OTHER, memoryview(into)) is None
    server.store.save_state(10, memoryview(STATE))
    server.state_step = 10
    assert await fetcher.state(OTHER, memoryview(into)) == 10
    assert into == STATE
    assert server.metrics.state_bytes_sent == len(STATE)
    server.store.drop_state(10)
    assert await fetcher.state(OTHER, memoryview(into)) is None


async def test_questions_end_in_order_and_leave_no_streams(server: Server, fetcher: Fetcher) -> None:
    for _ in range(50):
        await fetcher.chain(OTHER, 95)
        await fetcher.manifest(OTHER, run_id_of(MANIFEST))
    await until(lambda: not server.transport._table._streams)
    assert server.inbox.refusals.empty()
    assert server.server._turns == {}


async def test_many_askers_at_once_are_all_answered(network: MemoryNetwork, server: Server) -> None:
    transports = [network.join(key_of(number).peer_id) for number in range(2, 22)]
    questions = [Fetcher(transport).chain(OTHER, 50) for transport in transports for _ in range(3)]
    answers = await soon(asyncio.gather(*questions))
    assert {len(answer) for answer in answers} == {50}
    for transport in transports:
        await transport.close()


async def test_many_questions_of_one_peer_wait_their_turn(server: Server, fetcher: Fetcher) -> None:
    answers = await soon(asyncio.gather(*(fetcher.chain(OTHER, 99) for _ in range(40))))
    assert [len(answer) for answer in answers] == [1] * 40


async def test_a_peer_that_reads_nothing_keeps_only_itself_from_being_answered(
    network: MemoryNetwork, transport: MemoryTransport, server: Server
) -> None:
    server.store.save_state(10, memoryview(STATE))
    server.state_step = 10
    slow = []
    for _ in range(20):
        stream = await transport.open(OTHER, packets.FETCH_STREAM, 1.0)
        await frames.send_frame(stream, FrameKind.GET_STATE)
        slow.append(stream)
    await until(lambda: (turn := server.server._turns.get(ME)) is not None and turn.streams == 20)
    left = server.server._turn_of_strangers[FrameKind.GET_STATE]._value
    assert left >= fetch_module.SERVED_AT_ONCE_MAX - SERVED_PER_PEER_MAX
    third = network.join(key_of(2).peer_id)
    assert len(await soon(Fetcher(third).chain(OTHER, 99))) == 1
    for stream in slow:
        stream.abort()
    await third.close()


async def unread_states(network: MemoryNetwork, server: Server, numbers: range) -> list[MemoryTransport]:
    """Let strangers ask for as many states as they are answered, and read none."""
    server.store.save_state(10, memoryview(STATE))
    server.state_step = 10
    strangers = [network.join(key_of(number).peer_id) for number in numbers]
    for stranger in strangers:
        for _ in range(SERVED_PER_PEER_MAX):
            await frames.send_frame(await stranger.open(OTHER, packets.FETCH_STREAM, 1.0), FrameKind.GET_STATE)
    held = server.server._turn_of_strangers[FrameKind.GET_STATE]
    await until(lambda: server.metrics.state_bytes_sent == 0 and held.locked())
    return strangers


async def test_strangers_that_read_nothing_keep_neither_members_nor_small_answers_waiting(
    network: MemoryNetwork, server: Server, fetcher: Fetcher
) -> None:
    server.server.members = {ME}
    strangers = await unread_states(network, server, range(2, 2 + fetch_module.SERVED_AT_ONCE_MAX))
    into = bytearray(len(STATE))
    assert await soon(fetcher.state(OTHER, memoryview(into))) == 10
    assert into == STATE
    newcomer = network.join(key_of(50).peer_id)
    assert await soon(Fetcher(newcomer).manifest(OTHER, run_id_of(MANIFEST))) == MANIFEST
    assert len(await soon(Fetcher(newcomer).chain(OTHER, 99))) == 1
    for transport in (newcomer, *strangers):
        await transport.close()


async def test_a_question_whose_turn_does_not_come_is_not_kept(
    network: MemoryNetwork, server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = await unread_states(network, server, range(2, 2 + fetch_module.SERVED_AT_ONCE_MAX))
    monkeypatch.setattr(fetch_module, "TURN_SECONDS", 0.01)
    with pytest.raises(WorldError):
        await soon(fetcher.state(OTHER, memoryview(bytearray(len(STATE)))))
    assert ME not in server.server._turns
    for transport in strangers:
        await transport.close()


async def test_an_answer_as_a_whole_has_a_deadline(
    server: Server, transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.store.save_state(10, memoryview(STATE))
    server.state_step = 10
    monkeypatch.setattr(fetch_module, "transfer_seconds", lambda nbytes: 0.05 if nbytes == len(STATE) else 1000.0)
    stream = await transport.open(OTHER, packets.FETCH_STREAM, 1.0)
    await frames.send_frame(stream, FrameKind.GET_STATE)
    await until(lambda: server.server._turns)
    await until(lambda: not server.server._turns)


# --- bad questions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (99, b"", Code.UNKNOWN_KIND),
        (FrameKind.ENVELOPE, b"", Code.UNKNOWN_KIND),
        (FrameKind.BLOB, b"", Code.UNKNOWN_KIND),
        (FrameKind.GET_BLOB, bytes(31), Code.UNKNOWN_KIND),
        (FrameKind.GET_BLOB, bytes(33), Code.OVERSIZED),
        (FrameKind.GET_CHAIN, b"", Code.MALFORMED),
        (FrameKind.GET_CHAIN, wire.pack("text"), Code.MALFORMED),
        (FrameKind.GET_CHAIN, b"\xcd\x00\x01", Code.NOT_CANONICAL),
        (FrameKind.GET_CHAIN, bytes(10), Code.OVERSIZED),
        (FrameKind.GET_STATE, b"x", Code.OVERSIZED),
        (FrameKind.GET_MANIFEST, bytes(65), Code.OVERSIZED),
    ],
)
async def test_a_bad_question_is_named_and_ends_the_stream(
    transport: MemoryTransport, server: Server, kind: int, payload: bytes, code: Code
) -> None:
    stream = await transport.open(OTHER, packets.FETCH_STREAM, 1.0)
    await frames.send_frame(stream, kind, payload)
    assert (await server.inbox.refusal()).code is code
    with pytest.raises(WorldError):
        await soon(frames.receive_frame(stream, 1 << 20))


@pytest.mark.parametrize("first_step", [-1, -(2**63), 2**63])
async def test_a_chain_from_a_strange_step_is_answered_or_refused(
    fetcher: Fetcher, server: Server, first_step: int
) -> None:
    assert isinstance(await soon(fetcher.chain(OTHER, first_step)), tuple)


# --- servers that lie --------------------------------------------------------------------------------------


async def test_a_manifest_of_another_run_is_refused(other: MemoryTransport, fetcher: Fetcher) -> None:
    data = encode_manifest(manifest_of([key_of(0)], name="another"))
    await liar(other, lambda stream: frames.send_frame(stream, FrameKind.MANIFEST, data))
    assert await refused(fetcher.manifest(OTHER, run_id_of(MANIFEST))) is Code.WRONG_RUN


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (FrameKind.MANIFEST, b"", Code.MALFORMED),
        (FrameKind.MANIFEST, b"\x80", Code.MALFORMED),
        (FrameKind.STATE, b"", Code.UNKNOWN_KIND),
        (FrameKind.MANIFEST, bytes(limits.MANIFEST_BYTES_MAX + 1), Code.OVERSIZED),
    ],
)
async def test_a_bad_manifest_is_refused(
    other: MemoryTransport, fetcher: Fetcher, kind: int, payload: bytes, code: Code
) -> None:
    await liar(other, lambda stream: frames.send_frame(stream, kind, payload))
    assert await refused(fetcher.manifest(OTHER, run_id_of(MANIFEST))) is code


async def test_a_chain_without_end_is_cut(other: MemoryTransport, fetcher: Fetcher) -> None:
    async def endless(stream: Stream) -> None:
        while True:
            await frames.send_frame(stream, FrameKind.CERTIFICATE, wire.pack(CERTIFICATES[0]))

    await liar(other, endless)
    assert await refused(fetcher.chain(OTHER, 0)) is Code.OVERSIZED


async def test_a_chain_of_large_certificates_is_refused_before_it_takes_much_memory(
    other: MemoryTransport, fetcher: Fetcher
) -> None:
    """By their number alone these would be allowed."""
    sent_bytes = 0

    async def heavy(stream: Stream) -> None:
        nonlocal sent_bytes
        for _ in range(limits.CERTIFICATES_PER_RESPONSE_MAX):
            await frames.send_frame(stream, FrameKind.CERTIFICATE, LARGE)
            sent_bytes += len(LARGE)

    await liar(other, heavy)
    assert await refused(fetcher.chain(OTHER, 0)) is Code.OVERSIZED
    await until(lambda: not other._table._streams)
    assert sent_bytes <= limits.CHAIN_ANSWER_BYTES_MAX + 2 * len(LARGE)  # the rest stayed with the liar


async def test_what_has_no_place_in_one_answer_is_asked_for_again(
    network: MemoryNetwork, other: MemoryTransport, fetcher: Fetcher, tmp_path: Path
) -> None:
    past = [large_certificate(step) for step in range(50)]
    server = Server(other, tmp_path)

    async def from_step(first_step: int) -> Sequence[Certificate]:
        return past[first_step:]

    server.server._certificates = from_step
    await other.serve(packets.FETCH_STREAM, server.server.serve)
    answers: list[tuple[Certificate, ...]] = []
    while not answers or answers[-1]:
        answers.append(await soon(fetcher.chain(OTHER, sum(map(len, answers)))))
    assert [certificate for answer in answers for certificate in answer] == past
    assert len(answers) == 4  # the last one has nothing
    assert sum(len(wire.pack(certificate)) for certificate in answers[0]) <= limits.CHAIN_ANSWER_BYTES_MAX
    assert server.inbox.refusals.empty()


async def test_no_more_is_read_from_the_journal_than_one_answer_holds(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    for step in range(50):
        journal.append(RecordType.CERTIFICATE, wire.pack(large_certificate(step)))
    journal.close()
    found = _stored_certificates(tmp_path, 3)
    assert [certificate.header.step for certificate in found] == list(range(3, 3 + len(found)))
    nbytes = sum(len(wire.pack(certificate)) for certificate in found)
    assert limits.CHAIN_ANSWER_BYTES_MAX - len(LARGE) < nbytes <= limits.CHAIN_ANSWER_BYTES_MAX


async def test_certificates_are_read_one_by_one(other: MemoryTransport, fetcher: Fetcher) -> None:
    """Whoever reads no further has no more than one of them in memory."""
    sent = asyncio.Event()

    async def two(stream: Stream) -> None:
        await frames.send_frame(stream, FrameKind.CERTIFICATE, wire.pack(CERTIFICATES[0]))
        await sent.wait()
        await frames.send_frame(stream, FrameKind.END)

    await liar(other, two)
    async with fetcher.reading_chain(OTHER, 0) as reader:
        assert await soon(reader.next()) == CERTIFICATES[0]
        sent.set()
        assert await soon(reader.next()) is None
        assert not reader.may_be_more


async def test_a_chain_that_drips_has_one_deadline(
    other: MemoryTransport, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame comes in time, the answer as a whole does not."""
    drops = asyncio.Semaphore(1)

    async def drip(stream: Stream) -> None:
        while True:
            await drops.acquire()
            await frames.send_frame(stream, FrameKind.CERTIFICATE, wire.pack(CERTIFICATES[0]))

    await liar(other, drip)
    monkeypatch.setattr(fetch_module, "ANSWER_SECONDS", 0.2)
    asking = asyncio.create_task(fetcher.chain(OTHER, 0))
    await until(lambda: drops._value == 0)
    drops.release()
    with pytest.raises(StreamTimeout):
        await soon(asking)


@pytest.mark.parametrize("payload", [b"\xc1", b"", wire.pack([1, 2])])
async def test_a_chain_of_garbage_is_refused(other: MemoryTransport, fetcher: Fetcher, payload: bytes) -> None:
    await liar(other, lambda stream: frames.send_frame(stream, FrameKind.CERTIFICATE, payload))
    assert await refused(fetcher.chain(OTHER, 0)) is Code.MALFORMED


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        (NAME, bytes(NBYTES), Code.WRONG_DIGEST),
        (NAME, DATA[:-4], Code.UNEXPECTED_BLOB),
        (NAME, DATA + bytes(4), Code.UNEXPECTED_BLOB),
        (blob_digest(b"x"), DATA, Code.UNEXPECTED_BLOB),
        (NAME, b"", Code.UNKNOWN_KIND),
    ],
    ids=["wrong bytes", "too short", "too long", "another name", "nothing"],
)
async def test_other_bytes_than_asked_for_are_refused(
    other: MemoryTransport, fetcher: Fetcher, blobs: BlobStore, name: Digest, data: bytes, code: Code
) -> None:
    await liar(other, lambda stream: frames.send_frame(stream, FrameKind.BLOB, name, data))
    assert await refused(fetcher.blob(OTHER, NAME, blobs)) is code
    assert not blobs.holds(NAME)
    assert not blobs._receiving


async def test_a_blob_counts_even_if_its_stream_does_not_end_in_order(
    other: MemoryTransport, fetcher: Fetcher, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_end(stream: Stream) -> None:
        await frames.send_frame(stream, FrameKind.BLOB, NAME, DATA)
        await frames.receive_frame(stream, 0)

    monkeypatch.setattr(fetch_module, "END_SECONDS", 0.01)
    await liar(other, no_end)
    assert await soon(fetcher.blob(OTHER, NAME, blobs))
    assert blobs.holds(NAME)


async def test_a_pull_is_not_kept_waiting_by_a_push_that_never_ends(
    server: Server, fetcher: Fetcher, blobs: BlobStore
) -> None:
    """Digests are public: anybody could begin to push a part and stop in the middle."""
    server.blobs.gradient(0, 1).view[:] = DATA
    server.blobs.add_own_parts(0, (NAME,))
    interrupted = []
    with blobs.receiving(NAME, NBYTES, lambda: interrupted.append(True)) as place:
        assert place is not None
        place.view[:100] = bytes(100)
        assert await soon(fetcher.blob(OTHER, NAME, blobs))
    assert interrupted == [True]
    with blobs.lend(NAME) as view:
        assert view == DATA


@pytest.mark.parametrize("state_bytes", [1, len(STATE) - 1, len(STATE) + 1, limits.BLOB_BYTES_MAX])
async def test_a_state_of_another_size_is_refused(other: MemoryTransport, fetcher: Fetcher, state_bytes: int) -> None:
    head = wire.pack(StateHeader(10, state_bytes))
    await liar(other, lambda stream: frames.send_frame(stream, FrameKind.STATE, head))
    assert await refused(fetcher.state(OTHER, memoryview(bytearray(len(STATE))))) is Code.OVERSIZED


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (FrameKind.CHUNK, bytes(101), Code.OVERSIZED),
        (FrameKind.CHUNK, b"", Code.UNKNOWN_KIND),
        (FrameKind.END, b"", Code.UNKNOWN_KIND),
    ],
)
async def test_pieces_of_a_state_that_do_not_fit_are_refused(
    other: MemoryTransport, fetcher: Fetcher, kind: FrameKind, payload: bytes, code: Code
) -> None:
    async def answer(stream: Stream) -> None:
        await frames.send_frame(stream, FrameKind.STATE, wire.pack(StateHeader(10, 100)))
        await frames.send_frame(stream, kind, payload)

    await liar(other, answer)
    assert await refused(fetcher.state(OTHER, memoryview(bytearray(100)))) is code


async def test_a_state_that_drips_has_one_deadline(
    other: MemoryTransport, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(stream: Stream) -> None:
        await frames.send_frame(stream, FrameKind.STATE, wire.pack(StateHeader(10, 100)))
        for _ in range(99):
            await frames.send_frame(stream, FrameKind.CHUNK, b"x")
        await frames.receive_frame(stream, 0)

    await liar(other, answer)
    monkeypatch.setattr(fetch_module, "transfer_seconds", lambda nbytes: 0.2)
    with pytest.raises(StreamTimeout):
        await soon(fetcher.state(OTHER, memoryview(bytearray(100))))


async def test_a_peer_that_hangs_up_is_a_failure_of_the_world(
    other: MemoryTransport, fetcher: Fetcher, blobs: BlobStore
) -> None:
    async def hang_up(stream: Stream) -> None:
        stream.abort()

    await liar(other, hang_up)
    for question in (
        fetcher.chain(OTHER, 0),
        fetcher.manifest(OTHER, run_id_of(MANIFEST)),
        fetcher.blob(OTHER, NAME, blobs),
        fetcher.state(OTHER, memoryview(bytearray(10))),
        fetcher.chain(key_of(5).peer_id, 0),
    ):
        with pytest.raises(WorldError):
            await soon(question)


async def test_a_banned_peer_is_not_answered_and_not_asked(
    network: MemoryNetwork, server: Server, fetcher: Fetcher, transport: MemoryTransport, blobs: BlobStore
) -> None:
    server.blobs.gradient(0, 1).view[:] = DATA
    server.blobs.add_own_parts(0, (NAME,))
    asked = await transport.open(OTHER, packets.FETCH_STREAM, 1.0)
    await frames.send_frame(asked, FrameKind.GET_BLOB, NAME)
    await until(lambda: server.server._turns)  # in the middle of an answer that is larger than a pipe
    banned = {ME}
    server.transport.refuse(banned)
    server.transport.abort(ME)
    await until(lambda: not server.server._turns)
    with pytest.raises(WorldError):
        await soon(fetcher.manifest(OTHER, run_id_of(MANIFEST)))
    with pytest.raises(WorldError, match="refused"):
        await soon(Fetcher(server.transport).blob(ME, NAME, blobs))
    stranger = network.join(key_of(7).peer_id)
    assert await soon(Fetcher(stranger).manifest(OTHER, run_id_of(MANIFEST))) == MANIFEST
    await stranger.close()
