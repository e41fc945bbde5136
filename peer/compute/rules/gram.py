"""Inner products of all pairs of rows: all that rules built on distances need to know about them.

The idea: distances between rows, and between any weighted sums of rows, follow from the n x n matrix of inner
products (Gram matrix). So the rows are read once for the matrix and once for the final sum, and nothing in between
depends on their length.

Products are float32 in blocks, added up in float64. Where that is not enough (rows far larger or smaller than
float32 products can hold, or so alike that their difference drowns in rounding) they are float64 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import numpy.typing
import torch

Array = numpy.typing.NDArray[numpy.float64]

GRAM_BLOCK_ELEMENTS = 1 << 14
"""Columns of one product; longer float32 sums lose accuracy (4e-8 at this size, 2e-6 unblocked), shorter ones time."""

ALIGNMENT_BYTES = 64
"""What matrix products need in front of each row to give the same bits wherever it lies."""

ALIKE = 2.0**-7
"""Squared distance over squared norm below which float32 inner products are not accurate enough."""

SQUARED_NORM_MIN = 1e-20
"""Squared norm below which float32 products may underflow."""


def accurate_gram(rows: Sequence[torch.Tensor]) -> Array:
    """Inner products of all pairs of float32 rows, float64, shape (n, n). Finite if and only if all rows are."""
    beginnings = [row[:GRAM_BLOCK_ELEMENTS] for row in rows]
    if is_accurate(gram_matrix(beginnings, torch.float32)):  # colluding rows are alike from the first block on
        products = gram_matrix(rows, torch.float32)
        if is_accurate(products):
            return products
    return gram_matrix(rows, torch.float64)


def is_accurate(products: Array) -> bool:
    """Whether inner products taken in float32 tell all rows apart."""
    squares = numpy.diagonal(products)
    if not numpy.isfinite(products).all() or squares.min() < SQUARED_NORM_MIN:
        return False
    apart = squared_distances(products)
    numpy.fill_diagonal(apart, numpy.inf)
    larger = numpy.maximum(squares[:, None], squares[None, :])
    return bool((apart > ALIKE * larger).all())


def gram_matrix(rows: Sequence[torch.Tensor], product_type: torch.dtype) -> Array:
    """Inner products with blocks multiplied in `product_type` and added up in float64; exactly symmetric."""
    count, length = len(rows), rows[0].numel()
    total = torch.zeros((count, count), dtype=torch.float64)
    whole = as_matrix(rows)
    copied = torch.empty((count, GRAM_BLOCK_ELEMENTS if whole is None else 0))
    for start in range(0, length, GRAM_BLOCK_ELEMENTS):
        stop = min(start + GRAM_BLOCK_ELEMENTS, length)
        if whole is None:
            columns = copied[:, : stop - start]  # not a smaller matrix for the last block: its rows must be aligned too
            torch.stack([row[start:stop] for row in rows], out=columns)
        else:
            columns = whole[:, start:stop]
        block = columns.to(product_type)
        total.add_(block @ block.T)
    matrix: Array = ((total + total.T) / 2).numpy()
    return matrix


def as_matrix(rows: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The rows as one matrix without copying, if they lie evenly spaced in one storage (as contributions do in shared
    memory) and each is aligned; else None. On rows that are not, a product may round differently, and the result must
    not depend on where rows lie."""
    first = rows[0]
    offsets = [row.storage_offset() for row in rows]
    space = offsets[1] - offsets[0] if len(rows) > 1 else first.numel()
    if space < first.numel() or offsets != [offsets[0] + index * space for index in range(len(rows))]:
        return None
    memory = first.untyped_storage().data_ptr()
    if any(row.untyped_storage().data_ptr() != memory or row.stride() != (1,) for row in rows):
        return None
    if any(row.data_ptr() % ALIGNMENT_BYTES for row in rows):
        return None
    return first.as_strided((len(rows), first.numel()), (space, 1))


def squared_distances(gram: Array) -> Array:
    """Squared distances of all pairs of rows, never negative, zero on the diagonal, shape (n, n)."""
    squares = numpy.diagonal(gram)
    distances = numpy.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0)
    numpy.fill_diagonal(distances, 0.0)
    return distances
