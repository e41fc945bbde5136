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

What comes out must satisfy the identity as closely as `protocol/projection.py` asks of an honest aggregator, or its
projections convict it, and inner products of rows that somebody crafted are not accurate enough for that. So what is
left over is measured on the vectors, in float64. If it is too much, everything is done again from float64 inner
products of the differences from that v, in which nothing cancels any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy
import torch

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import Rule, RuleResult, norm_of
from crowdsurf.peer.compute.rules.gram import Array, squared_distances
from crowdsurf.peer.compute.rules.rows import RowSet
from crowdsurf.protocol.projection import summing_error, tail, tolerance

ATTEMPTS = 3
"""One from the inner products of the rows, and up to two from those of differences."""

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
        gram = rows.gram
        for attempt in range(1, ATTEMPTS + 1):
            weights, result = clipped_centre(gram, self.tau, self.iterations_max, self.tolerance)
            rows.weighted_sum(weights, out)
            if attempt == ATTEMPTS or self._is_balanced(rows, out, clip_factors(distances(gram, weights), self.tau)):
                break
            gram = gram_of_differences(rows, out)
        return result

    def _is_balanced(self, rows: RowSet, centre: torch.Tensor, clip: Array) -> bool:
        """Whether `centre`, float32 (rows.length,), is one that projections cannot tell from the fixed point. `clip`
        are the clip factors, float64 (n,), as far as they are known."""
        remainder, norms = measure_remainder(rows, centre, clip, self.tau)
        spans, length = norms.tolist(), rows.length
        projected = tolerance(spans, self.tau, norm_of(centre), length, self.tolerance)
        # That is for a projection of the remainder, up to `tail` times as long, and for adding it up.
        summing = summing_error(length) * math.fsum(min(self.tau, norm) for norm in spans)
        return remainder <= (projected - summing) / tail(length)


def clipped_centre(gram: Array, tau: float, iterations_max: int, tolerance: float) -> tuple[Array, RuleResult]:
    """Weights of the rows at the fixed point, from the float64 matrix of inner products, shape (n, n)."""
    apart = numpy.sqrt(squared_distances(gram))
    medoid = int(apart.sum(axis=1).argmin())
    weights = numpy.zeros(len(gram))
    weights[medoid] = 1.0
    length = max(tau, float(numpy.median(apart[medoid])))
    for iteration in range(iterations_max + 1):
        if 2 * iteration >= iterations_max:
            length = tau
        away = distances(gram, weights)
        clip = clip_factors(away, length)
        target = clip / clip.sum()
        step = target - weights
        residual = float(numpy.sqrt(max(step @ gram @ step, 0.0)) * clip.mean())
        clipped = float(numpy.minimum(away, length).mean())
        if length == tau and residual <= tolerance * clipped:
            break
        if length > tau and residual <= NEXT_LENGTH * clipped:
            length = max(tau, length * SHORTER)
        if iteration < iterations_max:
            weights = target
    return weights, RuleResult(iterations=iteration, residual=residual)


def distances(gram: Array, weights: Array) -> Array:
    """How far each row is from the sum of all with these weights, float64 (n,)."""
    products = gram @ weights
    squares: Array = numpy.maximum(numpy.diagonal(gram) - 2.0 * products + weights @ products, 0.0)
    return numpy.sqrt(squares)


def clip_factors(norms: Array, length: float) -> Array:
    """By what differences of these norms are multiplied to be at most `length` long, float64 (n,)."""
    factors: Array = length / numpy.maximum(norms, length)
    return factors


def measure_remainder(rows: RowSet, centre: torch.Tensor, clip: Array, tau: float) -> tuple[float, Array]:
    """A bound for |sum_i clip_tau(x_i - centre)|, and the norms |x_i - centre|, float64 (n,), in one pass.

    The clip factors follow from the norms, which are known after the pass only. So the sum is taken with those that are
    thought to be true, `clip`, and what they are off by is added, in full length."""
    factors = torch.from_numpy(clip)
    norms = torch.zeros(rows.count, dtype=torch.float64)
    square = 0.0
    for block in rows.differences(centre):
        total = factors @ block
        square += float(total @ total)
        norms += torch.linalg.vector_norm(block, dim=1).square_()
    spans: Array = norms.sqrt_().numpy()
    wrong = numpy.abs(clip_factors(spans, tau) - clip)
    return math.sqrt(square) + float(wrong @ spans), spans


def gram_of_differences(rows: RowSet, centre: torch.Tensor) -> Array:
    """Inner products of all pairs of differences from `centre`, float64 (n, n)."""
    products = torch.zeros((rows.count, rows.count), dtype=torch.float64)
    for block in rows.differences(centre):
        products += block @ block.T
    matrix: Array = ((products + products.T) / 2).numpy()
    return matrix
