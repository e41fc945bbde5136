"""Evidence: what an honest peer keeps convinces anybody, and nothing else convicts anybody of anything."""

from __future__ import annotations

import functools
import itertools
import random
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.cases import case_name, subject_of
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.envelope import Slot, open_envelope, seal
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.evidence import (
    CHAPTER_STEPS,
    FILE_BYTES_MAX,
    Evidence,
    EvidenceFile,
    pack_evidence,
    unpack_evidence,
)
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import run_id_of
from crowdsurf.protocol.messages import (
    Accusation,
    Ban,
    Certificate,
    Commit,
    Envelope,
    Kind,
    Projection,
    Reason,
    Verdict,
    payload_digest,
)
from crowdsurf.protocol.recheck import Judgement, recheck, recheck_file
from tests.protocol.builders import refused
from tests.protocol.trials import ATTACKS, Trial, trial

replace = msgspec.structs.replace


def check(case: Trial, data: bytes) -> Judgement:
    """What a stranger does with a file."""
    return recheck_file(unpack_evidence(data), case.manifest, case.registry.verify)


def changed(case: Trial, evidence: Evidence, **changes: object) -> Callable[[], Judgement]:
    """Check evidence that was changed in some fields."""
    return lambda: check(case, case.file(replace(evidence, **changes)))


def a_case(attack: str = "sign_flip") -> tuple[Trial, Evidence]:
    found = trial(attack)
    return found, found.kept[0]


# --- what holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_honest_peers_kept_convinces_a_stranger(attack: str) -> None:
    case = trial(attack)
    for evidence in (*case.kept, *case.kept_by_others):
        found = check(case, case.file(evidence))
        assert found.ban.peer not in case.honest
        assert found.ban.reason == ATTACKS[attack]
        assert found.steps == found.banned_in + 1
        assert found.votes >= found.quorum > found.members // 2
        assert found.signatures <= 3 + len(evidence.verdicts) + found.steps * len(case.manifest.founders)
        assert case.certificates[found.banned_in].header == evidence.certificate.header


@pytest.mark.parametrize("attack", ["sign_flip", "lazy_validator"])
def test_class_b_rests_on_a_quorum_that_did_the_work_again(attack: str) -> None:
    case = trial(attack)
    for evidence in case.kept:
        found = check(case, case.file(evidence))
        assert found.audit is not None
        assert found.commit is not None
        assert found.verdicts >= found.quorum
        assert {found.audit.validator, found.audit.target} == {found.accuser, found.accused}
        assert bool(found.commit.finding) == (attack == "lazy_validator")


def test_class_a_convicts_by_the_bytes_alone() -> None:
    case, evidence = a_case("equivocate")
    found = check(case, case.file(evidence))
    assert (found.audit, found.commit, found.verdicts) == (None, None, 0)
    assert found.accused == found.ban.peer


def test_lines_that_do_not_add_up_convict_by_the_bytes_alone() -> None:
    case, evidence = a_case("wrong_aggregate")
    found = check(case, case.file(evidence))
    assert (found.audit, found.commit, found.verdicts) == (None, None, 0)
    assert found.charge == Reason.WRONG_AGGREGATE
    assert found.accused == found.ban.peer


def test_a_line_that_is_not_so_rests_on_a_quorum_that_did_the_contributors_work_again() -> None:
    case = trial("wrong_projection")
    for evidence in case.kept:
        found = check(case, case.file(evidence))
        assert found.audit is not None
        assert found.audit.target in case.honest  # the work of whom the line is about
        assert found.accuser in {found.audit.target, found.audit.validator}
        assert found.accused == found.ban.peer != found.audit.target
        assert found.verdicts >= found.quorum
        assert found.commit is None
        few = evidence.verdicts[: found.quorum - 1]
        refused(changed(case, evidence, verdicts=few), Code.BAD_ACCUSATION)


def test_who_accused_falsely_is_named_and_not_who_was_accused() -> None:
    case = trial("false_accusation", 3)
    for evidence in case.kept:
        found = check(case, case.file(evidence))
        assert found.ban.peer == found.accuser
        assert found.accused in case.honest
    assert {check(case, case.file(evidence)).audit is None for evidence in case.kept} == {True, False}


