"""The coordinate-wise trimmed mean (Yin, Chen, Kannan, Bartlett 2018): without the f smallest and f largest values.

The idea: a sorting network that only separates the three groups and puts none of them in order (`networks.py`).
"""

from __future__ import annotations

from crowdsurf.peer.compute.rules.base import CoordinateRule
from crowdsurf.peer.compute.rules.networks import UNREAD, mean_of, ordered
from crowdsurf.peer.compute.rules.rows import Row


class TrimmedMeanRule(CoordinateRule):
    """Mean of the n - 2f middle values of every coordinate."""

    name = "trimmed_mean"

    def byzantine_max(self, count: int) -> int:
        """2 f < n: what is left then lies between values of others."""
        return (count - 1) // 2

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`."""
        kept = range(byzantine, len(rows) - byzantine)
        wires = ordered(rows, [1 if rank in kept else UNREAD for rank in range(len(rows))])
        mean_of(wires[kept.start : kept.stop], out)
