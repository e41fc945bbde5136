"""Views, locks and votes: what must be proposed again, whom to follow, what is elected."""

from __future__ import annotations

import msgspec

from crowdsurf.protocol.ballot import _HEADERS_PER_VOTER_MAX, Ballot
from crowdsurf.protocol.messages import Header, Kind, Prepare, ViewChange, header_digest
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import name

STEP = CompleteStep(5)
A, B, C, D, E = STEP.peers
FIRST = STEP.header
SECOND = msgspec.structs.replace(FIRST, state=name("second"))
NOTHING = ViewChange(None, 0)


def ballot() -> Ballot:
    return Ballot(STEP.peers, quorum=3)


def prepared(state: Ballot, header: Header, view: int, by: int = 3) -> None:
    """So many members prepare a header in a view."""
    for opened in (STEP.say(index, Kind.PREPARE, Prepare(header_digest(header)), view) for index in range(by)):
        state.prepare(opened.sender, view, header_digest(header), opened.envelope)


def test_the_first_view_needs_no_requests_and_later_ones_a_quorum() -> None:
    state = ballot()
    assert state.may_propose()
    state.view = 1
    state.request(A, 1, NOTHING)
    state.request(B, 1, NOTHING)
    assert not state.may_propose()
    state.request(C, 4, NOTHING)
    assert state.may_propose()


def test_a_later_view_opens_with_a_quorum_and_locks_are_known_a_while_after() -> None:
    state = ballot()
    assert state.knows_locks
    state.view = 1
    state.request(A, 1, NOTHING)
    state.request(B, 1, NOTHING)
    assert not state.open(10.0, 2.0)
    assert not state.knows_locks
    state.request(C, 1, NOTHING)
    assert state.open(11.0, 2.0)
    assert not state.open(12.9, 2.0), "it is open already"
    assert not state.knows_locks
    state.open(13.0, 2.0)
    assert state.knows_locks


def test_a_member_is_counted_once_and_with_its_latest_request() -> None:
    state = ballot()
    state.view = 1
    for view in (1, 2, 3, 2, 1, 3):
        state.request(A, view, NOTHING)
    assert [state.requests_for(view) for view in (1, 3, 4)] == [1, 1, 0]


def test_a_later_view_is_joined_when_an_honest_member_asks_for_it() -> None:
    state = ballot()
    state.request(A, 9, NOTHING)
    state.request(B, 5, NOTHING)
    assert state.view_to_join() is None
    state.request(C, 2, NOTHING)
    assert state.view_to_join() == 2
    state.view = 2
    assert state.view_to_join() is None
    state.request(C, 7, NOTHING)
    assert state.view_to_join() == 5


def test_a_minority_cannot_drag_anybody_into_a_far_view() -> None:
    state = ballot()
    state.request(A, 60_000, NOTHING)
    state.request(B, 60_000, NOTHING)
    assert state.view_to_join() is None


def test_nobody_locked_means_nothing_is_required() -> None:
    assert ballot().strongest_lock() is None


def test_the_own_lock_counts_as_it_is() -> None:
    state = ballot()
    state.lock_on(FIRST, 0)
    assert state.strongest_lock() == FIRST
    assert state.voted_view == 0


def test_the_lock_of_the_highest_view_is_required_if_a_quorum_has_prepared_it() -> None:
    state = ballot()
    state.lock_on(FIRST, 1)
    state.request(B, 3, ViewChange(SECOND, 2))
    assert state.strongest_lock() == FIRST
    prepared(state, SECOND, 2, by=2)
    prepared(state, SECOND, 1)
    assert state.strongest_lock() == FIRST
    prepared(state, SECOND, 2)
    assert state.strongest_lock() == SECOND
    assert len(state.prepares_of(SECOND, 2)) == 3
    state.lock_on(FIRST, 4)
    assert state.strongest_lock() == FIRST


def test_a_lock_is_believed_by_what_comes_with_it_alone() -> None:
    """A liar may have prepared something else first, as far as others know."""
    voter, other = ballot(), ballot()
    prepared(voter, SECOND, 0, by=4)
    voter.lock_on(SECOND, 0)
    change = voter.change_of_view()
    assert [index for index, _ in change.proof] == [0, 1, 2]
    other.request(B, 1, change)
    assert other.strongest_lock() == SECOND
    assert not other.may_vote(0, header_digest(SECOND)), "it has no prepares to keep with its vote"


def test_who_has_lost_the_prepares_in_a_restart_shows_none() -> None:
    state = ballot()
    prepared(state, SECOND, 0, by=2)
    state.lock_on(SECOND, 0)
    assert state.change_of_view() == ViewChange(SECOND, 0)


def test_two_locks_of_one_view_are_decided_alike_everywhere() -> None:
    expected = min((FIRST, SECOND), key=header_digest)
    for mine, theirs in ((FIRST, SECOND), (SECOND, FIRST)):
        state = ballot()
        state.lock_on(mine, 1)
        prepared(state, theirs, 1)
        state.request(B, 2, ViewChange(theirs, 1))
        assert state.strongest_lock() == expected


def test_a_header_is_elected_by_a_quorum_whatever_view_the_votes_are_from() -> None:
    state, wanted = ballot(), header_digest(FIRST)
    state.vote(A, 0, wanted, bytes(64))
    state.vote(A, 1, wanted, bytes(64))
    state.vote(B, 1, wanted, bytes([1]) * 64)
    state.vote(C, 1, header_digest(SECOND), bytes(64))
    assert state.elected() is None
    state.vote(E, 0, wanted, bytes([2]) * 64)
    assert state.elected() == wanted
    assert state.voters(wanted) == {0, 1, 4}
    certificate = state.certificate(FIRST)
    assert certificate.header == FIRST
    assert certificate.votes == ((0, 1, bytes(64)), (1, 1, bytes([1]) * 64), (4, 0, bytes([2]) * 64))


def test_votes_of_one_member_are_kept_for_a_few_headers_only() -> None:
    state = ballot()
    for number in range(_HEADERS_PER_VOTER_MAX + 5):
        state.vote(A, number, name(number), bytes(64))
    counted = [number for number in range(_HEADERS_PER_VOTER_MAX + 5) if state.voters(name(number))]
    assert counted == list(range(_HEADERS_PER_VOTER_MAX))
    state.vote(B, 0, name(_HEADERS_PER_VOTER_MAX + 1), bytes(64))
    assert state.voters(name(_HEADERS_PER_VOTER_MAX + 1)) == {1}
