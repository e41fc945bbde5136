"""The chain: every check of a header and of a certificate, one test each, and nothing changes when one fails."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol.beacon import next_beacon
from crowdsurf.protocol.chain import Chain, check_header, following_roster, genesis
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.messages import Certificate, Header, bitmap_of, header_digest
from crowdsurf.protocol.roster import Member
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import FakeSigner, name, verify_mac

STEP = CompleteStep(4)
STRANGER = FakeSigner(50).peer_id


def replaced(**changes: Any) -> Header:
    """The good header with other fields, and with beacon and next roster to match where that is possible."""
    header = msgspec.structs.replace(STEP.header, **changes)
    if "nonces" in changes and "beacon" not in changes:
        header = msgspec.structs.replace(header, beacon=next_beacon(STEP.head.beacon, header.nonces))
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


def test_void_parts_and_withheld_nonces_are_allowed_and_count_as_missed() -> None:
    index = STEP.aggregator(2)
    parts = tuple(b"" if part == 2 else digest for part, digest in enumerate(STEP.header.parts))
    header = replaced(parts=parts)
    roster = following_roster(STEP.head, header, STEP.manifest.missed_steps_max)
    header = msgspec.structs.replace(header, next_roster=roster.digest)
    assert check_header(STEP.head, header, STEP.manifest).members[index] == Member(STEP.peers[index], 0, 1)


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
