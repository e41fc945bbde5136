"""Projections as numbers: which lines an honest aggregator may publish, and which nobody may."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.projection import (
    FLOAT32_MAX,
    PROJECTIONS,
    SPREAD,
    TAIL,
    Line,
    balance_problem,
    delta_max,
    line_problem,
    line_tolerance,
    summing_error,
    tail,
    tolerance,
)

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


def test_rules_without_the_identity_are_not_checked() -> None:
    assert balance_problem(balanced(0.5, 0.5), None, 1.0, LENGTH) is None


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


def test_nothing_is_suspicious_before_any_history() -> None:
    assert delta_max([], 0.5) == math.inf


def test_the_suspicious_distance_follows_the_last_eight_medians() -> None:
    assert delta_max([3.0], 0.5) == 12.5
    assert delta_max([1000.0] * 5 + [1.0] * 8, 0.5) == 4.5
    assert delta_max([1.0] * 5 + [1000.0] * 3, 0.5) == 4.5  # a burst does not set the scale
    assert delta_max([0.0], 0.5) == 0.5
    assert delta_max([1.0], math.inf) == math.inf
