"""Cases where machines differ: who is guilty, when the bytes are asked for and of whom, and what is not judged."""

from __future__ import annotations

import dataclasses

import pytest

from crowdsurf.protocol import assignment, limits
from crowdsurf.protocol.cases import case_name, guilty_of, is_finding, objection_to, question_of
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.exhibits import DISCLOSED_STEPS, can_be_compared, comparison
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Accusation, Reason, Verdict, indexes_of
from crowdsurf.protocol.tolerance import COMPARED_STEPS, SKETCH_DIRECTIONS, Compared, pack_sketch
from crowdsurf.protocol.tribunal import Tribunal
from tests.protocol import test_cases as cases
from tests.protocol import test_cases_projections as lines
from tests.protocol.swarm import name, verify_mac
from tests.protocol.test_tribunal import AUDIT, JUDGE, PEERS, ROSTER, RUN, STEP, TARGET, VALIDATOR, accuse, record

BOUND = 1e-3
PATIENCE = 2.5
OWN = tuple(Digest(name("own", part)) for part in range(4))
"""What this machine makes of the same work: other bits."""
OLD_FOUND = dataclasses.replace(cases.FOUND, parts=OWN, norms=(1.0,) * 4)


def guilty(*distances: float | None) -> PeerId | None:
    """Who is guilty of a gradient whose parts are so far from this machine's; None: a part that was not seen."""
    compared = tuple(None if distance is None else Compared(distance, 1.0) for distance in distances)
    found = dataclasses.replace(OLD_FOUND, compared=compared)
    return guilty_of(cases.WRONG_GRADIENT, cases.VALIDATOR, cases.work_record(), found, bound=BOUND)


def test_other_bits_are_no_guilt_and_other_numbers_are() -> None:
    assert guilty(1e-7, 1e-7, 1e-7, 1e-7) == cases.VALIDATOR  # who accused it was wrong
    assert guilty(1e-7, 1e-7, 1e-7, 0.1) == cases.TARGET


def test_what_is_not_seen_convicts_neither_side() -> None:
    assert guilty() is None
    assert guilty(1e-7, None, 1e-7, 1e-7) is None
    assert guilty(None, None, None, 0.1) == cases.TARGET
    found = dataclasses.replace(OLD_FOUND, parts=(), norms=())
    assert guilty_of(cases.WRONG_GRADIENT, cases.VALIDATOR, cases.work_record(), found, bound=BOUND) is None


def test_the_very_bytes_need_not_be_seen() -> None:
    assert guilty_of(cases.WRONG_GRADIENT, cases.VALIDATOR, cases.work_record(), cases.FOUND, bound=BOUND) == (
        cases.VALIDATOR
    )


@pytest.mark.parametrize(("apart", "is_right"), [(0.0, True), (2.9 * BOUND, True), (3.1 * BOUND, False), (1.0, False)])
def test_a_finding_is_that_of_a_gradient_within_the_bound(apart: float, is_right: bool) -> None:
    own = [0.5] * SKETCH_DIRECTIONS
    said = pack_sketch([number + apart for number in own])
    assert is_finding(said, pack_sketch(own), BOUND) == is_right
    found = dataclasses.replace(cases.FOUND, finding=pack_sketch(own))
    judged = guilty_of(cases.WRONG_FINDING, cases.TARGET, cases.audit_record(said), found, bound=BOUND)
    assert judged == (cases.TARGET if is_right else cases.VALIDATOR)
    assert is_finding(said, said, None)
    assert is_finding(said, pack_sketch(own), None) == (apart == 0.0)


def test_a_line_is_about_what_was_committed_to_whatever_the_work() -> None:
    """The contributor's bits are its own; nobody can hold that against it, nor the line against the aggregator."""
    said = lines.lie_about(lines.VICTIM)
    accusation, accuser = objection_to(said, lines.VICTIM), lines.STEP.peers[lines.VICTIM]
    question = question_of(accusation, accuser, lines.record(), lines.RUN, verify_mac)
    found = dataclasses.replace(lines.FOUND, parts=OWN)

    def judge(shown: tuple[object, ...], bound: float | None) -> object:
        work = dataclasses.replace(found, lines=shown)  # type: ignore[arg-type]
        return guilty_of(accusation, accuser, lines.record(), work, question, lines.CLIPPING, bound)

    assert judge(found.lines, BOUND) == lines.STEP.peers[lines.LIAR]
    assert judge((None,) * 4, BOUND) is None  # its bytes are not here
    assert judge(found.lines, None) == accuser  # where all machines are alike it committed to something else


# --- what is asked of whom ----------------------------------------------------------------------------------


