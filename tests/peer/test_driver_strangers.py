"""The driver hears strangers last and for a small share of the time, and nobody can flood it or its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crowdsurf.peer import driver as driver_module
from crowdsurf.peer import packets
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, StreamEnded
from crowdsurf.peer.turns import EVENTS_PER_SOURCE
from crowdsurf.protocol import effects, events, wire
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import run_id_of
from crowdsurf.protocol.messages import Envelope, Join, Kind, Leave
from tests.peer.shell import FakeCompute, Swarm, key_of, soon, until
from tests.peer.test_driver import OTHER, THIRD, Setup, vote

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    await made.close()


def said_by(source: PeerId, step: int = 0) -> events.EnvelopeReceived:
    return events.EnvelopeReceived(source, vote(step))


async def test_own_events_and_timers_wait_for_no_stranger(setup: Setup) -> None:
    """A stranger that hands over more and more must not keep anybody else from being heard."""
    setup.queue.tell_apart({THIRD})
    setup.node.deadline = 0.0  # always due
    flooding = [asyncio.create_task(setup.queue.post(said_by(OTHER))) for _ in range(300)]
    await asyncio.sleep(0)
    setup.queue.offer(events.StateFailed())
    await setup.queue.post(said_by(THIRD))
    setup.run()
    await until(lambda: setup.node.heard)
    first = setup.node.heard[:4]
    assert first == [events.StateFailed(), events.LeaveAsked(), said_by(THIRD), events.Tick()]
    for task in flooding:
        task.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)


async def test_strangers_are_heard_only_as_long_as_their_share_lasts(setup: Setup) -> None:
    setup.driver._clock = clock = ManualClock()
    setup.queue.tell_apart(set())

    def handle(event: events.Event) -> list[effects.Effect]:
        clock.advance(0.1 if isinstance(event, events.EnvelopeReceived) else 0.0)
        return []

    setup.node.wanted = handle
    flooding = [asyncio.create_task(setup.queue.post(said_by(OTHER))) for _ in range(40)]
    await asyncio.sleep(0)
    setup.run()
    for number in range(1, 4):
        setup.queue.offer(events.StateFailed())
        await until(lambda number=number: setup.node.heard.count(events.StateFailed()) == number)
    heard = setup.node.heard.count(said_by(OTHER))
    assert heard == driver_module.STRANGERS_PER_BATCH
    clock.advance(5.0)
    setup.queue.offer(events.StateFailed())
    await until(lambda: setup.node.heard.count(said_by(OTHER)) == 2 * heard)
    for task in flooding:
        task.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)


async def test_what_no_correct_peer_hands_over_costs_the_stream_and_what_else_waits(setup: Setup) -> None:
    refused = effects.Refused(OTHER, Code.BAD_SIGNATURE, "not the sender's", costs_stream=True)
    setup.node.wanted = lambda event: [refused] if isinstance(event, events.EnvelopeReceived) else []
    posting = [asyncio.create_task(setup.queue.post(said_by(OTHER, step))) for step in range(EVENTS_PER_SOURCE + 9)]
    posting.append(asyncio.create_task(setup.queue.post(events.PeerGone(OTHER))))
    await asyncio.sleep(0)
    setup.run()
    await until(lambda: events.PeerGone(OTHER) in setup.node.heard)
    await soon(asyncio.gather(*posting))
    heard = [event for event in setup.node.heard if isinstance(event, events.EnvelopeReceived)]
    assert len(heard) == EVENTS_PER_SOURCE
    assert set(setup.story) == {"cut short"}


async def test_a_refusal_that_may_be_somebody_elses_fault_costs_no_stream(setup: Setup) -> None:
    setup.on_leave(effects.Refused(OTHER, Code.EQUIVOCATION, "signed twice"), effects.Finished("done"))
    await soon(setup.run())
    assert setup.story == []


async def test_the_log_does_not_grow_with_what_is_refused(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.driver._clock = clock = ManualClock()
    for _ in range(1000):
        setup.driver.refuse(OTHER, Refusal(Code.BAD_SIGNATURE, "not the sender's"))
    clock.advance(61.0)
    setup.driver.refuse(OTHER, Refusal(Code.BAD_SIGNATURE, "not the sender's"))
    assert [record.getMessage().partition("…")[2][8:] for record in caplog.records] == [
        ": bad_signature (not the sender's)",
        ": bad_signature (not the sender's); 999 more like it not told",
    ]
    assert setup.metrics.refused == {"bad_signature": 1001}


# --- a whole peer ----------------------------------------------------------------------------------------------


async def test_a_stranger_that_floods_stops_nobody(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    """Well-formed, well-signed and good for nothing: each costs a signature to check, and it keeps its stream."""
    async with Swarm(tmp_path, 2, steps=0) as swarm:
        swarm.start()
        victim = swarm.peers[0]
        await victim.certified(2)
        run_id, stranger = run_id_of(swarm.manifest), key_of(9)
        place = swarm.network.place(swarm.manifest, tmp_path / "stranger", stranger)
        stream = await place.transport.open(victim.key.peer_id, packets.CONTROL_STREAM, 1.0)
        await packets.send_hello(stream, run_id, 1.0)
        message = wire.pack(seal(stranger, run_id, Slot(2, 0, Kind.LEAVE, b""), Leave()).envelope)

        async def flood() -> None:
            while True:
                await frames.send_frame(stream, FrameKind.ENVELOPE, message)

        flooding = asyncio.create_task(flood())
        await until(lambda: victim.daemon.metrics.refused.get(Code.NOT_MEMBER.value, 0) > 9)
        await victim.certified(max(victim.steps) + 20)
        assert not flooding.done()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await place.transport.close()


async def test_a_stranger_that_forges_is_cut_off_and_gets_no_other_stream(
    tmp_path: Path, fake_compute: list[FakeCompute]
) -> None:
    async with Swarm(tmp_path, 2, steps=0) as swarm:
        swarm.start()
        victim = swarm.peers[0]
        await victim.certified(2)
        run_id, stranger = run_id_of(swarm.manifest), key_of(9).peer_id
        place = swarm.network.place(swarm.manifest, tmp_path / "stranger", key_of(9))
        forged = Envelope(1, run_id, 2, 0, int(Kind.JOIN), b"", wire.pack(Join()), stranger, bytes(64))

        async def forge(stream: Stream) -> None:
            await packets.send_hello(stream, run_id, 1.0)
            while True:
                await frames.send_frame(stream, FrameKind.ENVELOPE, wire.pack(forged))

        for _ in range(2):  # the second stream is not even read
            stream = await place.transport.open(victim.key.peer_id, packets.CONTROL_STREAM, 1.0)
            with pytest.raises(StreamEnded):
                await soon(forge(stream))
        assert victim.daemon.metrics.refused == {Code.BAD_SIGNATURE.value: 1}
        await place.transport.close()
