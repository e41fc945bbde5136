"""What an aggregator's published projections must satisfy: pure arithmetic, with every tolerance derived here.

The idea: CenteredClip gives the v at which sum_i clip_tau(g_i - v) = 0, and the mean is the same with tau = infinity.
For each contributor the aggregator publishes a *line*: the norm |g_i - v| and s_i[q] = <z_q, clip_tau(g_i - v)> for a
few random directions z_q that nobody knew when v was fixed. A contributor checks its own line against its own g_i;
everybody checks that the lines add up to nothing, which a wrong v does not survive. Rules without such an identity have
no radius, and nothing is checked.

The directions. An element of z is an odd integer from -255 to 255, all equally likely, divided by SPREAD. That is the
sum of eight independent signs of weights 1, 2, 4 ... 128, so z has unit variance and, for every vector a that does not
depend on it, the tail of signs:  P(|<z, a>| > t |a|) <= 2 exp(-t^2 / 2).  Plain signs would miss half of all lies that
sit in two equal coordinates (they cancel), so k directions would miss 2^-k of them, however large; here it is 256^-k.

What is not seen. A wrong v leaves a remainder r = sum_i clip_tau(g_i - v), near n * displacement while few rows are
clipped. With x = tolerance / |r| one direction misses it with probability of about 0.8 x if r is spread over many
coordinates (normal density at 0, both sides), and of at most (1 + SPREAD * sqrt(2) * x) / 256 if it sits in two equal
ones. A contributor that helps a lying aggregator can take over any imbalance up to TAIL * tau: against that, `longest`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crowdsurf.protocol import limits
from crowdsurf.protocol.manifest import Manifest

PROJECTIONS = 3
"""Directions per part. A remainder 150 times the tolerance is missed with at most (1/256 + 0.82/150)^3 = 8e-7, one of
10 times with 6e-4. Two would miss 9e-5 and 7e-3; a fourth costs 8 bytes per line and finds what hardly moves v."""

SPREAD = math.sqrt((4**8 - 1) / 3)
"""Standard deviation of the sum of signs with weights 1, 2, 4 ... 128; their squares add up to 1 + 4 + ... + 4^7."""

TAIL = 9.0
"""No honest |<z, a>| is larger than this times |a|: 2 exp(-81 / 2) = 5e-18, and a run of a million steps with 256 parts
of 256 lines in three directions tests 2e11 of them: one honest run in a million sees an alarm."""

BLOCK_ELEMENTS = 1 << 15
"""Elements whose products are added up in one go; the sums of the blocks are added one after the other."""

FLOAT64_ROUNDING = 2.0**-53
FLOAT32_ROUNDING = 2.0**-24
"""Largest relative error of one rounding."""

FLOAT32_MAX = (2.0 - 2.0**-23) * 2.0**127
FLOAT32_DENORMAL_ROUNDING = 2.0**-150
"""Largest absolute error of rounding to float32 where numbers are too small for a relative one."""

RULE_RADIUS = 1.0
RULE_RESIDUAL = 1e-6
"""Defaults of CenteredClip's parameters `tau` and `tolerance`."""

PART_ELEMENTS_MAX = limits.BLOB_BYTES_MAX // 4
"""What every check here assumes of the length of a part: more elements only mean more rounding, 9e-7 of a clipped
length at this size, far below CLIP_ERROR. So nobody has to be asked, or believed, how long a part is."""

LENGTH_SLACK = 1.01
"""An honest v satisfies its identity up to `tolerance` only; that is less than a hundredth of its length, because of
256 members at most one pulls back unopposed."""
LENGTH_SPREAD = 4.0
"""How far the lengths of honest contributions to one part may differ; see `longest`."""

CLIP_ERROR = 2.0**-16
"""Relative error of a clip factor tau / |g_i - v| in the rule, which has its distances from inner products.

In float64 these are right to e = 2^-42 of the product of the norms (rows of equal numbers, whose roundings all go one
way, are the worst). Four of that size make a squared distance and the root halves the error, so it is 2 e (|g_i| / d)^2
for a row at distance d > tau: at most 2^-16 for tau >= 2^-12 |g_i|; down to tau = 2^-17 |g_i| it is less than what
`tolerance` allows for the rounding of v. In float32 e is 2^-22 for ordinary rows, so it holds for those no nearer to v
than a sixth of their norm, and 2^-14 for rows of equal numbers, so it does not hold for rows that somebody crafted;
and a residual near nothing may be rounding, so the rule may stop too early."""


@dataclass(frozen=True, slots=True)
class Line:
    """What an aggregator says about one contributor: k projections of the clipped difference, and |g_i - v|."""

    projections: tuple[float, ...]
    norm: float


def lines_to_publish(about_rows: Sequence[Line], about_nothing: Line, absent: int) -> tuple[Line, ...]:
    """The lines of a message: about every row, and the last one about a row of zeros if somebody is absent."""
    return (*about_rows, about_nothing) if absent else tuple(about_rows)


