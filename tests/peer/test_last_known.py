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
    known.remember(peer(1), ["/ip4/10.0.0.1/tcp/4001"], step=3)
    known.remember(peer(2), ["/dns4/example.org/tcp/4001", "/ip6/::1/tcp/1"], step=9)
    known.save()
    again = LastKnownPeers.open(path)
    assert again.warning is None
    assert again.peers() == known.peers()
    assert [entry.peer for entry in again.peers()] == [peer(2), peer(1)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["peers"]


def test_newer_step_wins_and_forget(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    known.remember(peer(1), ["/ip4/10.0.0.2/tcp/1"], step=5)
    known.remember(peer(1), ["/ip4/10.0.0.1/tcp/1"], step=4)
    assert known.peers()[0].addresses == ("/ip4/10.0.0.2/tcp/1",)
    known.forget(peer(1))
    known.forget(peer(1))
    assert known.peers() == []


def test_bounded_by_latest_step(tmp_path: Path) -> None:
    known = LastKnownPeers.open(tmp_path / "peers")
    for number in range(PEERS_MAX + 10):
        known.remember(peer(number), ["/ip4/10.0.0.1/tcp/1"] * 99 + ["x" * 5000], step=number)
    assert {entry.peer for entry in known.peers()} == {peer(number) for number in range(10, PEERS_MAX + 10)}
    assert all(len(entry.addresses) == limits.ADDRESSES_PER_PEER_MAX for entry in known.peers())
    known.save()
    assert len(LastKnownPeers.open(tmp_path / "peers").peers()) == PEERS_MAX


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
