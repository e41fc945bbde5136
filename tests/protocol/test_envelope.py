"""Signed envelopes: what the signature covers, and what proves that somebody signed twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.envelope import (
    Equivocation,
    Slot,
    decode_envelope,
    is_equivocation,
    open_envelope,
    seal,
    signed_bytes,
    slot_of,
)
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.messages import Envelope, Join, Kind, Leave, Reveal, Vote, payload_digest
from tests.protocol.builders import refused
from tests.protocol.swarm import FakeSigner, name, verify_mac

RUN = name("run")
ALICE, BOB = FakeSigner(1), FakeSigner(2)
SEALED = seal(ALICE, RUN, Slot(7, 2, Kind.VOTE, b""), Vote(name("header")))


def changed(**changes: Any) -> Envelope:
    return msgspec.structs.replace(SEALED.envelope, **changes)


def test_an_envelope_opens_to_what_was_sealed() -> None:
    data = wire.pack(SEALED.envelope)
    opened = open_envelope(decode_envelope(data), RUN, verify_mac)
    assert opened == SEALED
    assert (opened.sender, slot_of(opened.envelope)) == (ALICE.peer_id, Slot(7, 2, Kind.VOTE, b""))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 8},
        {"view": 3},
        {"kind": Kind.OUTCOME},
        {"kind": Kind.JOIN},
        {"subject": b"x"},
        {"payload": wire.pack(Vote(name("other")))},
        {"sender": BOB.peer_id},
        {"signature": bytes(64)},
        {"signature": bytes([SEALED.envelope.signature[0] ^ 1]) + SEALED.envelope.signature[1:]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_any_changed_field_breaks_the_signature(changes: dict[str, Any]) -> None:
    refused(lambda: open_envelope(changed(**changes), RUN, verify_mac), Code.BAD_SIGNATURE)


def test_other_versions_runs_and_kinds_are_refused_by_name() -> None:
    refused(lambda: open_envelope(changed(version=2), RUN, verify_mac), Code.WRONG_VERSION)
    refused(lambda: open_envelope(changed(run_id=name("other")), RUN, verify_mac), Code.WRONG_RUN)
    refused(lambda: open_envelope(changed(kind=0), RUN, verify_mac), Code.UNKNOWN_KIND)
    refused(lambda: open_envelope(changed(kind=21), RUN, verify_mac), Code.UNKNOWN_KIND)


def test_the_signature_covers_version_and_run() -> None:
    slot, payload = Slot(7, 2, Kind.VOTE, b""), SEALED.digest
    mine = signed_bytes(1, RUN, slot, payload, ALICE.peer_id)
    assert mine != signed_bytes(2, RUN, slot, payload, ALICE.peer_id)
    assert mine != signed_bytes(1, name("other"), slot, payload, ALICE.peer_id)


def test_a_message_replayed_into_another_run_is_refused_by_those_who_run_that() -> None:
    """Even with the run id rewritten: the signature names the first run."""
    other = name("other run")
    refused(lambda: open_envelope(SEALED.envelope, other, verify_mac), Code.WRONG_RUN)
    refused(lambda: open_envelope(changed(run_id=other), other, verify_mac), Code.BAD_SIGNATURE)


def test_a_signed_payload_of_the_wrong_kind_is_malformed() -> None:
    """The sender did sign this; it is refused all the same, because a vote is no reveal."""
    odd = seal(ALICE, RUN, Slot(7, 0, Kind.REVEAL, b""), Vote(name("header")))
    refused(lambda: open_envelope(odd.envelope, RUN, verify_mac), Code.MALFORMED)


def test_a_signed_payload_in_another_spelling_is_refused() -> None:
    payload = b"\xdc\x00\x01" + wire.pack(Vote(name("header")))[1:]
    slot = Slot(7, 2, Kind.VOTE, b"")
    message = signed_bytes(1, RUN, slot, payload_digest(payload), ALICE.peer_id)
    envelope = changed(payload=payload, signature=ALICE.sign(message))
    refused(lambda: open_envelope(envelope, RUN, verify_mac), Code.NOT_CANONICAL)


def test_nothing_is_parsed_before_the_signature_holds() -> None:
    """The payload's parser is only for what a known key signed."""
    refused(lambda: open_envelope(changed(payload=b"\xc1 garbage"), RUN, verify_mac), Code.BAD_SIGNATURE)


def test_oversized_and_foreign_bytes_are_refused_before_they_are_parsed() -> None:
    refused(lambda: decode_envelope(bytes(limits.ENVELOPE_BYTES_MAX + 1)), Code.OVERSIZED)
    refused(lambda: decode_envelope(b"\xc0"), Code.MALFORMED)
    too_long = changed(subject=bytes(65))
    refused(lambda: decode_envelope(wire.pack(too_long)), Code.MALFORMED)


def test_two_payloads_for_one_slot_are_proof() -> None:
    other = seal(ALICE, RUN, Slot(7, 2, Kind.VOTE, b""), Vote(name("another header")))
    assert is_equivocation(Equivocation(SEALED.envelope, other.envelope), RUN, verify_mac)


@pytest.mark.parametrize(
    "second",
    [
        SEALED,
        seal(BOB, RUN, Slot(7, 2, Kind.VOTE, b""), Vote(name("another header"))),
        seal(ALICE, RUN, Slot(7, 3, Kind.VOTE, b""), Vote(name("another header"))),
        seal(ALICE, RUN, Slot(8, 2, Kind.VOTE, b""), Vote(name("another header"))),
        seal(ALICE, RUN, Slot(7, 0, Kind.REVEAL, b""), Reveal(name("cut"), name("nonce"))),
        seal(ALICE, RUN, Slot(7, 0, Kind.LEAVE, b""), Leave()),
    ],
    ids=["the same message", "another sender", "another view", "another step", "another kind", "leave"],
)
def test_anything_else_is_no_proof(second: Any) -> None:
    assert not is_equivocation(Equivocation(SEALED.envelope, second.envelope), RUN, verify_mac)


def test_a_proof_with_a_forged_half_is_refused() -> None:
    forged = changed(payload=wire.pack(Vote(name("never said"))))
    refused(lambda: is_equivocation(Equivocation(SEALED.envelope, forged), RUN, verify_mac), Code.BAD_SIGNATURE)


def test_a_sender_without_an_ed25519_key_is_malformed() -> None:
    refused(lambda: open_envelope(changed(sender=bytes(38)), RUN, verify_mac), Code.MALFORMED)


def test_join_and_leave_have_the_same_bytes_but_not_the_same_meaning() -> None:
    join, leave = (seal(ALICE, RUN, Slot(3, 0, k, b""), p) for k, p in ((Kind.JOIN, Join()), (Kind.LEAVE, Leave())))
    assert join.envelope.payload == leave.envelope.payload
    twisted = msgspec.structs.replace(join.envelope, kind=int(Kind.LEAVE))
    with pytest.raises(Refusal):
        open_envelope(twisted, RUN, verify_mac)
