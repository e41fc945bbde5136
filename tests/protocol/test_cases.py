"""What convicts whom: proofs of a slot signed twice, and the four ways in which a recomputation can end."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.cases import (
    Proof,
    Record,
    case_name,
    guilty_of,
    proof_holds,
    proof_of,
    question_of,
    subject_of,
)
from crowdsurf.protocol.chain import Audit, Head
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, seal, signed_bytes
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Accusation, Kind, Reason, Vote, payload_digest
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import FakeSigner, name, verify_mac

STEP = CompleteStep(4)
RUN = STEP.run_id
LIAR, OTHER = STEP.signers[1], STEP.signers[2]
SLOT = Slot(7, 0, Kind.COMMIT, b"")


def said(text: str, slot: Slot = SLOT, signer: FakeSigner = LIAR, run_id: bytes = RUN) -> Opened:
    """Something signed for a slot; which payload does not matter to a proof."""
    return seal(signer, run_id, slot, Vote(name(text)))


def accusation(proof: bytes, accused: bytes = LIAR.peer_id, step: int = 7) -> Accusation:
    return Accusation(accused, Reason.EQUIVOCATION, step, proof)


def holds(proof: bytes, accused: bytes = LIAR.peer_id, step: int = 7) -> bool:
    return proof_holds(accusation(proof, accused, step), RUN, verify_mac)


def proof_from(first: Opened, second: Opened) -> bytes:
    return proof_of(Equivocation(first.envelope, second.envelope))


GOOD = proof_from(said("one"), said("two"))


def test_two_payloads_for_one_slot_convict_and_which_was_heard_first_does_not_matter() -> None:
    assert holds(GOOD)
    assert proof_from(said("two"), said("one")) == GOOD
    assert len(GOOD) <= limits.PROOF_BYTES_MAX


@pytest.mark.parametrize(
    "slot",
    [
        Slot(2**48, limits.VIEWS_MAX - 1, Kind.AGGREGATE, bytes(64)),
        Slot(0, 3, Kind.VIEW_CHANGE, b""),
        Slot(9, 0, Kind.PREPARE, b""),
    ],
)
def test_any_slot_can_be_signed_twice(slot: Slot) -> None:
    proof = proof_from(said("one", slot), said("two", slot))
    assert len(proof) <= limits.PROOF_BYTES_MAX
    assert holds(proof, step=slot.step)


@pytest.mark.parametrize("kind", [Kind.ACCUSATION, Kind.VERDICT])
def test_two_accusations_or_verdicts_in_one_slot_convict_nobody(kind: Kind) -> None:
    """They are valid signatures of two payloads in one slot, and only refused (R-2.12)."""
    slot = Slot(7, 0, kind, b"s")
    assert not holds(proof_from(said("one", slot), said("two", slot)))


def test_the_same_payload_twice_convicts_nobody() -> None:
    assert not holds(proof_from(said("one"), said("one")))


@pytest.mark.parametrize(
    "slot",
    [
        Slot(8, 0, Kind.COMMIT, b""),
        Slot(7, 1, Kind.COMMIT, b""),
        Slot(7, 0, Kind.REVEAL, b""),
        Slot(7, 0, Kind.COMMIT, b"s"),
    ],
)
def test_payloads_of_two_slots_convict_nobody(slot: Slot) -> None:
    assert not holds(proof_from(said("one"), said("two", slot)))
    assert not holds(proof_from(said("two", slot), said("one")), step=slot.step)


def test_what_was_signed_in_another_run_convicts_nobody() -> None:
    assert not holds(proof_from(said("one"), said("two", run_id=name("another run"))))
    assert not holds(proof_from(said("one", run_id=name("another run")), said("two", run_id=name("another run"))))


def test_what_somebody_else_signed_convicts_nobody() -> None:
    assert not holds(proof_from(said("one"), said("two", signer=OTHER)))
    assert not holds(GOOD, accused=OTHER.peer_id)


def test_a_proof_is_about_the_step_it_says() -> None:
    assert not holds(GOOD, step=8)


def forged(**changes: object) -> bytes:
    return wire.pack(msgspec.structs.replace(wire.unpack(GOOD, Proof, limits.PROOF_BYTES_MAX), **changes))


def test_forged_signatures_and_reordered_or_garbled_proofs_convict_nobody() -> None:
    proof = wire.unpack(GOOD, Proof, limits.PROOF_BYTES_MAX)
    assert holds(forged())
    assert not holds(forged(first=(proof.first[0], bytes(64))))
    assert not holds(forged(second=(proof.second[0], proof.first[1])))
    assert not holds(forged(first=(name("0"), proof.first[1])))
    assert not holds(forged(first=proof.second, second=proof.first))
    assert not holds(forged(first=proof.first, second=proof.first))
    for garbled in (b"", b"\xc1", GOOD[:-1], GOOD + b"\0", bytes(limits.PROOF_BYTES_MAX)):
        assert not holds(garbled)


def test_a_proof_that_is_too_long_is_not_even_read() -> None:
    proof = wire.unpack(GOOD, Proof, limits.PROOF_BYTES_MAX)
    long = wire.pack(msgspec.structs.replace(proof, subject=bytes(limits.PROOF_BYTES_MAX)))
    assert not holds(long)


@given(st.binary(max_size=limits.PROOF_BYTES_MAX))
def test_random_bytes_convict_nobody_and_raise_nothing(proof: bytes) -> None:
    assert not holds(proof)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_every_byte_of_a_proof_counts(position: int, flip: int) -> None:
    broken = bytearray(GOOD)
    broken[position] ^= flip
    assert not holds(bytes(broken))


def test_the_signatures_in_a_proof_are_those_of_the_messages() -> None:
    """So that nobody needs anything but the messages to make a proof, and nothing but the proof to check it."""
    proof = wire.unpack(GOOD, Proof, limits.PROOF_BYTES_MAX)
    for digest, signature in (proof.first, proof.second):
        assert verify_mac(LIAR.peer_id, signed_bytes(1, RUN, SLOT, digest, LIAR.peer_id), signature)
    assert {proof.first[0], proof.second[0]} == {
        payload_digest(said("one").envelope.payload),
        payload_digest(said("two").envelope.payload),
    }


def test_a_slot_of_an_accusation_names_what_is_said_and_not_its_proof() -> None:
    good = accusation(GOOD)
    assert subject_of(good) == subject_of(accusation(b"another proof"))
    others = (
        accusation(GOOD, accused=OTHER.peer_id),
        accusation(GOOD, step=8),
        Accusation(LIAR.peer_id, Reason.WRONG_GRADIENT, 7),
    )
    assert len({subject_of(one) for one in (good, *others)}) == 4
    assert all(len(subject_of(one)) <= 64 for one in (good, *others))


def test_a_false_proof_is_a_case_of_its_own_for_every_sender() -> None:
    """Else the author of a bad proof could give a good one, of somebody else's, a bad name."""
    slot = Slot(7, 0, Kind.ACCUSATION, subject_of(accusation(GOOD)))
    first, second = (seal(signer, RUN, slot, accusation(GOOD)) for signer in (OTHER, STEP.signers[3]))
    assert case_name(first, True) == case_name(second, True) == first.digest
    assert len({first.digest, case_name(first, False), case_name(second, False)}) == 3


