"""One simulated peer: the product's `Node`, and around it what the daemon does, in virtual time.

The idea: this is the live driver (`peer/driver.py`) with the world taken out. Effects are carried out in the same
order, what must be durable is synced before anything is sent, results come back as events after a while. A crash
comes between any two effects. What an adversary changes, it changes here: in what is computed and what is sent.
"""

from __future__ import annotations

import random
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from crowdsurf.protocol import assignment, effects, events, limits
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim.compute import Compute
from crowdsurf.protocol.sim.disk import CHECKPOINT_STEPS, Disk
from crowdsurf.protocol.sim.keys import SimulatedSigner
from crowdsurf.protocol.sim.network import Network
from crowdsurf.protocol.sim.timeline import Timeline, Timings
from crowdsurf.protocol.sim.worker import Worker

if TYPE_CHECKING:
    from crowdsurf.protocol.sim.adversaries import Adversary

ENVELOPE_OVERHEAD_BYTES = 210
"""Signature, ids, slot and frame around a payload."""
CERTIFICATE_BYTES = 4096
REQUEST_BYTES = 64
FETCH_SECONDS_MAX = 3.0
"""An unanswered request for bytes is given up after so long."""
WORKER_START_SECONDS = 1.0
LEAVE_SECONDS_MAX = 8.0
"""How long the others may take to let a leaver go."""
WENT = "stopped on request"
"""Why a host has finished that went without being let go."""
NO_STATE_PAUSE_SECONDS = 1.0
CLOCK_ROUNDING_SECONDS = 1e-6
"""Going from one clock to the other and back must not make a deadline come a hair too early for ever."""
MEMORY_STEPS = 2
"""Blobs of older steps are gone from memory."""
UNEXPECTED_BLOBS_MAX = 4 * limits.ROSTER_PEERS_MAX
"""Blobs that came before anybody knew what they are."""


class World:
    """What all hosts of a simulation share."""

    def __init__(
        self,
        timeline: Timeline,
        network: Network,
        compute: Compute,
        chance: random.Random,
        make_node: Callable[[SimulatedSigner], Node],
    ) -> None:
        self.timeline = timeline
        self.network = network
        self.compute = compute
        self.machine: Callable[[int], Compute] = lambda number: compute
        """What a host computes work units on, by its number: machines may differ a little."""
        self.chance = chance
        self.make_node = make_node
        self.hosts: dict[PeerId, Host] = {}
        self.work_seconds = 0.4
        """How long a work unit usually takes."""
        self.event_observers: list[Callable[[Host, events.Event], None]] = []
        self.effect_observers: dict[type, list[Callable[[Host, Effect], None]]] = {kind: [] for kind in EFFECT_TYPES}
        self.state_observers: list[Callable[[Host, int, Digest], None]] = []

    def watch(self, observer: Observer) -> None:
        """Let an observer see what it asks for."""
        if observer.sees_events:
            self.event_observers.append(observer.on_event)
        for kind in observer.sees_effects:
            self.effect_observers[kind].append(observer.on_effect)
        self.state_observers.append(observer.on_state)


EFFECT_TYPES: tuple[type, ...] = typing.get_args(Effect)


