"""The open cases, as one member sees them: from an accusation to a ban that a header can carry.

The idea: this file only keeps what was said about whom, bounded, and answers which peers are convicted. What
convicts is in `cases.py`; that a convicted peer is banned becomes a fact only by a certified header. SPEC §6.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from crowdsurf.protocol import limits
from crowdsurf.protocol.cases import (
    Question,
    Record,
    case_name,
    guilty_of,
    is_objection,
    projection_in,
    proof_holds,
    question_of,
    subject_of,
)
from crowdsurf.protocol.chain import Audit
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.envelope import Equivocation, Opened, Verify, slot_of
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.exhibits import can_be_compared, comparison
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import PROVEN, Accusation, Ban, Certificate, Envelope, Reason, Verdict
from crowdsurf.protocol.projection import Clipping
from crowdsurf.protocol.roster import Roster

DISPUTED = (Reason.WRONG_GRADIENT, Reason.WRONG_FINDING, Reason.WRONG_PROJECTION)
"""Reasons of class B: somebody's work has to be done again."""


def no_case(name: bytes) -> bool:
    """Whether a header that is to be judged rests on a case: there is none."""
    return False


@dataclass(slots=True)
class Case:
    """An accusation, and what was found about it."""

    name: Digest
    opened: Opened
    accusation: Accusation
    question: Question | None
    """What has to be recomputed; None for class A."""
    guilty: PeerId | None = None
    """What this member found itself."""
    attempts: int = 0
    """How often it has had the work computed, or, where machines differ, asked for the bytes in question."""
    verdicts: dict[PeerId, Opened] = field(default_factory=dict)

    @property
    def accuser(self) -> PeerId:
        return self.opened.sender

    def ban_of(self, guilty: PeerId) -> Ban:
        """The ban this case leads to."""
        accused = guilty == self.accusation.accused
        reason = self.accusation.reason if accused else int(Reason.FALSE_ACCUSATION)
        return Ban(guilty, reason, self.accusation.step, self.name)

    def is_settled(self, roster: Roster) -> bool:
        """Whether one of those it could convict is banned."""
        convicts = {self.guilty} if self.question is None else {self.accuser, self.accusation.accused}
        return bool(convicts & roster.outlaws)

    def convicted(self, roster: Roster, quorum: int) -> PeerId | None:
        """Who is guilty by the word of a quorum of members (class A: by the bytes)."""
        if self.question is None:
            return self.guilty
        counts: dict[PeerId, int] = {}
        for peer, opened in self.verdicts.items():
            if peer in roster.indexes and isinstance(opened.payload, Verdict):
                guilty = PeerId(opened.payload.guilty)
                counts[guilty] = counts.get(guilty, 0) + 1
        return next((guilty for guilty, count in counts.items() if count >= quorum), None)


Unit = tuple[int, Digest, PeerId]
"""A work unit that is done again: its step, its seed, and whose finding over it is wanted."""


def _unit_of(audit: Audit) -> Unit:
    return audit.step, audit.seed, audit.validator


