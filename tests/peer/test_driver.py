"""The driver: durable before sent, bounded, and nothing it started outlives it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from crowdsurf.peer import driver as driver_module
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.candidates import Begun
from crowdsurf.peer.clock import SystemClock
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.driver import FETCHES_AT_ONCE_MAX, Driver, Parts
from crowdsurf.peer.inbox import Inbox
from crowdsurf.peer.journal import Journal, read_journal
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.state_store import StateStore
from crowdsurf.peer.turns import EVENTS_PER_BATCH
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.effects import ExpectAggregate
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest, digest
from crowdsurf.protocol.messages import Ban, Certificate, Envelope, Kind, Reason, Vote
from crowdsurf.protocol.recovery import RecordType, recover
from tests.peer.shell import ELEMENTS, STATE_BYTES, key_of, soon, until
from tests.protocol.test_recovery import header

pytestmark = pytest.mark.usefixtures("tidy")

OTHER, THIRD = key_of(1).peer_id, key_of(2).peer_id
DATA = bytes(range(STATE_BYTES))
NAME = blob_digest(DATA)


def vote(step: int) -> Envelope:
    return seal(key_of(0), bytes(32), Slot(step, 0, Kind.VOTE, b""), Vote(bytes(32))).envelope


def certificate(step: int) -> Certificate:
    return Certificate(header(step), ((0, 0, bytes(64)),))


class FakeNode:
    """Answers each event with what the test wants."""

    def __init__(self) -> None:
        self.heard: list[events.Event] = []
        self.wanted: Callable[[events.Event], list[effects.Effect]] = lambda event: []
        self.deadline: float | None = None
        self.catch_up = SimpleNamespace(certificate=lambda step: None)
        self.chain = SimpleNamespace(head=SimpleNamespace(step=20))
        self.contacts: Callable[[], tuple[PeerId, ...]] = lambda: ()

    def handle(self, event: events.Event, now: float) -> list[effects.Effect]:
        self.heard.append(event)
        return self.wanted(event)

    def next_deadline(self) -> float | None:
        return self.deadline


class FakeJournal:
    """Says in which order things happen; `gate` holds up the disk."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.gate = threading.Event()
        self.gate.set()
        self.error: WorldError | None = None
        self.pending_bytes = 0

    def append(self, record_type: int, payload: bytes) -> None:
        self.story.append(f"append {RecordType(record_type).name}")

    def sync(self) -> None:
        self.story.append("sync")
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.story.append("synced")


class Setup:
    """A driver among fakes; `story` is what happened, in order."""

    def __init__(self, folder: Path) -> None:
        self.story: list[str] = []
        self.queue = Inbox()
        self.node = FakeNode()
        self.journal: Any = FakeJournal(self.story)
        self.driver = Driver(self.queue, SystemClock())
        pool = SegmentPool(1 << 20)
        self.blobs = BlobStore(ELEMENTS, pool)
        self.store = StateStore(folder, ELEMENTS)
        self.fetcher = SimpleNamespace(blob=None, chain=None, state=None)
        self.duties = SimpleNamespace(
            work=None,
            cancel=lambda: self.story.append("cancel"),
            apply=self.noting("apply"),
            load_fetched=None,
            save_update=self.noting("keep update"),
            saves_after=lambda step: step == 9,
        )
        links = SimpleNamespace(
            ban=lambda peers: self.story.append("ban") if peers else None,
            send=lambda peer, kind, data: self.story.append(f"send {kind.name}"),
            keep=self.noting("links.keep"),
            cut_short=lambda peer: self.story.append("cut short"),
        )
        bulk = SimpleNamespace(push=lambda *_: self.story.append("push"), keep=self.noting("bulk.keep"))
        evidence = SimpleNamespace(keep=self.noting("keep evidence"))
        parts: Any = (links, bulk, self.fetcher, self.blobs, self.store, pool, self.duties, evidence)
        self.driver.bind(Parts(self.node, self.journal, *parts, Metrics(), STATE_BYTES))  # type: ignore[arg-type]
        self.metrics = self.driver._parts.metrics
        self.task: asyncio.Task[str] | None = None

    def noting(self, what: str) -> Callable[..., Any]:
        async def note(*_: Any) -> None:
            self.story.append(what)

        return note

    def on_leave(self, *wanted: effects.Effect) -> None:
        """What LeaveAsked, the event these tests use, leads to."""
        self.node.wanted = lambda event: list(wanted) if isinstance(event, events.LeaveAsked) else []

    def run(self) -> asyncio.Task[str]:
        self.queue.offer(events.LeaveAsked())
        self.task = asyncio.create_task(self.driver.run())
        return self.task

    async def heard(self, kind: type[Any]) -> Any:
        """The first event of a kind that comes back to the rules."""
        await until(lambda: any(isinstance(event, kind) for event in self.node.heard) or self.done())
        if self.done() and self.task is not None:
            self.task.result()
        return next(event for event in self.node.heard if isinstance(event, kind))

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.blobs.close()


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.close()