def test_surplus_can_be_left_out() -> None:
    """Less evidence is still evidence: the verdicts of a quorum are enough, and nothing needs the commit."""
    case, evidence = a_case()
    found = changed(case, evidence, exhibits=())()
    assert found.commit is None
    assert changed(case, evidence, verdicts=evidence.verdicts[: found.quorum])().verdicts == found.quorum


# --- what does not ---------------------------------------------------------------------------------------------


def test_replayed_in_another_run() -> None:
    case, evidence = a_case()
    other = trial("sign_flip", seed=2)
    refused(lambda: check(other, case.file(evidence)), Code.WRONG_RUN)
    refused(lambda: check(other, other.file(evidence)), Code.WRONG_RUN)
    refused(lambda: check(other, pack_evidence(run_id_of(other.manifest), evidence, case.past)), Code.WRONG_RUN)


def test_forged_signatures() -> None:
    case, evidence = a_case()
    forged = bytes(64)
    refused(changed(case, evidence, accusation=replace(evidence.accusation, signature=forged)), Code.BAD_SIGNATURE)
    verdicts = (replace(evidence.verdicts[0], signature=forged), *evidence.verdicts[1:])
    refused(changed(case, evidence, verdicts=verdicts), Code.BAD_SIGNATURE)
    exhibits = (replace(evidence.exhibits[0], signature=forged),)
    refused(changed(case, evidence, exhibits=exhibits), Code.BAD_SIGNATURE)
    (index, view, _), *votes = evidence.certificate.votes
    certificate = Certificate(evidence.certificate.header, ((index, view, forged), *votes))
    refused(changed(case, evidence, certificate=certificate), Code.BAD_CERTIFICATE)


def test_contradictory() -> None:
    case = trial("sign_flip")
    other, evidence = sorted(case.kept, key=lambda one: one.certificate.header.step)
    honest = min(case.honest)
    doubled = (*evidence.verdicts, evidence.verdicts[0])
    refused(changed(case, evidence, verdicts=doubled), Code.DUPLICATE)
    refused(changed(case, evidence, ban=replace(evidence.ban, peer=honest)), Code.BAD_ACCUSATION)
    refused(changed(case, evidence, ban=replace(evidence.ban, reason=1)), Code.BAD_ACCUSATION)
    refused(changed(case, evidence, accusation=evidence.verdicts[0]), Code.MALFORMED)
    refused(changed(case, evidence, verdicts=(evidence.accusation,)), Code.MALFORMED)
    refused(changed(case, evidence, exhibits=(evidence.accusation,)), Code.MALFORMED)
    refused(changed(case, evidence, exhibits=evidence.exhibits * 2), Code.MALFORMED)
    refused(changed(case, evidence, accusation=other.accusation), Code.FUTURE)  # its verdicts are about another case
    refused(changed(case, evidence, accusation=other.accusation, verdicts=other.verdicts), Code.BAD_ACCUSATION)
    refused(changed(case, evidence, exhibits=other.exhibits), Code.BAD_COMMIT)
    proven_case, proven = a_case("equivocate")
    refused(changed(proven_case, proven, exhibits=(proven.accusation,)), Code.MALFORMED)


def test_too_few_verdicts() -> None:
    case, evidence = a_case()
    quorum = check(case, case.file(evidence)).quorum
    few = refused(changed(case, evidence, verdicts=evidence.verdicts[: quorum - 1]), Code.BAD_ACCUSATION)
    assert few.endswith(f": {quorum - 1} members say that it is guilty, {quorum} must")
    refused(changed(case, evidence, verdicts=()), Code.BAD_ACCUSATION)


