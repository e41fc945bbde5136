"""What every transport must do, run once per transport.

A subclass gives a `pair` fixture (two transports that are connected to each other) and `kill`.
Nothing here waits for time to pass: a wait has a deadline that a correct transport never reaches, except
where the deadline itself is what is tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crowdsurf.peer.transport.base import (
    STREAMS_PER_PEER_MAX,
    Stream,
    StreamBroken,
    StreamClosed,
    StreamEnded,
    StreamTimeout,
    Transport,
)
from crowdsurf.peer.transport.frames import receive_frame, receive_header, receive_payload, send_frame
from crowdsurf.protocol.errors import Code, MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import PeerId, peer_id_from_public_key, peer_text

PROTOCOL = "/crowdsurf/test/1"
MIB = 1 << 20
PATIENCE_SECONDS = 30.0
Pair = tuple[Transport, Transport]


def private_key(seed: int) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))


def peer_of(seed: int) -> PeerId:
    """The peer id of `private_key(seed)`."""
    return peer_id_from_public_key(private_key(seed).public_key().public_bytes_raw())


def write_identity(path: Path, seed: int) -> Path:
    """The libp2p-encoded key file that p2pd reads."""
    key = private_key(seed)
    path.write_bytes(b"\x08\x01\x12\x40" + key.private_bytes_raw() + key.public_key().public_bytes_raw())
    return path


async def echo(stream: Stream) -> None:
    """Send every frame back until the stream ends."""
    while True:
        kind, payload = await receive_frame(stream, MIB)
        await send_frame(stream, kind, payload)


class Inbound:
    """A handler that hands its streams to the test and keeps them open until the test is over."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.cancelled = asyncio.Event()

    async def __call__(self, stream: Stream) -> None:
        self.streams.put_nowait(stream)
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def joined(pair: Pair) -> tuple[Stream, Stream]:
    """The two ends of one new stream: the dialler's and the listener's."""
    dialler, listener = pair
    inbound = Inbound()
    await listener.serve(PROTOCOL, inbound)
    near = await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS)
    await near.send(b"!")  # some transports announce a stream with its first byte
    far = await asyncio.wait_for(inbound.streams.get(), PATIENCE_SECONDS)
    await far.receive_into(memoryview(bytearray(1)))
    return near, far


