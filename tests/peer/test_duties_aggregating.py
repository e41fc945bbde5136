"""The worker's duties of an aggregator: aggregates of parts, and what there is to say about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer.compute.client import AggregateResult
from crowdsurf.peer.compute.errors import NoUsableRows, WorkFailed
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.assignment import aggregation_seed
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.projection import Clipping, as_often_as_they_count, projection_problem
from tests.peer.shell import STATE_BYTES
from tests.peer.test_duties import CUT, PARTS, Setup, compute, recomputation

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    await made.begin()
    yield made
    made.blobs.close()


# --- aggregates --------------------------------------------------------------------------------------------


async def test_an_aggregate_is_held_and_told_with_who_went_in(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await setup.work()
    whole = setup.client.aggregate

    async def leave_out_the_first(*arguments: Any) -> AggregateResult:
        found = await whole(*arguments)
        return AggregateResult(found.digest, (0,), 0, 0.0)

    monkeypatch.setattr(setup.client, "aggregate", leave_out_the_first)
    await setup.duties.aggregate(effects.AggregatePart(0, CUT, 1, ((0, names[1]), (1, names[1])), 0))
    done = await setup.inbox.event()
    assert isinstance(done, events.PartAggregated)
    assert (done.step, done.part, done.included) == (0, 1, (1,))
    assert setup.blobs.holds(done.digest)


async def test_a_rule_draws_from_the_cut_and_the_part_alone(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await setup.work()
    whole = setup.client.aggregate
    seeds: list[bytes] = []

    async def note_the_seed(*arguments: Any) -> AggregateResult:
        seeds.append(arguments[-2])
        return await whole(*arguments)

    monkeypatch.setattr(setup.client, "aggregate", note_the_seed)
    other = digest("test", b"another cut")
    for cut, part in ((CUT, 0), (CUT, 0), (CUT, 1), (Digest(other), 0)):
        await setup.duties.aggregate(effects.AggregatePart(0, cut, part, ((0, names[part]), (1, names[part])), 0))
    assert [len(seed) for seed in seeds] == [32] * 4
    assert seeds[0] == seeds[1] == aggregation_seed(CUT, 0)
    assert len(set(seeds)) == 3


async def test_a_part_without_a_usable_row_stays_void(setup: Setup) -> None:
    names = await setup.work()

    def fail() -> None:
        raise NoUsableRows("none of 1 rows is finite")

    setup.on("aggregate", fail)
    await setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((0, names[0]),), 0))
    assert setup.inbox.events.empty()


async def test_an_input_of_another_size_is_missing_and_does_no_harm(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has committed, for this part, to the digest of other bytes that are here."""
    names = await setup.work()
    other = Digest(digest("test", b"longer"))
    setup.blobs.expect_aggregate(effects.ExpectAggregate(1, 0, PARTS + 1, other, 60))
    assert setup.blobs.put(other, memoryview(bytes(60)))
    whole = setup.client.aggregate
    absent: list[int] = []

    async def note_the_absent(*arguments: Any) -> AggregateResult:
        absent.append(arguments[-1])
        return await whole(*arguments)

    monkeypatch.setattr(setup.client, "aggregate", note_the_absent)
    await setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((0, names[0]), (1, other)), 1))
    done = await setup.inbox.event()
    assert isinstance(done, events.PartAggregated)
    assert (done.included, absent) == ((0,), [2])
    await setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((1, other),), 0))
    assert setup.inbox.events.empty()


async def test_an_aggregate_of_a_step_that_is_over_is_not_made(setup: Setup) -> None:
    names = await setup.work()
    setup.blobs.retire(1)
    await setup.duties.aggregate(effects.AggregatePart(0, CUT, 0, ((0, names[0]),), 0))
    assert setup.inbox.events.empty()


# --- projections -------------------------------------------------------------------------------------------

BEACON = Digest(bytes([7]) * 32)


async def aggregated(setup: Setup, names: tuple[Digest, ...], absent: int = 0) -> list[Digest]:
    """Every part aggregated from our own work, twice, and from nothing; the names of the aggregates."""
    made = []
    for part, name in enumerate(names):
        await setup.duties.aggregate(effects.AggregatePart(0, CUT, part, ((0, name), (1, name)), absent))
        done = await setup.inbox.event()
        assert isinstance(done, events.PartAggregated)
        made.append(done.digest)
    return made


def projection(names: tuple[Digest, ...], made: list[Digest], part: int, absent: int = 0) -> effects.ProjectPart:
    rows = ((0, names[part]), (1, names[part]))
    return effects.ProjectPart(0, CUT, part, made[part], rows, absent, BEACON)


