"""The mean: the rule for swarms that trust each other, and the yardstick of every other rule.

The idea: float64 sums in row order, block by block, rounded to float32 once. Every operation is a single
correctly rounded one, so the same rows give the same bytes on every machine.
"""

from __future__ import annotations

from crowdsurf.peer.compute.rules.base import CoordinateRule
from crowdsurf.peer.compute.rules.networks import mean_of
from crowdsurf.peer.compute.rules.rows import Row


class MeanRule(CoordinateRule):
    """Arithmetic mean of the rows."""

    name = "mean"

    def byzantine_max(self, count: int) -> int:
        """None: one row moves the mean anywhere."""
        return 0

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`."""
        mean_of(rows, out)
