"""A node: everything a peer decides, as `handle(event, now) -> effects` and `next_deadline()`.

The idea: this file composes the machines (chain, step, catch-up, membership) and routes events to them; it has
no rule of its own beyond which message may reach which machine. It never waits, sleeps, reads a clock or draws
a number, so the live daemon, the simulator and a unit test drive the very same object. SPEC.md is its map.
"""

from __future__ import annotations

from collections.abc import Callable

from crowdsurf.protocol import events, limits
from crowdsurf.protocol.auditor import Auditor
from crowdsurf.protocol.cases import CASE_KINDS, check_objection, is_objection
from crowdsurf.protocol.catchup import CatchUp
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.checks import LAST_WORDS, check_lock, check_slot_form
from crowdsurf.protocol.deadlines import timing_of
from crowdsurf.protocol.effects import (
    CancelWork,
    Effect,
    Finished,
    PersistCertificate,
    PersistSigned,
    Refused,
    RequestChain,
    RosterChanged,
    SendCertificates,
    SendEnvelope,
)
from crowdsurf.protocol.envelope import Equivocation, Opened, Opener, Signer, Slot, Verify, open_envelope, seal
from crowdsurf.protocol.errors import Code, Refusal, Severity, Unreadable
from crowdsurf.protocol.events import Event
from crowdsurf.protocol.hearing import Hearing
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.membership import Membership
from crowdsurf.protocol.messages import (
    Certificate,
    Envelope,
    Join,
    Kind,
    Leave,
    Payload,
)
from crowdsurf.protocol.outcome import StepFacts, story_of
from crowdsurf.protocol.recovery import Recovered
from crowdsurf.protocol.sightings import check_echo
from crowdsurf.protocol.step import StepMachine

_RESULTS: dict[type, Callable[..., None]] = {
    events.WorkDone: StepMachine.on_work_done,
    events.PartAggregated: StepMachine.on_part_aggregated,
    events.PartProjected: StepMachine.on_part_projected,
    events.AggregatesChecked: StepMachine.on_checked,
}
"""What the compute side has done for the step under way."""
_ADVANCING = (events.EnvelopeReceived, events.BlobArrived, *_RESULTS)
"""Events after which the machine has looked at its table itself."""


