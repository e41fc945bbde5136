"""What was said: found again by slot and digest, conflicts proven, and never more than a member's share."""

from __future__ import annotations

from crowdsurf.protocol import limits, transcript
from crowdsurf.protocol.envelope import is_equivocation
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.messages import Commit, Kind, ViewChange, Vote
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


def test_a_member_has_a_share_and_no_more() -> None:
    heard = Transcript()
    share = transcript._MESSAGES_PER_MEMBER_MAX
    for view in range(1, share + 1):
        opened = STEP.say(0, Kind.VIEW_CHANGE, ViewChange(None, 0), view)
        assert heard.check_slot(opened) is None
        heard.add(opened)
    refused(lambda: heard.check_slot(STEP.say(0, Kind.VOTE, Vote(name("x")))), Code.QUEUE_FULL)
    assert heard.check_slot(STEP.say(1, Kind.VOTE, Vote(name("x")))) is None


def test_a_share_is_enough_for_an_aggregator_of_everything_in_several_cuts() -> None:
    assert transcript._MESSAGES_PER_MEMBER_MAX >= 2 * limits.ROSTER_PEERS_MAX + 64


def test_messages_are_found_by_what_names_them() -> None:
    heard = STEP.transcript
    commit = heard.commits[STEP.peers[2]]
    assert heard.find(commit.digest) == [commit]
    assert [opened.payload for opened in heard.find(STEP.cut_name)] == [STEP.cut]
    assert heard.find(name("aggregate", 1)) == [STEP.aggregate(1)]
    assert heard.find(name("unknown")) == []
    assert heard.cut(STEP.cut_name) == STEP.cut
    assert heard.cut(commit.digest) is None
    assert heard.header(STEP.cut_name) is None
    assert heard.proposal(STEP.peers[0], 0) == STEP.say(0, Kind.PROPOSAL, STEP.cut)
    assert heard.proposal(STEP.peers[1], 0) is None


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
    for number in range(transcript._MESSAGES_PER_MEMBER_MAX + 100):
        payload = Commit(*(STEP.head.previous, STEP.facts.state, (name(number),), name("nonce"), 0.0, 0))
        opened = STEP.say(0, Kind.COMMIT, payload)
        heard.add_conflicting(opened)
        kept += bool(heard.find(opened.digest))
    assert kept == transcript._MESSAGES_PER_MEMBER_MAX - 1
