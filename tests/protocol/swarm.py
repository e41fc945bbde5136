"""A little swarm of real nodes for unit tests: virtual time, a lossless or faulty network, fake compute.

The idea: the nodes are the product's; only the shell around them is fake. Blobs are their own digests, a
gradient is a name made of (state, seed, part), and the state after a step is a digest over what was applied, so
two peers that applied different things differ for ever. Every choice comes from one seed.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable

from crowdsurf.protocol import effects, events, limits
from crowdsurf.protocol.assignment import work_seed
from crowdsurf.protocol.envelope import Signer
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import Digest, PeerId, peer_id_from_public_key, public_key_of
from crowdsurf.protocol.manifest import AuditSection, DeadlineSection, Manifest, OptimizerSection, TaskSection
from crowdsurf.protocol.messages import Certificate, Envelope, Header
from crowdsurf.protocol.node import Node, Recovered
from crowdsurf.protocol.projection import PROJECTIONS, Line

ELEMENTS = 1000
RIGHT = Line((0.0,) * PROJECTIONS, 1.0)
"""What every line of an honest aggregate says: nothing is here to be clipped."""


def projected(effect: effects.ProjectPart, lines: tuple[Line, ...]) -> events.PartProjected:
    """The answer to a wish for lines, with these about the inputs."""
    shown = (*lines, RIGHT) if effect.absent else lines
    return events.PartProjected(effect.step, effect.cut, effect.part, effect.aggregate, 1.0, shown, effect.absent)


def mac(public_key: bytes, message: bytes) -> bytes:
    """The keyed digest that stands in for Ed25519."""
    return hashlib.blake2b(message, key=public_key[:32], digest_size=64).digest()


class FakeSigner(Signer):
    """Signs with a keyed digest; `verify_mac` checks it."""

    def __init__(self, number: int) -> None:
        self._public = hashlib.sha256(f"peer {number}".encode()).digest()
        self._peer = peer_id_from_public_key(self._public)

    @property
    def peer_id(self) -> PeerId:
        return self._peer

    def sign(self, message: bytes) -> bytes:
        return mac(self._public, message)

    def nonce(self, label: bytes) -> bytes:
        return hashlib.sha256(self._public + label).digest()


def verify_mac(peer: PeerId, message: bytes, signature: bytes) -> bool:
    return mac(public_key_of(peer), message) == signature


def name(*fields: object) -> Digest:
    """The digest of anything printable."""
    return Digest(hashlib.sha256(repr(fields).encode()).digest())


def manifest_for(signers: Iterable[FakeSigner], **changes: object) -> Manifest:
    peers = tuple(signer.peer_id for signer in signers)
    fields: dict[str, object] = {
        "name": "unit",
        "organizer": peers[0],
        "founders": peers,
        "task": TaskSection(name="fake"),
        "optimizer": OptimizerSection(name="sgd", learning_rate=0.1),
        "deadlines": DeadlineSection(
            work_seconds_min=0.5,
            work_seconds_max=10.0,
            transfer_seconds_min=0.5,
            transfer_seconds_max=5.0,
            delivery_seconds=0.5,
        ),
        "audit": AuditSection(rate=0.0),
        "steps": 10,
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]


class FakePeer:
    """One node with its fake disk, fake compute and fake blobs."""

    def __init__(self, swarm: Swarm, signer: FakeSigner) -> None:
        self.swarm = swarm
        self.signer = signer
        self.id = signer.peer_id
        self.alive = True
        self.journal_certificates: list[Certificate] = []
        self.journal_signed: list[Envelope] = []
        self.journal_locks: list[tuple[Header, int]] = []
        self.grounds: tuple[Envelope, ...] = ()
        self.states: dict[int, Digest] = {}
        self.blobs: set[bytes] = set()
        self.stories: list[effects.StepCertified] = []
        self.refused: list[effects.Refused] = []
        self.evidence: list[Evidence] = []
        self.beacons: dict[int, Digest] = {}
        """Of the head each work unit began with."""
        self.finished = ""
        self.work_seconds: Callable[[int], float] = lambda step: 0.2
        self.before_effect: Callable[[effects.Effect], bool] = lambda effect: True
        self.node = self._new_node()

    def _new_node(self) -> Node:
        return Node(self.swarm.manifest, self.signer, verify_mac, ELEMENTS)

    def begin(self, step: int = 0) -> None:
        digest = self.states.get(step, name("state 0")) if step else name("state 0")
        self.give(events.StateReady(step, digest))

    def restart(self) -> None:
        """Come back from the journal and the newest state on disk."""
        self.alive = True
        self.node = self._new_node()
        signed, locks = list(self.journal_signed), list(self.journal_locks)
        self.node.restore(Recovered(self.journal_certificates, signed, locks, list(self.grounds)))
        self.begin(max(self.states, default=0))

    def give(self, event: events.Event) -> None:
        if not self.alive:
            return
        now = self.swarm.now
        for effect in self.node.handle(event, now):
            if self.alive and self.before_effect(effect):
                self._carry_out(effect)
        deadline = self.node.next_deadline()
        if deadline is not None and deadline <= now:
            self.swarm.violation(f"after {type(event).__name__} the node still wants to be called at {deadline}")
        elif deadline is not None:
            self.swarm.at(deadline, self._tick)

    def _tick(self) -> None:
        deadline = self.node.next_deadline()
        if self.alive and deadline is not None and self.swarm.now >= deadline:
            self.give(events.Tick())

    def _later(self, seconds: float, event: events.Event) -> None:
        node = self.node
        self.swarm.at(self.swarm.now + seconds, lambda: self.give(event) if self.node is node else None)

    def _carry_out(self, effect: effects.Effect) -> None:
        swarm = self.swarm
        if isinstance(effect, effects.PersistSigned):
            self.journal_signed.append(effect.envelope)
            swarm.on_signed(self, effect.envelope)
        elif isinstance(effect, effects.PersistLock):
            self.journal_locks.append((effect.header, effect.view))
            self.grounds = effect.grounds
        elif isinstance(effect, effects.PersistCertificate):
            self.journal_certificates.append(effect.certificate)
            swarm.on_certified(self, effect.certificate)
        elif isinstance(effect, effects.SendEnvelope):
            for to in effect.to:
                swarm.deliver(self, to, events.EnvelopeReceived(self.id, effect.envelope))
        elif isinstance(effect, effects.SendCertificates):
            for to in effect.to:
                for certificate in effect.certificates:
                    swarm.deliver(self, to, events.CertificateReceived(self.id, certificate))
        elif isinstance(effect, effects.SendWant):
            if effect.to == self.id:
                swarm.violation("asking itself")
            swarm.deliver(self, effect.to, events.WantReceived(self.id, effect.digests))
        elif isinstance(effect, effects.SendBlob):
            for to in effect.to:
                swarm.deliver_blob(self, to, effect.digest)
        elif isinstance(effect, effects.FetchBlob):
            self._fetch(effect)
        elif isinstance(effect, effects.RequestChain):
            self._request_chain(effect)
        elif isinstance(effect, effects.RequestState):
            self._request_state(effect)
        else:
            self._compute(effect)

    def _compute(self, effect: effects.Effect) -> None:
        if isinstance(effect, effects.ComputeWork):
            state = self.node.catch_up.digest
            parts = tuple(name("gradient", state, effect.seed, part) for part in range(effect.parts))
            self.blobs.update(parts)
            self.beacons[effect.step] = self.node.chain.head.beacon
            done = events.WorkDone(effect.step, parts, 1.0, 32, (1.0,) * effect.parts)
            self._later(self.work_seconds(effect.step), done)
        elif isinstance(effect, effects.RecomputeWork):
            parts = tuple(name("gradient", effect.state, effect.seed, part) for part in range(effect.parts))
            finding = name("finding", effect.state, effect.seed, effect.finder)
            norms, lines = (1.0,) * effect.parts, tuple(RIGHT if one else None for one in effect.aggregates)
            asked, seed, finder = effect.aggregates, effect.seed, effect.finder
            found = events.WorkRecomputed(effect.step, seed, finder, parts, finding, norms, lines, (), asked)
            self._later(self.work_seconds(effect.step), found)
        elif isinstance(effect, effects.ComputeFinding):
            certificate = self.node.catch_up.certificate(effect.step)
            seed = work_seed(self.beacons[effect.step], self.id)
            if certificate is not None:
                finding = name("finding", certificate.header.state, seed, effect.finder)
                self._later(0.0, events.FindingKnown(effect.step, effect.finder, finding))
        elif isinstance(effect, effects.PersistEvidence):
            self.evidence.append(effect.evidence)
        elif isinstance(effect, effects.AggregatePart):
            missing = [digest for _, digest in effect.inputs if digest not in self.blobs]
            self.swarm.violation(f"aggregating what is not held: {missing}") if missing else None
            result = name("aggregate", effect.inputs, effect.absent)
            self.blobs.add(result)
            included = tuple(member for member, _ in effect.inputs)
            self._later(0.01, events.PartAggregated(effect.step, effect.cut, effect.part, result, included))
        elif isinstance(effect, effects.ProjectPart):
            self._later(0.01, projected(effect, (RIGHT,) * len(effect.inputs)))
        elif isinstance(effect, effects.CheckAggregates):
            held = tuple(RIGHT if one else None for one in effect.aggregates)
            checked = events.AggregatesChecked(
                effect.step, effect.aggregates, effect.beacon, held, (RIGHT,) * len(held)
            )
            self._later(0.01, checked)
        elif isinstance(effect, effects.ApplyUpdate):
            self._apply(effect)
        elif isinstance(effect, effects.StepCertified):
            self.stories.append(effect)
        elif isinstance(effect, effects.Refused):
            self.refused.append(effect)
        elif isinstance(effect, effects.Finished):
            self.finished = effect.reason

    def _apply(self, effect: effects.ApplyUpdate) -> None:
        if any(part and part not in self.blobs for part in effect.parts):
            self.swarm.violation("applying what is not held")
        state = name("state", self.node.catch_up.digest, effect.parts)
        self.states[effect.step + 1] = state
        self._later(0.01, events.StateReady(effect.step + 1, state))

    def _fetch(self, effect: effects.FetchBlob) -> None:
        if effect.digest in self.blobs:  # on its own disk
            self._later(0.0, events.BlobArrived(effect.digest))
            return
        for candidate in effect.candidates:
            other = self.swarm.peers.get(candidate)
            has_it = other is not None and other.alive and effect.digest in other.blobs
            if other is not None and has_it and not self.swarm.loses(candidate, self.id):
                self.swarm.deliver_blob(other, self.id, effect.digest, lossless=True)
                return
        self._later(0.1, events.BlobFailed(effect.digest))

    def _request_chain(self, effect: effects.RequestChain) -> None:
        other = self.swarm.peers.get(effect.peer)
        if other is None or not other.alive:
            self._later(0.1, events.ChainFailed(effect.peer))
            return
        certificates = [c for c in other.journal_certificates if c.header.step >= effect.first_step]
        answer = tuple(certificates[: limits.CERTIFICATES_PER_RESPONSE_MAX])
        self._later(0.1, events.ChainReceived(effect.peer, answer))

    def _request_state(self, effect: effects.RequestState) -> None:
        for candidate in effect.candidates:
            other = self.swarm.peers.get(candidate)
            steps = [s for s in other.states if s < len(other.journal_certificates)] if other and other.alive else []
            if other is not None and steps:
                step = max(steps)
                self.states[step] = other.states[step]
                self._later(0.1, events.StateReady(step, other.states[step], candidate))
                return
        self._later(0.1, events.StateFailed())


class Swarm:
    """Peers, a clock and a network with faults."""

    def __init__(self, count: int, seed: int = 0, extra: int = 0, **changes: object) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.violations: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._outcomes: dict[int, object] = {}
        self._slots: dict[object, bytes] = {}
        self.delay: Callable[[], float] = lambda: 0.01 + 0.02 * self.random.random()
        self.loses: Callable[[PeerId, PeerId], bool] = lambda sender, receiver: False
        signers = [FakeSigner(number) for number in range(count + extra)]
        self.manifest = manifest_for(signers[:count], **changes)
        self.peers = {signer.peer_id: FakePeer(self, signer) for signer in signers}
        self.list = list(self.peers.values())

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        receiver = self.peers.get(to)
        if receiver is not None and not self.loses(sender.id, to):
            self.at(self.now + self.delay(), lambda: receiver.give(event))

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: Digest, lossless: bool = False) -> None:
        if digest not in sender.blobs:
            self.violation("sending a blob that is not held")
        if lossless or not self.loses(sender.id, to):
            self.at(self.now + self.delay() * 2, lambda: self.arrive(to, digest))

    def arrive(self, to: PeerId, digest: bytes) -> None:
        """The bytes of a blob are there."""
        receiver = self.peers.get(to)
        if receiver is not None and receiver.alive:
            receiver.blobs.add(digest)
            receiver.give(events.BlobArrived(Digest(digest)))

    def kill(self, peer: FakePeer, noticed: bool = True) -> None:
        peer.alive = False
        if noticed:
            for other in self.list:
                if other is not peer:
                    self.at(self.now + 0.01, lambda other=other: other.give(events.PeerGone(peer.id)))  # type: ignore[misc]

    def on_signed(self, peer: FakePeer, envelope: Envelope) -> None:
        slot = (peer.id, envelope.step, envelope.view, envelope.kind, envelope.subject)
        if self._slots.setdefault(slot, envelope.payload) != envelope.payload:
            self.violation(f"a peer signed {slot[1:]} twice")

    def on_certified(self, peer: FakePeer, certificate: Certificate) -> None:
        step = certificate.header.step
        if self._outcomes.setdefault(step, certificate.header) != certificate.header:
            self.violation(f"two outcomes for step {step}")

    def violation(self, text: str) -> None:
        self.violations.append(f"t={self.now:.2f}: {text}")

    def start(self, peers: Iterable[FakePeer] | None = None) -> None:
        for peer in self.list if peers is None else peers:
            peer.begin()

    def run(self, until: Callable[[], bool], seconds_max: float = 600.0) -> bool:
        """Let virtual time pass until a condition holds; False if it never does."""
        while self._queue and self.now < seconds_max:
            if until():
                return True
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return until()

    def run_to_end(self, seconds_max: float = 600.0) -> bool:
        return self.run(lambda: all(peer.finished for peer in self.list if peer.alive), seconds_max)
