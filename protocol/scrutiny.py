"""What one member makes of the aggregates of a step, once all nonces are open and the beacon is known.

The idea: an aggregator publishes lines about everybody whose part went in (`projection.py`). Whether they add up
anybody can see; whether they are so, about the aggregate and about oneself, each member works out for itself. An
aggregate counts for a member only if it finds nothing wrong with it; what is wrong it says at once. SPEC §5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crowdsurf.protocol.effects import CheckAggregates, Effect, ProjectPart
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.events import AggregatesChecked, PartProjected
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Aggregate, Commit, Projection, indexes_of
from crowdsurf.protocol.projection import (
    Clipping,
    Line,
    as_often_as_they_count,
    longest,
    projection_problem,
    wrong_line,
    wrong_norm,
)
from crowdsurf.protocol.tolerance import ACCUSING

INSISTING, INCLUDING, ACCEPTING, FOLLOWING = 1.0, ACCUSING, 3.0, 4.0
"""How many times what two honest computations can differ by a claim may be off: for a voter to insist that an aggregate
counts, for a proposer to let it count, for a voter to accept that it counts, and to go on with what others voted for.
Each is one more than the one before: a claim that was put on an edge divides honest members nowhere (SPEC R-5.8). What
a proposer lets count it does not accuse."""


def lines_of(projection: Projection) -> list[Line]:
    """The lines of a message, by rising index of the members that went in, then one for each that is absent."""
    return as_often_as_they_count([_line(numbers) for numbers in projection.lines], projection.absent)


def has_all_lines(projection: Projection) -> bool:
    """Whether there is a line about everybody that went in, and one about nothing if somebody is absent."""
    return len(projection.lines) == len(indexes_of(projection.included)) + (projection.absent > 0)


def absent_from(included: bytes, commits: Mapping[int, Commit]) -> int:
    """How many of these commits have work that did not go into an aggregate."""
    return sum(1 for commit in commits.values() if commit.parts) - len(indexes_of(included))


def line_about(projection: Projection, member: int) -> Line | None:
    """The line about one member; None if it did not go in, or there is none for it."""
    indexes = indexes_of(projection.included)
    if member not in indexes or not has_all_lines(projection):
        return None
    return _line(projection.lines[indexes.index(member)])


def _line(numbers: Sequence[float]) -> Line:
    return Line(tuple(numbers[:-1]), numbers[-1])


def fits(aggregate: Aggregate, projection: Projection, commits: Mapping[int, Commit]) -> bool:
    """Whether a projection is about this aggregate, about everybody that went in, and about everybody that did not."""
    about = (projection.cut, projection.part, projection.aggregate, projection.included)
    is_absent = projection.absent == absent_from(aggregate.included, commits)
    return is_absent and about == (aggregate.cut, aggregate.part, aggregate.digest, aggregate.included)


def is_too_long(
    aggregate: Aggregate, projection: Projection, commits: Mapping[int, Commit], clipping: Clipping
) -> bool:
    """Whether an aggregate is longer than the rule's result can be, given the lengths that were committed to."""
    norms = [commit.norms[aggregate.part] for commit in commits.values() if commit.norms]
    return not projection.norm <= longest(norms, clipping.radius)


class Known(NamedTuple):
    """What a member has worked out about an aggregate."""

    nothing: Line | None
    """About a row of zeros, so its norm is the aggregate's length; None if that is not finite."""
    line: Line | None
    """About its own part; None if it contributed none."""


