"""From a cut to a header and back: what a voter must hold, and every way a header can contradict the step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol import limits
from crowdsurf.protocol.chain import Chain, beacon_after, check_header, following_roster
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Ban, Header, Kind, Reason, Reveal, bitmap_of, indexes_of
from crowdsurf.protocol.outcome import Missing, build_header, examine, heard, membership_changes, overlooked, work_of
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, digest_of, refused
from tests.protocol.swarm import FakeSigner, name, verify_mac

STEP = CompleteStep(4)
NEWCOMERS = tuple(sorted(FakeSigner(number).peer_id for number in range(50, 53)))


def consistent(step: CompleteStep, **changes: Any) -> Header:
    """Another header of the step that the chain alone has nothing against."""
    header = msgspec.structs.replace(step.header, **changes)
    header = msgspec.structs.replace(header, beacon=beacon_after(step.head.beacon, header))
    roster = following_roster(step.head, header, step.manifest.missed_steps_max)
    header = msgspec.structs.replace(header, next_roster=roster.digest)
    check_header(step.head, header, step.manifest)
    return header


def transcript_without(step: CompleteStep, *leave_out: object) -> Transcript:
    """Everything that was said except these messages."""
    heard = Transcript()
    for peer in step.peers:
        for opened in step.transcript.own(peer):
            if opened not in leave_out:
                heard.add(opened)
    return heard


def reveal_of(step: CompleteStep, member: int) -> Opened:
    """The message in which a member opens its nonce."""
    return next(said for said in step.transcript.own(step.peers[member]) if said.envelope.kind == Kind.REVEAL)


def test_the_header_of_an_undisturbed_step_lacks_nothing() -> None:
    header = STEP.header
    assert all(header.parts)
    assert all(header.nonces)
    assert indexes_of(header.contributors) == [0, 1, 2, 3]
    assert (header.joined, header.left) == ((), ())
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header).nothing
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, header) == []


def test_a_member_outside_the_cut_has_neither_nonce_nor_duties() -> None:
    step = CompleteStep(4, contributors=[0, 2, 3])
    assert indexes_of(step.header.contributors) == [0, 2, 3]
    assert step.header.nonces[1] == b""
    assert all(step.header.parts)
    assert 1 not in {step.aggregator(part) for part in range(4)}
    assert examine(step.facts, step.transcript, step.blobs, step.header).nothing


def test_an_aggregate_that_is_not_held_is_void_in_the_header_one_builds() -> None:
    blobs = STEP.blobs - {name("aggregate", 2)}
    header = build_header(STEP.facts, STEP.transcript, blobs, STEP.cut_name, STEP.cut)
    assert [bool(part) for part in header.parts] == [True, True, False, True]
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header).nothing


def test_a_void_part_is_overlooked_work_for_a_voter_that_holds_it() -> None:
    blobs = STEP.blobs - {name("aggregate", 2)}
    header = build_header(STEP.facts, STEP.transcript, blobs, STEP.cut_name, STEP.cut)
    aggregator = STEP.peers[STEP.aggregator(2)]
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, header) == [(aggregator, "aggregate")]
    assert overlooked(STEP.facts, STEP.transcript, blobs, header) == []


def test_a_dropped_nonce_is_overlooked_work() -> None:
    header = consistent(STEP, nonces=(b"", *STEP.header.nonces[1:]), parts=(b"",) * 4)
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, header) == [(STEP.peers[0], "reveal")]
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header).nothing
    silent = transcript_without(STEP, *[o for o in STEP.transcript.own(STEP.peers[0]) if o.envelope.kind == 4])
    assert overlooked(STEP.facts, silent, STEP.blobs, header) == []


def test_what_is_missing_is_asked_for_cut_first_then_commits_then_aggregates() -> None:
    cut = STEP.transcript.proposal(STEP.peers[0], 0)
    commit = STEP.transcript.commits[STEP.peers[2]]
    missing = examine(STEP.facts, transcript_without(STEP, cut, commit), STEP.blobs, STEP.header)
    assert (missing.messages, missing.blobs) == ((STEP.cut_name,), ())
    missing = examine(STEP.facts, transcript_without(STEP, commit), STEP.blobs, STEP.header)
    assert (missing.messages, missing.blobs) == ((commit.digest,), ())
    without = transcript_without(STEP, STEP.aggregate(1))
    missing = examine(STEP.facts, without, STEP.blobs - {name("aggregate", 3)}, STEP.header)
    assert missing.messages == (name("aggregate", 1),)
    assert missing.blobs == ((3, name("aggregate", 3)),)
    assert not missing.nothing


def bad(header: Header, step: CompleteStep = STEP) -> str:
    return refused(lambda: examine(step.facts, step.transcript, step.blobs, header), Code.BAD_OUTCOME)


def test_a_header_that_contradicts_the_chain_is_refused() -> None:
    assert "previous" in bad(msgspec.structs.replace(STEP.header, previous=name("other")))


def test_another_state_is_refused() -> None:
    assert "another state" in bad(consistent(STEP, state=name("other state")))


def test_contributors_that_are_not_those_of_the_cut_are_refused() -> None:
    nonces = (*STEP.header.nonces[:3], b"")
    assert "contributors" in bad(consistent(STEP, contributors=bitmap_of([0, 1, 2], 4), nonces=nonces))


def test_a_nonce_nobody_committed_to_is_refused() -> None:
    nonces = (name("made up"), *STEP.header.nonces[1:])
    assert "member 0" in bad(consistent(STEP, nonces=nonces))


def test_a_part_its_aggregator_is_not_known_to_have_signed_is_asked_for() -> None:
    """Nobody votes for it; but its aggregator may have signed another one for others, who show it."""
    parts = (name("forged"), *STEP.header.parts[1:])
    missing = examine(STEP.facts, STEP.transcript, STEP.blobs | {parts[0]}, consistent(STEP, parts=parts))
    assert missing == Missing((parts[0],), ())
    assert not missing.nothing


def test_of_several_aggregates_where_they_are_not_checked_any_will_do() -> None:
    """All that hold the same choose the same."""
    peer, subject = STEP.aggregator(0), STEP.subject(0)
    others = [msgspec.structs.replace(STEP.aggregate(0).payload, digest=name("other", number)) for number in range(4)]
    heard = transcript_without(STEP)
    for other in others:
        heard.add_conflicting(STEP.say(peer, Kind.AGGREGATE, other, subject=subject))
    blobs = STEP.blobs | {other.digest for other in others}
    smallest = min(name("aggregate", 0), *(other.digest for other in others))
    assert build_header(STEP.facts, heard, blobs, STEP.cut_name, STEP.cut).parts[0] == smallest
    for digest in (name("aggregate", 0), others[0].digest):
        header = consistent(STEP, parts=(digest, *STEP.header.parts[1:]))
        assert examine(STEP.facts, heard, blobs, header).nothing
        assert examine(STEP.facts, heard, blobs - {digest}, header) == Missing((), ((0, digest),))
    void = consistent(STEP, parts=(b"", *STEP.header.parts[1:]))
    for held in (blobs, blobs - {name("aggregate", 0)}):
        assert overlooked(STEP.facts, heard, held, void) == [(STEP.peers[peer], "aggregate")]
    assert overlooked(STEP.facts, heard, STEP.blobs - {name("aggregate", 0)}, void) == []


def test_joins_and_leaves_that_do_not_follow_from_the_commits_are_refused() -> None:
    assert "joined or left" in bad(consistent(STEP, joined=(NEWCOMERS[0],)))
    assert "joined or left" in bad(consistent(STEP, left=(STEP.peers[2],)))
    named = CompleteStep(4, joins={index: (NEWCOMERS[0],) for index in (0, 1, 2)})
    assert named.header.joined == (NEWCOMERS[0],)
    assert "joined or left" in bad(consistent(named, joined=()), named)


def test_joining_and_leaving_need_more_than_half_of_the_commits() -> None:
    leaver = STEP.peers[3]
    enough = CompleteStep(4, leaves={index: (leaver,) for index in (0, 1, 2)})
    assert enough.header.left == (leaver,)
    assert examine(enough.facts, enough.transcript, enough.blobs, enough.header).nothing
    half = CompleteStep(4, leaves={0: (leaver,), 3: (leaver,)}, joins={0: (NEWCOMERS[0],), 1: (NEWCOMERS[0],)})
    assert (half.header.joined, half.header.left) == ((), ())


@pytest.mark.parametrize(("changes", "expected"), [({"peers_max": 5}, 1), ({"admission": "founders"}, 0), ({}, 3)])
def test_room_and_admission_limit_who_joins(changes: dict[str, Any], expected: int) -> None:
    step = CompleteStep(4, joins={index: NEWCOMERS for index in range(4)}, **changes)
    assert step.header.joined == NEWCOMERS[:expected]


def test_members_cannot_join_and_strangers_cannot_leave() -> None:
    named = {index: (STEP.peers[1],) for index in range(4)}
    strange = {index: (NEWCOMERS[0],) for index in range(4)}
    step = CompleteStep(4, joins=named, leaves=strange)
    assert membership_changes(step.facts, step.transcript, step.cut) == ((), ())


def test_not_everybody_can_leave_at_once() -> None:
    step = CompleteStep(4, leaves={index: STEP.peers for index in range(4)})
    assert len(step.header.left) == 3


def test_the_same_facts_give_the_same_header_whoever_builds_it() -> None:
    shuffled = Transcript()
    said = [opened for peer in reversed(STEP.peers) for opened in STEP.transcript.own(peer)]
    for opened in reversed(said):
        shuffled.add(opened)
    again = build_header(STEP.facts, shuffled, set(STEP.blobs), STEP.cut_name, STEP.cut)
    assert digest_of(again) == digest_of(STEP.header)


def ban(peer: bytes, number: int = 0) -> Ban:
    return Ban(peer, Reason.WRONG_GRADIENT, 0, name("case", peer, number))


def build(step: CompleteStep, *bans: Ban) -> Header:
    convictions = {one.case: one for one in bans}
    return build_header(step.facts, step.transcript, step.blobs, step.cut_name, step.cut, convictions)


def test_whoever_is_convicted_is_banned_by_the_next_header_once_and_in_order() -> None:
    first, second = ban(STEP.peers[1]), ban(STEP.peers[0])
    other = ban(STEP.peers[1], 1)
    header = build(STEP, first, second, other)
    assert [one.peer for one in header.bans] == [STEP.peers[0], STEP.peers[1]]
    assert header.bans[1] == min(first, other, key=lambda one: one.case)
    check_header(STEP.head, header, STEP.manifest)
    assert build(STEP).bans == ()


def test_somebody_is_never_banned_and_who_joins_is_banned_later() -> None:
    assert build(STEP, *(ban(peer) for peer in STEP.peers)).bans == ()
    joining = CompleteStep(4, joins={index: NEWCOMERS[:1] for index in range(4)})
    header = build(joining, ban(NEWCOMERS[0]))
    assert (header.joined, header.bans) == (NEWCOMERS[:1], ())


def test_more_bans_than_fit_wait_for_the_next_header() -> None:
    strangers = [bytes([1]) * 6 + number.to_bytes(32, "big") for number in range(limits.BANS_PER_HEADER_MAX + 5)]
    header = build(STEP, *map(ban, reversed(strangers)))
    assert [one.peer for one in header.bans] == strangers[: limits.BANS_PER_HEADER_MAX]
    check_header(STEP.head, header, STEP.manifest)


def test_nobody_votes_for_a_ban_without_knowing_its_evidence() -> None:
    first, second = ban(STEP.peers[1]), ban(STEP.peers[2])
    header = build(STEP, first, second)
    known = {first.case: first, second.case: second}
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header, known).nothing
    missing = examine(STEP.facts, STEP.transcript, STEP.blobs, header, {first.case: first})
    assert missing.messages == (second.case,)
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header).messages == (first.case, second.case)
    twisted = {**known, second.case: msgspec.structs.replace(second, reason=Reason.FALSE_ACCUSATION)}
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header, twisted).messages == (second.case,)


def test_a_ban_that_an_honest_member_has_looked_at_needs_no_evidence() -> None:
    """Members that restart forget the steps that cases are about: a group of them could never follow its own lock."""
    header = build(STEP, ban(STEP.peers[1]))
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header, is_bound=True).nothing


def test_a_header_need_not_ban_whom_this_member_knows_to_be_guilty() -> None:
    known = {ban(STEP.peers[1]).case: ban(STEP.peers[1])}
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, STEP.header, known).nothing


def test_who_could_not_validate_follows_from_the_commits() -> None:
    first = CompleteStep(4, audit=AuditSection(rate=0.25))
    chain = Chain(first.manifest)
    chain.extend(first.certificate(), verify_mac)
    step = CompleteStep(4, head=chain.head, audit=AuditSection(rate=0.25))
    assert indexes_of(step.header.excused) == []
    assert "could not validate" in bad(consistent(step, excused=bitmap_of(step.head.validators, 4)), step)


def test_who_was_heard_follows_from_the_commits() -> None:
    assert indexes_of(STEP.header.heard) == []
    assert "who was heard" in bad(consistent(STEP, heard=bitmap_of([2], 4)))
    commits = {
        index: msgspec.structs.replace(STEP.commit(index, {}, {}), heard=bitmap_of(named, 4))
        for index, named in enumerate(([0, 2], [2, 3], [], [3]))
    }
    assert heard(commits) == {0, 2, 3}


def test_a_header_that_voids_the_step_overlooks_nonces_but_no_parts() -> None:
    header = consistent(STEP, nonces=(b"", *STEP.header.nonces[1:]), parts=(b"",) * 4)
    kinds = {kind for _, kind in overlooked(STEP.facts, STEP.transcript, STEP.blobs, header)}
    assert kinds == {"reveal"}


def test_the_proposer_voids_all_parts_when_a_nonce_is_missing() -> None:
    header = build_header(STEP.facts, transcript_without(STEP, reveal_of(STEP, 2)), STEP.blobs, STEP.cut_name, STEP.cut)
    assert header.parts == (b"",) * 4
    assert [bool(nonce) for nonce in header.nonces] == [True, True, False, True]
    check_header(STEP.head, header, STEP.manifest)


def test_a_nonce_of_another_commit_than_the_cut_names_is_left_out_by_everybody() -> None:
    """A contributor that signs two commits and opens the other one must not be able to stop the step."""
    step = CompleteStep(4)
    heard = transcript_without(step, reveal_of(step, 2))
    heard.add(step.say(2, Kind.REVEAL, Reveal(step.cut_name, name("nonce of the other commit"))))
    header = build_header(step.facts, heard, step.blobs, step.cut_name, step.cut)
    assert [bool(nonce) for nonce in header.nonces] == [True, True, False, True]
    assert not any(header.parts)
    assert examine(step.facts, heard, step.blobs, header).nothing
    assert overlooked(step.facts, heard, step.blobs, header) == []


def test_of_several_nonces_the_one_counts_that_opens_the_commit_of_the_cut_whichever_was_heard_first() -> None:
    other = STEP.say(2, Kind.REVEAL, Reveal(STEP.cut_name, name("nonce of the other commit")))
    right = reveal_of(STEP, 2)
    heard = transcript_without(STEP, right)
    heard.add(other)
    assert work_of(STEP.facts, heard, STEP.blobs, STEP.header, right.sender)[:1] != [right]
    heard.add_conflicting(right)
    assert build_header(STEP.facts, heard, STEP.blobs, STEP.cut_name, STEP.cut) == STEP.header
    without = consistent(STEP, nonces=(*STEP.header.nonces[:2], b"", STEP.header.nonces[3]), parts=(b"",) * 4)
    assert overlooked(STEP.facts, heard, STEP.blobs, without) == [(right.sender, "reveal")]
    assert right in work_of(STEP.facts, heard, STEP.blobs, without, right.sender)
    assert other not in work_of(STEP.facts, heard, STEP.blobs, without, right.sender)


def test_nonces_that_were_not_heard_are_asked_for_unless_others_may_have_voted_for_the_header() -> None:
    """Members that each lack a nonce, or something else, learn it from each other's headers."""
    heard = transcript_without(STEP, reveal_of(STEP, 2))
    for header in (STEP.header, consistent(STEP, nonces=(b"", *STEP.header.nonces[1:]), parts=(b"",) * 4)):
        assert examine(STEP.facts, heard, STEP.blobs, header) == Missing((STEP.cut_name,), ())
        assert examine(STEP.facts, heard, STEP.blobs, header, is_bound=True).nothing
