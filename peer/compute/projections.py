"""Projections of clipped differences on random directions that every machine draws alike.

The idea: the clip factor of a row is one number, so <z, clip(d)> = factor * <z, d>, and one pass over the rows gives
norms and projections together. Directions are made block by block from a seekable BLAKE3 stream and thrown away.
What the numbers are for, and how exact they are, is derived in `protocol/projection.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import numpy.typing
import torch
from blake3 import blake3

from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.projection import BLOCK_ELEMENTS, PROJECTIONS, SPREAD, Line


def directions(seed: bytes, start: int, stop: int, count: int = PROJECTIONS) -> numpy.typing.NDArray[numpy.int16]:
    """Elements start to stop of `count` directions: odd integers from -255 to 255, int16 (count, stop - start).

    Each byte of a stream, read as a number b from -128 to 127, gives 2 b + 1. `seed` has 32 bytes; direction q is the
    stream of the keyed hash of the byte q, so more directions or other blocks do not change an element.
    """
    drawn = numpy.empty((count, stop - start), dtype=numpy.int16)
    for direction in range(count):
        stream = blake3(bytes([direction]), key=seed).digest(length=stop - start, seek=start)
        drawn[direction] = numpy.frombuffer(stream, dtype=numpy.int8)
    drawn *= 2
    drawn += 1
    return drawn


def project(
    rows: Sequence[torch.Tensor], aggregate: torch.Tensor, radius: float, seed: bytes, count: int = PROJECTIONS
) -> list[Line]:
    """One line per row: projections of clip(row - aggregate) to length `radius`, and the norm before clipping.

    `rows` and `aggregate` are 1-D float32 of one length on the CPU; `radius` may be infinite. An aggregator passes all
    included rows, a contributor its own. Memory besides: `count` + 2 float64 blocks, whatever the number of rows.
    Raises MisuseError for shapes that do not fit and for numbers that are not finite.
    """
    for tensor in (*rows, aggregate):
        if tensor.dtype != torch.float32 or tensor.shape != (aggregate.numel(),):
            raise MisuseError("rows and aggregate must be 1-D float32 vectors of equal length")
    if not radius > 0.0:
        raise MisuseError(f"the clipping length must be positive, not {radius}")
    length = aggregate.numel()
    totals = torch.zeros((len(rows), count + 1), dtype=torch.float64)
    block = torch.empty((count + 1, min(length, BLOCK_ELEMENTS)), dtype=torch.float64)
    for start in range(0, length, BLOCK_ELEMENTS):
        stop = min(start + BLOCK_ELEMENTS, length)
        factors = block[:, : stop - start]
        factors[:count].copy_(torch.from_numpy(directions(seed, start, stop, count)))
        difference = factors[count]  # a factor of itself too: the last product is its square
        centre = aggregate[start:stop].double()
        for total, row in zip(totals, rows, strict=True):
            torch.sub(row[start:stop], centre, out=difference)
            total += torch.mv(factors, difference)
    lines = []
    for index, (*values, square) in enumerate(totals.tolist()):
        if not math.isfinite(square):
            raise MisuseError(f"row {index} or the aggregate holds a number that is not finite")
        norm = math.sqrt(square)
        scale = min(1.0, radius / norm) / SPREAD if norm else 0.0
        lines.append(Line(tuple(value * scale for value in values), norm))
    return lines
