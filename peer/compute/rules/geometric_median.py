"""The geometric median: the point with the least sum of distances to all rows.

    v = argmin_y sum_i |x_i - y|,  the fixed point of  v = sum w_i x_i / sum w_i  with  w_i = 1 / max(|x_i - v|, nu)

(Weiszfeld's iteration, smoothed as in Pillutla, Kakade, Harchaoui 2019, "RFA".) Within nu of v a row counts as part of
a mean, so nu only has to be small beside the distances between rows.

The idea: up to the factor nu those weights are CenteredClip's with tau = nu, so it is the same computation. It runs to
its fixed point, where RFA stops after three steps from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import Rule, RuleResult
from crowdsurf.peer.compute.rules.centered_clip import clipped_centre
from crowdsurf.peer.compute.rules.rows import RowSet


@dataclass(frozen=True, slots=True)
class GeometricMedianRule(Rule):
    """Smoothed geometric median, iterated to its fixed point in Gram space."""

    name = "geometric_median"

    nu: float
    iterations_max: int
    tolerance: float

    @classmethod
    def parse(cls, reader: ParameterReader) -> Self:
        """Parameters: nu (smoothing length), iterations_max, tolerance (relative residual)."""
        return cls(
            nu=reader.number("nu", 1e-6, 1e-12, 1e12),
            iterations_max=reader.integer("iterations_max", 1000, 1, 100_000),
            tolerance=reader.number("tolerance", 1e-6, 1e-12, 1e-1),
        )

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return True

    def byzantine_max(self, count: int) -> int:
        """Fewer than half: its breakdown point is 1/2 (Lopuhaä, Rousseeuw 1991)."""
        return (count - 1) // 2

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`; the residual is that of CenteredClip with tau = nu."""
        weights, result = clipped_centre(rows.gram, self.nu, self.iterations_max, self.tolerance)
        rows.weighted_sum(weights, out)
        return result
