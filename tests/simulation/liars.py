"""Peers that break one rule each, so that a planted defect has something to fall for.

The idea: the product's adversaries attack the training; these attack one check of the rules, as plainly as possible.
A correct peer refuses all of it, so a swarm with one of them among five runs clean.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from crowdsurf.protocol import effects, events, limits, wire
from crowdsurf.protocol.chain import beacon_after, following_roster
from crowdsurf.protocol.effects import Effect, SendEnvelope
from crowdsurf.protocol.envelope import Slot, seal, slot_of
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import (
    PAYLOAD_TYPES,
    Aggregate,
    Certificate,
    Commit,
    Envelope,
    Header,
    Kind,
    Payload,
    Reveal,
    ViewChange,
    bitmap_of,
    indexes_of,
)
from crowdsurf.protocol.sim.adversaries import Adversary, Body, Mind
from crowdsurf.protocol.sim.keys import SimulatedSigner
from crowdsurf.protocol.sim.names import name_of

replace = msgspec.structs.replace


class Liar(Adversary):
    """Changes its own messages of one kind."""

    kind: Kind

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        mine = isinstance(effect, SendEnvelope) and effect.envelope.sender == host.id
        if isinstance(effect, SendEnvelope) and mine and effect.envelope.kind == self.kind:
            return self.say(host, effect, parsed(effect.envelope))
        return (effect,)

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        """What it sends instead."""
        raise NotImplementedError


def parsed(envelope: Envelope) -> Payload:
    """The payload of a message."""
    return wire.unpack(envelope.payload, PAYLOAD_TYPES[Kind(envelope.kind)], limits.ENVELOPE_BYTES_MAX)


def signed(host: Body, slot: Slot, payload: Payload) -> Envelope:
    """A message that a host signs properly, whatever it says."""
    return seal(host.signer, host.node.chain.run_id, slot, payload).envelope


def consistent(host: Body, header: Header) -> Header:
    """A header whose beacon and next roster follow from the rest of it."""
    head = host.node.chain.head
    header = replace(header, beacon=beacon_after(head.beacon, header))
    roster = following_roster(head, header, host.node.manifest.missed_steps_max)
    return replace(header, next_roster=roster.digest)


class LyingProposer(Liar):
    """Proposes a false header."""

    kind = Kind.OUTCOME

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Header)
        false = signed(host, slot_of(effect.envelope), self.falsify(host, payload))
        return (SendEnvelope(effect.to, false),)

    def falsify(self, host: Body, header: Header) -> Header:
        """Its lie."""
        raise NotImplementedError

    def victim(self, host: Body) -> PeerId:
        """Another member."""
        return next(peer for peer in host.node.chain.head.roster.peers if peer != host.id)


class InventsAnAggregate(LyingProposer):
    """Names an aggregate that nobody made."""

    def falsify(self, host: Body, header: Header) -> Header:
        return consistent(host, replace(header, parts=(name_of("invented", header.step), *header.parts[1:])))


class VoidsWork(LyingProposer):
    """Says that nobody aggregated the first part."""

    def falsify(self, host: Body, header: Header) -> Header:
        void = replace(header, parts=(b"", *header.parts[1:]), projections=(b"", *header.projections[1:]))
        return consistent(host, void)


class ClaimsALock(Liar):
    """Says to be locked on a header that nobody can check."""

    kind = Kind.VIEW_CHANGE

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        head, slot = host.node.chain.head, slot_of(effect.envelope)
        size, none = len(head.roster), name_of("nothing")
        void = (b"",) * size
        phantom = Header(
            step=host.step,
            previous=head.previous,
            roster=head.roster.digest,
            state=host.state,
            cut=none,
            contributors=bitmap_of(list(range(size)), size),
            parts=void,
            nonces=void,
            beacon=none,
            joined=(),
            left=(),
            next_roster=none,
            excused=bytes((size + 7) // 8),
            projections=void,
        )
        claim = ViewChange(consistent(host, phantom), slot.view - 1)
        return (SendEnvelope(effect.to, signed(host, slot, claim)),)


class DropsAMember(LyingProposer):
    """Leads to a roster without somebody."""

    def falsify(self, host: Body, header: Header) -> Header:
        return replace(header, next_roster=name_of("a roster without somebody"))


class ChoosesTheBeacon(LyingProposer):
    """Names a beacon it likes better."""

    def falsify(self, host: Body, header: Header) -> Header:
        return replace(header, beacon=name_of("a beacon", header.step))


class SendsAway(LyingProposer):
    """Says that somebody left."""

    def falsify(self, host: Body, header: Header) -> Header:
        return consistent(host, replace(header, left=(self.victim(host),)))


class LetsIn(LyingProposer):
    """Says that most commits name a friend of its."""

    def falsify(self, host: Body, header: Header) -> Header:
        friend = SimulatedSigner(0, 10_000 + header.step).peer_id
        return consistent(host, replace(header, joined=(friend,)))


class NamesFewerContributors(LyingProposer):
    """Denies that somebody contributed."""

    def falsify(self, host: Body, header: Header) -> Header:
        index = host.node.chain.head.roster.indexes[self.victim(host)]
        left = [other for other in indexes_of(header.contributors) if other != index]
        nonces = tuple(b"" if other == index else nonce for other, nonce in enumerate(header.nonces))
        bitmap = bitmap_of(left, len(header.parts))
        return consistent(host, replace(header, contributors=bitmap, nonces=nonces))


class InventsANonce(LyingProposer):
    """Opens its own commit with another nonce in the header it proposes."""

    def falsify(self, host: Body, header: Header) -> Header:
        mine = host.node.chain.head.roster.indexes[host.id]
        nonces = tuple(name_of("nonce") if index == mine else nonce for index, nonce in enumerate(header.nonces))
        return consistent(host, replace(header, nonces=nonces))


class ChangesItsNonce(Liar):
    """Opens its commit with another nonce."""

    kind = Kind.REVEAL

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Reveal)
        false = signed(host, slot_of(effect.envelope), replace(payload, nonce=name_of("another nonce")))
        return (SendEnvelope(effect.to, false),)


class StartsElsewhere(Liar):
    """Commits to work on a state that nobody else has."""

    kind = Kind.COMMIT

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Commit)
        false = signed(host, slot_of(effect.envelope), replace(payload, state=name_of("another state")))
        return (SendEnvelope(effect.to, false),)


class SaysTwoThings(Liar):
    """Commits to its parts in one order, and for some of the others in another one."""

    kind = Kind.COMMIT

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Commit)
        other = signed(host, slot_of(effect.envelope), replace(payload, parts=payload.parts[::-1]))
        half = len(effect.to) // 2
        first = SendEnvelope(effect.to[:half], effect.envelope), SendEnvelope(effect.to[:half], other)
        return (*first, SendEnvelope(effect.to[half:], other), SendEnvelope(effect.to[half:], effect.envelope))


class Forges(Liar):
    """Sends another commit in the name of everybody else."""

    kind = Kind.COMMIT

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Commit)
        false = wire.pack(replace(payload, loss=2.0))
        forged = [replace(effect.envelope, payload=false, sender=peer, signature=bytes(64)) for peer in effect.to]
        return (effect, *(SendEnvelope(effect.to, envelope) for envelope in forged))


class CertifiesAlone(LyingProposer):
    """Sends its false header around as if it were certified by its vote and those of others."""

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        assert isinstance(payload, Header)
        void = tuple(b"" for _ in payload.parts)
        false = consistent(host, replace(payload, parts=void, projections=void))
        votes = tuple((index, 0, bytes(64)) for index in range(len(payload.parts) // 2 + 1))
        return (effects.SendCertificates(effect.to, (Certificate(false, votes),)), effect)


class FloodsTheNextStep(Liar):
    """Sends many messages of the step to come."""

    kind = Kind.VOTE

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        slots = [Slot(host.step + 1, view, Kind.VIEW_CHANGE, b"") for view in range(1, 2 * 16)]
        flood = [signed(host, slot, ViewChange(None, 0)) for slot in slots]
        return (effect, *(SendEnvelope(effect.to, envelope) for envelope in flood))


class FloodsTheStep(Liar):
    """Says more in one step than any rule asks for."""

    kind = Kind.REVEAL

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        if host.step:
            return (effect,)
        flood = []
        for number in range(4 * limits.ROSTER_PEERS_MAX + 64):
            aggregate = Aggregate(name_of("cut", number), 0, name_of("aggregate"), b"\1")
            slot = Slot(host.step, 0, Kind.AGGREGATE, aggregate.cut + bytes(2))
            flood.append(SendEnvelope(effect.to[:1], signed(host, slot, aggregate)))
        return (effect, *flood)


class RepeatsItself(Liar):
    """Signs hundreds of votes for one slot."""

    kind = Kind.VOTE

    def say(self, host: Body, effect: SendEnvelope, payload: Payload) -> Iterable[Effect]:
        slot = slot_of(effect.envelope)
        commit = Slot(slot.step, 0, Kind.AGGREGATE, bytes(34))
        flood = [signed(host, commit, Aggregate(bytes(32), 0, name_of(number), b"\1")) for number in range(300)]
        return (effect, *(SendEnvelope(effect.to, envelope) for envelope in flood))


class ServesAFalseState(Adversary):
    """Gives newcomers a state of its own."""

    def serve_state(self, host: Body, honest: Digest) -> Digest:
        return name_of("a false state")


class BringsBack(Adversary):
    """Keeps every request to join and repeats it for ever."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._heard: dict[bytes, Envelope] = {}

    def hear(self, host: Body, event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived) and event.envelope.kind == Kind.JOIN:
            self._heard.setdefault(event.envelope.sender, event.envelope)

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if isinstance(effect, SendEnvelope) and effect.envelope.kind == Kind.COMMIT:
            return (effect, *(SendEnvelope(effect.to, envelope) for envelope in self._heard.values()))
        return (effect,)
