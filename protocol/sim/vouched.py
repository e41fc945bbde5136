"""What an aggregator has published about its aggregate, judged from the outside and in other words than the rules'.

The idea: the rules derive to the last bit what an honest aggregator's numbers may be off by. From the outside a coarse
look is enough, because lies are never that small: what passes there and not here is a hole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import Projection, indexes_of
from crowdsurf.protocol.projection import Line

ROUNDING = 1e-5
"""Rows and aggregates are float32, and so many of them may round one way."""
CONVERGED = 1e-3
"""A rule that goes on until its remainder is a millionth has long come nearer than this."""
TAIL = 10.0
"""Standard deviations."""
ROOM = 1.02
SPREAD = 4.0
"""How far honest lengths of one part may differ."""


def radius_of(manifest: Manifest) -> float | None:
    """How far the rule of a run lets a row pull; None if nobody checks its aggregates."""
    if manifest.audit.rate <= 0.0 or manifest.rule.name not in ("mean", "centered_clip"):
        return None
    return math.inf if manifest.rule.name == "mean" else float(manifest.rule.parameters.get("tau", 1.0))


def is_whole(projection: Projection) -> bool:
    """Whether it says something about everybody that went in, and, if anybody did not, about nothing."""
    return len(projection.lines) - bool(projection.absent) == len(indexes_of(projection.included))


def is_unbalanced(projection: Projection, radius: float) -> bool:
    """Whether its lines do not add up to nothing, each absent one's among them, or one of them says more than a row
    can."""
    lines = [*projection.lines, *(projection.lines[-1] for _ in range(projection.absent - 1))]
    pulls = [min(radius, line[-1]) for line in lines]
    if not all(0.0 <= number < math.inf for number in (projection.norm, *pulls)):
        return True
    if any(abs(value) > TAIL * pull for line, pull in zip(lines, pulls, strict=True) for value in line[:-1]):
        return True
    allowed = CONVERGED * sum(pulls) + ROUNDING * len(pulls) * projection.norm
    totals = [math.fsum(values) for values in zip(*(line[:-1] for line in lines), strict=True)]
    return any(not abs(total) <= allowed for total in totals)


def is_too_long(length: float, committed: Sequence[float], radius: float) -> bool:
    """Whether an aggregate is longer than a rule makes it, most of whose inputs are honest, or nothing: these pull it
    back, and the others pull with `radius` at most. How long honest ones are, honest contributors say, who are the
    most."""
    if not committed:
        return True
    honest, most = SPREAD * sorted(committed)[len(committed) // 2], len(committed) // 2 + 1
    if math.isinf(radius):
        return False
    sine = (len(committed) - most) / most  # of the angle at which most pull back no more than the others pull away
    return length > ROOM * max(honest + radius * sine, honest / math.cos(math.asin(sine)))


def contradicts(said: Line, true: Line) -> bool:
    """Whether a line is another than the one that follows from the bytes."""
    numbers = zip((*said.projections, said.norm), (*true.projections, true.norm), strict=True)
    return any(not abs(one - other) <= CONVERGED * true.norm for one, other in numbers)


def differ(said: float, true: float) -> bool:
    """Whether a length is another than the one that follows from the bytes."""
    return not abs(said - true) <= CONVERGED * true
