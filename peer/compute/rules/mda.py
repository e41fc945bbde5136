"""Minimum-diameter averaging: the mean of the n - f rows whose greatest distance from each other is least.

(El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault 2020; "minimal diameter" there, MDA in byzfl.) Where several sets have
the same diameter, which one it is follows from the search below, the same for everybody.

The idea: trying all sets is hopeless (1,820 for n = 16, f = 4; 5e14 for n = 64, f = 16). But "n - f rows within
distance t of each other" says "f rows that cover every pair further apart than t", a vertex cover. Small covers are
found fast by branching on the row with the most far pairs: out goes either that row, or all that are far from it.
Diameters are tried by halving the sorted list of distances.

The search is bounded: a diameter whose cover is not found within STEPS_MAX steps counts as too small. Then the set is
still n - f rows of known diameter, the same for everybody, but not surely the least.
"""

from __future__ import annotations

import numpy

from crowdsurf.peer.compute.rules.base import WeightRule
from crowdsurf.peer.compute.rules.gram import Array, squared_distances
from crowdsurf.peer.compute.rules.krum import mean_weights

STEPS_MAX = 5_000
"""Steps of one search. 64 rows with random distances and f = 31 took 0.3 s in all, ordinary rows a tenth of that."""


class MinimumDiameterRule(WeightRule):
    """The mean of the n - f rows closest together."""

    name = "mda"

    def byzantine_max(self, count: int) -> int:
        """2 f < n."""
        return (count - 1) // 2

    def weights(self, gram: Array, byzantine: int) -> Array:
        """See `WeightRule.weights`."""
        members = closest_rows(squared_distances(gram), len(gram) - byzantine)
        return mean_weights(members, len(gram))


def closest_rows(distances: Array, size: int) -> list[int]:
    """The `size` rows of least diameter, by rising index, from squared distances (n, n)."""
    count = len(distances)
    diameters = numpy.unique(distances)
    removed = 0
    low, high = 0, len(diameters) - 1  # the greatest distance always does: no pair is further apart
    while low < high:
        middle = (low + high) // 2
        far = [sum(1 << int(other) for other in numpy.flatnonzero(row > diameters[middle])) for row in distances]
        cover = CoverSearch(far).find((1 << count) - 1, count - size)
        if cover is None:
            low = middle + 1
        else:
            high, removed = middle, cover
    members = [row for row in range(count) if not removed >> row & 1]
    # Ties can leave more than asked for; those furthest from all others go.
    order = numpy.argsort(distances[numpy.ix_(members, members)].sum(axis=1), kind="stable")
    return sorted(members[index] for index in order[:size])


class CoverSearch:
    """Finds few vertices of a graph that touch every edge. Vertices are bits; `edges[v]` are the neighbours of v."""

    def __init__(self, edges: list[int]) -> None:
        self._edges = edges
        self._steps = 0

    def find(self, alive: int, budget: int) -> int | None:
        """At most `budget` of the vertices `alive` that touch all edges between them; None if none was found."""
        taken = 0
        while True:
            self._steps += 1
            degrees = {v: (self._edges[v] & alive).bit_count() for v in range(len(self._edges)) if alive >> v & 1}
            vertex = max(degrees, key=degrees.__getitem__, default=-1)
            degree = degrees.get(vertex, 0)
            if degree == 0:
                return taken
            if self._steps > STEPS_MAX or sum(degrees.values()) > 2 * budget * degree:
                return None  # out of time, or more edges than `budget` vertices can touch
            if degree > 2 and degree <= budget:
                break
            if degree <= 2:  # paths and cycles: next to a path's end, or anywhere on a cycle, is always right
                end = next((v for v, ends in degrees.items() if ends == 1), None)
                vertex = vertex if end is None else (self._edges[end] & alive).bit_length() - 1
            taken, alive, budget = taken | 1 << vertex, alive & ~(1 << vertex), budget - 1
        neighbours = self._edges[vertex] & alive
        for out in (1 << vertex, neighbours):
            rest = self.find(alive & ~out & ~(1 << vertex), budget - out.bit_count())
            if rest is not None:
                return taken | out | rest
        return None
