"""What one member makes of aggregates: what it works out, what it publishes, and what it holds against a projection."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from crowdsurf.protocol.effects import CheckAggregates, ProjectPart
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.events import AggregatesChecked, PartProjected
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Aggregate, Commit, Kind, Projection, bitmap_of
from crowdsurf.protocol.outcome import opened_beacon
from crowdsurf.protocol.projection import LENGTH_SLACK, LENGTH_SPREAD, Line
from crowdsurf.protocol.scrutiny import INCLUDING, Scrutiny, fits, line_about, lines_of
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import RIGHT, name

STEP = CompleteStep(4, audit=AuditSection(rate=0.25))
NAMES = tuple(name("aggregate", part) for part in range(4))
OPENED = opened_beacon(STEP.facts, STEP.transcript, STEP.cut)
assert OPENED is not None
BEACON = OPENED
SAID = STEP.aggregate(0).payload
GOOD = STEP.projection(0)
COMMITS: dict[int, Commit] = STEP.transcript.commits_in(STEP.cut, STEP.peers)


def fresh(me: int = 0) -> Scrutiny:
    assert STEP.facts.clipping is not None
    return Scrutiny(STEP.facts.clipping, me)


def looked_at(own: Line = RIGHT, norm: float = 1.0, me: int = 0) -> Scrutiny:
    scrutiny = STEP.look_at(NAMES, own, norm, me)
    assert scrutiny is not None
    return scrutiny


def known_to(scrutiny: Scrutiny) -> list[bool]:
    return [scrutiny.is_known(part, name, BEACON) for part, name in enumerate(NAMES)]


def aggregate(**changes: Any) -> Aggregate:
    assert isinstance(SAID, Aggregate)
    return msgspec.structs.replace(SAID, **changes)


def shown(**changes: Any) -> Opened:
    """The projection of part 0 with changes, signed by its aggregator."""
    return STEP.say(STEP.aggregator(0), Kind.PROJECTION, STEP.projection(0, **changes), 0, STEP.subject(0))


def lines(*first: float) -> tuple[tuple[float, ...], ...]:
    """Four lines that add up to nothing, of which two are not so."""
    return ((*first, 1.0), (*(-value for value in first), 1.0), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))


# --- lines ---------------------------------------------------------------------------------------------------


def test_lines_belong_to_those_that_went_in_by_rising_index() -> None:
    said = msgspec.structs.replace(
        GOOD, included=bitmap_of([1, 3], 4), lines=((0.1, 0.2, 0.3, 1.0), (0.4, 0.5, 0.6, 2.0))
    )
    assert lines_of(said) == [Line((0.1, 0.2, 0.3), 1.0), Line((0.4, 0.5, 0.6), 2.0)]
    assert line_about(said, 1) == Line((0.1, 0.2, 0.3), 1.0)
    assert line_about(said, 3) == Line((0.4, 0.5, 0.6), 2.0)
    assert line_about(said, 0) is None
    assert line_about(said, 7) is None
    assert line_about(msgspec.structs.replace(said, lines=said.lines[:1]), 1) is None


def test_a_projection_belongs_to_one_aggregate_of_one_cut() -> None:
    assert fits(aggregate(), GOOD, COMMITS)
    for changes in ({"cut": name("x")}, {"part": 1}, {"digest": name("x")}, {"included": b"\7"}):
        assert not fits(aggregate(**changes), GOOD, COMMITS)


def test_whoever_did_not_go_in_is_counted_as_nothing() -> None:
    """One line about a row of zeros stands for all that are absent, and their number is no matter of opinion."""
    few = bitmap_of([0, 3], 4)
    about = {"included": few, "lines": (*GOOD.lines[:2], (0.25, 0.0, -0.5, 1.0)), "absent": 2}
    said = msgspec.structs.replace(GOOD, **about)
    assert fits(aggregate(included=few), said, COMMITS)
    assert lines_of(said) == [*lines_of(GOOD)[:2], *[Line((0.25, 0.0, -0.5), 1.0)] * 2]
    assert line_about(said, 3) == lines_of(GOOD)[1]
    for absent in (0, 1, 3):
        assert not fits(aggregate(included=few), msgspec.structs.replace(said, absent=absent), COMMITS)


@pytest.mark.parametrize("line", [(0.25, 0.0, -0.5, 1.0), (0.0, 0.0, 0.0, 1.0 + 1e-6)])
def test_everybody_that_holds_an_aggregate_knows_the_line_about_nothing(line: tuple[float, ...]) -> None:
    """Else whoever leaves others out could say of nothing what makes its lines add up."""
    few = {"included": bitmap_of([0, 3], 4), "absent": 2}
    scrutiny, true = looked_at(), (0.0, 0.0, 0.0, 1.0)
    assert not scrutiny.misdescribes(shown(**few, lines=(*GOOD.lines[:2], true)), BEACON, INCLUDING)
    assert scrutiny.misdescribes(shown(**few, lines=(*GOOD.lines[:2], line)), BEACON, INCLUDING)


# --- what has to be worked out -------------------------------------------------------------------------------


def test_every_aggregate_is_looked_at_once() -> None:
    scrutiny = fresh()
    assert scrutiny.to_check(5, (NAMES[0], b"", b"", b""), BEACON) == [
        CheckAggregates(5, (NAMES[0], b"", b"", b""), BEACON)
    ]
    assert scrutiny.to_check(5, (NAMES[0], b"", b"", b""), BEACON) == []
    later = scrutiny.to_check(5, NAMES, BEACON)
    assert later == [CheckAggregates(5, (b"", *NAMES[1:]), BEACON)]
    assert scrutiny.to_check(5, NAMES, BEACON) == []
    assert scrutiny.to_check(5, (b"",) * 4, BEACON) == []


def test_lines_of_an_own_aggregate_are_worked_out_from_what_was_committed_to() -> None:
    scrutiny, own = fresh(), aggregate(included=bitmap_of([0, 2], 4))
    rows = tuple((index, Digest(name("part", index, 0))) for index in (0, 2))
    expected = ProjectPart(5, STEP.cut_name, 0, Digest(NAMES[0]), rows, 2, BEACON)
    assert scrutiny.to_project(5, own, COMMITS, BEACON) == [expected]


def test_only_answers_to_what_was_asked_are_taken() -> None:
    scrutiny = fresh()
    scrutiny.on_checked(AggregatesChecked(0, NAMES, BEACON, (RIGHT,) * 4, (RIGHT,) * 4))
    assert known_to(scrutiny) == [False] * 4
    scrutiny.to_check(0, NAMES[:2], BEACON)
    scrutiny.on_checked(AggregatesChecked(0, NAMES, BEACON, (RIGHT,) * 4, (RIGHT,) * 4))
    assert known_to(scrutiny) == [True, True, False, False]


def test_who_contributed_nothing_knows_lengths_and_no_lines() -> None:
    scrutiny = fresh()
    scrutiny.to_check(0, NAMES, BEACON)
    scrutiny.on_checked(AggregatesChecked(0, NAMES, BEACON, (), (RIGHT,) * 4))
    assert known_to(scrutiny)[0]
    assert not scrutiny.is_false(shown(lines=lines(0.5, 0.0, 0.0)), BEACON, INCLUDING)
    assert scrutiny.is_false(shown(norm=1.1), BEACON, INCLUDING)


# --- what it publishes ---------------------------------------------------------------------------------------


def projected(*about: Line, absent: int = 0) -> PartProjected:
    return PartProjected(0, STEP.cut_name, 0, Digest(NAMES[0]), 1.0, about, absent)


def test_lines_that_add_up_are_published_with_their_lengths() -> None:
    about = (Line((0.5, 0.25, 0.0), 1.0), Line((-0.5, -0.25, 0.0), 2.0))
    assert fresh().publishable(projected(*about), b"\5") == Projection(
        STEP.cut_name, 0, NAMES[0], b"\5", 1.0, ((0.5, 0.25, 0.0, 1.0), (-0.5, -0.25, 0.0, 2.0))
    )


def test_lines_add_up_with_one_for_everybody_that_is_absent() -> None:
    about = (Line((0.5, 0.0, 0.0), 1.0), Line((-0.25, 0.0, 0.0), 1.0))
    assert fresh().publishable(projected(*about, absent=1), b"\1") is None
    published = fresh().publishable(projected(*about, absent=2), b"\1")
    assert published is not None
    assert (published.absent, len(published.lines)) == (2, 2)


@pytest.mark.parametrize(
    "about",
    [
        (Line((0.5, 0.0, 0.0), 1.0), RIGHT),
        (Line((math.nan, 0.0, 0.0), 1.0), RIGHT),
        (Line((0.0, 0.0, 0.0), math.inf), RIGHT),
    ],
)
def test_nobody_publishes_what_would_convict_it(about: tuple[Line, ...]) -> None:
    """A rule that did not converge makes a void part, not a ban."""
    assert fresh().publishable(projected(*about), b"\5") is None


# --- what it makes of others ---------------------------------------------------------------------------------


def test_an_honest_projection_is_neither_unproven_nor_false() -> None:
    scrutiny = looked_at()
    assert not scrutiny.is_unproven(shown(), aggregate(), COMMITS)
    assert not scrutiny.is_false(shown(), BEACON, INCLUDING)
    assert not scrutiny.contradicts(GOOD, BEACON, INCLUDING)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregate": name("another")},
        {"part": 1},
        {"cut": name("another")},
        {"included": b"\7", "lines": GOOD.lines[:3]},
        {"lines": ((0.5, 0.0, 0.0, 1.0), *GOOD.lines[1:])},
        {"lines": ((0.0, 0.0, math.nan, 1.0), *GOOD.lines[1:])},
        {"norm": 5.0},
        {"norm": math.nan},
        {"norm": -1.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_leaves_an_aggregate_without_value(changes: dict[str, Any]) -> None:
    """To anybody, whatever it has worked out itself: nothing has been, here."""
    assert fresh().is_unproven(shown(**changes), aggregate(), COMMITS)


def test_another_message_proves_nothing() -> None:
    assert fresh().is_unproven(STEP.aggregate(0), aggregate(), COMMITS)
    assert not looked_at().is_false(STEP.aggregate(0), BEACON, INCLUDING)


def test_an_aggregate_may_be_as_long_as_what_the_majority_committed_to() -> None:
    """Lengths are those of the commits, of all of them: one that is far out changes nothing. Nor who is left out: that
    counts as nothing, which is short."""
    lengths = {0: 0.5, 1: 0.5, 2: 0.5, 3: 100.0}
    commits = {index: msgspec.structs.replace(COMMITS[index], norms=(own,) * 4) for index, own in lengths.items()}
    scrutiny, bound = fresh(), LENGTH_SLACK * (LENGTH_SPREAD * 0.5 + 1 / 3)
    assert not scrutiny.is_unproven(shown(norm=0.99 * bound), aggregate(), commits)
    assert scrutiny.is_unproven(shown(norm=1.01 * bound), aggregate(), commits)
    few = {"included": bitmap_of([0, 3], 4), "lines": GOOD.lines[:3], "absent": 2}
    without = aggregate(included=bitmap_of([0, 3], 4))
    assert not scrutiny.is_unproven(shown(norm=0.99 * bound, **few), without, commits)
    assert scrutiny.is_unproven(shown(norm=1.01 * bound, **few), without, commits)


def test_a_length_that_is_not_that_of_the_bytes_is_false() -> None:
    scrutiny = looked_at(norm=0.9)
    assert scrutiny.is_false(shown(), BEACON, INCLUDING)
    assert not scrutiny.is_false(shown(norm=0.9), BEACON, INCLUDING)
    assert not scrutiny.contradicts(GOOD, BEACON, INCLUDING)  # it is nobody's line, so nobody can be accused of it


@pytest.mark.parametrize("direction", range(3))
def test_a_line_that_is_not_so_is_contradicted_by_the_member_it_is_about(direction: int) -> None:
    values = [0.0, 0.0, 0.0]
    values[direction] = 0.5
    said = shown(lines=lines(*values))
    assert isinstance(said.payload, Projection)
    for me, is_wrong in ((0, True), (1, True), (2, False), (3, False)):
        assert looked_at(me=me).contradicts(said.payload, BEACON, INCLUDING) == is_wrong
        assert looked_at(me=me).is_false(said, BEACON, INCLUDING) == is_wrong
    assert not fresh().contradicts(said.payload, BEACON, INCLUDING)  # it does not know yet
    assert not fresh().is_false(said, BEACON, INCLUDING)


def test_a_wrong_distance_is_contradicted_too() -> None:
    said = msgspec.structs.replace(GOOD, lines=((0.0, 0.0, 0.0, 2.0), *GOOD.lines[1:]))
    assert looked_at(me=0).contradicts(said, BEACON, INCLUDING)
    assert not looked_at(me=1).contradicts(said, BEACON, INCLUDING)


def test_who_was_left_out_has_no_line_to_contradict() -> None:
    without = msgspec.structs.replace(GOOD, included=b"\6", lines=lines(0.5, 0.0, 0.0)[:2])
    assert not looked_at(me=0).contradicts(without, BEACON, INCLUDING)
    assert looked_at(me=1).contradicts(without, BEACON, INCLUDING)