class Observer:
    """Sees what happens to hosts; checkers and traces are observers. It says what it wants to see, because most of
    a simulation is messages and most observers look at few things."""

    sees_events: ClassVar[bool] = False
    sees_effects: ClassVar[tuple[type, ...]] = ()

    def on_event(self, host: Host, event: events.Event) -> None:
        """An event is about to be given to a host's node."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """An honest host, or an adversary after its changes, carries out an effect."""

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """A host holds the state before `step`."""


class Host:
    """One peer. `give` is its only door; everything else is what it does by itself."""

    def __init__(self, world: World, number: int, signer: SimulatedSigner, adversary: Adversary | None = None) -> None:
        self.world = world
        self.number = number
        self.signer = signer
        self.id = signer.peer_id
        self.adversary = adversary
        self.clock = Timings()
        self.speed = 1.0
        """Factor on the time of its work units."""
        self.disk = Disk()
        self.alive = False
        self.started = False
        self.leaving = False
        """Its user wants it to leave."""
        self.finished = ""
        self.state = Digest(b"")
        self.state_step = 0
        self.node: Node
        self.refused: list[effects.Refused] = []
        self.evidence: list[Evidence] = []
        self.stories: dict[int, effects.StepCertified] = {}
        self._certified = 0
        """How many certified steps its observers have seen."""
        self.crash_at_effect: int | None = None
        """Die before the so-manieth effect from now."""
        self.late_deadlines = 0
        """How often its node wanted to be called in the past."""
        self._life = 0
        self._asking_state = 0
        self._tick_at: float | None = None
        self._blobs: dict[int, set[bytes]] = {}
        self._expected: dict[bytes, int] = {}
        """Bytes somebody waits for, by digest, and the step they were first waited for in."""
        self._fetching: set[bytes] = set()
        self._unexpected: dict[bytes, int] = {}
        self.worker = Worker(self)

    # --- life --------------------------------------------------------------------------------------------

    @property
    def honest(self) -> bool:
        """Whether it follows the rules."""
        return self.adversary is None

    @property
    def step(self) -> int:
        """The step it is in."""
        return self.node.chain.head.step

    def start(self) -> None:
        """Begin, or begin again with what the disk kept."""
        self._life += 1
        self.alive, self.started, self.finished, self._tick_at = True, True, "", None
        self._blobs, self._expected, self._fetching, self._unexpected = {}, {}, set(), {}
        self.worker.die()
        self.node = self.world.make_node(self.signer)
        self.node.restore(self.disk.recovered())
        self._load_newest_state()

    def crash(self) -> None:
        """Die now; memory is lost, and the journal's last batch is torn."""
        self._life += 1
        self.alive, self.crash_at_effect = False, None
        self.disk.crash(self.world.chance)
        # What has reached the disk is certified, although it never came to say so: observers must know.
        for certificate in self.disk.certificates[self._certified :]:
            self.carry_out(effects.PersistCertificate(certificate))

    def leave(self, may_go: Callable[[Host], bool]) -> None:
        """Leave in order; who is not let go in time goes without a goodbye, as in the live peer, once `may_go` says
        that nobody's promise hangs on it."""
        self.leaving = True
        self.give(events.LeaveAsked())
        self.later(LEAVE_SECONDS_MAX, self._go, may_go)

    def _go(self, may_go: Callable[[Host], bool]) -> None:
        if not self.finished and not may_go(self):
            self.later(1.0, self._go, may_go)
            return
        self.finished = self.finished or WENT
        self.crash()

    def lose_worker(self) -> None:
        """The compute worker dies: what it was doing and its state are gone; blobs are the daemon's."""
        if self.alive and not self.finished:
            self.worker.die()
            self.give(events.StateLost())
            self.worker.later(WORKER_START_SECONDS, self._load_newest_state)

    def _load_newest_state(self) -> None:
        step = max((s for s in self.disk.states if s <= self.step), default=0)
        digest = self.disk.states.get(step) if step else self.world.compute.initial_state()
        if digest is not None:
            self._hold_state(step, digest)
            self.give(events.StateReady(step, digest))

    # --- events in ---------------------------------------------------------------------------------------

    def give(self, event: events.Event) -> None:
        """Hand an event to the node and carry out what follows."""
        if self.alive:
            self._handle(event, self.clock.local(self.world.timeline.now))

    def _handle(self, event: events.Event, now: float) -> None:
        for see in self.world.event_observers:
            see(self, event)
        if self.adversary is not None:
            self.adversary.hear(self, event)
        wanted = self.node.handle(event, now)
        if wanted:
            self._carry_out(wanted)
        if self.alive:
            self._arm()

    def later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        """Do something unless the host dies before."""
        self.world.timeline.after(seconds, self._if_still, self._life, action, *arguments)

    def _if_still(self, life: int, action: Callable[..., object], *arguments: object) -> None:
        if life == self._life and self.alive:
            action(*arguments)

    def _arm(self) -> None:
        deadline = self.node.next_deadline()
        if deadline is None:
            return
        moment = self.clock.virtual(deadline)
        if moment < self.world.timeline.now - CLOCK_ROUNDING_SECONDS:
            self.late_deadlines += 1
        if self._tick_at is None or moment < self._tick_at:
            self._tick_at = moment
            self.world.timeline.at(moment, self._if_still, self._life, self._tick, moment)

    def _tick(self, moment: float) -> None:
        if moment != self._tick_at:
            return  # an earlier one took its place
        self._tick_at = None
        deadline = self.node.next_deadline()
        now = self.clock.local(self.world.timeline.now)
        if deadline is not None and now + CLOCK_ROUNDING_SECONDS >= deadline:
            self._handle(_TICK, max(deadline, now))
        else:
            self._arm()

    # --- effects out -------------------------------------------------------------------------------------

    def _carry_out(self, wanted: list[Effect]) -> None:
        if self.adversary is not None:
            wanted = self.adversary.change(self, wanted)
        self._persist(wanted)
        for effect in wanted:
            if self.crash_at_effect is not None:
                self.crash_at_effect -= 1
                if self.crash_at_effect < 0:
                    self.crash()
            if not self.alive:
                return
            self.carry_out(effect)

    def carry_out_later(self, seconds: float, effect: Effect) -> None:
        """For adversaries: carry out an effect after a while."""
        self.later(seconds, self.carry_out, effect)

    def carry_out(self, effect: Effect) -> None:
        """Do what one effect says."""
        kind = type(effect)
        for see in self.world.effect_observers[kind]:
            see(self, effect)
        action = _ACTIONS.get(kind)
        if action is not None:
            action(self, effect)
        else:
            self.worker.do(effect)

    def _persist(self, wanted: Iterable[Effect]) -> None:
        """As the driver's `persist`: append all, sync when something was signed or a state will be saved."""
        must_be_durable = False
        for effect in wanted:
            if isinstance(effect, effects.PersistSigned | effects.PersistLock | effects.PersistCertificate):
                self.disk.append(effect)
                must_be_durable |= not isinstance(effect, effects.PersistCertificate)
                if isinstance(effect, effects.PersistLock) and self.holds_all(effect.header.parts):
                    self.disk.save_update(effect.header.step, effect.header.parts)
                    self.disk.grounds = effect.grounds
            elif isinstance(effect, effects.ApplyUpdate):
                must_be_durable |= (effect.step + 1) % CHECKPOINT_STEPS == 0
        if must_be_durable:
            if self.crash_at_effect == 0:
                self.crash()  # in the middle of the write
                return
            self.disk.sync()

    def _send_envelope(self, effect: effects.SendEnvelope) -> None:
        event = events.EnvelopeReceived(self.id, effect.envelope)
        nbytes = len(effect.envelope.payload) + ENVELOPE_OVERHEAD_BYTES
        self._send_to(effect.to, nbytes, event)

    def _send_to(self, to: Iterable[PeerId], nbytes: int, event: events.Event) -> None:
        hosts, send = self.world.hosts, self.world.network.send
        for peer in to:
            receiver = hosts.get(peer)
            if receiver is not None:
                send(self.number, receiver.number, nbytes, receiver.give, event)

    def _send_certificates(self, effect: effects.SendCertificates) -> None:
        for certificate in effect.certificates:
            self._send_to(effect.to, CERTIFICATE_BYTES, events.CertificateReceived(self.id, certificate))

    def _send_want(self, effect: effects.SendWant) -> None:
        self._send_to((effect.to,), 32 * len(effect.digests), events.WantReceived(self.id, effect.digests))

    def _finish(self, effect: effects.Finished) -> None:
        self.finished = effect.reason

    def _note_refusal(self, effect: effects.Refused) -> None:
        if len(self.refused) < 1000:
            self.refused.append(effect)

    def _note_certified(self, effect: effects.PersistCertificate) -> None:
        self._certified = effect.certificate.header.step + 1

    def _keep_evidence(self, effect: effects.PersistEvidence) -> None:
        self.evidence.append(effect.evidence)

    def _note_story(self, effect: effects.StepCertified) -> None:
        self.stories[effect.step] = effect
        oldest = effect.step - MEMORY_STEPS
        for step in [step for step in self._blobs if step < oldest]:
            del self._blobs[step]
        self._expected = {digest: step for digest, step in self._expected.items() if step >= oldest}
        self._unexpected = {digest: step for digest, step in self._unexpected.items() if step >= oldest}

    # --- bytes -------------------------------------------------------------------------------------------

    def holds(self, digest: bytes) -> bool:
        """Whether it can serve these bytes, from memory or from disk."""
        return any(digest in blobs for blobs in self._blobs.values()) or self.disk.has_part(digest)

    def holds_all(self, parts: tuple[bytes, ...]) -> bool:
        """Whether it can serve the bytes of all parts that are not void."""
        return all(self.holds(part) for part in parts if part)

    def hold(self, digest: bytes) -> None:
        """Keep bytes in memory, with the step they came in."""
        self._blobs.setdefault(self.step, set()).add(digest)

    def _send_blob(self, effect: effects.SendBlob) -> None:
        if not self.holds(effect.digest):
            return  # the worker died since
        nbytes = self._part_bytes()
        for peer in effect.to:
            receiver = self.world.hosts.get(peer)
            if receiver is not None:
                self.world.network.send_bulk(self.number, receiver.number, nbytes, receiver.take_blob, effect.digest)

    def _part_bytes(self) -> int:
        return assignment.part_bytes(self.world.compute.elements, max(len(self.node.chain.head.roster), 1), 0)

    def take_blob(self, digest: Digest) -> None:
        """Bytes came in; those nobody waits for yet are kept aside, as in a live peer's sockets."""
        if not self.alive:
            return
        if digest in self._expected or digest in self._fetching:
            self._fetching.discard(digest)
            self.hold(digest)
            self.give(events.BlobArrived(digest))
        elif len(self._unexpected) < UNEXPECTED_BLOBS_MAX:
            self._unexpected[digest] = self.step

    def _expect(self, effect: effects.ExpectPart | effects.ExpectAggregate) -> None:
        self._expected.setdefault(effect.digest, self.step)
        if effect.digest in self._unexpected:
            del self._unexpected[effect.digest]
            self.later(0.0, self.take_blob, effect.digest)

    def _fetch_blob(self, effect: effects.FetchBlob) -> None:
        if effect.digest not in self._fetching:
            self._fetching.add(effect.digest)
            self._try_fetch(effect.digest, effect.candidates)

    def _try_fetch(self, digest: Digest, candidates: tuple[PeerId, ...]) -> None:
        if digest not in self._fetching:
            return  # it came
        if self.holds(digest):
            self.later(0.0, self.take_blob, digest)
        elif candidates:
            self.ask(candidates[0], lambda other: other.answer_blob(self, digest))
            self.later(FETCH_SECONDS_MAX, self._try_fetch, digest, candidates[1:])
        else:
            self._fetching.discard(digest)
            self.later(0.0, self.give, events.BlobFailed(digest))

    def answer_blob(self, asker: Host, digest: Digest) -> None:
        """Serve bytes if they are here; else nothing, and the asker's patience ends by itself."""
        if self.holds(digest) and (self.adversary is None or self.adversary.serves(self)):
            self.world.network.send_bulk(self.number, asker.number, self._part_bytes(), asker.take_blob, digest)

    def show_committed(self, asker: Host, digest: Digest, take: Callable[[], object]) -> None:
        """Serve a part of a gradient that somebody has committed to, to be compared."""
        if self.holds(digest) and (self.adversary is None or self.adversary.serves(self)):
            self.world.network.send_bulk(self.number, asker.number, self._part_bytes(), take)

    def ask(self, peer: PeerId, answer: Callable[[Host], object]) -> None:
        """Bring a question to another host, if it gets there."""
        other = self.world.hosts.get(peer)
        if other is not None:
            ask = _answer_if_alive
            self.world.network.send_bulk(self.number, other.number, REQUEST_BYTES, ask, other, answer)

    # --- the chain and states ----------------------------------------------------------------------------

    def _request_chain(self, effect: effects.RequestChain) -> None:
        self.ask(effect.peer, lambda other: other.answer_chain(self, effect.first_step))

    def answer_chain(self, asker: Host, first_step: int) -> None:
        """Send certified steps from the first one asked for on."""
        found = self.disk.certificates[first_step : first_step + limits.CERTIFICATES_PER_RESPONSE_MAX]
        certificates: tuple[Certificate, ...] = tuple(found)
        nbytes = CERTIFICATE_BYTES * max(len(found), 1)
        event = events.ChainReceived(self.id, certificates)
        self.world.network.send_bulk(self.number, asker.number, nbytes, asker.give, event)

    def _request_state(self, effect: effects.RequestState) -> None:
        self._try_state(effect.candidates)

    def _try_state(self, candidates: tuple[PeerId, ...]) -> None:
        token = self._asking_state = self._asking_state + 1
        if not candidates:
            self.later(NO_STATE_PAUSE_SECONDS, self.give, events.StateFailed())
            return
        self.ask(candidates[0], lambda other: other.answer_state(self, token))
        self.later(FETCH_SECONDS_MAX, self._state_next, token, candidates[1:])

    def _state_next(self, token: int, candidates: tuple[PeerId, ...]) -> None:
        if token == self._asking_state:
            self._try_state(candidates)

    def answer_state(self, asker: Host, token: int) -> None:
        """Serve the newest kept state that a certificate vouches for."""
        certified = [step for step in self.disk.states if step < len(self.disk.certificates)]
        if certified:
            step = max(certified)
            digest = self.disk.states[step]
            if self.adversary is not None:
                digest = self.adversary.serve_state(self, digest)
            nbytes = 4 * self.world.compute.elements
            take = asker.take_state
            self.world.network.send_bulk(self.number, asker.number, nbytes, take, token, step, digest, self.id)

    def take_state(self, token: int, step: int, digest: Digest, source: PeerId) -> None:
        """A whole state came in. As in the driver, one that no certificate here vouches for is not loaded."""
        if not self.alive or token != self._asking_state:
            return
        certificate = self.node.catch_up.certificate(step)
        if certificate is None and step >= self.step:
            # It is ahead of us: with its certificates we shall know what to make of its state, next time.
            self._request_chain(effects.RequestChain(source, self.step))
        if certificate is not None and certificate.header.state == digest:
            self._asking_state += 1
            self.disk.save_state(step, digest)
            self._hold_state(step, digest)
            self.give(events.StateReady(step, digest, source))

    def take_update(self, before: int, digest: Digest) -> None:
        """The worker has applied step `before`."""
        step = before + 1
        self._hold_state(step, digest)
        if step % CHECKPOINT_STEPS == 0:
            self.disk.save_state(step, digest)
        self.give(events.StateReady(step, digest))

    def _hold_state(self, step: int, digest: Digest) -> None:
        self.worker.hold_state(digest)
        self.state_step, self.state = step, digest
        for see in self.world.state_observers:
            see(self, step, digest)