# --- class B -------------------------------------------------------------------------------------------------

VALIDATOR, TARGET, BYSTANDER = (STEP.peers[index] for index in (0, 1, 2))
WORK_STEP = STEP.head.step
AUDIT = Audit(VALIDATOR, TARGET, WORK_STEP, name("seed"), 4, STEP.facts.state)
"""Of the work done in step 0, to be done in step 1."""
FOUND = WorkRecomputed(
    WORK_STEP, AUDIT.seed, VALIDATOR, tuple(Digest(name("part", 1, part)) for part in range(4)), name("finding")
)


def work_record(parts: tuple[bytes, ...] = FOUND.parts) -> Record:
    """Step 0, in which the target committed to these parts."""
    commit = msgspec.structs.replace(STEP.commit(1, {}, {}), parts=parts)
    opened = seal(STEP.signers[1], RUN, Slot(0, 0, Kind.COMMIT, b""), commit)
    return Record(STEP.head, STEP.header, (AUDIT,), {TARGET: opened})


def audit_record(finding: bytes = FOUND.finding) -> Record:
    """Step 1, in which the validator committed to this finding."""
    commit = msgspec.structs.replace(STEP.commit(0, {}, {}), parts=(), finding=finding)
    opened = seal(STEP.signers[0], RUN, Slot(1, 0, Kind.COMMIT, b""), commit)
    head = Head(1, name("previous"), STEP.head.roster, name("beacon"), (AUDIT,))
    header = msgspec.structs.replace(STEP.header, step=1)
    return Record(head, header, (), {VALIDATOR: opened})


