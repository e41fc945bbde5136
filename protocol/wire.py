"""Canonical msgpack with bounds: one meaning, one byte string, and no allocation a peer can inflate.

The idea: bytes are unpacked by `msgpack` with every length limited by the message's own size, converted by
`msgspec` into a typed, frozen structure that is valid once it exists, and encoded again; if the bytes differ
the sender used another spelling and is refused. So digests and signatures may be taken over the wire bytes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import Code, Refusal

T = TypeVar("T")


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
    plain = _unpack_plain(bytes(data))
    try:
        value = msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))
        canonical = pack(value)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise Refusal(Code.MALFORMED, f"{kind.__name__}: {error}") from error
    if canonical != data:
        raise Refusal(Code.NOT_CANONICAL, f"{kind.__name__} is not in canonical form")
    return value


def _unpack_plain(data: bytes) -> Any:
    """msgpack to plain values. Every length is bounded by the input's own size, which the caller has bounded, and
    that of arrays by ARRAY_ITEMS_MAX, because an array takes memory before its elements are read. The parser stops
    by itself at 1,024 levels of nesting, on a stack of its own."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=min(len(data), limits.ARRAY_ITEMS_MAX),
            max_map_len=len(data),
            max_str_len=len(data),
            max_bin_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Refusal(Code.MALFORMED, "not valid msgpack") from error
