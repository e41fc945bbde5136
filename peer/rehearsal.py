"""A live peer that misbehaves on purpose, so that others can see what their swarm bears.

The idea: what to do wrong is decided by the classes of the simulator (`protocol/sim/adversaries.py`), unchanged;
`LiveBody` is what they sit in here. It lets them look at this peer's node, and turns what they decide into commands
for the worker. Nobody is told to misbehave by a manifest or by the network: only by whoever starts the peer. An honest
daemon never loads this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crowdsurf.peer.blobs import BlobStore, Place
from crowdsurf.peer.compute.client import ComputeClient, Range, WorkResult
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.assignment import ELEMENT_BYTES
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Signer
from crowdsurf.protocol.errors import MisuseError, Refusal
from crowdsurf.protocol.ids import Digest, PeerId, peer_from_text, peer_text
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim.adversaries import ATTACKS, Mind
from crowdsurf.protocol.sim.compute import Forgery

UNUSUAL_STRENGTH = 1.0
"""Of attacks that the literature has no strength for."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a peer does wrong, and with whom."""

    attack: str
    """A name of `ATTACKS`."""
    strength: float | None = None
    """None is that of the literature, or 1."""
    start: int = 0
    """First step of the attack."""
    colluders: tuple[PeerId, ...] = ()
    """All peers that attack together, this one included or not."""

    def arguments(self) -> list[str]:
        """The options of `crowdsurf join` that say the same."""
        strength = "" if self.strength is None else f":{self.strength!r}"
        colluders = ",".join(peer_text(peer) for peer in self.colluders)
        found = ["--rehearse", f"{self.attack}{strength}", "--rehearse-from", str(self.start)]
        return [*found, "--colluders", colluders] if colluders else found

    def sentence(self) -> str:
        """For people."""
        strength = "" if self.strength is None else f" with strength {self.strength:g}"
        return f"This peer misbehaves on purpose: {self.attack}{strength}, from step {self.start} on."


def wrong_attack(name: str) -> str | None:
    """What is wrong with the name of an attack."""
    known = [attack for attack in ATTACKS if attack != "none"]
    return None if name in known else f"must be one of {', '.join(known)}, not {name}"


def parse_rehearsal(attack: str, start: int = 0, colluders: str = "") -> Rehearsal:
    """From `NAME` or `NAME:STRENGTH` and peer ids with commas between them. Raises MisuseError."""
    name, _, strength = attack.partition(":")
    problem = wrong_attack(name)
    if problem is not None:
        raise MisuseError(f"--rehearse {problem}")
    number = None
    if strength:
        try:
            number = float(strength)
        except ValueError:
            number = math.nan
        if not 0.0 <= number < math.inf:
            raise MisuseError(f"--rehearse must look like sign_flip or sign_flip:1000, not {attack}")
    try:
        peers = tuple(peer_from_text(text) for text in colluders.split(",") if text)
    except Refusal as error:
        raise MisuseError(f"--colluders must be peer ids with commas between them: {error.detail}") from error
    return Rehearsal(name, number, start, peers)


class LiveBody:
    """An adversary's body in a daemon (`protocol.sim.adversaries.Body`)."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        signer: Signer,
        node: Node,
        client: ComputeClient,
        blobs: BlobStore,
        carry_out_later: Callable[[float, Effect], None],
    ) -> None:
        self._rehearsal = rehearsal
        self._signer = signer
        self._node = node
        self._client = client
        self._blobs = blobs
        self._carry_out_later = carry_out_later
        mind = Mind(
            attack=rehearsal.attack,
            strength=UNUSUAL_STRENGTH if rehearsal.strength is None else rehearsal.strength,
            start=rehearsal.start,
            members=sorted({signer.peer_id, *rehearsal.colluders}),
        )
        self._adversary = ATTACKS[rehearsal.attack](mind)

    # --- what the adversary sees -------------------------------------------------------------------------

    @property
    def id(self) -> PeerId:
        """This peer."""
        return self._signer.peer_id

    @property
    def signer(self) -> Signer:
        """Its key."""
        return self._signer

    @property
    def node(self) -> Node:
        """Its rules, which follow them."""
        return self._node

    @property
    def step(self) -> int:
        """The step it is in."""
        return self._node.chain.head.step

    @property
    def state(self) -> Digest:
        """The state it holds."""
        return self._node.catch_up.digest

    def carry_out_later(self, seconds: float, effect: Effect) -> None:
        """Carry out an effect after a while."""
        self._carry_out_later(seconds, effect)

    # --- what the adversary decides ----------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """What it does about an event, given what an honest peer would do."""
        self._adversary.hear(self, event)
        return self._adversary.change(self, self._node.handle(event, now))

    def serves(self) -> bool:
        """Whether it answers requests for bytes."""
        return self._adversary.serves(self)

    async def work(self, effect: effects.ComputeWork, ranges: Sequence[Range], gradient: Segment) -> WorkResult:
        """The work unit of a step, or something else instead. Raises as `ComputeClient.work`."""
        forgery = self._adversary.forgery(self, effect)
        if forgery is None and self._rehearsal.attack == "delayed_gradient":
            forgery = Forgery("none", 0.0, self.state, effect.seed, effect.parts, (), 0, (), Digest(b""))
        if forgery is None:
            return await self._client.work(effect.seed, ranges, gradient)
        usual = self._rehearsal.strength is None
        try:
            previous = self._blobs.averaged_gradient(effect.step - 1, forgery.previous) if forgery.previous else None
        except KeyError:
            previous = None  # not here any more, or never was
        if previous is None:
            return await self._client.forge(forgery, usual, effect.seed, ranges, gradient)
        with self._blobs.using(previous[0]):
            return await self._client.forge(forgery, usual, effect.seed, ranges, gradient, previous)

    def finding(self, effect: effects.RecomputeWork, honest: Digest) -> Digest:
        """What it commits to as validator."""
        return self._adversary.finding(self, effect, honest) if effect.finder == self.id else honest

    async def distort(self, effect: effects.AggregatePart, place: Place, right: Digest) -> Digest:
        """The aggregate of a part, in its place, or something else instead; its digest. Raises WorkerDied."""
        wrong = self._adversary.distortion(self, effect)
        if wrong is None:
            return right
        elements = place.nbytes // ELEMENT_BYTES
        return await self._client.distort(place.memory.segment, place.offset, elements, wrong.strength, wrong.salt)

    def checked(self, honest: events.AggregatesChecked) -> events.AggregatesChecked:
        """What its node is told about the aggregates of others: nothing against its own kind."""
        return self._adversary.checked(self, honest)

    def projected(self, effect: effects.ProjectPart, honest: events.PartProjected) -> events.PartProjected | None:
        """What its node is told about an aggregate of its own; None if it speaks for itself instead."""
        said = self._adversary.projected(self, effect, honest)
        if isinstance(said, events.PartProjected):
            return said
        for action in said:
            self.carry_out_later(0.0, action)
        return None
