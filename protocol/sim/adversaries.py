"""Peers that break the rules: every attack by its name, one small class each.

The idea: `adversary.py` says what all attackers have in common. Here are those that lie about gradients, messages and
each other; those that lie about aggregates are in `lying_aggregators.py`, those that choose who acts on what in
`lying_proposers.py`, and who says all it says to some alone in `whispering.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from crowdsurf.protocol import assignment, effects, events, limits, wire
from crowdsurf.protocol.cases import objection_to, subject_of
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Slot, decode_envelope, seal, signed_bytes, slot_of
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import (
    PAYLOAD_TYPES,
    Accusation,
    Aggregate,
    Commit,
    Cut,
    Envelope,
    Kind,
    Projection,
    Reason,
    indexes_of,
    payload_digest,
)
from crowdsurf.protocol.sim.adversary import Adversary, Body, Mind, is_own
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS, Forgery
from crowdsurf.protocol.sim.lying_aggregators import ColludingAggregate, LateAggregate, WrongAggregate, WrongProjection
from crowdsurf.protocol.sim.lying_proposers import SplitViews, WithholdCut
from crowdsurf.protocol.sim.whispering import ShowToSome

__all__ = ["ATTACKS", "Adversary", "Body", "Mind"]

DELAY_STEPS = 1000
"""How old the gradients of delayed_gradient are (BTARD, section 4.1); younger while the run is."""


class GradientAttack(Adversary):
    """Any attack on the gradient: `Compute.forge` knows the formula."""

    @property
    def formula(self) -> str:
        """A name of `GRADIENT_ATTACKS`."""
        return self.mind.attack

    def forgery(self, host: Body, effect: effects.ComputeWork) -> Forgery | None:
        mind = self.mind
        past = mind.past.setdefault(host.id, [])
        past.append((host.state, effect.seed))
        del past[: -DELAY_STEPS - 1]
        if not self.attacking(effect.step):
            return None
        state, seed = past[0] if self.formula == "delayed_gradient" else (host.state, effect.seed)
        head = host.node.chain.head
        honest_members = [peer for peer in head.roster.peers if peer not in mind.members]
        certificate = host.node.catch_up.certificate(effect.step - 1)
        return Forgery(
            attack=self.formula,
            strength=mind.strength,
            state=state,
            seed=seed,
            parts=effect.parts,
            honest_seeds=tuple(assignment.work_seed(head.beacon, peer) for peer in honest_members),
            byzantine=len(head.roster.peers) - len(honest_members),
            previous=certificate.header.parts if certificate is not None else (),
            salt=mind.salt(effect.step),
        )


class LeaveOut(GradientAttack):
    """Flips its gradient, and as aggregator says that nobody's part came but those of its own kind, whose gradients are
    then the majority of what goes in (4.1, row 2, from the other end of the link)."""

    formula = "sign_flip"

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if isinstance(effect, effects.AggregatePart):
            members = host.node.chain.head.roster.peers
            friends = tuple(row for row in effect.inputs if members[row[0]] in self.mind.members)
            if friends:
                absent = effect.absent + len(effect.inputs) - len(friends)
                return (dataclasses.replace(effect, inputs=friends, absent=absent),)
        return (effect,)


class WithholdPart(Adversary):
    """Commits to a gradient and never sends or serves its bytes; the share `strength` of members is left out, the same
    ones for all attackers of a step (4.1, row 2: nobody can tell who lied on a private link)."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if isinstance(effect, effects.SendBlob):
            left_out = [peer for peer in effect.to if self._is_victim(host, peer)]
            return (effects.SendBlob(tuple(p for p in effect.to if p not in left_out), effect.step, effect.digest),)
        return (effect,)

    def _is_victim(self, host: Body, peer: PeerId) -> bool:
        draw = int.from_bytes(self.mind.salt(host.step, peer)[:4], "big") / 2**32
        return peer not in self.mind.members and draw < self.mind.strength

    def serves(self, host: Body) -> bool:
        return not self.attacking(host.step)


