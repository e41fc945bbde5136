"""What was said: found again by slot and digest, conflicts proven, and never more than a member's share."""

from __future__ import annotations

import msgspec

from crowdsurf.protocol import limits, transcript
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import objection_to, subject_of
from crowdsurf.protocol.envelope import is_equivocation
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Aggregate, Commit, Cut, Kind, Prepare, Reveal, ViewChange, Vote
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import name, verify_mac

STEP = CompleteStep(4)


def test_a_message_is_new_once() -> None:
    heard = Transcript()
    commit = STEP.transcript.commits[STEP.peers[0]]
    assert heard.check_slot(commit) is None
    heard.add(commit)
    refused(lambda: heard.check_slot(commit), Code.DUPLICATE)


def test_a_second_payload_for_a_slot_is_proof_that_holds_on_its_own() -> None:
    other = STEP.say(0, Kind.COMMIT, STEP.commit(1, {}, {}))
    conflict = STEP.transcript.check_slot(other)
    assert conflict is not None
    assert is_equivocation(conflict, STEP.run_id, verify_mac)


def test_a_member_has_a_share_of_every_kind_and_no_more() -> None:
    heard = Transcript()
    for view in range(1, transcript._MESSAGES_OF_A_KIND_MAX + 1):
        opened = STEP.say(0, Kind.VOTE, Vote(name("x")), view)
        assert heard.check_slot(opened) is None
        heard.add(opened)
    refused(lambda: heard.check_slot(STEP.say(0, Kind.VOTE, Vote(name("x")))), Code.QUEUE_FULL)
    assert heard.check_slot(STEP.say(1, Kind.VOTE, Vote(name("x")))) is None
    for kind, payload in ((Kind.VIEW_CHANGE, ViewChange(None, 0)), (Kind.PREPARE, Prepare(name("x")))):
        assert heard.check_slot(STEP.say(0, kind, payload, 1)) is None


def test_a_share_is_enough_for_an_objection_to_every_liar() -> None:
    assert transcript._MESSAGES_OF_A_KIND_MAX >= (limits.ROSTER_PEERS_MAX - 1) // 2


def test_what_a_cut_names_is_taken_however_many_its_author_has_signed() -> None:
    heard = Transcript()
    commits = [
        STEP.say(0, Kind.COMMIT, Commit(STEP.head.previous, STEP.facts.state, (name(number),), name("nonce"), 0.0, 0))
        for number in range(transcript._MESSAGES_OF_A_KIND_MAX + 2)
    ]
    heard.add(commits[0])
    for commit in commits[1:]:
        heard.add_conflicting(commit)
    last = commits[-1]
    assert not heard.find(last.digest)
    heard.add(STEP.say(1, Kind.PROPOSAL, Cut(STEP.head.previous, ((0, last.digest),)), 3))
    assert heard.add_conflicting(last)
    assert heard.find(last.digest) == [last]


def test_messages_are_found_by_what_names_them() -> None:
    heard = STEP.transcript
    commit = heard.commits[STEP.peers[2]]
    assert heard.find(commit.digest) == [commit]
    assert [opened.payload for opened in heard.find(STEP.cut_name)] == [
        STEP.cut,
        *(Reveal(STEP.cut_name, name("nonce", index)) for index in range(4)),
    ]
    assert heard.find(name("aggregate", 1)) == [STEP.aggregate(1)]
    assert heard.find(name("unknown")) == []
    assert heard.cut(STEP.cut_name) == STEP.cut
    assert heard.cut(commit.digest) is None
    assert heard.header(STEP.cut_name) is None
    assert heard.proposal(STEP.peers[0], 0) == STEP.say(0, Kind.PROPOSAL, STEP.cut)
    assert heard.proposal(STEP.peers[1], 0) is None


