"""Peers that abuse audits, accusations and bans, each in one way, for planted defects to fall for.

As those of `liars.py`: a correct swarm runs clean with one of them among its members, and if it can be convicted it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from crowdsurf.protocol import assignment, events
from crowdsurf.protocol.accepted_cut import AcceptedCut
from crowdsurf.protocol.cases import case_name, subject_of
from crowdsurf.protocol.effects import Effect, SendEnvelope
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Accusation, Ban, Header, Join, Kind, Payload, Reason, Verdict
from crowdsurf.protocol.sim.adversaries import Body, Mind, WithholdPart, WithholdReveal
from crowdsurf.protocol.sim.names import name_of
from tests.simulation.liars import Liar, LyingProposer, SaysTwoThings, consistent, signed

replace = msgspec.structs.replace


class Accuser(Liar):
    """Accuses others of what they have not done, when it commits."""

    kind = Kind.COMMIT

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        yield effect
        for accusation in self.accusations(host):
            slot = Slot(host.step, 0, Kind.ACCUSATION, subject_of(accusation))
            said = seal(host.signer, host.node.chain.run_id, slot, accusation)
            yield SendEnvelope(effect.to, said.envelope)
            yield from self.after(host, effect, accusation, case_name(said, False))

    def accusations(self, host: Body) -> Iterable[Accusation]:
        """What it says."""
        raise NotImplementedError

    def after(self, host: Body, effect: SendEnvelope, accusation: Accusation, case: Digest) -> Iterable[Effect]:
        """What it says about its own accusation."""
        return ()


class AccusesItsTarget(Accuser):
    """Says that whoever it was drawn to validate did wrong work."""

    def accusations(self, host: Body) -> Iterable[Accusation]:
        audit = host.node.chain.head.audit_of(host.id)
        if audit is not None:
            yield Accusation(audit.target, Reason.WRONG_GRADIENT, audit.step)


class AccusesAndJudges(AccusesItsTarget):
    """Says so, and finds so too."""

    def after(self, host: Body, effect: SendEnvelope, accusation: Accusation, case: Digest) -> Iterable[Effect]:
        verdict = Verdict(case, accusation.accused)
        yield SendEnvelope(effect.to, signed(host, Slot(host.step, 0, Kind.VERDICT, case), verdict))


class AccusesAnybody(Accuser):
    """Says that somebody did wrong work whom it was not drawn to validate."""

    def accusations(self, host: Body) -> Iterable[Accusation]:
        head = host.node.chain.head
        for audit in head.audits:
            if host.id not in (audit.validator, audit.target):
                yield Accusation(audit.target, Reason.WRONG_GRADIENT, audit.step)


class AccusesWithoutProof(Accuser):
    """Says that somebody signed two things, and shows nothing that would prove it."""

    def accusations(self, host: Body) -> Iterable[Accusation]:
        victim = next(peer for peer in host.node.chain.head.roster.peers if peer != host.id)
        if host.step:
            yield Accusation(victim, Reason.EQUIVOCATION, host.step, b"trust me")


class FloodsTheCourt(AccusesWithoutProof):
    """Says so in hundreds of ways."""

    def accusations(self, host: Body) -> Iterable[Accusation]:
        for accusation in super().accusations(host):
            yield from (replace(accusation, proof=number.to_bytes(2, "big")) for number in range(300))


class BansSomebody(LyingProposer):
    """Proposes to ban a member that nobody has accused."""

    def falsify(self, host: Body, header: Header) -> Header:
        ban = Ban(self.victim(host), Reason.WRONG_GRADIENT, header.step, name_of("no case"))
        return consistent(host, replace(header, bans=(ban,)))


class CountsAVoidStep(LyingProposer):
    """Proposes that aggregates count although a nonce is missing: its own, which it has not opened."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        head = host.node.chain.head
        is_proposer = assignment.proposers(head.beacon, head.roster, head.step)[0] == head.roster.indexes.get(host.id)
        machine = host.node.machine
        if machine is not None and machine.accepted is not None and is_proposer:
            # The others cannot publish projections, so it waits for none of theirs.
            accepted, others = machine.accepted, set(head.roster.peers) - {host.id}
            accepted.has_scrutinized = lambda gone: AcceptedCut.has_scrutinized(accepted, others)  # type: ignore[method-assign]
        if isinstance(effect, SendEnvelope) and effect.envelope.kind == Kind.REVEAL and is_proposer:
            return () if effect.envelope.sender == host.id else (effect,)
        return super().send(host, effect)

    def falsify(self, host: Body, header: Header) -> Header:
        mine = host.node.chain.head.roster.indexes[host.id]
        nonces = tuple(b"" if index == mine else nonce for index, nonce in enumerate(header.nonces))
        return consistent(host, replace(header, nonces=nonces))


class WithholdsFromOne(WithholdPart):
    """Sends its parts to all but one of the others, which waits for them as long as it may."""

    def _is_victim(self, host: Body, peer: PeerId) -> bool:
        return peer == next(other for other in host.node.chain.head.roster.peers if other != host.id)


class ComesBack(SaysTwoThings):
    """Is banned for signing two commits, and asks to join again."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._asked = False

    def hear(self, host: Body, event: events.Event) -> None:
        head = host.node.chain.head
        if host.id in head.roster.outlaws and not self._asked:
            self._asked = True
            join = signed(host, Slot(head.step, 0, Kind.JOIN, b""), Join())
            for seconds in range(1, 20):
                host.carry_out_later(float(seconds), SendEnvelope(head.roster.peers, join))


class WithholdsOnce(WithholdReveal):
    """Does not open its nonce in one step, and asks to join again as soon as it is out."""

    def attacking(self, step: int) -> bool:
        return step == 1
