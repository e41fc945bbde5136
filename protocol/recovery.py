"""What the journal of a peer holds, and how a peer is rebuilt from it.

The idea: three kinds of records are all a peer needs to be itself again: what it signed (so that it never signs
a slot differently), what it voted for (so that it stays locked), and what was certified (so that nothing
decided is forgotten). Beside them lie the grounds of its newest vote, which it needs to convince others if all of
them have forgotten. Everything else can be computed or fetched.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from crowdsurf.protocol import effects, limits, wire
from crowdsurf.protocol.errors import Code, Refusal, WorldError
from crowdsurf.protocol.messages import Certificate, Envelope, Header, View

GROUNDS_BYTES_MAX = 16 * 1024 * 1024
"""Of 256 members: as many commits of 9 KB, as many aggregates of 300 bytes, and the cut."""

Record = tuple[int, bytes]
"""Type (1 to 255) and payload."""


class RecordType(enum.IntEnum):
    """First byte of a journal record."""

    SIGNED = 1
    LOCK = 2
    CERTIFICATE = 3


@dataclass(slots=True)
class Recovered:
    """What a journal gives back after a restart."""

    certificates: Iterable[Certificate] = ()
    signed: list[Envelope] = field(default_factory=list)
    """Messages of ours that may have been sent."""
    locks: list[tuple[Header, int]] = field(default_factory=list)
    heard: list[Envelope] = field(default_factory=list)
    """Messages of others: the grounds of the newest lock."""


class Lock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A header this peer voted for, and the view it did so in."""

    header: Header
    view: View


def record_of(effect: effects.Effect) -> Record | None:
    """What the journal keeps of an effect; None for those it does not keep."""
    if isinstance(effect, effects.PersistSigned):
        return RecordType.SIGNED, wire.pack(effect.envelope)
    if isinstance(effect, effects.PersistLock):
        return RecordType.LOCK, wire.pack(Lock(effect.header, effect.view))
    if isinstance(effect, effects.PersistCertificate):
        return RecordType.CERTIFICATE, wire.pack(effect.certificate)
    return None


def pack_grounds(grounds: tuple[Envelope, ...]) -> bytes:
    """The grounds of a lock as bytes; they lie in a file of their own, because only the newest matter."""
    return wire.pack([wire.pack(envelope) for envelope in grounds])


def unpack_grounds(data: bytes) -> list[Envelope]:
    """Raises Refusal for anything but what `pack_grounds` wrote: a peer can go on without."""
    packed = wire.unpack(data, list[bytes], GROUNDS_BYTES_MAX)
    return [wire.unpack(item, Envelope, limits.ENVELOPE_BYTES_MAX) for item in packed]


def recover(records: Iterable[Record]) -> Recovered:
    """Sort a journal's records. Only what belongs to the newest steps is kept of signatures and locks.

    Raises WorldError if a record that the journal vouches for cannot be read.
    """
    certificates: list[Certificate] = []
    signed: list[Envelope] = []
    locks: list[tuple[Header, int]] = []
    for record_type, payload in records:
        try:
            if record_type == RecordType.SIGNED:
                signed.append(wire.unpack(payload, Envelope, limits.ENVELOPE_BYTES_MAX))
            elif record_type == RecordType.LOCK:
                lock = wire.unpack(payload, Lock, limits.CERTIFICATE_BYTES_MAX)
                locks.append((lock.header, lock.view))
            elif record_type == RecordType.CERTIFICATE:
                certificates.append(wire.unpack(payload, Certificate, limits.CERTIFICATE_BYTES_MAX))
                next_step = certificates[-1].header.step + 1
                signed = [envelope for envelope in signed if envelope.step >= next_step]
                locks = [lock_ for lock_ in locks if lock_[0].step >= next_step]
            else:
                raise Refusal(Code.UNKNOWN_KIND, f"type {record_type}")
        except Refusal as refusal:
            raise WorldError(
                f"the journal holds a record this version cannot read ({refusal.detail}); "
                "use the version that wrote it, or start with a new home folder"
            ) from refusal
    return Recovered(certificates, signed, locks)


def certificates_of(records: Iterable[Record]) -> Iterator[Certificate]:
    """The certified steps of a journal, oldest first. Raises Refusal for one that cannot be read."""
    for record_type, payload in records:
        if record_type == RecordType.CERTIFICATE:
            yield wire.unpack(payload, Certificate, limits.CERTIFICATE_BYTES_MAX)
