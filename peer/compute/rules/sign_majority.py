"""Majority of signs (Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, "signSGD with majority vote").

    out = magnitude * sign(sum_i sign(x_i)),  0 where the votes are even

Every row has one vote per coordinate, however large its numbers are. The result has no length of its own: it must go
with a learning rate chosen for steps of `magnitude` in every coordinate, or with an optimizer that scales by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import CoordinateRule
from crowdsurf.peer.compute.rules.rows import Row


@dataclass(frozen=True, slots=True)
class SignMajorityRule(CoordinateRule):
    """The sign most rows have, in every coordinate."""

    name = "sign_majority"

    magnitude: float

    @classmethod
    def parse(cls, reader: ParameterReader) -> Self:
        """Parameter: magnitude, the size of every element of the result."""
        return cls(magnitude=reader.number("magnitude", 1.0, 1e-12, 1e12))

    def byzantine_max(self, count: int) -> int:
        """Fewer than half: then a sign on which all others agree wins."""
        return (count - 1) // 2

    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """See `CoordinateRule.reduce`."""
        votes = numpy.sign(rows[0])
        for row in rows[1:]:
            votes += numpy.sign(row)
        numpy.multiply(numpy.sign(votes), numpy.float32(self.magnitude), out=out)
