"""Requests to join and to leave: remembered within bounds, and never again once they have done their work."""

from __future__ import annotations

from functools import partial

import pytest

from crowdsurf.protocol import limits
from crowdsurf.protocol.chain import Head, genesis
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.membership import Membership
from crowdsurf.protocol.roster import Member, Resting, Roster
from tests.protocol.builders import refused
from tests.protocol.swarm import FakeSigner, manifest_for

FOUNDERS = [FakeSigner(number) for number in range(3)]
ALICE = FOUNDERS[0].peer_id
NEW = FakeSigner(50).peer_id
WINDOW = limits.JOIN_WINDOW_STEPS


def head_at(manifest: Manifest, step: int, *peers: bytes, joined: int = 0) -> Head:
    roster = Roster(tuple(Member(peer, joined) for peer in sorted(peers)))
    return genesis(manifest)._replace(step=step, roster=roster)


OPEN = manifest_for(FOUNDERS)
PEERS = tuple(signer.peer_id for signer in FOUNDERS)
NOW = head_at(OPEN, 100, *PEERS)


def test_a_newcomer_is_named_until_it_is_a_member() -> None:
    pending = Membership(OPEN)
    pending.on_join(NEW, 100, NOW)
    assert pending.joins(NOW) == pending.candidates() == {NEW}
    after = head_at(OPEN, 101, *PEERS, NEW)
    assert pending.joins(after) == set()
    pending.on_head(NOW.roster, after)
    assert pending.candidates() == set()


def test_a_leaver_is_named_until_it_is_gone() -> None:
    pending = Membership(OPEN)
    pending.on_leave(ALICE, 100, NOW)
    assert pending.leaves(NOW) == {ALICE}
    after = head_at(OPEN, 101, *PEERS[1:])
    pending.on_head(NOW.roster, after)
    assert pending.leaves(NOW) == set()


@pytest.mark.parametrize("step", [100 - WINDOW - 1, 100 + WINDOW + 1, 0, 2**48])
def test_requests_of_another_time_are_expired(step: int) -> None:
    refused(lambda: Membership(OPEN).on_join(NEW, step, NOW), Code.EXPIRED)
    refused(lambda: Membership(OPEN).on_leave(ALICE, step, NOW), Code.EXPIRED)


def test_who_is_banned_or_rests_is_not_let_in_and_not_named() -> None:
    pending = Membership(OPEN)
    pending.on_join(NEW, 100, NOW)
    banned = NOW._replace(roster=Roster(NOW.roster.members, banned=(NEW,)))
    resting = NOW._replace(roster=Roster(NOW.roster.members, resting=(Resting(NEW, 102),)))
    rested = NOW._replace(roster=Roster(NOW.roster.members, resting=(Resting(NEW, 101),)))
    for head in (banned, resting):
        refused(lambda head=head: Membership(OPEN).on_join(NEW, 100, head), Code.BANNED)  # type: ignore[misc]
        assert pending.joins(head) == set()
    assert pending.joins(rested) == {NEW}
    Membership(OPEN).on_join(NEW, 100, rested)
    pending.on_head(NOW.roster, banned._replace(step=101))
    assert pending.candidates() == set()


def test_members_cannot_join_and_strangers_cannot_leave() -> None:
    refused(lambda: Membership(OPEN).on_join(ALICE, 100, NOW), Code.DUPLICATE)
    refused(lambda: Membership(OPEN).on_leave(NEW, 100, NOW), Code.NOT_MEMBER)


def test_a_run_of_founders_admits_nobody_else() -> None:
    closed = Membership(manifest_for(FOUNDERS, admission="founders"))
    refused(lambda: closed.on_join(NEW, 100, NOW), Code.NOT_MEMBER)
    closed.on_join(ALICE, 100, head_at(OPEN, 100, *PEERS[1:]))
    assert closed.candidates() == {ALICE}


def test_a_goodbye_from_before_the_membership_is_expired() -> None:
    back = head_at(OPEN, 100, *PEERS, joined=90)
    refused(lambda: Membership(OPEN).on_leave(ALICE, 89, back), Code.EXPIRED)
    Membership(OPEN).on_leave(ALICE, 90, back)


def test_a_candidate_withdraws() -> None:
    pending = Membership(OPEN)
    refused(lambda: pending.on_leave(NEW, 100, NOW), Code.NOT_MEMBER)
    pending.on_join(NEW, 100, NOW)
    refused(lambda: pending.on_leave(NEW, 99, NOW), Code.NOT_MEMBER)
    pending.on_leave(NEW, 100, NOW)
    assert pending.joins(NOW) == set()
    refused(lambda: pending.on_join(NEW, 100, NOW), Code.EXPIRED)
    pending.on_join(NEW, 101, NOW)
    assert pending.joins(NOW) == {NEW}


@pytest.mark.parametrize("said_goodbye", [True, False], ids=["left", "dropped out"])
def test_an_old_request_brings_nobody_back(said_goodbye: bool) -> None:
    """Its sender asked to join at step 95 and is out since step 101: replaying that must not undo it."""
    pending = Membership(OPEN)
    if said_goodbye:
        pending.on_leave(ALICE, 100, NOW)
    after = head_at(OPEN, 101, *PEERS[1:])
    pending.on_head(NOW.roster, after)
    for step in (95, 100):
        refused(partial(pending.on_join, ALICE, step, after), Code.EXPIRED)
    pending.on_join(ALICE, 101, after)
    assert pending.joins(after) == {ALICE}


def test_old_requests_are_forgotten() -> None:
    pending = Membership(OPEN)
    pending.on_join(NEW, 100, NOW)
    pending.on_head(NOW.roster, head_at(OPEN, 100 + WINDOW, *PEERS))
    assert pending.candidates() == {NEW}
    pending.on_head(NOW.roster, head_at(OPEN, 101 + WINDOW, *PEERS))
    assert pending.candidates() == set()


def test_a_flood_of_newcomers_keeps_the_latest() -> None:
    pending = Membership(OPEN)
    flood = [FakeSigner(number).peer_id for number in range(1000, 1000 + limits.CANDIDATES_MAX + 20)]
    for peer in flood:
        pending.on_join(peer, 100, NOW)
    assert pending.candidates() == set(flood[20:])
    pending.on_join(flood[20], 101, NOW)
    pending.on_join(NEW, 100, NOW)
    assert flood[20] in pending.candidates()
    assert len(pending.candidates()) == limits.CANDIDATES_MAX
