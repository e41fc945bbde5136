"""Bad input to `join`: one plain sentence each, the right exit code, nothing lost."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import msgspec
import pytest

from crowdsurf.peer import daemon as daemon_module
from crowdsurf.peer import launch
from crowdsurf.peer.invite import encode_invite
from crowdsurf.peer.journal import JOURNAL_FILE
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import run_folder, save_manifest
from crowdsurf.peer.volunteer import node_config, read_invite
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import peer_text
from crowdsurf.protocol.manifest import Manifest, run_id_of
from tests.cli.conftest import Call
from tests.cli.small_run import SmallRun

pytestmark = pytest.mark.slow

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


def sentence(answer: dict[str, dict[str, str]]) -> str:
    text = answer["error"]["message"]
    assert "\n" not in text
    return text


def home_with(tmp_path: Path, manifest: Manifest, key: PeerKey) -> tuple[Path, str]:
    """A home that has this run and this key already, and an invite to the run."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "peer.key").write_bytes(key.libp2p_bytes())
    (home / "peer.key").chmod(0o600)
    run_id = run_id_of(manifest)
    save_manifest(run_folder(home, run_id), manifest)
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_text(key.peer_id)}"
    return home, encode_invite(run_id, (address,), key.peer_id, key.sign)


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("hello", 2, "no file that holds one"),
        ("crowdsurf1:AAAA", 2, "damaged"),
        ("crowdsurf7:AAAA", 3, "update crowdsurf"),
    ],
)
def test_what_is_no_invite(text: str, code: int, word: str, call: Call) -> None:
    found, answer, _ = call("join", text)
    assert found == code
    assert word in sentence(answer)


def test_an_invite_for_another_version(trained: SmallRun, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROTOCOL_VERSION", limits.PROTOCOL_VERSION + 1)
    invite = trained.invite()
    monkeypatch.undo()
    code, answer, _ = call("join", invite, "--home", "h")
    assert code == 3
    assert "version" in sentence(answer)
    assert not Path("h").exists()


def test_an_invite_may_be_in_a_file(trained: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "invite.txt").write_text(trained.invite() + "\n", encoding="ascii")
    assert read_invite(str(tmp_path / "invite.txt")) == read_invite(trained.invite())


def test_every_mistake_of_the_node_config_is_reported(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("threads: 0\ndevcie: cpu\n", encoding="utf-8")
    with pytest.raises(MisuseError) as caught:
        node_config(None, {"CROWDSURF_DEVICE": "gpu"}, {"home": str(tmp_path), "log_level": "loud"})
    assert all(word in str(caught.value) for word in ("threads", "devcie", "CROWDSURF_DEVICE", "--log-level"))


def test_the_command_line_wins_over_environment_and_file(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("threads: 2\ndevice: cpu\nlog_level: error\n", encoding="utf-8")
    config = node_config(
        None, {"CROWDSURF_HOME": str(tmp_path), "CROWDSURF_THREADS": "3", "CROWDSURF_DEVICE": "cuda"}, {"threads": 4}
    )
    assert (config.threads, config.device, config.log_level, config.home) == (4, "cuda", "error", str(tmp_path))


def test_a_home_that_cannot_be_written(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, answer, _ = call("join", trained.invite(), "--home", tmp_path / "file" / "home")
    assert code == 1
    assert "cannot be used" in sentence(answer)


def test_a_key_that_others_can_read(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained.homes[0], tmp_path / "home"))
    (home / "peer.key").chmod(0o644)
    code, answer, _ = call("join", trained.invite(), "--home", home)
    assert code == 2
    assert "chmod 600" in sentence(answer)


@pytest.mark.network
def test_a_corrupt_journal(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained.homes[0], tmp_path / "home"))
    path = home / trained.folder().relative_to(trained.homes[0]) / JOURNAL_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    code, answer, _ = call("join", trained.invite(), "--home", home, *LISTEN)
    assert code == 1
    assert "damaged at byte" in sentence(answer)
    assert path.read_bytes() == data


@pytest.mark.network
def test_a_port_in_use(trained: SmallRun, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crowdsurf.peer.transport import p2pd

    monkeypatch.setattr(p2pd, "_PORT_PATIENCE_SECONDS", 2 * p2pd._PORT_PROBE_SECONDS)
    home = Path(shutil.copytree(trained.homes[0], tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, answer, _ = call("join", trained.invite(), "--home", home, "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert code == 1
    assert f"port {port} is already in use" in sentence(answer)


@pytest.mark.network
def test_an_unreachable_bootstrap(
    trained: SmallRun, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "BOOTSTRAP_SECONDS_MAX", 0.0)
    code, answer, _ = call("join", trained.invite(), "--home", tmp_path / "new", *LISTEN)
    assert code == 4
    assert "none of the invite's addresses answers" in sentence(answer)


@pytest.mark.network
def test_a_swarm_that_is_gone(trained: SmallRun, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is here from last time, but nobody answers any more."""
    monkeypatch.setattr(launch, "BOOTSTRAP_SECONDS_MAX", 0.0)
    monkeypatch.setattr(daemon_module, "FIRST_CONTACT_SECONDS_MAX", 0.0)
    home, _ = home_with(tmp_path, trained.manifest, PeerKey.generate())
    code, answer, _ = call("join", trained.invite(), "--home", home, *LISTEN)
    assert code == 4
    assert "answers" in sentence(answer)


@pytest.mark.network
def test_another_dataset_than_the_run_needs(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    key = trained.keys[0]
    task = msgspec.structs.replace(trained.manifest.task, dataset_digest=bytes(32))
    founders = (key.peer_id,)
    manifest = msgspec.structs.replace(trained.manifest, task=task, founders=founders, organizer=key.peer_id)
    home, invite = home_with(tmp_path, manifest, key)
    code, answer, _ = call("join", invite, "--home", home, *LISTEN)
    assert code == 1
    assert "b3:0000" in sentence(answer)


@pytest.mark.network
def test_a_device_that_is_not_there(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained.homes[0], tmp_path / "home"))
    code, answer, _ = call("join", trained.invite(), "--home", home, *LISTEN, "--device", "cuda:99")
    assert code == 1
    assert "cuda:99" in sentence(answer)


def test_a_device_that_makes_no_sense(trained: SmallRun, call: Call) -> None:
    code, answer, _ = call("join", trained.invite(), "--device", "banana")
    assert code == 2
    assert "cuda:NUMBER" in sentence(answer)


@pytest.mark.network
def test_a_run_of_founders_only(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(trained.manifest, admission="founders")
    home, _ = home_with(tmp_path, manifest, PeerKey.generate())
    key = trained.keys[0]
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_text(key.peer_id)}"
    invite = encode_invite(run_id_of(manifest), (address,), key.peer_id, key.sign)
    code, answer, _ = call("join", invite, "--home", home, *LISTEN)
    assert code == 3
    assert "only founders" in sentence(answer)


@pytest.mark.network
def test_a_damaged_manifest(trained: SmallRun, call: Call, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained.homes[0], tmp_path / "home"))
    path = home / trained.folder().relative_to(trained.homes[0]) / "manifest.msgpack"
    path.write_bytes(b"\x00")
    code, answer, _ = call("join", trained.invite(), "--home", home, *LISTEN)
    assert code == 1
    assert "is damaged" in sentence(answer)
