"""MeaMed, the mean around the median (Xie, Koyejo, Gupta 2018): of the n - f values nearest to the median.

The idea: in rising order those values lie side by side, so each of them is either always in, or the nearer one of two
(`networks.nearest_mean`).
"""

from __future__ import annotations

from crowdsurf.peer.compute.rules.base import CoordinateRule
from crowdsurf.peer.compute.rules.networks import nearest_mean
from crowdsurf.peer.compute.rules.rows import Row


class MeaMedRule(CoordinateRule):
    """Mean of the n - f values nearest to the median of every coordinate."""

    name = "meamed"

    def byzantine_max(self, count: int) -> int:
        """2 f < n, the condition of the paper."""
        return (count - 1) // 2

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`."""
        nearest_mean(rows, len(rows) - byzantine, out)