def pattern(length: int, step: int) -> bytearray:
    """Bytes in which a shift or a gap shows."""
    block = bytes((i * step) % 251 for i in range(251))
    return bytearray((block * (length // 251 + 1))[:length])


async def receive(stream: Stream, length: int) -> bytearray:
    """`length` bytes."""
    buffer = bytearray(length)
    await receive_payload(stream, memoryview(buffer), PATIENCE_SECONDS)
    return buffer


class TransportConformance:
    """The suite; see the module's text."""

    async def kill(self, transport: Transport) -> None:
        """End this peer as SIGKILL would."""
        raise NotImplementedError

    async def test_both_ends_know_whom_they_speak_with(self, pair: Pair) -> None:
        near, far = await joined(pair)
        assert near.peer == pair[1].peer_id
        assert far.peer == pair[0].peer_id
        assert near.protocol == far.protocol == PROTOCOL

    async def test_addresses_name_the_peer(self, pair: Pair) -> None:
        for transport in pair:
            addresses = await transport.addresses()
            assert addresses
            assert all(text.endswith(f"/p2p/{peer_text(transport.peer_id)}") for text in addresses)

    async def test_echo_of_frames(self, pair: Pair) -> None:
        dialler, listener = pair
        await listener.serve(PROTOCOL, echo)
        stream = await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS)
        for kind, length in [(0, 0), (1, 1), (255, 4091), (7, 4096), (8, 100_001)]:
            payload = bytes(pattern(length, 7))
            await send_frame(stream, kind, payload)
            assert await receive_frame(stream, MIB, PATIENCE_SECONDS) == (kind, payload)
        await stream.close()

    async def test_small_and_bulk_receives_mix(self, pair: Pair) -> None:
        near, far = await joined(pair)
        part = pattern(MIB, 3)
        await send_frame(near, 1, b"small")
        sending = asyncio.create_task(send_frame(near, 2, memoryview(part)[:1000], memoryview(part)[1000:]))
        assert await receive_frame(far, 100, PATIENCE_SECONDS) == (1, b"small")
        kind, length = await receive_header(far, MIB, PATIENCE_SECONDS)
        assert (kind, length) == (2, MIB)
        assert await receive(far, length) == part
        await sending

    async def test_bulk_both_ways_at_once(self, pair: Pair) -> None:
        near, far = await joined(pair)
        there, back = pattern(8 * MIB, 3), pattern(8 * MIB, 5)
        results = await asyncio.gather(
            near.send(there), far.send(back), receive(far, len(there)), receive(near, len(back))
        )
        assert results[2] == there
        assert results[3] == back

    async def test_a_slow_reader_gets_everything(self, pair: Pair) -> None:
        near, far = await joined(pair)
        data = pattern(2 * MIB, 11)
        sending = asyncio.create_task(near.send(data))
        received = bytearray()
        while len(received) < len(data):
            received += await receive(far, min(1009, len(data) - len(received)))
        await sending
        assert received == data

    async def test_a_sender_waits_while_nobody_reads(self, pair: Pair) -> None:
        near, _far = await joined(pair)
        piece = bytes(64 * 1024)
        accepted = 0

        async def flood() -> None:
            nonlocal accepted
            while accepted < 64 * MIB:
                await send_frame(near, 1, piece, timeout_seconds=0.5)
                accepted += len(piece)

        with pytest.raises(StreamTimeout):
            await flood()
        assert accepted < 24 * MIB

    async def test_an_abort_ends_the_other_side(self, pair: Pair) -> None:
        near, far = await joined(pair)
        near.abort()
        with pytest.raises(StreamEnded):
            await receive(far, 1)
        with pytest.raises(StreamBroken):
            await near.send(b"x")
        with pytest.raises(StreamBroken):
            await near.receive_into(memoryview(bytearray(1)))

    async def test_an_abort_wakes_our_own_receive(self, pair: Pair) -> None:
        near, _far = await joined(pair)
        receiving = asyncio.create_task(receive(near, 1))
        waiting = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(waiting.set_result, None)
        await waiting
        near.abort()
        with pytest.raises(StreamBroken):
            await receiving

    async def test_an_end_between_messages_is_told_from_one_inside(self, pair: Pair) -> None:
        near, far = await joined(pair)
        await near.send(b"abc")
        assert await receive(far, 1) == b"a"
        receiving = asyncio.create_task(receive(far, 10))
        far_end = await asyncio.gather(receiving, near.close(), return_exceptions=True)
        assert isinstance(far_end[0], StreamBroken)
        near, far = await joined_again(pair)
        await near.close()
        with pytest.raises(StreamClosed):
            await receive(far, 10)

    async def test_a_killed_peer_breaks_its_streams(self, pair: Pair) -> None:
        near, far = await joined(pair)
        receiving = asyncio.create_task(receive(near, 8 * MIB))
        await far.send(bytes(MIB))
        await self.kill(pair[1])
        with pytest.raises(StreamEnded):
            await receiving
        with pytest.raises(WorldError):
            await send_until_it_fails(near)

    async def test_closing_the_transport_breaks_its_streams_and_ends_its_handlers(self, pair: Pair) -> None:
        dialler, listener = pair
        inbound = Inbound()
        await listener.serve(PROTOCOL, inbound)
        near = await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS)
        await near.send(b"!")
        await asyncio.wait_for(inbound.streams.get(), PATIENCE_SECONDS)
        await listener.close()
        assert inbound.cancelled.is_set()
        with pytest.raises(StreamEnded):
            await receive(near, 1)
        with pytest.raises(WorldError):
            await use(await dialler.open(listener.peer_id, PROTOCOL, 5.0))

    async def test_many_streams_at_once(self, pair: Pair) -> None:
        dialler, listener = pair
        await listener.serve(PROTOCOL, echo)

        async def one(number: int) -> None:
            stream = await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS)
            payload = pattern(50_000 + number, number + 1)
            await send_frame(stream, number, payload)
            assert await receive_frame(stream, MIB, PATIENCE_SECONDS) == (number, bytes(payload))
            await stream.close()

        await asyncio.gather(*(one(number) for number in range(64)))

    async def test_streams_of_one_peer_are_bounded(self, pair: Pair) -> None:
        dialler, listener = pair
        await listener.serve(PROTOCOL, echo)
        streams = []
        for _ in range(STREAMS_PER_PEER_MAX):
            streams.append(await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS))
            await use(streams[-1])
        with pytest.raises(WorldError):
            await use(await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS))
        await use(streams[0])

    async def test_an_oversized_frame_is_refused(self, pair: Pair) -> None:
        near, far = await joined(pair)
        await near.send(b"\x01\xff\xff\xff\xff")
        with pytest.raises(Refusal) as refused:
            await receive_frame(far, MIB, PATIENCE_SECONDS)
        assert refused.value.code is Code.OVERSIZED

    async def test_an_unknown_protocol_is_refused(self, pair: Pair) -> None:
        dialler, listener = pair
        await listener.serve(PROTOCOL, echo)
        with pytest.raises(WorldError):
            await use(await dialler.open(listener.peer_id, "/crowdsurf/unknown/1", PATIENCE_SECONDS))
        await use(await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS))

    async def test_a_protocol_is_served_once(self, pair: Pair) -> None:
        await pair[1].serve(PROTOCOL, echo)
        with pytest.raises(MisuseError):
            await pair[1].serve(PROTOCOL, echo)

    async def test_an_unknown_peer_cannot_be_reached(self, pair: Pair) -> None:
        stranger = peer_of(999)
        with pytest.raises(WorldError):
            await pair[0].connect(stranger, [], 5.0)
        with pytest.raises(WorldError):
            await pair[0].open(stranger, PROTOCOL, 5.0)

    async def test_a_refused_peer_gets_nothing(self, pair: Pair) -> None:
        dialler, listener = pair
        near, far = await joined(pair)
        handlers = {f"/crowdsurf/{name}/1": Inbound() for name in ("control", "bulk", "fetch")}
        for protocol, handler in handlers.items():
            await listener.serve(protocol, handler)
        banned: set[PeerId] = set()
        listener.refuse(banned)
        await use_and_leave(dialler, listener, "/crowdsurf/bulk/1", handlers["/crowdsurf/bulk/1"])
        banned.add(dialler.peer_id)
        for protocol in handlers:
            with pytest.raises(WorldError):
                await use(await dialler.open(listener.peer_id, protocol, PATIENCE_SECONDS))
        assert all(handler.streams.empty() for handler in handlers.values())
        with pytest.raises(WorldError, match="refused"):
            await listener.open(dialler.peer_id, PROTOCOL, PATIENCE_SECONDS)
        with pytest.raises(WorldError, match="refused"):
            await listener.connect(dialler.peer_id, await dialler.addresses())
        # What was open stays until somebody says otherwise.
        await far.send(b"x")
        assert await receive(near, 1) == b"x"

    async def test_somebody_else_is_not_refused(self, pair: Pair) -> None:
        dialler, listener = pair
        await listener.serve(PROTOCOL, echo)
        listener.refuse({peer_of(999)})
        await use(await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS))

    async def test_who_is_banned_while_a_stream_opens_gets_none(self, pair: Pair) -> None:
        dialler, listener = pair
        inbound = Inbound()
        await listener.serve(PROTOCOL, inbound)
        dialler.refuse(BannedMeanwhile())
        with pytest.raises(WorldError, match="refused"):
            await dialler.open(listener.peer_id, PROTOCOL, PATIENCE_SECONDS)

    async def test_streams_are_aborted_but_for_the_spared_ones(self, pair: Pair) -> None:
        near, far = await joined(pair)
        kept_near, kept_far = await joined_again(pair)  # opened by the one that aborts
        listener = pair[1]
        listener.refuse({pair[0].peer_id})
        listener.abort(pair[0].peer_id, [kept_near])
        with pytest.raises(StreamBroken):
            await far.send(b"x")
        with pytest.raises(StreamEnded):
            await receive(near, 1)
        await kept_near.send(b"this is why")
        assert await receive(kept_far, 11) == b"this is why"
        listener.abort(pair[0].peer_id)
        with pytest.raises(StreamBroken):
            await kept_near.send(b"x")
        with pytest.raises(StreamEnded):
            await receive(kept_far, 1)

    async def test_disconnect_ends_the_streams(self, pair: Pair) -> None:
        near, far = await joined(pair)
        await pair[0].disconnect(pair[1].peer_id)
        with pytest.raises(StreamBroken):
            await near.send(b"x")
        with pytest.raises(StreamEnded):
            await receive(far, 1)

    async def test_a_deadline_between_frames_loses_nothing(self, pair: Pair) -> None:
        near, far = await joined(pair)
        with pytest.raises(StreamTimeout):
            await receive_frame(far, 100, timeout_seconds=0.02)
        await send_frame(near, 3, b"later")
        assert await receive_frame(far, 100, PATIENCE_SECONDS) == (3, b"later")

    async def test_a_deadline_inside_a_frame_ends_the_stream(self, pair: Pair) -> None:
        near, far = await joined(pair)
        await near.send(b"\x01\x00\x00\x00\x0apart")
        with pytest.raises(StreamTimeout):
            await receive_frame(far, 100, timeout_seconds=0.5)
        with pytest.raises(StreamBroken):
            await far.send(b"x")

    async def test_one_receiver_and_one_sender_at_a_time(self, pair: Pair) -> None:
        near, _far = await joined(pair)
        for jobs in ([receive(near, 1), receive(near, 1)], [near.send(bytes(64 * MIB)), near.send(b"x")]):
            tasks = [asyncio.create_task(job) for job in jobs]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            assert [type(task.exception()) for task in done] == [MisuseError]
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)


