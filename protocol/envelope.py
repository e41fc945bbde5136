"""Signed envelopes: what exactly is signed, how it is opened, and what proves that somebody signed twice.

The idea: the signature covers the protocol version, the run, the step, the view, the kind, the subject, the
payload's digest and the sender, so a message can be replayed into no other run, step or role. Two envelopes
with the same slot and different payloads are proof of equivocation that needs no witness. SPEC.md §2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import PAYLOAD_TYPES, Envelope, Kind, Payload, payload_digest

Verify = Callable[[PeerId, bytes, bytes], bool]
"""(peer, message, signature) -> whether the signature is the peer's. Ed25519 live, a keyed digest in simulation."""


class Signer(Protocol):
    """The key of this peer, as far as the rules need it."""

    @property
    def peer_id(self) -> PeerId: ...

    def sign(self, message: bytes) -> bytes:
        """64 signature bytes; deterministic."""
        ...

    def nonce(self, label: bytes) -> bytes:
        """32 secret bytes that depend on the key and the label alone, so a restart draws the same."""
        ...


class Slot(NamedTuple):
    """What a peer signs at most once."""

    step: int
    view: int
    kind: int
    subject: bytes


class Opened(NamedTuple):
    """An envelope whose payload was parsed and whose signature holds."""

    envelope: Envelope
    payload: Payload
    digest: Digest
    """Payload digest."""
    sender: PeerId
    slot: Slot


Opener = Callable[[Envelope], Opened]
"""`open_envelope` for one run. Raises Refusal."""


def slot_of(envelope: Envelope) -> Slot:
    """The slot an envelope fills."""
    return Slot(envelope.step, envelope.view, envelope.kind, envelope.subject)


def signed_bytes(version: int, run_id: bytes, slot: Slot, payload_name: bytes, sender: bytes) -> bytes:
    """The 32 bytes a signature covers."""
    fields = [version, run_id, slot.step, slot.view, slot.kind, slot.subject, payload_name, sender]
    return digest("envelope", wire.pack(fields))


def seal(signer: Signer, run_id: bytes, slot: Slot, payload: Payload) -> Opened:
    """Sign a payload for a slot. The caller has made sure that the slot was not signed before."""
    data = wire.pack(payload)
    name = payload_digest(data)
    message = signed_bytes(limits.PROTOCOL_VERSION, run_id, slot, name, signer.peer_id)
    envelope = Envelope(limits.PROTOCOL_VERSION, run_id, *slot, data, signer.peer_id, signer.sign(message))
    return Opened(envelope, payload, name, signer.peer_id, slot)


def decode_envelope(data: bytes | memoryview) -> Envelope:
    """Parse wire bytes. Raises Refusal; nothing is verified yet."""
    return wire.unpack(data, Envelope, limits.ENVELOPE_BYTES_MAX)


def open_envelope(envelope: Envelope, run_id: bytes, verify: Verify) -> Opened:
    """Check version, run, kind, payload and signature, cheapest first. Raises Refusal."""
    if envelope.version != limits.PROTOCOL_VERSION:
        raise Refusal(Code.WRONG_VERSION, f"protocol version {envelope.version}, we speak {limits.PROTOCOL_VERSION}")
    if envelope.run_id != run_id:
        raise Refusal(Code.WRONG_RUN, "the message belongs to another run")
    if envelope.kind not in PAYLOAD_TYPES:
        raise Refusal(Code.UNKNOWN_KIND, f"kind {envelope.kind}")
    name, slot, sender = payload_digest(envelope.payload), slot_of(envelope), PeerId(envelope.sender)
    message = signed_bytes(envelope.version, envelope.run_id, slot, name, sender)
    if not verify(sender, message, envelope.signature):
        raise Refusal(Code.BAD_SIGNATURE, "the signature is not the sender's")
    payload = wire.unpack(envelope.payload, PAYLOAD_TYPES[Kind(envelope.kind)], limits.ENVELOPE_BYTES_MAX)
    return Opened(envelope, payload, name, sender, slot)


class Equivocation(NamedTuple):
    """Two envelopes of one sender for one slot: proof, for anyone, that the sender signed twice."""

    first: Envelope
    second: Envelope


def is_equivocation(pair: Equivocation, run_id: bytes, verify: Verify) -> bool:
    """Whether the pair proves what it claims, from its bytes alone. Raises Refusal for envelopes that do not open."""
    first = open_envelope(pair.first, run_id, verify)
    second = open_envelope(pair.second, run_id, verify)
    same_slot = first.slot == second.slot and first.sender == second.sender
    return same_slot and first.digest != second.digest
