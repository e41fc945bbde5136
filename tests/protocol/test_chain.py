"""The chain: every check of a header and of a certificate, one test each, and nothing changes when one fails."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol import assignment
from crowdsurf.protocol.beacon import next_beacon
from crowdsurf.protocol.chain import (
    Audit,
    Chain,
    Head,
    Owed,
    beacon_after,
    check_header,
    following_audits,
    following_roster,
    genesis,
    owed_after,
)
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Ban,
    Certificate,
    Header,
    Reason,
    bitmap_of,
    header_digest,
)
from crowdsurf.protocol.roster import Member, Resting, Roster
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import FakeSigner, name, verify_mac

STEP = CompleteStep(4)
STRANGER = FakeSigner(50).peer_id


def replaced(**changes: Any) -> Header:
    """The good header with other fields, and with beacon and next roster to match where that is possible."""
    header = msgspec.structs.replace(STEP.header, **changes)
    if "nonces" in changes and "beacon" not in changes:
        header = msgspec.structs.replace(header, beacon=beacon_after(STEP.head.beacon, header))
    return header


def test_a_complete_step_extends_the_chain() -> None:
    chain = Chain(STEP.manifest)
    chain.extend(STEP.certificate(), verify_mac)
    head = chain.head
    assert (head.step, head.previous) == (1, header_digest(STEP.header))
    assert head.beacon == STEP.header.beacon == next_beacon(STEP.head.beacon, STEP.header.nonces)
    assert head.roster.digest == STEP.header.next_roster
    second = CompleteStep(4, head=head)
    chain.extend(second.certificate([0, 1, 3]), verify_mac)
    assert chain.head.step == 2


def test_runs_with_different_manifests_start_differently() -> None:
    other = CompleteStep(4, seed=1)
    assert genesis(other.manifest)[1:] != genesis(STEP.manifest)[1:]
    refused(lambda: Chain(other.manifest).extend(STEP.certificate(), verify_mac), Code.BAD_OUTCOME)


BAD_HEADERS: dict[str, dict[str, Any]] = {
    "the step number": {"step": 1},
    "the previous header": {"previous": name("other")},
    "the roster": {"roster": name("other")},
    "the number of parts": {"parts": (*STEP.header.parts, b"")},
    "the number of nonces": {"nonces": STEP.header.nonces[:3]},
    "a digest's length": {"parts": (bytes(31), *STEP.header.parts[1:])},
    "the contributors": {"contributors": bitmap_of([0, 1], 4)},
    "the nonces": {"contributors": bitmap_of([0, 1, 2], 4)},
    "the beacon": {"beacon": name("other")},
    "who joined": {"joined": (STEP.peers[0],)},
    "who left": {"left": (STRANGER,)},
    "next roster": {"next_roster": name("other")},
}


@pytest.mark.parametrize("problem", BAD_HEADERS)
def test_each_problem_of_a_header_is_named(problem: str) -> None:
    header = replaced(**BAD_HEADERS[problem])
    assert problem in refused(lambda: check_header(STEP.head, header, STEP.manifest), Code.BAD_OUTCOME)


@pytest.mark.parametrize(
    "contributors", [b"", b"\x0f\x00", b"\x1f", b"\x00", bitmap_of([0, 1, 2, 7], 8)], ids=lambda bitmap: bitmap.hex()
)
def test_contributors_outside_the_roster_or_too_few_are_refused(contributors: bytes) -> None:
    header = replaced(contributors=contributors)
    assert "contributors" in refused(lambda: check_header(STEP.head, header, STEP.manifest), Code.BAD_OUTCOME)


@pytest.mark.parametrize(
    "changes",
    [
        {"joined": (STRANGER, STRANGER)},
        {"joined": tuple(sorted([STRANGER, FakeSigner(51).peer_id], reverse=True))},
        {"left": tuple(reversed(STEP.peers[:2]))},
        {"left": (STEP.peers[0], STEP.peers[0])},
    ],
)
def test_names_must_be_sorted_and_distinct(changes: dict[str, Any]) -> None:
    refused(lambda: check_header(STEP.head, replaced(**changes), STEP.manifest), Code.BAD_OUTCOME)


def test_a_roster_beyond_the_limit_is_refused() -> None:
    newcomers = tuple(sorted(bytes([0, 36, 8, 1, 18, 32]) + number.to_bytes(32, "big") for number in range(256)))
    header = replaced(joined=newcomers)
    roster = following_roster(STEP.head, header, STEP.manifest.missed_steps_max)
    assert len(roster) == 260
    header = msgspec.structs.replace(header, next_roster=roster.digest)
    assert "next roster" in refused(lambda: check_header(STEP.head, header, STEP.manifest), Code.BAD_OUTCOME)


def test_void_parts_are_allowed_and_count_as_missed() -> None:
    index = STEP.aggregator(2)
    parts = tuple(b"" if part == 2 else digest for part, digest in enumerate(STEP.header.parts))
    header = replaced(parts=parts)
    roster = following_roster(STEP.head, header, STEP.manifest.missed_steps_max)
    header = msgspec.structs.replace(header, next_roster=roster.digest)
    assert check_header(STEP.head, header, STEP.manifest).members[index] == Member(STEP.peers[index], 0, 1, 1)


def without_nonce(header: Header, *silent: int) -> Header:
    nonces = tuple(b"" if index in silent else nonce for index, nonce in enumerate(header.nonces))
    return replaced(nonces=nonces, parts=(b"",) * len(header.parts))


def completed(header: Header, head: Head = STEP.head) -> Header:
    """The header with the next roster that follows from it."""
    roster = following_roster(head, header, STEP.manifest.missed_steps_max)
    return msgspec.structs.replace(header, next_roster=roster.digest)


def test_a_step_with_a_withheld_nonce_is_allowed_only_without_any_part() -> None:
    header = without_nonce(STEP.header, 2)
    assert STEP.peers[2] not in check_header(STEP.head, completed(header), STEP.manifest).indexes
    parts = (STEP.header.parts[0], b"", b"", b"")
    kept = completed(msgspec.structs.replace(header, parts=parts))
    assert "void step" in refused(lambda: check_header(STEP.head, kept, STEP.manifest), Code.BAD_OUTCOME)


def ban(peer: bytes, reason: int = Reason.EQUIVOCATION, step: int = 0) -> Ban:
    return Ban(peer, reason, step, name("case", peer))


def check_bans(*bans: Ban, head: Head = STEP.head, **changes: Any) -> Roster:
    header = completed(replaced(bans=bans, roster=head.roster.digest, **changes), head)
    return check_header(head, header, STEP.manifest)


def test_bans_remove_members_and_may_name_peers_that_are_none() -> None:
    roster = check_bans(ban(STEP.peers[1]))
    assert roster.peers == (STEP.peers[0], *STEP.peers[2:])
    assert roster.banned == (STEP.peers[1],)
    assert check_bans(ban(STRANGER)).banned == (STRANGER,)


FIRST, SECOND, THIRD, FOURTH = (ban(peer) for peer in STEP.peers)


@pytest.mark.parametrize(
    "bans",
    [
        (SECOND, FIRST),
        (FIRST, FIRST),
        (FIRST, ban(STEP.peers[0], Reason.WRONG_GRADIENT)),
        (ban(STEP.peers[0], reason=7),),
        (ban(STEP.peers[0], reason=255),),
        (ban(STEP.peers[0], step=1),),
        (FIRST, SECOND, THIRD, FOURTH),
    ],
    ids=["unsorted", "doubled", "for two reasons", "reason 7", "reason 255", "for the future", "everybody"],
)
def test_bans_of_the_wrong_form_are_refused(bans: tuple[Ban, ...]) -> None:
    assert "who is banned" in refused(lambda: check_bans(*bans), Code.BAD_OUTCOME)


def test_nobody_is_banned_twice_or_in_the_step_it_joins_in() -> None:
    banned = STEP.head._replace(roster=Roster(STEP.head.roster.members, banned=(STRANGER,)))
    assert "who is banned" in refused(lambda: check_bans(ban(STRANGER), head=banned), Code.BAD_OUTCOME)
    assert "who is banned" in refused(lambda: check_bans(ban(STRANGER), joined=(STRANGER,)), Code.BAD_OUTCOME)


def test_who_is_banned_or_rests_can_not_join() -> None:
    members = STEP.head.roster.members
    for roster in (Roster(members, banned=(STRANGER,)), Roster(members, resting=(Resting(STRANGER, 2),))):
        head = STEP.head._replace(roster=roster)
        assert "who joined" in refused(lambda head=head: check_bans(head=head, joined=(STRANGER,)), Code.BAD_OUTCOME)  # type: ignore[misc]
    rested = STEP.head._replace(roster=Roster(members, resting=(Resting(STRANGER, 1),)))
    assert STRANGER in check_bans(head=rested, joined=(STRANGER,)).indexes


# --- audits --------------------------------------------------------------------------------------------------

RATE = 0.3
SEVEN = CompleteStep(7, audit=AuditSection(rate=RATE))


def follow(step: CompleteStep, header: Header | None = None) -> Head:
    chosen = step.header if header is None else header
    roster = following_roster(step.head, chosen, step.manifest.missed_steps_max)
    audits = following_audits(step.head, chosen, roster, RATE)
    return Head(step.head.step + 1, header_digest(chosen), roster, Digest(chosen.beacon), audits, chosen.parts)


def test_audits_follow_from_the_certified_beacon_and_say_what_to_recompute() -> None:
    chain = Chain(SEVEN.manifest)
    assert chain.head.audits == ()
    chain.extend(SEVEN.certificate(), verify_mac)
    head = chain.head
    assert head == follow(SEVEN)
    assert len(head.audits) == 2
    for audit in head.audits:
        seed = assignment.work_seed(SEVEN.head.beacon, audit.target)
        assert audit == Audit(audit.validator, audit.target, 0, seed, 7, SEVEN.facts.state)
        assert head.audit_of(audit.validator) == audit
        assert head.audit_of(audit.target) is None
    assert head.validators == {head.roster.indexes[audit.validator] for audit in head.audits}


def test_who_was_in_the_step_is_drawn_and_who_left_can_still_be_a_target() -> None:
    validators, targets = set[int](), set[int]()
    for number in range(40):
        step = CompleteStep(7, contributors=[0, 1, 3, 4, 6], audit=AuditSection(rate=RATE), seed=number)
        header = msgspec.structs.replace(step.header, bans=(ban(step.peers[3]),), left=(step.peers[6],))
        audits = follow(step, header).audits
        validators |= {step.peers.index(audit.validator) for audit in audits}
        targets |= {step.peers.index(audit.target) for audit in audits}
    assert validators == {0, 1, 4}
    assert targets == {0, 1, 4, 6}


def test_who_validated_in_a_step_is_no_target_after_it() -> None:
    for number in range(40):
        first = CompleteStep(7, audit=AuditSection(rate=RATE), seed=number)
        second = CompleteStep(7, head=follow(first), audit=AuditSection(rate=RATE), seed=number)
        validators = {audit.validator for audit in second.head.audits}
        targets = {audit.target for audit in follow(second).audits}
        assert len(validators) == len(targets) == 2
        assert not validators & targets


def test_work_is_owed_by_everybody_that_kept_its_nonce_also_if_too_many_did_to_blame_anybody() -> None:
    """Colluders would otherwise dodge audits together, in every step in which enough of them are."""
    silent = range(4)
    nonces = tuple(b"" if index in silent else nonce for index, nonce in enumerate(SEVEN.header.nonces))
    void = msgspec.structs.replace(SEVEN.header, nonces=nonces, parts=(b"",) * 7, projections=(b"",) * 7)
    roster = following_roster(SEVEN.head, void, SEVEN.manifest.missed_steps_max)
    assert roster.resting == ()
    assert [owed.target for owed in owed_after(SEVEN.head, void)] == [SEVEN.peers[index] for index in silent]


def test_work_of_whoever_kept_its_nonce_is_owed_until_there_is_a_beacon_it_could_not_foresee() -> None:
    chain, silent = Chain(SEVEN.manifest), SEVEN.peers[2]
    nonces = tuple(b"" if index == 2 else nonce for index, nonce in enumerate(SEVEN.header.nonces))
    void = msgspec.structs.replace(SEVEN.header, nonces=nonces, parts=(b"",) * 7, projections=(b"",) * 7)
    void = msgspec.structs.replace(void, beacon=beacon_after(SEVEN.head.beacon, void))
    roster = following_roster(SEVEN.head, void, SEVEN.manifest.missed_steps_max)
    chain.extend(SEVEN.certificate(header=msgspec.structs.replace(void, next_roster=roster.digest)), verify_mac)
    seed = assignment.work_seed(SEVEN.head.beacon, silent)
    assert (chain.head.audits, chain.head.owed) == ((), (Owed(silent, 0, seed, 7, SEVEN.facts.state),))
    then = CompleteStep(7, head=chain.head, contributors=range(6), audit=AuditSection(rate=RATE))
    chain.extend(then.certificate(range(6)), verify_mac)
    owed = [audit for audit in chain.head.audits if audit.target == silent]
    assert owed
    assert {audit[2:] for audit in owed} == {(0, seed, 7, SEVEN.facts.state)}
    validators = [audit.validator for audit in chain.head.audits]
    assert len(set(validators)) == len(validators) <= len(chain.head.roster) // 2
    assert chain.head.owed == ()


def test_nothing_is_audited_after_a_void_step() -> None:
    nonces = (b"", *SEVEN.header.nonces[1:])
    header = msgspec.structs.replace(SEVEN.header, nonces=nonces, parts=(b"",) * 7)
    assert follow(SEVEN, header).audits == ()
    assert follow(SEVEN).audits != ()


def test_a_validator_commits_to_a_finding_and_everybody_else_to_parts() -> None:
    second = CompleteStep(7, head=follow(SEVEN), audit=AuditSection(rate=RATE))
    for index in range(7):
        commit = second.transcript.commit_of(second.peers[index])
        assert commit is not None
        assert (bool(commit.finding), bool(commit.parts)) == (
            (True, False) if index in second.head.validators else (False, True)
        )
    duties = {second.aggregator(part) for part in range(7)}
    assert duties & second.head.validators  # they aggregate like everybody else
    assert second.header.parts[0]


def test_only_validators_in_the_step_are_excused() -> None:
    second = CompleteStep(7, head=follow(SEVEN), audit=AuditSection(rate=RATE))
    validators = second.head.validators

    def check_excused(bitmap: bytes, header: Header = second.header) -> Roster:
        changed = msgspec.structs.replace(header, excused=bitmap)
        roster = following_roster(second.head, changed, second.manifest.missed_steps_max)
        changed = msgspec.structs.replace(changed, next_roster=roster.digest)
        return check_header(second.head, changed, second.manifest)

    roster = check_excused(bitmap_of(validators, 7))
    assert {index for index, member in enumerate(roster.members) if member.strikes} == validators
    others = bitmap_of(set(range(7)) - validators, 7)
    for wrong in (others, b"", bytes(2), b"\x80"):
        assert "who is excused" in refused(lambda wrong=wrong: check_excused(wrong), Code.BAD_OUTCOME)  # type: ignore[misc]
    absent = min(validators)
    without = CompleteStep(7, contributors=set(range(7)) - {absent}, head=second.head, audit=AuditSection(rate=RATE))
    refused(lambda: check_excused(bitmap_of([absent], 7), without.header), Code.BAD_OUTCOME)


def check(certificate: Certificate, code: Code, step: CompleteStep = STEP) -> str:
    """The certificate is refused with this code, and the chain stays as it was."""
    chain = Chain(step.manifest)
    before = chain.head
    detail = refused(lambda: chain.extend(certificate, verify_mac), code)
    assert chain.head == before
    return detail


def test_too_few_votes_are_refused_and_a_bare_majority_is_enough() -> None:
    check(STEP.certificate([0, 3]), Code.BAD_CERTIFICATE)
    Chain(STEP.manifest).extend(STEP.certificate([0, 1, 3]), verify_mac)


def test_two_thirds_are_asked_for_where_the_manifest_says_so() -> None:
    strict = CompleteStep(6, quorum="two_thirds")
    check(strict.certificate(range(4)), Code.BAD_CERTIFICATE, strict)
    Chain(strict.manifest).extend(strict.certificate(range(5)), verify_mac)


def test_duplicate_unsorted_and_foreign_votes_are_refused() -> None:
    first, second, third, fourth = STEP.certificate().votes
    for votes in (
        (first, first, second),
        (second, first, third),
        (first, second, third, fourth, (4, 0, bytes(64))),
    ):
        check(Certificate(STEP.header, votes), Code.BAD_CERTIFICATE)


def test_a_forged_vote_is_refused_wherever_it_stands() -> None:
    votes = STEP.certificate().votes
    for position in range(4):
        index, view, signature = votes[position]
        for forged in ((index, view, bytes(64)), (index, view + 1, signature)):
            check(Certificate(STEP.header, (*votes[:position], forged, *votes[position + 1 :])), Code.BAD_CERTIFICATE)


def test_votes_of_one_member_do_not_count_for_another() -> None:
    first, second, third, _ = STEP.certificate().votes
    check(Certificate(STEP.header, (first, second, (3, *third[1:]))), Code.BAD_CERTIFICATE)


def test_votes_for_another_header_do_not_count() -> None:
    other = replaced(state=name("other state"))
    check(Certificate(other, STEP.certificate().votes), Code.BAD_CERTIFICATE)


def test_votes_of_another_run_do_not_count() -> None:
    """The same header with the same peers, signed in a run that differs in one field of its manifest."""
    other = CompleteStep(4, name="another")
    check(other.certificate(header=STEP.header), Code.BAD_CERTIFICATE)


def test_steps_must_follow_each_other() -> None:
    chain = Chain(STEP.manifest)
    second = CompleteStep(4, head=chain.check(STEP.certificate(), verify_mac))
    refused(lambda: chain.extend(second.certificate(), verify_mac), Code.FUTURE)
    chain.extend(STEP.certificate(), verify_mac)
    refused(lambda: chain.extend(STEP.certificate(), verify_mac), Code.STALE)
