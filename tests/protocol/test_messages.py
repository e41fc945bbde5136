"""Every kind of message: it comes back as it was, and its bounds hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.cases import Particular
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.messages import (
    LINE_FLOATS,
    PAYLOAD_TYPES,
    Accusation,
    Aggregate,
    Ban,
    Certificate,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Payload,
    Projection,
    Reveal,
    Verdict,
    ViewChange,
    Vote,
    Want,
    bitmap_of,
    header_digest,
    indexes_of,
)
from tests.protocol.builders import CompleteStep, digest_of, refused
from tests.protocol.strategies import PAYLOADS


def test_every_kind_is_tested_here() -> None:
    assert set(PAYLOADS) == set(PAYLOAD_TYPES.values())
    assert set(PAYLOAD_TYPES) == set(Kind)


@pytest.mark.parametrize("kind", PAYLOADS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(st.data())
def test_every_kind_comes_back_as_it_was(kind: type[Payload], data: st.DataObject) -> None:
    payload = data.draw(PAYLOADS[kind])
    assert wire.unpack(wire.pack(payload), kind, limits.ENVELOPE_BYTES_MAX) == payload


COMMIT = CompleteStep().commit(0, {}, {})
HEADER = CompleteStep().header
BIG = limits.ROSTER_PEERS_MAX
BAN = Ban(bytes(38), 1, 7, bytes(32))
LINE = (0.0,) * LINE_FLOATS
PROJECTION = Projection(bytes(32), 0, bytes(32), b"\1", 1.0, (LINE,))
ACCUSATION = Accusation(bytes(38), 1, 7, b"")
OUT_OF_BOUNDS: list[tuple[msgspec.Struct, dict[str, Any]]] = [
    (COMMIT, {"previous": bytes(31)}),
    (COMMIT, {"state": bytes(33)}),
    (COMMIT, {"finding": bytes(33)}),
    (COMMIT, {"parts": (bytes(32),) * (BIG + 1)}),
    (COMMIT, {"norms": (1.0,) * (BIG + 1)}),
    (COMMIT, {"samples": -1}),
    (COMMIT, {"samples": 2**40 + 1}),
    (COMMIT, {"joins": (bytes(38),) * (limits.JOINS_PER_COMMIT_MAX + 1)}),
    (COMMIT, {"leaves": (bytes(37),)}),
    (Cut(bytes(32), ((0, bytes(32)),)), {"commits": ()}),
    (Cut(bytes(32), ((0, bytes(32)),)), {"commits": ((BIG, bytes(32)),)}),
    (Aggregate(bytes(32), 0, bytes(32), b"\1"), {"part": BIG}),
    (Aggregate(bytes(32), 0, bytes(32), b"\1"), {"included": bytes(BIG // 8 + 1)}),
    (Reveal(bytes(32), bytes(32)), {"nonce": bytes(31)}),
    (Reveal(bytes(32), bytes(32)), {"aggregates": (bytes(33),)}),
    (Reveal(bytes(32), bytes(32)), {"aggregates": (b"",) * (BIG + 1)}),
    (PROJECTION, {"cut": bytes(31)}),
    (PROJECTION, {"part": BIG}),
    (PROJECTION, {"aggregate": b""}),
    (PROJECTION, {"included": bytes(BIG // 8 + 1)}),
    (PROJECTION, {"lines": ()}),
    (PROJECTION, {"lines": (LINE[1:],)}),
    (PROJECTION, {"lines": ((*LINE, 0.0),)}),
    (PROJECTION, {"lines": (LINE,) * (BIG + 1)}),
    (HEADER, {"step": 2**48 + 1}),
    (HEADER, {"step": -1}),
    (HEADER, {"parts": ()}),
    (HEADER, {"nonces": (bytes(33),)}),
    (HEADER, {"projections": (bytes(33),)}),
    (HEADER, {"projections": (b"",) * (BIG + 1)}),
    (HEADER, {"joined": (bytes(38),) * (BIG + 1)}),
    (HEADER, {"bans": (BAN,) * (limits.BANS_PER_HEADER_MAX + 1)}),
    (BAN, {"peer": bytes(37)}),
    (BAN, {"reason": 0}),
    (BAN, {"reason": 256}),
    (BAN, {"step": 2**48 + 1}),
    (BAN, {"case": b""}),
    (Vote(bytes(32)), {"header": b""}),
    (ACCUSATION, {"accused": b""}),
    (ACCUSATION, {"reason": 0}),
    (ACCUSATION, {"step": -1}),
    (ACCUSATION, {"proof": bytes(limits.PROOF_BYTES_MAX + 1)}),
    (Verdict(bytes(32), bytes(38)), {"case": bytes(31)}),
    (Verdict(bytes(32), bytes(38)), {"guilty": bytes(39)}),
    (ViewChange(None, 0), {"lock_view": limits.VIEWS_MAX}),
    (Want((bytes(32),)), {"digests": ()}),
    (Want((bytes(32),)), {"digests": (bytes(32),) * (limits.WANTS_PER_MESSAGE_MAX + 1)}),
    (Certificate(HEADER, ((0, 0, bytes(64)),)), {"votes": ()}),
    (Certificate(HEADER, ((0, 0, bytes(64)),)), {"votes": ((0, 0, bytes(63)),)}),
]


@pytest.mark.parametrize(("good", "changes"), OUT_OF_BOUNDS)
def test_a_field_out_of_bounds_is_malformed(good: msgspec.Struct, changes: dict[str, Any]) -> None:
    kind = type(good)
    assert wire.unpack(wire.pack(good), kind, 1 << 20) == good
    bad = wire.pack(msgspec.structs.replace(good, **changes))
    refused(lambda: wire.unpack(bad, kind, 1 << 20), Code.MALFORMED)


def test_missing_and_additional_fields_are_refused() -> None:
    fields = msgpack.unpackb(wire.pack(HEADER))
    for wrong in (fields[:-5], [*fields, 0], []):
        refused(partial(wire.unpack, msgpack.packb(wrong), Header, 1 << 20), Code.MALFORMED)
    # Fields with a default may be missing for the parser, but then they are not spelled as we spell them.
    for struct, default_fields in ((COMMIT, 5), (HEADER, 4), (ACCUSATION, 1), (Reveal(bytes(32), bytes(32)), 1)):
        short = msgpack.packb(msgpack.unpackb(wire.pack(struct))[:-default_fields])
        refused(partial(wire.unpack, short, type(struct), 1 << 20), Code.NOT_CANONICAL)


def test_the_largest_messages_fit_their_limits() -> None:
    commit = Commit(
        *(bytes(32), bytes(32), (bytes(32),) * BIG, bytes(32), 1.0, 2**40),
        *((bytes(38),) * limits.JOINS_PER_COMMIT_MAX, (bytes(38),) * limits.JOINS_PER_COMMIT_MAX, bytes(32)),
        norms=(1.0,) * BIG,
    )
    cut = Cut(bytes(32), tuple((index, bytes(32)) for index in range(BIG)))
    header = msgspec.structs.replace(
        HEADER,
        step=2**48,
        contributors=bytes(BIG // 8),
        parts=(bytes(32),) * BIG,
        nonces=(bytes(32),) * BIG,
        joined=(bytes(38),) * BIG,
        left=(bytes(38),) * BIG,
        bans=(Ban(bytes(38), 255, 2**48, bytes(32)),) * limits.BANS_PER_HEADER_MAX,
        projections=(bytes(32),) * BIG,
    )
    reveal = Reveal(bytes(32), bytes(32), (bytes(32),) * BIG)
    projection = Projection(bytes(32), BIG - 1, bytes(32), bytes(BIG // 8), 1.0, (LINE,) * BIG)
    accusation = Accusation(bytes(38), 255, 2**48, bytes(limits.PROOF_BYTES_MAX))
    for payload in (commit, cut, reveal, projection, header, ViewChange(header, 0), accusation):
        data = wire.pack(payload)
        envelope = Envelope(1, bytes(32), 2**48, 65535, 255, bytes(64), data, bytes(38), bytes(64))
        assert len(wire.pack(envelope)) <= limits.ENVELOPE_BYTES_MAX
        assert wire.unpack(data, type(payload), limits.ENVELOPE_BYTES_MAX) == payload
    shown = Envelope(1, bytes(32), 2**48, 0, 16, bytes(34), wire.pack(projection), bytes(38), bytes(64))
    assert (
        len(wire.pack(Particular(BIG - 1, shown))) <= limits.PROOF_BYTES_MAX
    )  # so that it can be held against its author
    certificate = Certificate(header, tuple((index, 65535, bytes(64)) for index in range(BIG)))
    assert len(wire.pack(certificate)) <= limits.CERTIFICATE_BYTES_MAX
    assert limits.CERTIFICATE_BYTES_MAX < limits.FRAME_BYTES_MAX


def test_the_name_of_a_header_is_the_payload_digest_of_its_proposal() -> None:
    assert header_digest(HEADER) == digest_of(HEADER)
    assert header_digest(msgspec.structs.replace(HEADER, step=1)) != header_digest(HEADER)


@given(st.sets(st.integers(0, 255)))
def test_bitmaps_come_back_and_have_the_length_of_the_roster(indexes: set[int]) -> None:
    bitmap = bitmap_of(indexes, 256)
    assert len(bitmap) == 32
    assert indexes_of(bitmap) == sorted(indexes)


def test_bitmaps_count_from_the_least_significant_bit() -> None:
    assert bitmap_of([0, 9], 10) == b"\x01\x02"
    assert indexes_of(b"") == []
