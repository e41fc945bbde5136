"""Projections of real rows and real rules: honest aggregators never trip, displaced aggregates are caught as stated."""

from __future__ import annotations

import math

import numpy
import numpy.typing
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.compute.projections import directions, project
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows
from crowdsurf.peer.compute.rules.centered_clip import clipped_centre
from crowdsurf.peer.compute.rules.gram import gram_matrix
from crowdsurf.peer.compute.rules.rows import RowSet
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.projection import (
    BLOCK_ELEMENTS,
    PROJECTIONS,
    SPREAD,
    Line,
    balance_problem,
    line_problem,
    tail,
    tolerance,
)

Rows = list[torch.Tensor]
Matrix = numpy.typing.NDArray[numpy.float64]
ITERATIONS_MAX = 1000
VECTOR_FROM_0 = [
    [-95, -233, 139, -115, -157, 79, -35, -215],
    [-111, 107, 147, 33, 95, -51, 91, -31],
    [-185, 205, -229, 17, 165, 55, 231, -227],
]
VECTOR_FROM_A_MILLION = [-87, -171, -23, -3, -213, -151, -253, -17]


def seed_of(number: int) -> bytes:
    return number.to_bytes(32, "little")


# Directions


def test_directions_are_these_on_every_machine() -> None:
    drawn = directions(bytes(range(32)), 0, 8)
    assert drawn.tolist() == VECTOR_FROM_0
    assert directions(bytes(range(32)), 1_000_000, 1_000_008)[0].tolist() == VECTOR_FROM_A_MILLION


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 5))
def test_directions_can_be_read_from_anywhere(first: int, second: int, count: int) -> None:
    start, stop = sorted((first, second))
    whole = directions(seed_of(7), 0, 200, 5)
    assert (directions(seed_of(7), start, stop, count) == whole[:count, start:stop]).all()


def test_directions_are_odd_balanced_uncorrelated_and_of_the_stated_spread() -> None:
    length = 200_000
    drawn = directions(seed_of(1), 0, length, 4).astype(numpy.float64)
    assert set(numpy.unique(drawn)) == set(range(-255, 256, 2))
    # The draws are fixed. Bounds are five standard errors of what uniform draws give.
    assert abs(drawn.mean(axis=1)).max() < 5 * SPREAD / math.sqrt(length)
    assert abs((drawn**2).mean(axis=1) / SPREAD**2 - 1).max() < 5 * math.sqrt(0.8 / length)
    correlations = numpy.corrcoef(numpy.vstack([drawn, numpy.roll(drawn[0], 1)]))
    assert abs(correlations - numpy.eye(5)).max() < 5 / math.sqrt(length)
    counts = numpy.unique(drawn, return_counts=True)[1]
    assert ((counts - drawn.size / 256) ** 2).sum() / (drawn.size / 256) < 256 + 5 * math.sqrt(2 * 256)
    assert (directions(seed_of(2), 0, 64) != directions(seed_of(1), 0, 64)).any()


# Lines


def defined(rows: Rows, aggregate: torch.Tensor, radius: float, seed: bytes) -> list[Line]:
    """The definition, in one go."""
    length = aggregate.numel()
    drawn = torch.from_numpy(directions(seed, 0, length)).double() / SPREAD
    lines = []
    for row in rows:
        difference = row.double() - aggregate.double()
        norm = float(difference.norm())
        clipped = difference * min(1.0, radius / norm) if norm else difference
        lines.append(Line(tuple((drawn @ clipped).tolist()), norm))
    return lines


@pytest.mark.parametrize("length", [1, 5, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 3 * BLOCK_ELEMENTS - 1])
@pytest.mark.parametrize("radius", [0.3, 30.0, math.inf])
def test_lines_are_what_the_definition_says(length: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(length)
    rows = list(torch.randn(4, length, generator=generator))
    aggregate = torch.randn(length, generator=generator)
    rows.append(aggregate.clone())
    lines = project(rows, aggregate, radius, seed_of(3))
    for line, expected in zip(lines, defined(rows, aggregate, radius, seed_of(3)), strict=True):
        assert line_problem(line, expected, radius, length) is None
    assert lines[-1] == Line((0.0,) * PROJECTIONS, 0.0)
    # A contributor has only its own row.
    assert line_problem(lines[2], project([rows[2]], aggregate, radius, seed_of(3))[0], radius, length) is None


def test_one_changed_number_in_a_row_changes_its_line() -> None:
    rows = list(torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)))
    aggregate = torch.zeros(1000)
    claimed = project(rows, aggregate, 1.0, seed_of(1))[0]
    rows[0][17] += 1e-5
    assert line_problem(claimed, project(rows, aggregate, 1.0, seed_of(1))[0], 1.0, 1000) is not None


