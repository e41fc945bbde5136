"""Peers that lie about aggregates, lengths and lines, each in one way, for planted defects to fall for.

As those of `liars.py`: a correct swarm runs clean with one of them among its members, and if it can be convicted it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.cases import imbalance_of, objection_to, subject_of
from crowdsurf.protocol.effects import Effect, SendEnvelope
from crowdsurf.protocol.envelope import Opened, Slot, slot_of
from crowdsurf.protocol.messages import Accusation, Commit, Kind, Payload, Projection, indexes_of
from crowdsurf.protocol.projection import Clipping, Line
from crowdsurf.protocol.sim.adversaries import LeaveOut
from crowdsurf.protocol.sim.adversary import Adversary, Body, Mind
from crowdsurf.protocol.sim.compute import Distortion
from crowdsurf.protocol.sim.lying_aggregators import ColludingAggregate, WrongAggregate
from tests.simulation.liars import Liar, signed

replace = msgspec.structs.replace


class GoesFar(ColludingAggregate):
    """Moves its aggregates a thousand times their length away, and lies about itself so that all adds up."""

    def distortion(self, host: Body, effect: effects.AggregatePart) -> Distortion | None:
        wrong = super().distortion(host, effect)
        return wrong._replace(strength=1000.0) if wrong is not None else None


class ClaimsToBeNear(GoesFar):
    """Does so, and says that they are as long as others."""

    def excuse(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected, clipping: Clipping
    ) -> events.PartProjected | list[Effect]:
        said = super().excuse(host, effect, honest, clipping)
        return dataclasses.replace(said, norm=1.0) if isinstance(said, events.PartProjected) else said


class ForgetsOthers(LeaveOut):
    """Leaves out everybody but its own kind, and aggregates as if nobody else had been in the step."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        for one in super().send(host, effect):
            yield dataclasses.replace(one, absent=0) if isinstance(one, effects.AggregatePart) else one

    def projected(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected
    ) -> events.PartProjected | list[Effect]:
        lines = honest.lines[: len(effect.inputs)]
        return dataclasses.replace(honest, lines=lines, absent=0)


class LiesAboutNothing(WrongAggregate):
    """Leaves out all but one, moves what comes of it, and says of a row of zeros what makes its lines add up."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if isinstance(effect, effects.AggregatePart):
            absent = effect.absent + len(effect.inputs) - 1
            return (dataclasses.replace(effect, inputs=effect.inputs[:1], absent=absent),)
        return (effect,)

    def excuse(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected, clipping: Clipping
    ) -> events.PartProjected | list[Effect]:
        if not honest.absent:
            return honest
        shares = [value / honest.absent for value in honest.lines[0].projections]
        about_nothing = Line(tuple(-share for share in shares), honest.lines[-1].norm)
        return dataclasses.replace(honest, lines=(honest.lines[0], about_nothing))


class ClaimsToBeLong(Liar):
    """Commits to its work, and to lengths that are not those of its work."""

    kind = Kind.COMMIT

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Commit)
        false = replace(payload, norms=tuple(1000.0 * norm for norm in payload.norms))
        return (SendEnvelope(effect.to, signed(host, slot_of(effect.envelope), false)),)


class Objector(Adversary):
    """Accuses, once in a step, whoever publishes something first."""

    late_seconds, late_steps = 0.0, 0

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._objected_in: set[int] = set()

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        machine = host.node.machine
        for shown in machine.transcript.of_kind(Kind.PROJECTION) if machine is not None else ():
            accusation = self.accusation(host, shown) if shown.sender != host.id else None
            if accusation is not None and host.step not in self._objected_in:
                self._objected_in.add(host.step)
                others = tuple(peer for peer in host.node.chain.head.roster.peers if peer != host.id)
                slot = Slot(host.step + self.late_steps, 0, Kind.ACCUSATION, subject_of(accusation))
                host.carry_out_later(self.late_seconds, SendEnvelope(others, signed(host, slot, accusation)))
        return wanted

    def accusation(self, host: Body, shown: Opened) -> Accusation | None:
        """What it says about a projection."""
        raise NotImplementedError


class ObjectsToTheTruth(Objector):
    """Says that a true line about its part is false."""

    def accusation(self, host: Body, shown: Opened) -> Accusation | None:
        member, projection = host.node.chain.head.roster.indexes[host.id], shown.payload
        is_about_it = isinstance(projection, Projection) and member in indexes_of(projection.included)
        return objection_to(shown, member) if is_about_it else None


class ObjectsForAnother(Objector):
    """Says that a line about somebody else is false, when the step is over: in the step nobody would listen."""

    late_seconds, late_steps = 0.6, 1

    def accusation(self, host: Body, shown: Opened) -> Accusation | None:
        member, projection = host.node.chain.head.roster.indexes[host.id], shown.payload
        others = [other for other in indexes_of(projection.included) if other != member]  # type: ignore[union-attr]
        return objection_to(shown, others[0]) if others else None


class DeniesBalance(Objector):
    """Says that lines that add up do not."""

    def accusation(self, host: Body, shown: Opened) -> Accusation | None:
        return imbalance_of(shown)