def test_a_past_with_holes() -> None:
    case, evidence = a_case()
    run_id, past = run_id_of(case.manifest), case.past
    refused(lambda: check(case, pack_evidence(run_id, evidence, past[:-17])), Code.BAD_CERTIFICATE)
    file = unpack_evidence(case.file(evidence))
    (chapter,) = file.past
    refused(lambda: check(case, wire.pack(replace(file, past=()))), Code.BAD_CERTIFICATE)
    twice = (chapter[0], chapter[0], *chapter[2:])
    refused(lambda: check(case, wire.pack(replace(file, past=(twice,)))), Code.STALE)
    swapped = (chapter[1], chapter[0], *chapter[2:])
    refused(lambda: check(case, wire.pack(replace(file, past=(swapped,)))), Code.FUTURE)
    garbage = (b"\xc0", *chapter[1:])
    refused(lambda: check(case, wire.pack(replace(file, past=(garbage,)))), Code.MALFORMED)
    assert recheck(evidence, case.certificates, case.manifest, case.registry.verify).ban == evidence.ban


def test_another_commit_than_the_one_that_was_judged() -> None:
    case, evidence = a_case()
    (exhibit,) = evidence.exhibits
    commit = wire.unpack(exhibit.payload, Commit, limits.ENVELOPE_BYTES_MAX)
    signer, slot = case.signers[PeerId(exhibit.sender)], Slot(exhibit.step, 0, Kind.COMMIT, b"")
    for change in ({"state": bytes(32)}, {"previous": bytes(32)}, {"nonce_digest": bytes(32)}):
        other = seal(signer, exhibit.run_id, slot, replace(commit, **change)).envelope
        refused(changed(case, evidence, exhibits=(other,)), Code.BAD_COMMIT)
    later = seal(signer, exhibit.run_id, slot._replace(step=slot.step + 1), commit).envelope
    refused(changed(case, evidence, exhibits=(later,)), Code.BAD_COMMIT)


# --- a quorum's word alone is not enough -----------------------------------------------------------------------


def banned_by_all(case: Trial, evidence: Evidence, ban: Ban, **changes: object) -> Callable[[], Judgement]:
    """Evidence in which every member signed a header that bans somebody; what else is shown is up to the caller."""
    step = evidence.certificate.header.step
    header = case.banning(step, ban)
    votes = tuple(case.vote(header, peer) for peer in case.heads[step].roster.peers)
    return changed(case, evidence, ban=ban, certificate=Certificate(header, votes), **changes)


def said(case: Trial, sender: bytes, step: int, accusation: Accusation) -> Envelope:
    slot = Slot(step, 0, Kind.ACCUSATION, subject_of(accusation))
    return seal(case.signers[PeerId(sender)], run_id_of(case.manifest), slot, accusation).envelope


def case_of(accusation: Envelope) -> Digest:
    """The name of a case that has to be judged."""
    return case_name(open_envelope(accusation, accusation.run_id, lambda *_: True), False)


def judged(case: Trial, step: int, verdict: Verdict) -> tuple[Envelope, ...]:
    slot = Slot(step, 0, Kind.VERDICT, verdict.case)
    run_id = run_id_of(case.manifest)
    return tuple(seal(signer, run_id, slot, verdict).envelope for signer in case.signers.values())


def test_a_peer_cannot_be_banned_on_the_word_of_one_that_was_not_drawn() -> None:
    case, evidence = a_case()
    found = check(case, case.file(evidence))
    assert found.audit is not None
    step = found.audit.step
    chain = Chain(case.manifest)
    for certificate in case.certificates[: step + 1]:
        chain.extend(certificate, case.registry.verify)
    drawn = {(audit.validator, audit.target) for audit in chain.head.audits}
    pairs = [pair for pair in itertools.permutations(sorted(case.honest), 2) if pair not in drawn]
    assert pairs
    for accuser, accused in pairs:
        accusation = Accusation(accused, Reason.WRONG_GRADIENT, step)
        envelope = said(case, accuser, step + 1, accusation)
        name = case_of(envelope)
        ban = Ban(accused, Reason.WRONG_GRADIENT, step, name)
        verdicts = judged(case, step + 1, Verdict(name, accused))
        check_it = banned_by_all(case, evidence, ban, accusation=envelope, verdicts=verdicts, exhibits=())
        refused(check_it, Code.BAD_ACCUSATION)