# --- durable before sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [effects.PersistSigned(vote(0)), effects.PersistLock(header(0), 3)])
async def test_nothing_is_sent_before_what_was_signed_is_on_disk(setup: Setup, record: effects.Effect) -> None:
    setup.journal.gate.clear()
    setup.on_leave(effects.SendEnvelope((OTHER,), vote(0)), effects.SendBlob((OTHER,), 0, NAME), record)
    setup.run()
    await until(lambda: "sync" in setup.story)
    for _ in range(100):
        await asyncio.sleep(0)
    assert setup.story[-1] == "sync"
    setup.journal.gate.set()
    await until(lambda: "push" in setup.story)
    assert setup.story[-4:] == ["sync", "synced", "send ENVELOPE", "push"]


@pytest.mark.parametrize("held_up", [0, driver_module.HELD_UP_MAX])
async def test_what_a_liar_holds_up_is_bounded(setup: Setup, held_up: int) -> None:
    """One more than the bound is carried out at once, where nobody would see it for an hour."""
    setup.on_leave(effects.SendWant(OTHER, (NAME,)))
    wanted = effects.SendEnvelope((OTHER,), vote(0))

    def handle(event: events.Event, now: float) -> list[effects.Effect]:
        for _ in range(held_up):
            setup.driver.carry_out_later(3600.0, wanted)
        setup.driver.carry_out_later(3600.0 if held_up else 0.0, wanted)
        return setup.node.handle(event, now)

    setup.driver.liar = SimpleNamespace(handle=handle)  # type: ignore[assignment]
    setup.run()
    await until(lambda: len(setup.story) == 2 or setup.done())
    assert sorted(setup.story) == ["send ENVELOPE", "send WANT"]


async def test_a_full_disk_ends_the_driver_and_nothing_is_sent(setup: Setup) -> None:
    setup.journal.error = WorldError("the disk is full: free some space")
    setup.on_leave(effects.PersistSigned(vote(0)), effects.SendEnvelope((OTHER,), vote(0)))
    with pytest.raises(WorldError, match="the disk is full"):
        await soon(setup.run())
    assert setup.story == ["append SIGNED", "sync"]


async def test_everything_that_waits_is_made_durable_with_one_wait(setup: Setup) -> None:
    for _ in range(EVENTS_PER_BATCH + 9):
        setup.queue.offer(events.LeaveAsked())
    setup.on_leave(effects.PersistSigned(vote(0)))
    setup.run()
    await until(lambda: setup.story.count("synced") == 2)
    assert setup.story.count("append SIGNED") == EVENTS_PER_BATCH + 10
    assert setup.story.index("synced") == EVENTS_PER_BATCH + 1


