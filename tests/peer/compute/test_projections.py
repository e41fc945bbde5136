"""Projections of real rows and real rules: honest aggregators never trip, displaced aggregates are caught as stated."""

from __future__ import annotations

import math
import os

import numpy
import numpy.typing
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.compute import projections
from crowdsurf.peer.compute.projections import directions, lines_about
from crowdsurf.peer.compute.rules import centered_clip, parse_rule
from crowdsurf.peer.compute.rules import rows as row_sets
from crowdsurf.peer.compute.rules.base import aggregate_rows, norm_of
from crowdsurf.peer.compute.rules.gram import GRAM_BLOCK_ELEMENTS, gram_matrix
from crowdsurf.protocol.assignment import part_ranges, projection_seed
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.projection import (
    BLOCK_ELEMENTS,
    PROJECTIONS,
    SPREAD,
    Line,
    balance_problem,
    line_problem,
    longest,
    tail,
    tolerance,
)

EXHAUSTIVE = bool(os.environ.get("CROWDSURF_EXHAUSTIVE"))
"""Ten times as many cases, in about ten minutes: `make exhaustive`."""

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


def project(rows: Rows, aggregate: torch.Tensor, radius: float, seed: bytes) -> list[Line]:
    """The lines of finite rows."""
    lines = projections.project(rows, aggregate, radius, seed)
    whole = [line for line in lines if line is not None]
    assert len(whole) == len(rows)
    return whole


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
    zeros = torch.zeros(length)
    assert project([projections.NOTHING], aggregate, radius, seed_of(3)) == project(
        [zeros], aggregate, radius, seed_of(3)
    )
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
def test_there_is_no_line_about_numbers_that_are_not_finite(number: float) -> None:
    bad, good = torch.zeros(100), torch.zeros(100)
    bad[99] = number
    nothing = Line((0.0,) * PROJECTIONS, 0.0)
    assert projections.project([good, bad], good, 1.0, seed_of(1)) == [nothing, None]
    assert projections.project([good, bad], bad, 1.0, seed_of(1)) == [None, None]
    assert math.isnan(norm_of(bad))
    assert lines_about(good, [good, bad, None], [(0, 100)] * 3, 1.0, seed_of(1))[1] == [nothing, None, None]
    assert lines_about(bad, [good[:50], good[50:]], [(0, 50), (50, 100)], 1.0, seed_of(1))[1] == [nothing, None]


def test_a_contributor_expects_just_what_its_aggregators_say() -> None:
    """Each part on directions of its own."""
    generator, ranges, beacon = torch.Generator().manual_seed(5), part_ranges(1000, 3), seed_of(8)
    rows = list(torch.randn(4, 1000, generator=generator))
    whole = torch.randn(1000, generator=generator)
    _, expected = lines_about(rows[2], [whole[start:stop] for start, stop in ranges], ranges, 20.0, beacon)
    for part, (start, stop) in enumerate(ranges):
        parts = [row[start:stop] for row in rows]
        said = project(parts, whole[start:stop], 20.0, projection_seed(beacon, part))[2]
        own = expected[part]
        assert own is not None
        assert line_problem(said, own, 20.0, stop - start) is None
        assert line_problem(project(parts, whole[start:stop], 20.0, beacon)[2], own, 20.0, stop - start)


@pytest.mark.parametrize("length", [0, 1, 5, BLOCK_ELEMENTS + 1])
def test_norms_are_those_of_float64(length: int) -> None:
    vector = torch.randn(length, generator=torch.Generator().manual_seed(length))
    assert norm_of(vector) == pytest.approx(float(vector.double().norm()), rel=1e-14)
    huge = torch.full((length,), 3e38)
    assert norm_of(huge) == pytest.approx(float(huge[:1].double().sum()) * math.sqrt(length), rel=1e-12)


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
    return balance_problem(lines, radius, norm_of(aggregate), aggregate.numel())


def too_long(rows: Rows, aggregate: torch.Tensor, radius: float) -> bool:
    norms = [norm_of(row) for row in rows]
    return norm_of(aggregate) > longest(norms, radius)


def check_ordinary(cases: int, lengths: tuple[int, int], seed: int) -> int:
    """Asserts that mean and CenteredClip never trip; returns how often CenteredClip did not converge."""
    generator = numpy.random.default_rng(seed)
    unfinished = 0
    for case in range(cases):
        rows = ordinary_rows(generator, *lengths)
        aggregate, iterations = torch.empty_like(rows[0]), 0
        radius = min(max(typical_distance(rows) * 10 ** generator.uniform(-2, 2), 1.1e-12), 0.9e12)
        if generator.random() < 0.2:
            radius = math.inf
            aggregate_rows(parse_rule("mean", {}), rows, aggregate)
        else:
            iterations = aggregate_rows(parse_rule("centered_clip", {"tau": radius}), rows, aggregate).iterations
        if iterations == ITERATIONS_MAX:
            unfinished += 1
            continue
        assert problem_of(rows, aggregate, radius, seed_of(case)) is None, (seed, case)
        assert not too_long(rows, aggregate, radius), (seed, case)
    return unfinished


@pytest.mark.parametrize("lengths", [(1, 30), (8, 3000)])
def test_an_honest_aggregator_never_trips(lengths: tuple[int, int]) -> None:
    assert check_ordinary(500, lengths, seed=1) == 0


def test_an_honest_aggregator_never_trips_over_long_parts() -> None:
    assert check_ordinary(20, (1000, 200_000), seed=9) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(1000, 1010 if EXHAUSTIVE else 1001))
