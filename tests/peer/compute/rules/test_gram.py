"""Inner products and what is built on them: accuracy where float32 is not enough, and bounded searches."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch

from crowdsurf.peer.compute.rules import gram, mda
from crowdsurf.peer.compute.rules.gram import GRAM_BLOCK_ELEMENTS, accurate_gram, as_matrix
from crowdsurf.peer.compute.rules.rows import RowSet
from tests.peer.compute.rules.strategies import KINDS, make_rows, wide


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 100, GRAM_BLOCK_ELEMENTS, GRAM_BLOCK_ELEMENTS + 7])
def test_distances_are_those_of_float64(kind: str, length: int) -> None:
    rows = make_rows(kind, 7, length, seed=1)
    exact = wide(rows)
    expected = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    products = accurate_gram(rows)
    assert numpy.array_equal(products, products.T)
    scale = numpy.maximum.outer(numpy.diagonal(products), numpy.diagonal(products))
    error = numpy.abs(gram.squared_distances(products) - expected)
    assert (error <= 1e-4 * expected + 1e-13 * scale).all()


def test_rows_evenly_spaced_in_one_memory_are_a_matrix() -> None:
    memory = torch.arange(200.0)
    rows = [memory[start : start + 20] for start in (16, 64, 112)]
    found = as_matrix(rows)
    assert found is not None
    assert torch.equal(found, torch.stack(rows))
    assert found.data_ptr() == rows[0].data_ptr()
    assert as_matrix([memory[16:90]]) is not None
    assert as_matrix([memory[17:90]]) is None  # not aligned
    assert as_matrix([memory[0:20], memory[24:44]]) is None  # the second is not
    assert as_matrix([rows[0], rows[2], rows[1]]) is None  # not in order
    assert as_matrix([rows[0], rows[0]]) is None  # the same row twice
    assert as_matrix([memory[0:20], memory[16:36]]) is None  # overlapping
    assert as_matrix([rows[0], rows[1].clone()]) is None
    assert as_matrix([memory[0:64:2], memory[64:128:2]]) is None


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("length", [7, 100, GRAM_BLOCK_ELEMENTS, 2 * GRAM_BLOCK_ELEMENTS + 17])
def test_where_rows_lie_does_not_change_a_bit(count: int, length: int) -> None:
    rows = make_rows("normal", count, length, seed=5)
    expected = accurate_gram(rows)
    aligned = -(-length // 16) * 16
    for offset, space in ((0, length), (0, aligned), (32, aligned + 48), (1, aligned), (3, length + 1)):
        memory = torch.zeros(offset + count * space)
        placed = [memory[offset + i * space :][:length] for i in range(count)]
        for place, row in zip(placed, rows, strict=True):
            place.copy_(row)
        assert accurate_gram(placed).tobytes() == expected.tobytes()


def test_mixed_rows_need_no_vectors() -> None:
    rows = make_rows("normal", 6, 500, seed=2)
    first = numpy.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 0.1, 0.9]])
    second = numpy.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    mixed = RowSet(rows).mixed(first).mixed(second)
    written = second @ first @ wide(rows)
    numpy.testing.assert_allclose(mixed.gram, written @ written.T, rtol=1e-5)
    blocks = [numpy.stack(block) for _, _, block in mixed.blocks(64)]
    numpy.testing.assert_allclose(numpy.concatenate(blocks, axis=1), written, atol=1e-6)
    out = torch.empty(500)
    mixed.weighted_sum(numpy.array([0.25, 0.75]), out)
    numpy.testing.assert_allclose(out.numpy(), numpy.array([0.25, 0.75]) @ written, atol=1e-6)
    assert numpy.allclose(numpy.stack(next(iter(mixed.selected([1]).blocks(500)))[2])[0], written[1], atol=1e-6)
    assert RowSet(rows).selected([4, 2]).count == 2


def test_the_search_for_close_rows_is_bounded_and_still_gives_that_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    best = mda.closest_rows(distances, 30)
    monkeypatch.setattr(mda, "STEPS_MAX", 2)
    hasty = mda.closest_rows(distances, 30)
    assert len(set(best)) == len(set(hasty)) == 30
    assert diameter(distances, best) <= diameter(distances, hasty)


@pytest.mark.parametrize("seed", range(8))
def test_close_rows_are_the_closest(seed: int) -> None:
    """Against all sets, on graphs with long paths and cycles too (rows on a line and on a ring)."""
    generator = numpy.random.default_rng(seed)
    angle = numpy.arange(9) * 2 * numpy.pi / 9
    for rows in (
        generator.standard_normal((9, 3)),
        generator.standard_normal((9, 1)),
        numpy.stack([numpy.cos(angle), numpy.sin(angle)], axis=1) + generator.standard_normal((9, 2)) * 0.01,
    ):
        distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
        for size in range(5, 10):
            least = min(diameter(distances, list(chosen)) for chosen in itertools.combinations(range(9), size))
            assert diameter(distances, mda.closest_rows(distances, size)) == least


def diameter(distances: numpy.typing.NDArray[numpy.float64], members: list[int]) -> float:
    return float(distances[numpy.ix_(members, members)].max())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, GRAM_BLOCK_ELEMENTS + 3])
def test_a_number_that_is_not_finite_shows_in_the_matrix_and_large_ones_do_not(poison: float, position: int) -> None:
    rows = make_rows("huge", 5, GRAM_BLOCK_ELEMENTS + 7, seed=4)
    assert numpy.isfinite(accurate_gram(rows)).all()
    rows[3][position] = poison
    assert not numpy.isfinite(accurate_gram(rows)[3, 3])
