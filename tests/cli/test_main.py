"""The program as a whole: fast help, exit codes, and one JSON object whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crowdsurf.cli import errors
from crowdsurf.cli import verify as verify_command
from crowdsurf.cli.main import COMMANDS, app
from crowdsurf.peer.invite import InviteError, WrongVersion
from crowdsurf.protocol.errors import (
    Code,
    MisuseError,
    Refusal,
    RefusedBySwarm,
    Unreachable,
    WorldError,
)
from tests.cli.conftest import Call

HEAVY = ("torch", "numpy", "hivemind", "msgspec", "sklearn", "cryptography", "asyncio", "crowdsurf.peer")


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['crowdsurf', {argument!r}]\n"
        "from crowdsurf.cli.main import run\n"
        "try:\n    run()\n"
        "except SystemExit as ending:\n    assert not ending.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "bench")])
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_the_list_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert all(name in result.stdout for name in ("create", "join", "status", "leave", "verify", "export"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorldError("the disk is full"), 1),
        (Refusal(Code.MALFORMED, "bytes"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 1),
        (MisuseError("no such preset"), 2),
        (InviteError("damaged"), 2),
        (RefusedBySwarm("not admitted"), 3),
        (WrongVersion("version 9"), 3),
        (Unreachable("nobody"), 4),
        (ZeroDivisionError("oops"), 1),
    ],
)
def test_an_error_has_a_sentence_and_a_code(
    error: BaseException, code: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(verify_command, "verify_path", fail)
    found, answer, said = call("verify", "x")
    assert found == code == answer["error"]["code"]
    assert answer["error"]["message"] in said
    assert "Traceback" not in said


def test_an_error_moves_no_cursor_whatever_it_quotes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise WorldError("the file \x1b[2J\x07is odd:\n  line 2")

    monkeypatch.setattr(verify_command, "verify_path", fail)
    _, answer, said = call("verify", "x")
    assert answer["error"]["message"] == "the file \\x1b[2J\\x07is odd:\n  line 2"
    assert answer["error"]["message"] in said


def test_a_bug_says_so_and_keeps_the_traceback_in_the_home(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify_command, "verify_path", lambda path: 1 // 0)
    monkeypatch.setenv("CROWDSURF_HOME", str(tmp_path / "home"))
    _, answer, _ = call("verify", "x")
    assert "a bug in crowdsurf (ZeroDivisionError" in answer["error"]["message"]
    assert "Traceback" in (tmp_path / "home" / errors.BUG_FILE).read_text(encoding="utf-8")


def test_a_bug_shows_its_traceback_to_who_debugs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_command, "verify_path", lambda path: 1 // 0)
    monkeypatch.setenv("CROWDSURF_LOG_LEVEL", "debug")
    assert "Traceback" in call("verify", "x")[2]


@pytest.mark.parametrize("arguments", [["nonsense"], ["verify"], ["verify", "x", "--nope"], ["--nope"]])
def test_wrong_usage_is_code_2_and_json_too(arguments: list[str], call: Call) -> None:
    code, answer, said = call(*arguments)
    assert code == answer["error"]["code"] == 2
    assert answer["error"]["message"]
    assert "Usage" in said


def test_without_json_nothing_but_words_is_printed() -> None:
    result = CliRunner().invoke(app, ["verify", "/nonexistent"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.stderr)
