"""`create`: everything is checked before anything is written, and what is written fits together."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crowdsurf.cli.main import app
from crowdsurf.peer import organize
from crowdsurf.peer.config import load_node_config
from crowdsurf.peer.invite import decode_invite
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.peer.launch import KEY_FILE, load_manifest, run_folder
from crowdsurf.peer.organize import plan_reach
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, peer_text
from crowdsurf.protocol.manifest import run_id_of
from tests.cli.conftest import Call
from tests.cli.small_run import write_config

pytestmark = pytest.mark.slow


def test_what_is_created_fits_together(call: Call, tmp_path: Path) -> None:
    guest = peer_text(PeerKey.generate().peer_id)
    config = write_config(tmp_path)
    code, answer, _ = call("create", config, "--out", "org", "--founder", guest, "--address", "/ip4/192.0.2.1/tcp/77")
    assert code == 0
    home = tmp_path / "org"
    manifest = load_manifest(home)
    first = PeerKey.load_or_create(home / KEY_FILE)
    invite = decode_invite((home / "invite.txt").read_text(encoding="ascii"), verify)
    assert invite.run_id == run_id_of(manifest)
    assert invite.addresses == (f"/ip4/192.0.2.1/tcp/77/p2p/{peer_text(first.peer_id)}",)
    assert invite.organizer == manifest.organizer != first.peer_id
    assert [peer_text(peer) for peer in manifest.founders] == [answer["peer"], guest]  # type: ignore[arg-type]
    assert load_manifest(run_folder(home, run_id_of(manifest))) == manifest
    assert len(manifest.task.dataset_digest) == 32
    node = load_node_config(home / "node.yaml")
    assert (node.listen, node.announce) == (("/ip4/0.0.0.0/tcp/77",), ("/ip4/192.0.2.1/tcp/77",))
    assert all(stat.S_IMODE((home / name).stat().st_mode) == 0o600 for name in ("peer.key", "organizer.key"))
    assert answer["only_this_machine"] is False


def test_a_run_is_never_overwritten(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert call("create", config)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "swarm-small").rglob("*") if path.is_file()}
    code, answer, _ = call("create", config)
    assert code == 2
    assert "holds a run already" in answer["error"]["message"]
    assert before == {path: path.read_bytes() for path in before}


def test_people_get_the_next_two_commands_and_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["create", str(write_config(tmp_path)), "--out", "my swarm"])
    invite = (tmp_path / "my swarm" / "invite.txt").read_text(encoding="ascii").strip()
    assert "  crowdsurf join 'my swarm'/invite.txt --home 'my swarm'\n" in result.stdout
    assert f"  crowdsurf join {invite}\n" in result.stdout
    assert "this machine only" in result.stdout


BAD_CONFIG = """\
name: has a space
steps: -1
optimizer: {name: sgdd, learning_rate: 0}
task: {name: digits}
"""


def test_all_mistakes_of_a_config_are_reported_with_their_lines(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD_CONFIG, encoding="utf-8")
    code, answer, _ = call("create", "bad.yaml")
    assert code == 2
    places = [line.split(": ")[:2] for line in answer["error"]["message"].splitlines()]
    assert places == [
        ["bad.yaml:1", "name"],
        ["bad.yaml:2", "steps"],
        ["bad.yaml:3", "optimizer.name"],
        ["bad.yaml:3", "optimizer.learning_rate"],
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.yaml"]


def test_task_and_rule_check_their_own_parameters(call: Call, tmp_path: Path) -> None:
    text = write_config(tmp_path).read_text(encoding="utf-8").replace("hidden: 8", "hidden: 8, colour: 3")
    (tmp_path / "small.yaml").write_text(text + "rule: {name: centered_clip, parameters: {tau: -1.0}}\n", "utf-8")
    code, answer, _ = call("create", "small.yaml")
    assert code == 2
    assert "colour" in answer["error"]["message"]
    assert "tau" in answer["error"]["message"]
    assert not (tmp_path / "swarm-small").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nosuch"], "presets are"),
        (["digits", "--address", "example.org:99"], "/ip4/203.0.113.7/tcp/31337"),
        (["digits", "--address", "/ip4/1.2.3.4/tcp/70000"], "65535"),
        (["digits", "--address", "/ip4/300.1.1.1/tcp/70"], "300"),
        (["digits", "--address", "/ip4/1.2.3.4/tcp/70/p2p/nobody"], "peer id"),
        (["digits", "--listen", "/ip4/0.0.0.0/tcp/70"], "--address"),
        (["digits", "--founder", "me"], "peer id"),
    ],
)
def test_one_plain_sentence_before_anything_starts(
    arguments: list[str], word: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organize, "_try_out", lambda sketch: pytest.fail("the worker was started"))
    code, answer, _ = call("create", *arguments)
    assert code == 2
    assert word in answer["error"]["message"]


def test_said_nothing_means_a_free_port_of_this_machine() -> None:
    reach = plan_reach((), ())
    assert reach.listen == reach.invite
    assert reach.listen[0].startswith("/ip4/127.0.0.1/tcp/")
    assert not reach.listen[0].endswith("/0")


@pytest.mark.parametrize(
    ("addresses", "listen", "expected"),
    [
        (("/ip6/2001:db8::1/tcp/5",), (), ("/ip6/::/tcp/5",)),
        (("/dns4/peer.example/tcp/5", "/ip4/192.0.2.1/tcp/5"), (), ("/ip4/0.0.0.0/tcp/5",)),
        (("/dns4/peer.example/tcp/5",), ("/ip4/10.0.0.1/tcp/6",), ("/ip4/10.0.0.1/tcp/6",)),
        ((), ("/ip4/192.0.2.7/tcp/6",), ("/ip4/192.0.2.7/tcp/6",)),
    ],
)
def test_where_to_listen(addresses: tuple[str, ...], listen: tuple[str, ...], expected: tuple[str, ...]) -> None:
    reach = plan_reach(addresses, listen)
    assert reach.listen == expected
    assert reach.invite == (addresses or expected)
    assert reach.announce == addresses


def test_a_wrong_port_is_not_guessed() -> None:
    with pytest.raises(MisuseError):
        plan_reach(("/ip4/192.0.2.1/udp/5/quic-v1",), ())


def test_the_sketch_has_no_digest_and_the_run_does(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    genuine = organize._try_out

    async def watch(sketch: Any) -> Any:
        seen.append(sketch.task.dataset_digest)
        return await genuine(sketch)

    monkeypatch.setattr(organize, "_try_out", watch)
    assert call("create", write_config(tmp_path))[0] == 0
    assert seen == [Digest(b"")]
    assert load_manifest(tmp_path / "swarm-small").task.dataset_digest


def test_steps_on_the_command_line_win(call: Call, tmp_path: Path) -> None:
    assert call("create", write_config(tmp_path, steps=5), "--steps", "0")[0] == 0
    assert load_manifest(tmp_path / "swarm-small").steps == 0
