"""What can be held against a peer, who may say so, and what decides it: pure functions of signed bytes.

The idea: a case is an accusation and what it is about. Class A is decided by the bytes it carries (two signatures
under one slot); class B by doing the accused's work again. Either way somebody is guilty: the accused, or who
accused it falsely. Nothing here depends on who was first, on a clock, or on anybody's word. SPEC §6.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.chain import Audit, Head
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, Verify, signed_bytes
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import (
    Accusation,
    Commit,
    DigestBytes,
    Header,
    Reason,
    SignatureBytes,
    Step,
    View,
    payload_digest,
)


class Record(NamedTuple):
    """What a member remembers of a certified step it took part in."""

    head: Head
    """What the step started from."""
    header: Header
    audits: tuple[Audit, ...]
    """Who validates what was done in it."""
    commits: dict[PeerId, Opened]
    """The commits of the cut."""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two payloads signed for one slot. A signature covers its payload's digest, so the payloads need not be shown."""

    step: Step
    view: View
    kind: Annotated[int, msgspec.Meta(ge=0, le=255)]
    subject: Annotated[bytes, msgspec.Meta(max_length=64)]
    first: tuple[DigestBytes, SignatureBytes]
    """Payload digest and signature; the smaller digest comes first."""
    second: tuple[DigestBytes, SignatureBytes]


def proof_of(pair: Equivocation) -> bytes:
    """The same two envelopes give the same proof, whichever was heard first."""
    signed = sorted((payload_digest(envelope.payload), envelope.signature) for envelope in pair)
    slot = pair.first
    return wire.pack(Proof(slot.step, slot.view, slot.kind, slot.subject, signed[0], signed[1]))


def proof_holds(accusation: Accusation, run_id: Digest, verify: Verify) -> bool:
    """Whether the proof in an accusation of equivocation convicts the accused."""
    try:
        proof = wire.unpack(accusation.proof, Proof, limits.PROOF_BYTES_MAX)
    except Refusal:
        return False
    accused, slot = PeerId(accusation.accused), Slot(proof.step, proof.view, proof.kind, proof.subject)
    if proof.first[0] >= proof.second[0] or proof.step != accusation.step:
        return False
    return all(
        verify(accused, signed_bytes(limits.PROTOCOL_VERSION, run_id, slot, name, accused), signature)
        for name, signature in (proof.first, proof.second)
    )


def subject_of(accusation: Accusation) -> bytes:
    """What makes two accusations the same slot: nobody says twice that a peer did something in a step."""
    return accusation.reason.to_bytes(1, "big") + accusation.step.to_bytes(8, "big") + accusation.accused


def case_name(opened: Opened, proven: bool) -> Digest:
    """The name of a case. A false proof is a case against its sender alone, so its name holds the sender."""
    return opened.digest if proven else digest("payload", opened.sender + opened.digest)


def audit_in_question(accusation: Accusation, accuser: PeerId, record: Record) -> Audit:
    """The audit a class B accusation is about; the record is that of the step it names.

    Raises Refusal(BAD_ACCUSATION) if the accuser had no part in such an audit: nobody else has anything to say."""
    gradient = accusation.reason == Reason.WRONG_GRADIENT
    for audit in record.audits if gradient else record.head.audits:
        pair = (audit.validator, audit.target) if gradient else (audit.target, audit.validator)
        if pair == (accuser, accusation.accused):
            return audit
    raise Refusal(Code.BAD_ACCUSATION, "the accuser had nothing to do with this work")


def guilty_of(accusation: Accusation, accuser: PeerId, record: Record, found: WorkRecomputed) -> PeerId | None:
    """Who is guilty, given the work as it should have been; None if what the accused signed is not known here."""
    said = record.commits.get(PeerId(accusation.accused))
    if said is None or not isinstance(said.payload, Commit):
        return None
    if accusation.reason == Reason.WRONG_GRADIENT:
        as_it_should = said.payload.parts == found.parts
    else:
        as_it_should = said.payload.finding in (b"", found.finding)
    return accuser if as_it_should else PeerId(accusation.accused)
