"""Strangers that sent what no correct peer sends get no stream for a while, and members always do."""

from __future__ import annotations

from crowdsurf.peer.bans import Bans
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.unwelcome import TURNED_AWAY_MAX, TURNED_AWAY_SECONDS, TurnedAway, Unwelcome
from crowdsurf.protocol.ids import PeerId
from tests.peer.shell import key_of

PEER, OTHER = key_of(0).peer_id, key_of(1).peer_id


def test_a_peer_is_turned_away_for_a_while() -> None:
    turned_away = TurnedAway()
    turned_away.add(PEER, 5.0)
    assert turned_away.holds(PEER, 5.0)
    assert not turned_away.holds(OTHER, 5.0)
    turned_away.add(PEER, 10.0)
    assert turned_away.holds(PEER, 9.0 + TURNED_AWAY_SECONDS)
    assert not turned_away.holds(PEER, 10.0 + TURNED_AWAY_SECONDS)


def test_who_was_turned_away_longest_ago_is_forgotten() -> None:
    turned_away = TurnedAway()
    peers = [PeerId(number.to_bytes(38, "big")) for number in range(TURNED_AWAY_MAX + 1)]
    for peer in [*peers[:-1], peers[0], peers[-1]]:
        turned_away.add(peer, 0.0)
    assert len(turned_away) == TURNED_AWAY_MAX
    assert [peer for peer in peers if not turned_away.holds(peer, 0.0)] == [peers[1]]


def test_bans_are_for_good_and_members_are_welcome() -> None:
    clock, bans, members = ManualClock(), Bans(), {OTHER}
    unwelcome = Unwelcome(bans, members, clock)
    unwelcome.turn_away(PEER)
    unwelcome.turn_away(OTHER)
    assert PEER in unwelcome
    assert OTHER not in unwelcome
    members.add(PEER)
    assert PEER not in unwelcome
    members.clear()
    assert PEER in unwelcome
    bans.add([OTHER])
    clock.advance(TURNED_AWAY_SECONDS)
    assert PEER not in unwelcome
    assert OTHER in unwelcome
    assert None not in unwelcome