def test_work_is_shown_when_validators_have_committed_and_for_a_while() -> None:
    steps = range(5, 12)
    assert [can_be_compared(5, step, 0) for step in steps] == [True, True, True, True, True, False, False]
    assert [can_be_compared(5, step, 1) for step in steps] == [False, False, True, True, True, False, False]
    assert DISCLOSED_STEPS <= COMPARED_STEPS <= limits.CASE_STEPS


def test_what_is_here_is_compared_first_and_then_aggregators_are_asked_and_others() -> None:
    facts, commit = record(), STEP.commit(1, {}, {})
    duties = assignment.aggregators(STEP.head.beacon, tuple(indexes_of(STEP.header.contributors)), len(PEERS))
    asked = [comparison(facts, AUDIT, attempts, PATIENCE) for attempts in range(5)]
    assert all(one is not None for one in asked)
    here, first, second, third, fourth = (one for one in asked if one is not None)
    assert (here.committed, here.holders, here.patience_seconds) == (commit.parts, (), 0.0)
    assert first.committed == commit.parts
    assert first.patience_seconds == PATIENCE
    assert first.aggregates == STEP.header.parts
    assert (first.finder, first.seed, first.state, first.step) == (VALIDATOR, AUDIT.seed, AUDIT.state, 0)
    assert first.holders == fourth.holders == tuple(PEERS[index] for index in duties)
    assert second.holders == (TARGET,) * 7
    assert third.holders == (VALIDATOR,) * 7
    assert comparison(facts._replace(commits={}), AUDIT, 0, PATIENCE) is None


def test_of_a_line_one_part_is_asked_for_and_first_of_who_complains() -> None:
    facts, audit = lines.record(), lines.AUDIT._replace(validator=lines.STEP.peers[lines.WITNESS])
    projection = lines.SAID.payload
    asked = comparison(facts, audit, 1, PATIENCE, projection)  # type: ignore[arg-type]
    assert asked is not None
    assert [bool(one) for one in asked.committed] == [True, False, False, False]
    assert [bool(one) for one in asked.aggregates] == [True, False, False, False]
    assert set(asked.holders) == {lines.STEP.peers[lines.WITNESS]}


# --- in court ------------------------------------------------------------------------------------------------

DISPUTE = accuse(Accusation(TARGET, Reason.WRONG_GRADIENT, 0), step=2)
FINDING = accuse(Accusation(VALIDATOR, Reason.WRONG_FINDING, 0), TARGET, step=2)


def court(step: int) -> Tribunal:
    tribunal = Tribunal(RUN, verify_mac, None, BOUND, lambda: PATIENCE)
    tribunal.forget(step, ROSTER)
    tribunal.remember(record())
    return tribunal


def test_a_dispute_waits_until_the_work_is_shown_and_is_taken_up_again_while_bytes_are_missing() -> None:
    tribunal = court(1)
    tribunal.accuse(DISPUTE, ROSTER)
    (here,) = tribunal.to_judge()
    assert here.holders == ()
    assert tribunal.to_judge_again() == []
    asked: list[RecomputeWork] = []
    for step in range(2, COMPARED_STEPS + 1):
        tribunal.forget(step, ROSTER)
        asked += tribunal.to_judge_again()
    assert len({one.holders for one in asked}) == 3  # somebody else every time
    assert all(one.committed == STEP.commit(1, {}, {}).parts for one in asked)
    tribunal.forget(COMPARED_STEPS + 1, ROSTER)
    assert tribunal.to_judge_again() == []


def test_what_is_judged_is_not_asked_for_again() -> None:
    tribunal = court(2)
    tribunal.accuse(DISPUTE, ROSTER)
    (asked,) = tribunal.to_judge()
    own, norms = tuple(Digest(name("own", part)) for part in range(7)), (1.0,) * 7
    found = dataclasses.replace(cases.FOUND, seed=asked.seed, finder=asked.finder, parts=own, norms=norms)
    assert tribunal.recomputed(found) == []  # no bytes, no verdict
    far = dataclasses.replace(found, compared=(Compared(1.0, 1.0),) * 7)
    assert tribunal.recomputed(far) == [Verdict(case_name(DISPUTE, False), TARGET)]
    tribunal.forget(3, ROSTER)
    assert tribunal.to_judge_again() == []


def test_a_finding_needs_no_bytes_of_anybody() -> None:
    tribunal = court(1)
    facts = record()
    head = facts.head._replace(audits=(AUDIT,))
    tribunal.remember(facts._replace(head=head))
    tribunal.accuse(FINDING, ROSTER)
    (asked,) = tribunal.to_judge()
    assert (asked.committed, asked.holders, asked.finder) == ((), (), VALIDATOR)
    assert JUDGE in PEERS
    assert tribunal.to_judge_again() == []