def test_a_peer_cannot_be_banned_for_a_proof_that_proves_nothing() -> None:
    case, evidence = a_case("equivocate")
    accusation = wire.unpack(evidence.accusation.payload, Accusation, limits.ENVELOPE_BYTES_MAX)
    accuser, accused = evidence.accusation.sender, min(case.honest - {PeerId(evidence.accusation.sender)})
    envelope = said(case, accuser, accusation.step, replace(accusation, accused=accused))
    ban = Ban(accused, Reason.EQUIVOCATION, accusation.step, payload_digest(envelope.payload))
    refused(banned_by_all(case, evidence, ban, accusation=envelope), Code.BAD_ACCUSATION)


def test_a_peer_cannot_be_banned_for_lines_that_somebody_else_signed_or_that_add_up() -> None:
    case, evidence = a_case("wrong_aggregate")
    accusation = wire.unpack(evidence.accusation.payload, Accusation, limits.ENVELOPE_BYTES_MAX)
    accuser = evidence.accusation.sender
    shown = wire.unpack(accusation.proof, Envelope, limits.PROOF_BYTES_MAX)
    lines = wire.unpack(shown.payload, Projection, limits.ENVELOPE_BYTES_MAX)
    even = replace(lines, lines=tuple((0.0, 0.0, 0.0, line[-1]) for line in lines.lines))
    slot = Slot(shown.step, shown.view, shown.kind, shown.subject)
    balanced = seal(case.signers[PeerId(shown.sender)], shown.run_id, slot, even).envelope
    honest = min(case.honest - {PeerId(accuser)})
    for accused, proof in ((honest, accusation.proof), (accusation.accused, wire.pack(balanced))):
        envelope = said(case, accuser, evidence.accusation.step, replace(accusation, accused=accused, proof=proof))
        ban = Ban(accused, Reason.WRONG_AGGREGATE, accusation.step, payload_digest(envelope.payload))
        refused(banned_by_all(case, evidence, ban, accusation=envelope), Code.BAD_ACCUSATION)


def test_a_peer_cannot_be_banned_for_a_line_on_the_word_of_one_that_cannot_know_it() -> None:
    case, evidence = a_case("wrong_projection")
    found = check(case, case.file(evidence))
    assert found.audit is not None
    accusation = wire.unpack(evidence.accusation.payload, Accusation, limits.ENVELOPE_BYTES_MAX)
    drawn = {audit.validator for head in case.heads for audit in head.audits if audit.step == accusation.step}
    for accuser in sorted(case.honest - drawn - {found.audit.target}):
        envelope = said(case, accuser, evidence.accusation.step, accusation)
        ban = replace(evidence.ban, case=case_of(envelope))
        verdicts = judged(case, envelope.step, Verdict(ban.case, ban.peer))
        check_it = banned_by_all(case, evidence, ban, accusation=envelope, verdicts=verdicts)
        refused(check_it, Code.BAD_ACCUSATION)
    assert len(case.honest - drawn) > 1


def test_a_peer_cannot_be_banned_for_what_others_are_found_guilty_of() -> None:
    """The verdicts convict the accused; a header that bans the accuser on them does not hold."""
    case, evidence = a_case()
    ban = Ban(evidence.accusation.sender, Reason.FALSE_ACCUSATION, evidence.ban.step, evidence.ban.case)
    refused(banned_by_all(case, evidence, ban), Code.BAD_ACCUSATION)
    assert banned_by_all(case, evidence, evidence.ban)().ban == evidence.ban


def in_turn(case: Trial) -> bool:
    """Whether one liar was banned after the other."""
    first, second = (evidence.certificate.header.step for evidence in case.kept)
    return first < second


def test_former_members_do_not_count() -> None:
    """The second liar was banned after the first; a verdict of the first would make its quorum one larger."""
    case = next(case for case in map(functools.partial(trial, "lazy_validator"), range(1, 9)) if in_turn(case))
    first, second = (check(case, case.file(evidence)) for evidence in case.kept)
    evidence, gone = case.kept[1], PeerId(first.ban.peer)
    slot = Slot(second.banned_in, 0, Kind.VERDICT, evidence.ban.case)
    late = seal(case.signers[gone], run_id_of(case.manifest), slot, Verdict(evidence.ban.case, evidence.ban.peer))
    others = tuple(verdict for verdict in evidence.verdicts if verdict.sender != gone)
    short = others[: second.quorum - 1]
    refused(changed(case, evidence, verdicts=(*short, late.envelope)), Code.BAD_ACCUSATION)


