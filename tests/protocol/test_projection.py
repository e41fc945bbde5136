"""Projections as numbers: which lines an honest aggregator may publish, and which nobody may."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crowdsurf.protocol.manifest import AuditSection, RuleSection
from crowdsurf.protocol.messages import LINE_FLOATS
from crowdsurf.protocol.projection import (
    FLOAT32_MAX,
    LENGTH_SLACK,
    LENGTH_SPREAD,
    PART_ELEMENTS_MAX,
    PROJECTIONS,
    SPREAD,
    TAIL,
    Clipping,
    Line,
    balance_problem,
    clipping_of,
    line_problem,
    line_tolerance,
    longest,
    projection_problem,
    summing_error,
    tail,
    tolerance,
    wrong_line,
    wrong_norm,
)
from tests.protocol.swarm import FakeSigner, manifest_for

LENGTH = 1000
any_float = st.floats(allow_nan=True, allow_infinity=True)
any_line = st.builds(Line, st.lists(any_float, max_size=5).map(tuple), any_float)


def balanced(*values: float, norm: float = 1.0) -> list[Line]:
    """A line for each value, the same in all directions."""
    return [Line((value,) * PROJECTIONS, norm) for value in values]


def test_lines_that_add_up_to_nothing_are_honest() -> None:
    assert balance_problem(balanced(0.5, 0.25, -0.75), 1.0, 1.0, LENGTH) is None
    assert balance_problem([], 1.0, 0.0, LENGTH) is None


@pytest.mark.parametrize("direction", range(PROJECTIONS))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_tolerance_holds_in_each_direction_and_to_both_sides(direction: int, sign: float) -> None:
    allowed = tolerance([1.0, 1.0], 1.0, 1.0, LENGTH)
    for share, problem in ((0.99, False), (1.01, True)):
        values = [0.0] * PROJECTIONS
        values[direction] = sign * share * allowed
        lines = [Line(tuple(values), 1.0), Line((0.0,) * PROJECTIONS, 1.0)]
        text = balance_problem(lines, 1.0, 1.0, LENGTH)
        assert (text is not None and f"direction {direction} add up" in text) == problem


def test_a_projection_longer_than_its_norm_allows_is_refused() -> None:
    for norm, radius in ((0.1, 1.0), (5.0, 0.1)):
        longest = TAIL * 0.1
        assert balance_problem(balanced(longest, -longest, norm=norm), radius, 1.0, LENGTH) is None
        longer = balanced(1.01 * longest, -1.01 * longest, norm=norm)
        assert "longer than" in str(balance_problem(longer, radius, 1.0, LENGTH))
    # With one element the largest draw is 255, however unlikely more of the tail is.
    assert "longer than" in str(balance_problem(balanced(2.0, -2.0), 1.0, 1.0, 1))
    assert tail(1) == 255 / SPREAD


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300])
def test_numbers_that_no_rows_give_are_refused(number: float) -> None:
    good = balanced(0.0, 0.0)
    assert "projection" in str(balance_problem([*good, Line((number,) * PROJECTIONS, 1.0)], 1.0, 1.0, LENGTH))
    assert "norm" in str(balance_problem([*good, Line((0.0,) * PROJECTIONS, number)], math.inf, 1.0, LENGTH))
    assert "aggregate" in str(balance_problem(good, 1.0, number, LENGTH))


def test_negative_norms_and_a_wrong_number_of_projections_are_refused() -> None:
    assert "norm" in str(balance_problem(balanced(0.0, norm=-1.0), 1.0, 1.0, LENGTH))
    assert "norm" in str(balance_problem(balanced(0.0), 1.0, -1.0, LENGTH))
    assert "instead of" in str(balance_problem([Line((0.0,), 1.0)], 1.0, 1.0, LENGTH))


@given(st.lists(any_line, max_size=6), st.floats(1e-12, math.inf), any_float, st.integers(1, 1 << 31))
def test_any_numbers_are_judged_without_an_error(
    lines: list[Line], radius: float, aggregate_norm: float, elements: int
) -> None:
    if balance_problem(lines, radius, aggregate_norm, elements) is None:
        assert math.isfinite(aggregate_norm)
        for line in lines:
            assert math.isfinite(line.norm)
            assert all(abs(value) <= 2.0 * TAIL * min(radius, line.norm) for value in line.projections)


def test_the_longest_rows_there_can_be_are_not_refused() -> None:
    norm = 2.0 * math.sqrt(LENGTH) * FLOAT32_MAX
    assert balance_problem(balanced(norm, -norm, norm=norm), math.inf, norm / 2.0, LENGTH) is None


def test_a_claimed_norm_buys_no_tolerance_beyond_the_clipping_length() -> None:
    honest = tolerance([1.0] * 16, 1.0, 1.0, LENGTH)
    assert tolerance([1.0] * 15 + [1e40], 1.0, 1.0, LENGTH) == honest
    # What it is made of, for 16 rows at tau = |v|: 9 x 16 x (2^-24 + 2^-16 + 1e-6), and little else.
    assert honest == pytest.approx(9 * 16 * (2**-24 + 2**-16 + 1e-6), rel=1e-3)
    assert tolerance([1.0] * 16, math.inf, 1.0, LENGTH) == pytest.approx(9 * 16 * 2**-24, rel=1e-3)


def test_the_sums_over_the_elements_matter_little_up_to_the_largest_part() -> None:
    for elements in (1, LENGTH, 1 << 20, 1 << 26):
        assert summing_error(elements) < 0.1 * tolerance([1.0], 1.0, 0.0, elements)
    assert summing_error(1 << 31) < 1e-4 * tail(1 << 31)


def misses_of_two_equal_coordinates(share: float) -> float:
    """Of all pairs of elements of a direction, those whose sum hides a remainder of norm 1 behind the tolerance
    `share`; the exact probability."""
    sums = Counter(first + second for first in range(-255, 256, 2) for second in range(-255, 256, 2))
    hidden = sum(number for total, number in sums.items() if abs(total) / (SPREAD * math.sqrt(2)) <= share)
    return hidden / 256**2


@pytest.mark.parametrize("share", [0.0, 1e-3, 1 / 150, 0.03, 0.1, 0.3])
def test_two_coordinates_hide_no_more_than_the_formula_says(share: float) -> None:
    exact = misses_of_two_equal_coordinates(share)
    formula = (1 + SPREAD * math.sqrt(2) * share) / 256
    assert exact <= formula
    assert exact > 0.4 * formula  # sums of two odd numbers are even: every other one of those counted


def test_three_directions_are_what_the_stated_miss_rates_need() -> None:
    assert misses_of_two_equal_coordinates(1 / 150) ** PROJECTIONS < 1e-6
    assert misses_of_two_equal_coordinates(1 / 150) ** (PROJECTIONS - 1) > 1e-6
    assert misses_of_two_equal_coordinates(0.1) ** PROJECTIONS < 7e-4


def test_the_spread_is_that_of_the_elements() -> None:
    assert sum(number**2 for number in range(-255, 256, 2)) / 256 == pytest.approx(SPREAD**2)


def test_a_line_is_compared_with_ones_own_within_rounding() -> None:
    own = Line((0.1, -0.2, 0.3), 2.0)
    projection_allowed, norm_allowed = line_tolerance(own.norm, 1.0, LENGTH)
    assert projection_allowed < 1e-10
    assert norm_allowed < 1e-12
    assert line_problem(own, own, 1.0, LENGTH) is None
    near = Line((0.1, -0.2 + 0.9 * projection_allowed, 0.3), 2.0 - 0.9 * norm_allowed)
    assert line_problem(near, own, 1.0, LENGTH) is None
    for wrong, word in (
        (Line((0.1, -0.2 + 1.1 * projection_allowed, 0.3), 2.0), "direction 1"),
        (Line((0.1, math.nan, 0.3), 2.0), "direction 1"),
        (Line(own.projections, 2.0 + 1.1 * norm_allowed), "norm"),
        (Line(own.projections, math.nan), "norm"),
        (Line((0.1, -0.2), 2.0), "2 projections"),
    ):
        assert word in str(line_problem(wrong, own, 1.0, LENGTH))


# --- what a run makes of it ----------------------------------------------------------------------------------


def clipping(rule: str = "centered_clip", rate: float = 0.1, **parameters: float) -> Clipping | None:
    rules = RuleSection(name=rule, parameters=dict(parameters))
    return clipping_of(manifest_for([FakeSigner(0)], audit=AuditSection(rate=rate), rule=rules))


def test_aggregates_are_checked_where_there_are_audits_and_the_rule_has_an_identity() -> None:
    assert clipping() == Clipping(1.0, 1e-6)
    assert clipping(tau=0.25, tolerance=1e-3) == Clipping(0.25, 1e-3)
    assert clipping("mean") == Clipping(math.inf, 0.0)
    assert clipping("median") is None
    assert clipping(rate=0.0) is None
    assert clipping("mean", rate=0.0) is None


def test_a_line_on_the_wire_holds_all_directions_and_a_length() -> None:
    assert LINE_FLOATS == PROJECTIONS + 1


def test_the_rules_own_tolerance_is_honoured() -> None:
    """A run whose rule may stop early must not ban for it."""
    early = balanced(1e-3, 0.0)
    assert projection_problem(early, 1.0, Clipping(1.0, 1e-2)) is None
    assert projection_problem(early, 1.0, Clipping(1.0, 1e-6)) is not None


@pytest.mark.parametrize("own", [1e-30, 1.0, 1e30])
def test_a_length_is_compared_within_rounding(own: float) -> None:
    assert not wrong_norm(own, own)
    assert not wrong_norm(own * (1 + 1e-13), own)
    for claimed in (own * (1 + 1e-9), own * (1 - 1e-9), 0.0, -own, math.nan, math.inf):
        assert wrong_norm(claimed, own)


def test_the_length_of_nothing_is_nothing() -> None:
    assert not wrong_norm(0.0, 0.0)
    assert wrong_norm(1e-300, 0.0)


def test_a_line_that_is_off_is_wrong() -> None:
    clip, own = Clipping(1.0, 1e-6), Line((0.1, -0.2, 0.3), 2.0)
    assert not wrong_line(own, own, clip)
    assert not wrong_line(Line((0.1 + 1e-13, -0.2, 0.3), 2.0 + 1e-13), own, clip)
    for claimed in (
        Line((0.1 + 1e-3, -0.2, 0.3), 2.0),
        Line((0.1, -0.2, math.nan), 2.0),
        Line(own.projections, 2.001),
        Line(own.projections[:2], 2.0),
    ):
        assert wrong_line(claimed, own, clip)


share = st.floats(-0.4, 0.4)


@given(st.floats(-6.0, 6.0), share, share, st.floats(1e-6, 1e6), st.integers(1, 3))
def test_what_one_member_goes_along_with_the_next_one_does_too(
    claimed: float, own: float, other: float, norm: float, times: int
) -> None:
    """Two honest members that add up in different orders, and a claim somewhere near; numbers in units of what their
    own may differ by."""
    clip = Clipping(1.0, 1e-6)
    projection_error, norm_error = line_tolerance(norm, clip.radius, PART_ELEMENTS_MAX)

    def line(off: float) -> Line:
        return Line((off * projection_error, 0.0, 0.0), norm + off * norm_error)

    if not wrong_line(line(claimed), line(own), clip, times):
        assert not wrong_line(line(claimed), line(other), clip, times + 1)
    if not wrong_norm(line(claimed).norm, line(own).norm, times):
        assert not wrong_norm(line(claimed).norm, line(other).norm, times + 1)


# --- how long an aggregate can be ----------------------------------------------------------------------------

Vector = tuple[float, ...]
coordinates = st.floats(-5.0, 5.0)


def length(vector: Vector) -> float:
    return math.hypot(*vector)


def fixed_point(rows: list[Vector], radius: float) -> Vector | None:
    """Where the clipped differences add up to nothing, by plain iteration; None if it does not get there."""
    here = tuple(0.0 for _ in rows[0])
    for _ in range(3000):
        differences = [tuple(a - b for a, b in zip(row, here, strict=True)) for row in rows]
        factors = [min(1.0, radius / length(one)) if length(one) else 1.0 for one in differences]
        pulls = zip(*([f * x for x in one] for f, one in zip(factors, differences, strict=True)), strict=True)
        step = tuple(math.fsum(values) / len(rows) for values in pulls)
        here = tuple(a + b for a, b in zip(here, step, strict=True))
        if length(step) < 1e-9 * radius:
            return here
    return None


@given(
    st.integers(1, 3).flatmap(lambda size: st.lists(st.tuples(*[coordinates] * size), min_size=1, max_size=7)),
    st.lists(st.floats(0.0, 8.0), max_size=4),
    st.floats(0.5, 20.0),
)
def test_no_fixed_point_is_longer(rows: list[Vector], left_out: list[float], radius: float) -> None:
    """Whatever liars send, claim or are left out, as long as honest lengths are not too different."""
    included = [length(row) for row in rows]
    norms = [*included, *left_out]
    there = sorted([*included, *(0.0 for _ in left_out)])
    assume(there[len(there) // 2] <= LENGTH_SPREAD * sorted(norms)[len(norms) // 2])
    result = fixed_point([*rows, *[tuple(0.0 for _ in rows[0])] * len(left_out)], radius)
    assume(result is not None)
    assert result is not None
    assert length(result) <= longest(norms, radius)


@pytest.mark.parametrize(("near", "far"), [(1, 0), (4, 3), (9, 7)])
def test_the_worst_that_liars_can_do_comes_near(near: int, far: int) -> None:
    """Honest rows as long as they may be, and as many liars as there can be far out in the same direction."""
    rows: list[Vector] = [*[(LENGTH_SPREAD,)] * near, *[(1e6,)] * far]
    radius = 100.0
    result = fixed_point(rows, radius)
    assert result is not None
    assert longest([1.0] * len(rows), radius) == pytest.approx(LENGTH_SLACK * length(result), rel=1e-6)
    assert length(result) == pytest.approx(LENGTH_SPREAD + radius * far / near)


def test_the_worst_where_everything_is_clipped_comes_near_too() -> None:
    """Honest rows to both sides, where the line from the result touches the ball that they are in."""
    ratio, radius = 3 / 4, 0.05
    expected = 1 / math.sqrt(1 - ratio**2)
    along, aside = 1 / expected, math.sqrt(1 - expected**-2)
    rows: list[Vector] = [*[(along, aside)] * 2, *[(along, -aside)] * 2, *[(1e6, 0.0)] * 3]
    result = fixed_point(rows, radius)
    assert result is not None
    assert length(result) == pytest.approx(expected, rel=1e-4)
    assert longest([1 / LENGTH_SPREAD] * 7, radius) == pytest.approx(LENGTH_SLACK * expected)


@pytest.mark.parametrize(("honest", "liars"), [(9, 7), (8, 7), (5, 2)])
def test_whoever_leaves_out_everybody_honest_moves_a_part_by_less_than_the_radius(honest: int, liars: int) -> None:
    """What is left out counts as nothing, and there is more of it than of liars: each liar pulls with the radius at
    most, and each row of zeros pulls back with the length of the result."""
    radius = 0.5
    result = fixed_point([*[(1e6, 1e6)] * liars, *[(0.0, 0.0)] * honest], radius)
    assert result is not None
    assert length(result) == pytest.approx(radius * liars / honest, rel=1e-6)


def test_liars_that_claim_less_than_they_send_make_no_honest_aggregate_too_long() -> None:
    rows: list[Vector] = [*[(1.0,)] * 8, *[(1e6,)] * 7]
    result = fixed_point(rows, 1.0)
    assert result is not None
    assert length(result) <= longest([1.0] * 8 + [0.0] * 7, 1.0)


def test_nothing_gives_nothing() -> None:
    assert longest([], 1.0) == 0.0


def test_a_claimed_length_of_a_liar_does_not_matter() -> None:
    assert longest([1.0, 1.0, 1e30], 1.0) == longest([1.0, 1.0, 2.0], 1.0)


def test_the_mean_has_no_bound() -> None:
    """A single input can pull it anywhere."""
    assert longest([1.0, 1.0, 9.0], math.inf) == math.inf
    assert longest([0.0], 1.0) == 0.0