def test_the_longest_and_shortest_rows_have_lines() -> None:
    huge = torch.full((100,), 3.4e38)
    tiny = torch.full((100,), 1e-45)
    for rows, aggregate in (([huge], -huge), ([tiny], torch.zeros(100))):
        line = project(rows, aggregate, math.inf, seed_of(1))[0]
        assert line.norm == pytest.approx(10.0 * float(rows[0][0].double() - aggregate[0].double()))
    # Numbers where float32 has steps as large as they are cannot be judged; the largest can.
    assert balance_problem([line], math.inf, 0.0, 100) is None
    line = project([huge], -huge, math.inf, seed_of(1))[0]
    assert "add up" in str(balance_problem([line], math.inf, float(huge.double().norm()), 100))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    bad, good = torch.zeros(100), torch.zeros(100)
    bad[99] = number
    for rows, aggregate in (([good, bad], good), ([good], bad), ([bad], bad)):
        with pytest.raises(MisuseError, match="not finite"):
            project(rows, aggregate, 1.0, seed_of(1))


def test_shapes_and_radii_that_do_not_fit_are_refused() -> None:
    row = torch.zeros(4)
    for rows, aggregate in (([row], torch.zeros(5)), ([row.double()], row), ([row], row.view(2, 2))):
        with pytest.raises(MisuseError, match="equal length"):
            project(rows, aggregate, 1.0, seed_of(1))
    for radius in (0.0, -1.0, math.nan):
        with pytest.raises(MisuseError, match="positive"):
            project([row], row, radius, seed_of(1))
    assert project([], row, 1.0, seed_of(1)) == []


# Honest aggregators