@pytest.mark.parametrize("absent", [0, 2])
async def test_an_aggregator_says_what_its_contributor_expects_and_its_judge_finds(setup: Setup, absent: int) -> None:
    names = await setup.work()
    made = await aggregated(setup, names, absent)
    said = []
    for part in range(PARTS):
        await setup.duties.project(projection(names, made, part, absent))
        done = await setup.inbox.event()
        assert isinstance(done, events.PartProjected)
        assert (done.step, done.cut, done.part, done.aggregate, done.absent) == (0, CUT, part, made[part], absent)
        assert len(done.lines) == 2 + (absent > 0)
        whole = as_often_as_they_count(done.lines, absent)
        assert projection_problem(whole, done.norm, Clipping(math.inf, 0.0)) is None
        said.append(done)
    await setup.duties.check_aggregates(effects.CheckAggregates(0, (b"", made[1]), BEACON))
    checked = await setup.inbox.event()
    assert isinstance(checked, events.AggregatesChecked)
    assert (checked.aggregates, checked.lines) == ((b"", made[1]), (None, said[1].lines[0]))
    unheld, nothing = checked.nothings
    assert unheld is None
    assert nothing is not None
    assert nothing.norm == said[1].norm
    assert not absent or nothing == said[1].lines[-1]

    asked = recomputation(digest("state", bytes(STATE_BYTES)))
    await setup.duties.recompute(dataclasses.replace(asked, aggregates=(b"", made[1]), beacon=BEACON))
    judged = await setup.inbox.event()
    assert isinstance(judged, events.WorkRecomputed)
    assert judged.lines == checked.lines
    assert len(judged.norms) == PARTS


async def test_who_has_no_work_of_a_step_says_nothing_about_it_and_remembers_its_aggregates(setup: Setup) -> None:
    """Its work was begun, perhaps, and cancelled."""
    state = digest("state", bytes(STATE_BYTES))
    names = await setup.work()
    made = await aggregated(setup, names)
    setup.on("work", setup.duties.cancel)
    await setup.duties.work(compute())
    await setup.duties.check_aggregates(effects.CheckAggregates(0, tuple(made), BEACON))
    checked = await setup.inbox.event()
    assert isinstance(checked, events.AggregatesChecked)
    assert checked.lines == ()
    assert None not in checked.nothings
    asked = dataclasses.replace(recomputation(state), aggregates=tuple(made), beacon=BEACON)
    await setup.duties.recompute(asked)
    judged = await setup.inbox.event()
    assert isinstance(judged, events.WorkRecomputed)
    assert None not in judged.lines


async def test_work_is_told_with_the_lengths_of_its_parts(setup: Setup) -> None:
    await setup.duties.work(compute())
    done = await setup.inbox.event()
    assert isinstance(done, events.WorkDone)
    assert len(done.norms) == PARTS
    assert all(done.norms)


async def test_an_aggregate_that_is_not_held_is_not_looked_at(setup: Setup) -> None:
    names = await setup.work()
    made = await aggregated(setup, names)
    await setup.duties.check_aggregates(effects.CheckAggregates(0, (digest("test", b"?"), made[1]), BEACON))
    checked = await setup.inbox.event()
    assert isinstance(checked, events.AggregatesChecked)
    assert checked.aggregates == (b"", made[1])
    assert (checked.lines[0], checked.nothings[0]) == (None, None)


async def test_nothing_is_said_of_a_step_that_is_over(setup: Setup) -> None:
    names = await setup.work()
    made = await aggregated(setup, names)
    setup.blobs.retire(1)
    await setup.duties.project(projection(names, made, 0))
    await setup.duties.check_aggregates(effects.CheckAggregates(0, tuple(made), BEACON))
    assert setup.inbox.events.empty()


async def test_nothing_is_said_of_what_is_not_finite(setup: Setup) -> None:
    names = await setup.work()
    made = await aggregated(setup, names)

    def fail() -> None:
        raise WorkFailed("not finite")

    setup.on("project", fail)
    await setup.duties.project(projection(names, made, 0))
    assert setup.inbox.events.empty()


@pytest.mark.parametrize("command", ["project", "check"])
async def test_a_worker_that_dies_of_a_projection_is_replaced(setup: Setup, command: str) -> None:
    names = await setup.work()
    made = await aggregated(setup, names)
    setup.die_on(command)
    await setup.duties.project(projection(names, made, 0))
    await setup.duties.check_aggregates(effects.CheckAggregates(0, tuple(made), BEACON))
    told = [type(setup.inbox.events.get_nowait()) for _ in range(setup.inbox.events.qsize())]
    assert events.StateLost in told
    assert told.index(events.StateReady) > told.index(events.StateLost)
    assert len(told) == 3  # the other command is answered, before or after


@pytest.mark.parametrize("speaks_for_itself", [False, True])
async def test_a_liar_decides_what_its_node_is_told(setup: Setup, speaks_for_itself: bool) -> None:
    names = await setup.work()
    made = await aggregated(setup, names)

    class Liar:
        def projected(self, effect: effects.ProjectPart, honest: events.PartProjected) -> events.PartProjected | None:
            return None if speaks_for_itself else dataclasses.replace(honest, norm=-1.0)

    liar: Any = Liar()
    setup.duties.liar = liar
    await setup.duties.project(projection(names, made, 0))
    if speaks_for_itself:
        assert setup.inbox.events.empty()
    else:
        done = await setup.inbox.event()
        assert isinstance(done, events.PartProjected)
        assert done.norm == -1.0
