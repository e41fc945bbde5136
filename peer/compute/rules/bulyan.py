"""Bulyan: choose rows as Krum does, then stay near their median in every coordinate.

Krum alone can be led far away in single coordinates, because a distance hides them. Bulyan takes Krum's choice
n - 2f times, each time out of the rows that are left, and of those chosen it averages, coordinate by coordinate, the
n - 4f values nearest to their median (El Mhamdi, Guerraoui, Rouault 2018, with Krum).

The idea: the choice needs distances only (`gram.py`), the average only what a sorting network gives (`networks.py`).
"""

from __future__ import annotations

import numpy
import torch

from crowdsurf.peer.compute.rules.base import CoordinateRule, RuleResult
from crowdsurf.peer.compute.rules.gram import Array, squared_distances
from crowdsurf.peer.compute.rules.krum import krum_scores
from crowdsurf.peer.compute.rules.networks import nearest_mean
from crowdsurf.peer.compute.rules.rows import Row, RowSet


class BulyanRule(CoordinateRule):
    """Krum's choice, then a mean around the median."""

    name = "bulyan"

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return True

    def byzantine_max(self, count: int) -> int:
        """n >= 4 f + 3, the condition of the paper."""
        return max(0, (count - 3) // 4)

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`."""
        if byzantine:  # without any, all rows are chosen
            rows = rows.selected(chosen_rows(squared_distances(rows.gram), byzantine))
        return super().combine(rows, byzantine, out, seed)

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`; `rows` are the n - 2f chosen ones."""
        nearest_mean(rows, len(rows) - 2 * byzantine, out)


def chosen_rows(distances: Array, byzantine: int) -> list[int]:
    """The n - 2f rows that Krum picks one after another, by rising index, from squared distances (n, n)."""
    left = list(range(len(distances)))
    chosen = []
    for _ in range(len(distances) - 2 * byzantine):
        best = int(krum_scores(distances[numpy.ix_(left, left)], byzantine).argmin())
        chosen.append(left.pop(best))
    return sorted(chosen)