# --- the file --------------------------------------------------------------------------------------------------


def test_oversized() -> None:
    refused(lambda: unpack_evidence(bytes(FILE_BYTES_MAX + 1)), Code.OVERSIZED)


def test_not_an_evidence_file() -> None:
    case, evidence = a_case()
    for data in (b"", b"\x00", b"{}", case.past[0], b"\x94" * 1000):
        refused(lambda data=data: unpack_evidence(data), Code.MALFORMED)  # type: ignore[misc]
    assert b"crowdsurf evidence 1" in case.file(evidence)[:32]
    refused(lambda: unpack_evidence(case.file(evidence) + b"\x00"), Code.MALFORMED)


@pytest.mark.parametrize("where", ["instead of the file", "in its past"])
def test_a_forged_file_takes_little_memory(where: str) -> None:
    """A million empty arrays, one byte each: as plain values they would take 72 MiB."""
    case, evidence = a_case()
    thousand = b"\xdc\x04\x00"
    data = thousand + (thousand + b"\x90" * 1024) * 1024
    if where == "in its past":
        whole = pack_evidence(run_id_of(case.manifest), evidence, ())
        assert whole.endswith(b"\x90")  # no chapters
        data = whole[:-1] + data
    tracemalloc.start()
    try:
        refused(lambda: unpack_evidence(data), Code.MALFORMED)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(data)


