"""Peers that break the rules: one small class for each attack, over two hooks.

The idea: an adversary is an honest peer (the same node, disk and network) whose results and messages are changed
on the way out. `forgery` and `distortion` change what it computes, `change` changes what it sends; a class overrides
what it needs and nothing else. Attackers of one simulation share a `Mind`, in which they agree on whatever must
be alike. Since work seeds are public they know every honest gradient; what they can not do is sign for others.
An adversary only decides; its body (a simulated host, or a live daemon that rehearses) does the computing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import msgspec

from crowdsurf.protocol import assignment, effects, events, limits, wire
from crowdsurf.protocol.cases import subject_of
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Signer, Slot, decode_envelope, seal, signed_bytes, slot_of
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
    Reason,
    payload_digest,
)
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS, Distortion, Forgery
from crowdsurf.protocol.sim.names import name_of


class Body(Protocol):
    """What an adversary knows of the peer it sits in, and the one thing it may do there by itself."""

    @property
    def id(self) -> PeerId: ...

    @property
    def signer(self) -> Signer: ...

    @property
    def node(self) -> Node: ...

    @property
    def step(self) -> int:
        """The step it is in."""
        ...

    @property
    def state(self) -> Digest:
        """The state it holds."""
        ...

    def carry_out_later(self, seconds: float, effect: Effect) -> None:
        """Carry out an effect after a while."""
        ...


@dataclass(slots=True)
class Mind:
    """What colluding attackers share."""

    attack: str
    strength: float
    start: int = 0
    """First step of the attack."""
    stop: int | None = None
    """First step after it; None: never stops."""
    adaptive: bool = False
    """Behave for `CALM_STEPS` whenever one of them looks suspected."""
    chance: random.Random = field(default_factory=random.Random)
    members: list[PeerId] = field(default_factory=list)
    past: dict[PeerId, list[tuple[Digest, Digest]]] = field(default_factory=dict)
    """Every member's (state, seed) of its work units, oldest first."""
    calm_until: int = 0

    def salt(self, *fields: object) -> Digest:
        """Shared chance: the same for all members that ask for the same."""
        return name_of("salt", self.attack, *fields)


CALM_STEPS = 20
DELAY_STEPS = 1000
"""How old the gradients of delayed_gradient are (BTARD, section 4.1); younger while the run is."""


class Adversary:
    """Base: does nothing wrong. One object for each attacking host."""

    name: ClassVar[str] = "none"

    def __init__(self, mind: Mind) -> None:
        self.mind = mind

    def attacking(self, step: int) -> bool:
        """Whether the attack is on in this step."""
        mind = self.mind
        in_time = step >= mind.start and (mind.stop is None or step < mind.stop)
        return in_time and not (mind.adaptive and step < mind.calm_until)

    # --- what it computes --------------------------------------------------------------------------------

    def forgery(self, host: Body, effect: effects.ComputeWork) -> Forgery | None:
        """What it computes instead of its work unit; None for the honest one."""
        return None

    def distortion(self, host: Body, effect: effects.AggregatePart) -> Distortion | None:
        """How it changes its aggregate of a part; None for the right one."""
        return None

    def finding(self, host: Body, effect: effects.RecomputeWork, honest: Digest) -> Digest:
        """What it commits to as validator."""
        return honest

    # --- what it sends -----------------------------------------------------------------------------------

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        """What it does, given what an honest peer would do. It never says anything against its own kind."""
        self._look_for_suspicion(wanted)
        wanted = [effect for effect in wanted if not self._betrays(host, effect)]
        if not self.attacking(host.step):
            return wanted
        return [changed for effect in wanted for changed in self.send(host, effect)]

    def _betrays(self, host: Body, effect: Effect) -> bool:
        if not isinstance(effect, effects.PersistSigned | effects.SendEnvelope):
            return False
        envelope = effect.envelope
        if envelope.sender != host.id or envelope.kind not in (Kind.ACCUSATION, Kind.VERDICT):
            return False
        payload = wire.unpack(envelope.payload, PAYLOAD_TYPES[Kind(envelope.kind)], limits.ENVELOPE_BYTES_MAX)
        named = payload.accused if isinstance(payload, Accusation) else payload.guilty  # type: ignore[union-attr]
        return named in self.mind.members

    def _look_for_suspicion(self, wanted: list[Effect]) -> None:
        """An adaptive attacker lies low when a certified step went on without one of its kind."""
        for effect in wanted:
            if self.mind.adaptive and isinstance(effect, effects.StepCertified):
                missing = set(effect.roster) & set(self.mind.members) - set(effect.contributors)
                if missing:
                    self.mind.calm_until = max(self.mind.calm_until, effect.step + 1 + CALM_STEPS)

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        """What becomes of one effect while the attack is on."""
        return (effect,)

    # --- what it hears -----------------------------------------------------------------------------------

    def hear(self, host: Body, event: events.Event) -> None:
        """An event is about to be given to its node."""

    def serves(self, host: Body) -> bool:
        """Whether it answers requests for bytes."""
        return True

    def serve_state(self, host: Body, honest: Digest) -> Digest:
        """The state it gives to newcomers."""
        return honest


