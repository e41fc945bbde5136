"""The key file is private, whole or absent, and opens as the same identity everywhere."""

from __future__ import annotations

import pickle
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.keys import PeerKey, random_bytes, random_seed, verify
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import PeerId, peer_text, public_key_of


def test_created_once_then_loaded(tmp_path: Path) -> None:
    path = tmp_path / "peer" / "identity.key"
    key = PeerKey.load_or_create(path)
    assert PeerKey.load_or_create(path).peer_id == key.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_file_is_the_libp2p_encoding(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    key = PeerKey.load_or_create(path)
    data = path.read_bytes()
    assert data == key.libp2p_bytes()
    assert data[:4] == bytes.fromhex("08011240")
    assert len(data) == 68
    assert data[36:] == public_key_of(key.peer_id)


def test_known_key() -> None:
    """RFC 8032, section 7.1, test 2."""
    key = PeerKey(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert public_key_of(key.peer_id).hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8f")
    assert peer_text(key.peer_id).startswith("12D3KooW")


def test_processes_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with ThreadPoolExecutor(8) as pool:
        peers = {key.peer_id for key in pool.map(PeerKey.load_or_create, [path] * 8)}
    assert len(peers) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_readable_by_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    PeerKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(MisuseError, match=r"can be read by others.*chmod 600"):
        PeerKey.load_or_create(path)


@given(st.binary(max_size=80))
def test_other_files_are_refused_in_plain_words(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.key"
        path.touch(mode=0o600)
        path.write_bytes(data)
        with pytest.raises(MisuseError, match="damaged or is not an Ed25519 libp2p key"):
            PeerKey.load_or_create(path)
        assert path.read_bytes() == data


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    PeerKey.load_or_create(path)
    sound = path.read_bytes()
    for index in range(len(sound)):
        damaged = bytearray(sound)
        damaged[index] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(MisuseError, match="damaged"):
            PeerKey.load_or_create(path)


def test_a_folder_in_the_way_is_the_worlds_fault(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir(mode=0o700)
    with pytest.raises(WorldError, match="cannot be used"):
        PeerKey.load_or_create(tmp_path / "identity.key")


def test_sign_and_verify() -> None:
    key, other = PeerKey.generate(), PeerKey.generate()
    signature = key.sign(b"message")
    assert len(signature) == 64
    assert verify(key.peer_id, b"message", signature)
    assert not verify(key.peer_id, b"massage", signature)
    assert not verify(other.peer_id, b"message", signature)
    assert not verify(key.peer_id, b"message", signature[:-1])
    assert not verify(key.peer_id, b"message", b"")


@given(st.binary(max_size=60), st.binary(max_size=80))
def test_verify_never_raises_on_a_strangers_bytes(peer: bytes, signature: bytes) -> None:
    assert not verify(PeerId(peer), b"message", signature)


def test_nonce_is_the_same_after_a_restart_and_differs_by_label_and_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    nonce = PeerKey.load_or_create(path).nonce(b"step 7")
    assert len(nonce) == 32
    assert PeerKey.load_or_create(path).nonce(b"step 7") == nonce
    assert PeerKey.load_or_create(path).nonce(b"step 8") != nonce
    assert PeerKey.generate().nonce(b"step 7") != nonce


def test_key_does_not_leak() -> None:
    seed = random_seed()
    key = PeerKey(seed)
    assert seed.hex() not in repr(key)
    assert repr(seed) not in repr(key)
    with pytest.raises(TypeError, match="process"):
        pickle.dumps(key)


def test_random_bytes_have_the_length_asked_for_and_differ() -> None:
    assert len(random_bytes(5)) == 5
    assert len(random_seed()) == 32
    assert random_seed() != random_seed()