WRONG_GRADIENT = Accusation(TARGET, Reason.WRONG_GRADIENT, 0)
WRONG_FINDING = Accusation(VALIDATOR, Reason.WRONG_FINDING, 1)


def test_the_accused_is_guilty_of_a_gradient_that_is_not_what_its_work_gives() -> None:
    lied = (name("lie"), *FOUND.parts[1:])
    assert guilty_of(WRONG_GRADIENT, VALIDATOR, work_record(lied), FOUND) == TARGET
    assert guilty_of(WRONG_GRADIENT, VALIDATOR, work_record(FOUND.parts[:3]), FOUND) == TARGET


def test_the_accuser_is_guilty_if_the_gradient_is_right() -> None:
    assert guilty_of(WRONG_GRADIENT, VALIDATOR, work_record(), FOUND) == VALIDATOR


def test_the_accused_is_guilty_of_a_finding_that_is_not_what_the_work_gives() -> None:
    assert guilty_of(WRONG_FINDING, TARGET, audit_record(name("made up")), FOUND) == VALIDATOR


def test_the_accuser_is_guilty_if_the_finding_is_right() -> None:
    assert guilty_of(WRONG_FINDING, TARGET, audit_record(), FOUND) == TARGET


def test_who_admits_to_have_found_nothing_is_guilty_of_nothing() -> None:
    assert guilty_of(WRONG_FINDING, TARGET, audit_record(b""), FOUND) == TARGET


def test_nobody_is_judged_by_what_is_not_known() -> None:
    empty = work_record()._replace(commits={})
    assert guilty_of(WRONG_GRADIENT, VALIDATOR, empty, FOUND) is None
    odd = seal(STEP.signers[1], RUN, Slot(0, 0, Kind.VOTE, b""), Vote(name("x")))
    assert guilty_of(WRONG_GRADIENT, VALIDATOR, work_record()._replace(commits={TARGET: odd}), FOUND) is None


def test_only_the_validator_accuses_its_target_and_only_the_target_its_validator() -> None:
    assert question_of(WRONG_GRADIENT, VALIDATOR, work_record(), RUN, verify_mac).audit == AUDIT
    assert question_of(WRONG_FINDING, TARGET, audit_record(), RUN, verify_mac).audit == AUDIT
    for wrong, accuser, record in (
        (WRONG_GRADIENT, BYSTANDER, work_record()),
        (WRONG_GRADIENT, TARGET, work_record()),
        (WRONG_FINDING, BYSTANDER, audit_record()),
        (Accusation(BYSTANDER, Reason.WRONG_GRADIENT, 0), VALIDATOR, work_record()),
        (Accusation(BYSTANDER, Reason.WRONG_FINDING, 1), TARGET, audit_record()),
        (Accusation(VALIDATOR, Reason.WRONG_GRADIENT, 0), TARGET, work_record()),
        (WRONG_GRADIENT, VALIDATOR, audit_record()),
        (WRONG_FINDING, TARGET, work_record()),
    ):
        refused(lambda w=wrong, a=accuser, r=record: question_of(w, a, r, RUN, verify_mac), Code.BAD_ACCUSATION)  # type: ignore[misc]
