"""The local door of a running peer: a Unix socket in its home that answers `status` and takes `leave`.

The idea: one line in, one JSON line out, readable by our user only. It is how a second terminal, a script or a
container's health check looks at a daemon; nothing remote ever reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
"""Unix socket paths are limited to about 108 bytes; longer homes get a link through the temporary folder."""

Answer = Callable[[str], dict[str, Any]]
"""Answers one command; raises KeyError for one it does not know."""


class ControlSocket:
    """Serves commands on `folder/control.sock`."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._path = folder / SOCKET_FILE
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket left behind by a killed peer is replaced (the journal's lock says we are alone)."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            descriptor.bind(_short_path(self._path, folder))
            os.chmod(self._path, 0o600)
        except OSError as error:
            descriptor.close()
            raise WorldError(f"cannot open {self._path}: {error.strerror or error}") from error
        finally:
            os.close(folder)
        self._server = await asyncio.start_unix_server(self._serve, sock=descriptor, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
            async with asyncio.timeout(ANSWER_SECONDS):
                command = (await reader.readline()).decode("utf-8", "replace").strip()
                try:
                    answer = self._answer(command)
                except KeyError:
                    answer = {"error": f"unknown command {command!r}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()


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
                answer: dict[str, Any] = json.loads(file.readline(LINE_BYTES_MAX))
                return answer
    except (OSError, ValueError) as error:
        raise WorldError(f"no peer answers in {folder}; is it running?") from error
    finally:
        os.close(descriptor)
