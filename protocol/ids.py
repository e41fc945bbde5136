"""Names that cannot be confused: peers, digests and runs.

The idea: an Ed25519 libp2p peer id contains its public key, so the identity of a peer everywhere (in
messages, on the transport, in the DHT) is one value that also verifies its signatures. Every digest is
BLAKE3 with a derive-key context, so that the digest of one kind of thing is never that of another.
"""

from __future__ import annotations

from typing import NewType

import base58
from blake3 import blake3

from crowdsurf.protocol.errors import Code, Refusal

PeerId = NewType("PeerId", bytes)
"""A libp2p peer id: the identity multihash of a libp2p-encoded Ed25519 public key, 38 bytes."""

Digest = NewType("Digest", bytes)
"""A 32-byte BLAKE3 digest."""

DIGEST_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
# identity multihash (0x00), length 36, then protobuf {key_type: Ed25519 (1), data: 32 bytes}
# (libp2p specs, peer-ids/peer-ids.md).
_PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
PEER_ID_BYTES = len(_PEER_ID_PREFIX) + PUBLIC_KEY_BYTES

_CONTEXT = "crowdsurf 2026-11 v1 "


def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer id of a raw 32-byte Ed25519 public key. Raises ValueError on any other length."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, got {len(public_key)}")
    return PeerId(_PEER_ID_PREFIX + public_key)


def public_key_of(peer: PeerId) -> bytes:
    """The raw Ed25519 public key inside a peer id. Raises Refusal(MALFORMED) for other key types."""
    if len(peer) != PEER_ID_BYTES or not peer.startswith(_PEER_ID_PREFIX):
        raise Refusal(Code.MALFORMED, "not an Ed25519 libp2p peer id")
    return peer[len(_PEER_ID_PREFIX) :]


def peer_text(peer: PeerId) -> str:
    """The usual text of a peer id (base58btc, `12D3KooW…`)."""
    text: bytes = base58.b58encode(bytes(peer))
    return text.decode("ascii")


def peer_from_text(text: str) -> PeerId:
    """Parse `12D3KooW…`. Raises Refusal(MALFORMED) if it is not an Ed25519 peer id."""
    if len(text) > 64:
        raise Refusal(Code.MALFORMED, "peer id text is too long")
    try:
        peer = PeerId(base58.b58decode(text.encode("ascii")))
    except ValueError as error:
        raise Refusal(Code.MALFORMED, f"not base58: {text!r}") from error
    public_key_of(peer)
    return peer


def short(peer: PeerId) -> str:
    """Last eight characters of the text form, for people (the first ones are alike for all peers)."""
    return peer_text(peer)[-8:]


def digest(context: str, data: bytes | memoryview) -> Digest:
    """BLAKE3 of `data` in the derive-key mode; `context` names what kind of thing is digested."""
    return Digest(blake3(data, derive_key_context=_CONTEXT + context).digest())


def digest_text(value: Digest) -> str:
    """`b3:` and the hexadecimal digits."""
    return "b3:" + value.hex()


BLOB_CONTEXT = "blob"
"""Context of the digest under which raw tensor bytes (parts, aggregates, states) are committed and fetched."""


def blob_digest(data: bytes | memoryview) -> Digest:
    """The digest that names raw tensor bytes; blobs are content-addressed by it."""
    return digest(BLOB_CONTEXT, data)


def finding_digest(finder: PeerId, gradient: bytes | memoryview) -> Digest:
    """What a validator commits to when it has recomputed a gradient: float32, little-endian, all parts in order.
    Its own peer id goes in first, so that no validator can use what another one found."""
    hasher = blake3(derive_key_context=_CONTEXT + "finding")
    hasher.update(finder)
    hasher.update(gradient)
    return Digest(hasher.digest())
