"""The list of last-known peers is bounded, survives restarts and never stops a peer from starting."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.last_known import PEERS_MAX, LastKnownPeers
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import WorldError
from crowdsurf.protocol.ids import PeerId, peer_id_from_public_key


def peer(number: int) -> PeerId:
    """A made-up peer id."""
    return peer_id_from_public_key(number.to_bytes(32, "big"))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "home" / "peers"
    known = LastKnownPeers.open(path)
    assert known.warning is None
    known.remember(peer(1), ["/ip4/10.0.0.1/tcp/4001"], 3, [peer(1)])
    known.remember(peer(2), ["/dns4/example.org/tcp/4001", "/ip6/::1/tcp/1"], 9, [peer(2)])
    known.save()
    again = LastKnownPeers.open(path)
    assert again.warning is None
    assert again.peers() == known.peers()
    assert [entry.peer for entry in again.peers()] == [peer(2), peer(1)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["peers"]


def test_the_latest_addresses_and_the_latest_step_as_a_member_count(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    known.remember(peer(1), ["/ip4/10.0.0.2/tcp/1"], 5, [peer(1)])
    known.remember(peer(1), ["/ip4/10.0.0.1/tcp/1"], 6)
    assert [(entry.addresses, entry.step) for entry in known.peers()] == [(("/ip4/10.0.0.1/tcp/1",), 5)]
    known.forget(peer(1))
    known.forget(peer(1))
    assert known.peers() == []


def test_bounded_by_latest_step(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    for number in range(PEERS_MAX + 10):
        known.remember(peer(number), ["/ip4/10.0.0.1/tcp/1"] * 99 + ["x" * 5000], number, [peer(number)])
    assert {entry.peer for entry in known.peers()} == {peer(number) for number in range(10, PEERS_MAX + 10)}
    assert all(len(entry.addresses) == limits.ADDRESSES_PER_PEER_MAX for entry in known.peers())
    known.save()
    assert len(LastKnownPeers.open(tmp_path / "peers").peers()) == PEERS_MAX


@pytest.mark.parametrize("step", [0, 5000])
@pytest.mark.parametrize("first", ["members", "strangers"])
def test_strangers_take_no_members_place(tmp_path: Path, step: int, first: str) -> None:
    """Also before the first step, and also if their ids sort first."""
    members, strangers = [peer(number) for number in range(200, 216)], [peer(number) for number in range(PEERS_MAX)]
    known = LastKnownPeers.open(tmp_path / "peers")
    for one in (*members, *strangers) if first == "members" else (*strangers, *members):
        known.remember(one, ["/ip4/10.0.0.1/tcp/1"], step, members)
    found = [entry.peer for entry in known.peers()]
    assert len(found) == PEERS_MAX
    assert set(members) < set(found)


def test_who_was_a_member_stays_before_strangers_and_goes_before_members(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    former, members = peer(0), [peer(number) for number in range(1, PEERS_MAX + 1)]
    known.remember(former, [], 5, [former])
    for number in range(1000, 1000 + PEERS_MAX):
        known.remember(peer(number), [], 9, members)
    assert former in {entry.peer for entry in known.peers()}
    for one in members:
        known.remember(one, [], 9, members)
    assert {entry.peer for entry in known.peers()} == set(members)


def test_a_step_that_we_have_not_reached_is_worth_nothing(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    everybody = [peer(number) for number in range(3)]
    for number, step in enumerate((2**40, 7, 8)):
        known.remember(peer(number), ["/ip4/10.0.0.1/tcp/1"], step, everybody)
    known.doubt_steps_after(7)
    assert [(entry.peer, entry.step) for entry in known.peers()] == [(peer(1), 7), (peer(0), 0), (peer(2), 0)]


@given(st.binary(max_size=200))
def test_damaged_file_starts_empty_with_a_warning(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peers"
        path.write_bytes(data)
        known = LastKnownPeers.open(path)
        assert known.peers() == []
        assert known.warning is not None
        assert str(path) in known.warning
        known.remember(peer(1), [], step=1)
        known.save()
        assert LastKnownPeers.open(path).warning is None


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    assert "oversized" in (LastKnownPeers.open(path).warning or "")


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    path.mkdir()
    known = LastKnownPeers.open(path)
    assert known.warning is not None
    with pytest.raises(WorldError, match="could not be written"):
        known.save()
    assert [entry.name for entry in tmp_path.iterdir()] == ["peers"]
