"""Peers that send wrong aggregates, and what they say to get away with it.

The idea: a wrong aggregate has lines that do not add up (`projection.py`). Whoever publishes them as they are is
convicted by its own signature. So the others say something untrue about honest contributors, which these notice, or
about each other, which an honest validator notices; or they wait until the directions are known, when nothing counts
any more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.cases import part_subject
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Kind, Projection, bitmap_of
from crowdsurf.protocol.projection import Clipping, Line, as_often_as_they_count, clipping_of, projection_problem
from crowdsurf.protocol.sim.adversary import Adversary, Body, Mind, is_own
from crowdsurf.protocol.sim.compute import Distortion


class WrongAggregate(Adversary):
    """As aggregator, sends another vector than the rule's result, and does not lie about it (attacks-and-rules 4.1,
    row 7)."""

    def distortion(self, host: Body, effect: effects.AggregatePart) -> Distortion | None:
        if not self.attacking(effect.step):
            return None
        return Distortion(self.mind.strength, self.salt(host, effect))

    def salt(self, host: Body, effect: effects.AggregatePart) -> Digest:
        """Which way the aggregate is moved."""
        return self.mind.salt(host.id, effect.step, effect.part)

    def projected(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected
    ) -> events.PartProjected | list[Effect]:
        clipping = clipping_of(host.node.manifest)
        is_over = host.step != effect.step  # others may be its members now
        if clipping is None or is_over or _adds_up(honest, honest.lines, clipping):
            return honest
        return self.excuse(host, effect, honest, clipping)

    def excuse(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected, clipping: Clipping
    ) -> events.PartProjected | list[Effect]:
        """What it says about a wrong aggregate."""
        members = host.node.chain.head.roster.peers
        included = bitmap_of([index for index, _ in effect.inputs], len(members))
        lines = tuple((*line.projections, line.norm) for line in honest.lines)
        said = Projection(effect.cut, effect.part, effect.aggregate, included, honest.norm, lines, honest.absent)
        slot = Slot(effect.step, 0, Kind.PROJECTION, part_subject(said))
        others = tuple(peer for peer in members if peer != host.id)
        return [effects.SendEnvelope(others, seal(host.signer, host.node.chain.run_id, slot, said).envelope)]


class WrongProjection(WrongAggregate):
    """As aggregator, sends another vector than the rule's result, and lies about what honest contributors have sent, a
    little about each, so that all adds up."""

    def excuse(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected, clipping: Clipping
    ) -> events.PartProjected | list[Effect]:
        victims = [place for place, peer in enumerate(_contributors(host, effect)) if peer not in self.mind.members]
        return _balanced(honest, victims) if victims else honest


class ColludingAggregate(WrongAggregate):
    """All attackers move their parts the same way in every step, so that the error adds up over steps, and lie about
    each other, which none of them minds. Whose own part went in lies about nobody else, unless the imbalance is too
    large for one; without a friend among its inputs it behaves."""

    def salt(self, host: Body, effect: effects.AggregatePart) -> Digest:
        return self.mind.salt(effect.part)

    def distortion(self, host: Body, effect: effects.AggregatePart) -> Distortion | None:
        has_help = host.step == effect.step and bool(set(_contributors(host, effect)) & set(self.mind.members))
        return super().distortion(host, effect) if has_help else None

    def excuse(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected, clipping: Clipping
    ) -> events.PartProjected | list[Effect]:
        contributors = _contributors(host, effect)
        friends = [place for place, peer in enumerate(contributors) if peer in self.mind.members]
        friends.sort(key=lambda place: contributors[place] != host.id)
        for count in range(1, len(friends) + 1):
            said = _balanced(honest, friends[:count])
            if _adds_up(honest, said.lines, clipping):
                return said
        return honest

    def checked(self, host: Body, honest: events.AggregatesChecked) -> events.AggregatesChecked:
        """Its own node must not mind either, or it would not vote for what its friends want."""
        return dataclasses.replace(honest, lines=())


class LateAggregate(Adversary):
    """Signs its aggregates when all nonces are open, and it could have made them suit the directions. Whether it has
    does not matter: they must count for nothing."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._step = 0
        self._opened: set[bytes] = set()
        self._waiting: list[Effect] = []

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not is_own(host, effect, Kind.AGGREGATE) or self._all_are_open(host):
            return (effect,)
        self._waiting.append(effect)
        return ()

    def hear(self, host: Body, event: events.Event) -> None:
        if not isinstance(event, events.EnvelopeReceived) or event.envelope.kind != Kind.REVEAL:
            return
        if event.envelope.step > self._step:
            self._step, self._opened, self._waiting = event.envelope.step, set(), []
        if event.envelope.step == self._step:
            self._opened.add(event.envelope.sender)
        if self._all_are_open(host):
            for effect in self._waiting:
                host.carry_out_later(0.0, effect)
            self._waiting = []

    def _all_are_open(self, host: Body) -> bool:
        accepted = host.node.machine.accepted if host.node.machine is not None else None
        if accepted is None or self._step != host.step:
            return False
        return self._opened.issuperset(set(accepted.contributors) - {host.id})


def _adds_up(honest: events.PartProjected, lines: Sequence[Line], clipping: Clipping) -> bool:
    return projection_problem(as_often_as_they_count(lines, honest.absent), honest.norm, clipping) is None


def _balanced(honest: events.PartProjected, liars: Sequence[int]) -> events.PartProjected:
    return dataclasses.replace(honest, lines=balanced(honest.lines, liars, honest.absent))


def balanced(lines: Sequence[Line], liars: Sequence[int], absent: int = 0) -> tuple[Line, ...]:
    """Lines that add up to nothing, because those at some places (at least one) say what is lacking, in equal shares.
    Their lengths are claimed as large as that takes."""
    changed, whole = list(lines), as_often_as_they_count(lines, absent)
    shares = [math.fsum(values) / len(liars) for values in zip(*(line.projections for line in whole), strict=True)]
    for place in liars:
        values = tuple(value - share for value, share in zip(lines[place].projections, shares, strict=True))
        changed[place] = Line(values, max(lines[place].norm, *map(abs, values)))
    return tuple(changed)


def _contributors(host: Body, effect: effects.AggregatePart | effects.ProjectPart) -> list[PeerId]:
    """Whose parts go in, or went in."""
    members = host.node.chain.head.roster.peers
    return [members[index] for index, _ in effect.inputs]
