"""Krum and Multi-Krum: the row, or rows, that lie closest to their neighbours.

    score(i) = sum of |x_i - x_j|^2 over the n - f - 2 rows j nearest to i
    Krum = the row of least score        Multi-Krum = mean of the n - f rows of least score

(Blanchard, El Mhamdi, Guerraoui, Stainer 2017. They leave the number of rows that Multi-Krum averages open; n - f is
the usual one. byzfl counts one neighbour more.) Of equal scores the earlier row wins.
"""

from __future__ import annotations

import numpy

from crowdsurf.peer.compute.rules.base import WeightRule
from crowdsurf.peer.compute.rules.gram import Array, squared_distances


class KrumRule(WeightRule):
    """The one row of least score."""

    name = "krum"

    def byzantine_max(self, count: int) -> int:
        """2 f + 2 < n, the condition of the paper."""
        return max(0, (count - 3) // 2)

    def weights(self, gram: Array, byzantine: int) -> Array:
        """See `WeightRule.weights`."""
        weights = numpy.zeros(len(gram))
        weights[int(krum_scores(squared_distances(gram), byzantine).argmin())] = 1.0
        return weights


class MultiKrumRule(KrumRule):
    """The mean of the n - f rows of least score."""

    name = "multi_krum"

    def weights(self, gram: Array, byzantine: int) -> Array:
        """See `WeightRule.weights`."""
        best = numpy.argsort(krum_scores(squared_distances(gram), byzantine), kind="stable")
        return mean_weights(best[: len(gram) - byzantine].tolist(), len(gram))


def krum_scores(distances: Array, byzantine: int) -> Array:
    """Score of each row, float64 (n,), from squared distances (n, n): at least one neighbour counts if there is one."""
    count = len(distances)
    others = numpy.sort(distances + numpy.diag(numpy.full(count, numpy.inf)), axis=1)
    scores: Array = others[:, : min(max(1, count - byzantine - 2), count - 1)].sum(axis=1)
    return scores


def mean_weights(members: list[int], count: int) -> Array:
    """Weights float64 (count,) that make the mean of some rows."""
    weights = numpy.zeros(count)
    weights[members] = 1.0 / len(members)
    return weights