class GradientAttack(Adversary):
    """Any attack on the gradient: `Compute.forge` knows the formula."""

    def forgery(self, host: Body, effect: effects.ComputeWork) -> Forgery | None:
        mind = self.mind
        past = mind.past.setdefault(host.id, [])
        past.append((host.state, effect.seed))
        del past[: -DELAY_STEPS - 1]
        if not self.attacking(effect.step):
            return None
        state, seed = past[0] if mind.attack == "delayed_gradient" else (host.state, effect.seed)
        head = host.node.chain.head
        honest_members = [peer for peer in head.roster.peers if peer not in mind.members]
        certificate = host.node.catch_up.certificate(effect.step - 1)
        return Forgery(
            attack=mind.attack,
            strength=mind.strength,
            state=state,
            seed=seed,
            parts=effect.parts,
            honest_seeds=tuple(assignment.work_seed(head.beacon, peer) for peer in honest_members),
            byzantine=len(head.roster.peers) - len(honest_members),
            previous=certificate.header.parts if certificate is not None else (),
            salt=mind.salt(effect.step),
        )


class WrongAggregate(Adversary):
    """As aggregator, sends another vector than the rule's result (attacks-and-rules 4.1, row 7)."""

    def distortion(self, host: Body, effect: effects.AggregatePart) -> Distortion | None:
        if not self.attacking(effect.step):
            return None
        return Distortion(self.mind.strength, self.salt(host, effect))

    def salt(self, host: Body, effect: effects.AggregatePart) -> Digest:
        """Which way the aggregate is moved."""
        return self.mind.salt(host.id, effect.step, effect.part)


class ColludingAggregate(WrongAggregate):
    """All attackers move their parts the same way in every step, so that the error adds up over steps."""

    def salt(self, host: Body, effect: effects.AggregatePart) -> Digest:
        return self.mind.salt(effect.part)


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


class WithholdReveal(Adversary):
    """Never opens its nonce: once it has seen the others' it could choose the beacon by keeping silent (row 5)."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        hidden = isinstance(effect, effects.PersistSigned | effects.SendEnvelope)
        return () if hidden and effect.envelope.kind == Kind.REVEAL and effect.envelope.sender == host.id else (effect,)  # type: ignore[union-attr]


class Equivocate(Adversary):
    """Signs two commits, cuts and aggregates for one slot and shows each half of the members another one (row 1)."""

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
    """Accuses honest peers: as validator its target, as target its validator (both of which everybody must recompute),
    and every other attacker also somebody drawn, with a proof that proves nothing (row 3)."""

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._accused_in: set[int] = set()

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        wanted = super().change(host, wanted)
        head = host.node.chain.head
        if not self.attacking(head.step) or head.step in self._accused_in or host.id not in head.roster.indexes:
            return wanted
        self._accused_in.add(head.step)
        return [*wanted, *self._accuse(host)]

    def _accuse(self, host: Body) -> Iterable[Effect]:
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
        others = tuple(peer for peer in head.roster.peers if peer != host.id)
        for accusation in accusations:
            slot = Slot(head.step, 0, Kind.ACCUSATION, subject_of(accusation))
            yield effects.SendEnvelope(others, seal(host.signer, host.node.chain.run_id, slot, accusation).envelope)


class NotYet(Adversary):
    """An attack on messages that the rules do not have yet (projections): until then its peers behave."""


ATTACKS: dict[str, type[Adversary]] = {
    "none": Adversary,
    **dict.fromkeys(GRADIENT_ATTACKS, GradientAttack),
    "wrong_aggregate": WrongAggregate,
    "colluding_aggregate": ColludingAggregate,
    "wrong_projection": NotYet,
    "withhold_part": WithholdPart,
    "withhold_reveal": WithholdReveal,
    "equivocate": Equivocate,
    "false_accusation": FalseAccusation,
    "lazy_validator": LazyValidator,
    "replay": Replay,
    "garbage": Garbage,
    "slow": Slow,
}
"""Every attack by its name on the command line."""


def has_effect(name: str) -> bool:
    """Whether peers that play this attack do anything yet."""
    return not issubclass(ATTACKS[name], NotYet)