class Scrutiny:
    """One member's own numbers about the aggregates of one step."""

    def __init__(self, clipping: Clipping, me: int) -> None:
        """`me` is this member's index."""
        self.clipping = clipping
        self.me = me
        # An aggregate is known by its part and beacon too: what anybody names twice, under one digest, has other lines.
        self._known: dict[tuple[int, bytes, bytes], Known] = {}
        self._asked: set[tuple[int, bytes, bytes]] = set()
        # Whether a projection adds up is asked for every message about its header, and takes a while to find out.
        self._unbalanced: dict[bytes, bool] = {}

    # --- what has to be worked out -----------------------------------------------------------------------

    def to_check(self, step: int, aggregates: Sequence[bytes], beacon: Digest) -> list[Effect]:
        """Look at aggregates (by part, empty for one not held) that were not looked at yet."""
        if not any(aggregates):
            return []
        fresh = tuple(b"" if (part, name, beacon) in self._asked else name for part, name in enumerate(aggregates))
        if not any(fresh):
            return []
        self._asked.update((part, name, beacon) for part, name in enumerate(fresh))
        return [CheckAggregates(step, fresh, beacon)]

    def to_project(self, step: int, own: Aggregate, commits: Mapping[int, Commit], beacon: Digest) -> list[Effect]:
        """Work out the lines of an aggregate of this member's own."""
        rows = [(index, Digest(commits[index].parts[own.part])) for index in indexes_of(own.included)]
        absent = absent_from(own.included, commits)
        return [ProjectPart(step, Digest(own.cut), own.part, Digest(own.digest), tuple(rows), absent, beacon)]

    def on_checked(self, event: AggregatesChecked) -> None:
        """Take an answer."""
        for part, name in enumerate(event.aggregates):
            key = (part, name, event.beacon)
            if key in self._asked and part < len(event.nothings):
                line = event.lines[part] if part < len(event.lines) else None
                self._known[key] = Known(event.nothings[part], line)

    def publishable(self, event: PartProjected, included: bytes) -> Projection | None:
        """The message for an aggregate of this member's own, made of these inputs; None if the rule did not get near
        enough to its fixed point: honest lines that do not add up would convict it."""
        whole = as_often_as_they_count(event.lines, event.absent)
        if projection_problem(whole, event.norm, self.clipping) is not None:
            return None
        lines = tuple((*line.projections, line.norm) for line in event.lines)
        return Projection(event.cut, event.part, event.aggregate, included, event.norm, lines, event.absent)

    # --- what it makes of them ---------------------------------------------------------------------------

    def is_known(self, part: int, aggregate: bytes, beacon: bytes) -> bool:
        """Whether this member has its own numbers about an aggregate."""
        return (part, aggregate, beacon) in self._known

    def is_unproven(self, said: Opened, aggregate: Aggregate, commits: Mapping[int, Commit]) -> bool:
        """Whether a projection leaves an aggregate without value, whoever looks at it: it does not belong to it, its
        lines do not add up, or it is too long."""
        projection = said.payload
        if not isinstance(projection, Projection) or not fits(aggregate, projection, commits):
            return True
        if said.digest not in self._unbalanced:
            problem = projection_problem(lines_of(projection), projection.norm, self.clipping)
            self._unbalanced[said.digest] = problem is not None
        return self._unbalanced[said.digest] or is_too_long(aggregate, projection, commits, self.clipping)

    def is_false(self, said: Opened, beacon: bytes, times: float) -> bool:
        """Whether a projection is off by more than so many times what honest computations can differ by, as far as this
        member has worked it out."""
        wrong = isinstance(said.payload, Projection) and self.contradicts(said.payload, beacon, times)
        return wrong or self.misdescribes(said, beacon, times)

    def misdescribes(self, said: Opened, beacon: bytes, times: float) -> bool:
        """Whether the length it claims for its aggregate, or its line about a row of zeros, is, as everybody sees that
        holds the aggregate."""
        projection = said.payload
        if not isinstance(projection, Projection):
            return False
        known = self._known_of(projection, beacon)
        if known is None:
            return False
        if known.nothing is None or wrong_norm(projection.norm, known.nothing.norm, times):
            return True
        return projection.absent > 0 and wrong_line(_line(projection.lines[-1]), known.nothing, self.clipping, times)

    def contradicts(self, projection: Projection, beacon: bytes, times: float) -> bool:
        """Whether the line about this member is: that can be proven, because its work can be done again."""
        known, claimed = self._known_of(projection, beacon), line_about(projection, self.me)
        own = known.line if known is not None else None
        return own is not None and claimed is not None and wrong_line(claimed, own, self.clipping, times)

    def _known_of(self, projection: Projection, beacon: bytes) -> Known | None:
        return self._known.get((projection.part, projection.aggregate, beacon))