def ordinary_rows(generator: numpy.random.Generator, length_min: int, length_max: int) -> Rows:
    """Rows of any scale, with a common mean or none, with twins, and up to (n - 1) // 2 far ones, alone or together."""
    count = int(generator.integers(1, 17))
    length = int(length_min * (length_max / length_min) ** generator.random())
    matrix = generator.standard_normal((count, length))
    if generator.random() < 0.5:
        matrix += generator.standard_normal(length) * generator.uniform(0.0, 3.0)
    if generator.random() < 0.1:
        matrix = matrix[generator.integers(0, count, count)]
    far = int(generator.integers(0, (count - 1) // 2 + 1))
    if generator.random() < 0.5:
        matrix[:far] *= 1e6
    elif far:
        matrix[:far] = 1e6 * matrix[0]
    return list(torch.from_numpy((matrix * 10 ** generator.uniform(-8, 8)).astype(numpy.float32)))


def typical_distance(rows: Rows) -> float:
    """Median distance from the median of each coordinate; the smallest float32 of note if all rows are equal."""
    matrix = torch.stack(rows).double()
    middle = float((matrix - matrix.median(dim=0).values).norm(dim=1).median())
    return max(middle, 1e-4 * float(matrix[-1].norm()), 1e-12)


def problem_of(rows: Rows, aggregate: torch.Tensor, radius: float, seed: bytes) -> str | None:
    lines = project(rows, aggregate, radius, seed)
    return balance_problem(lines, radius, float(aggregate.double().norm()), aggregate.numel())


def centre(rows: Rows, radius: float) -> tuple[torch.Tensor, int]:
    """CenteredClip from float64 inner products, and its number of iterations."""
    weights, result = clipped_centre(gram_matrix(rows, torch.float64), radius, ITERATIONS_MAX, 1e-6)
    aggregate = torch.empty_like(rows[0])
    RowSet(rows).weighted_sum(weights, aggregate)
    return aggregate, result.iterations


def check_ordinary(cases: int, lengths: tuple[int, int], seed: int, in_float64: bool = False) -> int:
    """Asserts that mean and CenteredClip never trip; returns how often CenteredClip did not converge.

    `in_float64`: with inner products in float64. From float32 ones its residual may come out as nothing before it is,
    where the rows of a short part nearly agree (one of 100,000 parts, of length one)."""
    generator = numpy.random.default_rng(seed)
    unfinished = 0
    for case in range(cases):
        rows = ordinary_rows(generator, *lengths)
        aggregate, iterations = torch.empty_like(rows[0]), 0
        radius = min(max(typical_distance(rows) * 10 ** generator.uniform(-2, 2), 1.1e-12), 0.9e12)
        if generator.random() < 0.2:
            radius = math.inf
            aggregate_rows(parse_rule("mean", {}), rows, aggregate)
        elif in_float64:
            aggregate, iterations = centre(rows, radius)
        else:
            iterations = aggregate_rows(parse_rule("centered_clip", {"tau": radius}), rows, aggregate).iterations
        if iterations == ITERATIONS_MAX:
            unfinished += 1
            continue
        assert problem_of(rows, aggregate, radius, seed_of(case)) is None, (seed, case)
    return unfinished


@pytest.mark.parametrize("lengths", [(8, 30), (8, 3000)])
def test_an_honest_aggregator_never_trips(lengths: tuple[int, int]) -> None:
    assert check_ordinary(500, lengths, seed=1) == 0


def test_an_honest_aggregator_never_trips_over_long_parts() -> None:
    assert check_ordinary(20, (1000, 200_000), seed=9) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("in_float64", [False, True])
def test_an_honest_aggregator_never_trips_in_a_hundred_thousand_directions(in_float64: bool) -> None:
    """Three directions for each of 17,000 parts; the products decide how short a part may be."""
    lengths = (1, 30) if in_float64 else (8, 30)
    assert check_ordinary(17_000, lengths, seed=1000, in_float64=in_float64) <= 17


def crafted_rows(generator: numpy.random.Generator, count: int, length: int) -> tuple[Rows, float]:
    """Rows of which one lies where the others' geometric median is and one is a constant, and a short tau: what makes
    inner products least accurate. tau is at least 2^-12 of the norms, as `CLIP_ERROR` asks."""
    matrix: Matrix = generator.standard_normal((count, length))
    matrix += generator.standard_normal(length) * generator.uniform(0, 4) + generator.uniform(-1, 1)
    matrix[0] = generator.uniform(0, 2)
    others = matrix[:-1]
    middle = numpy.median(others, axis=0)
    for _ in range(100):
        weights = 1 / numpy.maximum(numpy.linalg.norm(others - middle, axis=1), 1e-9)
        middle = (weights[:, None] * others).sum(axis=0) / weights.sum()
    norm = numpy.linalg.norm(matrix, axis=1).max()
    radius = float(norm * 2 ** generator.uniform(-12, -1))
    away = generator.standard_normal(length)
    matrix[-1] = middle + away / numpy.linalg.norm(away) * radius * 10 ** generator.uniform(-1, 1.5)
    return list(torch.from_numpy(matrix.astype(numpy.float32))), radius


def test_no_crafted_row_makes_an_honest_aggregator_trip_that_uses_float64_products() -> None:
    generator = numpy.random.default_rng(4)
    for case in range(400):
        count, length = int(generator.integers(3, 12)), int(20_000 ** generator.uniform(0.1, 1.0))
        rows, radius = crafted_rows(generator, count, length)
        aggregate, iterations = centre(rows, radius)
        assert iterations < ITERATIONS_MAX
        assert problem_of(rows, aggregate, radius, seed_of(case)) is None, case


# Displaced aggregates

COUNT, LENGTH = 16, 4000
TAU = math.sqrt(LENGTH)


def displaced(displacement: torch.Tensor) -> tuple[Rows, torch.Tensor]:
    """Rows of norms near tau and their honest aggregate, moved."""
    rows = list(torch.randn(COUNT, LENGTH, generator=torch.Generator().manual_seed(1)))
    aggregate = torch.empty(LENGTH)
    aggregate_rows(parse_rule("centered_clip", {"tau": TAU}), rows, aggregate)
    return rows, aggregate + displacement


def share_and_misses(displacement: torch.Tensor, draws: int) -> tuple[float, float, int]:
    """Tolerance over remainder, the share of single directions that miss, and how many times all three missed."""
    rows, aggregate = displaced(displacement)
    differences = torch.stack(rows).double() - aggregate.double()
    norms = differences.norm(dim=1)
    remainder = (differences * (TAU / norms).clamp(max=1.0)[:, None]).sum(dim=0)
    allowed = tolerance(norms.tolist(), TAU, float(aggregate.double().norm()), LENGTH)
    missed = torch.empty((draws, PROJECTIONS), dtype=torch.bool)
    for draw in range(draws):
        drawn = torch.from_numpy(directions(seed_of(draw), 0, LENGTH)).double() / SPREAD
        missed[draw] = (drawn @ remainder).abs() <= allowed
    return allowed / float(remainder.norm()), float(missed.double().mean()), int(missed.all(dim=1).sum())


@pytest.mark.parametrize("relative", [1e-3, 3e-4, 1e-4])
def test_a_spread_displacement_is_missed_as_often_as_stated(relative: float) -> None:
    """Moved by `relative` times tau; also by the size that a lone liar may get away with, about 1e-4 tau."""
    moved = torch.randn(LENGTH, generator=torch.Generator().manual_seed(2))
    draws = 1500
    share, measured, all_missed = share_and_misses(moved * (relative * TAU / float(moved.norm())), draws)
    stated = math.erf(share / math.sqrt(2))
    if share < 0.3:
        assert stated == pytest.approx(0.8 * share, rel=0.03)
    assert abs(measured - stated) < 5 * math.sqrt(stated * (1 - stated) / (draws * PROJECTIONS)) + 1e-3
    assert abs(all_missed - draws * stated**3) < 5 * math.sqrt(draws * stated**3) + 1


def test_a_displacement_in_two_equal_coordinates_is_missed_as_often_as_stated() -> None:
    moved = torch.zeros(LENGTH)
    moved[:2] = 1000.0 * TAU
    draws = 4000
    share, measured, all_missed = share_and_misses(moved, draws)
    stated = (1 + SPREAD * math.sqrt(2) * share) / 256
    assert 0.5 / 256 < measured < stated + 5 * math.sqrt(stated / (draws * PROJECTIONS))
    assert all_missed == 0


def test_a_displaced_aggregate_is_caught_from_the_published_lines() -> None:
    for relative, problem in ((0.0, False), (0.01, True)):
        moved = torch.randn(LENGTH, generator=torch.Generator().manual_seed(3))
        rows, aggregate = displaced(moved * (relative * TAU / float(moved.norm())))
        for draw in range(50):
            assert (problem_of(rows, aggregate, TAU, seed_of(draw)) is not None) == problem


@pytest.mark.parametrize("step", range(-12, 11, 2))
def test_one_changed_coordinate_is_caught(step: int) -> None:
    """By 2^step of tau: nothing cancels, so it is caught unless all three draws are among the smallest."""
    moved = torch.zeros(LENGTH)
    moved[11] = 2.0**step * TAU
    rows, aggregate = displaced(moved)
    caught = sum(problem_of(rows, aggregate, TAU, seed_of(draw)) is not None for draw in range(40))
    assert caught == 40


def test_a_helper_can_take_over_only_what_its_norm_allows() -> None:
    """A lying aggregator puts the imbalance into the line of a contributor that will not complain."""
    outcomes = set()
    for relative in (0.1, 30.0):
        moved = torch.randn(LENGTH, generator=torch.Generator().manual_seed(3))
        rows, aggregate = displaced(moved * (relative * TAU / float(moved.norm())))
        for draw in range(10):
            lines = project(rows, aggregate, TAU, seed_of(draw))
            others = [math.fsum(line.projections[q] for line in lines[1:]) for q in range(PROJECTIONS)]
            lines[0] = Line(tuple(-total for total in others), lines[0].norm)
            problem = balance_problem(lines, TAU, float(aggregate.double().norm()), LENGTH)
            assert (problem is None) == (max(map(abs, others)) <= tail(LENGTH) * min(TAU, lines[0].norm))
            outcomes.add((relative, problem is None))
    assert (0.1, True) in outcomes
    assert (30.0, False) in outcomes
