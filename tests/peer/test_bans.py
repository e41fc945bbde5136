"""Who is banned: added once, bounded like the roster's list, and in the same order."""

from __future__ import annotations

from crowdsurf.peer.bans import Bans
from crowdsurf.protocol import limits
from crowdsurf.protocol.ids import PeerId


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(38, "big"))


def test_a_peer_is_banned_once() -> None:
    bans = Bans()
    assert peer(1) not in bans
    assert bans.add([peer(1), peer(2), peer(1)]) == [peer(1), peer(2)]
    assert bans.add([peer(2), peer(3)]) == [peer(3)]
    assert all(peer(number) in bans for number in (1, 2, 3))
    assert bans.add([]) == []


def test_the_oldest_ban_goes_as_it_goes_from_the_roster() -> None:
    bans = Bans()
    everybody = [peer(number) for number in range(limits.BANNED_MAX + 2)]
    bans.add(everybody[:-1])
    bans.add(everybody[-1:])
    assert [known in bans for known in everybody] == [False, False] + [True] * limits.BANNED_MAX
