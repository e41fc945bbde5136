"""The rows a rule works on: those that came in, or weighted means of them that a pre-step asked for.

The idea: a mean of rows is never written out. A set of m mixed rows is the n original ones and an (m, n) matrix of
weights M. Inner products of mixed rows are M G M^T, a weighted sum of them is a weighted sum of the originals, and a
rule that needs their coordinates gets them a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy
import numpy.typing
import torch

from crowdsurf.peer.compute.rules.gram import Array, accurate_gram, as_matrix

Row = numpy.typing.NDArray[numpy.float32]

SUM_BLOCK_ELEMENTS = 1 << 16
"""Columns of one float64 partial of a weighted sum (512 KiB, second-level cache)."""

DIFFERENCE_BLOCK_ELEMENTS = 1 << 14
"""Columns of a block of differences: those of 16 rows are 2 MiB."""


class RowSet:
    """At least one row of equal length, or weighted means of such rows."""

    def __init__(self, rows: Sequence[torch.Tensor]) -> None:
        """`rows` are finite 1-D float32 tensors of equal length; they are never changed."""
        self._rows = list(rows)
        self._parent: RowSet | None = None
        self._step: Array = numpy.empty((0, 0))
        self._mixing: Array | None = None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._rows) if self._mixing is None else len(self._mixing)

    @property
    def length(self) -> int:
        """Elements of each row."""
        return self._rows[0].numel()

    @cached_property
    def gram(self) -> Array:
        """Inner products of all pairs of rows, float64 (count, count); made when first asked for."""
        if self._parent is None:
            return accurate_gram(self._rows)
        return self._step @ self._parent.gram @ self._step.T

    def mixed(self, matrix: Array) -> RowSet:
        """New rows: row i is the sum of matrix[i, j] times row j. `matrix` is float64 (m, count), each row of it not
        negative and adding up to one."""
        made = RowSet(self._rows)
        made._parent, made._step = self, matrix
        made._mixing = matrix if self._mixing is None else matrix @ self._mixing
        return made

    def selected(self, indexes: Sequence[int]) -> RowSet:
        """Some of the rows, in the order given."""
        if self._mixing is None:
            return RowSet([self._rows[index] for index in indexes])
        return self.mixed(numpy.eye(self.count)[list(indexes)])

    def weighted_sum(self, weights: Array, out: torch.Tensor) -> None:
        """`out` = sum of weights[i] * row i, added up in float64 in row order, rounded to float32 once.

        `weights` are not negative and add up to one, so the sum of finite rows is finite."""
        if self._mixing is not None:
            weights = weights @ self._mixing
        used = [(row, weight) for row, weight in zip(self._rows, weights.tolist(), strict=True) if weight]
        total = torch.empty(min(SUM_BLOCK_ELEMENTS, self.length), dtype=torch.float64)
        for start in range(0, self.length, SUM_BLOCK_ELEMENTS):
            stop = min(start + SUM_BLOCK_ELEMENTS, self.length)
            block = total[: stop - start].zero_()
            for row, weight in used:
                block.add_(row[start:stop], alpha=weight)
            out[start:stop].copy_(block)

    def differences(self, centre: torch.Tensor) -> Iterator[torch.Tensor]:
        """Every row minus `centre`, float32 (length,), some columns at a time: float64 (count, w). The next block uses
        the same memory again."""
        width = min(DIFFERENCE_BLOCK_ELEMENTS, self.length)
        whole = as_matrix(self._rows)
        wide = torch.empty((len(self._rows), width), dtype=torch.float64)
        narrow = torch.empty((len(self._rows), width if whole is None else 0))
        for start in range(0, self.length, width):
            stop = min(start + width, self.length)
            block = wide[:, : stop - start]
            if whole is not None:
                block.copy_(whole[:, start:stop])
            else:
                torch.stack([row[start:stop] for row in self._rows], out=narrow[:, : stop - start])
                block.copy_(narrow[:, : stop - start])
            mixed = block if self._mixing is None else torch.from_numpy(self._mixing) @ block
            yield mixed.sub_(centre[start:stop].double())

    def blocks(self, elements: int) -> Iterator[tuple[int, int, list[Row]]]:
        """All coordinates, `elements` at a time: first, last + 1, and that stretch of every row, read only.

        Mixed rows are added up in float64 and rounded once; their memory is used again for the next block."""
        plain = [row.numpy() for row in self._rows]
        for start in range(0, self.length, elements):
            stop = min(start + elements, self.length)
            block = [row[start:stop] for row in plain]
            yield start, stop, block if self._mixing is None else self._mix(block)

    def _mix(self, block: list[Row]) -> list[Row]:
        wide = torch.from_numpy(numpy.stack(block)).double()
        return list((torch.from_numpy(self._mixing) @ wide).float().numpy())
