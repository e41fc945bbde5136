"""Canonical msgpack with bounds: one meaning, one byte string, and no allocation a peer can inflate.

The idea: `msgspec` reads bytes straight into a typed, frozen structure that is valid once it exists, and stops at
the first byte that no such structure has; then it is encoded again, and if the bytes differ the sender used another
spelling and is refused. So digests and signatures may be taken over the wire bytes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from crowdsurf.protocol.errors import Code, Refusal, one_line

T = TypeVar("T")

REASON_CHARACTERS_MAX = 200
"""What is said about bytes that do not fit their type. It quotes names that the sender chose, of any length."""


def pack(value: Any) -> bytes:
    """Canonical bytes of a msgspec structure or of plain lists, maps (sorted by key), bytes and scalars."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), order="deterministic")
    return msgpack.packb(plain, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview, kind: type[T], bytes_max: int) -> T:
    """Parse canonical bytes of at most `bytes_max` into `kind`.

    Raises Refusal: OVERSIZED, MALFORMED (not msgpack, wrong types, out of range) or NOT_CANONICAL.
    """
    if len(data) > bytes_max:
        raise Refusal(Code.OVERSIZED, f"{len(data)} bytes where at most {bytes_max} are allowed")
    try:
        # With the types in hand, and not first into plain values: an empty array is one byte here and 72 in memory.
        # Memory is taken for elements as they come, not for the length that an array or a map claims.
        value = msgspec.msgpack.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _malformed(kind, error) from error
    try:
        canonical = pack(value)
    except (TypeError, ValueError, RecursionError) as error:  # a type that holds anything: what we never write
        raise _malformed(kind, error) from error
    if canonical != data:
        raise Refusal(Code.NOT_CANONICAL, f"{kind.__name__} is not in canonical form")
    return value


def _malformed(kind: type, error: Exception) -> Refusal:
    return Refusal(Code.MALFORMED, f"{kind.__name__}: {one_line(str(error), REASON_CHARACTERS_MAX)}")
