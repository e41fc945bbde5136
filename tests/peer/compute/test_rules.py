"""Aggregation rules against their definitions in float64, and what strangers' rows can do to them."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.peer.compute.errors import NoUsableRows
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import Aggregation, aggregate_rows
from crowdsurf.protocol.errors import MisuseError

Rows = list[torch.Tensor]


def aggregate(name: str, rows: Rows, **parameters: float | int) -> tuple[torch.Tensor, Aggregation]:
    out = torch.empty_like(rows[0])
    return out, aggregate_rows(parse_rule(name, parameters), rows, out)


def clipped_mean(rows: Rows, center: torch.Tensor, tau: float) -> torch.Tensor:
    """The definition: mean over rows of the difference from `center`, clipped to length tau, in float64."""
    total = torch.zeros_like(center)
    for row in rows:
        difference = row.double() - center
        norm = float(difference.norm())
        total += difference if norm <= tau else difference * (tau / norm)
    return total / len(rows)


def iterate_to_the_end(rows: Rows, tau: float) -> torch.Tensor:
    """Plain CenteredClip over the vectors, from the mean, until it stands still."""
    center = torch.stack(rows).double().mean(dim=0)
    for _ in range(20_000):
        step = clipped_mean(rows, center, tau)
        center = center + step
        if float(step.norm()) < 1e-10 * tau:
            break
    return center


def huber(rows: Rows, center: torch.Tensor, tau: float) -> float:
    """What CenteredClip minimises: mean Huber loss of the distances."""
    distances = torch.stack([(row.double() - center).norm() for row in rows])
    return float(torch.where(distances <= tau, distances**2 / 2, tau * (distances - tau / 2)).mean())


def random_rows(count: int, length: int, seed: int, scale: float = 1.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * scale for _ in range(count)]


many_rows = st.builds(
    random_rows,
    count=st.integers(1, 9),
    length=st.integers(1, 50),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)


@settings(deadline=None, max_examples=50)
@given(many_rows)
def test_mean_is_the_float64_mean_rounded_once(rows: Rows) -> None:
    out, result = aggregate("mean", rows)
    total = torch.zeros(len(rows[0]), dtype=torch.float64)
    for row in rows:
        total += row.double()
    assert torch.equal(out, (total / len(rows)).float())
    assert result == Aggregation((), 0, 0.0)


@settings(deadline=None, max_examples=50)
@given(many_rows, st.floats(0.05, 20.0))
def test_centered_clip_solves_its_equation(rows: Rows, relative_tau: float) -> None:
    tau = relative_tau * max(float(rows[0].norm()), 1e-9)
    out, result = aggregate("centered_clip", rows, tau=tau, iterations_max=100_000)
    left_over = float(clipped_mean(rows, out.double(), tau).norm())
    size = max(float(row.norm()) for row in rows)
    assert left_over <= 1e-5 * tau + 3e-7 * size  # the second term is float32's rounding of v
    assert result.residual <= 1.01e-6 * tau


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_centered_clip_ends_where_plain_iteration_ends(seed: int, tau: float) -> None:
    rows = random_rows(7, 20, seed)
    out, _ = aggregate("centered_clip", rows, tau=tau)
    expected = iterate_to_the_end(rows, tau)
    assert torch.allclose(out.double(), expected, atol=2e-4)
    assert huber(rows, out.double(), tau) <= huber(rows, expected, tau) * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e12, 1e25])
def test_outliers_of_any_size_pull_by_tau_at_most(scale: float) -> None:
    honest = random_rows(9, 10_000, seed=1)
    liars = [torch.full((10_000,), scale)] * 7
    tau = 300.0  # honest rows are about 100 from their mean, so they are never clipped
    out, _ = aggregate("centered_clip", liars + honest, tau=tau)
    center = torch.stack(honest).double().mean(dim=0)
    assert float((out.double() - center).norm()) <= 7 / 9 * tau * 1.001


def test_rows_that_are_nearly_alike_are_told_apart() -> None:
    common = random_rows(1, 20_000, seed=2)[0]
    rows = [common + row for row in random_rows(8, 20_000, seed=3, scale=1e-4)]
    tau = 0.01  # differences have length 0.014, the rows 141
    out, _ = aggregate("centered_clip", rows, tau=tau)
    assert float(clipped_mean(rows, out.double(), tau).norm()) <= 1e-2 * tau


def test_a_large_tau_gives_the_mean_and_equal_rows_give_themselves() -> None:
    rows = random_rows(5, 300, seed=4)
    out, _ = aggregate("centered_clip", rows, tau=1e9)
    assert torch.allclose(out, torch.stack(rows).mean(dim=0), atol=1e-6)
    same, result = aggregate("centered_clip", [rows[0]] * 4, tau=0.1)
    assert torch.equal(same, rows[0])
    assert result.residual == 0.0
    zero, _ = aggregate("centered_clip", [torch.zeros(3)] * 4, tau=0.1)
    assert torch.equal(zero, torch.zeros(3))


def test_the_iteration_limit_is_a_result_and_not_an_error() -> None:
    rows = random_rows(8, 100, seed=5)
    _, result = aggregate("centered_clip", rows, tau=0.01, iterations_max=1)
    assert result.iterations == 1
    assert result.residual > 0.0


@pytest.mark.parametrize("name", ["mean", "centered_clip"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 1000, 69_999])
def test_rows_with_a_non_finite_number_count_as_nothing_and_are_reported(
    name: str, poison: float, position: int
) -> None:
    rows = random_rows(5, 70_000, seed=6)
    nothing = torch.zeros(70_000)
    clean, _ = aggregate(name, [rows[0], rows[2], rows[4], nothing, nothing])
    rows[1][position] = poison
    rows[3][position] = poison
    out, result = aggregate(name, rows)
    assert result.excluded_rows == (1, 3)
    assert torch.equal(out, clean)  # a row of zeros stands for each


@pytest.mark.parametrize("name", ["mean", "centered_clip", "median", "krum", "nnm+centered_clip"])
def test_what_is_absent_counts_as_a_row_of_zeros(name: str) -> None:
    """Nobody gets a majority by saying that others did not come: three rows far out against four that are missing."""
    far = [row + 100.0 for row in random_rows(3, 1000, seed=7)]
    expected, _ = aggregate(name, [*far, *[torch.zeros(1000)] * 4])
    out = torch.empty(1000)
    result = aggregate_rows(parse_rule(name, {}), far, out, absent=4)
    assert result.excluded_rows == ()
    assert torch.equal(out, expected)


def test_when_every_row_is_excluded_the_error_says_so() -> None:
    with pytest.raises(NoUsableRows, match="none of 2 rows is finite"):
        aggregate("mean", [torch.full((4,), float("nan"))] * 2)


def test_rows_that_do_not_fit_are_misuse() -> None:
    rule = parse_rule("mean", {})
    for rows, out in (
        ([torch.zeros(3), torch.zeros(4)], torch.zeros(3)),
        ([torch.zeros(3)], torch.zeros(4)),
        ([torch.zeros(3, dtype=torch.float64)], torch.zeros(3)),
        ([torch.zeros(0)], torch.zeros(0)),
    ):
        with pytest.raises(MisuseError):
            aggregate_rows(rule, rows, out)


@pytest.mark.parametrize("name", ["mean", "centered_clip"])
def test_the_same_rows_give_the_same_bytes_and_stay_as_they_are(name: str) -> None:
    rows = random_rows(6, 50_000, seed=7)
    before = [hashlib.sha256(row.numpy().data).digest() for row in rows]
    first, _ = aggregate(name, rows)
    second, _ = aggregate(name, [row.clone() for row in rows])
    assert torch.equal(first, second)
    assert before == [hashlib.sha256(row.numpy().data).digest() for row in rows]
