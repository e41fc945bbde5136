"""Nearest-neighbour mixing: every row becomes the mean of the n - f rows nearest to it, itself included.

(Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023.) Honest rows come closer together, so a rule behind it has
less room to be led astray. Of rows equally near the earlier ones count.

The idea: a mixing matrix from distances alone; no mixed row is ever written (`rows.py`).
"""

from __future__ import annotations

import numpy

from crowdsurf.peer.compute.rules.base import PreStep
from crowdsurf.peer.compute.rules.gram import Array, squared_distances
from crowdsurf.peer.compute.rules.rows import RowSet


class NearestNeighbourMixing(PreStep):
    """Means of nearest neighbours."""

    name = "nnm"

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return True

    def byzantine_max(self, count: int) -> int:
        """As many as the rule behind it: mixing keeps their number. It needs 2 f < n."""
        return min(self.inner.byzantine_max(count), (count - 1) // 2)

    def mixing(self, rows: RowSet, byzantine: int, seed: bytes) -> Array:
        """See `PreStep.mixing`."""
        if byzantine == 0:
            return numpy.full((rows.count, rows.count), 1.0 / rows.count)
        distances = squared_distances(rows.gram)
        numpy.fill_diagonal(distances, -1.0)  # itself first, also among equal rows
        nearest = numpy.argsort(distances, axis=1, kind="stable")[:, : rows.count - byzantine]
        matrix = numpy.zeros_like(distances)
        numpy.put_along_axis(matrix, nearest, 1.0 / nearest.shape[1], axis=1)
        return matrix
