"""What every rule means, written from its paper over whole float64 vectors: slow, plain, and sharing no code with ours.

`rows` are (n, d) float64; `byzantine` is f. Where a rule chooses rows, `gap` says how close the choice was.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy
import numpy.typing

Array = numpy.typing.NDArray[numpy.float64]


def squared_distances(rows: Array) -> Array:
    return ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)


def krum_scores(rows: Array, byzantine: int) -> list[float]:
    apart = squared_distances(rows)
    neighbours = min(max(1, len(rows) - byzantine - 2), len(rows) - 1)
    return [sum(sorted(d for j, d in enumerate(apart[i]) if j != i)[:neighbours]) for i in range(len(rows))]


def ranked(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda index: (values[index], index))


def gap(values: list[float], chosen: int) -> float:
    """How much larger the first value left out is than the last one chosen, relative to it; infinite if none is."""
    order = sorted(values)
    if chosen >= len(order):
        return float("inf")
    return (order[chosen] - order[chosen - 1]) / max(abs(order[chosen]), 1e-300)


def krum(rows: Array, byzantine: int) -> Array:
    return rows[ranked(krum_scores(rows, byzantine))[0]]


def multi_krum(rows: Array, byzantine: int) -> Array:
    return rows[ranked(krum_scores(rows, byzantine))[: len(rows) - byzantine]].mean(axis=0)


def median(rows: Array, byzantine: int) -> Array:
    return numpy.median(rows, axis=0)


def trimmed_mean(rows: Array, byzantine: int) -> Array:
    return numpy.sort(rows, axis=0)[byzantine : len(rows) - byzantine].mean(axis=0)


def mean_near_median(rows: Array, keep: int) -> Array:
    """Exact arithmetic, because near the middle two values are often equally near."""
    result = []
    for column in rows.T:
        values = sorted(Fraction(float(value)) for value in column)
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        near = sorted(values, key=lambda value: (abs(value - middle), value))[:keep]
        result.append(float(sum(near) / keep))
    return numpy.array(result)


def meamed(rows: Array, byzantine: int) -> Array:
    return mean_near_median(rows, len(rows) - byzantine)


def bulyan_choice(rows: Array, byzantine: int) -> tuple[list[int], float]:
    """Indexes of the rows chosen and the least gap of all choices."""
    left, chosen, least = list(range(len(rows))), [], float("inf")
    for _ in range(len(rows) - 2 * byzantine):
        scores = krum_scores(rows[left], byzantine)
        least = min(least, gap(scores, 1))
        chosen.append(left.pop(ranked(scores)[0]))
    return chosen, least


def bulyan(rows: Array, byzantine: int) -> Array:
    chosen, _ = bulyan_choice(rows, byzantine)
    return mean_near_median(rows[chosen], len(rows) - 4 * byzantine)


def diameter(rows: Array) -> float:
    return float(squared_distances(rows).max())


def least_diameter(rows: Array, byzantine: int) -> float:
    sets = itertools.combinations(range(len(rows)), len(rows) - byzantine)
    return min(diameter(rows[list(chosen)]) for chosen in sets)


def sign_majority(rows: Array, byzantine: int) -> Array:
    return numpy.sign(numpy.sign(rows).sum(axis=0))


def mean(rows: Array, byzantine: int) -> Array:
    return rows.mean(axis=0)


def nnm(rows: Array, byzantine: int) -> tuple[Array, float]:
    """Mixed rows and the least gap of all choices of neighbours."""
    apart, mixed, least = squared_distances(rows), [], float("inf")
    keep = len(rows) - byzantine
    for i in range(len(rows)):
        others = [-1.0 if j == i else float(apart[i, j]) for j in range(len(rows))]
        least = min(least, gap(others, keep))
        mixed.append(rows[ranked(others)[:keep]].mean(axis=0))
    return numpy.array(mixed), least


def total_distance(rows: Array, point: Array) -> float:
    """What the geometric median minimises."""
    return float(numpy.sqrt(((rows - point) ** 2).sum(axis=1)).sum())


def least_total_distance(rows: Array) -> float:
    """By Weiszfeld's iteration over the vectors; the least value seen, rows included."""
    best = min(total_distance(rows, row) for row in rows)
    point = rows.mean(axis=0)
    for _ in range(2000):
        weights = 1.0 / numpy.maximum(numpy.sqrt(((rows - point) ** 2).sum(axis=1)), 1e-12)
        point = (weights[:, None] * rows).sum(axis=0) / weights.sum()
    return min(best, total_distance(rows, point))