def as_often_as_they_count(lines: Sequence[Line], absent: int) -> list[Line]:
    """What `lines_to_publish` stands for: the last line for everybody that is absent."""
    return [*lines, *list(lines[-1:]) * (absent - 1)]


class Clipping(NamedTuple):
    """What the rule of a run does to differences, as far as projections can check it."""

    radius: float
    """tau; infinite for the mean."""
    residual: float
    """The rule's own parameter `tolerance`."""


def clipping_of(manifest: Manifest) -> Clipping | None:
    """How aggregates of a run are checked; None if they are not: nobody is audited, or its rule knows no identity."""
    parameters = manifest.rule.parameters
    if not manifest.audit.rate:
        return None
    if manifest.rule.name == "mean":
        return Clipping(math.inf, 0.0)
    if manifest.rule.name == "centered_clip":
        radius, residual = parameters.get("tau", RULE_RADIUS), parameters.get("tolerance", RULE_RESIDUAL)
        return Clipping(float(radius), float(residual))
    return None


def tolerance(
    norms: Sequence[float], radius: float, aggregate_norm: float, elements: int, residual: float = RULE_RESIDUAL
) -> float:
    """Largest |sum_i s_i[q]| of an honest aggregator, for one direction.

    `norms` are the |g_i - v| of the lines, `radius` is tau (infinite for the mean), `elements` the length of the part,
    `residual` the rule's own parameter `tolerance`. The remainder of an honest v, float32, is at most the sum of

    - rounding: v is off by 2^-24 |v|, and clipping never lengthens a difference, so n rows make n times that;
    - the rule: it stops at a residual relative to the mean clipped distance, so n times it is relative to their sum,
      and clips with factors that are off by CLIP_ERROR; the mean does neither;
    - adding up in float64 in the rule: n + 2 roundings of what is added, which is v and weighted differences. Far rows
      weigh little, so the differences count as clipped: a liar's norm cannot buy tolerance.

    It does not depend on z, so its projection is at most TAIL times as long. Our own sums over the elements come on
    top, see `summing_error`. All of it presumes that the rule converged before its largest number of iterations.
    """
    included = len(norms)
    clipped = math.fsum(min(radius, norm) for norm in norms)
    rounding = included * (FLOAT32_ROUNDING * aggregate_norm + FLOAT32_DENORMAL_ROUNDING * math.sqrt(elements))
    rule = (residual + CLIP_ERROR) * clipped if math.isfinite(radius) else 0.0
    adding = (included + 2) * FLOAT64_ROUNDING * (included * aggregate_norm + clipped)
    return tail(elements) * (rounding + rule + adding) + summing_error(elements) * clipped


def tail(elements: int) -> float:
    """Largest |<z, a>| / |a| to expect: TAIL, or what all elements at their largest and in step can reach."""
    return min(TAIL, math.sqrt(elements) * 255 / SPREAD)


def summing_error(elements: int) -> float:
    """Largest error of <z, clip(d)> over |clip(d)|, added up in float64 in any order that honours BLOCK_ELEMENTS.

    Each product takes part in at most one addition per element of its block and one per block, and in a few roundings
    more (difference, product, clip factor). Their sizes add up to sum |z_j d_j| <= 255 / SPREAD * sqrt(elements) |d|.
    The norm in the clip factor is off by less than as many roundings, of a projection of at most `tail`.
    """
    return summing_roundings(elements) * FLOAT64_ROUNDING * (math.sqrt(elements) * 255 / SPREAD + tail(elements))


def summing_roundings(elements: int) -> int:
    """How many roundings any one product of a blocked sum can go through."""
    return min(elements, BLOCK_ELEMENTS) + math.ceil(elements / BLOCK_ELEMENTS) + 8


def balance_problem(
    lines: Sequence[Line],
    radius: float,
    aggregate_norm: float,
    elements: int,
    residual: float = RULE_RESIDUAL,
) -> str | None:
    """Why these lines, one per included contributor, cannot come from an honest aggregator; None if they can.

    `aggregate_norm` must be the norm of the published v: whoever holds v compares it, because a larger one buys
    tolerance. Any numbers may be in `lines`.
    """
    span_max = math.sqrt(elements) * FLOAT32_MAX * (1.0 + 1e-6)
    if not 0.0 <= aggregate_norm <= span_max:
        return f"norm {aggregate_norm:g} of the aggregate is not that of {elements} float32 numbers"
    for index, line in enumerate(lines):
        if len(line.projections) != PROJECTIONS:
            return f"line {index} has {len(line.projections)} projections instead of {PROJECTIONS}"
        if not 0.0 <= line.norm <= 2.0 * span_max:
            return f"norm {line.norm:g} in line {index} is not that of a difference of {elements} float32 numbers"
        bound = (tail(elements) + summing_error(elements)) * min(radius, line.norm)
        for value in line.projections:
            if not abs(value) <= bound:  # also catches NaN
                return f"projection {value:g} in line {index} is longer than {bound:g}, which its norm allows"
    allowed = tolerance([line.norm for line in lines], radius, aggregate_norm, elements, residual)
    for direction in range(PROJECTIONS):
        total = math.fsum(line.projections[direction] for line in lines)
        if abs(total) > allowed:
            return f"projections in direction {direction} add up to {total:g}, more than {allowed:g}"
    return None


