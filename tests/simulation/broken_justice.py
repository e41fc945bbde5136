"""Defects in who is blamed, banned and left out, and in what is drawn, counted and kept for it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import msgspec

from crowdsurf.protocol import assignment, chain, events, holdings, limits, outcome, roster, tribunal
from crowdsurf.protocol.cases import Question
from crowdsurf.protocol.effects import ComputeFinding
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.grace import Grace
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.sim import worker
from crowdsurf.protocol.sim.adversaries import GradientAttack, LazyValidator, WithholdReveal
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.worker import Worker
from crowdsurf.protocol.tribunal import Case, Tribunal
from tests.simulation import liars_at_court as liars
from tests.simulation.broken_facts import check_repaired
from tests.simulation.defect import CRASHY, ROUGH, Patch, defect

replace = msgspec.structs.replace


# --- who is guilty -------------------------------------------------------------------------------------------


@defect("no_honest_ban", liar=liars.AccusesItsTarget, steps=16)
def believes_the_accuser(patch: Patch) -> None:
    """A verdict goes against the accused, whatever the recomputation gave."""
    patch.setattr(tribunal, "guilty_of", lambda accusation, *_: accusation.accused)


@defect("no_honest_ban header_follows evidence_holds", (1, 3, 4), liar=liars.AccusesAndJudges, peers=3, steps=16)
def one_verdict_is_missing(patch: Patch) -> None:
    """A ban takes one verdict less than a quorum."""
    honest = Case.convicted
    patch.setattr(Case, "convicted", lambda self, members, quorum: honest(self, members, quorum - 1))


@defect("evidence_holds", liar=liars.AccusesAnybody)
def hears_anybody(patch: Patch) -> None:
    """Who was not drawn may accuse, too."""

    def question(accusation: Any, accuser: Any, record: Any, *_: Any) -> Question:
        return Question(next(audit for audit in record.audits if audit.target == accusation.accused))

    patch.setattr(tribunal, "question_of", question)


@defect("no_honest_ban header_follows evidence_holds", liar=liars.AccusesWithoutProof)
def believes_any_proof(patch: Patch) -> None:
    """A proof is not looked at."""
    patch.setattr(tribunal, "proof_holds", lambda *_: True)


@defect("no_honest_ban header_follows", (0, 4, 5), liar=liars.BansSomebody)
def bans_without_evidence(patch: Patch) -> None:
    """A voter lets a header ban whom it likes."""
    honest = outcome.examine

    def examine(facts: Any, said: Any, blobs: Any, header: Any, _: Any, *rest: Any) -> Any:
        return honest(facts, said, blobs, header, {ban.case: ban for ban in header.bans}, *rest)

    patch.setattr(holdings, "examine", examine)


@defect("no_honest_ban", steps=12)
def compares_with_the_newest_work(patch: Patch) -> None:
    """Whoever was validated compares the finding with the gradient it computed since."""

    def compute(self: Worker, effect: ComputeFinding) -> None:
        self.later(0.6, answer, self, effect)

    def answer(self: Worker, effect: ComputeFinding) -> None:
        own, host = self.own, self._host
        if own is not None:
            finding = host.world.compute.finding(own.state, own.seed, len(own.parts), effect.finder)
            host.give(events.FindingKnown(effect.step, effect.finder, finding))

    patch.setitem(worker.ACTIONS, ComputeFinding, compute)


# --- void steps, strikes and rests ---------------------------------------------------------------------------


@defect("header_follows", liar=liars.CountsAVoidStep, steps=12)
def counts_a_void_step(patch: Patch) -> None:
    """Aggregates count although a nonce was withheld."""

    def repair(head: Any, header: Any, _: int) -> Any:
        void = (b"",) * len(header.parts)
        return replace(header, parts=void, projections=void) if chain.withheld(header) else header

    check_repaired(patch, lambda head, header, manifest: repair(head, header, manifest.missed_steps_max))


@defect("header_follows", liar=WithholdReveal)
def blames_nobody(patch: Patch) -> None:
    """Whoever withholds its nonce stays, and may do so again."""
    patch.setattr(roster, "blamed", lambda *_: frozenset())


@defect("header_follows", faults=Faults(aggregate_failure=0.3))
def counts_no_strikes(patch: Patch) -> None:
    """Aggregates that never come are forgiven."""

    def next_roster(old: Any, header: Any, duties: Any, missed_steps_max: int) -> roster.Roster:
        new = roster.next_roster(old, header, duties, missed_steps_max)
        return replace(new, members=tuple(replace(member, strikes=0) for member in new.members))

    patch.setattr(chain, "next_roster", next_roster)


@defect("header_follows", liar=liars.WithholdsOnce, steps=12)
def forgets_who_rests(patch: Patch) -> None:
    """Whoever is left out is let in again at once."""
    patch.setattr(roster.Roster, "kept_out", lambda self, step: set(self.banned))


@defect("header_follows", liar=liars.ComesBack, steps=16)
def lets_the_banned_back(patch: Patch) -> None:
    """A banned peer may ask to join."""
    honest = Node._on_envelope

    def on_envelope(self: Node, source: Any, envelope: Any, now: float) -> None:
        if envelope.kind == Kind.JOIN:
            self._on_membership(self._open(envelope), now)
        else:
            honest(self, source, envelope, now)

    patch.setattr(Node, "_on_envelope", on_envelope)
    patch.setattr(roster.Roster, "kept_out", lambda self, step: {r.peer for r in self.resting if r.until > step})


@defect("patient", (3, 8, 10), faults=ROUGH)
def has_no_patience(patch: Patch) -> None:
    """A step is voided at once for those that have not opened their nonce."""
    patch.setattr(Grace, "is_over", lambda self, now: True)


# --- what is drawn -------------------------------------------------------------------------------------------


@defect("header_follows", (11, 13, 14), faults=CRASHY)
def draws_among_all_members(patch: Patch) -> None:
    """Who was not in the step may be drawn to validate it."""
    honest = chain.following_audits

    def following(head: Any, header: Any, members: Any, rate: float) -> Any:
        everybody = (1 << len(head.roster)) - 1
        contributors = everybody.to_bytes(len(header.contributors), "little")
        drawn = replace(header, contributors=contributors, nonces=(bytes(32),) * len(header.nonces))
        return () if chain.withheld(header) else honest(head, drawn, members, rate)

    patch.setattr(chain, "following_audits", following)


@defect("header_follows", steps=12)
def draws_one_too_many(patch: Patch) -> None:
    """More members validate than the run has agreed on."""
    honest = assignment.validators_of
    patch.setattr(assignment, "validators_of", lambda members, rate: honest(members, rate) + 1)


# --- bounds --------------------------------------------------------------------------------------------------


@defect("bounded_queues", liar=liars.FloodsTheCourt, steps=4)
def hears_every_proof(patch: Patch) -> None:
    """Every proof opens a case, also against somebody who is convicted already."""
    patch.setattr(Tribunal, "is_proven", lambda *_: False)


@defect("bounded_queues", steps=14)
def remembers_every_step(patch: Patch) -> None:
    """What cases could be about is never forgotten."""
    _without_limit(patch, "CASE_STEPS")


def _without_limit(patch: Patch, name: str) -> None:
    patch.setattr(tribunal, "limits", types.SimpleNamespace(**{**vars(limits), name: 1 << 20}))


# --- evidence ------------------------------------------------------------------------------------------------


@defect("evidence_holds", liar=GradientAttack, steps=16)
def shows_one_verdict(patch: Patch) -> None:
    """Evidence holds a verdict instead of a quorum of them."""
    _spoil_evidence(patch, lambda evidence: replace(evidence, verdicts=evidence.verdicts[:1]))


@defect("evidence_holds", liar=LazyValidator, steps=24)
def shows_no_commit(patch: Patch) -> None:
    """Evidence does not hold what the accused had said."""
    _spoil_evidence(patch, lambda evidence: replace(evidence, exhibits=()))


@defect("evidence_holds", liar=liars.SaysTwoThings)
def shows_another_ban(patch: Patch) -> None:
    """Evidence names another case than the header does."""
    _spoil_evidence(patch, lambda evidence: replace(evidence, ban=replace(evidence.ban, case=Digest(bytes(32)))))


def _spoil_evidence(patch: Patch, spoil: Callable[[Evidence], Evidence]) -> None:
    honest = Tribunal.evidence

    def evidence(self: Tribunal, ban: Any, certificate: Any) -> Evidence | None:
        found = honest(self, ban, certificate)
        return spoil(found) if found is not None else None

    patch.setattr(Tribunal, "evidence", evidence)
