"""What convicts an aggregator: lines of its own that do not add up, or one that its contributor's work contradicts."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.assignment import work_seed
from crowdsurf.protocol.cases import (
    Particular,
    Record,
    case_name,
    check_objection,
    cut_objected_to,
    guilty_of,
    imbalance_of,
    is_as_recomputed,
    is_objection,
    objection_to,
    particular_of,
    proof_holds,
    question_of,
    subject_of,
)
from crowdsurf.protocol.chain import Audit
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.envelope import Opened, Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Ban, Commit, Kind, Projection, Reason, Verdict, bitmap_of
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.tribunal import Tribunal
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import RIGHT, name, verify_mac

STEP = CompleteStep(4, audit=AuditSection(rate=0.25))
RUN, CLIPPING = STEP.run_id, STEP.facts.clipping
LIAR = STEP.aggregator(0)
VICTIM, WITNESS, STRANGER = (index for index in range(4) if index != LIAR)
ODD = ((0.5, 0.0, 0.0, 1.0), *((0.0, 0.0, 0.0, 1.0),) * 3)
"""They do not add up."""


def shown(
    author: int = LIAR, step: int = 0, run_id: bytes = RUN, subject: bytes | None = None, **changes: Any
) -> Opened:
    """A projection of part 0."""
    slot = Slot(step, 0, Kind.PROJECTION, STEP.subject(0) if subject is None else subject)
    return seal(STEP.signers[author], run_id, slot, STEP.projection(0, **changes))


def holds(accusation: Accusation) -> bool:
    return proof_holds(accusation, RUN, verify_mac, CLIPPING)


# --- class A: lines that do not add up -----------------------------------------------------------------------


def test_lines_that_do_not_add_up_convict_who_signed_them() -> None:
    accusation = imbalance_of(shown(lines=ODD))
    assert accusation == Accusation(STEP.peers[LIAR], Reason.WRONG_AGGREGATE, 0, accusation.proof)
    assert holds(accusation)


def test_lines_that_no_rows_give_convict_too() -> None:
    for line in ((float("nan"), 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, -1.0), (0.0, 0.0, 0.0, float("inf"))):
        assert holds(imbalance_of(shown(lines=(line, *ODD[1:]))))
    assert holds(imbalance_of(shown(norm=float("inf"))))


def test_lines_that_add_up_convict_nobody() -> None:
    assert not holds(imbalance_of(shown()))
    # However false they are: that is for those to say whom they are about.
    assert not holds(imbalance_of(shown(lines=((0.5, 0.0, 0.0, 1.0), (-0.5, 0.0, 0.0, 1.0), *ODD[2:]))))


def test_where_aggregates_are_not_checked_no_lines_convict() -> None:
    assert not proof_holds(imbalance_of(shown(lines=ODD)), RUN, verify_mac)


@pytest.mark.parametrize(
    "said",
    [
        shown(lines=ODD, run_id=name("another run")),
        shown(lines=ODD, subject=STEP.subject(1)),
        shown(lines=ODD, subject=b""),
        shown(lines=ODD[:3]),
        STEP.aggregate(0),
    ],
    ids=["another run", "another part's slot", "no slot", "a line is missing", "no projection"],
)
def test_what_is_no_projection_of_this_run_convicts_nobody(said: Opened) -> None:
    """Nobody keeps such a message (`bad_projection`), so nobody can be asked to judge it."""
    assert not holds(imbalance_of(said))


def test_the_proof_is_against_its_author_and_about_its_step() -> None:
    good = imbalance_of(shown(lines=ODD))
    assert not holds(msgspec.structs.replace(good, accused=STEP.peers[VICTIM]))
    assert not holds(msgspec.structs.replace(good, step=1))
    envelope = msgspec.structs.replace(shown(lines=ODD).envelope, signature=bytes(64))
    assert not holds(msgspec.structs.replace(good, proof=wire.pack(envelope)))
    stolen = msgspec.structs.replace(shown(lines=ODD).envelope, sender=STEP.peers[VICTIM])
    assert not holds(Accusation(STEP.peers[VICTIM], Reason.WRONG_AGGREGATE, 0, wire.pack(stolen)))


PROOF = imbalance_of(shown(lines=ODD)).proof


@given(st.integers(0, len(PROOF) - 1), st.integers(1, 255))
def test_every_byte_of_the_proof_counts(position: int, flip: int) -> None:
    broken = bytearray(PROOF)
    broken[position] ^= flip
    assert not holds(Accusation(STEP.peers[LIAR], Reason.WRONG_AGGREGATE, 0, bytes(broken)))


@given(st.binary(max_size=limits.PROOF_BYTES_MAX))
def test_random_bytes_convict_nobody_and_raise_nothing(proof: bytes) -> None:
    assert not holds(Accusation(STEP.peers[LIAR], Reason.WRONG_AGGREGATE, 0, proof))
    accusation = Accusation(STEP.peers[LIAR], Reason.WRONG_PROJECTION, 0, proof)
    assert cut_objected_to(accusation) == b""
    refused(lambda: particular_of(accusation, RUN, verify_mac), Code.BAD_ACCUSATION)


# --- class B: a line that is not so --------------------------------------------------------------------------

LIE: dict[str, Any] = {"lines": ((0.5, 0.0, 0.0, 1.0), (-0.5, 0.0, 0.0, 1.0), *ODD[2:])}
"""About members 0 and 1; it adds up."""
SAID = shown(**LIE)
OBJECTION = objection_to(SAID, VICTIM)
AUDIT = Audit(
    STEP.peers[WITNESS], STEP.peers[VICTIM], 0, work_seed(STEP.head.beacon, STEP.peers[VICTIM]), 4, STEP.facts.state
)


def record(**changes: Any) -> Record:
    """Step 0, in which the witness is drawn to validate the victim."""
    commits = {peer: STEP.transcript.commits[peer] for peer in STEP.peers}
    return Record(STEP.head, STEP.header, (AUDIT,), commits)._replace(**changes)


def test_what_is_wrong_and_whose_line_it_is() -> None:
    assert Accusation(STEP.peers[LIAR], Reason.WRONG_PROJECTION, 0, OBJECTION.proof) == OBJECTION
    assert particular_of(OBJECTION, RUN, verify_mac) == (VICTIM, SAID.payload)
    assert cut_objected_to(OBJECTION) == STEP.cut_name


@pytest.mark.parametrize(
    "accusation",
    [
        msgspec.structs.replace(OBJECTION, proof=b""),
        msgspec.structs.replace(OBJECTION, accused=STEP.peers[VICTIM]),
        msgspec.structs.replace(OBJECTION, step=1),
        objection_to(shown(run_id=name("another run")), VICTIM),
        objection_to(shown(subject=STEP.subject(1)), VICTIM),
        objection_to(shown(lines=ODD[:3]), VICTIM),
        objection_to(STEP.aggregate(0), VICTIM),
    ],
    ids=[
        "nothing",
        "another accused",
        "another step",
        "another run",
        "another slot",
        "a line missing",
        "no projection",
    ],
)
def test_an_accusation_holds_what_the_accused_has_signed(accusation: Accusation) -> None:
    refused(lambda: particular_of(accusation, RUN, verify_mac), Code.BAD_ACCUSATION)


def test_a_forged_projection_is_nobodys() -> None:
    forged = msgspec.structs.replace(SAID.envelope, signature=bytes(64))
    proof = wire.pack(Particular(VICTIM, forged))
    refused(
        lambda: particular_of(msgspec.structs.replace(OBJECTION, proof=proof), RUN, verify_mac), Code.BAD_ACCUSATION
    )


@pytest.mark.parametrize("accuser", [VICTIM, WITNESS])
def test_the_member_itself_and_its_validator_may_question_a_line(accuser: int) -> None:
    question = question_of(OBJECTION, STEP.peers[accuser], record(), RUN, verify_mac)
    assert question.audit == AUDIT._replace(validator=STEP.peers[accuser])
    assert (question.member, question.projection) == (VICTIM, SAID.payload)


def test_nobody_else_may() -> None:
    for accuser, facts in (
        (STRANGER, record()),
        (LIAR, record()),
        (WITNESS, record(audits=())),
        (WITNESS, record(audits=(AUDIT._replace(target=STEP.peers[STRANGER]),))),
    ):
        ask = partial(question_of, OBJECTION, STEP.peers[accuser], facts, RUN, verify_mac)
        refused(ask, Code.BAD_ACCUSATION)


def test_only_what_is_certified_can_be_questioned() -> None:
    """The directions are drawn from the beacon in the header; without it nobody could work the line out."""
    void = msgspec.structs.replace(STEP.header, nonces=(b"", *STEP.header.nonces[1:]))
    other = msgspec.structs.replace(STEP.header, cut=name("another cut"))
    for header in (void, other):
        ask = partial(question_of, OBJECTION, STEP.peers[VICTIM], record(header=header), RUN, verify_mac)
        refused(ask, Code.BAD_ACCUSATION)


def test_a_line_that_is_not_there_cannot_be_questioned() -> None:
    without = shown(included=bitmap_of([i for i in range(4) if i != VICTIM], 4), lines=ODD[1:])
    nobody = objection_to(SAID, 200)
    for accusation in (objection_to(without, VICTIM), nobody):
        ask = partial(question_of, accusation, STEP.peers[VICTIM], record(), RUN, verify_mac)
        refused(ask, Code.BAD_ACCUSATION)


FOUND = WorkRecomputed(
    0,
    AUDIT.seed,
    STEP.peers[VICTIM],
    tuple(Digest(name("part", VICTIM, part)) for part in range(4)),
    name("finding"),
    (1.0,) * 4,
    (RIGHT, None, None, None),
    (),
    STEP.header.parts,
)


def guilty(said: Opened, found: WorkRecomputed = FOUND, facts: Record | None = None, member: int = VICTIM) -> object:
    """The index of who is guilty when the victim accuses; None if that cannot be told."""
    accusation, accuser = objection_to(said, member), STEP.peers[VICTIM]
    question = question_of(accusation, accuser, facts or record(), RUN, verify_mac)
    peer = guilty_of(accusation, accuser, facts or record(), found, question, CLIPPING)
    return None if peer is None else STEP.peers.index(peer)


def lie_about(member: int) -> Opened:
    others = next(index for index in range(4) if index != member)
    lines = [[0.0, 0.0, 0.0, 1.0] for _ in range(4)]
    lines[member][1], lines[others][1] = 0.25, -0.25
    return shown(lines=tuple(map(tuple, lines)))


def test_the_aggregator_is_guilty_of_a_line_that_is_not_so_and_the_accuser_of_nothing() -> None:
    assert guilty(lie_about(VICTIM)) == LIAR


def test_the_accuser_is_guilty_if_the_line_is_so() -> None:
    assert guilty(shown()) == VICTIM


def test_whoever_committed_to_something_else_is_guilty_itself() -> None:
    """A line about forged parts cannot be expected to fit the work."""
    forged = msgspec.structs.replace(STEP.commit(VICTIM, {}, {}), parts=(name("forged"), *FOUND.parts[1:]))
    said = seal(STEP.signers[VICTIM], RUN, Slot(0, 0, Kind.COMMIT, b""), forged)
    facts = record(commits={**record().commits, STEP.peers[VICTIM]: said})
    assert guilty(lie_about(VICTIM), facts=facts) == VICTIM


def test_nobody_is_judged_where_something_is_not_known() -> None:
    for lines in ((None, RIGHT, RIGHT, RIGHT), ()):
        assert guilty(lie_about(VICTIM), dataclasses.replace(FOUND, lines=lines)) is None
    assert guilty(lie_about(VICTIM), facts=record(commits={})) is None
    accusation, accuser = objection_to(SAID, VICTIM), STEP.peers[VICTIM]
    question = question_of(accusation, accuser, record(), RUN, verify_mac)
    assert guilty_of(accusation, accuser, record(), FOUND, question) is None  # a run without checks


def test_a_line_is_compared_with_the_work_and_not_with_what_others_say() -> None:
    own = Line((0.25, 0.0, 0.0), 1.0)
    found = dataclasses.replace(FOUND, lines=(own, None, None, None))
    assert guilty(shown(), found) == LIAR
    lines = [[0.0, 0.0, 0.0, 1.0] for _ in range(4)]
    lines[VICTIM][0], lines[LIAR][0] = 0.25, -0.25
    assert guilty(shown(lines=tuple(map(tuple, lines))), found) == VICTIM


# --- lengths -------------------------------------------------------------------------------------------------


def test_a_length_that_is_not_that_of_the_work_is_a_wrong_gradient() -> None:
    commit = STEP.commit(VICTIM, {}, {})
    assert isinstance(commit, Commit)
    assert is_as_recomputed(commit, FOUND)
    assert is_as_recomputed(msgspec.structs.replace(commit, norms=(1.0 + 1e-12, 1.0, 1.0, 1.0)), FOUND)
    for norm in (1.0 + 1e-6, 0.0, 1e300):
        assert not is_as_recomputed(msgspec.structs.replace(commit, norms=(norm, 1.0, 1.0, 1.0)), FOUND)


# --- objections while the step is under way ------------------------------------------------------------------


def spoken(author: int, accusation: Accusation, step: int = 0, subject: bytes | None = None) -> Opened:
    slot = Slot(step, 0, Kind.ACCUSATION, subject_of(accusation) if subject is None else subject)
    return seal(STEP.signers[author], RUN, slot, accusation)


def test_an_objection_is_about_the_step_it_is_said_in() -> None:
    assert is_objection(spoken(VICTIM, OBJECTION))
    assert not is_objection(spoken(VICTIM, OBJECTION, step=1))
    assert not is_objection(spoken(VICTIM, imbalance_of(SAID)))
    assert not is_objection(SAID)


def test_only_the_member_itself_objects_to_its_line() -> None:
    check = partial(check_objection, roster=STEP.head.roster, run_id=RUN, verify=verify_mac)
    check(spoken(VICTIM, OBJECTION))
    refused(lambda: check(spoken(WITNESS, OBJECTION)), Code.BAD_ACCUSATION)
    without = shown(included=bitmap_of([i for i in range(4) if i != VICTIM], 4), lines=ODD[1:])
    refused(lambda: check(spoken(VICTIM, objection_to(without, VICTIM))), Code.BAD_ACCUSATION)
    refused(lambda: check(spoken(VICTIM, OBJECTION, subject=b"x")), Code.MALFORMED)
    forged = msgspec.structs.replace(OBJECTION, proof=wire.pack(Particular(VICTIM, STEP.aggregate(0).envelope)))
    refused(lambda: check(spoken(VICTIM, forged)), Code.BAD_ACCUSATION)
    assert isinstance(SAID.payload, Projection)


# --- in court ------------------------------------------------------------------------------------------------


def court() -> Tribunal:
    tribunal = Tribunal(RUN, verify_mac, CLIPPING)
    tribunal.remember(record())
    return tribunal


def test_an_imbalance_is_a_ban_at_once() -> None:
    tribunal, said = court(), spoken(VICTIM, imbalance_of(shown(lines=ODD)))
    tribunal.accuse(said, STEP.head.roster)
    assert tribunal.to_judge() == []
    ban = Ban(STEP.peers[LIAR], Reason.WRONG_AGGREGATE, 0, said.digest)
    assert tribunal.convictions(STEP.head.roster, 3) == {said.digest: ban}


def test_whoever_calls_honest_lines_an_imbalance_is_banned() -> None:
    tribunal = court()
    tribunal.accuse(spoken(VICTIM, imbalance_of(shown())), STEP.head.roster)
    (ban,) = tribunal.convictions(STEP.head.roster, 3).values()
    assert (ban.peer, ban.reason) == (STEP.peers[VICTIM], Reason.FALSE_ACCUSATION)


def test_a_line_is_judged_by_working_it_out_from_the_work_and_the_aggregate() -> None:
    tribunal, said = court(), spoken(VICTIM, objection_to(lie_about(VICTIM), VICTIM), step=1)
    aggregates = (name("aggregate", 0), b"", b"", b"")
    asked = RecomputeWork(0, AUDIT.seed, 4, STEP.facts.state, STEP.peers[VICTIM], aggregates, STEP.header.beacon)
    tribunal.accuse(said, STEP.head.roster)
    assert tribunal.to_judge() == [asked]
    assert tribunal.convictions(STEP.head.roster, 3) == {}
    assert tribunal.recomputed(dataclasses.replace(FOUND, lines=())) == []  # it remembers no aggregate: no verdict
    assert tribunal.recomputed(FOUND) == [Verdict(case_name(said, False), STEP.peers[LIAR])]


def test_an_accusation_of_a_wrong_projection_needs_one() -> None:
    bare = Accusation(STEP.peers[LIAR], Reason.WRONG_PROJECTION, 0)
    refused(lambda: court().accuse(spoken(VICTIM, bare), STEP.head.roster), Code.BAD_ACCUSATION)


def test_the_evidence_of_a_wrong_projection_is_in_its_accusation() -> None:
    tribunal, said = court(), spoken(VICTIM, objection_to(lie_about(VICTIM), VICTIM), step=1)
    case = case_name(said, False)
    tribunal.accuse(said, STEP.head.roster)
    for judge in range(4):
        verdict = Verdict(case, STEP.peers[LIAR])
        tribunal.judge(seal(STEP.signers[judge], RUN, Slot(1, 0, Kind.VERDICT, case), verdict))
    (ban,) = tribunal.convictions(STEP.head.roster, 3).values()
    assert ban == Ban(STEP.peers[LIAR], Reason.WRONG_PROJECTION, 0, case)
    evidence = tribunal.evidence(ban, STEP.certificate(header=msgspec.structs.replace(STEP.header, bans=(ban,))))
    assert evidence is not None
    assert (evidence.accusation, len(evidence.verdicts), evidence.exhibits) == (said.envelope, 4, ())
