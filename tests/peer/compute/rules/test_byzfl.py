"""Our rules beside byzfl's, an independent implementation that is installed for tests only.

Known differences, allowed for here: byzfl's Krum counts one neighbour more (n - f - 1 others), its torch median is the
lower of two middle values (so vectors are given as numpy arrays), and CenteredClip starts at zero and does a fixed
number of iterations. Its CAF and SMEA are random and its clipping pre-steps overwrite their input: not used.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from crowdsurf.peer.compute.bench_aggregate import load_byzfl
from tests.peer.compute.rules import definitions
from tests.peer.compute.rules.strategies import Rows, aggregate, make_rows, share, wide

byzfl: Any = load_byzfl()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(byzfl is None, reason="byzfl is not installed")]

SHAPES = [(16, 4, 3000), (16, 7, 500), (9, 2, 1), (5, 1, 40), (11, 0, 64)]
EXACT = {"median": "Median", "trimmed_mean": "TrMean", "meamed": "Meamed"}


def rows_with_liars(count: int, byzantine: int, length: int, seed: int) -> Rows:
    """Honest rows, and liars that are far away but not so far that float32 loses the others."""
    honest = make_rows("normal", count - byzantine, length, seed)
    return [row * 30 + 3 for row in make_rows("normal", byzantine, length, seed + 1)] + honest


@pytest.mark.parametrize(("count", "byzantine", "length"), SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_coordinate_rules(name: str, count: int, byzantine: int, length: int) -> None:
    rows = rows_with_liars(count, byzantine, length, seed=1)
    kind = getattr(byzfl, EXACT[name])
    theirs = (kind() if name == "median" else kind(f=byzantine))(wide(rows))
    close(aggregate(name, rows, byzantine_share=share(byzantine, count)), theirs)


@pytest.mark.parametrize(("count", "byzantine", "length"), [(16, 4, 3000), (16, 6, 500), (9, 2, 30), (5, 1, 40)])
def test_rules_that_choose_rows(count: int, byzantine: int, length: int) -> None:
    rows = rows_with_liars(count, byzantine, length, seed=2)
    vectors, values = wide(rows), {"byzantine_share": share(byzantine, count)}
    close(aggregate("krum", rows, **values), byzfl.Krum(f=byzantine + 1)(vectors))
    # With far liars the n - f best rows are the honest ones, however many neighbours are counted.
    close(aggregate("multi_krum", rows, **values), byzfl.MultiKrum(f=byzantine)(vectors))
    if count < 16:  # it tries every set
        close(aggregate("mda", rows, **values), byzfl.MDA(f=byzantine)(vectors))
    mixed = byzfl.NNM(f=byzantine)(vectors)
    close(aggregate("nnm+trimmed_mean", rows, **values), byzfl.TrMean(f=byzantine)(mixed))
    close(aggregate("nnm+meamed", rows, **values), byzfl.Meamed(f=byzantine)(mixed), tolerance=1e-5)


@pytest.mark.parametrize(("count", "byzantine", "length"), [(16, 4, 3000), (16, 7, 500), (9, 2, 30), (11, 0, 64)])
def test_rules_with_a_fixed_point(count: int, byzantine: int, length: int) -> None:
    rows = rows_with_liars(count, byzantine, length, seed=3)
    vectors = wide(rows)
    tau = float(numpy.sqrt(2.0 * length))
    close(aggregate("centered_clip", rows, tau=tau), byzfl.CenteredClipping(L=2000, tau=tau)(vectors), tolerance=1e-4)
    theirs = byzfl.GeometricMedian(nu=1e-6, T=2000)(vectors)
    ours = aggregate("geometric_median", rows)
    close(ours, theirs, tolerance=1e-4)
    reached = definitions.total_distance(vectors, ours.double().numpy())
    assert reached <= definitions.total_distance(vectors, theirs) * (1 + 1e-6)


def close(ours: torch.Tensor, theirs: numpy.typing.NDArray[numpy.float64], tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=tolerance, atol=tolerance)
