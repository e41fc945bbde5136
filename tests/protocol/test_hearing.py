"""Who has said anything lately."""

from __future__ import annotations

from crowdsurf.protocol.hearing import Hearing
from tests.protocol.swarm import FakeSigner

FIRST, SECOND, THIRD = (FakeSigner(number).peer_id for number in range(3))
ALL = (FIRST, SECOND, THIRD)


def test_a_word_counts_until_the_step_after_the_next_begins() -> None:
    hearing = Hearing(1.0)
    assert hearing.next_step(ALL, 0.0) == set()
    hearing.note(FIRST, 5.0)
    assert hearing.next_step(ALL, 10.0) == {FIRST}
    hearing.note(SECOND, 15.0)
    assert hearing.next_step(ALL, 20.0) == {SECOND}
    assert hearing.next_step(ALL, 30.0) == set()


def test_where_steps_are_short_a_word_counts_for_four_deliveries() -> None:
    """It may be older than several steps."""
    hearing = Hearing(1.0)
    hearing.next_step(ALL, 0.0)
    hearing.note(FIRST, 0.0)
    assert hearing.next_step(ALL, 1.0) == {FIRST}
    assert hearing.next_step(ALL, 2.5) == {FIRST}
    assert hearing.next_step(ALL, 4.0) == {FIRST}
    assert hearing.next_step(ALL, 4.5) == set()


def test_who_is_heard_while_the_step_goes_on_is_added() -> None:
    hearing = Hearing(1.0)
    heard = hearing.next_step(ALL, 0.0)
    hearing.note(THIRD, 0.5)
    assert heard == {THIRD}


def test_whoever_is_no_member_any_more_is_forgotten() -> None:
    hearing = Hearing(1.0)
    hearing.next_step(ALL, 0.0)
    hearing.note(FIRST, 0.1)
    assert hearing.next_step((SECOND, THIRD), 0.2) == set()
    assert hearing.next_step(ALL, 0.3) == set()
