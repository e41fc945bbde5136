"""What a peer that breaks the rules is: an honest one with hooks, a body to act through, and a mind it may share.

The idea: an adversary is an honest peer (the same node, disk and network) whose results and messages are changed
on the way out. `forgery`, `distortion`, `finding`, `projected` and `checked` change what it computes, `change` changes
what it sends; a class overrides what it needs and nothing else. Attackers of one simulation share a `Mind`, in which
they agree on whatever must be alike. Since work seeds are public they know every honest gradient; what they can not do
is sign for others. An adversary only decides; its body (a simulated host, or a live daemon that rehearses) does the
computing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from crowdsurf.protocol import effects, events, limits, wire
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Signer
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import PAYLOAD_TYPES, Accusation, Kind
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim.compute import Distortion, Forgery
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

    def projected(
        self, host: Body, effect: effects.ProjectPart, honest: events.PartProjected
    ) -> events.PartProjected | list[Effect]:
        """What its node is told about an aggregate of its own; or what it does instead, if it speaks for itself: no
        node signs lines that convict it."""
        return honest

    def checked(self, host: Body, honest: events.AggregatesChecked) -> events.AggregatesChecked:
        """What its node is told about the aggregates of others."""
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


def is_own(host: Body, effect: Effect, kind: Kind) -> bool:
    """Whether an effect keeps or sends a message of this kind that the host has signed."""
    if not isinstance(effect, effects.PersistSigned | effects.SendEnvelope):
        return False
    return effect.envelope.kind == kind and effect.envelope.sender == host.id
