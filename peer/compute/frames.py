"""How the daemon and its worker talk: msgpack maps behind a length, file descriptors beside the first byte.

The idea: both ends are ours and on one machine, so the frame is as plain as it can be; only its length is
bounded, to turn a bug into an error instead of an allocation.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack

FRAME_BYTES_MAX = 1024 * 1024
"""A command with 256 ranges or rows and a manifest of 64 KiB stays far below."""
DESCRIPTORS_MAX = 8
"""File descriptors in one frame; a command names at most three segments."""
CANCEL = struct.Struct("<Q")
"""The first bytes of the control segment: the id of the work command that is to stop."""

_LENGTH = struct.Struct("!I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Length and msgpack body. Raises ValueError for a message above FRAME_BYTES_MAX."""
    body = msgpack.packb(message, use_bin_type=True)
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(body)} bytes is above {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > FRAME_BYTES_MAX:
        raise EOFError(f"a frame of {length} bytes: the two ends disagree")
    return int(length)


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """Worker's side, blocking: the next message and its file descriptors, or None when the daemon is gone."""
    try:
        header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, DESCRIPTORS_MAX)
        if not header:
            return None
        header += _receive_exactly(connection, _LENGTH.size - len(header))
        body = _receive_exactly(connection, _length(header))
    except (EOFError, ConnectionError):
        return None
    return msgpack.unpackb(body, raw=False), list(descriptors)


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


async def send_async(connection: socket.socket, frame: bytes, descriptors: list[int]) -> None:
    """Daemon's side, on a non-blocking socket. Raises OSError when the worker is gone.

    The first bytes carry the descriptors; the socket's buffer is empty then, because commands go one at a time.
    """
    sent = socket.send_fds(connection, [frame], descriptors) if descriptors else 0
    if sent < len(frame):
        await asyncio.get_running_loop().sock_sendall(connection, frame[sent:])


async def receive_async(connection: socket.socket) -> Message | None:
    """Daemon's side: the next message, or None when the worker is gone."""
    try:
        header = await _receive_exactly_async(connection, _LENGTH.size)
        body = await _receive_exactly_async(connection, _length(header))
    except (EOFError, ConnectionError):
        return None
    message: Message = msgpack.unpackb(body, raw=False)
    return message


async def _receive_exactly_async(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = await asyncio.get_running_loop().sock_recv(connection, count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