def line_tolerance(norm: float, radius: float, elements: int) -> tuple[float, float]:
    """How far two honest computations of one line may differ: in a projection, and in the norm (the larger of both).

    Both know g_i and v exactly, so all that differs is the order of float64 additions: twice `summing_error` for a
    projection. A norm is the root of such a sum of squares: nothing cancels, and the root halves the relative error.
    """
    norm_error = summing_roundings(elements) * FLOAT64_ROUNDING * norm
    return 2.0 * summing_error(elements) * min(radius, norm), 2.0 * norm_error


def line_problem(claimed: Line, own: Line, radius: float, elements: int, times: float = 1.0) -> str | None:
    """Why a published line is not the one its contributor works out itself (`own`); None if they are no more than so
    many `times` the `line_tolerance` apart."""
    projection_allowed, norm_allowed = (times * allowed for allowed in line_tolerance(own.norm, radius, elements))
    if not abs(claimed.norm - own.norm) <= norm_allowed:
        return f"norm {claimed.norm!r} should be {own.norm!r}"
    if len(claimed.projections) != len(own.projections):
        return f"{len(claimed.projections)} projections should be {len(own.projections)}"
    for direction, (said, true) in enumerate(zip(claimed.projections, own.projections, strict=True)):
        if not abs(said - true) <= projection_allowed:
            return f"projection {said!r} in direction {direction} should be {true!r}"
    return None


def longest(norms: Sequence[float], radius: float) -> float:
    """Length that no honest v exceeds; an aggregate that does counts for nothing. (BTARD's verification 3.)

    `norms` are the lengths all m contributors have committed to for this part. More than half of the contributors are
    honest, so the median of `norms` is a length of honest parts, whatever liars say, and honest parts are no longer
    than G, LENGTH_SPREAD times that; a row of zeros, for a part that is missing, is shorter than any. Let k, more than
    half, of the m rows be honest or missing, and V = |v|. In the direction of v each of those pulls back, unclipped
    with at least V - G, clipped with at least tau sqrt(1 - (G / V)^2), which is the slope of a line that touches the
    ball of radius G; each of the others pulls forward with at most tau, and all of that adds up to nothing. With
    r = (m - k) / k, V is therefore at most G + r tau or at most G / sqrt(1 - r^2). Nobody's own length matters in
    this, so liars that claim another one than they have cannot make an honest aggregate seem too long.

    This is what lies can do to the rule anyway: an aggregator that lies gets no further than liars among its inputs.
    Lengths come from the step itself, so no history has to be agreed on and a sudden change of scale trips nothing.
    """
    if not norms:
        return 0.0
    if math.isinf(radius):
        return math.inf
    honest = len(norms) // 2 + 1
    short, ratio = LENGTH_SPREAD * sorted(norms)[len(norms) // 2], (len(norms) - honest) / honest
    return LENGTH_SLACK * max(short + ratio * radius, short / math.sqrt(1.0 - ratio * ratio))


def projection_problem(lines: Sequence[Line], norm: float, clipping: Clipping) -> str | None:
    """Why a message of an aggregator cannot come from an honest one, seen from nothing but the message; None if it can.
    (BTARD's verification 2.) All members come to the same, up to the last bit: there are only sums, products, quotients
    and roots in it (and in `longest`), which IEEE 754 rounds alike on every machine, and `fsum`, which rounds once."""
    return balance_problem(lines, clipping.radius, norm, PART_ELEMENTS_MAX, clipping.residual)


def wrong_norm(claimed: float, own: float, times: float = 1.0) -> bool:
    """Whether the length an aggregator claims for its aggregate is off by more than so many `times` what two honest
    computations of it can differ by; of one that is not finite everything is wrong."""
    allowed = times * 2.0 * summing_roundings(PART_ELEMENTS_MAX) * FLOAT64_ROUNDING * own
    return not math.isfinite(own) or not abs(claimed - own) <= allowed


def wrong_line(claimed: Line, own: Line, clipping: Clipping, times: float = 1.0) -> bool:
    """Whether a line is farther than so many `times` what two honest computations can differ by from what its
    contributor, or whoever has done its work again, works out. (BTARD's verification 1, with the sides exchanged.)"""
    return line_problem(claimed, own, clipping.radius, PART_ELEMENTS_MAX, times) is not None
