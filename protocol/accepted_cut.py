"""An accepted cut: who contributes, who aggregates what, what is still lacking, and how long to wait for it.

The idea: once a cut is accepted everything else in the step is a question about it, so those questions live
together, as reads only. All waits are laid out from the moment of acceptance and stay valid when a later
proposer proposes the same cut, so a crash is waited for once. SPEC R-4.13 to R-4.16, R-4.32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from crowdsurf.protocol.assignment import part_bytes
from crowdsurf.protocol.cases import objection_to
from crowdsurf.protocol.deadlines import Timing
from crowdsurf.protocol.effects import AggregatePart, CancelWork, Effect, ExpectPart, SendBlob, SendEnvelope
from crowdsurf.protocol.holdings import Holdings
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Accusation, Cut, Projection
from crowdsurf.protocol.outcome import StepFacts, opened_beacon
from crowdsurf.protocol.roster import enough_to_be_named
from crowdsurf.protocol.scrutiny import Scrutiny
from crowdsurf.protocol.tolerance import ACCUSING


@dataclass(frozen=True, slots=True)
class Schedule:
    """Absolute deadlines of one accepted cut, in the node's seconds."""

    accepted: float
    pull: float
    """When parts that were not pushed are asked for."""
    parts: float
    first_parts: float
    """The same for the first of those that a part is made of."""
    aggregates: float
    reveals: float
    projections: float
    """The same as `reveals` where none are published."""
    outcome: float

    def give_up_at(self, now: float, view_seconds: float) -> float:
        """When to do without this view's proposer, of a member that now waits for nothing but its header. A proposer
        that has all it needs is given as long again as this member took, and a view; one that still waits is waited
        for until it need wait no more. Whoever says nothing costs no more than that (SPEC R-4.33)."""
        return min(max(self.outcome, now + view_seconds), now + (now - self.accepted) + view_seconds)


class Waits(NamedTuple):
    """How long things may take, in seconds."""

    parts: float
    """A part, on its way to this member."""
    aggregate: float
    """An aggregate, or what its aggregator waits for: no honest one waits longer for a part."""
    delivery: float
    """A small message."""


def lay_out(now: float, waits: Waits, is_checked: bool = False) -> Schedule:
    """The waits of a cut accepted now. An aggregator may take the whole wait for parts before it starts, hence twice
    the transfer time for aggregates, whose announcement takes a delivery; and it may have accepted the cut three
    deliveries later: one to be shown it, two to ask for a commit that was kept from it. Each later phase adds one
    delivery. Projections take work that grows with the parts, as their transfer does; whose are lacking after one
    delivery is told the beacon, which takes one more."""
    transfer, delivery = waits.aggregate, waits.delivery
    aggregates = now + transfer + max(transfer, delivery) + 3 * delivery
    reveals = aggregates + delivery
    projections = reveals + (transfer + 3 * delivery if is_checked else 0.0)
    return Schedule(
        accepted=now,
        pull=now + waits.parts / 2,
        parts=now + waits.parts,
        first_parts=now + transfer + 3 * delivery,
        aggregates=aggregates,
        reveals=reveals,
        projections=projections,
        outcome=projections + 5 * delivery,
    )


class Input(NamedTuple):
    """One contributor's part of a gradient, as an input of an aggregate."""

    part: int
    member: int
    peer: PeerId
    digest: Digest


