"""The journal's file format: how records are written, and how damage is told from a torn write.

Layout, all integers little-endian:

    file    "CSURFJL1"  salt (16 random bytes)  checksum (8)            32 bytes, then records
    record  payload length (4)  type (1, never 0)  batch distance (4)  payload  checksum (8)

A checksum is the start of a BLAKE3 digest over the salt, the record's offset in the file, its header and its
payload, so a record that is damaged, moved, or copied from another journal never passes.

The idea: records become durable in batches, and `batch distance` is how far back in the file a record's own
batch started. Everything before that start was on the disk already, which tells the two kinds of damage apart.
A bad record that only its own batch follows is a write that a crash tore: nothing in it was ever relied on. A
bad record that a later batch follows was durable once: the disk is broken or somebody changed the file. What no
log can tell is damage to its very last batch, or to every record from some batch on, from a torn write.

Zeros at the end are space taken ahead.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from crowdsurf.protocol.errors import WorldError
from crowdsurf.protocol.ids import digest
from crowdsurf.protocol.recovery import Record

PAYLOAD_BYTES_MAX = 1024 * 1024
"""One record; the largest we write is a certificate of 128 KiB."""
BATCH_BYTES_MAX = 8 * 1024 * 1024
"""Records that become durable together; a step appends a few hundred KiB."""
SALT_BYTES = 16

_MAGIC = b"CSURFJL1"
_CHECKSUM_BYTES = 8
FILE_HEADER_BYTES = len(_MAGIC) + SALT_BYTES + _CHECKSUM_BYTES
_HEADER = struct.Struct("<IBI")
_OFFSET = struct.Struct("<Q")
RECORD_BYTES_MIN = _HEADER.size + _CHECKSUM_BYTES
_CHUNK_BYTES = 1024 * 1024
_WAY_OUT = "restore the file from a copy, or start with a new identity in another folder"


class Found(NamedTuple):
    """A valid record."""

    record_type: int
    payload: bytes
    batch_start: int
    end: int


class Torn(NamedTuple):
    """The end of the valid records, where bytes that make no record follow."""

    offset: int
    dropped_bytes: int


def scan(file: int, path: Path) -> Iterator[Found | Torn]:
    """Every valid record in order, then at most one `Torn`. Raises WorldError on damage that no crash explains."""
    salt = read_salt(file, path)
    offset = FILE_HEADER_BYTES
    while True:
        # Read again before judging: a live writer may have finished between two looks.
        found = record_at(file, salt, offset)
        if found is None:
            data_end = _data_end(file, offset)
            later = _durable_evidence(file, salt, offset, data_end)
            found = record_at(file, salt, offset)
            if found is None:
                if later is not None:
                    raise WorldError(
                        f"the journal {path} is damaged at byte {offset}, before whole records (byte {later}); "
                        f"nothing was changed: {_WAY_OUT}"
                    )
                if data_end > offset:
                    yield Torn(offset, data_end - offset)
                return
        yield found
        offset = found.end


def record_at(file: int, salt: bytes, offset: int) -> Found | None:
    """The record at `offset` if a valid one is there. Reads at most one record."""
    header = os.pread(file, _HEADER.size, offset)
    if not _plausible_header(header, offset):
        return None
    payload_bytes, record_type, batch_distance = _HEADER.unpack(header)
    rest = os.pread(file, payload_bytes + _CHECKSUM_BYTES, offset + _HEADER.size)
    payload, checksum = rest[:payload_bytes], rest[payload_bytes:]
    if checksum != _checksum(salt, offset, header, payload):
        return None
    end = offset + RECORD_BYTES_MIN + payload_bytes
    return Found(record_type, payload, offset - batch_distance, end)


def _plausible_header(header: bytes, offset: int) -> bool:
    """Whether these bytes may begin a record; true of few that do not."""
    if len(header) < _HEADER.size:
        return False
    payload_bytes, record_type, batch_distance = _HEADER.unpack(header)
    in_file = batch_distance <= offset - FILE_HEADER_BYTES
    return bool(record_type) and payload_bytes <= PAYLOAD_BYTES_MAX and batch_distance <= BATCH_BYTES_MAX and in_file


def _durable_evidence(file: int, salt: bytes, bad: int, data_end: int) -> int | None:
    """Offset of a valid record behind `bad` whose batch began behind it too: proof that `bad` was once durable."""
    offset = bad + 1
    while offset < data_end:
        window = os.pread(file, _CHUNK_BYTES + _HEADER.size, offset)
        for index in range(min(_CHUNK_BYTES, data_end - offset, len(window))):
            if _plausible_header(window[index : index + _HEADER.size], offset + index):
                found = record_at(file, salt, offset + index)
                if found is not None and found.batch_start > bad:
                    return offset + index
        offset += _CHUNK_BYTES
    return None


def _data_end(file: int, offset: int) -> int:
    """Where the last byte behind `offset` that is not zero ends; `offset` if there is none."""
    end = offset
    while chunk := os.pread(file, _CHUNK_BYTES, offset):
        used = len(chunk.rstrip(b"\0"))
        if used:
            end = offset + used
        offset += len(chunk)
    return end


def encode_batch(salt: bytes, start: int, records: list[Record]) -> bytes:
    """The bytes of records that become durable together, the first one at offset `start`."""
    batch = bytearray()
    for record_type, payload in records:
        header = _HEADER.pack(len(payload), record_type, len(batch))
        batch += header + payload + _checksum(salt, start + len(batch), header, payload)
    return bytes(batch)


def _checksum(salt: bytes, offset: int, header: bytes, payload: bytes) -> bytes:
    return digest("journal record", salt + _OFFSET.pack(offset) + header + payload)[:_CHECKSUM_BYTES]


def new_file_header(salt: bytes) -> bytes:
    return _MAGIC + salt + digest("journal file", _MAGIC + salt)[:_CHECKSUM_BYTES]


def read_salt(file: int, path: Path) -> bytes:
    header = os.pread(file, FILE_HEADER_BYTES, 0)
    salt = header[len(_MAGIC) : len(_MAGIC) + SALT_BYTES]
    if header != new_file_header(salt):
        raise WorldError(
            f"{path} is damaged at byte 0 or is no journal of this version; nothing was changed: {_WAY_OUT}"
        )
    return salt