def test_with_the_reveals_of_a_cut_come_the_commits_that_it_does_not_name() -> None:
    """Whoever has accepted the cut may not have heard them, and believes no reveal without its commit."""
    heard, other = Transcript(), name("other nonce")
    for peer in CHECKED.peers:
        for opened in CHECKED.transcript.own(peer):
            heard.add(opened)
    commit = msgspec.structs.replace(CHECKED.commit(1, {}, {}), nonce_digest=nonce_digest(other))
    second, reveal = CHECKED.say(1, Kind.COMMIT, commit), CHECKED.say(1, Kind.REVEAL, Reveal(CHECKED.cut_name, other))
    assert not heard.opens_commit(second.sender, commit.nonce_digest)
    assert heard.add_conflicting(second)
    assert heard.opens_commit(second.sender, commit.nonce_digest)
    assert second not in heard.find(CHECKED.cut_name)  # nobody needs it
    assert heard.add_conflicting(reveal)
    found = heard.find(CHECKED.cut_name)
    assert found.index(second) < found.index(reveal)
    assert [one for one in found if one.envelope.kind == Kind.COMMIT] == [second]
    duties = CHECKED.facts.duties(CHECKED.cut)
    assert {second, reveal} <= set(heard.grounds(CHECKED.header, CHECKED.peers, duties))


def test_a_commit_counts_only_for_the_member_that_signed_it() -> None:
    cut = STEP.cut
    heard = Transcript()
    heard.add(STEP.transcript.commits[STEP.peers[1]])
    assert heard.missing_commits(cut, STEP.peers) == [digest for index, digest in cut.commits if index != 1]
    assert set(heard.commits_in(cut, STEP.peers)) == {1}
    assert not heard.commits_in(cut, (*STEP.peers[2:], *STEP.peers[:2]))


def test_both_commits_of_a_member_that_signed_two_can_be_shown() -> None:
    heard = Transcript()
    first = STEP.transcript.commits[STEP.peers[0]]
    second = STEP.say(0, Kind.COMMIT, STEP.commit(1, {}, {}))
    heard.add(first)
    heard.add_conflicting(second)
    assert heard.find(first.digest) == [first]
    assert heard.find(second.digest) == [second]
    assert heard.commit_of(STEP.peers[0]) == first.payload


def test_conflicting_commits_count_against_their_senders_share() -> None:
    """Who signs a thousand commits must not fill everybody's memory with them."""
    heard = Transcript()
    heard.add(STEP.transcript.commits[STEP.peers[0]])
    kept = 0
    for number in range(transcript._MESSAGES_OF_A_KIND_MAX + 100):
        payload = Commit(*(STEP.head.previous, STEP.facts.state, (name(number),), name("nonce"), 0.0, 0))
        opened = STEP.say(0, Kind.COMMIT, payload)
        heard.add_conflicting(opened)
        kept += bool(heard.find(opened.digest))
    assert kept == transcript._MESSAGES_OF_A_KIND_MAX - 1


# --- where aggregates are checked ----------------------------------------------------------------------------

CHECKED = CompleteStep(4, audit=AuditSection(rate=0.25))


def test_projections_are_found_by_part_and_by_name() -> None:
    heard = CHECKED.transcript
    for part in range(4):
        aggregator = CHECKED.peers[CHECKED.aggregator(part)]
        said = heard.projection(CHECKED.cut_name, part, aggregator)
        assert said is not None
        assert said.payload == CHECKED.projection(part)
        assert heard.projection_with(said.digest, said.sender) == said
        assert heard.find(said.digest) == [said]
    assert heard.projection(name("another cut"), 0, CHECKED.peers[0]) is None
    assert heard.projection_with(CHECKED.cut_name, CHECKED.peers[0]) is None