class LatePart(WithholdPart):
    """Hands its gradient over when it is asked for it and not before, but to one honest member, which has it
    at once: the others learn to wait longer than that one, whose aggregates and waits are then out of step with theirs
    (4.1, row 2)."""

    def _is_victim(self, host: Body, peer: PeerId) -> bool:
        honest = [one for one in host.node.chain.head.roster.peers if one not in self.mind.members]
        return peer in honest and peer != min(honest, key=self.mind.salt)

    def serves(self, host: Body) -> bool:
        return True


class Withhold(Adversary):
    """Never says one kind of thing."""

    kind: ClassVar[Kind]

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        return () if is_own(host, effect, self.kind) else (effect,)


class WithholdReveal(Withhold):
    """Never opens its nonce: once it has seen the others' it could choose the beacon by keeping silent (row 5)."""

    kind = Kind.REVEAL


class WithholdProjection(Withhold):
    """Never shows that its aggregates are right: they count for nothing."""

    kind = Kind.PROJECTION


class Equivocate(Adversary):
    """Signs two commits, cuts, aggregates and projections for one slot and shows each half of the members another one
    (row 1)."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender != host.id:
            return (effect,)
        other = self._other(host, effect.envelope)
        if other is None:
            return (effect,)
        half = [peer for peer in effect.to if self.mind.salt(host.step, peer)[0] & 1]
        rest = tuple(peer for peer in effect.to if peer not in half)
        return (effects.SendEnvelope(rest, effect.envelope), effects.SendEnvelope(tuple(half), other))

    def _other(self, host: Body, envelope: Envelope) -> Envelope | None:
        """Another message for the same slot, well-formed and signed."""
        payload = wire.unpack(envelope.payload, PAYLOAD_TYPES[Kind(envelope.kind)], limits.ENVELOPE_BYTES_MAX)
        if isinstance(payload, Commit):
            payload = msgspec.structs.replace(payload, loss=payload.loss + 1.0)
        elif isinstance(payload, Cut):
            payload = msgspec.structs.replace(payload, commits=payload.commits[:-1] or payload.commits)
        elif isinstance(payload, Aggregate):
            payload = msgspec.structs.replace(payload, digest=self.mind.salt(payload.cut, payload.part))
        elif isinstance(payload, Projection):
            payload = msgspec.structs.replace(payload, norm=payload.norm + 1.0)
        else:
            return None
        return seal(host.signer, envelope.run_id, slot_of(envelope), payload).envelope


class Replay(Adversary):
    """Says again, to anybody, what anybody has said in this step or an earlier one (row 6)."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._heard: list[Envelope] = []

    def hear(self, host: Body, event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived):
            self._heard.append(event.envelope)
            if len(self._heard) > 512:
                del self._heard[self.mind.chance.randrange(256) :: 2]

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope) or not self._heard:
            return (effect,)
        chance = self.mind.chance
        again = [chance.choice(self._heard) for _ in range(max(1, round(4 * self.mind.strength)))]
        return (effect, *(effects.SendEnvelope(effect.to, envelope) for envelope in again))


