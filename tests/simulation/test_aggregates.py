"""What simulated peers make of aggregates: lines without numbers, lies about them, and a second look at both."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Projection
from crowdsurf.protocol.projection import Clipping, Line, longest, projection_problem
from crowdsurf.protocol.sim.lying_aggregators import balanced
from crowdsurf.protocol.sim.names import NamesCompute, name_of
from crowdsurf.protocol.sim.vouched import is_too_long, is_unbalanced
from tests.simulation.test_justice import START, attacked

CLIPPING = Clipping(1.0, 1e-6)
ROWS = tuple(name_of("row", number) for number in range(5))
RIGHT, SEED = name_of("right"), name_of("seed")
numbers = st.floats(-0.75, 0.75)
some_lines = st.lists(st.builds(lambda *values: Line(values, 1.0), numbers, numbers, numbers), min_size=1, max_size=12)
lengths = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=12)


def published(lines: tuple[Line, ...]) -> Projection:
    shown = tuple((*line.projections, line.norm) for line in lines)
    return Projection(bytes(32), 0, bytes(32), b"\1", 1.0, shown)


def moved(compute: NamesCompute, strength: float = 1.0) -> Digest:
    return compute.distort(RIGHT, strength, name_of("which way"))


# --- lines without numbers -----------------------------------------------------------------------------------


def test_a_right_aggregate_has_lines_that_add_up() -> None:
    nothing, lines = NamesCompute().project(ROWS, RIGHT, SEED)
    assert nothing is not None
    assert nothing.norm == 1.0
    assert projection_problem((*lines, nothing), nothing.norm, CLIPPING) is None


def test_a_wrong_one_has_not() -> None:
    compute = NamesCompute()
    nothing, lines = compute.project(ROWS, moved(compute), SEED)
    assert nothing is not None
    assert nothing.norm == 1.0
    assert "add up" in (projection_problem(lines, nothing.norm, CLIPPING) or "")


def test_a_line_follows_from_row_aggregate_and_directions() -> None:
    compute = NamesCompute()
    wrong = moved(compute)
    _, lines = compute.project(ROWS, wrong, SEED)
    assert lines == tuple(compute.project((row,), wrong, SEED)[1][0] for row in ROWS)
    assert len(set(lines)) == len(ROWS)
    assert lines != compute.project(ROWS, wrong, name_of("another seed"))[1]


def test_what_was_moved_far_is_long() -> None:
    compute = NamesCompute()
    nothing, _ = compute.project((), moved(compute, 1000.0), SEED)
    assert nothing is not None
    assert nothing.norm == 1000.0


# --- lies about them -----------------------------------------------------------------------------------------


@given(lines=some_lines, data=st.data())
def test_liars_make_up_for_what_is_lacking(lines: list[Line], data: st.DataObject) -> None:
    liars = data.draw(st.sets(st.integers(0, len(lines) - 1), min_size=1))
    changed = balanced(lines, sorted(liars))
    assert [changed[place] for place in range(len(lines)) if place not in liars] == [
        line for place, line in enumerate(lines) if place not in liars
    ]
    assert "add up" not in (projection_problem(changed, 1.0, CLIPPING) or "")


def test_a_late_aggregate_counts_for_nothing() -> None:
    _, report = attacked("late_aggregate", 0, START + 2)
    assert report.violations == []
    headers = [certificate.header for certificate in report.honest[0].disk.certificates]
    liars = sum(not host.honest for host in report.hosts)
    assert [sum(not part for part in header.parts) for header in headers[START - 1 : START + 1]] == [0, liars]


# --- a second look -------------------------------------------------------------------------------------------


@given(some_lines)
def test_checkers_find_nothing_in_what_rules_accept(lines: list[Line]) -> None:
    if projection_problem(lines, 1.0, CLIPPING) is None:
        assert not is_unbalanced(published(tuple(lines)), CLIPPING.radius)


@given(some_lines)
def test_checkers_find_what_rules_refuse(lines: list[Line]) -> None:
    totals = [sum(values) for values in zip(*(line.projections for line in lines), strict=True)]
    if max(map(abs, totals)) > 0.1:
        assert is_unbalanced(published(tuple(lines)), CLIPPING.radius)
        assert projection_problem(lines, 1.0, CLIPPING) is not None


@given(committed=lengths, radius=st.floats(0.01, 10.0))
def test_checkers_and_rules_agree_on_what_is_too_long(committed: list[float], radius: float) -> None:
    allowed = longest(committed, radius)
    assert not is_too_long(allowed, committed, radius) or allowed == 0.0
    assert is_too_long(1.1 * allowed + 0.1, committed, radius)