class BannedMeanwhile(Container[PeerId]):
    """Nobody is in it when it is asked first, and everybody later."""

    def __init__(self) -> None:
        self.was_asked = False

    def __contains__(self, peer: object) -> bool:
        was_asked, self.was_asked = self.was_asked, True
        return was_asked


async def use_and_leave(dialler: Transport, listener: Transport, protocol: str, inbound: Inbound) -> None:
    """A stream that is accepted."""
    stream = await dialler.open(listener.peer_id, protocol, PATIENCE_SECONDS)
    await stream.send(b"!")
    await asyncio.wait_for(inbound.streams.get(), PATIENCE_SECONDS)
    await stream.close()


async def joined_again(pair: Pair) -> tuple[Stream, Stream]:
    """Like `joined`, from the other side."""
    return await joined((pair[1], pair[0]))


async def use(stream: Stream) -> None:
    """One small frame there and back; an echo must be at the other end."""
    await send_frame(stream, 1, b"ping")
    assert await receive_frame(stream, 100, PATIENCE_SECONDS) == (1, b"ping")


async def send_until_it_fails(stream: Stream) -> None:
    """A dead peer may take some buffered bytes; it cannot take these many."""
    for _ in range(64):
        await send_frame(stream, 1, bytes(MIB), timeout_seconds=PATIENCE_SECONDS)


async def close_all(transports: Sequence[Transport]) -> None:
    """Close every transport."""
    await asyncio.gather(*(transport.close() for transport in transports))