class Garbage(Adversary):
    """Sends, beside every message, damaged copies of it and signed nonsense."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope):
            return (effect,)
        wrong = [self._damaged(effect.envelope) for _ in range(max(1, round(2 * self.mind.strength)))]
        wrong.append(self._nonsense(host, effect.envelope))
        return (effect, *(effects.SendEnvelope(effect.to, envelope) for envelope in wrong if envelope is not None))

    def _damaged(self, envelope: Envelope) -> Envelope | None:
        """Some bytes changed; what does not even parse never gets past a live peer's socket."""
        data, chance = bytearray(wire.pack(envelope)), self.mind.chance
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            return decode_envelope(bytes(data))
        except Refusal:
            return None

    def _nonsense(self, host: Body, envelope: Envelope) -> Envelope:
        """Random bytes as payload of a random kind and slot, correctly signed."""
        chance = self.mind.chance
        payload = chance.randbytes(chance.randrange(200))
        step = max(0, envelope.step + chance.choice((-2, -1, 0, 0, 1, 2, 1000)))
        slot = Slot(
            step,
            chance.choice((0, 0, 1, limits.VIEWS_MAX - 1)),
            chance.randrange(32),
            chance.randbytes(chance.choice((0, 34, 64))),
        )
        message = signed_bytes(limits.PROTOCOL_VERSION, envelope.run_id, slot, payload_digest(payload), host.id)
        return Envelope(limits.PROTOCOL_VERSION, envelope.run_id, *slot, payload, host.id, host.signer.sign(message))


class Slow(Adversary):
    """Does everything right and sends it `strength` seconds late, to make all others wait as long as they may."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope | effects.SendBlob | effects.SendCertificates):
            return (effect,)
        host.carry_out_later(self.mind.strength, effect)
        return ()


class LazyValidator(Adversary):
    """As validator, recomputes nothing and commits to something that looks like a finding (row 20)."""

    def finding(self, host: Body, effect: effects.RecomputeWork, honest: Digest) -> Digest:
        return self.mind.salt(host.id, effect.step) if self.attacking(host.step) else honest


class FalseAccusation(Adversary):
    """Accuses honest peers: as validator its target, as target its validator, now and then an aggregator of its part
    (all of which everybody must recompute), and every other attacker also somebody drawn, with a proof that proves
    nothing (row 3)."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._accused_in: set[int] = set()
        self._objected_in: set[int] = set()

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        wanted = super().change(host, wanted)
        head = host.node.chain.head
        if not self.attacking(head.step) or host.id not in head.roster.indexes:
            return wanted
        accusations: list[Accusation] = []
        if head.step not in self._accused_in:
            self._accused_in.add(head.step)
            accusations += self._accusations(host)
        if head.step not in self._objected_in and self.mind.salt("objection", host.id, head.step)[0] % 4 == 0:
            objections = _objections(host, self.mind)
            self._objected_in |= {head.step for _ in objections}
            accusations += objections
        others = tuple(peer for peer in head.roster.peers if peer != host.id)
        return [*wanted, *(_accuse(host, accusation, others) for accusation in accusations)]

    def _accusations(self, host: Body) -> list[Accusation]:
        head, salt = host.node.chain.head, self.mind.salt(host.id, host.step)
        honest = [peer for peer in head.roster.peers if peer not in self.mind.members]
        accusations = []
        for audit in head.audits:
            if audit.validator == host.id and audit.target in honest:
                accusations.append(Accusation(audit.target, Reason.WRONG_GRADIENT, audit.step))
        record = host.node.auditor.tribunal.record(head.step - 1)
        for audit in record.head.audits if record is not None else ():
            if audit.target == host.id and audit.validator in honest:
                accusations.append(Accusation(audit.validator, Reason.WRONG_FINDING, head.step - 1))
        if self.mind.members.index(host.id) % 2 and honest:
            victim = honest[salt[0] % len(honest)]
            accusations.append(Accusation(victim, Reason.EQUIVOCATION, head.step, salt * 4))
        return accusations


class Unsettled(Adversary):
    """Says nothing that would settle a step, so that it takes almost all of the others to do it."""

    settling: ClassVar[tuple[Kind, ...]] = (Kind.OUTCOME, Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE)

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if isinstance(effect, effects.SendEnvelope) and effect.envelope.sender == host.id:
            return () if effect.envelope.kind in self.settling else self.say(host, effect)
        return (effect,)

    def say(self, host: Body, effect: effects.SendEnvelope) -> Iterable[Effect]:
        """What becomes of a message of its own."""
        return (effect,)


