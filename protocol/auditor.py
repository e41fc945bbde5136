"""A member's own part in audits and cases: what it compares, whom it accuses, how it judges.

The idea: the tribunal only keeps what is known; this file is the member that acts on it. It says everything once
in a step and says it again while the case is open, because messages get lost. Like the step machine it collects its
effects, and the node takes them. SPEC §6.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from crowdsurf.protocol import assignment, limits
from crowdsurf.protocol.cases import (
    Record,
    cut_objected_to,
    gap_to,
    imbalance_of,
    is_as_recomputed,
    is_finding,
    objection_to,
    proof_of,
    subject_of,
)
from crowdsurf.protocol.chain import Audit, Head
from crowdsurf.protocol.effects import ComputeFinding, Effect, PersistEvidence, PersistSigned, SendEnvelope, SendWant
from crowdsurf.protocol.envelope import Equivocation, Opened, Signer, Slot, Verify, seal
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.events import FindingKnown, WorkRecomputed
from crowdsurf.protocol.exhibits import can_be_compared, comparison
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import (
    Accusation,
    Ban,
    Certificate,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Payload,
    Projection,
    Reason,
    Verdict,
)
from crowdsurf.protocol.projection import clipping_of, projection_problem, wrong_line
from crowdsurf.protocol.roster import enough_for_an_honest_one, quorum_of, withheld
from crowdsurf.protocol.scrutiny import line_about, lines_of
from crowdsurf.protocol.tolerance import ACCUSING, COMPARED_STEPS, is_worth_accusing, relative_bound
from crowdsurf.protocol.transcript import Transcript
from crowdsurf.protocol.tribunal import Tribunal, no_case


class Auditor:
    """Audits and cases, as one peer takes part in them. Effects collect in `effects`."""

    def __init__(
        self, signer: Signer, run_id: Digest, verify: Verify, manifest: Manifest, patience: Callable[[], float]
    ) -> None:
        """`patience` is how long in seconds somebody may take to hand over bytes."""
        self._signer = signer
        self._me = signer.peer_id
        self._run_id = run_id
        self._quorum_rule = manifest.quorum
        self._clipping = clipping_of(manifest)
        self._bound = relative_bound(manifest)
        self._patience = patience
        self.tribunal = Tribunal(run_id, verify, self._clipping, self._bound, patience)
        self.effects: list[Effect] = []
        self._said: set[Slot] = set()
        """In this step."""
        self._postponed: dict[bytes, Accusation] = {}
        """What this peer has accused others of and there was no room for; it says so again."""
        self._asked: set[Digest] = set()
        """Cases, in this step."""
        self._findings: dict[tuple[int, PeerId], Digest] = {}
        """What validators of this peer's work must have found, by step and validator."""
        self._uncompared: dict[Audit, int] = {}
        """Work that this peer has done again and could not compare yet, and how often it has asked for its bytes."""

    # --- what comes in -----------------------------------------------------------------------------------

    def on_message(self, source: PeerId, opened: Opened, head: Head, transcript: Transcript | None) -> None:
        """An accusation or a verdict of a member, handed over by `source`; `transcript` is that of the step under way.
        Raises Refusal."""
        if abs(opened.envelope.step - head.step) > limits.CASE_STEPS:
            raise Refusal(Code.EXPIRED, f"said in step {opened.envelope.step}, we are at {head.step}")
        if isinstance(opened.payload, Accusation):
            self._check(opened.payload, head)
            named = transcript.names_case if transcript is not None else no_case
            self._take(opened, head, named)
            return
        try:
            self.tribunal.judge(opened)
        except Refusal as refusal:
            if refusal.code is Code.FUTURE and isinstance(opened.payload, Verdict):
                self._ask_for(Digest(opened.payload.case), source)
            raise

    def _take(self, opened: Opened, head: Head, named: Callable[[bytes], bool] = no_case) -> None:
        """Open a case, and note what it gives away about the accused. Raises Refusal."""
        self.tribunal.accuse(opened, head.roster, named)
        pair = self.tribunal.contradiction(opened)
        if pair is not None:
            self.on_conflict(pair, head)

    def _check(self, accusation: Accusation, head: Head) -> None:
        """What an accusation must be to be worth keeping. Raises Refusal."""
        if not head.step - limits.CASE_STEPS <= accusation.step <= head.step:
            # No header can ban for what has not happened yet, and everybody would go on trying.
            raise Refusal(Code.EXPIRED, f"it is about step {accusation.step}, we are at {head.step}")
        if not self.tribunal.was_member(accusation.accused, head.roster):
            # Keys cost nothing: bans of strangers would make the roster forget those that are banned already.
            raise Refusal(Code.BAD_ACCUSATION, "the accused is no member")

    def recall(self, signed: list[Opened], head: Head) -> None:
        """What this peer has said in the step under way, before it was restarted: it says nothing else in its place."""
        for opened in signed:
            if isinstance(opened.payload, Accusation | Verdict):
                self._said.add(opened.slot)
                with contextlib.suppress(Refusal):
                    self.on_message(self._me, opened, head, None)

    def _ask_for(self, case: Digest, source: PeerId) -> None:
        """Once in a step: the answer holds verdicts, and each of them would be a reason to ask again."""
        if source != self._me and case not in self._asked and len(self._asked) < limits.EVIDENCE_MAX:
            self._asked.add(case)
            self.effects.append(SendWant(source, (case,)))

    def on_conflict(self, pair: Equivocation, head: Head) -> None:
        """Somebody signed a slot twice; that convicts it, once. Of two cuts everybody must know, because voters insist
        on a ban for them (SPEC R-4.24), and who has proven itself guilty could show them to one member alone."""
        guilty = PeerId(pair.first.sender)
        if not self.tribunal.is_proven(guilty) or pair.first.kind == Kind.PROPOSAL:
            self._accuse(Accusation(guilty, Reason.EQUIVOCATION, pair.first.step, proof_of(pair)), head)

    def on_projection(self, said: Opened, head: Head) -> None:
        """Lines that do not add up convict whoever signed them."""
        projection = said.payload
        if not isinstance(projection, Projection) or self._clipping is None or self.tribunal.is_proven(said.sender):
            return
        if projection_problem(lines_of(projection), projection.norm, self._clipping) is not None:
            self._accuse(imbalance_of(said), head)

    def on_recomputed(self, found: WorkRecomputed, head: Head) -> None:
        """Another peer's work, as it should have been: accuse whoever this peer validates, judge who is accused."""
        record = self.tribunal.record(found.step)
        if record is not None:
            self._compare_work(record, found, head)
        for verdict in self.tribunal.recomputed(found):
            said = self._say(Kind.VERDICT, verdict.case, verdict, head)
            if said is not None:
                with contextlib.suppress(Refusal):  # said before a restart, and heard again from somebody
                    self.tribunal.judge(said)
        self.effects += self.tribunal.to_judge_next(found)

    def on_finding(self, event: FindingKnown, head: Head) -> None:
        """What the validator of this peer's work must have found; it is compared when its step is certified, or now if
        that is over."""
        self._findings[event.step, event.finder] = event.finding
        record = self.tribunal.record(event.step + 1)
        if record is not None:
            self._compare_findings(record, head)

    def on_certified(
        self,
        before: Head,
        certificate: Certificate,
        head: Head,
        transcript: Transcript | None,
        held: Collection[bytes] = (),
    ) -> None:
        """A step is over: publish what convicted whom, keep what cases about it need, say again what is still open.
        `transcript` is that of the step, if this peer took part in it, and `held` are the bytes that it had then."""
        header = certificate.header
        for ban in header.bans:
            self._publish(ban, certificate, before)
        self._said, self._asked = set(), set()
        self.tribunal.forget(head.step, head.roster)
        self.tribunal.entitle(head.audits)
        self._uncompared = {
            audit: n for audit, n in self._uncompared.items() if audit.step + COMPARED_STEPS >= head.step
        }
        for audit in self._uncompared:
            self._compare(audit, head)
        self._accuse_again(head)
        for envelope in self.tribunal.said_by(self._me):
            self.effects.append(SendEnvelope(_others(head, self._me), envelope))
        cut = transcript.cut(header.cut) if transcript is not None else None
        if transcript is not None and cut is not None:
            commits = transcript.named_by(cut, before.roster.peers)
            size = len(before.roster)
            enough = enough_for_an_honest_one(size, quorum_of(size, self._quorum_rule))
            shown, named = what_was_vouched_for(before, header, cut, transcript, enough)
            here = frozenset(name for _, name in named if name in held)
            record = Record(before, header, head.audits, commits, shown, named, here)
            self.tribunal.remember(record)
            self._compare_findings(record, head)
            self._take_objections(transcript, header.cut if not withheld(header) else b"", head)
        self.effects += self.tribunal.to_judge_again()
        self._findings = {key: found for key, found in self._findings.items() if key[0] >= header.step}
        self.effects += [ComputeFinding(a.step, a.validator) for a in head.audits if a.target == self._me]

    def take_effects(self) -> list[Effect]:
        """What is to be done, once; what has to be computed for all that was said since the last time is part of it."""
        wanted, self.effects = self.effects + self.tribunal.to_judge(), []
        return wanted

    # --- what it answers ---------------------------------------------------------------------------------

    def convictions(self, head: Head) -> dict[bytes, Ban]:
        """Bans a header may carry now, by case."""
        return self.tribunal.convictions(head.roster, quorum_of(len(head.roster), self._quorum_rule))

    @property
    def has_cases(self) -> bool:
        """Whether anybody is accused of anything."""
        return self.tribunal.has_cases

    def messages(self, case: bytes) -> list[Envelope]:
        """Everything signed about a case."""
        return self.tribunal.messages(case)

    # --- what it says ------------------------------------------------------------------------------------

    def _compare_work(self, record: Record, found: WorkRecomputed, head: Head) -> None:
        """Whomever this peer was drawn to validate must have committed to what it found. The step it validates in may
        be over: late is better than never."""
        for audit in record.audits:
            commit = _commit_of(record, audit.target)
            is_mine = (audit.validator, audit.seed) == (self._me, found.seed)
            if not is_mine or commit is None:
                continue
            gap = None if is_as_recomputed(commit, found, ACCUSING) else gap_to(commit, found, ACCUSING)
            if gap is not None and self._bound is not None and not found.compared:
                if audit not in self._uncompared:
                    self._uncompared[audit] = 0
                    self._compare(audit, head)
                continue
            is_wrong = gap is not None and (self._bound is None or is_worth_accusing(gap, self._bound))
            if gap is None or gap.is_whole or is_wrong:
                self._uncompared.pop(audit, None)
            if is_wrong:
                self._accuse(Accusation(audit.target, Reason.WRONG_GRADIENT, found.step), head)
            else:
                self._compare_lines(record, audit.target, found, head)

    def _compare(self, audit: Audit, head: Head) -> None:
        """Where machines differ: compare work that this peer has done again with the bytes that it has, and, once
        they are shown, with those of others, again in the next steps while some are missing."""
        record, attempts = self.tribunal.record(audit.step), self._uncompared[audit]
        if record is not None and can_be_compared(audit.step, head.step, attempts):
            wanted = comparison(record, audit, attempts, self._patience())
            self.effects += [wanted] if wanted is not None else []
            self._uncompared[audit] += 1

    def _compare_lines(self, record: Record, target: PeerId, found: WorkRecomputed, head: Head) -> None:
        """What aggregators have said about the work of somebody who does not object."""
        member = record.head.roster.indexes[target]
        for said in record.projections:
            projection = said.payload
            if not isinstance(projection, Projection) or self._clipping is None or said.sender == self._me:
                continue
            claimed = line_about(projection, member)
            own = found.line_about(projection.part, projection.aggregate)
            if claimed is not None and own is not None and wrong_line(claimed, own, self._clipping, ACCUSING):
                self._accuse(objection_to(said, member), head)

    def _take_objections(self, transcript: Transcript, cut: bytes, head: Head) -> None:
        """What was said against aggregators in the step that is over becomes a case now that the step is certified;
        this peer says its own again for those that had not come so far."""
        for said in transcript.of_kind(Kind.ACCUSATION):
            if not isinstance(said.payload, Accusation) or cut_objected_to(said.payload) != cut:
                continue  # nothing came of that cut, so nothing can be held against anybody
            if said.sender == self._me:
                self._accuse(said.payload, head)
            else:
                with contextlib.suppress(Refusal):
                    self._check(said.payload, head)
                    self._take(said, head)

    def _compare_findings(self, record: Record, head: Head) -> None:
        """Whoever validated this peer's work in a step must have found just that work."""
        for audit in record.head.audits:
            commit, expected = _commit_of(record, audit.validator), self._findings.get((audit.step, audit.validator))
            if commit is None or not commit.finding or expected is None or audit.target != self._me:
                continue
            if not is_finding(commit.finding, expected, None if self._bound is None else ACCUSING * self._bound):
                self._accuse(Accusation(audit.validator, Reason.WRONG_FINDING, record.header.step), head)

    def _accuse(self, accusation: Accusation, head: Head) -> None:
        said = self._say(Kind.ACCUSATION, subject_of(accusation), accusation, head)
        if said is not None:
            try:
                self.tribunal.accuse(said, head.roster)
            except Refusal as refusal:  # somebody was faster, or this peer has too many open cases
                if refusal.code is Code.QUEUE_FULL:
                    self._postponed[subject_of(accusation)] = accusation

    def _accuse_again(self, head: Head) -> None:
        """Say again what there was no room for, while it can be judged."""
        postponed, self._postponed = self._postponed, {}
        for accusation in postponed.values():
            if accusation.step + limits.CASE_STEPS >= head.step and accusation.accused not in head.roster.outlaws:
                self._accuse(accusation, head)

    def _say(self, kind: Kind, subject: bytes, payload: Payload, head: Head) -> Opened | None:
        """Sign and broadcast something about a case, once in a step; members alone are heard."""
        slot = Slot(head.step, 0, kind, subject)
        if self._me not in head.roster.indexes or slot in self._said:
            return None
        self._said.add(slot)
        opened = seal(self._signer, self._run_id, slot, payload)
        self.effects += [PersistSigned(opened.envelope), SendEnvelope(_others(head, self._me), opened.envelope)]
        return opened

    def _publish(self, ban: Ban, certificate: Certificate, before: Head) -> None:
        """Keep the evidence, and show the banned peer what convicted it."""
        evidence = self.tribunal.evidence(ban, certificate)
        if evidence is None:
            return
        if self.convictions(before).get(ban.case) == ban:  # else not enough was heard here to convince anybody else
            self.effects.append(PersistEvidence(evidence))
        banned = (PeerId(ban.peer),) if ban.peer != self._me else ()
        self.effects += [SendEnvelope(banned, envelope) for envelope in self.messages(ban.case) if banned]


def _commit_of(record: Record, peer: PeerId) -> Commit | None:
    said = record.commits.get(peer)
    return said.payload if said is not None and isinstance(said.payload, Commit) else None


def _others(head: Head, me: PeerId) -> tuple[PeerId, ...]:
    return tuple(peer for peer in head.roster.peers if peer != me)


def what_was_vouched_for(
    before: Head, header: Header, cut: Cut, transcript: Transcript, enough: int
) -> tuple[tuple[Opened, ...], frozenset[tuple[int, bytes]]]:
    """The projections that a header names, and the parts and aggregates of its cut that so many members had heard of in
    time that an honest one is among them: nobody could judge what is said of others."""
    contributors = tuple(index for index, _ in cut.commits)
    duties = assignment.aggregators(before.beacon, contributors, len(before.roster))
    shown, named = [], {(part, name) for part, name in enumerate(header.parts) if name}
    for part, index in enumerate(duties):
        name = header.projections[part] if header.projections else b""
        said = transcript.projection_with(name, before.roster.peers[index])
        shown += [said] if said is not None else []
        heard = transcript.witnesses(header.cut, part).items()
        named.update((part, aggregate) for aggregate, members in heard if len(members) >= enough)
    return tuple(shown), frozenset(named)
