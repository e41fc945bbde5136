"""Whose event is next: own ones, then members in turn, then a few of strangers; and an inbox that makes others wait."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.inbox import Inbox
from crowdsurf.peer.turns import (
    EVENTS_PER_BATCH,
    EVENTS_PER_SOURCE,
    MEMBER_EVENTS_MAX,
    OWN_EVENTS_MAX,
    Allowance,
    Batch,
    Turns,
    Waiting,
    source_of,
)
from crowdsurf.protocol import events
from crowdsurf.protocol.ids import Digest, PeerId
from tests.peer.shell import key_of, soon

LIAR, HONEST, STRANGER, NEWCOMER = (key_of(number).peer_id for number in range(4))
MEMBERS = {LIAR, HONEST}


def said(source: PeerId, number: int = 0) -> events.WantReceived:
    return events.WantReceived(source, (Digest(number.to_bytes(32, "big")),))


def turns() -> Turns:
    made = Turns()
    made.members = set(MEMBERS)
    return made


def add(turns: Turns, *added: events.Event) -> list[bool]:
    return [turns.add(source_of(event), Waiting(event)) for event in added]


def test_own_events_come_first_then_members_then_strangers() -> None:
    mixed = turns()
    add(mixed, said(STRANGER), said(LIAR), events.Tick(), said(HONEST), events.LeaveAsked())
    assert mixed.take(4) == Batch([events.Tick(), events.LeaveAsked(), said(LIAR), said(HONEST)], [said(STRANGER)])
    assert mixed.take(4) == Batch([], [])


def test_a_member_that_floods_delays_another_by_one_event() -> None:
    flooded = turns()
    add(flooded, *(said(LIAR, number) for number in range(1000)), said(HONEST, 1), said(HONEST, 2))
    assert flooded.take(0).events[:4] == [said(LIAR, 0), said(HONEST, 1), said(LIAR, 1), said(HONEST, 2)]


def test_a_batch_is_bounded_for_each_source_and_in_all() -> None:
    flooded = Turns()
    add(flooded, *(said(LIAR, number) for number in range(1000)))
    assert len(flooded.take(0).events) == EVENTS_PER_SOURCE
    for number in range(100):
        add(flooded, *(said(key_of(number).peer_id, count) for count in range(9)))
    assert len(flooded.take(0).events) == EVENTS_PER_BATCH


def test_strangers_are_taken_a_few_at_a_time_and_in_turn() -> None:
    flooded = turns()
    add(flooded, *(said(STRANGER, number) for number in range(100)), said(NEWCOMER))
    assert flooded.strangers_wait
    assert flooded.take(0) == Batch([], [])
    assert flooded.take(2).of_strangers == [said(STRANGER, 0), said(NEWCOMER)]
    assert flooded.take(3).of_strangers == [said(STRANGER, number) for number in (1, 2, 3)]


def test_who_becomes_a_member_waits_no_longer_among_strangers() -> None:
    grown = turns()
    add(grown, said(NEWCOMER, 1), said(STRANGER), said(NEWCOMER, 2))
    grown.members = {*MEMBERS, NEWCOMER}
    grown.reassess()
    assert grown.take(4) == Batch([said(NEWCOMER, 1), said(NEWCOMER, 2)], [said(STRANGER)])
    add(grown, said(NEWCOMER, 3))
    grown.members = MEMBERS
    grown.reassess()
    assert grown.take(4) == Batch([], [said(NEWCOMER, 3)])


def test_there_is_room_for_so_many_and_whoever_has_more_is_let_go_in_turn() -> None:
    full, let_go = turns(), list[int]()
    for number in range(MEMBER_EVENTS_MAX + 2):
        waiting = Waiting(said(LIAR, number))
        has_room = full.add(LIAR, waiting)
        assert has_room == (number < MEMBER_EVENTS_MAX)
        if not has_room:
            waiting.let_go = lambda number=number: let_go.append(number)  # type: ignore[misc]
    add(full, said(HONEST))
    full.members = {LIAR}
    full.take(0)
    assert let_go == [MEMBER_EVENTS_MAX, MEMBER_EVENTS_MAX + 1]
    assert add(full, *(events.Tick() for _ in range(OWN_EVENTS_MAX + 1))) == [True] * OWN_EVENTS_MAX + [False]
    assert not full.has_room()


def test_a_stranger_waits_until_it_is_heard_but_what_we_say_about_its_link_does_not() -> None:
    assert add(turns(), said(STRANGER)) == [False]
    assert add(turns(), events.PeerSeen(STRANGER), events.PeerGone(STRANGER)) == [True, True]


def test_what_happens_to_a_link_comes_after_what_came_over_it() -> None:
    linked = turns()
    add(linked, said(HONEST), events.PeerGone(HONEST))
    assert linked.take(0).events == [said(HONEST), events.PeerGone(HONEST)]


def test_what_is_dropped_is_let_go_and_what_is_removed_is_gone() -> None:
    dropped, let_go = turns(), list[str]()
    waiting, taken_back = Waiting(said(STRANGER)), Waiting(said(NEWCOMER))
    dropped.add(STRANGER, waiting)
    waiting.let_go = lambda: let_go.append("dropped")
    dropped.add(NEWCOMER, taken_back)
    add(dropped, events.PeerGone(STRANGER))
    dropped.drop(STRANGER)
    dropped.drop(HONEST)
    dropped.remove(NEWCOMER, taken_back)
    dropped.remove(NEWCOMER, taken_back)
    assert let_go == ["dropped"]
    assert dropped.take(9) == Batch([], [events.PeerGone(STRANGER)])
    assert not dropped.strangers_wait


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200))
def test_every_source_is_heard_in_its_order_and_nothing_is_lost(story: list[tuple[int, bool]]) -> None:
    mixed, added, heard = turns(), list[events.Event](), list[events.Event]()
    for count, (who, takes) in enumerate(story):
        added.append(said(key_of(who).peer_id, count))
        add(mixed, added[-1])
        if takes:
            batch = mixed.take(2)
            heard += [*batch.events, *batch.of_strangers]
    while True:
        batch = mixed.take(2)
        if batch == Batch([], []):
            break
        heard += [*batch.events, *batch.of_strangers]
    for who in range(4):
        source = key_of(who).peer_id
        assert [event for event in heard if source_of(event) == source] == [
            event for event in added if source_of(event) == source
        ]


def test_what_is_spent_is_paid_for_with_waiting() -> None:
    allowance = Allowance(0.1)
    assert allowance.free_at < 0.0
    allowance.spend(1.0, 100.0)
    assert round(allowance.free_at, 6) == 109.0
    allowance.spend(0.5, 101.0)
    assert round(allowance.free_at, 6) == 113.5
    allowance.spend(0.1, 200.0)
    assert round(allowance.free_at, 6) == 200.9


# --- waiting ---------------------------------------------------------------------------------------------------


async def test_who_posts_too_much_waits_until_there_is_room() -> None:
    inbox = Inbox()
    inbox.tell_apart(MEMBERS)
    for number in range(MEMBER_EVENTS_MAX):
        await inbox.post(said(LIAR, number))
    posting = [asyncio.create_task(inbox.post(event)) for event in (said(LIAR), said(STRANGER), events.Tick())]
    await asyncio.sleep(0)
    assert await inbox.wait(None) if not inbox.take(0).events else True
    await soon(posting[0])
    await soon(posting[2])
    assert not posting[1].done()
    assert inbox.take(1).of_strangers == [said(STRANGER)]
    await soon(posting[1])


async def test_whoever_gives_up_waiting_takes_its_event_back() -> None:
    inbox = Inbox()
    inbox.tell_apart(())
    posting = asyncio.create_task(inbox.post(said(STRANGER)))
    await asyncio.sleep(0)
    assert inbox.strangers_wait
    posting.cancel()
    await asyncio.gather(posting, return_exceptions=True)
    assert inbox.take(9) == Batch([], [])


async def test_the_driver_waits_for_news_or_for_the_time() -> None:
    inbox = Inbox()
    assert not await inbox.wait(0.0)
    waiting = asyncio.create_task(inbox.wait(None))
    await asyncio.sleep(0)
    inbox.offer(events.LeaveAsked())
    assert await soon(waiting)


async def test_more_of_our_own_than_there_is_room_for_is_left_out() -> None:
    inbox = Inbox()
    for _ in range(OWN_EVENTS_MAX + 9):
        inbox.offer(events.LeaveAsked())
    taken = 0
    while batch := inbox.take(0).events:
        taken += len(batch)
    assert taken == OWN_EVENTS_MAX
