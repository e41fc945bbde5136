"""A peer that says what it says to some, and to the others later or never.

The idea: whoever is not told what others act on may look as if it had been away. Where the rules fail to make good for
that, a liar that signs nothing twice costs honest members strikes and their places. Nobody can list all the ways to
do it, so this attacker draws one and keeps to it for some steps, because whoever misses one alone loses nothing: for
each kind of thing, how late some of the honest members get it and how late the others do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from crowdsurf.protocol import effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.sim.adversary import Adversary, Body, Mind

Sending = effects.SendEnvelope | effects.SendBlob | effects.SendCertificates

BYTES, CERTIFICATE = 0, -1
"""What is said without an envelope, beside the kinds."""
STEPS = 8
"""So long attackers keep to what they have drawn."""
SAID = (
    *(Kind.COMMIT, Kind.PROPOSAL, Kind.AGGREGATE, Kind.REVEAL, Kind.PROJECTION),
    *(Kind.OUTCOME, Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE, BYTES, CERTIFICATE),
)
LATE_FOR_SOME = (0.0, 0.0, 0.0, 1.0, 2.0, 4.0)
"""How long those wait that are told, in time limits of a delivery."""
LATE_FOR_OTHERS = (0.0, 0.0, 0.0, None, 0.5, 1.0, 1.8, 2.5, 3.5, 5.0)
"""How long the others wait; None: for ever."""


@dataclass(frozen=True, slots=True)
class Whisper:
    """What attackers have agreed on for some steps."""

    some: frozenset[PeerId]
    late: dict[int, tuple[float, float | None]]
    """By kind, for some and for the others, in time limits of a delivery."""
    serves: bool
    """Whether they answer requests for bytes."""


class ShowToSome(Adversary):
    """Says each kind of thing to some honest members when it suits it, and to the others later or never; drawn anew
    every few steps (4.1, row 2)."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, Sending):
            return (effect,)
        whisper = _draw(self.mind, host)
        late_for_some, late_for_others = whisper.late.get(_kind_of(effect), (0.0, 0.0))
        friends = {*whisper.some, *self.mind.members}
        at_once: list[Effect] = []
        for late, to in (
            (0.0, [peer for peer in effect.to if peer in self.mind.members]),
            (late_for_some, [peer for peer in effect.to if peer in whisper.some]),
            (late_for_others, [peer for peer in effect.to if peer not in friends]),
        ):
            if late is None or not to:
                continue
            told = _only_to(effect, tuple(to))
            if late:
                host.carry_out_later(late * host.node.manifest.deadlines.delivery_seconds, told)
            else:
                at_once.append(told)
        return at_once

    def serves(self, host: Body) -> bool:
        return not self.attacking(host.step) or _draw(self.mind, host).serves


def _kind_of(effect: Sending) -> int:
    if isinstance(effect, effects.SendEnvelope):
        return effect.envelope.kind
    return BYTES if isinstance(effect, effects.SendBlob) else CERTIFICATE


def _only_to(effect: Sending, to: tuple[PeerId, ...]) -> Effect:
    if isinstance(effect, effects.SendEnvelope):
        return effects.SendEnvelope(to, effect.envelope)
    if isinstance(effect, effects.SendBlob):
        return effects.SendBlob(to, effect.step, effect.digest)
    return effects.SendCertificates(to, effect.certificates)


def _draw(mind: Mind, host: Body) -> Whisper:
    """The same for all attackers, as long as no honest member comes or goes; another one in every swarm."""
    chance = random.Random(mind.salt("whisper", host.step // STEPS, *mind.members))
    honest = sorted(peer for peer in host.node.chain.head.roster.peers if peer not in mind.members)
    some = chance.sample(honest, chance.randint(1, max(1, len(honest) - 1))) if honest else []
    late = {
        int(said): (chance.choice(LATE_FOR_SOME), chance.choice(LATE_FOR_OTHERS))
        for said in SAID
        if chance.random() < 0.5
    }
    return Whisper(frozenset(some), late, serves=chance.random() < 0.5)
