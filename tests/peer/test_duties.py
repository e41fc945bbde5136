"""The worker's work as events: cancelled, failed, or interrupted by the worker's death, never a surprise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.compute.errors import WorkFailed
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.duties import CHECKPOINT_STEPS, DEATHS_MAX, Duties
from crowdsurf.peer.state_store import StateStore
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.assignment import part_ranges
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, digest, finding_digest
from tests.peer.shell import ELEMENTS, STATE_BYTES, FakeCompute, Inbox, key_of, manifest_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")

PARTS = 2
CUT = Digest(bytes(32))


class Setup:
    """Duties over a fake worker that has begun."""

    def __init__(self, folder: Path) -> None:
        self.inbox = Inbox()
        self.client = FakeCompute()
        self.pool = SegmentPool(1 << 20)
        self.blobs = BlobStore(ELEMENTS, self.pool)
        self.store = StateStore(folder, ELEMENTS)
        self.duties: Duties

    async def begin(self, evaluate_steps: int = 0, **changes: Any) -> Duties:
        manifest = manifest_of([key_of(0)], **changes)
        info = await self.client.start(manifest)
        client: Any = self.client
        self.duties = Duties(client, info, manifest, self.blobs, self.store, self.pool, self.inbox.post, evaluate_steps)
        return self.duties

    def on(self, command: str, action: Callable[[], None]) -> None:
        """Do something when a command comes."""

        async def before(name: str) -> None:
            if name == command:
                action()

        self.client.before = before

    def die_on(self, command: str) -> None:
        self.on(command, self.client.kill)

    async def work(self, step: int = 0) -> tuple[Digest, ...]:
        """Compute a gradient and hold it."""
        await self.duties.work(effects.ComputeWork(step, Digest(bytes(32)), PARTS))
        done = await self.inbox.event()
        assert isinstance(done, events.WorkDone)
        return done.parts

    async def state(self, step: int) -> Digest:
        """A state on disk, and its digest."""
        data = bytes([step]) * STATE_BYTES
        await asyncio.to_thread(self.store.save_state, step, memoryview(data))
        return digest("state", data)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    await setup.begin()
    yield setup
    setup.blobs.close()


def compute(step: int = 0) -> effects.ComputeWork:
    return effects.ComputeWork(step, Digest(bytes(32)), PARTS)


# --- audits ------------------------------------------------------------------------------------------------

FINDER = key_of(7).peer_id


def recomputation(state: Digest) -> effects.RecomputeWork:
    return effects.RecomputeWork(0, Digest(bytes(32)), PARTS, state, FINDER)


async def test_a_validator_finds_just_what_its_target_expects(setup: Setup) -> None:
    names = await setup.work(0)
    await setup.duties.finding(effects.ComputeFinding(0, FINDER))
    expected = await setup.inbox.event()
    await setup.duties.recompute(recomputation(digest("state", bytes(STATE_BYTES))))
    found = await setup.inbox.event()
    assert isinstance(expected, events.FindingKnown)
    assert isinstance(found, events.WorkRecomputed)
    assert (expected.step, expected.finder) == (found.step, found.finder) == (0, FINDER)
    assert found.parts == names
    assert found.finding == expected.finding


async def test_work_at_a_state_that_is_forgotten_cannot_be_checked(setup: Setup) -> None:
    await setup.duties.recompute(recomputation(Digest(bytes(32))))
    assert await setup.inbox.event() == events.RecomputeFailed(0, Digest(bytes(32)), FINDER)


async def test_work_that_is_not_finite_is_nobodys(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest peer could not have committed to it, so it equals nothing."""

    async def diverge(*_: Any) -> None:
        raise WorkFailed("not finite")

    monkeypatch.setattr(setup.client, "recompute", diverge)
    await setup.duties.recompute(recomputation(Digest(bytes(32))))
    found = await setup.inbox.event()
    assert isinstance(found, events.WorkRecomputed)
    assert (found.parts, found.finding) == ((), finding_digest(FINDER, b""))


async def test_a_worker_that_dies_of_an_audit_is_replaced_and_the_audit_given_up(setup: Setup) -> None:
    setup.die_on("recompute")
    await setup.duties.recompute(recomputation(digest("state", bytes(STATE_BYTES))))
    told = [type(await setup.inbox.event()) for _ in range(3)]
    assert told == [events.StateLost, events.StateReady, events.RecomputeFailed]
    await setup.duties.finding(effects.ComputeFinding(5, FINDER))  # nothing of that step is here: nothing to say


# --- work --------------------------------------------------------------------------------------------------


async def test_work_is_held_and_told(setup: Setup) -> None:
    names = await setup.work(3)
    assert len(names) == PARTS
    assert all(setup.blobs.holds(name) for name in names)


async def test_work_that_is_cancelled_before_it_began_is_not_done(setup: Setup) -> None:
    work = setup.duties.work(compute())
    setup.duties.cancel()
    await work
    assert setup.inbox.events.empty()


