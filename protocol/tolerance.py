"""Comparing recomputed work where honest machines do not compute the same bits: pure arithmetic on lengths.

The idea: two honest machines differ in the order of their additions, and so by a small part of the gradient's length;
the smallest cheat worth doing differs by a large one. `audit.relative_l2_max` lies in between. What is compared are the
bytes that a contributor committed to, by the digests in its commit; bytes that nobody hands over can only make a
distance smaller, never larger, so silence convicts nobody, and never the wrong one. SPEC R-6.14 to R-6.17.

A validator commits to a *sketch* of what it has found before it may see those bytes: a few random projections of the
gradient's direction. They say how far two gradients are apart, and nobody can know them without the gradient.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from crowdsurf.protocol.ids import DIGEST_BYTES, Digest, PeerId, digest
from crowdsurf.protocol.manifest import Manifest

ACCUSING = 2.0
"""Who accuses must have seen this many times what convicts, whatever is compared: whoever judges computes a little
differently again, and an honest accuser must not be found wrong by it."""

COMPARED_STEPS = 4
"""So many steps after a step members still serve the gradients of it that they have, and can still do its work again:
validators commit in the next one, compare in the one after, and are judged by the end of the one after that."""

LENGTH_ERROR = 1e-9
"""How far honest machines may differ in the length of the same bytes, relatively: in the order of additions."""

SKETCH_DIRECTIONS = 8
"""Projections in a sketch: as many float32 as a digest has room for."""

SKETCH_TAIL = 3.0
"""No sketch of honest work is farther off, in root mean square, than this times the distance of the gradients: the sum
of eight squares of unit variance is above 72 with a chance of 2e-12. One that was made up is taken for
honest with a chance of 2e-9 where the bound is a hundredth, 5e-4 where it is a twentieth."""

_SKETCH = struct.Struct(f"<{SKETCH_DIRECTIONS}f")


class Compared(NamedTuple):
    """A part whose committed bytes were seen. A number is NaN or infinite where one of the bytes' is not finite."""

    distance: float
    """Length of the difference between what was recomputed and what was committed to."""
    norm: float
    """Length of what was committed to."""


class Gap(NamedTuple):
    """How far committed work is from what was recomputed, as a share of the length of the latter."""

    at_least: float
    """The distance is this or more; infinite for what no honest work gives."""
    is_whole: bool
    """Whether all bytes were seen, so that it is just this."""


def relative_bound(manifest: Manifest) -> float | None:
    """The largest distance between honest machines, as a share of a gradient's length; None where they must compute the
    same bits (`exact`)."""
    bound = manifest.audit.relative_l2_max
    return None if manifest.audit.comparison == "exact" or bound is msgspec.UNSET else float(bound)


def wrong_length(said: float, true: float, times: float = 1.0) -> bool:
    """Whether a length is off by more than so many `times` LENGTH_ERROR; what is not a number is."""
    return said != true and not abs(said - true) <= times * LENGTH_ERROR * true


def gap_between(
    parts: Sequence[bytes],
    norms: Sequence[float],
    own_parts: Sequence[bytes],
    own_norms: Sequence[float],
    compared: Sequence[Compared | None],
    times: float = 1.0,
) -> Gap:
    """How far a commit (`parts`: blob digests, `norms`: lengths, or none where the run has none) is from the work as it
    was recomputed. `compared` has what was seen of the committed bytes, by part, or is empty. Lengths may be off by so
    many `times` LENGTH_ERROR from the bytes'.

    Of a part that was not seen the lengths alone are compared: they differ by no more than the vectors do."""
    if len(parts) != len(own_parts) or len(parts) != len(own_norms):
        return Gap(0.0, is_whole=False)  # recomputing gave nothing: there is nothing to compare with
    distances, is_whole = [], True
    for part, own in enumerate(own_norms):
        seen = compared[part] if part < len(compared) else None
        if parts[part] == own_parts[part]:
            seen = Compared(0.0, own)
        said = norms[part] if part < len(norms) else None
        if seen is None:
            is_whole = False
            distances.append(said - own if said is not None else 0.0)
            continue
        if said is not None and wrong_length(said, seen.norm, times):
            return Gap(math.inf, is_whole)  # it lied about the length of its own bytes
        distances.append(seen.distance)
    distance, length = math.hypot(*distances), math.hypot(*own_norms)
    if not math.isfinite(distance):
        return Gap(math.inf, is_whole)
    return Gap(distance / length if length else math.inf if distance else 0.0, is_whole)


def is_worth_accusing(gap: Gap, bound: float) -> bool:
    """Whether a validator accuses its target."""
    return gap.at_least > ACCUSING * bound


def as_it_should_be(gap: Gap, bound: float) -> bool | None:
    """How whoever judges finds the work; None if that cannot be told, because bytes are missing."""
    if gap.at_least > bound:
        return False
    return True if gap.is_whole else None


# --- sketches --------------------------------------------------------------------------------------------


def sketch_seed(finder: PeerId) -> Digest:
    """What the directions of a validator's sketches are drawn from: its own, so that no validator can use what another
    one found."""
    return digest("draw sketch", finder)


def pack_sketch(projections: Sequence[float]) -> Digest:
    """The projections of a gradient of length 1, `SKETCH_DIRECTIONS` of them, in the place of a digest."""
    return Digest(_SKETCH.pack(*projections))


def sketches_apart(said: bytes, own: bytes) -> float:
    """How far two gradients are apart that have these sketches, as a share of their length, cautiously: honest work is
    never farther apart than this says. Infinite for what is no sketch."""
    if len(said) != DIGEST_BYTES or len(own) != DIGEST_BYTES:
        return math.inf
    pairs = zip(_SKETCH.unpack(said), _SKETCH.unpack(own), strict=True)
    mean_square = sum((one - other) ** 2 for one, other in pairs) / SKETCH_DIRECTIONS
    return math.sqrt(mean_square) / SKETCH_TAIL if math.isfinite(mean_square) else math.inf
