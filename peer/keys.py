"""A peer's identity: one Ed25519 key, kept in one file, and the only source of randomness.

The idea: the key file is the libp2p private-key encoding itself, so the transport's process opens the very
file that signs our messages and the two can never disagree about who we are. Nonces are drawn from the key
and a label instead of from the system, so a peer that restarts draws the same nonce for the same step and
cannot be caught with two commitments by accident.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crowdsurf.peer.files import write_whole
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import PeerId, digest, peer_id_from_public_key, public_key_of, short

SEED_BYTES = 32
NONCE_BYTES = 32
# protobuf {key_type: Ed25519 (1), data: 64 bytes}: seed, then public key (libp2p specs, peer-ids/peer-ids.md).
_FILE_PREFIX = bytes([0x08, 0x01, 0x12, 0x40])
_FILE_BYTES = len(_FILE_PREFIX) + 64
_PUBLIC_KEYS_CACHED_MAX = 1024
"""Parsed public keys kept: four times the largest roster."""


class PeerKey:
    """An Ed25519 private key. `repr` and errors never show it."""

    def __init__(self, seed: bytes) -> None:
        """`seed` is the raw 32-byte private key."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._seed = seed
        self._private_key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_key_bytes = self._private_key.public_key().public_bytes_raw()
        self._nonce_key = digest("nonce key", seed)
        self.peer_id: PeerId = peer_id_from_public_key(self._public_key_bytes)

    @staticmethod
    def generate() -> PeerKey:
        """A fresh key, not stored anywhere."""
        return PeerKey(random_seed())

    @staticmethod
    def load_or_create(path: Path) -> PeerKey:
        """The key in the file at `path`; made there (0600, its folder 0700) if there is none.

        Raises MisuseError if the file is readable by others or is no key, WorldError if the disk fails.
        """
        try:
            if not _exists(path):
                # Whole and durable before it has its name; if another process was faster, its key is the one.
                write_whole(path, PeerKey.generate().libp2p_bytes(), replace=False)
            return _load(path)
        except OSError as error:
            raise WorldError(f"the key file {path} cannot be used: {error.strerror or error}") from error

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes. Callers sign digests, made under a context of their own."""
        return self._private_key.sign(message)

    def nonce(self, label: bytes) -> bytes:
        """32 bytes that nobody without the key can tell from random, the same every time for one label."""
        return blake3(label, key=self._nonce_key).digest(NONCE_BYTES)

    def libp2p_bytes(self) -> bytes:
        """The libp2p encoding of the private key: the contents of the key file, 68 bytes. Secret."""
        return _FILE_PREFIX + self._seed + self._public_key_bytes

    def __repr__(self) -> str:
        return f"<PeerKey …{short(self.peer_id)}>"

    def __reduce__(self) -> tuple[object, ...]:
        # A key that travels to another process by accident is a leak.
        raise TypeError("a PeerKey is not to be copied out of its process")


def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is `peer`'s Ed25519 signature of `message`. False for anything malformed."""
    try:
        _public_key(peer).verify(signature, message)
    except (InvalidSignature, Refusal, ValueError):
        return False
    return True


@lru_cache(maxsize=_PUBLIC_KEYS_CACHED_MAX)
def _public_key(peer: PeerId) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key_of(peer))


def random_bytes(count: int) -> bytes:
    """`count` bytes from the operating system."""
    return os.urandom(count)


def random_seed() -> bytes:
    """A fresh 32-byte seed for a key or a generator."""
    return random_bytes(SEED_BYTES)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _load(path: Path) -> PeerKey:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise MisuseError(
                f"the key file {path} can be read by others (mode {mode:04o}); "
                f"run `chmod 600 {path}`, or move it away and start with a new identity if it may have been copied"
            )
        data = file.read(_FILE_BYTES + 1)
    if len(data) == _FILE_BYTES and data.startswith(_FILE_PREFIX):
        key = PeerKey(data[len(_FILE_PREFIX) : len(_FILE_PREFIX) + SEED_BYTES])
        if key.libp2p_bytes() == data:
            return key
    raise MisuseError(
        f"the key file {path} is damaged or is not an Ed25519 libp2p key; "
        "restore it from a copy, or move it away to start with a new identity"
    )