class Tribunal:
    """Cases of the last `CASE_STEPS` steps."""

    def __init__(
        self,
        run_id: Digest,
        verify: Verify,
        clipping: Clipping | None = None,
        bound: float | None = None,
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`clipping`: how the run checks aggregates. `bound`: how far honest machines may differ, None if not at all;
        then `patience` is how long in seconds somebody may take to hand over bytes."""
        self._run_id = run_id
        self._verify = verify
        self._clipping = clipping
        self._bound = bound
        self._patience = patience
        self._step = 0
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._cases: dict[bytes, Case] = {}
        self._computing: set[Unit] = set()
        """Work that is being done again for cases; others about it wait for that."""
        self._times_computed: Counter[Unit] = Counter()
        """How often work was done again for cases, in this step."""

    # --- what is known of past steps ---------------------------------------------------------------------

    def remember(self, record: Record) -> None:
        """Keep a step that was just certified, for the cases about it."""
        self._records[record.header.step] = record

    def entitle(self, audits: tuple[Audit, ...]) -> None:
        """Somebody is drawn to look at work of a step that is remembered."""
        for audit in audits:
            record = self._records.get(audit.step)
            if record is not None and audit not in record.audits:
                self._records[audit.step] = record._replace(audits=(*record.audits, audit))

    def forget(self, step: int, roster: Roster) -> None:
        """Drop what is too old at `step` to be judged, and what has led to a ban."""
        self._records = OrderedDict((s, r) for s, r in self._records.items() if s >= step - limits.CASE_STEPS)
        self._step, oldest = step, step - limits.CASE_STEPS
        self._computing.clear()  # what was not answered in a step may have failed
        self._times_computed.clear()
        self._cases = {
            name: case
            for name, case in self._cases.items()
            if case.accusation.step >= oldest and not case.is_settled(roster)
        }

    def record(self, step: int) -> Record | None:
        """What is remembered of a step."""
        return self._records.get(step)

    def was_member(self, peer: bytes, roster: Roster) -> bool:
        """Whether a peer is a member, rests, or was a member in a step that is remembered."""
        rosters = (roster, *(record.head.roster for record in self._records.values()))
        return any(peer in one.indexes for one in rosters) or any(rest.peer == peer for rest in roster.resting)

    # --- what is said ------------------------------------------------------------------------------------

    def accuse(self, opened: Opened, roster: Roster, named: Callable[[bytes], bool] = no_case) -> None:
        """Open a case; `to_judge` says what has to be computed for it. `named` says whether a header that is to be
        judged rests on a case: such a one is always taken. Raises Refusal."""
        accusation = opened.payload
        if not isinstance(accusation, Accusation) or opened.envelope.subject != subject_of(accusation):
            raise Refusal(Code.MALFORMED, "the slot of an accusation names reason, step and accused")
        if opened.sender == accusation.accused or accusation.reason == Reason.FALSE_ACCUSATION:
            raise Refusal(Code.BAD_ACCUSATION, "nobody is accused of this")
        if accusation.accused in roster.outlaws:
            raise Refusal(Code.DUPLICATE, "it is banned already")
        if opened.digest in self._cases or case_name(opened, proven=False) in self._cases:
            raise Refusal(Code.DUPLICATE, "heard before")
        if accusation.reason in PROVEN:
            self._open_proven(opened, accusation, named)
            return
        if opened.sender in roster.outlaws:
            raise Refusal(Code.BANNED, "whoever says so is banned, and proves nothing")
        if not self._has_room(opened) and not named(case_name(opened, proven=False)):
            raise Refusal(Code.QUEUE_FULL, "too many open cases")
        self._open_disputed(opened, accusation)

    def _has_room(self, opened: Opened) -> bool:
        """Whether there is room for another dispute of its author. An objection has room of its own, one against each
        aggregator of a step: it has made a part void, so whatever else its author has said, it has to answer for it."""
        open_ones = [case for case in self._cases.values() if case.question is not None]
        own = [case for case in open_ones if case.accuser == opened.sender]
        if is_objection(opened):
            return all(case.opened.slot != opened.slot for case in own)
        disputes, own_ones = (sum(not is_objection(case.opened) for case in some) for some in (open_ones, own))
        return own_ones < limits.CASES_PER_ACCUSER_MAX and disputes < limits.CASES_MAX

    def _open_proven(self, opened: Opened, accusation: Accusation, named: Callable[[bytes], bool]) -> None:
        holds = proof_holds(accusation, self._run_id, self._verify, self._clipping)
        name = case_name(opened, holds)
        guilty = PeerId(accusation.accused) if holds else opened.sender
        if self.is_proven(guilty) and not named(name):
            raise Refusal(Code.DUPLICATE, "it is convicted already")
        self._cases[name] = Case(name, opened, accusation, None, guilty)

    def _open_disputed(self, opened: Opened, accusation: Accusation) -> None:
        record = self._records.get(accusation.step)
        particular = accusation.reason == Reason.WRONG_PROJECTION
        if accusation.reason not in DISPUTED or bool(accusation.proof) != particular:
            raise Refusal(Code.BAD_ACCUSATION, f"reason {accusation.reason} is unknown, or proves itself")
        if record is None:
            raise Refusal(Code.FUTURE, f"step {accusation.step} is not known well enough here")
        question = question_of(accusation, opened.sender, record, self._run_id, self._verify)
        if is_objection(opened) and question.audit.target != opened.sender:
            raise Refusal(Code.BAD_ACCUSATION, "only the member itself can object to a line in the step itself")
        name = case_name(opened, proven=False)
        self._cases[name] = Case(name, opened, accusation, question)

    def contradiction(self, opened: Opened) -> Equivocation | None:
        """The projection in an open dispute, beside another one that its author has signed for the same part: what was
        certified, or what is in another dispute. Liars may show each member another one, and nobody any two."""
        accusation = opened.payload
        shown = projection_in(accusation) if isinstance(accusation, Accusation) else None
        if shown is None or not isinstance(accusation, Accusation) or self.is_proven(PeerId(accusation.accused)):
            return None
        record = self._records.get(accusation.step)
        known = [said.envelope for said in record.projections] if record is not None else []
        about_it = (case.accusation for case in self._cases.values() if case.question and case.question.projection)
        about_it = (one for one in about_it if (one.accused, one.step) == (shown.sender, shown.step))
        known += [other for one in about_it if (other := projection_in(one)) is not None]
        key = shown.sender, slot_of(shown)
        others = (one for one in known if (one.sender, slot_of(one)) == key and one.payload != shown.payload)
        return next((Equivocation(shown, other) for other in others), None)

    def to_judge(self) -> list[RecomputeWork]:
        """What has to be computed to judge disputes for which nothing was computed yet. Asked when all that is said at
        once has been taken: what several disputes need is computed once for all of them."""
        return [effect for case in list(self._cases.values()) if not case.attempts for effect in self._to_judge(case)]

    def to_judge_again(self) -> list[RecomputeWork]:
        """The same in a new step, and what must be asked for once more: bytes may be shown by now."""
        return [effect for case in list(self._cases.values()) for effect in self._to_judge(case)]

    def _to_judge(self, case: Case) -> list[RecomputeWork]:
        """What has to be computed to judge a case; nothing before that can be done, or where it is judged."""
        question, record = case.question, self._records.get(case.accusation.step)
        if case.guilty is not None or question is None or record is None:
            return []
        audit, projection = question.audit, question.projection
        if self._needs_bytes(case):
            if not can_be_compared(audit.step, self._step, case.attempts) or not self._has_seen(question):
                return []
            case.attempts += 1
            wanted_bytes = comparison(record, audit, case.attempts - 1, self._patience(), projection)
            return [wanted_bytes] if wanted_bytes is not None else []
        return self._compute_once(audit, record)

    def _compute_once(self, audit: Audit, record: Record) -> list[RecomputeWork]:
        """Do a work unit again for all cases that wait for it; once at a time, and one aggregate of each part."""
        unit = _unit_of(audit)
        waiting = [case for case in self._cases.values() if self._waits_for(case, unit)]
        if unit in self._computing or self._times_computed[unit] >= limits.TIMES_COMPUTED_MAX or not waiting:
            return []
        wanted: dict[int, bytes] = {}
        for case in waiting:
            said = case.question.projection if case.question is not None else None
            if (
                said is None
                or said.part >= audit.parts
                or wanted.setdefault(said.part, said.aggregate) == said.aggregate
            ):
                case.attempts += 1
        asked = tuple(wanted.get(part, b"") for part in range(audit.parts)) if wanted else ()
        beacon = record.header.beacon if wanted else b""
        self._computing.add(unit)
        self._times_computed[unit] += 1
        return [RecomputeWork(audit.step, audit.seed, audit.parts, audit.state, audit.validator, asked, beacon)]

    def _waits_for(self, case: Case, unit: Unit) -> bool:
        """Whether a dispute is about a work unit and nobody was asked to compute it for its sake."""
        if case.question is None or case.guilty is not None or case.attempts or self._needs_bytes(case):
            return False
        return _unit_of(case.question.audit) == unit and self._can_be_told(case.question)

    def _can_be_told(self, question: Question) -> bool:
        """Whether the worker can still know what it takes: the state, and for a line the aggregate, which it must have
        seen. Nobody computes what it could not judge: that would cost everybody, and nobody could be blamed for it."""
        age = self._step - question.audit.step
        if question.projection is None:
            return age <= limits.PAST_STATES
        return age < limits.PAST_AGGREGATES and self._has_seen(question)

    def _has_seen(self, question: Question) -> bool:
        """Whether the aggregate that a dispute is about, if it is about one, was here in its step."""
        record, projection = self._records.get(question.audit.step), question.projection
        return projection is None or record is None or record.here is None or projection.aggregate in record.here

    def to_judge_next(self, found: WorkRecomputed) -> list[RecomputeWork]:
        """What has to be computed for disputes about a work unit that was just computed, but not for them."""
        unit = (found.step, found.seed, found.finder)
        self._computing.discard(unit)
        effects: list[RecomputeWork] = []
        for case in self._cases.values():
            record = self._records.get(case.accusation.step)
            if case.question is None or record is None or self._needs_bytes(case):
                continue
            if _unit_of(case.question.audit) == unit:
                effects = effects or self._compute_once(case.question.audit, record)
        return effects

    def _needs_bytes(self, case: Case) -> bool:
        """Whether a dispute is about numbers that must be seen; a finding is judged by the work alone."""
        return self._bound is not None and case.accusation.reason != Reason.WRONG_FINDING

    def judge(self, opened: Opened) -> None:
        """Take a member's verdict. Raises Refusal, FUTURE for a case not heard of yet."""
        verdict = opened.payload
        if not isinstance(verdict, Verdict) or opened.envelope.subject != verdict.case:
            raise Refusal(Code.MALFORMED, "the slot of a verdict names its case")
        case = self._cases.get(verdict.case)
        if case is None:
            raise Refusal(Code.FUTURE, "a verdict about something that is not known here")
        if case.question is None or verdict.guilty not in (case.accuser, case.accusation.accused):
            raise Refusal(Code.BAD_ACCUSATION, "a verdict finds the accuser or the accused guilty")
        if opened.sender in case.verdicts:
            raise Refusal(Code.DUPLICATE, "heard before")
        case.verdicts[opened.sender] = opened

    def recomputed(self, found: WorkRecomputed) -> list[Verdict]:
        """What this member finds in open cases, now that it knows the work as it should have been."""
        verdicts = []
        for case in self._cases.values():
            question, record = case.question, self._records.get(case.accusation.step)
            if case.guilty is not None or question is None or record is None:
                continue
            audit = question.audit
            if _unit_of(audit) == (found.step, found.seed, found.finder):
                case.guilty = guilty_of(
                    case.accusation, case.accuser, record, found, question, self._clipping, self._bound
                )
                if case.guilty is not None:
                    verdicts.append(Verdict(case.name, case.guilty))
        return verdicts

    # --- what follows ------------------------------------------------------------------------------------

    def convictions(self, roster: Roster, quorum: int) -> dict[bytes, Ban]:
        """Bans a header may carry now, by case."""
        found = {}
        for name, case in self._cases.items():
            guilty = case.convicted(roster, quorum)
            if guilty is not None and guilty not in roster.outlaws:
                found[name] = case.ban_of(guilty)
        return found

    @property
    def has_cases(self) -> bool:
        """Whether any case is open."""
        return bool(self._cases)

    def is_proven(self, peer: PeerId) -> bool:
        """Whether a case is known that convicts the peer by its own signatures."""
        return any(case.question is None and case.guilty == peer for case in self._cases.values())

    def messages(self, name: bytes) -> list[Envelope]:
        """Everything signed about a case, to convince others."""
        case = self._cases.get(name)
        if case is None:
            return []
        return [case.opened.envelope, *(opened.envelope for opened in case.verdicts.values())]

    def said_by(self, peer: PeerId) -> list[Envelope]:
        """Accusations and verdicts of a peer in open cases; to be said again, because they may have been lost."""
        found = [case.opened for case in self._cases.values() if case.accuser == peer]
        found += [case.verdicts[peer] for case in self._cases.values() if peer in case.verdicts]
        return [opened.envelope for opened in found]

    def evidence(self, ban: Ban, certificate: Certificate) -> Evidence | None:
        """What convicted a banned peer, if the case is known here."""
        case = self._cases.get(ban.case)
        if case is None:
            return None
        record = self._records.get(case.accusation.step)
        shown = record is not None and case.question is not None and case.question.projection is None
        commit = record.commits.get(PeerId(case.accusation.accused)) if record is not None and shown else None
        verdicts = tuple(case.verdicts[peer].envelope for peer in sorted(case.verdicts))
        exhibits = (commit.envelope,) if commit is not None else ()
        return Evidence(ban, case.opened.envelope, verdicts, exhibits, certificate)
