"""`doctor`: one JSON object with what was tried and measured; a failure says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crowdsurf.cli.main import app
from tests.cli.conftest import Call
from tests.cli.small_run import write_config

pytestmark = pytest.mark.slow


def test_a_fit_machine_passes(call: Call) -> None:
    code, answer, _ = call("doctor")
    assert code == 0
    assert {check["name"]: check["ok"] for check in answer["checks"]} == dict.fromkeys(
        ("disk", "ports", "device", "determinism"), True
    )
    assert answer["calibration"] is None


def test_what_is_wrong_is_said_with_what_to_do(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, answer, _ = call("doctor", "--home", tmp_path / "file", "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert code == 1
    wrong = {check["name"]: check["fix"] for check in answer["checks"] if not check["ok"]}
    assert set(wrong) == {"disk", "ports"}
    assert all("choose another" in fix or "folder of yours" in fix for fix in wrong.values())
    code, answer, _ = call("doctor", "--device", "cuda:77")
    assert code == 1
    assert [check["name"] for check in answer["checks"] if not check["ok"]] == ["device"]


def test_a_bound_is_measured_and_a_run_can_be_made_with_it(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    code, answer, _ = call("doctor", "--calibrate", config, "--units", "1")
    measured = answer["calibration"]
    assert code == 0
    assert measured["honest_max"] < measured["relative_l2_max"] < measured["cheat_min"]
    assert {way["kind"] for way in measured["ways"]} >= {"honest", "cheat"}
    assert call("create", config, "--out", "run", "--tolerance", str(measured["relative_l2_max"]))[0] == 0
    code, again, _ = call("doctor", "--calibrate", tmp_path / "run", "--units", "1")
    assert code == 0
    assert again["calibration"]["relative_l2_max"] == measured["relative_l2_max"]


def test_people_read_the_command_that_uses_the_bound(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    arguments = ["doctor", "--calibrate", str(config), "--units", "1", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert "crowdsurf create CONFIG --tolerance" in result.stdout
    assert "left out" in result.stdout
