"""Projections of clipped differences on random directions that every machine draws alike.

The idea: the clip factor of a row is one number, so <z, clip(d)> = factor * <z, d>, and one pass over the rows gives
norms and projections together. Directions are made block by block from a seekable BLAKE3 stream and thrown away.
What the numbers are for, and how exact they are, is derived in `protocol/projection.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
import numpy.typing
import torch
from blake3 import blake3

from crowdsurf.protocol.assignment import projection_seed
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.projection import BLOCK_ELEMENTS, PROJECTIONS, SPREAD, Line

NOTHING: torch.Tensor | None = None
"""A row of zeros, for `project`."""


def directions(seed: bytes, start: int, stop: int, count: int = PROJECTIONS) -> numpy.typing.NDArray[numpy.int16]:
    """Elements start to stop of `count` directions: odd integers from -255 to 255, int16 (count, stop - start).

    Each byte of a stream, read as a number b from -128 to 127, gives 2 b + 1. `seed` has 32 bytes; direction q is the
    stream of the keyed hash of the byte q, so more directions or other blocks do not change an element.
    """
    drawn = numpy.empty((count, stop - start), dtype=numpy.int16)
    draw(seed, start, drawn)
    return drawn


def draw(seed: bytes, start: int, out: numpy.typing.NDArray[Any]) -> None:
    """Write elements of directions, from `start` on, to `out` (count, w) of any type that can hold them."""
    for direction, elements in enumerate(out):
        stream = blake3(bytes([direction]), key=seed).digest(length=len(elements), seek=start)
        numpy.copyto(elements, numpy.frombuffer(stream, dtype=numpy.int8))
    out *= 2
    out += 1


def project(
    rows: Sequence[torch.Tensor | None], aggregate: torch.Tensor, radius: float, seed: bytes, count: int = PROJECTIONS
) -> list[Line | None]:
    """One line per row: projections of clip(row - aggregate) to length `radius`, and the norm before clipping. None if
    the row or the aggregate is not finite.

    `rows` and `aggregate` are 1-D float32 of one length on the CPU; None is a row of zeros. `radius` may be infinite.
    An aggregator passes all included rows, a contributor its own. Memory besides: `count` + 2 float64 blocks, whatever
    the number of rows. Raises MisuseError for shapes that do not fit.
    """
    for tensor in (*(row for row in rows if row is not None), aggregate):
        if tensor.dtype != torch.float32 or tensor.shape != (aggregate.numel(),):
            raise MisuseError("rows and aggregate must be 1-D float32 vectors of equal length")
    if not radius > 0.0:
        raise MisuseError(f"the clipping length must be positive, not {radius}")
    length = aggregate.numel()
    totals = torch.zeros((len(rows), count + 1), dtype=torch.float64)
    wide = torch.empty((count + 2, min(length, BLOCK_ELEMENTS)), dtype=torch.float64)
    for start in range(0, length, BLOCK_ELEMENTS):
        stop = min(start + BLOCK_ELEMENTS, length)
        block = wide[:, : stop - start]
        factors, difference, centre = block[: count + 1], block[count], block[count + 1]
        draw(seed, start, block[:count].numpy())
        centre.copy_(aggregate[start:stop])
        for total, row in zip(totals, rows, strict=True):
            if row is None:
                torch.neg(centre, out=difference)
            else:
                difference.copy_(row[start:stop]).sub_(centre)
            total += torch.mv(factors, difference)  # the difference is a factor of itself too, for its square
    lines: list[Line | None] = []
    for *values, square in totals.tolist():
        if not math.isfinite(square):
            lines.append(None)
            continue
        norm = math.sqrt(square)
        scale = min(1.0, radius / norm) / SPREAD if norm else 0.0
        lines.append(Line(tuple(value * scale for value in values), norm))
    return lines


def lines_about(
    gradient: torch.Tensor | None,
    aggregates: Sequence[torch.Tensor | None],
    ranges: Sequence[tuple[int, int]],
    radius: float,
    beacon: bytes,
) -> tuple[list[Line | None], list[Line | None]]:
    """What the aggregator of each part must say about a row of zeros, and about this contributor's gradient, float32
    (elements,); no lines about that if there is none.

    `aggregates` are float32, as long as their element ranges, and may hold anything. None where there is none, and
    where it or the gradient is not finite: about that there is nothing right to say.
    """
    nothings: list[Line | None] = []
    lines: list[Line | None] = []
    for part, (aggregate, (start, stop)) in enumerate(zip(aggregates, ranges, strict=True)):
        rows = [NOTHING] if gradient is None else [NOTHING, gradient[start:stop]]
        nothing, *own = (
            [None] * len(rows) if aggregate is None else project(rows, aggregate, radius, projection_seed(beacon, part))
        )
        nothings.append(nothing)
        lines += own
    return nothings, lines
