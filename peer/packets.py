"""The frames peers exchange: which stream carries what, and how each frame's payload is made and read.

The idea: three named streams. On `control` signed messages, certificates and wants flow one way for as long as
the connection lives. On `bulk` tensor parts are pushed. On `fetch` one request is answered and the stream ends.
A frame is one kind byte, a length and a payload (`transport/frames.py`); sizes are bounded per kind here.
SPEC.md §2 gives the layouts.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated

import msgspec

from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import DIGEST_BYTES, Digest
from crowdsurf.protocol.messages import Certificate, DigestBytes, Step, Want

CONTROL_STREAM = f"/crowdsurf/{limits.PROTOCOL_VERSION}/control"
BULK_STREAM = f"/crowdsurf/{limits.PROTOCOL_VERSION}/bulk"
FETCH_STREAM = f"/crowdsurf/{limits.PROTOCOL_VERSION}/fetch"


class FrameKind(enum.IntEnum):
    """First byte of a frame."""

    END = 0
    """Nothing more follows on this stream: the end mark that a proxied stream does not have."""
    HELLO = 1
    """First frame of every stream: the run it belongs to."""
    ENVELOPE = 2
    CERTIFICATE = 3
    WANT = 4
    BLOB = 5
    """Digest, then the raw bytes it names: the answer to GET_BLOB."""
    PUSH = 6
    """Step, digest, then the raw bytes it names: unasked, on a bulk stream."""
    GET_BLOB = 16
    GET_CHAIN = 17
    GET_STATE = 18
    GET_MANIFEST = 19
    MANIFEST = 20
    STATE = 21
    """Which state follows: its step, its size; the raw bytes come in CHUNK frames."""
    CHUNK = 22
    NOT_HERE = 23
    """The answer to a request for something this peer does not have."""


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who speaks is known from the transport; this says about which run."""

    run_id: DigestBytes


class StateHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a STATE frame announces."""

    step: Step
    """The state is the one before this step."""
    state_bytes: Annotated[int, msgspec.Meta(ge=1, le=limits.BLOB_BYTES_MAX)]


PUSH_HEAD = struct.Struct(f">Q{DIGEST_BYTES}s")
"""Step and digest at the head of a PUSH frame."""

PAYLOAD_BYTES_MAX: dict[int, int] = {
    FrameKind.END: 0,
    FrameKind.HELLO: 64,
    FrameKind.ENVELOPE: limits.ENVELOPE_BYTES_MAX,
    FrameKind.CERTIFICATE: limits.CERTIFICATE_BYTES_MAX,
    FrameKind.WANT: 40 * limits.WANTS_PER_MESSAGE_MAX,
    FrameKind.GET_BLOB: DIGEST_BYTES,
    FrameKind.GET_CHAIN: 9,
    FrameKind.GET_STATE: 0,
    FrameKind.GET_MANIFEST: 0,
    FrameKind.MANIFEST: limits.MANIFEST_BYTES_MAX,
    FrameKind.STATE: 32,
    FrameKind.NOT_HERE: 0,
}
"""Bound of every small frame; BLOB, PUSH and CHUNK are bounded by what is expected of them."""


def check_size(kind: int, length: int) -> None:
    """Refuse a small frame of unknown kind or beyond its bound, before its payload is read. Raises Refusal."""
    bound = PAYLOAD_BYTES_MAX.get(kind)
    if bound is None:
        raise Refusal(Code.UNKNOWN_KIND, f"frame kind {kind} has no place here")
    if length > bound:
        raise Refusal(Code.OVERSIZED, f"a frame of kind {kind} with {length} bytes where {bound} are allowed")


async def send_hello(stream: Stream, run_id: Digest, timeout_seconds: float) -> None:
    """Begin a stream of our own. The stream is over if that fails. Raises WorldError."""
    try:
        await frames.send_frame(stream, FrameKind.HELLO, wire.pack(Hello(run_id)), timeout_seconds=timeout_seconds)
    except BaseException:
        stream.abort()
        raise


async def receive_hello(stream: Stream, run_id: Digest, timeout_seconds: float) -> None:
    """Check the first frame of a peer's stream. Raises Refusal, WorldError."""
    kind, payload = await frames.receive_frame(stream, PAYLOAD_BYTES_MAX[FrameKind.HELLO], timeout_seconds)
    if kind != FrameKind.HELLO:
        raise Refusal(Code.UNKNOWN_KIND, f"a stream begins with a hello, not with frame kind {kind}")
    if wire.unpack(payload, Hello, PAYLOAD_BYTES_MAX[FrameKind.HELLO]).run_id != run_id:
        raise Refusal(Code.WRONG_RUN, "the stream belongs to another run")


def decode_certificate(payload: bytes) -> Certificate:
    """Raises Refusal."""
    return wire.unpack(payload, Certificate, limits.CERTIFICATE_BYTES_MAX)


def decode_want(payload: bytes) -> tuple[Digest, ...]:
    """Raises Refusal."""
    want = wire.unpack(payload, Want, PAYLOAD_BYTES_MAX[FrameKind.WANT])
    return tuple(Digest(name) for name in want.digests)
