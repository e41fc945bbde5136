"""Every rule against its definition over whole float64 vectors.

Rules that choose rows are compared on two kinds of rows: small whole numbers, where distances are exact and so are
ties, and others where the choice is not a close one, because there rounding may decide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crowdsurf.peer.compute.rules import RULES, parse_rule
from crowdsurf.peer.compute.rules.gram import accurate_gram
from crowdsurf.peer.compute.rules.networks import nearest_mean
from tests.peer.compute.rules import definitions
from tests.peer.compute.rules.strategies import Rows, aggregate, rows_of, share, wide

pytestmark = pytest.mark.slow

Definition = Callable[[definitions.Array, int], definitions.Array]
COMFORTABLE = 1e-4
"""Relative gap beyond which float32 products cannot change a choice."""

fractions = st.floats(0.0, 1.0)
many = settings(deadline=None, max_examples=120)


def byzantine_of(name: str, rows: Rows, fraction: float) -> int:
    """Any number the rule can bear."""
    return round(fraction * parse_rule(name, {}).byzantine_max(len(rows)))


def assert_near(out: torch.Tensor, expected: definitions.Array, rows: Rows) -> None:
    """Equal up to rounding of a float64 sum and one of float32."""
    wanted = torch.from_numpy(expected.astype(numpy.float32))
    largest = max(float(row.abs().max()) for row in rows)
    torch.testing.assert_close(out, wanted, rtol=3e-7, atol=max(largest * 1e-9, 3e-45))


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "meamed", "sign_majority"])
@many
@given(rows_of(), fractions)
def test_coordinate_rules(name: str, rows: Rows, fraction: float) -> None:
    byzantine = byzantine_of(name, rows, fraction)
    out = aggregate(name, rows, byzantine_share=share(byzantine, len(rows)))
    definition: Definition = getattr(definitions, name)
    assert_near(out, definition(wide(rows), byzantine), rows)


@many
@given(rows_of(count_max=15), fractions)
def test_the_mean_near_the_median_for_every_number_kept(rows: Rows, fraction: float) -> None:
    keep = 1 + round(fraction * (len(rows) - 1))
    out = numpy.empty(len(rows[0]), numpy.float32)
    nearest_mean([row.numpy() for row in rows], keep, out)
    assert_near(torch.from_numpy(out), definitions.mean_near_median(wide(rows), keep), rows)


@pytest.mark.parametrize("count", [41, 64])
def test_many_rows_are_sorted_another_way(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = [torch.randint(-9, 9, (300,), generator=generator).float() for _ in range(count)]
    byzantine = count // 4
    for name in ("median", "trimmed_mean", "meamed"):
        definition: Definition = getattr(definitions, name)
        assert_near(aggregate(name, rows), definition(wide(rows), byzantine), rows)


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
@many
@given(rows_of("ties", "normal", "equal"), fractions)
def test_krum_and_multi_krum(name: str, rows: Rows, fraction: float) -> None:
    byzantine = byzantine_of(name, rows, fraction)
    matrix = wide(rows)
    if not (matrix == matrix.round()).all():
        chosen = 1 if name == "krum" else len(rows) - byzantine
        scores = definitions.krum_scores(matrix, byzantine)
        assume(definitions.gap(scores, chosen) > COMFORTABLE or max(scores) == 0.0)
    out = aggregate(name, rows, byzantine_share=share(byzantine, len(rows)))
    definition: Definition = getattr(definitions, name)
    assert_near(out, definition(matrix, byzantine), rows)


@many
@given(rows_of("ties", "normal", count_min=3, count_max=15), fractions)
def test_bulyan(rows: Rows, fraction: float) -> None:
    byzantine = byzantine_of("bulyan", rows, fraction)
    matrix = wide(rows)
    if not (matrix == matrix.round()).all():
        assume(definitions.bulyan_choice(matrix, byzantine)[1] > COMFORTABLE)
    out = aggregate("bulyan", rows, byzantine_share=share(byzantine, len(rows)))
    assert_near(out, definitions.bulyan(matrix, byzantine), rows)


@many
@given(rows_of("normal", "ties", "equal", "duplicates", count_max=11), fractions)
def test_mda_takes_rows_of_least_diameter(rows: Rows, fraction: float) -> None:
    byzantine = byzantine_of("mda", rows, fraction)
    weights = RULES["mda"].parse(None).weights(accurate_gram(rows), byzantine)  # type: ignore[arg-type,attr-defined]
    members = numpy.flatnonzero(weights)
    assert len(members) == len(rows) - byzantine
    matrix = wide(rows)
    least = definitions.least_diameter(matrix, byzantine)
    assert definitions.diameter(matrix[members]) <= least * (1 + 1e-5) + 1e-12
    out = aggregate("mda", rows, byzantine_share=share(byzantine, len(rows)))
    assert_near(out, matrix[members].mean(axis=0), rows)


@many
@given(rows_of("normal", "ties", "equal", "duplicates", "outliers"))
def test_no_point_is_nearer_to_all_rows_than_the_geometric_median(rows: Rows) -> None:
    matrix = wide(rows)
    out = aggregate("geometric_median", rows)
    rounding = 3e-7 * float(numpy.abs(matrix).max()) * numpy.sqrt(matrix.shape[1]) + 1e-6
    reached = definitions.total_distance(matrix, out.double().numpy())
    assert reached <= definitions.least_total_distance(matrix) * (1 + 1e-5) + len(rows) * rounding


@pytest.mark.parametrize("name", ["trimmed_mean", "multi_krum", "median", "geometric_median"])
@many
@given(rows_of("ties", "normal"), fractions)
def test_nearest_neighbour_mixing(name: str, rows: Rows, fraction: float) -> None:
    """Mixing the vectors and giving them to the rule is what the rule behind `nnm+` does in Gram space."""
    byzantine = byzantine_of(f"nnm+{name}", rows, fraction)
    mixed, least = definitions.nnm(wide(rows), byzantine)
    assume(least > COMFORTABLE or all(float(row[0]).is_integer() for row in rows))
    values = {"byzantine_share": share(byzantine, len(rows))}
    written = [torch.from_numpy(row.astype(numpy.float32)) for row in mixed]
    if name == "multi_krum":
        assume(definitions.gap(definitions.krum_scores(mixed, byzantine), len(rows) - byzantine) > 1e-2)
    out = aggregate(f"nnm+{name}", rows, **values)
    if name == "geometric_median":  # there may be several: all points between two pairs of equal rows
        reached = definitions.total_distance(mixed, out.double().numpy())
        assert reached <= definitions.least_total_distance(mixed) * (1 + 1e-4) + 1e-4
    else:
        torch.testing.assert_close(out, aggregate(name, written, **values), rtol=1e-4, atol=1e-4)


@many
@given(rows_of("ties"), st.integers(1, 5), st.binary(min_size=32, max_size=32))
def test_bucketing_averages_every_row_in_one_bucket(rows: Rows, bucket_rows: int, seed: bytes) -> None:
    rule = parse_rule("bucketing+mean", {"bucket_rows": bucket_rows}).rule
    matrix = rule.mixing(_RowCount(len(rows)), 0, seed)  # type: ignore[attr-defined]
    sizes = (matrix > 0).sum(axis=1)
    assert ((matrix > 0).sum(axis=0) == 1).all()
    assert list(sizes[:-1]) == [bucket_rows] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= bucket_rows
    numpy.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    written = [torch.from_numpy((row @ wide(rows)).astype(numpy.float32)) for row in matrix]
    through = aggregate("bucketing+median", rows, seed, bucket_rows=bucket_rows)
    torch.testing.assert_close(through, aggregate("median", written), rtol=1e-6, atol=1e-6)


class _RowCount:
    """All that bucketing asks of its rows."""

    def __init__(self, count: int) -> None:
        self.count = count
