"""One step, from work to certificate, as seen by one member.

The idea: messages and results are only recorded when they come; after each of them `advance` asks the current
phase whether its trigger fires and follows the table in `step_table.py` until nothing moves. So the order in
which things arrive cannot matter beyond what the rules say, and every rule is one small method. SPEC.md §4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from crowdsurf.protocol import assignment, checks
from crowdsurf.protocol.accepted_cut import AcceptedCut, Input
from crowdsurf.protocol.asking import Asking
from crowdsurf.protocol.ballot import Ballot
from crowdsurf.protocol.cases import part_subject, subject_of
from crowdsurf.protocol.deadlines import Timing
from crowdsurf.protocol.effects import (
    ComputeWork,
    Effect,
    FetchBlob,
    PersistSigned,
    RecomputeWork,
    SendBlob,
    SendEnvelope,
)
from crowdsurf.protocol.election import Election
from crowdsurf.protocol.envelope import Opened, Signer
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.events import (
    AggregatesChecked,
    PartAggregated,
    PartProjected,
    RecomputeFailed,
    WorkDone,
    WorkRecomputed,
)
from crowdsurf.protocol.grace import Grace
from crowdsurf.protocol.holdings import Holdings
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import (
    Aggregate,
    Certificate,
    Commit,
    Cut,
    Echo,
    Envelope,
    Header,
    Kind,
    Payload,
    Prepare,
    Projection,
    ViewChange,
    Vote,
    bitmap_of,
)
from crowdsurf.protocol.outcome import StepFacts
from crowdsurf.protocol.proposals import Proposals
from crowdsurf.protocol.roster import MISSED_STEPS_PATIENCE
from crowdsurf.protocol.step_table import Phase, Trigger, follow
from crowdsurf.protocol.voice import Voice

_BACKOFF_DOUBLINGS_MAX = 6
"""A view's wait doubles at most this often: 64 times the first wait."""
_OF_ONE_VIEW = (Kind.VIEW_CHANGE, Kind.ECHO)
"""What matters to nobody any more when its view is over."""