async def test_work_that_is_cancelled_while_it_runs_says_nothing(setup: Setup) -> None:
    setup.on("work", setup.duties.cancel)
    await setup.duties.work(compute())
    assert setup.inbox.events.empty()


async def test_a_step_that_is_begun_again_is_computed_again(setup: Setup) -> None:
    """After a worker died its peer begins the same step anew, and two peers alone cannot go on without it."""
    first = await setup.work(3)
    setup.duties.cancel()
    assert await setup.work(3) == first


async def test_work_that_cannot_be_done_is_told(setup: Setup) -> None:
    def fail() -> None:
        raise WorkFailed("the gradient is not finite")

    setup.on("work", fail)
    await setup.duties.work(compute(5))
    assert await setup.inbox.event() == events.WorkFailed(5, "the gradient is not finite")


# --- updates -----------------------------------------------------------------------------------------------


async def test_an_update_is_applied_kept_and_told(setup: Setup) -> None:
    names = await setup.work()
    await setup.duties.apply(effects.ApplyUpdate(0, names))
    ready = await setup.inbox.event()
    assert isinstance(ready, events.StateReady)
    assert ready.step == 1
    assert all(setup.store.has_part(name) for name in names)
    assert setup.store.state_steps() == []


async def test_what_a_vote_is_for_is_kept_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await setup.work()
    await setup.duties.save_update(0, names)
    assert all(setup.store.has_part(name) for name in names)
    monkeypatch.setattr(setup.store, "save_update", None)
    await setup.duties.save_update(0, names)
    await setup.duties.apply(effects.ApplyUpdate(0, names))
    assert isinstance(await setup.inbox.event(), events.StateReady)
    await setup.duties.save_update(7, (CUT,))  # not held: nothing to keep


async def test_a_void_part_changes_nothing(setup: Setup) -> None:
    before = await setup.duties.load_newest()
    await setup.duties.apply(effects.ApplyUpdate(0, (b"",) * PARTS))
    ready = await setup.inbox.event()
    assert ready == events.StateReady(1, before.digest)


async def test_states_are_saved_and_evaluated_now_and_then(setup: Setup) -> None:
    duties = await setup.begin(evaluate_steps=5)
    initial = await duties.load_newest()
    assert duties.initial_evaluation is not None
    assert initial.step == 0
    for step in range(2 * CHECKPOINT_STEPS):
        await duties.apply(effects.ApplyUpdate(step, (b"",)))
        assert await setup.inbox.event() == events.StateReady(step + 1, initial.digest)
    assert setup.store.state_steps() == [CHECKPOINT_STEPS, 2 * CHECKPOINT_STEPS]
    assert duties.evaluation.step == 2 * CHECKPOINT_STEPS
    assert duties.evaluation.test_accuracy == 0.5


async def test_a_full_disk_is_told_in_words(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise WorldError("the disk is full")

    monkeypatch.setattr(setup.store, "save_update", full)
    with pytest.raises(WorldError, match="the disk is full"):
        await setup.duties.apply(effects.ApplyUpdate(0, (b"",)))


async def test_a_checkpoint_of_another_state_is_not_kept(setup: Setup) -> None:
    """A new worker at the initial state may have taken over in between."""
    await setup.duties.save_last(7, digest("state", b"another"))
    assert setup.store.state_steps() == []
    ready = await setup.duties.load_newest()
    await setup.duties.save_last(7, ready.digest)
    assert setup.store.state_steps() == [7]


async def test_the_last_state_is_given_up_with_the_worker(setup: Setup) -> None:
    setup.client.kill()
    await setup.duties.save_last(7, Digest(bytes(32)))
    assert setup.store.state_steps() == []


# --- states ------------------------------------------------------------------------------------------------


async def test_the_newest_usable_state_is_loaded(setup: Setup) -> None:
    digests = {step: await setup.state(step) for step in (10, 20)}
    assert await setup.duties.load_newest() == events.StateReady(20, digests[20])
    setup.duties.usable = lambda step, name: step <= 10
    assert await setup.duties.load_newest() == events.StateReady(10, digests[10])
    assert setup.store.state_steps() == [10]
    setup.duties.usable = lambda step, name: step == 0 or name != digests[10]
    assert (await setup.duties.load_newest()).step == 0
    assert setup.store.state_steps() == []


async def test_a_state_cut_short_is_passed_over(setup: Setup) -> None:
    await setup.state(10)
    setup.store.save_state(20, memoryview(b"short"))
    assert (await setup.duties.load_newest()).step == 10
    assert setup.pool.idle_bytes > 0


async def test_a_fetched_state_is_kept(setup: Setup) -> None:
    segment = setup.pool.take(STATE_BYTES)
    segment.view[:STATE_BYTES] = b"f" * STATE_BYTES
    assert await setup.duties.load_fetched(30, segment) == digest("state", b"f" * STATE_BYTES)
    assert setup.store.state_steps() == [30]
    setup.pool.release(segment)


# --- death -------------------------------------------------------------------------------------------------


async def test_a_dead_worker_is_replaced_and_the_newest_state_loaded(setup: Setup) -> None:
    newest = await setup.state(10)
    setup.die_on("work")
    await setup.duties.work(compute(12))
    assert await setup.inbox.event() == events.StateLost()
    assert await setup.inbox.event() == events.StateReady(10, newest)
    assert setup.client.starts == 2
    setup.on("work", lambda: None)
    await setup.work(12)


@pytest.mark.parametrize("command", ["work", "aggregate", "apply"])
async def test_whatever_it_dies_of_there_is_one_new_worker_and_one_story(setup: Setup, command: str) -> None:
    names = await setup.work()
    setup.die_on(command)
    victims = [
        setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((0, names[0]),), 0)),
        setup.duties.work(compute()),
        setup.duties.apply(effects.ApplyUpdate(0, names)),
    ]
    await soon(asyncio.gather(*victims))
    told = [setup.inbox.events.get_nowait() for _ in range(setup.inbox.events.qsize())]
    lost = told.index(events.StateLost())
    assert told.count(events.StateLost()) == 1
    ready = [event.step for event in told[lost:] if isinstance(event, events.StateReady)]
    assert ready == [0]
    assert not any(isinstance(event, events.WorkDone) for event in told[lost:])
    assert setup.store.state_steps() == []
    assert setup.client.starts == 2