def test_an_honest_aggregator_never_trips_in_many_thousand_parts(seed: int) -> None:
    """A hundred thousand with `make exhaustive`. Short ones: what they are made of decides, and a short one has few
    numbers to be unlucky with."""
    assert check_ordinary(10_000 if EXHAUSTIVE else 3_000, (1, 30), seed) <= 10


CRAFTS = ("equal numbers", "nearly equal", "huge", "far off", "tiny and large", "near the centre")


def crafted_rows(generator: numpy.random.Generator, craft: str) -> tuple[Rows, float]:
    """Rows that make inner products least accurate, and tau, long or short beside their distances."""
    count, length = int(generator.integers(3, 13)), int(20_000 ** generator.random())
    matrix: Matrix = generator.standard_normal((count, length))
    if craft == "equal numbers":
        matrix = generator.uniform(0.5, 2.0, (count, 1)) + 10.0 ** generator.uniform(-9, -1) * matrix
    elif craft == "nearly equal":
        matrix = matrix[:1] + 10.0 ** generator.uniform(-9, -2) * matrix
    elif craft == "huge":
        matrix[: (count - 1) // 2] *= 10.0 ** generator.uniform(0, 37)
    elif craft == "far off":
        matrix += 10.0 ** generator.uniform(0, 7)
    elif craft == "tiny and large":
        matrix *= 10.0 ** generator.uniform(-40, 37)
    else:
        return near_the_centre(generator, count)
    rows = list(torch.from_numpy(matrix.clip(-3e38, 3e38).astype(numpy.float32)))
    return rows, min(max(typical_distance(rows) * 10 ** generator.uniform(-6, 2), 1.1e-12), 0.9e12)


def near_the_centre(generator: numpy.random.Generator, count: int) -> tuple[Rows, float]:
    """Rows of nearly equal numbers, as long as float32 products are, of which the last lies where the others' geometric
    median is, but for somewhat more than a tenth of its norm: near enough for float32 to be wrong about its distance,
    not near enough for float64 to be used."""
    length = GRAM_BLOCK_ELEMENTS
    matrix: Matrix = generator.standard_normal((count, length)) * generator.uniform(0.05, 0.5)
    matrix += generator.uniform(0.5, 2.0)
    others = matrix[:-1]
    middle = numpy.median(others, axis=0)
    for _ in range(60):
        weights = 1 / numpy.maximum(numpy.linalg.norm(others - middle, axis=1), 1e-9)
        middle = (weights[:, None] * others).sum(axis=0) / weights.sum()
    norm = float(numpy.linalg.norm(middle))
    away = generator.standard_normal(length)
    matrix[-1] = middle + away / numpy.linalg.norm(away) * norm * generator.uniform(0.09, 0.2)
    return list(torch.from_numpy(matrix.astype(numpy.float32))), float(norm * 2 ** generator.uniform(-7, -2))


def check_crafted(cases: int, craft: str, seed: int) -> None:
    """Asserts that CenteredClip never trips if it has converged."""
    generator = numpy.random.default_rng(seed)
    for case in range(cases):
        rows, radius = crafted_rows(generator, craft)
        aggregate = torch.empty_like(rows[0])
        iterations = aggregate_rows(parse_rule("centered_clip", {"tau": radius}), rows, aggregate).iterations
        if iterations < ITERATIONS_MAX:
            assert problem_of(rows, aggregate, radius, seed_of(case)) is None, (craft, seed, case)


@pytest.mark.parametrize("craft", CRAFTS)
def test_no_crafted_row_makes_an_honest_aggregator_trip(craft: str) -> None:
    check_crafted(40, craft, seed=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("craft", CRAFTS)
def test_no_crafted_row_in_thousands_makes_an_honest_aggregator_trip(craft: str) -> None:
    check_crafted(2000 if EXHAUSTIVE else 200, craft, seed=5)


@pytest.mark.parametrize("name", ["centered_clip", "bucketing+centered_clip"])
@pytest.mark.parametrize("attempts", [1, centered_clip.ATTEMPTS])
def test_wrong_inner_products_are_noticed_and_made_good(
    monkeypatch: pytest.MonkeyPatch, name: str, attempts: int
) -> None:
    """Whatever they come from. The result of a rule behind a pre-step is compared with that of right ones."""

    def wrong_gram(rows: Rows) -> Matrix:
        noise = numpy.random.default_rng(len(rows)).standard_normal((len(rows), len(rows)))
        return gram_matrix(rows, torch.float64) * (1 + 2.0**-10 * (noise + noise.T))

    generator = numpy.random.default_rng(6)
    matrix: Matrix = generator.standard_normal((8, 5000)) + 2.0
    rows, radius = list(torch.from_numpy(matrix.astype(numpy.float32))), 20.0
    right, aggregate = torch.empty(5000), torch.empty(5000)
    rule = parse_rule(name, {"tau": radius})
    aggregate_rows(rule, rows, right)
    monkeypatch.setattr(row_sets, "accurate_gram", wrong_gram)
    monkeypatch.setattr(centered_clip, "ATTEMPTS", attempts)
    aggregate_rows(rule, rows, aggregate)
    is_right = float((aggregate - right).norm()) < 1e-4 * radius
    assert is_right == (attempts > 1)
    if name == "centered_clip":
        assert (problem_of(rows, aggregate, radius, seed_of(1)) is None) == (attempts > 1)


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
