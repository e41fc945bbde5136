"""The last chance of silent members: shown what others opened, or past the longest wait anybody may have."""

from __future__ import annotations

from crowdsurf.protocol.grace import Grace
from crowdsurf.protocol.manifest import DeadlineSection

BOUNDS = DeadlineSection(
    work_seconds_min=1.0,
    work_seconds_max=100.0,
    transfer_seconds_min=1.0,
    transfer_seconds_max=10.0,
    delivery_seconds=2.0,
)
LONGEST = 2 * 10.0 + 8 * 2.0
"""After the acceptance of a cut: parts, aggregates, three deliveries until somebody else has accepted it, three that
aggregates are given more, and one each for the reveal and its answer."""


def test_a_shown_nonce_gives_one_delivery_to_hear_it_one_to_wait_and_one_to_answer() -> None:
    grace = Grace(BOUNDS, 5.0)
    assert (grace.has_begun, grace.next_deadline()) == (False, None)
    grace.begin(7.0)
    assert (grace.has_begun, grace.next_deadline()) == (True, 13.0)
    grace.advance(12.9)
    assert not grace.is_over(12.9)
    grace.advance(13.0)
    assert grace.is_over(13.0)
    assert (grace.has_begun, grace.next_deadline()) == (True, None)


def test_where_too_few_are_heard_the_longest_wait_decides() -> None:
    grace = Grace(BOUNDS, 5.0)
    assert not grace.is_over(5.0 + 100.0 + LONGEST - 0.1)
    assert grace.is_over(5.0 + 100.0 + LONGEST)


def test_the_longest_wait_counts_from_the_latest_acceptance_of_a_cut() -> None:
    """In a later view others may accept it for the first time."""
    grace = Grace(BOUNDS, 0.0)
    grace.on_cut(20.0)
    assert not grace.is_over(20.0 + LONGEST - 0.1)
    assert grace.is_over(20.0 + LONGEST)
    grace.on_cut(40.0)
    assert not grace.is_over(40.0 + LONGEST - 0.1)
    assert grace.is_over(40.0 + LONGEST)


def test_an_acceptance_begins_all_chances_anew() -> None:
    grace = Grace(BOUNDS, 0.0)
    grace.begin(10.0)
    assert grace.last_call(10.0) == 16.0
    assert not grace.may_answer(10.0)
    grace.advance(16.0)
    assert grace.is_over(16.0)
    assert grace.may_answer(16.0)
    grace.on_cut(17.0)
    assert not grace.has_begun
    assert not grace.is_over(17.0)
    assert not grace.may_answer(17.0)
    assert grace.last_call(17.0) == 23.0


def test_nothing_ends_before_its_time_however_often_time_goes_on() -> None:
    grace = Grace(BOUNDS, 0.0)
    for moment in range(50):
        grace.advance(float(moment))
        assert not grace.is_over(float(moment))


def test_a_member_that_sees_nonces_waits_one_delivery_for_what_was_said_before_them() -> None:
    grace = Grace(BOUNDS, 0.0)
    assert not grace.may_answer(10.0)
    assert grace.next_deadline() == 12.0
    assert not grace.may_answer(11.9)  # asking again does not prolong it
    grace.advance(12.0)
    assert grace.may_answer(12.0)
    assert grace.next_deadline() is None  # and is not wanted again while it cannot answer
    grace.answered()
    assert grace.next_deadline() is None


def test_a_last_call_leaves_time_to_hear_to_wait_and_to_answer() -> None:
    grace = Grace(BOUNDS, 0.0)
    assert grace.last_call(10.0) == 16.0
    assert grace.last_call(14.0) == 16.0