async def test_a_worker_that_dies_of_a_fetched_state_is_replaced(setup: Setup) -> None:
    setup.die_on("load_state")
    segment = setup.pool.take(STATE_BYTES)
    assert await setup.duties.load_fetched(30, segment) is None
    setup.pool.release(segment)
    assert await setup.inbox.event() == events.StateLost()
    assert isinstance(await setup.inbox.event(), events.StateReady)
    assert setup.store.state_steps() == []


async def test_nothing_is_applied_to_the_state_of_a_worker_that_is_just_starting(setup: Setup) -> None:
    names = await setup.work()
    starting, go_on = asyncio.Event(), asyncio.Event()

    async def before(command: str) -> None:
        if command == "start":
            starting.set()
            await go_on.wait()

    setup.client.before = before
    setup.client.kill()
    recovering = asyncio.create_task(setup.duties.work(compute()))
    await soon(starting.wait())
    segment = setup.pool.take(STATE_BYTES)
    await soon(setup.duties.apply(effects.ApplyUpdate(0, names)))
    await soon(setup.duties.work(compute()))
    await soon(setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((0, names[0]),), 0)))
    assert await setup.duties.load_fetched(30, segment) is None
    go_on.set()
    await soon(recovering)
    assert await setup.inbox.event() == events.StateLost()
    assert isinstance(await setup.inbox.event(), events.StateReady)
    assert setup.inbox.events.empty()
    assert setup.store.state_steps() == []
    setup.pool.release(segment)


async def test_an_update_whose_memory_is_gone_takes_the_peer_back_and_not_down(setup: Setup) -> None:
    """The rules may remember blobs of a step that was applied before the worker died."""
    names = await setup.work()
    setup.blobs.retire(1)
    await setup.duties.apply(effects.ApplyUpdate(0, names))
    assert await setup.inbox.event() == events.StateLost()
    assert isinstance(await setup.inbox.event(), events.StateReady)


async def test_a_worker_that_keeps_dying_is_given_up(setup: Setup) -> None:
    setup.die_on("work")
    for _ in range(DEATHS_MAX):
        await setup.duties.work(compute())
    with pytest.raises(WorldError, match=f"died {DEATHS_MAX + 1} times in a row.*signal 9"):
        await setup.duties.work(compute())


async def test_work_that_is_finished_in_between_counts(setup: Setup) -> None:
    for _ in range(3 * DEATHS_MAX):
        setup.die_on("work")
        await setup.duties.work(compute())
        setup.on("work", lambda: None)
        await until(lambda: setup.inbox.events.qsize() == 2)
        await setup.inbox.event()
        await setup.inbox.event()
        await setup.work()
    assert setup.client.starts == 1 + 3 * DEATHS_MAX


@pytest.mark.parametrize("error", [MisuseError("there is no CUDA device any more"), None])
async def test_a_worker_that_cannot_be_started_again_is_a_failure_in_words(
    setup: Setup, error: Exception | None
) -> None:
    def fail() -> None:
        if error is not None:
            raise error
        setup.client.kill()

    setup.client.kill()
    setup.on("start", fail)
    with pytest.raises(WorldError, match="cannot be started again"):
        await setup.duties.work(compute())


async def test_nothing_is_left_lying_about(setup: Setup) -> None:
    for step in range(200):
        names = await setup.work(step)
        await setup.duties.aggregate(effects.AggregatePart(step, CUT, 0, ((0, names[0]),), 0))
        await setup.inbox.event()
        await setup.duties.apply(effects.ApplyUpdate(step, names))
        await setup.inbox.event()
    assert len(setup.blobs._steps) <= 2
    assert len(part_ranges(ELEMENTS, PARTS)) == PARTS
    assert len(setup.store._located_steps) <= 2 * CHECKPOINT_STEPS
