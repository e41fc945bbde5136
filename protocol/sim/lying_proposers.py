"""Peers that choose who acts on which cut, and who is in which view.

The idea: nothing here is signed twice, so nothing can be proven. Whoever misses what others act on would lose its place
for it, or two parts of the members would end a step in two ways; so these attackers tell as many as they need, when it
suits them, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Echo, Envelope, Kind, Payload, Prepare, ViewChange, Vote, payload_digest
from crowdsurf.protocol.roster import quorum_of
from crowdsurf.protocol.sim.adversary import Adversary, Body, Mind


class WithholdCut(Adversary):
    """As proposer, shows its cut to no more members than a quorum, now and then when its view is nearly over; now and
    then keeps back its commit, too, which the cut names. Those that miss the step would lose their place for it."""

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender not in self.mind.members:
            return (effect,)
        envelope, way = effect.envelope, self.mind.salt(effect.envelope.step)[0] % 3
        is_kept = envelope.kind == Kind.PROPOSAL or (envelope.kind == Kind.COMMIT and way == 1)
        if not is_kept:
            return (effect,)
        left_out = self._left_out(host)
        to = tuple(peer for peer in effect.to if peer not in left_out)
        shown = effects.SendEnvelope(to, envelope)
        if way != 2 or envelope.kind != Kind.PROPOSAL:
            return (shown,)
        host.carry_out_later(1.9 * host.node.manifest.deadlines.delivery_seconds, shown)
        return ()

    def _left_out(self, host: Body) -> set[PeerId]:
        """The same for all attackers of a step: as many as leave a quorum, which are too few to open a view."""
        members = host.node.chain.head.roster.peers
        honest = _shuffled(self.mind, host)
        return set(honest[: len(members) - quorum_of(len(members), host.node.manifest.quorum)])


class SplitViews(Adversary):
    """Says what belongs to an even view to one half of the honest members and what belongs to an odd one to the other
    half, and helps each half as far as it can: the one is to go on while the other ends the step without it. What
    belongs to even views comes late, so that the others give up before, and votes there only when those have voted."""

    forged: ClassVar = (Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE)
    """What it says by itself, whichever view its node is in."""
    halved: ClassVar = (Kind.PROPOSAL, Kind.AGGREGATE, Kind.OUTCOME, *forged)

    def __init__(self, mind: Mind) -> None:
        super().__init__(mind)
        self._helped: set[tuple[int, int, int]] = set()
        """Step, kind and view of what it has answered."""
        self._heard: list[Envelope] = []
        self._kept_back: list[effects.SendEnvelope] = []

    def hear(self, host: Body, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is not None and said.kind in (Kind.VIEW_CHANGE, Kind.OUTCOME, Kind.VOTE):
            self._heard.append(said)

    def change(self, host: Body, wanted: list[Effect]) -> list[Effect]:
        wanted = super().change(host, wanted)
        heard, self._heard = self._heard, []
        if not self.attacking(host.step) or host.id not in host.node.chain.head.roster.indexes:
            return wanted
        return [*wanted, *(effect for said in heard if said.step == host.step for effect in self._help(host, said))]

    def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
        if not isinstance(effect, effects.SendEnvelope) or effect.envelope.kind not in self.halved:
            return (effect,)
        said = effect.envelope
        if said.sender not in self.mind.members:
            return ()  # it hands nothing on
        if said.sender == host.id and said.kind in self.forged:
            return self._help(host, said) if said.kind == Kind.VIEW_CHANGE else ()
        half = self._half(host, said.view)
        shown = effects.SendEnvelope(tuple(peer for peer in effect.to if peer in half), said)
        late = self._late_seconds(host, said)
        if not late:
            return (shown,)
        host.carry_out_later(late, shown)
        return ()

    def _late_seconds(self, host: Body, said: Envelope) -> float:
        """A first cut comes within the view, the header some time after it."""
        deliveries = {int(Kind.PROPOSAL): 2, int(Kind.OUTCOME): 16}.get(said.kind, 0)
        if said.view % 2 or not deliveries:
            return 0.0
        drawn = self.mind.salt(said.step, said.kind)[0] / 256
        return deliveries * drawn * host.node.manifest.deadlines.delivery_seconds

    def _help(self, host: Body, said: Envelope) -> list[Effect]:
        """Ask for a view that somebody asks for, vote for the first header of a view; with those that vote in an odd
        one, everything is said."""
        if said.kind == Kind.VOTE:
            kept_back = self._kept_back if said.view % 2 and said.sender not in self.mind.members else []
            self._kept_back = [] if kept_back else self._kept_back
            return [effect for effect in kept_back if effect.envelope.step == said.step]
        slot = (said.step, said.kind, said.view)
        if slot in self._helped:
            return []
        self._helped = {done for done in self._helped if done[0] == said.step} | {slot}
        if said.kind == Kind.VIEW_CHANGE:
            return [self._say(host, said.view, Kind.VIEW_CHANGE, ViewChange(None, 0))]
        name = payload_digest(said.payload)
        shown = self._say(host, said.view, Kind.ECHO, Echo(name, said.signature))
        prepared = self._say(host, said.view, Kind.PREPARE, Prepare(name))
        voted = self._say(host, said.view, Kind.VOTE, Vote(name))
        if said.view % 2:
            return [shown, prepared, voted]
        self._kept_back.append(voted)
        return [shown, prepared]

    def _say(self, host: Body, view: int, kind: Kind, payload: Payload) -> effects.SendEnvelope:
        sealed = seal(host.signer, host.node.chain.run_id, Slot(host.step, view, kind, b""), payload)
        half = self._half(host, view)
        to = tuple(peer for peer in host.node.chain.head.roster.peers if peer in half and peer != host.id)
        return effects.SendEnvelope(to, sealed.envelope)

    def _half(self, host: Body, view: int) -> set[PeerId]:
        """Who is told what belongs to a view."""
        honest = _shuffled(self.mind, host)
        middle = (len(honest) + 1) // 2
        return {*self.mind.members, *(honest[middle:] if view % 2 else honest[:middle])}


def _shuffled(mind: Mind, host: Body) -> list[PeerId]:
    """The honest members, in an order that all attackers of a step agree on."""
    honest = [peer for peer in host.node.chain.head.roster.peers if peer not in mind.members]
    return sorted(honest, key=lambda peer: mind.salt(host.step, peer))