class TwoFaces(Unsettled):
    """As aggregator, shows each member a projection that is true about that one alone: who accepts its own copy finds
    those of the others false (row 1)."""

    def say(self, host: Body, effect: effects.SendEnvelope) -> Iterable[Effect]:
        if effect.envelope.kind != Kind.PROJECTION or effect.envelope.step != host.step:
            return (effect,)
        return [effects.SendEnvelope((peer,), self._true_about(host, peer, effect.envelope)) for peer in effect.to]

    def _true_about(self, host: Body, peer: PeerId, envelope: Envelope) -> Envelope:
        """The projection, in which two others have sent something else, and all adds up as before."""
        said = wire.unpack(envelope.payload, Projection, limits.ENVELOPE_BYTES_MAX)
        members = host.node.chain.head.roster.peers
        included = [members[index] for index in indexes_of(said.included)]
        places = [place for place, one in enumerate(included) if one != peer and one not in self.mind.members]
        if len(places) < 2:
            return envelope
        lines, (more, less) = list(said.lines), places[:2]
        moved = min(lines[more][-1], lines[less][-1]) / 2
        lines[more] = (lines[more][0] + moved, *lines[more][1:])
        lines[less] = (lines[less][0] - moved, *lines[less][1:])
        false = msgspec.structs.replace(said, lines=tuple(lines))
        return seal(host.signer, envelope.run_id, slot_of(envelope), false).envelope


class SplitObjection(Unsettled):
    """Objects to an honest aggregator, and half of the members are shown it: these do without the part, the others do
    not (row 1)."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._objected_in = -1

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        wanted = super().change(host, wanted)
        head = host.node.chain.head
        if not self.attacking(head.step) or host.id not in head.roster.indexes or head.step == self._objected_in:
            return wanted
        objections = _objections(host, self.mind)
        if objections:
            self._objected_in = head.step
        half = [peer for peer in head.roster.peers if self.mind.salt(head.step, peer)[0] & 1]
        to = tuple(peer for peer in half if peer != host.id)
        return [*wanted, *(_accuse(host, objection, to) for objection in objections)]


def _objections(host: Body, mind: Mind) -> list[Accusation]:
    """To the first projection of an honest aggregator that says something about this member, if there is one."""
    machine, member = host.node.machine, host.node.chain.head.roster.indexes[host.id]
    for shown in machine.transcript.of_kind(Kind.PROJECTION) if machine is not None else ():
        projection = shown.payload
        is_about_it = isinstance(projection, Projection) and member in indexes_of(projection.included)
        if is_about_it and shown.sender not in mind.members:
            return [objection_to(shown, member)]
    return []


def _accuse(host: Body, accusation: Accusation, to: tuple[PeerId, ...]) -> Effect:
    slot = Slot(host.node.chain.head.step, 0, Kind.ACCUSATION, subject_of(accusation))
    return effects.SendEnvelope(to, seal(host.signer, host.node.chain.run_id, slot, accusation).envelope)


ATTACKS: dict[str, type[Adversary]] = {
    "none": Adversary,
    **dict.fromkeys(GRADIENT_ATTACKS, GradientAttack),
    "wrong_aggregate": WrongAggregate,
    "colluding_aggregate": ColludingAggregate,
    "wrong_projection": WrongProjection,
    "late_aggregate": LateAggregate,
    "leave_out": LeaveOut,
    "withhold_part": WithholdPart,
    "late_part": LatePart,
    "withhold_reveal": WithholdReveal,
    "withhold_projection": WithholdProjection,
    "withhold_cut": WithholdCut,
    "equivocate": Equivocate,
    "false_accusation": FalseAccusation,
    "two_faces": TwoFaces,
    "split_objection": SplitObjection,
    "split_views": SplitViews,
    "show_to_some": ShowToSome,
    "lazy_validator": LazyValidator,
    "replay": Replay,
    "garbage": Garbage,
    "slow": Slow,
}
"""Every attack by its name on the command line."""
