"""The control protocol of p2pd (the go-libp2p daemon): one request, one answer, over a fresh unix socket.

The idea: each message is a protobuf behind its length as a varint. A socket whose request was STREAM_OPEN
is the stream itself after the answer, and p2pd dials a listener of ours for every inbound stream and sends
a StreamInfo first. So messages are read byte-exactly: what follows belongs to the stream.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from crowdsurf.protocol.errors import WorldError, one_line
from crowdsurf.protocol.ids import PeerId, peer_text
from crowdsurf.protocol.limits import ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX

Request = p2pd_pb2.Request
_MESSAGE_BYTES_MAX = 1 << 20
"""One control message from our own p2pd; the longest lists a peer's addresses."""
REASON_CHARACTERS_MAX = 300
"""Of p2pd's words for an error: several lines, with names in them that a stranger chose."""


class P2pdRefused(WorldError):
    """p2pd answered a request with an error; `reason` is its text."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"p2pd says: {reason}")
        self.reason = reason


async def ask(control_path: str, request: Any) -> tuple[Any, socket.socket]:
    """Send `request` and return p2pd's answer with the socket, which the caller owns.

    Raises P2pdRefused for an error answer and WorldError if p2pd is gone. The caller sets the deadline.
    """
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    answered = False
    try:
        await loop.sock_connect(connection, control_path)
        body = request.SerializeToString()
        await loop.sock_sendall(connection, _varint(len(body)) + body)
        response = p2pd_pb2.Response.FromString(await read_message(connection))
        if response.type == p2pd_pb2.Response.ERROR:
            raise P2pdRefused(one_line(response.error.msg, REASON_CHARACTERS_MAX))
        answered = True
        return response, connection
    except OSError as error:
        raise WorldError(f"p2pd, the network process of this peer, does not answer ({error}); restart") from error
    finally:
        if not answered:
            connection.close()


async def call(control_path: str, request: Any) -> Any:
    """Send `request`, return the answer and close the socket. Raises what `ask` raises."""
    response, connection = await ask(control_path, request)
    connection.close()
    return response


async def read_message(connection: socket.socket) -> bytes:
    """One length-prefixed message and not a byte more. Raises ConnectionError if it ends early or is too long."""
    length = shift = 0
    while True:
        byte = (await _read_exactly(connection, 1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if length > _MESSAGE_BYTES_MAX or shift > 28:
            raise ConnectionError("a control message is too long")
    if length > _MESSAGE_BYTES_MAX:
        raise ConnectionError("a control message is too long")
    return await _read_exactly(connection, length)


async def _read_exactly(connection: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < length:
        piece = await loop.sock_recv(connection, length - len(received))
        if not piece:
            raise ConnectionError("it closed the connection")
        received += piece
    return bytes(received)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def usable_addresses(peer: PeerId, addresses: Sequence[str]) -> list[bytes]:
    """The binary form of those `addresses` that parse and belong to `peer`, without their `/p2p/<peer>` end.

    They come from strangers (DHT records, invites), so bad ones are skipped and their number is bounded.
    """
    suffix = f"/p2p/{peer_text(peer)}"
    usable = []
    for text in addresses[:ADDRESSES_PER_PEER_MAX]:
        if len(text) > ADDRESS_BYTES_MAX:
            continue
        try:
            usable.append(Multiaddr(text.removesuffix(suffix)).to_bytes())
        except ValueError:
            continue
    return usable
