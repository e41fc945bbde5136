"""A peer is rebuilt from its journal: what it signed, what it voted for, what was certified."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol import wire
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Refusal, WorldError
from crowdsurf.protocol.messages import Certificate, Envelope, Header, Kind, Vote
from crowdsurf.protocol.recovery import Lock, RecordType, certificates_of, recover
from tests.peer.shell import key_of

KEY = key_of(0)
RUN = bytes(32)


def header(step: int) -> Header:
    digest = bytes(32)
    values: dict[str, Any] = {name: digest for name in ("previous", "roster", "state", "cut", "beacon", "next_roster")}
    return Header(step=step, contributors=b"\1", parts=(digest,), nonces=(digest,), joined=(), left=(), **values)


def signed(step: int) -> tuple[RecordType, bytes]:
    envelope = seal(KEY, RUN, Slot(step, 0, Kind.VOTE, b""), Vote(bytes(32))).envelope
    return RecordType.SIGNED, wire.pack(envelope)


def locked(step: int, view: int) -> tuple[RecordType, bytes]:
    return RecordType.LOCK, wire.pack(Lock(header(step), view))


def certified(step: int) -> tuple[RecordType, bytes]:
    return RecordType.CERTIFICATE, wire.pack(Certificate(header(step), ((0, 0, bytes(64)),)))


def test_every_kind_of_record_comes_back() -> None:
    found = recover([certified(0), signed(1), locked(1, 0), locked(1, 2)])
    assert [certificate.header.step for certificate in found.certificates] == [0]
    assert [envelope.step for envelope in found.signed] == [1]
    assert [(lock.step, view) for lock, view in found.locks] == [(1, 0), (1, 2)]
    assert isinstance(found.signed[0], Envelope)


def test_what_is_decided_needs_no_signature_or_lock_any_more() -> None:
    records = [record for step in range(50) for record in (signed(step), locked(step, 0), certified(step))]
    found = recover([*records, signed(50), signed(49)])
    assert len(list(found.certificates)) == 50
    assert [envelope.step for envelope in found.signed] == [50, 49]
    assert found.locks == []


def test_what_was_signed_for_a_step_survives_a_certificate_that_is_written_after_it() -> None:
    found = recover([signed(7), locked(7, 1), certified(6)])
    assert [envelope.step for envelope in found.signed] == [7]
    assert [view for _, view in found.locks] == [1]


def test_an_empty_journal_is_a_peer_with_no_past() -> None:
    found = recover([])
    assert (list(found.certificates), found.signed, found.locks) == ([], [], [])


@pytest.mark.parametrize("record_type", list(RecordType))
@pytest.mark.parametrize("payload", [b"", b"\x93\x01\x02\x03", signed(0)[1][:-1], signed(0)[1] + b"\0"])
def test_a_record_that_cannot_be_read_is_an_error_in_words(record_type: RecordType, payload: bytes) -> None:
    with pytest.raises(WorldError, match=r"record this version cannot read.*start with a new home folder"):
        recover([(record_type, payload)])


def test_a_kind_of_record_from_a_later_version_is_not_passed_over() -> None:
    """It may be a signature, and a peer that forgets one signs twice."""
    with pytest.raises(WorldError, match="use the version that wrote it"):
        recover([(99, b"?")])


def test_certificates_are_read_one_by_one() -> None:
    records = iter([signed(0), certified(0), certified(1), (RecordType.CERTIFICATE, b"\xc1")])
    found = certificates_of(records)
    assert [next(found).header.step, next(found).header.step] == [0, 1]
    with pytest.raises(Refusal):
        next(found)


def test_a_lock_is_checked_like_everything_else() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([msgspec.to_builtins(header(0), builtin_types=(bytes,)), -1], Lock, builtin_types=(bytes,))
