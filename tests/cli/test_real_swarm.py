"""The walk of the README over real sockets: create, join twice, look, leave, verify, export, come back."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import peer, run
from tests.cli.small_run import write_config

pytestmark = [pytest.mark.network, pytest.mark.slow]

JOURNAL_BYTES_MAX = 128 * 1024


def create(tmp_path: Path, steps: int = 0) -> tuple[Path, dict[str, Any]]:
    """A run of the small config; by default one without an end, in which work takes a while: alone, a founder that does
    sixty steps a second can be too fast for a newcomer on a busy machine."""
    home = tmp_path / "org"
    code, answer = run("create", write_config(tmp_path, steps, 1 if steps else 100), "--out", home)
    assert code == 0, answer
    return home, answer


@pytest.mark.timeout(300)
def test_a_second_peer_joins_a_running_swarm_and_both_leave_in_order(tmp_path: Path) -> None:
    home, created = create(tmp_path)
    guest_home = tmp_path / "guest"
    with peer(home / "invite.txt", "--home", home) as founder, peer(created["invite"], "--home", guest_home) as guest:
        founder.wait_for("In the roster")
        guest.wait_for("In the roster")
        founder.wait_for("joined; the roster has 2 peers")

        code, seen = run("status", "--home", home)
        assert code == 0
        assert (seen["peer"], seen["run"], seen["member"]) == (created["peer"], created["run"], True)
        code, guest_sees = run("status", "--home", guest_home)
        assert code == 0
        assert {member["peer"] for member in seen["roster"]} == {created["peer"], guest_sees["peer"]}

        code, refused = run("join", created["invite"], "--home", guest_home)
        assert code == 1
        assert "this identity is in use" in refused["error"]["message"]

        code, exported = run("export", tmp_path / "while.safetensors", "--home", home)
        assert code == 0, exported
        assert (tmp_path / "while.safetensors").stat().st_size > 0

        code, left = run("leave", "--home", guest_home)
        assert (code, left["ended"]) == (0, True)
        code, outcome = guest.end()
        said = "\n".join([*guest.said, "and the founder:", *founder.said])
        assert (code, outcome["reason"]) == (0, "this peer has left the roster"), said
        founder.wait_for("left.")
        founder.signal(signal.SIGTERM)
        code, last = founder.end()
        assert (code, last["reason"]) == (0, "stopped on request")

    for folder in (home, guest_home):
        code, checked = run("verify", folder)
        assert (code, checked["valid"]) == (0, True), checked
    code, exported = run("export", tmp_path / "guest.safetensors", "--home", guest_home)
    assert code == 0, exported
    assert (exported["step"], exported["state_digest"]) == (outcome["certified_steps"], outcome["state_digest"])


@pytest.mark.timeout(300)
def test_a_liar_is_banned_and_told_why(tmp_path: Path) -> None:
    home, created = create(tmp_path)
    guest = peer(created["invite"], "--home", tmp_path / "guest")
    with peer(home / "invite.txt", "--home", home) as founder, guest as honest:
        founder.wait_for("joined; the roster has 2 peers")
        with peer(created["invite"], "--home", tmp_path / "liar", "--rehearse", "sign_flip") as liar:
            code, said = liar.end()
            assert code == 3, (said, liar.said, founder.said)
            assert "banned from the run" in said["error"]["message"]
            assert "wrong_gradient" in said["error"]["message"]
        founder.wait_for("is banned")

        code, seen = run("status", "--home", home)
        assert code == 0
        (ban,) = seen["banned"]
        assert ban["reason"] == "wrong_gradient"
        assert ban["peer"] not in {member["peer"] for member in seen["roster"]}

        code, why = run("why", ban["peer"][-8:], "--home", home)
        assert code == 0, why
        assert (why["peer"], why["status"], why["evidence"]["holds"]) == (ban["peer"], "banned", True)
        evidence = why["evidence"]["file"]
        code, shown = run("why", ban["peer"], "--file", evidence, "--manifest", home / "manifest.msgpack")
        assert (code, shown["evidence"]["holds"]) == (0, True), shown

        for other in (honest, founder):
            other.signal(signal.SIGTERM)
            other.end()
    code, checked = run("verify", home)
    assert (code, checked["valid"]) == (0, True), checked


@pytest.mark.timeout(300)
def test_a_run_with_an_end_ends_by_itself_and_stays_ended(tmp_path: Path) -> None:
    home, _ = create(tmp_path, steps=15)
    for _ in range(2):
        with peer(home / "invite.txt", "--home", home, "--evaluate-steps", "5") as founder:
            code, outcome = founder.end()
            assert (code, outcome["certified_steps"]) == (0, 15), founder.said
            assert outcome["test_loss"] is not None


@pytest.mark.timeout(300)
def test_a_second_signal_stops_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    home, created = create(tmp_path)
    with (
        peer(home / "invite.txt", "--home", home) as founder,
        peer(created["invite"], "--home", tmp_path / "g") as guest,
    ):
        guest.wait_for("In the roster")
        guest.signal(signal.SIGINT)
        guest.wait_for("Leaving in order")
        guest.signal(signal.SIGINT)
        code, outcome = guest.end()
        assert code == 0
        assert outcome["certified_steps"] > 0
        assert run("verify", tmp_path / "g")[1]["valid"]
        founder.signal(signal.SIGINT)
        assert founder.end()[0] == 0


@pytest.mark.timeout(300)
def test_a_full_disk_is_one_sentence_and_the_peer_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """No file of this process may grow beyond the limit, which the journal meets first: as on a full disk."""
    home, _ = create(tmp_path)

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (JOURNAL_BYTES_MAX, JOURNAL_BYTES_MAX))

    with peer(home / "invite.txt", "--home", home, prepare=small_disk) as founder:
        code, answer = founder.end()
        assert code == 1, answer
        assert "the disk is full" in answer["error"]["message"]
        assert not any("Traceback" in line for line in founder.said)
    code, checked = run("verify", home)
    assert (code, checked["valid"]) == (0, True)
    with peer(home / "invite.txt", "--home", home) as founder:
        founder.wait_for("In the roster")
        _, seen = run("status", "--home", home)
        assert seen["step"] >= checked["steps"] > 0
        founder.signal(signal.SIGTERM)
        assert founder.end()[0] == 0
