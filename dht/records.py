"""What a peer publishes so that others find it: a small signed record that expires.

The idea: a record is worth nothing beside its signature. Whoever stores, forwards or invents one can at
worst withhold it; the run, the peer, the addresses and the expiry are all under the peer's own key. So every
directory, honest or not, is only a mailbox, and every reader checks again. Pure: clock and keys are arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Code, MisuseError, Refusal
from crowdsurf.protocol.ids import (
    DIGEST_BYTES,
    PEER_ID_BYTES,
    SIGNATURE_BYTES,
    Digest,
    PeerId,
    digest,
    peer_text,
    public_key_of,
)

Sign = Callable[[bytes], bytes]
"""Ed25519 signature (64 bytes) of a message under our key."""

Verify = Callable[[PeerId, bytes, bytes], bool]
"""Whether (peer, message, signature) holds under the key inside the peer id."""

RunBytes = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
PeerBytes = Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

# Components of printable ASCII without spaces: what a terminal or a log shows is what was signed.
_ADDRESS_PATTERN = re.compile(r"(?:/[!-.0-~]+)+")


class PeerRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where one peer of one run can be reached, until when, signed by that peer. Valid once it exists, except
    for what needs a key or a clock: see `check_record`."""

    run_id: RunBytes
    """Digest of the run's manifest, 32 bytes."""
    peer: PeerBytes
    """The peer that signs, 38 bytes."""
    addresses: tuple[str, ...]
    """Multiaddresses as text; at most limits.ADDRESSES_PER_PEER_MAX. None for a peer that can only dial out."""
    step: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    """The last certified step the peer has; a hint for newcomers, not to be trusted."""
    expires_at: float
    """Wall clock, unix seconds. Of two records of one peer the one that expires later is the newer one."""
    signature: SignatureBytes
    """Ed25519 over `signed_bytes`, 64 bytes."""

    def __post_init__(self) -> None:
        """Checks that types cannot express. Raises ValueError (msgspec turns it into ValidationError on decode)."""
        _check_key(self.peer)
        _check_addresses(self.addresses, PeerId(self.peer))
        if not math.isfinite(self.expires_at):
            raise ValueError("the expiry is not a finite number")


def _check_key(peer: bytes) -> None:
    """Raise ValueError unless `peer` is an Ed25519 libp2p peer id."""
    try:
        public_key_of(PeerId(peer))
    except Refusal as refusal:
        raise ValueError(refusal.detail) from refusal


def _check_addresses(addresses: Sequence[str], peer: PeerId) -> None:
    """Raise ValueError on too many, too long or malformed addresses, or one that ends at another peer."""
    if len(addresses) > limits.ADDRESSES_PER_PEER_MAX:
        raise ValueError(f"{len(addresses)} addresses where at most {limits.ADDRESSES_PER_PEER_MAX} are allowed")
    own_name = peer_text(peer)
    for address in addresses:
        # Characters first, so that the quoted address is short; a pattern of ASCII has as many bytes as characters.
        if len(address) > limits.ADDRESS_BYTES_MAX:
            raise ValueError(f"an address of {len(address)} characters; at most {limits.ADDRESS_BYTES_MAX} are allowed")
        if _ADDRESS_PATTERN.fullmatch(address) is None:
            raise ValueError(f"not a multiaddress: {address!r}")
        *_, protocol, value = ("", *address.split("/"))
        # A relay hop names another peer in the middle; the end of the way must be the one who signs.
        if protocol in ("p2p", "ipfs") and value != own_name:
            raise ValueError(f"the address {address!r} leads to another peer")


def signed_bytes(run_id: bytes, peer: bytes, addresses: Sequence[str], step: int, expires_at: float) -> bytes:
    """The 32 bytes that are signed: the digest of every field but the signature."""
    return digest("dht record", wire.pack([run_id, peer, list(addresses), step, expires_at]))


def sign_record(
    run_id: Digest, peer: PeerId, addresses: Sequence[str], step: int, expires_at: float, sign: Sign
) -> bytes:
    """Canonical bytes of a record of our own. Raises MisuseError if a field is out of bounds."""
    # An integer would be another spelling of the same number, and another digest.
    expiry = float(expires_at)
    signature = sign(signed_bytes(run_id, peer, addresses, step, expiry))
    try:
        data = wire.pack(PeerRecord(run_id, peer, tuple(addresses), step, expiry, signature))
        decode_record(data)
    except (ValueError, Refusal) as error:
        raise MisuseError(f"this peer's directory record is not valid: {error}") from error
    return data


def decode_record(data: bytes) -> PeerRecord:
    """Parse canonical bytes, without signature and clock. Raises Refusal (OVERSIZED, MALFORMED, NOT_CANONICAL)."""
    return wire.unpack(data, PeerRecord, limits.DHT_RECORD_BYTES_MAX)


def check_record(
    data: bytes, run_id: Digest, now: float, verify: Verify, expected_peer: bytes | None = None
) -> PeerRecord:
    """A record that may be stored and used at wall-clock time `now` (unix seconds).

    `expected_peer` is the place it was found under, if there was one. Raises Refusal: what `decode_record`
    raises, WRONG_RUN, MALFORMED (under another peer's name), EXPIRED, FUTURE (expiry further away than
    limits.DHT_RECORD_LIFETIME_SECONDS_MAX) or BAD_SIGNATURE. The signature comes last, as it costs most.
    """
    record = decode_record(data)
    check_claims(record, run_id, now, expected_peer)
    check_signature(record, verify)
    return record


def check_claims(record: PeerRecord, run_id: Digest, now: float, expected_peer: bytes | None = None) -> None:
    """The cheap half of `check_record`: run, place and times."""
    if record.run_id != run_id:
        raise Refusal(Code.WRONG_RUN, "the record is for another run")
    if expected_peer is not None and record.peer != expected_peer:
        raise Refusal(Code.MALFORMED, "the record stands under another peer's name")
    if record.expires_at <= now:
        raise Refusal(Code.EXPIRED, f"the record expired {now - record.expires_at:.0f} s ago")
    if record.expires_at > now + limits.DHT_RECORD_LIFETIME_SECONDS_MAX:
        raise Refusal(Code.FUTURE, f"the record expires {record.expires_at - now:.0f} s from now")


def check_signature(record: PeerRecord, verify: Verify) -> None:
    """The dear half of `check_record` (about 0.1 ms). Raises Refusal(BAD_SIGNATURE)."""
    message = signed_bytes(record.run_id, record.peer, record.addresses, record.step, record.expires_at)
    if not verify(PeerId(record.peer), message, record.signature):
        raise Refusal(Code.BAD_SIGNATURE, "the record is not signed by the peer it names")
