"""How far apart two gradients of one work unit are, and what a validator says of one before it may see the other.

The idea: whoever recomputes work on another kind of machine gets other bits. It compares numbers instead: part by part
the length of the difference, added up in float64 over blocks, so that memory does not grow with the model. What the
lengths decide is in `protocol/tolerance.py`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch

from crowdsurf.peer.compute.projections import project
from crowdsurf.peer.compute.rules.base import norm_of
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.projection import BLOCK_ELEMENTS
from crowdsurf.protocol.tolerance import SKETCH_DIRECTIONS, Compared, pack_sketch, sketch_seed

RECOMPUTED_MAX = 2
"""A validator's target, and one that it judges in the same step."""


def distance_between(one: torch.Tensor, other: torch.Tensor) -> float:
    """Length of the difference of two float32 vectors (k,), added up in float64; NaN or infinite where a number is not
    finite."""
    square = 0.0
    for start in range(0, len(one), BLOCK_ELEMENTS):
        difference = one[start : start + BLOCK_ELEMENTS].double() - other[start : start + BLOCK_ELEMENTS].double()
        square += float(difference @ difference)
    return math.sqrt(square)


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |one| of two float32 vectors (k,); infinite from a zero vector to another one."""
    distance, length = distance_between(one, other), norm_of(one)
    return distance / length if length else math.inf if distance else 0.0


def compare_parts(
    recomputed: torch.Tensor, committed: torch.Tensor, ranges: Sequence[tuple[int, int]], is_there: Sequence[bool]
) -> list[Compared | None]:
    """Two gradients, float32 (elements,), part by part; None for a part of the second one that is not there."""
    return [
        Compared(distance_between(recomputed[start:stop], committed[start:stop]), norm_of(committed[start:stop]))
        if there
        else None
        for there, (start, stop) in zip(is_there, ranges, strict=True)
    ]


def sketch_of(gradient: torch.Tensor, finder: PeerId) -> Digest:
    """What `finder` commits to when it has recomputed this finite gradient, float32 (elements,) on the CPU: projections
    of its direction; zeros if it has none."""
    (line,) = project([gradient], torch.zeros_like(gradient), math.inf, sketch_seed(finder), SKETCH_DIRECTIONS)
    if line is None or not line.norm:
        return pack_sketch([0.0] * SKETCH_DIRECTIONS)
    return pack_sketch([projection / line.norm for projection in line.projections])


class Recomputed:
    """Gradients that were computed again lately, by state and seed: a validator needs its target's twice, for its
    sketch and when the bytes come."""

    def __init__(self) -> None:
        self._gradients: OrderedDict[tuple[bytes, bytes], torch.Tensor] = OrderedDict()

    def find(self, state: bytes, seed: bytes) -> torch.Tensor | None:
        """float32 (elements,), not to be changed."""
        return self._gradients.get((state, seed))

    def remember(self, state: bytes, seed: bytes, gradient: torch.Tensor) -> None:
        """Copy a gradient; the oldest one makes room."""
        if len(self._gradients) >= RECOMPUTED_MAX:
            _, memory = self._gradients.popitem(last=False)
        else:
            memory = torch.empty_like(gradient)
        self._gradients[state, seed] = memory.copy_(gradient)
