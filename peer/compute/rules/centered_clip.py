"""CenteredClip: the centre v at which the differences of all rows, clipped to length tau, add up to nothing.

    sum_i (x_i - v) * min(1, tau / |x_i - v|) = 0

So a row pulls v by at most tau / n, whatever it says. tau is the length of a *part's* difference; a large one
gives the mean, a small one the geometric median.

The idea: v is always a weighted sum of the rows, so all iterations can run on the n weights, with distances
taken from the n x n matrix of inner products (Gram matrix): one pass over the rows for the matrix, one for the
final sum, and nothing in between depends on the length of the rows.

- Inner products are float32 in blocks of 2^13 columns, added up in float64. Where that is not enough (rows far
  larger or smaller than float32 products can hold, or so alike that their difference drowns in rounding) the
  matrix is made again in float64.
- The start is the medoid, the row with the least sum of distances to all others: with an honest majority it is
  never an outlier. The limit does not depend on the start, the number of iterations does.
- The step is v <- sum w_i x_i / sum w_i with w_i = min(1, tau / |x_i - v|): same fixed point as the usual
  v <- v + mean(w_i (x_i - v)), never slower, much faster when tau is small and everything is clipped.
- It stops when the residual |mean of w_i (x_i - v)| is at most `tolerance` times the mean clipped distance.
  If `iterations_max` comes first, the v reached then is the result, for everybody alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy
import numpy.typing
import torch

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.rules.base import Rule, RuleResult

Array = numpy.typing.NDArray[numpy.float64]

GRAM_BLOCK_ELEMENTS = 1 << 13
"""Columns of one float32 product; longer float32 sums lose accuracy (2e-8 at this size, 2e-6 unblocked)."""

SUM_BLOCK_ELEMENTS = 1 << 16
"""Columns of one float64 partial of the final sum (512 KiB, second-level cache)."""

ALIKE = 2.0**-7
"""Squared distance over squared norm below which float32 inner products are not accurate enough."""

SQUARED_NORM_MIN = 1e-20
"""Squared norm below which float32 products may underflow."""


@dataclass(frozen=True, slots=True)
class CenteredClipRule(Rule):
    """CenteredClip, iterated to its fixed point in Gram space."""

    name = "centered_clip"

    tau: float
    iterations_max: int
    tolerance: float

    @classmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Parameters: tau (clipping length), iterations_max, tolerance (relative residual)."""
        reader = ParameterReader(f"rule {cls.name}", parameters)
        rule = cls(
            tau=reader.number("tau", 1.0, 1e-12, 1e12),
            iterations_max=reader.integer("iterations_max", 1000, 1, 100_000),
            tolerance=reader.number("tolerance", 1e-6, 1e-12, 1e-1),
        )
        reader.finish()
        return rule

    def aggregate(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> RuleResult:
        """See `Rule.aggregate`; the residual is the norm of the mean clipped difference, in units of the rows."""
        gram = accurate_gram(rows)
        weights, result = self.fixed_point(gram)
        weighted_sum(rows, weights, out)
        return result

    def fixed_point(self, gram: Array) -> tuple[Array, RuleResult]:
        """Weights of the rows at the fixed point, from the float64 matrix of inner products, shape (n, n)."""
        count = len(gram)
        squares = numpy.diagonal(gram)
        weights = numpy.zeros(count)
        weights[int(numpy.sqrt(squared_distances(gram)).sum(axis=1).argmin())] = 1.0
        residual = 0.0
        for iteration in range(self.iterations_max + 1):
            products = gram @ weights
            distances = numpy.sqrt(numpy.maximum(squares - 2.0 * products + weights @ products, 0.0))
            clip = self.tau / numpy.maximum(distances, self.tau)
            target = clip / clip.sum()
            step = target - weights
            residual = float(numpy.sqrt(max(step @ gram @ step, 0.0)) * clip.mean())
            if residual <= self.tolerance * float(numpy.minimum(distances, self.tau).mean()):
                break
            if iteration < self.iterations_max:
                weights = target
        return weights, RuleResult(iterations=iteration, residual=residual)


def accurate_gram(rows: Sequence[torch.Tensor]) -> Array:
    """Inner products of all pairs of rows, float64, shape (n, n)."""
    products = gram_matrix(rows, torch.float32)
    squares = numpy.diagonal(products)
    if numpy.isfinite(products).all() and squares.min() >= SQUARED_NORM_MIN:
        apart = squared_distances(products)
        numpy.fill_diagonal(apart, numpy.inf)
        larger = numpy.maximum(squares[:, None], squares[None, :])
        if (apart > ALIKE * larger).all():
            return products
    return gram_matrix(rows, torch.float64)


def gram_matrix(rows: Sequence[torch.Tensor], product_type: torch.dtype) -> Array:
    """Inner products with blocks multiplied in `product_type` and added up in float64."""
    count, length = len(rows), rows[0].numel()
    total = torch.zeros((count, count), dtype=torch.float64)
    stacked = torch.empty((count, min(GRAM_BLOCK_ELEMENTS, length)))
    for start in range(0, length, GRAM_BLOCK_ELEMENTS):
        stop = min(start + GRAM_BLOCK_ELEMENTS, length)
        if stop - start != stacked.shape[1]:
            stacked = torch.empty((count, stop - start))
        torch.stack([row[start:stop] for row in rows], out=stacked)
        block = stacked.to(product_type)
        total.add_(block @ block.T)
    matrix: Array = total.numpy()
    return matrix


def squared_distances(gram: Array) -> Array:
    """Squared distances of all pairs of rows, never negative, shape (n, n)."""
    squares = numpy.diagonal(gram)
    return numpy.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0)


def weighted_sum(rows: Sequence[torch.Tensor], weights: Array, out: torch.Tensor) -> None:
    """`out` = sum of weights[i] * rows[i], added up in float64 in row order, rounded to float32 once."""
    total = torch.empty(min(SUM_BLOCK_ELEMENTS, out.numel()), dtype=torch.float64)
    for start in range(0, out.numel(), SUM_BLOCK_ELEMENTS):
        stop = min(start + SUM_BLOCK_ELEMENTS, out.numel())
        block = total[: stop - start].zero_()
        for row, weight in zip(rows, weights.tolist(), strict=True):
            block.add_(row[start:stop], alpha=weight)
        out[start:stop].copy_(block)
