"""The local door: private, short-spoken, and never in the way of the peer it belongs to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer import control_socket
from crowdsurf.peer.control_socket import LINE_BYTES_MAX, SOCKET_FILE, ControlSocket, ask
from crowdsurf.protocol.errors import WorldError
from tests.peer.shell import soon, until

pytestmark = pytest.mark.usefixtures("tidy")


def answer(command: str) -> dict[str, Any] | None:
    known: dict[str, dict[str, Any]] = {"status": {"step": 7, "name": "Zoë"}, "large": {"text": "x" * 300_000}}
    return known.get(command)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlSocket]:
    control = ControlSocket(tmp_path, answer)
    await control.start()
    yield control
    await control.close()


async def say(folder: Path, command: str) -> dict[str, Any]:
    return await asyncio.to_thread(ask, folder, command)


async def test_a_command_is_answered_and_the_socket_is_ours_alone(control: ControlSocket, tmp_path: Path) -> None:
    assert await say(tmp_path, "status") == {"step": 7, "name": "Zoë"}
    assert len((await say(tmp_path, "large"))["text"]) == 300_000
    assert stat.S_IMODE((tmp_path / SOCKET_FILE).stat().st_mode) == 0o600


async def dropped(reader: asyncio.StreamReader) -> None:
    """The connection is over, without an answer."""
    with contextlib.suppress(ConnectionResetError):
        assert await soon(reader.read()) == b""


@pytest.mark.parametrize("command", ["", "nonsense", "status now", "\x00\xff", "x" * 5000])
async def test_an_unknown_command_is_told_so(control: ControlSocket, tmp_path: Path, command: str) -> None:
    found = await say(tmp_path, command)
    assert found["error"].startswith("unknown command")
    assert len(found["error"]) < 300


async def test_a_folder_with_a_long_name_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("longer" * 20)
    folder.mkdir(parents=True)
    control = ControlSocket(folder, answer)
    await control.start()
    assert (await say(folder, "status"))["step"] == 7
    await control.close()
    assert list(folder.iterdir()) == []


async def test_a_socket_left_by_a_killed_peer_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_FILE))
    with pytest.raises(WorldError, match="no peer answers"):
        await say(tmp_path, "status")
    control = ControlSocket(tmp_path, answer)
    await control.start()
    assert (await say(tmp_path, "status"))["step"] == 7
    await control.close()


async def test_what_cannot_be_replaced_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / SOCKET_FILE).mkdir()
    control = ControlSocket(tmp_path, answer)
    with pytest.raises(WorldError, match="cannot open"):
        await control.start()
    with pytest.raises(WorldError, match="cannot open"):
        await ControlSocket(tmp_path / "nowhere", answer).start()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="no peer answers"):
        await say(tmp_path, "status")
    with pytest.raises(WorldError, match="there is no running peer"):
        await say(tmp_path / "nowhere", "status")


@pytest.mark.parametrize("sent", [b"", b"[1]\n", b"{garbage\n", b"\xff\n"])
async def test_something_else_that_answers_is_not_believed(tmp_path: Path, sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(sent)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(tmp_path / SOCKET_FILE))
    with pytest.raises(WorldError):
        await say(tmp_path, "status")
    server.close()
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_client_that_says_nothing_too_much_or_goes_away_is_dropped(
    control: ControlSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / SOCKET_FILE)
    _, gone = await asyncio.open_unix_connection(path)
    gone.close()
    reader, flooding = await asyncio.open_unix_connection(path)
    flooding.write(b"x" * (2 * LINE_BYTES_MAX))
    await dropped(reader)
    flooding.close()
    monkeypatch.setattr(control_socket, "ANSWER_SECONDS", 0.01)
    reader, silent = await asyncio.open_unix_connection(path)
    await dropped(reader)
    silent.close()
    await until(lambda: not control._connections)
    monkeypatch.undo()
    assert (await say(tmp_path, "status"))["step"] == 7


async def test_closing_does_not_wait_for_those_who_are_connected(tmp_path: Path) -> None:
    control = ControlSocket(tmp_path, answer)
    await control.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_FILE))
    await until(lambda: control._connections)
    await soon(control.close())
    assert await soon(reader.read()) == b""
    writer.close()
    assert not (tmp_path / SOCKET_FILE).exists()
    await control.close()


async def test_no_descriptor_is_left_open(control: ControlSocket, tmp_path: Path) -> None:
    await say(tmp_path, "status")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await say(tmp_path, "status")
    await until(lambda: not control._connections)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_an_answer_is_one_line_of_json(control: ControlSocket, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_FILE))
    writer.write(b"status\n")
    line = await soon(reader.read())
    writer.close()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["step"] == 7