class Node:
    """One peer's rules. Drive it with `handle` and `next_deadline`; see `events.py` and `effects.py`."""

    def __init__(
        self, manifest: Manifest, signer: Signer, verify: Verify, elements: int, opener: Opener | None = None
    ) -> None:
        """`opener` stands in for `open_envelope` where many nodes live together and each message is opened once."""
        self.manifest = manifest
        self.chain = Chain(manifest)
        self._open = opener or (lambda envelope: open_envelope(envelope, self.chain.run_id, verify))
        self.me = signer.peer_id
        self.machine: StepMachine | None = None
        self.catch_up = CatchUp(elements)
        self.membership = Membership(manifest)
        self.evidence: list[Equivocation] = []
        self.finished = False
        self._signer, self._verify = signer, verify
        self._elements = elements
        self._timing = timing_of(manifest)
        self._early: dict[PeerId, list[Envelope]] = {}
        self._gone: set[PeerId] = set()
        self._helped: set[PeerId] = set()
        self._late_words: set[tuple[PeerId, int]] = set()
        self._ahead: dict[PeerId, int] = {}
        self._chain_asked_until: float | None = None
        self._announce_at: float | None = None
        self._recovered = Recovered()
        self.auditor = Auditor(signer, self.chain.run_id, verify, manifest, self._timing.transfer.bound_seconds)
        self._leaving = self._asked_to_join = False
        self._leave_asked_step = 0
        self._hearing = Hearing(self._timing.delivery_seconds)
        self._effects: list[Effect] = []

    # --- the whole interface -----------------------------------------------------------------------------

    def restore(self, recovered: Recovered) -> None:
        """Rebuild the past from a journal, before any event. Raises Refusal if the chain in it is not valid."""
        for certificate in recovered.certificates:
            self.chain.extend(certificate, self._verify)
            self.catch_up.remember(certificate)
        self._recovered = recovered

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; `now` is in seconds of any clock that never goes back. Raises nothing a peer can cause."""
        if self.finished:
            self._help_after_the_end(event)
        else:
            self._dispatch(event, now)
            self._take_convictions(now)
            if self.machine is not None:
                self._collect(now)
            self._progress(now)
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When `handle(Tick(), now)` is due although nothing happened; None if nothing is waited for."""
        if self.finished:
            return None
        times = [self._chain_asked_until, self.machine.next_deadline() if self.machine is not None else None]
        if self.catch_up.step == self._step:
            times.append(self._announce_at)
        return min((time for time in times if time is not None), default=None)

    @property
    def is_member(self) -> bool:
        """Whether this peer is in the roster of the current step."""
        return self.me in self.chain.head.roster.indexes

    # --- dispatch ----------------------------------------------------------------------------------------

    def _dispatch(self, event: Event, now: float) -> None:
        machine = self.machine
        if isinstance(event, events.EnvelopeReceived):
            self._guard(event.source, lambda: self._on_envelope(event.source, event.envelope, now))
        elif isinstance(event, events.CertificateReceived):
            self._guard(event.source, lambda: self._on_shown_certificate(event.source, event.certificate, now))
        elif isinstance(event, events.ChainReceived):
            self._chain_asked_until = None
            self._ahead.pop(event.source, None)
            step = self._step
            self._guard(event.source, lambda: self._on_certificates(event.source, event.certificates, now))
            if self._step > step:
                self._note_ahead(event.source, self._step)  # one answer may not hold all there is
        elif isinstance(event, events.ChainFailed):
            self._chain_asked_until = None
            self._ahead.pop(event.source, None)
        elif isinstance(event, events.WantReceived):
            self._on_want(event)
        elif isinstance(event, events.PeerGone):
            if self._is_contact(event.peer):
                self._gone.add(event.peer)
        elif isinstance(event, events.PeerSeen):
            self._gone.discard(event.peer)
        elif isinstance(event, events.LeaveAsked):
            if not self._leaving:
                self._leave_asked_step = self._step
            self._leaving = True
            self._announce_at = now
        elif isinstance(event, events.BlobArrived):
            self.catch_up.on_blob(event.digest)
            if machine is not None:
                machine.on_blob(event.digest, now)
        elif isinstance(event, events.BlobFailed):
            self._effects += self.catch_up.blob_failed(event.digest, self._reachable())
        elif type(event) in _RESULTS:
            if machine is not None and event.step == self._step:  # type: ignore[union-attr]
                _RESULTS[type(event)](machine, event, now)
        elif machine is not None and isinstance(event, events.WorkFailed) and event.step == self._step:
            machine.on_work_failed()
        elif isinstance(event, events.WorkRecomputed):
            if machine is not None:
                machine.on_recomputed(event, now)
            self.auditor.on_recomputed(event, self.chain.head)
        elif isinstance(event, events.RecomputeFailed):
            if machine is not None:
                machine.on_recompute_failed(event, now)
        elif isinstance(event, events.FindingKnown):
            self.auditor.on_finding(event, self.chain.head)
        else:
            self._on_state(event)
        if self.machine is not None and not isinstance(event, _ADVANCING):
            self.machine.advance(now)

    def _on_state(self, event: Event) -> None:
        if isinstance(event, events.StateReady):
            fetched = event.source is not None
            taken = self.catch_up.accept_state(event.step, event.digest, fetched, self._step)
            if not taken and event.source is not None:
                self._refuse(event.source, Refusal(Code.WRONG_DIGEST, "the state it served is not the certified one"))
        elif isinstance(event, events.StateFailed):
            self.catch_up.state_failed()
        elif isinstance(event, events.StateLost):
            self.catch_up.lose_state()
            self._remember_signed()
            self._drop_machine()

    def _guard(self, source: PeerId, action: object) -> None:
        """Run an action on a peer's input; a refusal becomes an effect."""
        try:
            action()  # type: ignore[operator]
        except Refusal as refusal:
            self._refuse(source, refusal)

    def _refuse(self, peer: PeerId, refusal: Refusal) -> None:
        if refusal.code is not Code.DUPLICATE:
            costs_stream = isinstance(refusal, Unreadable) and refusal.severity is Severity.REJECT
            self._effects.append(Refused(peer, refusal.code, refusal.detail, costs_stream))

    def _read(self, envelope: Envelope) -> Opened:
        """Open what was handed over. No correct peer hands on what does not open (SPEC R-2.14). Raises Unreadable."""
        try:
            opened = self._open(envelope)
            check_slot_form(envelope)
        except Refusal as refusal:
            raise Unreadable(refusal.code, refusal.detail) from refusal
        return opened

    # --- messages ----------------------------------------------------------------------------------------

    def _on_envelope(self, source: PeerId, envelope: Envelope, now: float) -> None:
        self._gone.discard(source)
        if envelope.run_id != self.chain.run_id:
            raise Unreadable(Code.WRONG_RUN, "the message belongs to another run")
        if {envelope.sender, source} & self.chain.head.roster.outlaws:
            raise Refusal(Code.BANNED, "it is banned from this run")
        if source == envelope.sender and source in self.chain.head.roster.indexes:
            self._hearing.note(source, now)
        if envelope.kind in (Kind.JOIN, Kind.LEAVE):
            self._on_membership(self._read(envelope), now)
            return
        if envelope.kind in CASE_KINDS:
            if envelope.sender not in self.chain.head.roster.indexes:
                raise Refusal(Code.NOT_MEMBER, "only members accuse and judge")
            self._on_case_message(source, self._read(envelope), now)
            return
        if envelope.step < self._step:
            self._on_late(source, envelope)
            return
        sender = PeerId(envelope.sender)
        if envelope.step > self._step or self.machine is None:
            self._keep_early(source, envelope)
            return
        if sender not in self.chain.head.roster.indexes:
            raise Refusal(Code.NOT_MEMBER, "the sender is not in the roster of this step")
        self._on_step_message(source, self.machine, envelope, now)

    def _on_case_message(self, source: PeerId, opened: Opened, now: float) -> None:
        """What is said about a case; an objection to the step under way is for that step first."""
        machine, head = self.machine, self.chain.head
        if machine is not None and opened.envelope.step == self._step and is_objection(opened):
            check_objection(opened, head.roster, self.chain.run_id, self._verify)
            machine.on_objection(opened, now)
        else:
            self.auditor.on_message(source, opened, head, machine.transcript if machine is not None else None)

    def _on_step_message(self, source: PeerId, machine: StepMachine, envelope: Envelope, now: float) -> None:
        known = machine.transcript.said_in(envelope)
        if known is not None and known.envelope == envelope:  # most of what is handed on; its signature was checked
            machine.on_handed_on(source, known, now)
            raise Refusal(Code.DUPLICATE, "heard before")
        opened = self._read(envelope)
        conflict = machine.transcript.check_slot(opened)
        if conflict is not None:
            machine.keep_conflicting(opened, now)
            if len(self.evidence) < limits.EVIDENCE_MAX:
                self.evidence.append(conflict)
            self.auditor.on_conflict(conflict, self.chain.head)
            raise Refusal(Code.EQUIVOCATION, f"{Kind(envelope.kind).name.lower()} of step {envelope.step} signed twice")
        check_echo(opened, machine.proposer(envelope.view), self._verify)
        check_lock(opened, self.chain.head.roster, machine.facts.quorum, self._verify)
        machine.on_message(opened, now)
        self._hearing.note(opened.sender, now)
        machine.on_handed_on(source, opened, now)
        if envelope.kind == Kind.PROJECTION:
            self.auditor.on_projection(opened, self.chain.head)

    def _keep_early(self, source: PeerId, envelope: Envelope) -> None:
        """A member is ahead of us: keep its messages for the next step, and remember to ask it for the chain."""
        if envelope.sender != source:
            raise Refusal(Code.FUTURE, f"forwarded from step {envelope.step}, which is not known here yet")
        if source not in self.chain.head.roster.indexes and envelope.step == self._step:
            raise Refusal(Code.NOT_MEMBER, "the sender is not in the roster of this step")
        if envelope.step > self._step:
            self._note_ahead(source, envelope.step)
        if envelope.step > self._step + 1:
            raise Refusal(Code.FUTURE, f"step {envelope.step} is not known here yet")
        if not self._is_contact(source):
            raise Refusal(Code.NOT_MEMBER, "the sender is neither a member nor has it asked to join")
        if source not in self._early and len(self._early) >= limits.ROSTER_PEERS_MAX:
            raise Refusal(Code.QUEUE_FULL, "too many peers are ahead")
        kept = self._early.setdefault(source, [])
        if len(kept) >= limits.BUFFERED_MESSAGES_PER_PEER:
            raise Refusal(Code.QUEUE_FULL, "too many messages ahead of time")
        kept.append(envelope)

    def _on_membership(self, opened: Opened, now: float) -> None:
        head = self.chain.head
        if isinstance(opened.payload, Join):
            if opened.sender in head.roster.rests and opened.envelope.step < self._step:
                self._help(opened.sender, opened.envelope.step)  # left out for a while, it follows from afar
            elif opened.envelope.step < self._step and len(self._helped) < limits.CANDIDATES_MAX:
                self._help(opened.sender, self._step - 1)  # the newest certificate says whom to ask for the chain
            self.membership.on_join(opened.sender, opened.envelope.step, head)
        elif isinstance(opened.payload, Leave):
            if self.membership.departed(opened.sender):
                self._help(opened.sender, opened.envelope.step)  # it has not heard that it is out
            self.membership.on_leave(opened.sender, opened.envelope.step, head)
        self._effects.append(RosterChanged(self.contacts()))
        if self.machine is not None:
            held = self.machine.holdings
            held.joins, held.leaves = self.membership.joins(head), self.membership.leaves(head)

    def _on_want(self, event: events.WantReceived) -> None:
        if self.machine is None or not self._is_contact(event.source):
            return
        for name in dict.fromkeys(event.digests):
            found = [opened.envelope for opened in self.machine.transcript.find(name)] or self.auditor.messages(name)
            self._effects += [SendEnvelope((event.source,), envelope) for envelope in found]

    def _on_late(self, source: PeerId, envelope: Envelope) -> None:
        """A message of a step that is over. The last words of a step always come late; anything else, or the same
        said again, is from a straggler, which gets the certificates it lacks."""
        words = source, envelope.kind
        if self._is_known(source):
            if envelope.kind in LAST_WORDS and envelope.step == self._step - 1 and words not in self._late_words:
                return self._late_words.add(words)
            self._help(source, envelope.step)
        raise Refusal(Code.STALE, f"step {envelope.step} is over")

    def _help_after_the_end(self, event: Event) -> None:
        """This peer is done, but whoever still works on a step it knows the end of gets told."""
        if not isinstance(event, events.EnvelopeReceived) or not self._is_known(event.source):
            return
        if event.envelope.step < self._step:
            self._helped.clear()
            self._help(event.source, event.envelope.step)

    def _help(self, peer: PeerId, step: int) -> None:
        """Give a straggler the certificates it lacks, once per step of ours."""
        if peer in self._helped or len(self._helped) >= limits.ROSTER_PEERS_MAX:
            return
        self._helped.add(peer)
        # The newest one alone, if the rest is too old to remember: it says whom to ask for the chain.
        certificates = self.catch_up.since(step) or self.catch_up.since(self._step - 1)
        if certificates:
            self._effects.append(SendCertificates((peer,), certificates))

    # --- the chain ---------------------------------------------------------------------------------------

    def _on_shown_certificate(self, source: PeerId, certificate: Certificate, now: float) -> None:
        """A step is over. Who has no state yet to take part with is in nobody's transcript: it hands the certificate
        back to those that signed it, so that they hear of it and it keeps its place (SPEC R-7.2)."""
        roster, step, is_silent = self.chain.head.roster, self._step, self.machine is None and self.is_member
        if source in roster.indexes:
            self._hearing.note(source, now)
        self._on_certificates(source, (certificate,), now)
        voters = tuple(roster.peers[index] for index, _, _ in certificate.votes) if self._step > step else ()
        others = tuple(peer for peer in voters if peer != self.me)
        if is_silent and others:
            self._effects.append(SendCertificates(others, (certificate,)))

    def _on_certificates(self, source: PeerId, certificates: tuple[Certificate, ...], now: float) -> None:
        for certificate in certificates:
            if certificate.header.step < self._step:
                continue
            if certificate.header.step > self._step:
                self._note_ahead(source, certificate.header.step)
                raise Refusal(Code.FUTURE, f"step {certificate.header.step} is not known here yet")
            try:
                self._certified(certificate, view=max(view for _, view, _ in certificate.votes))
            except Refusal as refusal:  # it proves itself, so whoever hands it on can have checked it
                raise Unreadable(refusal.code, refusal.detail) from refusal

    def _take_convictions(self, now: float) -> None:
        """Do what the auditor wants done, and let the step under way ban whom it convicts."""
        self._effects, machine = self._effects + self.auditor.take_effects(), self.machine
        if machine is not None and (self.auditor.has_cases or machine.holdings.convictions):
            convictions = self.auditor.convictions(self.chain.head)
            if convictions != machine.holdings.convictions:
                machine.holdings.convictions = convictions
                machine.advance(now)

    def _collect(self, now: float) -> None:
        """Take the machine's effects and, if its step is certified, move on."""
        machine = self.machine
        if machine is None:
            return
        if machine.effects:
            self._effects += machine.effects
            machine.effects = []
        if machine.certificate is not None:
            try:
                self._certified(machine.certificate, machine.ballot.view)
            except Refusal as refusal:
                # A quorum signed a header that breaks the chain's rules: nothing to do but not to follow it.
                machine.certificate = None
                self._refuse(self.me, refusal)

    def _certified(self, certificate: Certificate, view: int) -> None:
        head = self.chain.head
        self.chain.extend(certificate, self._verify)
        self.catch_up.remember(certificate)
        self._effects.append(PersistCertificate(certificate))
        voters = {head.roster.peers[index] for index, _, _ in certificate.votes}
        transcript = self.machine.transcript if self.machine is not None else None
        held = self.machine.holdings.blobs if self.machine is not None else ()
        self.auditor.on_certified(head, certificate, self.chain.head, transcript, held)
        self._effects += self.auditor.take_effects()
        self._pass_on(certificate, voters)
        self._effects.append(story_of(certificate, head.roster.peers, view, self.chain.head.roster.peers, transcript))
        if self.machine is not None:
            header = certificate.header
            self.catch_up.hold({name for name in header.parts if name in self.machine.holdings.blobs})
            self.machine.on_overtaken(self.chain.head.previous, view)
        self._drop_machine()
        self._helped.clear()
        self._late_words.clear()
        self._ahead = {peer: step for peer, step in self._ahead.items() if step > self._step}
        self._early = {
            peer: kept
            for peer, envelopes in self._early.items()
            if (kept := [envelope for envelope in envelopes if envelope.step >= self._step])
        }
        self.membership.on_head(head.roster, self.chain.head)
        if self.me in head.roster.indexes:
            self._asked_to_join = False  # granted, and no request older than the membership brings it back
        if self.me in self.chain.head.roster.outlaws:
            self._finish("this peer is banned from the run", banned=True)
        self._gone &= self._contacts()
        if head.roster.peers != self.chain.head.roster.peers:
            self._effects.append(RosterChanged(self.contacts()))

    def _pass_on(self, certificate: Certificate, voters: set[PeerId]) -> None:
        """Send a certificate to everybody who may lack it."""
        header = certificate.header
        # Who leaves is no contact any more, and needs nothing but this to go.
        left = tuple(PeerId(peer) for peer in header.left if peer != self.me)
        lagging = tuple(peer for peer in self.contacts() if peer not in voters) + left
        if lagging:
            self._effects.append(SendCertificates(lagging, (certificate,)))
        banned = tuple(PeerId(ban.peer) for ban in header.bans if ban.peer != self.me)
        if banned:
            # Nobody answers it any more: what it needs to learn of its ban goes now.
            self._effects.append(SendCertificates(banned, self.catch_up.since(max(0, header.step - limits.CASE_STEPS))))

    # --- progress ----------------------------------------------------------------------------------------

    def _progress(self, now: float) -> None:
        """Whatever is due now that nothing else asks for: apply, begin, announce, ask for the chain."""
        if self._ahead or self._chain_asked_until is not None:
            self._ask_for_chain(now)
        if self.machine is not None and not self._leaving:
            return  # a step is under way, and all there is to do is in it
        self._apply(self._step)
        if self._leaving and self._is_out() and self.catch_up.step in (None, self._step):
            self._finish("this peer has left the roster")
        if self.catch_up.step != self._step or self.finished:
            return
        if self.manifest.steps and self._step >= self.manifest.steps:
            self._finish(f"all {self._step} steps of the run are certified")
        elif self.is_member:
            if self.machine is None:
                self._begin(now)
                # Messages that were waiting may have certified the step at once; then the next one is due.
                self._apply(self._step)
            if self._leaving:
                self._announce(Kind.LEAVE, Leave(), now)
        elif self._leaving:
            self._announce(Kind.LEAVE, Leave(), now)
        else:
            self._asked_to_join = True
            self._announce(Kind.JOIN, Join(), now)

    def _is_out(self) -> bool:
        """Whether nobody will wait for this peer if it goes now. Commits of this step and the next may still carry
        its request to join."""
        if self.is_member:
            return len(self.chain.head.roster) == 1
        return not self._asked_to_join or self._step >= self._leave_asked_step + 2

    def _apply(self, step: int) -> None:
        """Apply certified steps up to this one, or ask for what that needs."""
        if self.catch_up.step != step:
            self._effects += self.catch_up.advance(step, self._reachable())

    def _begin(self, now: float) -> None:
        head = self.chain.head
        facts = StepFacts(self.manifest, head, self.catch_up.digest)
        machine = StepMachine(facts, self._signer, self.chain.run_id, self._elements, self._timing, now)
        machine.gone = self._gone
        machine.holdings.joins, machine.holdings.leaves = self.membership.joins(head), self.membership.leaves(head)
        machine.holdings.heard_lately = self._hearing.next_step(facts.peers, now)
        self.machine = machine
        machine.holdings.convictions = self.auditor.convictions(head)
        self._announce_at = now if self._leaving else None
        signed = [self._open(envelope) for envelope in self._recovered.signed if envelope.step == head.step]
        self.auditor.recall(signed, head)
        signed = [opened for opened in signed if opened.envelope.kind not in CASE_KINDS or is_objection(opened)]
        locks = [lock for lock in self._recovered.locks if lock[0].step == head.step]
        heard = [envelope for envelope in self._recovered.heard if envelope.step == head.step]
        machine.start(signed, self._openable(heard), max(locks, key=lambda lock: lock[1], default=None), now)
        early, self._early = self._early, {}
        for source, envelopes in early.items():
            for envelope in envelopes:
                self._guard(source, lambda source=source, envelope=envelope: self._on_envelope(source, envelope, now))
        self._collect(now)

    def _openable(self, envelopes: list[Envelope]) -> list[Opened]:
        """Grounds lie in a file without a checksum of its own: one that was damaged is as good as lost."""
        found = []
        for envelope in envelopes:
            try:
                found.append(self._open(envelope))
            except Refusal as refusal:
                self._refuse(self.me, refusal)
        return found

    def _remember_signed(self) -> None:
        """The step will be begun again: its new machine must know what was signed in it (SPEC R-2.7)."""
        if self.machine is not None:
            signed = [opened.envelope for opened in self.machine.transcript.own(self.me)]
            ballot = self.machine.ballot
            locks = [(ballot.lock, ballot.lock_view)] if ballot.lock is not None else []
            self._recovered = Recovered(signed=signed, locks=locks, heard=self.machine.lock_grounds())

    def _drop_machine(self) -> None:
        if self.machine is not None:
            self._effects += self.machine.effects
            self._effects.append(CancelWork(self.machine.facts.head.step))
            self.machine = None

    def _announce(self, kind: Kind, payload: Payload, now: float) -> None:
        """Say join or leave to the whole roster, again and again until a header says it happened."""
        if self._announce_at is not None and now < self._announce_at:
            return
        self._announce_at = now + 4 * self._timing.delivery_seconds
        slot = Slot(self._step, 0, kind, b"")
        opened = seal(self._signer, self.chain.run_id, slot, payload)
        to = tuple(peer for peer in self.chain.head.roster.peers if peer != self.me)
        self._effects += [PersistSigned(opened.envelope), SendEnvelope(to, opened.envelope)]
        if kind is Kind.LEAVE and self.is_member:
            self.membership.on_leave(self.me, self._step, self.chain.head)
            if self.machine is not None:
                self.machine.holdings.leaves = self.membership.leaves(self.chain.head)

    def _ask_for_chain(self, now: float) -> None:
        if self._chain_asked_until is not None and now < self._chain_asked_until:
            return
        self._chain_asked_until = None
        if not self._ahead:
            return
        roster = self.chain.head.roster.indexes
        # Members first: how far ahead somebody is, is only its own word.
        peer = max(self._ahead, key=lambda peer: (peer in roster, self._ahead[peer], peer))
        self._chain_asked_until = now + 8 * self._timing.delivery_seconds
        self._effects.append(RequestChain(peer, self._step))

    def _finish(self, reason: str, banned: bool = False) -> None:
        if not self.finished:
            self.finished = True
            self._drop_machine()
            self._effects.append(Finished(reason, banned))

    def _note_ahead(self, source: PeerId, step: int) -> None:
        """Remember whom to ask for the chain: any member, and strangers as long as there is room."""
        if source in self.chain.head.roster.indexes or len(self._ahead) < limits.ROSTER_PEERS_MAX:
            self._ahead[source] = step

    # --- small helpers -----------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        return self.chain.head.step

    def contacts(self) -> tuple[PeerId, ...]:
        """Peers to stay connected to and to tell about certified steps."""
        return tuple(sorted(self._contacts()))

    def _contacts(self) -> set[PeerId]:
        return (set(self.chain.head.roster.peers) | self.membership.candidates()) - {self.me}

    def _is_contact(self, peer: PeerId) -> bool:
        is_there = peer in self.chain.head.roster.indexes or self.membership.is_candidate(peer)
        return is_there and peer != self.me

    def _is_known(self, peer: PeerId) -> bool:
        """Whether a peer is a contact, or was a member until lately and may still think it is one."""
        return self._is_contact(peer) or self.membership.departed(peer) or peer in self.chain.head.roster.rests

    def _reachable(self) -> tuple[PeerId, ...]:
        """Members to fetch from, those whose connection is not known to be broken first."""
        others = [peer for peer in self.chain.head.roster.peers if peer != self.me]
        return tuple(sorted(others, key=lambda peer: peer in self._gone))