async def test_what_is_voted_for_is_kept_before_the_vote_is_written_down(setup: Setup) -> None:
    """Else a whole swarm that crashes now would know that the step is decided and have lost its outcome."""
    setup.on_leave(effects.PersistLock(header(5), 0), effects.PersistSigned(vote(5)))
    setup.run()
    await until(lambda: "synced" in setup.story)
    assert setup.story == ["keep update", "append LOCK", "append SIGNED", "sync", "synced"]


async def test_evidence_quotes_steps_that_are_on_disk(setup: Setup) -> None:
    found: Any = SimpleNamespace(ban=Ban(OTHER, Reason.WRONG_GRADIENT, 2, bytes(32)))
    setup.on_leave(effects.PersistCertificate(certificate(3)), effects.PersistEvidence(found), effects.Finished("done"))
    await soon(setup.run())
    assert setup.story == ["append CERTIFICATE", "sync", "synced", "keep evidence"]


async def test_evidence_for_which_there_is_no_room_ends_nothing(setup: Setup) -> None:
    async def full(*_: Any) -> None:
        raise WorldError("the disk is full")

    setup.driver._parts.evidence.keep = full  # type: ignore[method-assign]
    found: Any = SimpleNamespace(ban=Ban(OTHER, Reason.WRONG_GRADIENT, 2, bytes(32)))
    setup.on_leave(effects.PersistEvidence(found), effects.Finished("done"))
    assert await soon(setup.run()) == "done"


async def test_what_cannot_be_kept_is_not_voted_for(setup: Setup) -> None:
    async def full(*_: Any) -> None:
        raise WorldError("the disk is full")

    setup.duties.save_update = full
    setup.on_leave(effects.PersistLock(header(5), 0), effects.PersistSigned(vote(5)))
    with pytest.raises(WorldError, match="the disk is full"):
        await soon(setup.run())
    assert setup.story == []


async def test_a_certificate_waits_for_no_disk_but_before_a_state_is_saved(setup: Setup) -> None:
    for step in (8, 9):
        parts = (bytes(32),)
        setup.on_leave(effects.PersistCertificate(certificate(step)), effects.ApplyUpdate(step, parts))
        setup.queue.offer(events.LeaveAsked())
        if setup.task is None:
            setup.task = asyncio.create_task(setup.driver.run())
        await until(lambda: "apply" in setup.story)
        expected = ["append CERTIFICATE"] + ["sync", "synced"] * (step == 9) + ["apply"]
        assert setup.story == expected
        setup.story.clear()


async def test_a_certified_update_that_is_on_disk_is_found_again(setup: Setup) -> None:
    setup.store.save_update(4, (NAME,), memoryview(DATA))
    again = StateStore(setup.store.state_path(0).parent.parent, ELEMENTS)
    setup.driver._parts.store = again
    found = Certificate(msgspec.structs.replace(header(4), parts=(NAME,)), ((0, 0, bytes(64)),))
    await setup.driver.persist([effects.PersistCertificate(found)])
    assert again.has_part(NAME) == STATE_BYTES