class AcceptedCut:
    """A cut whose commits are all held, seen by one member."""

    def __init__(self, holdings: Holdings, me: PeerId, name: Digest, cut: Cut, timing: Timing, now: float) -> None:
        facts = holdings.facts
        self.name = name
        self.cut = cut
        self.duties = facts.duties(cut)
        """Who aggregates each part."""
        self.contributors = tuple(facts.peers[index] for index, _ in cut.commits)
        self.aggregating: set[int] = set()
        """Parts whose aggregation this member has started."""
        self._facts = facts
        self._timing = timing
        self._me = me
        self._transcript, self._blobs, self._scrutiny = holdings.transcript, holdings.blobs, holdings.scrutiny
        self._transfers_named = holdings.transfers_named(cut)
        self._first_accepted = now
        self.inputs = self._my_inputs(facts)
        # What is still open, last first: what has come stays, so it is dropped from the end and not looked at again.
        self._open_inputs = self.inputs[::-1]
        self._open_parts = list(range(len(self.duties)))[::-1]
        self._open_reveals = list(self.contributors[::-1])
        self._beacon: Digest | None = None
        self._fixed: dict[int, Digest] = {}
        """The aggregate of every part, if it was fixed before the beacon was known."""
        self.settles_at: float | None = None
        """Until when projections are waited for, counted from when the beacon was known; None if they are not."""
        self.tells_at: float | None = None
        """When those that have not published projections by then are told the beacon."""
        self._has_begun = False
        self._reveals_heard = 0
        self._looked_at: set[int] = set()
        self._unjudged: set[int] = set()
        """Parts of which a projection was not judged yet, or none has come."""
        self._judged: set[bytes] = set()
        """Projections that this member has compared with what it knows."""
        self.begin_waits(now)

    def begin_waits(self, now: float) -> None:
        """Lay out all waits, when it is accepted, and again when it is in a later view: others accept it only then, and
        who counted from the first time would do without what they have to say."""
        named, enough = self._transfers_named, self._facts.enough_for_an_honest_one
        waits = Waits(*self._timing.transfers(named, enough), self._timing.delivery_seconds)
        self.schedule = lay_out(now, waits, self._scrutiny is not None)
        self._gave_up = False

    def opening(self, elements: int) -> list[Effect]:
        """What a member does first: push its parts to their aggregators and expect those it aggregates; whoever is not
        in the cut stops working."""
        step, parts = self._facts.head.step, len(self.duties)
        mine = self._transcript.commit_of(self._me)
        effects: list[Effect] = []
        if self._me not in self.contributors:
            effects.append(CancelWork(step))
        elif mine is not None and mine.parts:
            for part, aggregator in enumerate(self.duties):
                if aggregator != self._me and mine.parts[part] in self._blobs:
                    effects.append(SendBlob((aggregator,), step, Digest(mine.parts[part])))
        for item in self.inputs:
            if item.digest not in self._blobs:
                size = part_bytes(elements, parts, item.part)
                effects.append(ExpectPart(step, item.part, parts, item.member, item.digest, size))
        return effects

    def to_aggregate(self, gone: set[PeerId]) -> list[Effect]:
        """Aggregate every part of this member's own that it has not begun with, from the inputs that are here; what is
        still awaited is given up."""
        lacking = {item.peer for item in self.parts_lacking(gone)}
        self._timing.parts.waited_in_vain(lacking, len(self.contributors))
        rows: dict[int, list[tuple[int, Digest]]] = {}
        for item in self.inputs:
            if item.digest in self._blobs and item.part not in self.aggregating:
                rows.setdefault(item.part, []).append((item.member, item.digest))
        self.aggregating.update(rows)
        step, wanted = self._facts.head.step, Counter(item.part for item in self.inputs)
        return [
            AggregatePart(step, self.name, part, tuple(inputs), wanted[part] - len(inputs))
            for part, inputs in rows.items()
        ]

    def _my_inputs(self, facts: StepFacts) -> list[Input]:
        """Every input of the parts this member aggregates, by part and member."""
        commits = self._transcript.commits_in(self.cut, facts.peers)  # a validator's has no parts
        return [
            Input(part, index, facts.peers[index], Digest(commit.parts[part]))
            for part, aggregator in enumerate(self.duties)
            if aggregator == self._me
            for index, commit in commits.items()
            if commit.parts
        ]

    # The three questions are asked after every message, and almost always the first answer is all that matters:
    # hence iterators.

    def parts_lacking(self, gone: set[PeerId]) -> Iterator[Input]:
        """Inputs of this member's own parts that are neither here nor given up, of parts it has not begun with."""
        items = self._open_inputs
        while items and items[-1].digest in self._blobs:
            items.pop()
        skip = gone | self._timing.parts.spent()
        lacking = (item for item in reversed(items) if item.digest not in self._blobs and item.peer not in skip)
        return (item for item in lacking if item.part not in self.aggregating)

    def has_nothing_for_a_part(self) -> bool:
        """Whether nothing at all has come of what one of its own parts is made of: a validator has no part itself, and
        others may have accepted the cut later (SPEC R-4.32)."""
        has = {item.part for item in self.inputs if item.digest in self._blobs}
        return any(item.part not in has for item in self.inputs)

    def parts_deadline(self) -> float:
        """Until when parts are waited for, as things are."""
        return self.schedule.first_parts if self.has_nothing_for_a_part() else self.schedule.parts

    def has_parts(self, gone: set[PeerId]) -> bool:
        """Whether no part is waited for any more."""
        return not self.has_nothing_for_a_part() and next(self.parts_lacking(gone), None) is None

    def give_up_aggregates(self, gone: set[PeerId]) -> None:
        """Those that are still awaited are awaited no more."""
        lacking = {self.duties[part] for part in self.aggregates_lacking(gone)}
        if len(self.contributors) < enough_to_be_named(len(self._facts.peers)):
            # Whose proposer left out whoever it liked; it may have left a validator nobody's parts.
            lacking -= {self._facts.peers[index] for index in self._facts.head.validators}
        self._timing.aggregates.waited_in_vain(lacking, len(self.contributors))
        self._gave_up = True

    def on_blob(self, digest: bytes, now: float) -> None:
        """Bytes came in: whoever they were awaited from is worth waiting for again, if they are not too late. Parts
        tell how long a transfer takes, those that are too late, too, or a network that has become slower would never
        be waited for again. An aggregate does not: it comes after its aggregator has waited, and to learn from that
        how long to wait would let waits grow with every step (SPEC R-4.30)."""
        for item in self.inputs:
            if item.digest == digest:
                self._timing.transfer.observe(now - self._first_accepted)
                if item.part not in self.aggregating:
                    self._timing.parts.came(item.peer)
        for part, aggregator in enumerate(self.duties):
            if not self._gave_up and self._transcript.aggregate_with(self.name, part, aggregator, digest) is not None:
                self._timing.aggregates.came(aggregator)

    def aggregates_lacking(self, gone: set[PeerId]) -> Iterator[int]:
        """Parts whose aggregate is not held and may still come."""
        parts = self._open_parts
        while parts and self._is_held(parts[-1]):
            parts.pop()
        spent = self._timing.aggregates.spent()
        for part in reversed(parts):
            lacks = not self._is_held(part) and self.duties[part] not in spent
            if lacks and not self._is_hopeless(part, gone):
                yield part

    def _is_held(self, part: int) -> bool:
        said = self._transcript.aggregate(self.name, part, self.duties[part])
        return said is not None and said.digest in self._blobs

    def _is_hopeless(self, part: int, gone: set[PeerId]) -> bool:
        """Whether nobody will ever say what its aggregate is: its aggregator is gone, or had nothing to aggregate."""
        aggregator = self.duties[part]
        idle = aggregator == self._me and part not in self.aggregating
        unsaid = self._transcript.aggregate(self.name, part, aggregator) is None
        return unsaid and (aggregator in gone or idle)

    def reveals_lacking(self, gone: set[PeerId]) -> Iterator[PeerId]:
        """Contributors whose nonce is not open and may still come."""
        peers, reveals = self._open_reveals, self._transcript.reveals
        while peers and peers[-1] in reveals:
            peers.pop()
        return (peer for peer in reversed(peers) if peer not in reveals and peer not in gone)

    # --- once all nonces are open ------------------------------------------------------------------------

    def beacon(self) -> Digest | None:
        """The beacon of the step, once all nonces of the cut are open."""
        if self._beacon is None and next(self.reveals_lacking(set()), None) is None:
            self._beacon = opened_beacon(self._facts, self._transcript, self.cut)
        heard = len(self._transcript.reveals_of(self.name))
        if self._beacon is not None and heard > self._reveals_heard:  # a liar may sign more of them later
            enough, self._reveals_heard = self._facts.enough_for_an_honest_one, heard
            named = (self._transcript.named_aggregate(self.name, part, enough) for part in range(len(self.duties)))
            self._fixed = {part: name for part, name in enumerate(named) if name is not None}
            self._unjudged = set(range(len(self.duties)))
            self._looked_at.clear()
        return self._beacon

    def settle(self, now: float, gone: set[PeerId]) -> None:
        """Wait no more for projections if all are here, or had their time: what does not count now never will."""
        if self.settles_at is None or not (now >= self.settles_at or self.has_scrutinized(gone)):
            return
        self.settles_at = None
        patience = self._timing.projections
        patience.waited_in_vain(set(self.projections_lacking(gone)), len(self.contributors))
        for part, aggregator in enumerate(self.duties):
            if self._transcript.projection(self.name, part, aggregator) is not None:
                patience.came(aggregator)

    def projections_lacking(self, gone: set[PeerId]) -> Iterator[PeerId]:
        """Aggregators whose projection is awaited."""
        skip = gone | self._timing.projections.spent()
        for part, name in self._fixed.items():
            aggregator = self.duties[part]
            unsaid = self._transcript.projection(self.name, part, aggregator) is None
            if name in self._blobs and unsaid and aggregator not in skip:
                yield aggregator

    def scrutinize(self, now: float) -> tuple[list[Effect], list[Accusation]]:
        """What is to be worked out about aggregates that have come since, and what there is to say against them."""
        beacon, scrutiny = self.beacon(), self._scrutiny
        if beacon is None or scrutiny is None:
            return [], []
        if not self._has_begun:
            self._has_begun, self.settles_at = True, now + self.schedule.projections - self.schedule.reveals
            self.tells_at = now + self._timing.delivery_seconds
        objections = [
            found for part in sorted(self._unjudged) if (found := self._objection(part, scrutiny, beacon)) is not None
        ]
        step, fresh = self._facts.head.step, [b""] * len(self.duties)
        effects = self._tell_the_beacon(now)
        for part, name in self._fixed.items():
            if name not in self._blobs or part in self._looked_at:
                continue
            self._looked_at.add(part)
            fresh[part] = name
            said = self._transcript.aggregate_with(self.name, part, self._me, name)
            if said is not None:
                commits = self._transcript.commits_in(self.cut, self._facts.peers)
                effects += scrutiny.to_project(step, said, commits, beacon)
        return effects + scrutiny.to_check(step, fresh, beacon), objections

    def _tell_the_beacon(self, now: float) -> list[Effect]:
        """Show the nonces to those whose projections are lacking: they may have been opened to this member alone."""
        if self.tells_at is None or now < self.tells_at:
            return []
        self.tells_at = None
        lacking = (
            part for part in self._fixed if not self._transcript.projections_said(self.name, part, self.duties[part])
        )
        to = tuple(sorted({self.duties[part] for part in lacking} - {self._me}))
        return [SendEnvelope(to, said.envelope) for said in self._transcript.reveals_of(self.name) if to]

    def has_scrutinized(self, gone: set[PeerId]) -> bool:
        """Whether no projection, and nothing about an aggregate that is here, is awaited any more."""
        beacon = self.beacon()
        if beacon is None or self._scrutiny is None:
            return True
        for part, name in self._fixed.items():
            if name in self._blobs and not self._scrutiny.is_known(part, name, beacon):
                return False
        return next(self.projections_lacking(gone), None) is None

    def judge_again(self, part: int) -> None:
        """The aggregator of a part has published something else about it, too."""
        self._unjudged.add(part)

    def _objection(self, part: int, scrutiny: Scrutiny, beacon: Digest) -> Accusation | None:
        """What this member has to say against a projection of a part, once it has come and can be judged. Of a liar
        that signed several any one may be what others let it count by, also one about another aggregate than the
        reveals fix here: a liar's reveals may fix that one for others. Only what enough of them name is looked at."""
        said = self._transcript.projections_said(self.name, part, self.duties[part])
        for shown in said:
            projection = shown.payload
            if not isinstance(projection, Projection) or shown.digest in self._judged:
                continue
            if scrutiny.is_known(part, projection.aggregate, beacon):
                self._judged.add(shown.digest)
                if scrutiny.contradicts(projection, beacon, ACCUSING):
                    return objection_to(shown, scrutiny.me)
        if said and all(shown.digest in self._judged for shown in said):
            self._unjudged.discard(part)
        return None