def test_both_aggregates_and_projections_of_a_member_that_signed_two_can_be_shown() -> None:
    heard, index = Transcript(), CHECKED.aggregator(0)
    peer, subject = CHECKED.peers[index], CHECKED.subject(0)
    first, other = CHECKED.aggregate(0), Aggregate(CHECKED.cut_name, 0, name("other"), b"\x0f")
    heard.add(first)
    heard.add_conflicting(CHECKED.say(index, Kind.AGGREGATE, other, 0, subject))
    assert heard.aggregate(CHECKED.cut_name, 0, peer) == first.payload
    assert heard.aggregate_with(CHECKED.cut_name, 0, peer, name("aggregate", 0)) == first.payload
    assert heard.aggregate_with(CHECKED.cut_name, 0, peer, name("other")) == other
    assert heard.aggregate_with(CHECKED.cut_name, 0, peer, name("third")) is None
    lines = [CHECKED.say(index, Kind.PROJECTION, CHECKED.projection(0, norm=norm), 0, subject) for norm in (1.0, 0.5)]
    heard.add(lines[0])
    heard.add_conflicting(lines[1])
    assert heard.projection(CHECKED.cut_name, 0, peer) == lines[0]
    assert [heard.projection_with(said.digest, said.sender) for said in lines] == lines


def test_an_aggregate_is_named_by_enough_reveals_or_by_none() -> None:
    heard = CHECKED.transcript
    for enough, named in ((1, True), (4, True), (5, False)):
        assert (heard.named_aggregate(CHECKED.cut_name, 2, enough) == name("aggregate", 2)) == named
    assert heard.named_aggregate(CHECKED.cut_name, 4, 1) is None
    assert heard.named_aggregate(name("another cut"), 2, 1) is None


def test_an_objection_is_remembered_for_its_cut_and_its_aggregator() -> None:
    heard = Transcript()
    said = CHECKED.transcript.of_kind(Kind.PROJECTION)[0]
    objector = next(index for index, peer in enumerate(CHECKED.peers) if peer != said.sender)
    accusation = objection_to(said, objector)
    heard.add(CHECKED.say(objector, Kind.ACCUSATION, accusation, 0, subject_of(accusation)))
    assert heard.objectors(CHECKED.cut_name, said.sender) == {CHECKED.peers[objector]}
    assert heard.objectors(CHECKED.cut_name, CHECKED.peers[objector]) == set()
    assert heard.objectors(name("another cut"), said.sender) == set()


def test_everything_that_a_member_signed_about_what_it_had_heard_counts_once() -> None:
    """Whoever has heard both reveals of a liar must not think otherwise than whoever has heard one."""
    heard, other = Transcript(), name("the other one")
    for index, named in ((0, name("aggregate", 0)), (1, b"")):
        said = Reveal(CHECKED.cut_name, name("nonce", index), (named, b"", b"", b""))
        heard.add(CHECKED.say(index, Kind.REVEAL, said))
    assert heard.named_aggregate(CHECKED.cut_name, 0, 2) is None
    second = CHECKED.say(
        1, Kind.REVEAL, Reveal(CHECKED.cut_name, name("nonce", 1), (name("aggregate", 0), b"", b"", b""))
    )
    for _ in range(2):
        heard.add_conflicting(second)
    assert heard.named_aggregate(CHECKED.cut_name, 0, 2) == name("aggregate", 0)
    assert heard.named_aggregate(CHECKED.cut_name, 0, 3) is None
    for index in (0, 1):
        said = Reveal(CHECKED.cut_name, name("nonce", index), (other, b"", b"", b""))
        heard.add_conflicting(CHECKED.say(index, Kind.REVEAL, said))
    assert heard.named_aggregate(CHECKED.cut_name, 0, 2) is None  # two of them


def test_a_second_cut_that_was_proposed_in_another_view_before_is_a_second_cut() -> None:
    """It is kept already, and blamed all the same."""
    step = CompleteStep(4)
    other = Cut(step.cut.previous, step.cut.commits[1:])
    step.add(step.say(0, Kind.PROPOSAL, other, view=4))
    again = step.say(0, Kind.PROPOSAL, step.cut, view=4)
    assert step.transcript.check_slot(again) is not None
    assert not step.transcript.add_conflicting(again)
    assert step.transcript.proposed_twice == {again.sender}