async def test_a_long_chain_is_written_in_bounded_pieces(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = Journal.open(tmp_path)
    setup.driver._parts.journal = journal
    monkeypatch.setattr(driver_module, "JOURNAL_BYTES_PER_SYNC", 1000)
    await setup.driver.persist([effects.PersistCertificate(certificate(step)) for step in range(200)])
    found = list(recover(read_journal(tmp_path)).certificates)
    journal.close()
    assert 150 < len(found) <= 200
    assert [one.header.step for one in recover(read_journal(tmp_path)).certificates] == list(range(200))


async def test_a_long_chain_that_comes_in_many_small_answers_never_fills_the_journal(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = Journal.open(tmp_path)
    setup.driver._parts.journal = journal
    monkeypatch.setattr(driver_module, "JOURNAL_BYTES_PER_SYNC", 1000)
    for step in range(200):
        await setup.driver.persist([effects.PersistCertificate(certificate(step))])
        assert journal.pending_bytes < 1000
    found = list(recover(read_journal(tmp_path)).certificates)
    journal.close()
    assert 150 < len(found) <= 200


async def test_what_was_signed_is_durable_however_little_waits_and_in_the_order_of_its_batch(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = Journal.open(tmp_path)
    setup.driver._parts.journal = journal
    monkeypatch.setattr(driver_module, "JOURNAL_BYTES_PER_SYNC", 1000)
    past = [effects.PersistCertificate(certificate(step)) for step in range(9)]
    await setup.driver.persist([*past[:5], effects.PersistSigned(vote(9)), *past[5:]])
    assert journal.pending_bytes == 0
    kinds = [RecordType(kind) for kind, _ in read_journal(tmp_path)]
    journal.close()
    assert kinds == [*[RecordType.CERTIFICATE] * 5, RecordType.SIGNED, *[RecordType.CERTIFICATE] * 4]


# --- the loop ----------------------------------------------------------------------------------------------


async def test_a_deadline_that_passes_is_a_tick(setup: Setup) -> None:
    setup.node.deadline = setup.driver._clock.monotonic_seconds() + 0.01
    setup.node.wanted = lambda event: [effects.Finished("done")] if isinstance(event, events.Tick) else []
    assert await soon(setup.run()) == "done"
    assert setup.node.heard == [events.LeaveAsked(), events.Tick()]


async def test_effects_are_carried_out_in_order(setup: Setup) -> None:
    stories: list[effects.StepCertified] = []
    setup.driver.on_step = stories.append
    told = effects.StepCertified(3, (), 0, 0, None, (), (), ())
    setup.on_leave(
        effects.SendWant(OTHER, (NAME,)),
        effects.SendCertificates((OTHER, THIRD), (certificate(0),)),
        effects.CancelWork(0),
        effects.RosterChanged((OTHER,)),
        told,
        effects.Refused(OTHER, Code.STALE, "old"),
        effects.Refused(OTHER, Code.BAD_COMMIT, "bad"),
        effects.Finished("done"),
    )
    assert await soon(setup.run()) == "done"
    assert setup.story == ["send WANT", "send CERTIFICATE", "send CERTIFICATE", "cancel", "links.keep", "bulk.keep"]
    assert stories == [told]
    assert setup.metrics.refused == {"stale": 1, "bad_commit": 1}


async def test_who_is_banned_is_cut_off_once_the_certificate_is_on_its_way(setup: Setup) -> None:
    """What is sent to a banned peer later is dropped, so the order matters."""
    ban = Ban(OTHER, Reason.WRONG_GRADIENT, 2, bytes(32))
    setup.on_leave(
        effects.SendCertificates((OTHER,), (certificate(0),)),
        effects.StepCertified(3, (), 0, 0, None, (), (), (), (ban,)),
        effects.Finished("banned", banned=True),
    )
    assert await soon(setup.run()) == "banned"
    assert setup.story == ["send CERTIFICATE", "ban"]
    assert setup.driver.banned


async def test_places_are_made_at_once(setup: Setup) -> None:
    setup.on_leave(
        effects.ExpectPart(0, 0, 2, 1, NAME, STATE_BYTES // 2),
        ExpectAggregate(0, 0, 1, blob_digest(b"aggregate"), STATE_BYTES),
        effects.Finished("done"),
    )
    await soon(setup.run())
    assert setup.blobs.is_expected(NAME)
    assert setup.blobs.is_expected(blob_digest(b"aggregate"))


async def test_the_end_cancels_what_still_runs(setup: Setup) -> None:
    ended = []

    async def work(effect: effects.ComputeWork) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(effect.step)

    setup.duties.work = work
    work_effect = effects.ComputeWork(7, Digest(bytes(32)), 2)
    setup.node.wanted = lambda event: (
        [work_effect] if isinstance(event, events.LeaveAsked) else [effects.Finished("done")]
    )
    running = setup.run()
    await until(lambda: setup.node.heard)
    await asyncio.sleep(0)
    setup.queue.offer(events.StateLost())
    assert await soon(running) == "done"
    assert ended == [7]


async def test_the_first_failure_of_the_world_ends_it_with_that_sentence(setup: Setup) -> None:
    async def work(effect: effects.ComputeWork) -> None:
        raise WorldError(f"no room for step {effect.step}")

    setup.duties.work = work
    setup.on_leave(*(effects.ComputeWork(step, Digest(bytes(32)), 2) for step in (1, 2)))
    with pytest.raises(WorldError, match="no room for step 1"):
        await soon(setup.run())


async def test_a_bug_is_not_hidden_and_leaves_nothing_running(setup: Setup) -> None:
    async def work(effect: effects.ComputeWork) -> None:
        if effect.step == 1:
            raise KeyError("a bug")
        await asyncio.get_running_loop().create_future()

    setup.duties.work = work
    setup.on_leave(*(effects.ComputeWork(step, Digest(bytes(32)), 2) for step in (0, 1)))
    with pytest.raises(ExceptionGroup) as caught:
        await soon(setup.run())
    assert isinstance(caught.value.exceptions[0], KeyError)


async def test_after_the_end_stragglers_get_certificates_and_nothing_else(setup: Setup) -> None:
    setup.on_leave(
        effects.SendCertificates((OTHER,), (certificate(0),)),
        effects.SendEnvelope((OTHER,), vote(0)),
        effects.PersistSigned(vote(0)),
    )
    setup.queue.offer(events.LeaveAsked())
    await soon(setup.driver.serve_after_the_end(0.05))
    assert setup.story == ["send CERTIFICATE"]


# --- asking others -----------------------------------------------------------------------------------------


def expect(setup: Setup) -> None:
    setup.blobs.expect_aggregate(ExpectAggregate(0, 0, 1, NAME, STATE_BYTES))


async def test_a_blob_is_taken_from_our_own_disk_first(setup: Setup) -> None:
    expect(setup)
    setup.store.save_update(0, (NAME,), memoryview(DATA))
    setup.on_leave(effects.FetchBlob((OTHER,), NAME))
    setup.run()
    assert await setup.heard(events.BlobArrived) == events.BlobArrived(NAME)
    with setup.blobs.lend(NAME) as view:
        assert view == DATA


async def test_a_rotten_update_on_disk_is_not_believed(setup: Setup, tmp_path: Path) -> None:
    expect(setup)
    setup.store.save_update(0, (NAME,), memoryview(DATA))
    (tmp_path / "updates" / "0.update").write_bytes(bytes(STATE_BYTES))
    setup.on_leave(effects.FetchBlob((), NAME))
    setup.run()
    assert await setup.heard(events.BlobFailed) == events.BlobFailed(NAME)
    assert not setup.blobs.holds(NAME)


async def test_one_peer_after_the_other_is_asked_for_a_blob(setup: Setup) -> None:
    asked = []

    async def blob(peer: PeerId, name: Digest, blobs: BlobStore, begun: Begun) -> bool:
        asked.append(peer)
        if len(asked) == 1:
            raise Refusal(Code.WRONG_DIGEST, "not that")
        if len(asked) == 2:
            raise WorldError("gone")
        return len(asked) == 4

    expect(setup)
    setup.fetcher.blob = blob
    setup.on_leave(effects.FetchBlob((OTHER, THIRD, OTHER, THIRD, OTHER), NAME))
    setup.run()
    await setup.heard(events.BlobArrived)
    assert asked == [OTHER, THIRD, OTHER, THIRD]
    assert setup.metrics.refused == {"wrong_digest": 1}


async def test_a_blob_that_was_pushed_meanwhile_ends_the_asking(setup: Setup) -> None:
    async def blob(peer: PeerId, name: Digest, blobs: BlobStore, begun: Begun) -> bool:
        blobs.put(name, memoryview(DATA))
        raise WorldError("it hung up")

    expect(setup)
    setup.fetcher.blob = blob
    setup.on_leave(effects.FetchBlob((OTHER, THIRD), NAME))
    setup.run()
    assert await setup.heard(events.BlobArrived) == events.BlobArrived(NAME)


async def test_only_so_many_blobs_are_fetched_at_once(setup: Setup) -> None:
    asking, answer = [], asyncio.Event()

    async def blob(peer: PeerId, name: Digest, blobs: BlobStore, begun: Begun) -> bool:
        asking.append(name)
        await answer.wait()
        return True

    setup.fetcher.blob = blob
    names = [blob_digest(bytes([number])) for number in range(3 * FETCHES_AT_ONCE_MAX)]
    setup.on_leave(*(effects.FetchBlob((OTHER,), name) for name in names))
    setup.run()
    await until(lambda: len(asking) == FETCHES_AT_ONCE_MAX)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(asking) == FETCHES_AT_ONCE_MAX
    answer.set()
    await until(lambda: sum(isinstance(event, events.BlobArrived) for event in setup.node.heard) == len(names))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((certificate(3),), events.ChainReceived(OTHER, (certificate(3),))),
        ((), events.ChainFailed(OTHER)),
        (Refusal(Code.MALFORMED, "garbage"), events.ChainFailed(OTHER)),
        (WorldError("gone"), events.ChainFailed(OTHER)),
    ],
)
async def test_a_chain_that_was_asked_for_comes_or_does_not(setup: Setup, answer: Any, expected: events.Event) -> None:
    async def chain(peer: PeerId, first_step: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    setup.fetcher.chain = chain
    setup.on_leave(effects.RequestChain(OTHER, 3))
    setup.run()
    assert await setup.heard(type(expected)) == expected


async def test_a_state_must_be_the_certified_one(setup: Setup) -> None:
    loaded = []
    good, bad = bytes(STATE_BYTES), DATA
    served: dict[PeerId, tuple[int, bytes]] = {OTHER: (10, bad), THIRD: (20, good), key_of(3).peer_id: (10, good)}

    async def state(peer: PeerId, into: memoryview, begun: Begun) -> int:
        step, data = served[peer]
        into[:] = data
        return step

    async def load_fetched(step: int, segment: Any) -> Digest:
        loaded.append((step, bytes(segment.view[:STATE_BYTES])))
        return Digest(bytes(32))

    async def chain(peer: PeerId, first_step: int) -> tuple[Certificate, ...]:
        asked.append((peer, first_step))
        return ()

    asked: list[tuple[PeerId, int]] = []
    setup.fetcher.chain = chain
    setup.node.chain.head.step = 20
    certified = SimpleNamespace(header=SimpleNamespace(state=digest("state", good)))
    setup.node.catch_up.certificate = lambda step: certified if step == 10 else None
    setup.fetcher.state, setup.duties.load_fetched = state, load_fetched
    setup.on_leave(effects.RequestState(tuple(served)))
    setup.run()
    assert await setup.heard(events.StateReady) == events.StateReady(10, Digest(bytes(32)), key_of(3).peer_id)
    assert loaded == [(10, good)]
    assert asked == [(THIRD, 20)]  # only a certificate says what to make of a state from just before our own step
    assert setup.metrics.refused == {"wrong_digest": 1}


async def test_nobody_has_a_state(setup: Setup) -> None:
    async def state(peer: PeerId, into: memoryview, begun: Begun) -> int | None:
        if peer == OTHER:
            raise Refusal(Code.OVERSIZED, "too large")
        if peer == THIRD:
            raise WorldError("gone")
        return None

    setup.fetcher.state = state
    setup.on_leave(effects.RequestState((OTHER, THIRD, key_of(3).peer_id)))
    setup.run()
    assert await setup.heard(events.StateFailed) == events.StateFailed()
    assert setup.driver._parts.pool.idle_bytes > 0
