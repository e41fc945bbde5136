"""Sorting networks by the zero-one principle: one that orders all rows of zeros and ones orders everything."""

from __future__ import annotations

import itertools

import numpy
import pytest

from crowdsurf.peer.compute.rules.networks import UNREAD, ordered, selection_network, sorting_network
from crowdsurf.peer.compute.rules.rows import Row


def zeros_and_ones(count: int) -> list[Row]:
    """Every combination, as columns."""
    return list(numpy.array(list(itertools.product((0.0, 1.0), repeat=count)), numpy.float32).T.copy())


@pytest.mark.parametrize("count", range(1, 13))
def test_every_rank_of_every_zero_one_input(count: int) -> None:
    rows = zeros_and_ones(count)
    expected = numpy.sort(numpy.stack(rows), axis=0)
    assert numpy.array_equal(numpy.stack(ordered(rows, range(1, count + 1))), expected)
    for rank in range(count):
        only = [1 if other == rank else UNREAD for other in range(count)]
        assert numpy.array_equal(ordered(rows, only)[rank], expected[rank])


@pytest.mark.parametrize("count", range(2, 11))
def test_a_set_of_ranks_has_the_right_values_in_some_order(count: int) -> None:
    rows = zeros_and_ones(count)
    expected = numpy.sort(numpy.stack(rows), axis=0)
    for cut in range(1, (count + 1) // 2):
        kept = slice(cut, count - cut)
        wires = ordered(rows, [1 if cut <= rank < count - cut else UNREAD for rank in range(count)])
        assert numpy.array_equal(numpy.sort(numpy.stack(wires[kept]), axis=0), expected[kept])


def test_what_is_not_read_is_not_computed() -> None:
    assert len(sorting_network(16)) == 63
    assert selection_network((1,) * 16) == ()
    assert len(selection_network((1, *(UNREAD,) * 15))) == 15  # the smallest of sixteen
    assert all(low and not high for _, _, low, high in selection_network((1, *(UNREAD,) * 15)))
    middle = tuple(1 if rank in (7, 8) else UNREAD for rank in range(16))
    assert len(selection_network(middle)) < 63


def test_rows_are_not_changed() -> None:
    rows = zeros_and_ones(5)
    before = [row.copy() for row in rows]
    ordered(rows, range(1, 6))
    assert all(numpy.array_equal(row, old) for row, old in zip(rows, before, strict=True))
