"""Checker of what honest peers put up with: no lie about work that they know.

The idea: what lines about a peer's work must say is told to that peer (or to who has done its work again) by its own
compute worker, and what aggregators have said is in messages that were really sent. So from the outside it is plain who
knew of a lie; the checker asks whether it spoke up.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from crowdsurf.protocol import effects, events, limits, wire
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Accusation, Commit, Envelope, Header, Kind, Projection, indexes_of
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.sim.checker import Checker
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.vouched import contradicts, differ, is_whole
from crowdsurf.protocol.tolerance import relative_bound

_STEPS_KEPT = 4


class Published(NamedTuple):
    """A projection that was sent."""

    step: int
    sender: PeerId
    projection: Projection

    def line_about(self, member: int) -> Line | None:
        """What it says about a member."""
        indexes = indexes_of(self.projection.included)
        if member not in indexes or not is_whole(self.projection):
            return None
        *values, norm = self.projection.lines[indexes.index(member)]
        return Line(tuple(values), norm)

    @property
    def line_about_nothing(self) -> Line | None:
        """What it says about a row of zeros, if anybody is absent."""
        if not self.projection.absent:
            return None
        *values, norm = self.projection.lines[-1]
        return Line(tuple(values), norm)


@dataclass(slots=True)
class Told:
    """What a host was told about the aggregates of a step."""

    member: int
    """Which member it is in that step."""
    lines: dict[bytes, Line] = field(default_factory=dict)
    """What must be said about its part, by aggregate."""
    nothings: dict[bytes, Line] = field(default_factory=dict)
    """What must be said about a row of zeros."""


class Outspoken(Checker):
    """An honest peer votes for nothing that rests on a lie about its own part or about the length of an aggregate, and
    accuses whoever has lied about the work it validates, be it who did the work or who aggregated it."""

    name = "outspoken"
    sees_events = True
    sees_effects: ClassVar[tuple[type, ...]] = (effects.SendEnvelope, effects.PersistLock)

    def __init__(self) -> None:
        super().__init__()
        self._published: dict[bytes, Published] = {}
        """By payload digest."""
        self._told: dict[tuple[int, int], Told] = {}
        """By step and host. Whoever starts again, or whose worker does, knows nothing any more."""
        self._nodes: dict[int, object] = {}
        self._owed: dict[int, set[tuple[bytes, int]]] = {}
        """Whom a host must accuse now, and of what step, by host."""
        self._accused: set[tuple[int, bytes, int]] = set()
        """What hosts have said of whom, and of what step."""

    def on_event(self, host: Host, event: events.Event) -> None:
        """A host is told something, and has had its say about what it was told before."""
        if not host.honest:
            return
        for accused, step in self._owed.pop(host.number, set()):
            is_settled = accused in host.node.chain.head.roster.outlaws
            is_silent = (host.number, accused, step) not in self._accused
            if self._nodes.get(host.number) is host.node and is_silent and not is_settled:
                self.report(host, f"it does not accuse who has lied in step {step} about the work it validates")
        if self._nodes.get(host.number) is not host.node or isinstance(event, events.StateLost):
            self._nodes[host.number] = host.node
            self._told = {slot: told for slot, told in self._told.items() if slot[1] != host.number}
        if isinstance(event, events.AggregatesChecked):
            self._tell(host, event)
        elif isinstance(event, events.WorkRecomputed) and event.finder == host.id:
            self._owed[host.number] = self._lies_about_validated(host, event)

    def _tell(self, host: Host, event: events.AggregatesChecked) -> None:
        member = host.node.chain.head.roster.indexes.get(host.id)
        if host.step != event.step or member is None:
            return  # too late to matter
        told = self._told.setdefault((event.step, host.number), Told(member))
        for name, line in zip(event.aggregates, event.lines, strict=False):
            if line is not None:
                told.lines[name] = line
        for name, line in zip(event.aggregates, event.nothings, strict=True):
            if line is not None:
                told.nothings[name] = line

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note what is published and who is accused; judge a vote."""
        if isinstance(effect, effects.PersistLock):
            if host.honest:
                self._check_vote(host, effect.header)
        elif isinstance(effect, effects.SendEnvelope) and effect.envelope.sender == host.id:
            if effect.envelope.kind == Kind.PROJECTION:
                self._note(host, effect.envelope)
            elif effect.envelope.kind == Kind.ACCUSATION and host.honest:
                said = wire.unpack(effect.envelope.payload, Accusation, limits.ENVELOPE_BYTES_MAX)
                self._accused.add((host.number, said.accused, said.step))

    def _note(self, host: Host, envelope: Envelope) -> None:
        with contextlib.suppress(Refusal):  # a liar's nonsense
            opened = host.node._open(envelope)
            if isinstance(opened.payload, Projection):
                self._published[opened.digest] = Published(envelope.step, host.id, opened.payload)

    def _check_vote(self, host: Host, header: Header) -> None:
        told = self._told.get((header.step, host.number), Told(-1))
        counted = [name for part, name in zip(header.parts, header.projections, strict=False) if part]
        shown = [self._published[name] for name in counted if name in self._published]
        for found in shown:
            name, said = found.projection.aggregate, found.line_about(told.member)
            if name in told.lines and said is not None and contradicts(said, told.lines[name]):
                self.report(host, f"it votes in step {header.step} for an aggregate that rests on a lie about its part")
            true, claimed = told.nothings.get(name), found.line_about_nothing
            if true is not None and differ(found.projection.norm, true.norm):
                self.report(host, f"it votes in step {header.step} for an aggregate of another length than is claimed")
            if true is not None and claimed is not None and contradicts(claimed, true):
                self.report(host, f"it votes in step {header.step} for an aggregate that rests on a lie about nothing")
        self._published = {key: one for key, one in self._published.items() if one.step >= header.step - _STEPS_KEPT}
        self._told = {slot: told for slot, told in self._told.items() if slot[0] >= header.step - _STEPS_KEPT}
        self._accused = {said for said in self._accused if said[2] >= header.step - _STEPS_KEPT}

    def _lies_about_validated(self, host: Host, event: events.WorkRecomputed) -> set[tuple[bytes, int]]:
        """Who has said something false about work that this host has just done again, as its validator."""
        record = host.node.auditor.tribunal.record(event.step)
        if record is None or host.id not in host.node.chain.head.roster.indexes:
            return set()
        for audit in record.audits:
            said = record.commits.get(audit.target)
            commit = said.payload if said is not None else None
            if (audit.validator, audit.seed) == (host.id, event.seed) and isinstance(commit, Commit):
                lengths = zip(commit.norms, event.norms, strict=True)
                if commit.parts != event.parts or any(differ(one, other) for one, other in lengths):
                    bound = relative_bound(host.node.manifest)
                    if bound is None or _is_far(event, 2 * bound):
                        return {(audit.target, event.step)}
                    if not event.compared:
                        return set()  # it does not know yet
                member = record.head.roster.indexes[audit.target]
                return {(liar, event.step) for liar in self._liars_about(member, record.header, event)}
        return set()

    def _liars_about(self, member: int, header: Header, event: events.WorkRecomputed) -> set[bytes]:
        """Aggregators that have said something false about a member whose work is known."""
        found = set()
        for name in header.projections:
            shown = self._published.get(name)
            said = shown.line_about(member) if shown is not None else None
            part = shown.projection.part if shown is not None else 0
            true = event.lines[part] if part < len(event.lines) else None
            is_about_it = shown is not None and event.aggregates[part : part + 1] == (shown.projection.aggregate,)
            if is_about_it and shown is not None and said is not None and true is not None and contradicts(said, true):
                found.add(bytes(shown.sender))
        return found


def _is_far(event: events.WorkRecomputed, bound: float) -> bool:
    """Whether what was seen of committed work is surely farther than this from the work itself."""
    seen = [one.distance for one in event.compared if one is not None]
    return math.hypot(*seen) > 1.01 * bound * math.hypot(*event.norms)
