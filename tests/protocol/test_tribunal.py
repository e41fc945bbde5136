"""Open cases: who is convicted by what, and that nothing anybody says makes them grow without end."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from crowdsurf.protocol import limits
from crowdsurf.protocol.cases import Record, case_name, objection_to, proof_of, subject_of
from crowdsurf.protocol.chain import Audit
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Accusation, Ban, Certificate, Commit, Kind, Reason, Verdict, Vote
from crowdsurf.protocol.roster import Roster
from crowdsurf.protocol.tribunal import Tribunal
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.court import assert_just, run_until_drawn, watchful_swarm
from tests.protocol.docket import Docket
from tests.protocol.swarm import RIGHT as RIGHT_LINE
from tests.protocol.swarm import FakeSigner, name, verify_mac

STEP = CompleteStep(7)
ROSTER, RUN = STEP.head.roster, STEP.run_id
PEERS = STEP.peers
VALIDATOR, TARGET, JUDGE = PEERS[0], PEERS[1], PEERS[2]
QUORUM = 4
SIGNERS = {signer.peer_id: signer for signer in STEP.signers}
AUDIT = Audit(VALIDATOR, TARGET, 0, name("seed"), 7, STEP.facts.state)
RIGHT = tuple(Digest(name("part", 1, part)) for part in range(7))
"""What the target committed to."""


def record(step: int = 0, audit: Audit = AUDIT) -> Record:
    """A step in which the target did the work that the validator has to do again."""
    header = msgspec.structs.replace(STEP.header, step=step)
    head = STEP.head._replace(step=step)
    commits = {peer: STEP.transcript.commits[peer] for peer in PEERS}
    return Record(head, header, (audit._replace(step=step),), commits)


def tribunal(*records: Record) -> Tribunal:
    court = Tribunal(RUN, verify_mac)
    for one in records or (record(),):
        court.remember(one)
    return court


def accuse(accusation: Accusation, accuser: PeerId = VALIDATOR, step: int = 1) -> Opened:
    return seal(SIGNERS[accuser], RUN, Slot(step, 0, Kind.ACCUSATION, subject_of(accusation)), accusation)


def verdict(case: bytes, judge: PeerId, guilty: PeerId, step: int = 1, signer: FakeSigner | None = None) -> Opened:
    return seal(signer or SIGNERS[judge], RUN, Slot(step, 0, Kind.VERDICT, case), Verdict(case, guilty))


def found(parts: tuple[Digest, ...] = RIGHT, step: int = 0) -> WorkRecomputed:
    return WorkRecomputed(step, AUDIT.seed, VALIDATOR, parts, name("finding"))


def proof(accused: PeerId = TARGET, number: int = 0, step: int = 1) -> bytes:
    slot = Slot(step, 0, Kind.VOTE, b"")
    pair = (seal(SIGNERS[accused], RUN, slot, Vote(name(number, side))).envelope for side in (1, 2))
    return proof_of(Equivocation(*pair))


DISPUTE = accuse(Accusation(TARGET, Reason.WRONG_GRADIENT, 0))
CASE = case_name(DISPUTE, False)
PROVEN = accuse(Accusation(TARGET, Reason.EQUIVOCATION, 1, proof()), JUDGE)
FALSE = accuse(Accusation(TARGET, Reason.EQUIVOCATION, 1, b"no proof"), JUDGE)


# --- class A -------------------------------------------------------------------------------------------------


def test_a_proof_convicts_at_once_and_without_verdicts() -> None:
    court = tribunal()
    court.accuse(PROVEN, ROSTER)
    assert court.to_judge() == []
    assert court.convictions(ROSTER, QUORUM) == {
        PROVEN.digest: Ban(TARGET, Reason.EQUIVOCATION, 1, PROVEN.digest),
    }
    assert court.is_proven(TARGET)
    assert not court.is_proven(JUDGE)


def test_a_false_proof_convicts_its_sender_under_a_name_of_its_own() -> None:
    court = tribunal()
    court.accuse(FALSE, ROSTER)
    case = case_name(FALSE, False)
    assert case != FALSE.digest
    assert court.convictions(ROSTER, QUORUM) == {case: Ban(JUDGE, Reason.FALSE_ACCUSATION, 1, case)}
    assert court.messages(case) == [FALSE.envelope]
    assert court.messages(FALSE.digest) == []


def test_who_says_the_same_falsely_is_convicted_for_itself() -> None:
    court = tribunal()
    again = accuse(Accusation(TARGET, Reason.EQUIVOCATION, 1, b"no proof"), PEERS[3])
    assert again.digest == FALSE.digest
    court.accuse(FALSE, ROSTER)
    court.accuse(again, ROSTER)
    assert {ban.peer for ban in court.convictions(ROSTER, QUORUM).values()} == {JUDGE, PEERS[3]}


def test_a_peer_is_convicted_by_one_proof_unless_a_header_rests_on_another() -> None:
    court = tribunal()
    court.accuse(PROVEN, ROSTER)
    other = accuse(Accusation(TARGET, Reason.EQUIVOCATION, 1, proof(number=1)), JUDGE)
    refused(lambda: court.accuse(PROVEN, ROSTER), Code.DUPLICATE)
    refused(lambda: court.accuse(other, ROSTER), Code.DUPLICATE)
    court.accuse(other, ROSTER, lambda case: case == other.digest)
    assert set(court.convictions(ROSTER, QUORUM)) == {PROVEN.digest, other.digest}


def test_false_proofs_of_one_sender_take_the_room_of_one() -> None:
    court = tribunal()
    for number in range(limits.EVIDENCE_MAX + 1):
        one = accuse(Accusation(PEERS[number % 2], Reason.EQUIVOCATION, 1, b"no proof %d" % number), JUDGE)
        if number:
            refused(partial(court.accuse, one, ROSTER), Code.DUPLICATE)
        else:
            court.accuse(one, ROSTER)
    assert len(court.convictions(ROSTER, QUORUM)) == 1


# --- class B -------------------------------------------------------------------------------------------------


def test_an_accusation_of_a_wrong_gradient_says_what_to_compute_again() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    assert court.to_judge() == [RecomputeWork(0, AUDIT.seed, 7, AUDIT.state, VALIDATOR)]
    assert court.to_judge() == []
    assert court.convictions(ROSTER, QUORUM) == {}
    refused(lambda: court.accuse(DISPUTE, ROSTER), Code.DUPLICATE)


@pytest.mark.parametrize(("parts", "guilty"), [(RIGHT, VALIDATOR), ((name("lie"), *RIGHT[1:]), TARGET)])
def test_who_is_guilty_is_found_once_by_computing_it_again(parts: tuple[Digest, ...], guilty: PeerId) -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    assert court.recomputed(found(parts)) == [Verdict(CASE, guilty)]
    assert court.recomputed(found(parts)) == []
    assert court.convictions(ROSTER, QUORUM) == {}  # what one member found is its own word


def test_other_work_decides_nothing() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    for other in (
        WorkRecomputed(0, name("other"), VALIDATOR, RIGHT, name("f")),
        WorkRecomputed(1, AUDIT.seed, VALIDATOR, RIGHT, name("f")),
        WorkRecomputed(0, AUDIT.seed, JUDGE, RIGHT, name("f")),
    ):
        assert court.recomputed(other) == []


def test_a_quorum_of_equal_verdicts_convicts_and_fewer_do_not() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    for count, judge in enumerate(PEERS[2:], 1):
        court.judge(verdict(CASE, judge, TARGET))
        bans = court.convictions(ROSTER, QUORUM)
        if count < QUORUM:
            assert bans == {}
        else:
            assert bans == {CASE: Ban(TARGET, Reason.WRONG_GRADIENT, 0, CASE)}


def test_verdicts_for_different_peers_are_not_added_up() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    for index, judge in enumerate(PEERS[1:]):
        court.judge(verdict(CASE, judge, VALIDATOR if index % 2 else TARGET))
    assert court.convictions(ROSTER, QUORUM) == {}
    court.judge(verdict(CASE, VALIDATOR, VALIDATOR))
    bans = court.convictions(ROSTER, QUORUM)
    assert bans == {CASE: Ban(VALIDATOR, Reason.FALSE_ACCUSATION, 0, CASE)}


def test_a_member_has_one_verdict_whatever_it_says_later() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    for step in range(1, 6):
        said = verdict(CASE, JUDGE, TARGET, step)
        if step == 1:
            court.judge(said)
        else:
            refused(partial(court.judge, said), Code.DUPLICATE)
    refused(lambda: court.judge(verdict(CASE, JUDGE, VALIDATOR)), Code.DUPLICATE)
    assert court.convictions(ROSTER, QUORUM) == {}


def test_verdicts_of_peers_that_are_no_members_count_nothing() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    for number in range(50, 60):
        stranger = FakeSigner(number)
        court.judge(verdict(CASE, stranger.peer_id, TARGET, signer=stranger))
    assert court.convictions(ROSTER, QUORUM) == {}
    for judge in PEERS[2:6]:
        court.judge(verdict(CASE, judge, TARGET))
    assert len(court.convictions(ROSTER, QUORUM)) == 1
    smaller = Roster(tuple(member for member in ROSTER.members if member.peer != PEERS[2]))
    assert court.convictions(smaller, QUORUM) == {}


def test_a_verdict_is_about_a_case_that_is_known_and_one_of_its_two_sides() -> None:
    court = tribunal()
    refused(lambda: court.judge(verdict(CASE, JUDGE, TARGET)), Code.FUTURE)
    court.accuse(DISPUTE, ROSTER)
    refused(lambda: court.judge(verdict(CASE, JUDGE, PEERS[4])), Code.BAD_ACCUSATION)
    wrong_slot = seal(SIGNERS[JUDGE], RUN, Slot(1, 0, Kind.VERDICT, b"x"), Verdict(CASE, TARGET))
    refused(lambda: court.judge(wrong_slot), Code.MALFORMED)
    court.accuse(PROVEN, ROSTER)
    refused(lambda: court.judge(verdict(PROVEN.digest, JUDGE, TARGET)), Code.BAD_ACCUSATION)


# --- several accusers of one peer ----------------------------------------------------------------------------

SECOND = PEERS[3]
AGAIN = accuse(Accusation(TARGET, Reason.WRONG_GRADIENT, 0), SECOND)
"""What the validator says, byte for byte, from another one that was drawn to look at the same work."""
CASES = {VALIDATOR: CASE, SECOND: case_name(AGAIN, False)}


def court_of_two() -> Tribunal:
    court = tribunal(record()._replace(audits=(AUDIT, AUDIT._replace(validator=SECOND))))
    court.accuse(DISPUTE, ROSTER)
    court.accuse(AGAIN, ROSTER)
    assert [one.finder for one in court.to_judge()] == [VALIDATOR, SECOND]
    return court


@pytest.mark.parametrize(("parts", "guilty"), [(RIGHT, None), ((name("lie"), *RIGHT[1:]), TARGET)])
def test_each_of_two_accusers_that_say_the_same_is_judged(parts: tuple[Digest, ...], guilty: PeerId | None) -> None:
    court = court_of_two()
    for accuser, case in CASES.items():
        found_by = WorkRecomputed(0, AUDIT.seed, accuser, parts, name("finding"))
        assert court.recomputed(found_by) == [Verdict(case, guilty or accuser)]
        for judge in PEERS[3:]:
            court.judge(verdict(case, judge, guilty or accuser))
    bans = court.convictions(ROSTER, QUORUM)
    assert {case: ban.peer for case, ban in bans.items()} == {case: guilty or who for who, case in CASES.items()}


def test_who_says_the_same_as_a_liar_keeps_its_case_when_the_liar_is_banned() -> None:
    court = court_of_two()
    for judge in PEERS[3:]:
        court.judge(verdict(CASES[SECOND], judge, TARGET))
    court.forget(2, Roster(ROSTER.members, banned=(VALIDATOR,)))
    assert court.messages(CASE) == []
    assert {ban.peer for ban in court.convictions(ROSTER, QUORUM).values()} == {TARGET}
    assert AGAIN.envelope in court.said_by(SECOND)


def test_nobody_opens_a_second_case_by_saying_the_same_again() -> None:
    court = court_of_two()
    for step in range(1, limits.CASE_STEPS):
        again = accuse(Accusation(TARGET, Reason.WRONG_GRADIENT, 0), SECOND, step)
        refused(partial(court.accuse, again, ROSTER), Code.DUPLICATE)


@pytest.mark.parametrize(
    ("accusation", "accuser", "code"),
    [
        (Accusation(TARGET, Reason.WRONG_GRADIENT, 0), JUDGE, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.WRONG_GRADIENT, 0), TARGET, Code.BAD_ACCUSATION),
        (Accusation(VALIDATOR, Reason.WRONG_FINDING, 0), TARGET, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.FALSE_ACCUSATION, 0), VALIDATOR, Code.BAD_ACCUSATION),
        (Accusation(TARGET, 7, 0), VALIDATOR, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.WRONG_PROJECTION, 0), VALIDATOR, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.WRONG_PROJECTION, 0, b"proof"), VALIDATOR, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.WRONG_GRADIENT, 0, b"proof"), VALIDATOR, Code.BAD_ACCUSATION),
        (Accusation(TARGET, Reason.WRONG_GRADIENT, 3), VALIDATOR, Code.FUTURE),
    ],
)
def test_accusations_nobody_is_entitled_to(accusation: Accusation, accuser: PeerId, code: Code) -> None:
    court = tribunal()
    refused(lambda: court.accuse(accuse(accusation, accuser), ROSTER), code)
    assert not court.has_cases


def test_the_slot_of_an_accusation_names_it() -> None:
    wrong = seal(SIGNERS[VALIDATOR], RUN, Slot(1, 0, Kind.ACCUSATION, b"x"), DISPUTE.payload)
    refused(lambda: tribunal().accuse(wrong, ROSTER), Code.MALFORMED)


# --- bounds --------------------------------------------------------------------------------------------------


def test_one_accuser_makes_others_compute_a_few_things_and_no_more() -> None:
    steps = range(limits.CASES_PER_ACCUSER_MAX + 1)
    court = tribunal(*(record(step) for step in steps))
    for step in steps:
        said = accuse(Accusation(TARGET, Reason.WRONG_GRADIENT, step), step=step + 1)
        if step < limits.CASES_PER_ACCUSER_MAX:
            court.accuse(said, ROSTER)
            assert len(court.to_judge()) == 1
        else:
            refused(partial(court.accuse, said, ROSTER), Code.QUEUE_FULL)
    other = Audit(PEERS[3], PEERS[4], 0, name("seed"), 7, STEP.facts.state)
    court.remember(record(0, other))
    said = accuse(Accusation(PEERS[4], Reason.WRONG_GRADIENT, 0), PEERS[3])
    court.accuse(said, ROSTER)
    assert len(court.to_judge()) == 1


def test_liars_that_accuse_all_they_can_leave_room_for_the_accusation_of_an_honest_peer() -> None:
    docket = Docket()
    accusation = Accusation(docket.audit.target, Reason.WRONG_GRADIENT, 0)
    (computed,) = docket.accuse(30, accusation)
    assert (computed.seed, computed.finder) == (docket.audit.seed, docket.audit.validator)


def test_work_is_done_again_once_for_all_cases_about_it() -> None:
    docket = Docket()
    assert len(docket.computed) == len({effect.seed for effect in docket.computed}) == 15
    again: list[RecomputeWork] = []
    for effect in docket.computed:
        answer = docket.answer(effect)
        assert docket.court.recomputed(answer) == []
        again += docket.court.to_judge_next(answer)
    assert {effect.seed for effect in again} == {effect.seed for effect in docket.computed}
    assert {sum(map(bool, effect.aggregates)) for effect in again} == {14}
    for effect in again:
        answer = docket.answer(effect)
        assert docket.court.to_judge_next(answer) == []
    assert docket.court.to_judge_again() == []


def test_what_is_said_at_once_is_judged_by_doing_the_work_once() -> None:
    docket = Docket()
    parts = {docket.part_of[accused] for accused in (20, 21, 22)}
    for part in parts:
        accused, subject = docket.step.aggregator(part), docket.step.subject(part)
        said = docket.step.say(accused, Kind.PROJECTION, docket.step.projection(part), 0, subject)
        accusation = objection_to(said, 23)
        docket.court.accuse(docket.says(23, accusation), docket.step.head.roster)
    (effect,) = docket.court.to_judge()  # what fifteen others say is asked for already
    assert {part for part, aggregate in enumerate(effect.aggregates) if aggregate} == parts
    assert docket.court.to_judge() == []


def test_a_line_is_not_judged_by_another_aggregate_of_the_same_part() -> None:
    """Work is done again for one aggregate of each part at a time; the next one has its turn after that."""
    docket = Docket()
    step, part = docket.step, docket.part_of[20]
    other = step.projection(part, aggregate=name("another aggregate"))
    docket.court.remember(docket.court.record(0)._replace(named=None))  # type: ignore[union-attr]
    both = [step.say(20, Kind.PROJECTION, one, 0, step.subject(part)) for one in (step.projection(part), other)]
    (first,) = docket.accuse(21, objection_to(both[0], 21))
    assert docket.accuse(21, objection_to(both[1], 21)) == []
    lines = tuple(RIGHT_LINE if index == part else None for index in range(31))
    commit = docket.court.record(0).commits[step.peers[21]].payload  # type: ignore[union-attr]
    assert isinstance(commit, Commit)
    answer = WorkRecomputed(
        0, first.seed, first.finder, commit.parts, name("finding"), commit.norms, lines, (), first.aggregates
    )
    assert len(docket.court.recomputed(answer)) == 1
    (second,) = docket.court.to_judge_next(answer)
    assert second.aggregates[part] == name("another aggregate")


def test_an_accusation_that_found_no_room_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = watchful_swarm(4, steps=20)
    validator, target, step = run_until_drawn(swarm, "validator")
    with monkeypatch.context() as patch:
        patch.setattr(limits, "CASES_PER_ACCUSER_MAX", 0)
        accusation = Accusation(target.id, Reason.WRONG_GRADIENT, step)
        validator.node.auditor._accuse(accusation, validator.node.chain.head)
        assert validator.node.auditor.tribunal.said_by(validator.id) == []
        validator.node.auditor.effects.clear()  # nobody had room for it
    assert swarm.run_to_end(3000)
    assert_just(swarm, validator, reason=Reason.FALSE_ACCUSATION)


def test_what_is_too_old_is_forgotten() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    court.forget(limits.CASE_STEPS, ROSTER)
    assert (court.has_cases, court.record(0)) == (True, record())
    court.forget(limits.CASE_STEPS + 1, ROSTER)
    assert (court.has_cases, court.record(0)) == (False, None)
    refused(lambda: court.accuse(DISPUTE, ROSTER), Code.FUTURE)


@pytest.mark.parametrize("banned", [VALIDATOR, TARGET])
def test_a_case_is_over_when_one_of_its_two_sides_is_banned(banned: PeerId) -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    court.forget(2, Roster(ROSTER.members, banned=(PEERS[5],)))
    assert court.has_cases
    court.forget(2, Roster(ROSTER.members, banned=(banned,)))
    assert not court.has_cases


def test_a_false_proof_is_no_case_against_the_accused() -> None:
    """The accused may be banned for something else; its false accuser still has to go."""
    court = tribunal()
    court.accuse(FALSE, ROSTER)
    court.forget(2, Roster(ROSTER.members, banned=(TARGET,)))
    assert {ban.peer for ban in court.convictions(ROSTER, QUORUM).values()} == {JUDGE}
    court.forget(2, Roster(ROSTER.members, banned=(JUDGE,)))
    assert not court.has_cases


def test_nobody_is_accused_or_convicted_that_is_banned_already() -> None:
    banned = Roster(ROSTER.members, banned=(TARGET,))
    for said in (DISPUTE, PROVEN):
        refused(partial(tribunal().accuse, said, banned), Code.DUPLICATE)
    court = tribunal()
    court.accuse(PROVEN, ROSTER)
    assert court.convictions(banned, QUORUM) == {}


def test_the_word_of_somebody_banned_makes_nobody_work() -> None:
    banned = Roster(ROSTER.members, banned=(VALIDATOR, JUDGE))
    refused(lambda: tribunal().accuse(DISPUTE, banned), Code.BANNED)
    court = tribunal()
    court.accuse(PROVEN, banned)
    assert {ban.peer for ban in court.convictions(banned, QUORUM).values()} == {TARGET}


# --- what is handed on ---------------------------------------------------------------------------------------


def test_a_case_is_shown_with_all_that_was_said_about_it_and_own_words_are_repeated() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    said = [verdict(CASE, judge, TARGET) for judge in PEERS[2:4]]
    for one in said:
        court.judge(one)
    assert court.messages(CASE) == [DISPUTE.envelope, *(one.envelope for one in said)]
    assert court.messages(name("no such case")) == []
    assert court.said_by(VALIDATOR) == [DISPUTE.envelope]
    assert court.said_by(PEERS[2]) == [said[0].envelope]
    assert court.said_by(PEERS[5]) == []


def test_evidence_holds_what_the_ban_rests_on_by_rising_judge() -> None:
    court = tribunal()
    court.accuse(DISPUTE, ROSTER)
    said = {judge: verdict(CASE, judge, TARGET).envelope for judge in PEERS[2:6]}
    for judge in reversed(PEERS[2:6]):
        court.judge(verdict(CASE, judge, TARGET))
    (ban,) = court.convictions(ROSTER, QUORUM).values()
    certificate = Certificate(msgspec.structs.replace(STEP.header, bans=(ban,)), ((0, 0, bytes(64)),))
    evidence = court.evidence(ban, certificate)
    assert evidence is not None
    assert (evidence.ban, evidence.accusation, evidence.certificate) == (ban, DISPUTE.envelope, certificate)
    assert evidence.verdicts == tuple(said[judge] for judge in sorted(said))
    assert evidence.exhibits == (STEP.transcript.commits[TARGET].envelope,)
    assert court.evidence(msgspec.structs.replace(ban, case=name("unknown")), certificate) is None


def test_who_was_a_member_may_be_accused_for_a_while() -> None:
    court = tribunal()
    left = Roster(ROSTER.members[1:])
    assert court.was_member(PEERS[0], left)
    assert not court.was_member(FakeSigner(77).peer_id, left)
    court.forget(limits.CASE_STEPS + 1, left)
    assert not court.was_member(PEERS[0], left)
    assert court.was_member(PEERS[1], left)
