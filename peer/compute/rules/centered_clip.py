"""CenteredClip: the centre v at which the differences of all rows, clipped to length tau, add up to nothing.

    sum_i (x_i - v) * min(1, tau / |x_i - v|) = 0          (Karimireddy, He, Jaggi 2021, iterated to its fixed point)

So a row pulls v by at most tau / n, whatever it says. tau is the length of a *part's* difference; a large one
gives the mean, a small one the geometric median.

The idea: v is always a weighted sum of the rows, so all iterations can run on the n weights, with distances
taken from the matrix of inner products (`gram.py`).

- The start is the medoid, the row with the least sum of distances to all others: with an honest majority it is
  never an outlier. The limit does not depend on the start, the number of iterations does.
- The step is v <- sum w_i x_i / sum w_i with w_i = min(1, tau / |x_i - v|): same fixed point as the usual
  v <- v + mean(w_i (x_i - v)), never slower, much faster when tau is small and everything is clipped.
- A tau much shorter than the distances begins long, at the medoid's median distance, and is shortened whenever the
  iteration has nearly settled: a row that v happens to be close to would hold it for thousands of steps otherwise.
- It stops when the residual |mean of w_i (x_i - v)| is at most `tolerance` times the mean clipped distance.
  If `iterations_max` comes first, the v reached then is the result, for everybody alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy
import torch

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import Rule, RuleResult
from crowdsurf.peer.compute.rules.gram import Array, squared_distances
from crowdsurf.peer.compute.rules.rows import RowSet

SHORTER = 0.1
"""By what a clipping length that is still too long is multiplied."""

NEXT_LENGTH = 0.03
"""Relative residual at which that happens."""


@dataclass(frozen=True, slots=True)
class CenteredClipRule(Rule):
    """CenteredClip, iterated to its fixed point in Gram space."""

    name = "centered_clip"

    tau: float
    iterations_max: int
    tolerance: float

    @classmethod
    def parse(cls, reader: ParameterReader) -> Self:
        """Parameters: tau (clipping length), iterations_max, tolerance (relative residual)."""
        return cls(
            tau=reader.number("tau", 1.0, 1e-12, 1e12),
            iterations_max=reader.integer("iterations_max", 1000, 1, 100_000),
            tolerance=reader.number("tolerance", 1e-6, 1e-12, 1e-1),
        )

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return True

    def byzantine_max(self, count: int) -> int:
        """Fewer than half: f such rows move v by at most f tau / (n - f) if the others lie within tau of it.

        That is a bound on one step. The paper proves convergence of training for a tenth only."""
        return (count - 1) // 2

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`; the residual is the norm of the mean clipped difference, in units of the rows."""
        weights, result = clipped_centre(rows.gram, self.tau, self.iterations_max, self.tolerance)
        rows.weighted_sum(weights, out)
        return result


def clipped_centre(gram: Array, tau: float, iterations_max: int, tolerance: float) -> tuple[Array, RuleResult]:
    """Weights of the rows at the fixed point, from the float64 matrix of inner products, shape (n, n)."""
    squares = numpy.diagonal(gram)
    apart = numpy.sqrt(squared_distances(gram))
    medoid = int(apart.sum(axis=1).argmin())
    weights = numpy.zeros(len(gram))
    weights[medoid] = 1.0
    length = max(tau, float(numpy.median(apart[medoid])))
    for iteration in range(iterations_max + 1):
        if 2 * iteration >= iterations_max:
            length = tau
        products = gram @ weights
        distances = numpy.sqrt(numpy.maximum(squares - 2.0 * products + weights @ products, 0.0))
        clip = length / numpy.maximum(distances, length)
        target = clip / clip.sum()
        step = target - weights
        residual = float(numpy.sqrt(max(step @ gram @ step, 0.0)) * clip.mean())
        clipped = float(numpy.minimum(distances, length).mean())
        if length == tau and residual <= tolerance * clipped:
            break
        if length > tau and residual <= NEXT_LENGTH * clipped:
            length = max(tau, length * SHORTER)
        if iteration < iterations_max:
            weights = target
    return weights, RuleResult(iterations=iteration, residual=residual)