def test_a_long_past_is_cut_into_chapters_and_one_too_long_is_left_out() -> None:
    case, evidence = a_case()
    header = replace(evidence.certificate.header, step=2 * CHAPTER_STEPS + 1)
    evidence = replace(evidence, certificate=replace(evidence.certificate, header=header))
    run_id = run_id_of(case.manifest)
    numbers = (number.to_bytes(4, "big") for number in itertools.count())
    file = unpack_evidence(pack_evidence(run_id, evidence, numbers))
    assert file.past_steps == header.step
    assert not file.lacks_past
    assert list(map(len, file.past)) == [CHAPTER_STEPS, CHAPTER_STEPS, 1]
    assert [int.from_bytes(data, "big") for chapter in file.past for data in chapter] == list(range(header.step))
    long = pack_evidence(run_id, evidence, itertools.repeat(bytes(FILE_BYTES_MAX // header.step)))
    assert unpack_evidence(long).past == ()
    just = pack_evidence(run_id, evidence, itertools.repeat(bytes(FILE_BYTES_MAX // header.step - 32)))
    assert unpack_evidence(just).past_steps == header.step
    for bytes_max in (4096, 0, -1):
        file = unpack_evidence(pack_evidence(run_id, evidence, itertools.repeat(b"past"), bytes_max))
        assert (file.past, file.lacks_past) == ((), True)


# --- mutations -------------------------------------------------------------------------------------------------


def is_refused(case: Trial, data: bytes) -> bool:
    """Whether a file is refused; any other error than a refusal fails the test."""
    try:
        check(case, data)
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_byte_counts(attack: str) -> None:
    """A flipped bit, wherever it is, is noticed: everything in a file is signed or follows from what is signed."""
    case, evidence = a_case(attack)
    data = case.file(evidence)
    for position in range(ATTACKS[attack], len(data), 11):
        mutated = bytearray(data)
        mutated[position] ^= 1 << position % 8
        assert is_refused(case, bytes(mutated)), position
    for length in range(0, len(data), 101):
        assert is_refused(case, data[:length]), length


def mutated(case: Trial, evidence: Evidence, chance: random.Random) -> EvidenceFile:
    """A file put together by the liars from everything that was ever said, and from what they sign for it."""
    kept = [*case.kept, *case.kept_by_others, *trial("sign_flip", seed=2).kept]
    said_by_all = [e for one in kept for e in (one.accusation, *one.verdicts, *one.exhibits)]
    honest = chance.choice(sorted(case.honest))
    liar = case.signers[chance.choice(sorted(set(case.signers) - case.honest))]
    run_id = run_id_of(case.manifest)
    past = case.past

    def resigned(envelope: Envelope) -> Envelope:
        slot = Slot(envelope.step, envelope.view, envelope.kind, envelope.subject)
        kinds: dict[int, type[Accusation | Verdict | Commit]] = {17: Accusation, 18: Verdict, 1: Commit}
        payload = wire.unpack(envelope.payload, kinds[envelope.kind], 1 << 16)
        if isinstance(payload, Accusation) and chance.random() < 0.7:
            payload = replace(payload, accused=honest)
        elif isinstance(payload, Verdict) and chance.random() < 0.7:
            payload = replace(payload, guilty=honest)
        if isinstance(payload, Accusation):
            slot = slot._replace(subject=subject_of(payload))
        return seal(liar, run_id, slot, payload).envelope

    def changed_certificate(certificate: Certificate) -> Certificate:
        step = certificate.header.step
        members = case.heads[step].roster.indexes
        banned = certificate.header.bans
        if honest in members:
            banned = chance.choice([(replace(evidence.ban, peer=honest, reason=chance.randint(1, 6)),), (), banned])
        header = case.banning(step, *banned)
        votes = {vote[0]: vote for vote in certificate.votes}
        for voter in set(members) - case.honest:
            votes[members[voter]] = case.vote(header, voter)
        return Certificate(header, tuple(votes[index] for index in sorted(votes)))

    for _ in range(chance.randint(1, 4)):
        choice = chance.randrange(9)
        verdicts = list(evidence.verdicts)
        if choice == 0:
            step = evidence.certificate.header.step
            certificate = Certificate(
                case.banning(step, replace(evidence.ban, peer=honest)), evidence.certificate.votes
            )
            evidence = replace(evidence, ban=certificate.header.bans[0], certificate=certificate)
        elif choice == 1:
            evidence = replace(evidence, accusation=chance.choice(said_by_all))
        elif choice == 2:
            evidence = replace(evidence, accusation=resigned(evidence.accusation))
        elif choice == 3:
            verdicts += chance.choices(said_by_all, k=2)
            evidence = replace(evidence, verdicts=tuple(verdicts))
        elif choice == 4 and verdicts:
            verdicts[chance.randrange(len(verdicts))] = resigned(chance.choice(verdicts))
            evidence = replace(evidence, verdicts=tuple(verdicts))
        elif choice == 5:
            evidence = replace(evidence, verdicts=tuple(chance.choice(kept).verdicts))
        elif choice == 6:
            certificate = changed_certificate(evidence.certificate)
            ban = certificate.header.bans[0] if certificate.header.bans else evidence.ban
            evidence = replace(evidence, ban=ban, certificate=certificate)
        elif choice == 7:
            position = chance.randrange(len(past))
            past[position] = wire.pack(changed_certificate(case.certificates[position]))
        else:
            evidence = replace(evidence, exhibits=tuple(chance.choice(kept).exhibits))
    return unpack_evidence(pack_evidence(run_id, evidence, past))


@settings(max_examples=500)
@given(seed=st.integers(0, 2**32), attack=st.sampled_from(sorted(ATTACKS)))
def test_no_forgery_convicts_an_honest_peer(seed: int, attack: str) -> None:
    forge_and_check(seed, attack)


@pytest.mark.slow
@settings(max_examples=5_000)
@given(seed=st.integers(0, 2**32), attack=st.sampled_from(sorted(ATTACKS)))
def test_no_forgery_of_thousands_convicts_an_honest_peer(seed: int, attack: str) -> None:
    forge_and_check(seed, attack)


def forge_and_check(seed: int, attack: str) -> None:
    """What is accepted proves a ban that really came to be."""
    case, chance = trial(attack), random.Random(seed)
    evidence = chance.choice(case.kept)
    try:
        found = recheck_file(mutated(case, evidence, chance), case.manifest, case.registry.verify)
    except Refusal:
        return
    assert found.ban in {one.ban for one in case.kept}
    assert found.ban.peer not in case.honest
