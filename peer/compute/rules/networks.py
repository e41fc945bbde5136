"""Order statistics of every coordinate by sorting networks, without a branch and without an index.

The idea: a sorting network is a fixed list of comparators (the smaller value to one wire, the larger to the other),
and each comparator is one minimum and one maximum over whole rows of a block that stays in the cache. Comparators
whose result nobody reads are left out, and so are those that only put values in order that are read as a set (as
the middle values of a trimmed mean are).

Minima and maxima are exact and sums are float64 in a fixed order, so the same rows give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy

from crowdsurf.peer.compute.rules.rows import Row

NETWORK_ROWS_MAX = 40
"""More rows than this are sorted column by column, which is then faster."""

UNREAD = 0
"""Label of a wire that nobody reads."""

_ORDERED = -1
"""Label of a wire whose very value some later comparator needs."""

Comparator = tuple[int, int, bool, bool]
"""Wire of the smaller value, wire of the larger, and whether each of the two is needed."""


def sorting_network(count: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort for any number of wires (Knuth, volume 3, section 5.2.2, algorithm M)."""
    comparators = []
    merged = 1
    while merged < count:
        distance = merged
        while distance >= 1:
            for first in range(distance % merged, count - distance, 2 * distance):
                for wire in range(first, min(first + distance, count - distance)):
                    if wire // (2 * merged) == (wire + distance) // (2 * merged):
                        comparators.append((wire, wire + distance))
            distance //= 2
        merged *= 2
    return comparators


@lru_cache(maxsize=256)
def selection_network(labels: tuple[int, ...]) -> tuple[Comparator, ...]:
    """The part of a sorting network that is needed for what is read of its outputs, smallest first.

    `labels` has one number for each output: UNREAD, or a positive one; outputs of equal label are read as a set."""
    state = list(labels)
    kept: list[Comparator] = []
    for low, high in reversed(sorting_network(len(labels))):
        if state[low] == state[high] != _ORDERED:
            continue  # swapping the two changes nothing that is read
        kept.append((low, high, state[low] != UNREAD, state[high] != UNREAD))
        state[low] = state[high] = _ORDERED
    return tuple(reversed(kept))


def ordered(rows: list[Row], labels: Sequence[int]) -> list[Row]:
    """For each label the values of that rank in every coordinate, float32 (w,); wires labelled alike in any order
    among themselves, unread ones without meaning. `rows` are float32 (w,) and stay as they are."""
    if len(rows) > NETWORK_ROWS_MAX:
        return list(numpy.sort(numpy.stack(rows, axis=1), axis=1).T)
    network = selection_network(tuple(labels))
    if not network:
        return list(rows)
    memory = numpy.empty((len(rows) + 1, len(rows[0])), numpy.float32)
    wires = list(memory)
    spare = wires.pop()
    for wire, row in zip(wires, rows, strict=True):
        wire[:] = row
    for low, high, needs_low, needs_high in network:
        first, second = wires[low], wires[high]
        if needs_low and needs_high:
            numpy.minimum(first, second, out=spare)
            numpy.maximum(first, second, out=second)
            wires[low], spare = spare, first
        elif needs_low:
            numpy.minimum(first, second, out=first)
        else:
            numpy.maximum(first, second, out=second)
    return wires


def mean_of(rows: Sequence[Row], out: Row) -> None:
    """`out` = mean of the rows, added up in float64 in row order, rounded once. Finite rows give a finite mean."""
    total = rows[0].astype(numpy.float64)
    for row in rows[1:]:
        total += row
    total /= len(rows)
    out[:] = total


def nearest_mean(rows: list[Row], keep: int, out: Row) -> None:
    """`out` = mean of the `keep` (1 to n) values nearest to the median of each coordinate; of two equally near ones
    the smaller.

    In rising order those values are a window x[s] ... x[s + keep - 1], and the window goes on from s to s + 1 exactly
    where x[s + keep] is nearer to the median than x[s]. A window has one value of every residue of positions modulo
    `keep`, so each residue starts with its smallest value, which its next ones replace where they are nearer.
    """
    count = len(rows)
    middle = ((count - 1) // 2, count // 2)
    drop = count - keep
    # Positions before `drop` and from `keep` on are compared, and so are the two in the middle; the rest is a set.
    fixed = [drop <= rank < keep and rank not in middle for rank in range(count)]
    wires = ordered(rows, [1 if is_fixed else rank + 2 for rank, is_fixed in enumerate(fixed)])
    twice_median = numpy.add(wires[middle[0]], wires[middle[1]], dtype=numpy.float64)
    chosen = wires[:keep]
    for start in range(drop):
        low, high = wires[start], wires[start + keep]
        nearer = numpy.add(low, high, dtype=numpy.float64) < twice_median  # high - median < median - low
        chosen[start % keep] = numpy.where(nearer, high, chosen[start % keep])
    mean_of(chosen, out)
