"""The local door of a running peer: a Unix socket in its home that answers `status` and takes `leave`.

The idea: one line in, one JSON line out, readable by our user only. It is how a second terminal, a script or a
container's health check looks at a daemon; nothing remote ever reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crowdsurf.protocol.errors import WorldError

SOCKET_FILE = "control.sock"
LINE_BYTES_MAX = 1024 * 1024
ANSWER_SECONDS = 5.0
PATH_BYTES_MAX = 100
"""Unix socket paths are limited to about 108 bytes; in longer homes the folder goes by its open descriptor."""

Answer = Callable[[str], dict[str, Any] | None]
"""Answers one command; None for one it does not know."""

log = logging.getLogger(__name__)


class ControlSocket:
    """Serves commands on `folder/control.sock`."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._path = folder / SOCKET_FILE
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A socket left behind by a killed peer is replaced (the journal's lock says we are alone)."""
        descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                descriptor.bind(_short_path(self._path, folder))
            finally:
                os.close(folder)
            os.chmod(self._path, 0o600)
        except OSError as error:
            descriptor.close()
            raise WorldError(f"cannot open {self._path}: {error.strerror or error}") from error
        self._server = await asyncio.start_unix_server(self._accept, sock=descriptor, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """Stop listening and end what is connected."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="control connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # also if it was cancelled before its first line

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                command = (await reader.readline()).decode("utf-8", "replace").strip()
                answer = self._answer(command)
                if answer is None:
                    answer = {"error": f"unknown command {command[:80]!r}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError) as error:  # a line beyond LINE_BYTES_MAX is a ValueError
            log.debug("a local connection ended: %r", error)


def _short_path(path: Path, folder_descriptor: int) -> str:
    """A name for the socket that fits into a socket address, whatever the folder is called."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return str(path)
    return f"/proc/self/fd/{folder_descriptor}/{path.name}"


def ask(folder: Path, command: str) -> dict[str, Any]:
    """Ask the peer whose run folder this is. Blocks. Raises WorldError if no peer answers there."""
    path = folder / SOCKET_FILE
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise WorldError(f"there is no running peer in {folder}") from error
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(_short_path(path, descriptor))
            connection.sendall(command.encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline(LINE_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise WorldError(f"no peer answers in {folder}; is it running?") from error
    finally:
        os.close(descriptor)
    if not isinstance(answer, dict):
        raise WorldError(f"what answers in {folder} is no peer of this program")
    return answer
