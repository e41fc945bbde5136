"""`verify`, `export`, `status` and `leave` on a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.cli.conftest import Call
from tests.cli.small_run import STEPS, SmallRun

pytestmark = pytest.mark.slow


def test_verify_accepts_a_run_folder_a_home_and_a_folder_of_homes(trained: SmallRun, call: Call) -> None:
    for path, journals in ((trained.folder(), 1), (trained.homes[1], 1), (trained.root, 2)):
        code, answer, _ = call("verify", path)
        assert code == 0
        assert (answer["steps"], answer["valid"], answer["first_invalid"]) == (STEPS, True, None)
        assert answer["journals"] == journals
        assert answer["updates_checked"] >= journals
        assert answer["states_checked"] >= journals


def test_verify_says_which_step_is_invalid_and_exits_with_1(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder(), folder)
    update = max((folder / "updates").glob("*.update"), key=lambda path: int(path.stem))
    update.write_bytes(bytes(update.stat().st_size))
    code, answer, _ = call("verify", folder)
    assert code == 1
    assert (answer["valid"], answer["first_invalid"]) == (False, int(update.stem))
    assert "update" in answer["reason"]


@pytest.mark.parametrize("cut", ["journal.log", "manifest.msgpack"])
def test_a_missing_file_is_one_plain_sentence(cut: str, trained: SmallRun, call: Call, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained.homes[0], home)
    (home / trained.folder().relative_to(trained.homes[0]) / cut).unlink()
    code, answer, _ = call("verify", home)
    assert code in (1, 2)
    assert "\n" not in answer["error"]["message"]


def test_export_writes_the_certified_model(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    code, answer, _ = call("export", "model.safetensors", "--home", trained.homes[1])
    assert code == 0
    assert answer["step"] == answer["certified_steps"] == STEPS
    assert answer["state_digest"] == trained.outcomes[0].state_digest
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata()["state_digest"] == answer["state_digest"]
        sizes = [file.get_tensor(name).size for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == (64 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 10


def test_export_chooses_the_run_it_is_told(trained: SmallRun, call: Call) -> None:
    code, answer, _ = call("export", "m.safetensors", "--home", trained.homes[0], "--run", "b3:ffff")
    assert code == 2
    assert trained.folder().name in answer["error"]["message"]
    assert call("export", "nowhere/m.safetensors", "--home", trained.homes[0])[0] == 2


@pytest.mark.parametrize("command", ["status", "leave"])
def test_without_a_running_peer_nothing_is_reachable(command: str, trained: SmallRun, call: Call) -> None:
    for home in (trained.homes[0], Path("nowhere")):
        code, answer, _ = call(command, "--home", home)
        assert code == 4
        assert "no peer is running" in answer["error"]["message"]
