"""The demo watches peers as a user could, tells the truth about how they ended, and leaves nothing behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer import demo as demo_module
from crowdsurf.peer.demo import Demo, DemoOptions, View, check_options, failed
from crowdsurf.peer.journal import read_journal
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.recovery import RecordType
from tests.peer.shell import FakeCompute, soon
from tests.peer.stand_ins import no_command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tidy")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "WATCH_SECONDS", 0.01)


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch, fake_compute: list[FakeCompute]) -> None:
    """No torch at all."""
    monkeypatch.setattr(demo_module, "ComputeClient", FakeCompute)


OUTCOME = {
    "peer": "",
    "certified_steps": 5,
    "state_digest": "abc",
    "test_loss": 0.5,
    "test_accuracy": 0.9,
    "initial_test_loss": 2.3,
    "initial_test_accuracy": 0.1,
    "part_bytes_sent": 1000,
    "control_bytes_sent": 10,
    "steps_here": 5,
    "banned": [],
}


def peers_that(*programs: str) -> Callable[[str, Path, int], Sequence[str]]:
    """Commands of peers: short Python programs, in order; `tell(**changes)` prints an outcome."""
    start = (
        f"import json, sys, signal, time\ndef tell(**c): print(json.dumps({OUTCOME!r} | {{'peer': sys.argv[1]}} | c))\n"
    )

    def command(invite: str, home: Path, evaluate_steps: int) -> Sequence[str]:
        number = int(home.name.removeprefix("peer-"))
        return [sys.executable, "-c", start + programs[number], home.name]

    return command


def options(folder: Path, **changes: Any) -> DemoOptions:
    values: dict[str, Any] = {"folder": folder, "peers": 3, "steps": 5, "rule": "mean"}  # what `FakeCompute` does
    return DemoOptions(**(values | changes))


# --- in one process ----------------------------------------------------------------------------------------


async def test_a_demo_in_memory_ends_with_consensus(tmp_path: Path, fake_worker: None) -> None:
    demo = Demo(options(tmp_path, transport="memory", peers=4), no_command)
    views: list[tuple[float, int]] = []
    demo.on_view = lambda view: views.append((view.seconds, view.leader.get("step") or 0))
    answer = await soon(demo.run())
    assert answer["consensus"]
    assert failed(answer) is None
    assert (answer["certified_steps"], answer["steps"], answer["killed"]) == (5, 5, [])
    assert len(answer["state_digests"]) == 4
    assert answer["test_loss"] is not None
    assert answer["bytes_sent_per_peer_step"] > answer["control_bytes_sent_per_peer_step"] > 0
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert views[-1][1] == 5
    for number in range(4):
        (folder,) = (tmp_path / f"peer-{number}" / "runs").iterdir()
        kinds = [kind for kind, _ in read_journal(folder)]
        assert kinds.count(RecordType.CERTIFICATE) == 5


async def test_a_demo_whose_peer_is_killed_ends_with_the_others(tmp_path: Path, fake_worker: None) -> None:
    answer = await soon(Demo(options(tmp_path, transport="memory", steps=30, kill_one_at=2), no_command).run())
    assert answer["consensus"]
    assert len(answer["killed"]) == 1
    assert len(answer["state_digests"]) == 2
    assert answer["killed"][0] not in answer["state_digests"]


async def test_a_demo_that_cannot_be_drawn_ends_and_leaves_nothing(tmp_path: Path, fake_worker: None) -> None:
    demo = Demo(options(tmp_path, transport="memory", steps=100_000), no_command)

    def draw(view: View) -> None:
        if (view.leader.get("step") or 0) > 1:
            raise ValueError("the terminal is gone")

    demo.on_view = draw
    with pytest.raises(ValueError, match="the terminal is gone"):
        await soon(demo.run())


# --- in processes ------------------------------------------------------------------------------------------


async def test_outcomes_of_processes_are_added_up(tmp_path: Path, fake_worker: None) -> None:
    programs = ["tell(test_loss=None)", "print('some noise'); tell()", "tell(certified_steps=5)"]
    answer = await soon(Demo(options(tmp_path), peers_that(*programs)).run())
    assert answer["consensus"]
    assert answer["test_loss"] == 0.5
    assert answer["bytes_sent_per_peer_step"] == 202
    assert (tmp_path / "peer-0" / "node.yaml").read_text("utf-8").startswith("listen: ['/ip4/127.0.0.1/tcp/")


@pytest.mark.parametrize(
    ("program", "states"),
    [("tell(state_digest='other')", 2), ("tell(certified_steps=4)", 1), ("tell(state_digest=None)", 2)],
)
async def test_peers_that_do_not_end_alike_are_a_failure(
    tmp_path: Path, fake_worker: None, program: str, states: int
) -> None:
    answer = await soon(Demo(options(tmp_path), peers_that("tell()", program, "tell()")).run())
    assert not answer["consensus"]
    assert f"{states} different states" in str(failed(answer))


async def test_peers_without_a_state_are_not_alike(tmp_path: Path, fake_worker: None) -> None:
    answer = await soon(Demo(options(tmp_path), peers_that(*["tell(state_digest=None)"] * 3)).run())
    assert failed(answer) is not None


WAITS = "signal.pause()"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print(json.dumps({'error': {'message': 'the disk is full'}})); sys.exit(1)", "the disk is full"),
        ("print('last words', file=sys.stderr); sys.exit(3)", "last words"),
        ("print('no json'); sys.exit(0)", "ended without a word"),
        ("print('[1, 2]')", "ended without a word"),
        ("sys.exit(0)", "ended without a word"),
    ],
)
async def test_a_peer_that_fails_ends_the_demo_with_its_words_and_the_others_are_stopped(
    tmp_path: Path, fake_worker: None, program: str, words: str
) -> None:
    with pytest.raises(WorldError, match=f"peer 1 failed: .*{words}"):
        await soon(Demo(options(tmp_path), peers_that(WAITS, program, WAITS)).run())


async def test_a_peer_that_ignores_being_told_to_stop_is_killed(
    tmp_path: Path, fake_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "STOP_SECONDS_MAX", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with pytest.raises(WorldError, match="peer 2 failed"):
        await soon(Demo(options(tmp_path), peers_that(deaf, deaf, "time.sleep(0.3); sys.exit(1)")).run())


# --- options -----------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(MisuseError) as caught:
        check_options(options(tmp_path, peers=0, transport="pigeon", steps=0, kill_one_at=3))
    assert len(str(caught.value).splitlines()) == 5
    with pytest.raises(MisuseError, match="after the last step"):
        check_options(options(tmp_path, kill_one_at=5))
    check_options(options(tmp_path, kill_one_at=4))


async def test_a_kill_after_the_presets_last_step_is_refused(tmp_path: Path, fake_worker: None) -> None:
    with pytest.raises(MisuseError, match="--kill-one-at 100000 is after the last step"):
        await Demo(options(tmp_path, steps=None, kill_one_at=100_000), no_command).run()


@pytest.mark.slow
async def test_a_demo_with_real_workers_learns(tmp_path: Path) -> None:
    answer = await soon(Demo(options(tmp_path, transport="memory", steps=6), no_command).run())
    assert failed(answer) is None
    assert answer["test_loss"] < answer["initial_test_loss"]