class StepMachine:
    """A member's side of one step. Effects collect in `effects`; the node drains them."""

    def __init__(
        self, facts: StepFacts, signer: Signer, run_id: Digest, elements: int, timing: Timing, now: float
    ) -> None:
        self.facts = facts
        self.me = signer.peer_id
        self._voice = Voice(signer, run_id, facts.head)
        self._timing = timing
        timing.next_step(set(facts.peers))
        self.phase = Phase.WORK
        self.holdings = Holdings(facts, signer.peer_id)
        self.transcript, self._blobs = self.holdings.transcript, self.holdings.blobs
        self.ballot = Ballot(facts.peers, facts.quorum)
        self._elements = elements
        head = facts.head
        self._proposers = [facts.peers[i] for i in assignment.proposers(head.beacon, head.roster, head.step)]
        self.effects: list[Effect] = []
        self.certificate: Certificate | None = None
        self.gone: set[PeerId] = set()
        self._scrutiny = self.holdings.scrutiny
        self._audit = facts.head.audit_of(signer.peer_id)
        self._began = now
        self.accepted: AcceptedCut | None = None
        """The cut this member acts on; kept across views."""
        self._cuts: dict[Digest, AcceptedCut] = {}
        self._left_out: set[PeerId] = set()
        """Who was not left the time to commit."""
        self._asking = Asking(facts, self.me, elements, now, timing.delivery_seconds)
        self._proposals = Proposals(self.holdings, self.ballot, self.proposer, self._asking)
        self._pulled = self._work_failed = False
        self._grace = Grace(facts.manifest.deadlines, now)
        held, tell = self.holdings, lambda effect: self.effects.append(effect)
        asking, grace = self._asking, self._grace
        self._election = Election(held, self.ballot, self.proposer, asking, timing, grace, self._say, tell)
        self._deadline = now + timing.work.bound_seconds()
        self._resend_wait = timing.delivery_seconds
        self._resend_at = now + timing.work.bound_seconds() + timing.delivery_seconds

    # --- what the node calls -----------------------------------------------------------------------------

    def start(self, signed: list[Opened], heard: list[Opened], lock: tuple[Header, int] | None, now: float) -> None:
        """Begin: compute the work unit, again after a restart; what was signed before stays (SPEC R-2.7)."""
        for opened in signed:
            self._voice.recall(opened)
            self._election.recall(opened)
            if isinstance(opened.payload, ViewChange):  # others rely on its having done with the views before
                self.ballot.view = max(self.ballot.view, opened.envelope.view)
            self.transcript.add(opened)
            self._count(opened)
        for opened in heard:
            if opened.sender != self.me:  # what is not in the journal was not sent, whatever lies beside it
                self.transcript.recall(opened)
                self._count(opened)
        if lock is not None:
            self.ballot.lock_on(*lock)
        self._compute_work()
        self.advance(now)

    def lock_grounds(self) -> list[Envelope]:
        """What this member's lock rests on; to be given back, as `heard`, to a machine that begins this step again."""
        return self._election.lock_grounds()

    def on_overtaken(self, certified: Digest, view: int) -> None:
        """Others have certified the step before this member could say anything: a prepare of the same header tells them
        that it is there. It would lose its place otherwise (SPEC R-7.2)."""
        if not self.transcript.own(self.me):
            self._say(Kind.PREPARE, view, b"", Prepare(certified))

    def next_deadline(self) -> float | None:
        """When `advance` wants to be called again although nothing came."""
        if self.phase is Phase.DONE:
            return None
        accepted, grace = self.accepted, self._grace.next_deadline()
        times = [self._deadline, self._resend_at, grace, self.ballot.locks_heard_at, self._election.next_deadline()]
        if accepted is not None:
            times += [accepted.settles_at, accepted.tells_at]
            times.append(accepted.schedule.pull if self.phase is Phase.EXCHANGE and not self._pulled else None)
        return min(time for time in times if time is not None)

    def advance(self, now: float) -> None:
        """Follow the table as far as what is known allows."""
        if self.phase is Phase.DONE:
            return
        self._grace.advance(now)
        if self.ballot.somebody_gave_up:
            self._join_later_view(now)
            self._begin_wait(now)
        while True:
            before = (self.phase, self.ballot.view)
            self._act(now)
            trigger = self._trigger(now)
            if trigger is not None:
                self._move(trigger, now)
            if (self.phase, self.ballot.view) == before:
                break
        if now >= self._resend_at and self.certificate is None:
            self._resend(now)

    # --- events ------------------------------------------------------------------------------------------

    def on_work_done(self, event: WorkDone, now: float) -> None:
        """Sign and send the commit, unless the step went on without this peer."""
        self._blobs.update(event.parts)
        self._commit(event, now)

    def on_recomputed(self, event: WorkRecomputed, now: float) -> None:
        """Of a validator: sign and send what it found."""
        if self._is_audited(event):
            self._commit(event, now)

    def on_recompute_failed(self, event: RecomputeFailed, now: float) -> None:
        """Of a validator: be in the step all the same, without a finding."""
        if self._is_audited(event):
            self._commit(None, now)

    def _is_audited(self, event: WorkRecomputed | RecomputeFailed) -> bool:
        """Whether this is the audit of this step, and not work done again for a case of the same member's."""
        audit = self._audit
        return audit is not None and (event.finder, event.step, event.seed) == (self.me, audit.step, audit.seed)

    def _commit(self, work: WorkDone | WorkRecomputed | None, now: float) -> None:
        if self.phase not in (Phase.WORK, Phase.COMMIT, Phase.PROPOSE):
            return
        said = self.holdings.commit(self._voice.nonce(), work, self._timing.transfer_to_name)
        self._say(Kind.COMMIT, 0, b"", said)
        self._timing.work.observe(now - self._began)
        if self.phase is Phase.WORK:
            self._move(Trigger.WORK_DONE, now)
        self.advance(now)

    def on_work_failed(self) -> None:
        """Try again should the step be unable to go on without this peer; see `_commits_trigger`."""
        self._work_failed = True

    def on_blob(self, digest: bytes, now: float) -> None:
        """Bytes this step may be waiting for are here."""
        self._blobs.add(digest)
        if self.accepted is not None:
            self.accepted.on_blob(digest, now)
        self.advance(now)

    def on_part_aggregated(self, event: PartAggregated, now: float) -> None:
        """Sign the aggregate, tell everyone, push its bytes."""
        self._blobs.add(event.digest)
        included = bitmap_of(list(event.included), len(self.facts.peers))
        aggregate = Aggregate(event.cut, event.part, event.digest, included)
        if self._say(Kind.AGGREGATE, 0, part_subject(aggregate), aggregate):
            self.effects.append(SendBlob(self._asking.others(), event.step, event.digest))
        self.advance(now)

    def on_part_projected(self, event: PartProjected, now: float) -> None:
        """Publish the lines of an own aggregate, if they are good."""
        said = self.transcript.aggregate(event.cut, event.part, self.me)
        if self._scrutiny is not None and said is not None:
            projection = self._scrutiny.publishable(event, said.included)
            if projection is not None:
                self._say(Kind.PROJECTION, 0, part_subject(projection), projection)
        self.advance(now)

    def on_checked(self, event: AggregatesChecked, now: float) -> None:
        """What this member makes of aggregates."""
        if self._scrutiny is not None:
            self._scrutiny.on_checked(event)
        self.advance(now)

    def on_objection(self, opened: Opened, now: float) -> None:
        """Keep an objection that holds together; it becomes a case when the step is over. Raises Refusal."""
        if self.transcript.check_slot(opened) is None:
            self.transcript.add(opened)
            self.advance(now)

    def keep_conflicting(self, opened: Opened, now: float) -> None:
        """Keep the second message of somebody that signed a slot twice, if it could have been the first."""
        with contextlib.suppress(Refusal):
            checks.check_message(self.facts, self.transcript, opened, self.proposer(opened.envelope.view))
            if self.transcript.add_conflicting(opened):
                self._count(opened)
                if self.accepted is not None and isinstance(opened.payload, Projection):
                    self.accepted.judge_again(opened.payload.part)
                self.advance(now)

    def on_message(self, opened: Opened, now: float) -> None:
        """Record a message whose sender, slot and signature the node has checked. Raises Refusal."""
        checks.check_message(self.facts, self.transcript, opened, self.proposer(opened.envelope.view))
        if isinstance(opened.payload, Commit):
            if opened.sender not in self._left_out:
                self._timing.work.observe(now - self._began)
            if self.accepted is None:
                self._timing.commits.came(opened.sender)
        self._count(opened)
        if isinstance(opened.payload, Echo):
            self._election.on_echo(opened, opened.payload, now)
        self.transcript.add(opened)
        if isinstance(opened.payload, Aggregate):
            self._expect_aggregate(opened.payload, opened.sender)
        self.advance(now)

    # --- the table's triggers ----------------------------------------------------------------------------

    def _trigger(self, now: float) -> Trigger | None:
        late, accepted = now >= self._deadline, self.accepted
        if self.phase in (Phase.WORK, Phase.COMMIT):
            return self._commits_trigger(late, now)
        if self.phase is Phase.PROPOSE and self._acceptable_cut() is not None:
            return Trigger.CUT_ACCEPTED
        if self.phase in (Phase.PROPOSE, Phase.SIGN) or accepted is None:
            return self._give_up(now) if late else None
        if self.phase is Phase.PROJECT:
            return Trigger.CHECKS_DONE if late or accepted.has_scrutinized(self.gone) else None
        if self.phase is Phase.EXCHANGE:
            self._deadline = accepted.parts_deadline()
            return Trigger.PARTS_IN if now >= self._deadline or accepted.has_parts(self.gone) else None
        if self.phase is Phase.AGGREGATE:
            return Trigger.AGGREGATES_IN if late or next(self.aggregates_lacking(), None) is None else None
        return Trigger.REVEALS_IN if late or next(accepted.reveals_lacking(self.gone), None) is None else None

    def _commits_trigger(self, late: bool, now: float) -> Trigger | None:
        if self._acceptable_cut() is not None:
            self._left_out = set() if late else set(self.commits_lacking())
            self._timing.work.observe_lacking(len(self._left_out))
            return Trigger.CUT_ACCEPTED
        enough = len(self.transcript.commits) >= self.facts.quorum
        if late and not enough:
            self._deadline = now + self._timing.work.bound_seconds()
            self.effects += self._asking.for_chain()
            if self._work_failed:
                self._compute_work()
        elif late:
            self._timing.commits.waited_in_vain(set(self.commits_lacking()) - {self.me}, len(self.facts.peers))
        return Trigger.COMMITS_IN if enough and (late or next(self.commits_lacking(), None) is None) else None

    def _give_up(self, now: float) -> Trigger | None:
        """Ask for the next view, unless that could not open yet, or this one has not."""
        too_few = len(self.transcript.commits) < self.facts.quorum and self.ballot.lock is None
        if too_few or not self.ballot.is_open:
            self._deadline = now + self._view_seconds()
            return None
        return Trigger.VIEW_CHANGED

    def parts_lacking(self) -> Iterator[Input]:
        """Inputs this member waits for."""
        return self.accepted.parts_lacking(self.gone) if self.accepted is not None else iter(())

    def aggregates_lacking(self) -> Iterator[int]:
        """Parts whose aggregate this member still waits for."""
        return self.accepted.aggregates_lacking(self.gone) if self.accepted is not None else iter(())

    def commits_lacking(self) -> Iterator[PeerId]:
        """Members that are waited for and have not committed: also those that were there, but in no cut, lately."""
        here = self.transcript.commits.keys() | self.gone | (self._timing.spent_on_commits() - {self.me})
        lately = self.holdings.heard_lately.union(self.awaited())
        return (peer for peer in self.facts.peers if peer in lately and peer not in here)

    def awaited(self) -> Iterator[PeerId]:
        """Members that have not been missing for long."""
        members = zip(self.facts.peers, self.facts.head.roster.members, strict=True)
        return (peer for peer, member in members if member.missed < MISSED_STEPS_PATIENCE or peer == self.me)

    # --- entering phases ---------------------------------------------------------------------------------

    def _move(self, trigger: Trigger, now: float) -> None:
        if trigger is Trigger.VIEW_CHANGED:
            self._change_view(self.ballot.view + 1)
        target = follow(self.phase, trigger)
        if target is None:
            return
        self.phase = target
        self._resend_wait = self._timing.delivery_seconds
        self._resend_at = now + self._resend_wait
        if target is Phase.PROPOSE:
            self._deadline = now + self._view_seconds()
        elif target is Phase.SIGN and self.accepted is not None:
            longer = self._view_seconds() + self._timing.delivery_seconds
            self._deadline = self.accepted.schedule.give_up_at(now, longer)
        elif target is Phase.EXCHANGE:
            self._enter_exchange(now)
        elif target is Phase.AGGREGATE and self.accepted is not None:
            self._deadline = self.accepted.schedule.aggregates
            self.effects += self.accepted.to_aggregate(self.gone)
        elif target is Phase.REVEAL and self.accepted is not None:
            self._enter_reveal(self.accepted)
        elif target is Phase.PROJECT and self.accepted is not None:
            self._deadline = self.accepted.schedule.projections

    def _enter_exchange(self, now: float) -> None:
        found = self._acceptable_cut()
        if found is None:
            return
        name, cut = found
        self._pulled = False
        self._grace.on_cut(now)
        known = self._cuts.get(name)
        if known is None:
            known = self._cuts[name] = AcceptedCut(self.holdings, self.me, name, cut, self._timing, now)
            self.effects += known.opening(self._elements)
        elif not self._voice.has_said(Kind.REVEAL, 0):
            known.begin_waits(now)
        self.effects += self._proposals.to_show(name)
        self.accepted, self._deadline = known, known.schedule.parts
        for (heard, _, sender), opened in list(self.transcript.aggregates.items()):
            if heard == name and isinstance(opened.payload, Aggregate):
                self._expect_aggregate(opened.payload, sender)

    def _enter_reveal(self, accepted: AcceptedCut) -> None:
        self._deadline = accepted.schedule.reveals
        accepted.give_up_aggregates(self.gone)
        if self.me in accepted.contributors:
            self._reveal(accepted.name)

    def _reveal_with_others(self, now: float) -> None:
        """So many have opened their nonce that an honest one is among them: open ours too, whatever is still awaited
        here. Else somebody whose parts are withheld would be late, and lose its place for it (SPEC R-4.18). Where
        aggregates are checked they count only if they were heard of before; honest ones that are under way are given a
        moment."""
        if not self.holdings.enough_reveals():
            return
        if self.phase is Phase.REVEAL:
            self._deadline = min(self._deadline, self._grace.last_call(now))
        if self.transcript.commit_of(self.me) is None or self._voice.has_said(Kind.REVEAL, 0):
            return
        is_time = self._scrutiny is None or self._grace.may_answer(now)
        cut = self.accepted.name if self.accepted is not None else self.transcript.revealed_cut
        if cut is not None and is_time:
            self._reveal(cut)
        elif cut is None:  # its proposer has shown it to others only, or another one to us
            for name, peers in self.transcript.unheard_cuts():
                self.effects += self._asking.several_for_message(peers, name, now)

    def _reveal(self, cut: Digest) -> None:
        self._say(Kind.REVEAL, 0, b"", self.holdings.reveal(cut, self._voice.nonce()))
        self._grace.answered()

    def _scrutinize(self, accepted: AcceptedCut, now: float) -> None:
        """Work out what is to be known about aggregates, object to what is false."""
        effects, objections = accepted.scrutinize(now)
        accepted.settle(now, self.gone)
        self.effects += effects
        for accusation in objections:
            self._say(Kind.ACCUSATION, 0, subject_of(accusation), accusation)

    # --- acting inside a phase ---------------------------------------------------------------------------

    def _act(self, now: float) -> None:
        """What a phase does besides waiting: propose, pull, vote, certify."""
        self._reveal_with_others(now)
        accepted = self.accepted
        if accepted is not None and self._scrutiny is not None:
            self._scrutinize(accepted, now)
        if self.phase is Phase.PROPOSE and self.proposer(self.ballot.view) == self.me:
            self._propose_cut()
        if self.phase is Phase.EXCHANGE and accepted is not None and not self._pulled and now >= accepted.schedule.pull:
            self._pulled = True
            for item in self.parts_lacking():
                self.effects.append(FetchBlob((item.peer,), item.digest))
        if self.phase is Phase.SIGN and self.proposer(self.ballot.view) == self.me:
            self._propose_outcome()
        self._election.show(now)
        if self.ballot.voted_view < self.ballot.view:
            self._consider_outcome(now)
        if self.ballot.somebody_voted:
            self._certify(now)

    def _propose_cut(self) -> None:
        view = self.ballot.view
        if not self.ballot.may_propose() or self._voice.has_said(Kind.PROPOSAL, view):
            return
        required = self.ballot.strongest_lock()
        if required is not None:
            self._say(Kind.OUTCOME, view, b"", required)
            return
        cut = self.accepted.cut if self.accepted is not None else None
        if cut is None and len(self.transcript.commits) >= self.facts.quorum:
            cut = self.holdings.whole_cut()
        if cut is not None:
            self._say(Kind.PROPOSAL, view, b"", cut)

    def _propose_outcome(self) -> None:
        view, accepted = self.ballot.view, self.accepted
        if self._voice.has_said(Kind.OUTCOME, view) or accepted is None or not self.ballot.may_propose():
            return
        header = self.ballot.strongest_lock()
        if header is None:
            header = self.holdings.header_of(accepted.name, accepted.cut)
            for objection in self.holdings.objections(accepted.name):  # why a part that others hold is void
                self.effects.append(SendEnvelope(self._asking.others(), objection.envelope))
        self._say(Kind.OUTCOME, view, b"", header)

    def _consider_outcome(self, now: float) -> None:
        """Headers with void parts are looked at when what they lack had its time."""
        is_patient = self.phase is Phase.PROPOSE and self.ballot.view > 0
        if self.phase is Phase.SIGN:
            is_patient = self.accepted is None or self.accepted.settles_at is None
        awaited = set(self.awaited()) - self.gone - {self.me, self.proposer(self.ballot.view)}
        self._election.consider(is_patient, awaited, now)

    def _certify(self, now: float) -> None:
        name = self.ballot.elected()
        if name is None:
            return
        header = self.transcript.header(name)
        if header is None:
            voter = min(self.ballot.voters(name))
            self.effects += self._asking.for_messages(self.facts.peers[voter], [name], now)
            return
        self.certificate = self.ballot.certificate(header)
        self._move(Trigger.CERTIFIED, now)

    # --- views -------------------------------------------------------------------------------------------

    def proposer(self, view: int) -> PeerId:
        """Who proposes in a view."""
        return self._proposers[view % len(self._proposers)]

    def _join_later_view(self, now: float) -> None:
        view = self.ballot.view_to_join()
        if view is not None:
            self._change_view(view)
            self._deadline = now + self._view_seconds()
            self.phase = follow(self.phase, Trigger.VIEW_CHANGED) or self.phase

    def _begin_wait(self, now: float) -> None:
        """Whoever knows that a view is open tells those that may not: from now on it does without the view before, and
        liars could have asked for this one here and nowhere else (SPEC R-4.29)."""
        if not self.ballot.open(now, 2 * self._timing.delivery_seconds):
            return
        self._show_requests()
        if self.accepted is not None:  # of the view before, while this one was not open
            self.phase = follow(self.phase, Trigger.VIEW_CHANGED) or self.phase
        if self.phase is Phase.PROPOSE:
            self._deadline = now + self._view_seconds()

    def _show_requests(self) -> None:
        """Hand the requests that open this member's view on to those that have not asked for it."""
        asked = {
            said.sender: said.envelope
            for said in sorted(self.transcript.of_kind(Kind.VIEW_CHANGE), key=lambda said: said.envelope.view)
            if said.envelope.view >= self.ballot.view
        }  # a member's latest one says all that counts
        to = tuple(peer for peer in self._asking.others() if peer not in asked)
        self.effects += [SendEnvelope(to, envelope) for envelope in asked.values() if to]

    def _change_view(self, view: int) -> None:
        self.ballot.view = view
        self._say(Kind.VIEW_CHANGE, view, b"", self.ballot.change_of_view())
        for envelope in self.holdings.grounds(self.ballot.lock):  # its prepares are in what was just said
            self.effects.append(SendEnvelope(self._asking.others(), envelope))

    def _view_seconds(self) -> float:
        """How long a proposer may take: two deliveries, doubled with every view; in view 0 the other members'
        deadlines for commits may end a little later than ours."""
        return self._timing.delivery_seconds * float(2 << min(self.ballot.view, _BACKOFF_DOUBLINGS_MAX))

    def _acceptable_cut(self) -> tuple[Digest, Cut] | None:
        """The cut of this view's proposer if all its commits are held; asks for what is missing otherwise."""
        found = self._proposals.proposed(self.accepted is None)
        self.effects += self._proposals.to_ask(found)
        return self._proposals.acceptable(found)

    def on_handed_on(self, source: PeerId, said: Opened, now: float) -> None:
        """Somebody, who need not be its author, has shown a message."""
        self.effects += self._proposals.to_ask_of(source, said, self.accepted is None, now)

    def _expect_aggregate(self, aggregate: Aggregate, sender: PeerId) -> None:
        """Make room for it, if it is of a cut that this member has accepted: others cost their author nothing."""
        known = self._cuts.get(Digest(aggregate.cut))
        if known is None or aggregate.digest in self._blobs or known.duties[aggregate.part] != sender:
            return
        self.effects.append(self._asking.expectation(aggregate.part, Digest(aggregate.digest), sender))

    def _say(self, kind: Kind, view: int, subject: bytes, payload: Payload) -> Opened | None:
        """Sign, journal and broadcast, at most once per slot; None if the slot was filled before."""
        opened = self._voice.say(kind, view, subject, payload)
        if opened is None:
            return None
        self.transcript.add(opened)
        self.effects.append(PersistSigned(opened.envelope))
        self.effects.append(SendEnvelope(self._asking.others(), opened.envelope))
        self._count(opened)
        return opened

    def _count(self, opened: Opened) -> None:
        """Give what is counted to the ballot."""
        said, view = opened.payload, opened.envelope.view
        if isinstance(said, Prepare):
            self.ballot.prepare(opened.sender, view, said.header, opened.envelope)
            if opened.sender == self.me:
                self.ballot.prepared = max(self.ballot.prepared, (view, said.header))
        elif isinstance(said, Vote):
            self.ballot.vote(opened.sender, view, said.header, opened.envelope.signature)
        elif isinstance(said, ViewChange):
            self.ballot.request(opened.sender, view, said)

    def _resend(self, now: float) -> None:
        """Nothing moved for a while: say again what was said, in case it got lost (SPEC R-4.34)."""
        for opened in self.transcript.own(self.me):
            if opened.envelope.kind not in _OF_ONE_VIEW or opened.envelope.view == self.ballot.view:
                self.effects.append(SendEnvelope(self._asking.others(), opened.envelope))
        if self.ballot.view > 0 and self.ballot.is_open:
            self._show_requests()
        if self.phase is Phase.AGGREGATE and self.accepted is not None:
            for part in self.aggregates_lacking():
                self._pull_aggregate(self.accepted, part)
        self._asking.clear()
        self._election.pull(now)
        self._resend_wait = min(2 * self._resend_wait, 16 * self._timing.delivery_seconds)
        self._resend_at = now + self._resend_wait

    def _pull_aggregate(self, accepted: AcceptedCut, part: int) -> None:
        aggregator = accepted.duties[part]
        said = self.transcript.aggregate(accepted.name, part, aggregator)
        if said is not None and aggregator != self.me:
            others = self._asking.others(aggregator)
            self.effects.append(FetchBlob((aggregator, *others), Digest(said.digest)))

    def _compute_work(self) -> None:
        self._work_failed = False
        audit = self._audit
        if audit is not None:
            head = self.facts.head
            # Nothing came of a void step, so nobody has said anything about what is owed from there.
            aggregates = head.aggregates if audit.step == head.step - 1 else ()
            beacon = head.beacon if aggregates else b""
            self.effects.append(
                RecomputeWork(audit.step, audit.seed, audit.parts, audit.state, self.me, aggregates, beacon)
            )
            return
        seed = assignment.work_seed(self.facts.head.beacon, self.me)
        self.effects.append(ComputeWork(self.facts.head.step, seed, len(self.facts.peers)))