_TICK = events.Tick()


def _answer_if_alive(other: Host, answer: Callable[[Host], object]) -> None:
    if other.alive:
        answer(other)


_ACTIONS: dict[type, Callable[[Host, object], None]] = {
    effects.SendEnvelope: Host._send_envelope,  # type: ignore[dict-item]
    effects.SendCertificates: Host._send_certificates,  # type: ignore[dict-item]
    effects.SendWant: Host._send_want,  # type: ignore[dict-item]
    effects.SendBlob: Host._send_blob,  # type: ignore[dict-item]
    effects.ExpectPart: Host._expect,  # type: ignore[dict-item]
    effects.ExpectAggregate: Host._expect,  # type: ignore[dict-item]
    effects.FetchBlob: Host._fetch_blob,  # type: ignore[dict-item]
    effects.RequestChain: Host._request_chain,  # type: ignore[dict-item]
    effects.RequestState: Host._request_state,  # type: ignore[dict-item]
    effects.PersistCertificate: Host._note_certified,  # type: ignore[dict-item]
    effects.PersistEvidence: Host._keep_evidence,  # type: ignore[dict-item]
    effects.Finished: Host._finish,  # type: ignore[dict-item]
    effects.Refused: Host._note_refusal,  # type: ignore[dict-item]
    effects.StepCertified: Host._note_story,  # type: ignore[dict-item]
}
