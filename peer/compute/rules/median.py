"""The coordinate-wise median (Yin, Chen, Kannan, Bartlett 2018): the middle value, or the mean of the two middle ones.

The idea: a sorting network of which only the middle outputs are computed (`networks.py`).
"""

from __future__ import annotations

from crowdsurf.peer.compute.rules.base import CoordinateRule
from crowdsurf.peer.compute.rules.networks import UNREAD, mean_of, ordered
from crowdsurf.peer.compute.rules.rows import Row


class MedianRule(CoordinateRule):
    """Median of every coordinate."""

    name = "median"

    def byzantine_max(self, count: int) -> int:
        """Fewer than half: then the middle lies between values of others."""
        return (count - 1) // 2

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`."""
        middle = range((len(rows) - 1) // 2, len(rows) // 2 + 1)
        wires = ordered(rows, [1 if rank in middle else UNREAD for rank in range(len(rows))])
        mean_of([wires[rank] for rank in middle], out)
