"""`crowdsurf simulate`, `story`, `robustness` and `bench simulate` as their users meet them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crowdsurf.cli.main import app
from crowdsurf.peer.simulate import answer_job
from crowdsurf.peer.workers import Job
from crowdsurf.protocol import effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.sim import simulation
from crowdsurf.protocol.sim.checkers import Checker
from crowdsurf.protocol.sim.host import Host
from tests.cli.conftest import Call
from tests.cli.processes import PROGRAM

pytestmark = pytest.mark.slow

Done = Callable[[Job, Job], None]
SIMULATION_SECONDS_MAX = 500.0
"""Only one that hangs takes so long, on a busy machine."""
QUICK = "3"
"""A seed whose swarm is small."""


class Grumbler(Checker):
    """Is never content."""

    name = "grumbler"
    sees_effects = (effects.StepCertified,)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Complain about step 1."""
        if isinstance(effect, effects.StepCertified) and effect.step == 1:
            self.report(host, "step 1 is not to my taste")


@pytest.fixture
def grumbling(monkeypatch: pytest.MonkeyPatch) -> None:
    real = simulation.all_checkers
    monkeypatch.setattr(simulation, "all_checkers", lambda *arguments: [*real(*arguments), Grumbler()])


async def run_jobs_here(module: str, jobs: Iterable[Job], processes: int, seconds: float, done: Done) -> None:
    """As `run_jobs`, without processes, whose imports take longer than the jobs."""
    for job in jobs:
        done(job, answer_job(job))


@pytest.mark.parametrize(
    "arguments",
    [
        f"--swarm-test --seed {QUICK}",
        "--task names --peers 16 --steps 1 --seed 7",
        pytest.param("--peers 16 --steps 50 --seed 7", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_a_seed_is_the_same_in_every_process(arguments: str) -> None:
    processes = [
        subprocess.Popen(
            [*PROGRAM, "simulate", *shlex.split(arguments), "--json"],
            env={key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"} | hash_seed,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for hash_seed in ({}, {"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "12345"})
    ]
    answers = [json.loads(process.communicate(timeout=SIMULATION_SECONDS_MAX)[0]) for process in processes]
    assert all(answer["violations"] == [] and answer["consensus"] for answer in answers)
    assert len({answer["trace_digest"] for answer in answers}) == 1
    assert len({json.dumps(answer["state_digests"]) for answer in answers}) == 1


@pytest.mark.usefixtures("grumbling")
def test_a_failure_prints_the_command_that_replays_it(call: Call, tmp_path: Path) -> None:
    code, answer, said = call("simulate", "--swarm-test", "--seed", QUICK)
    assert code == 1
    assert answer["violations"][0].startswith("grumbler: ")
    assert answer["replay"] == f"crowdsurf simulate --swarm-test --seed {QUICK} --trace trace.jsonl"
    assert f"BROKEN with seed {QUICK}: {answer['violations'][0]}" in said
    assert f"Replay it: {answer['replay']}" in said
    assert "Faults: latency min" in said

    code, again, _ = call(*shlex.split(answer["replay"])[1:])
    assert (code, again["trace_digest"]) == (1, answer["trace_digest"])

    code, story, _ = call("story", tmp_path / "trace.jsonl", "--step", "1")
    assert code == 0
    assert any("not to my taste" in text for text in story["complaints"])
    told = CliRunner().invoke(app, ["story", str(tmp_path / "trace.jsonl"), "--step", "1"])
    assert "Checkers complain:" in told.stdout


def test_people_read_one_screen() -> None:
    result = CliRunner().invoke(app, ["simulate", "--peers", "4", "--steps", "3", "--task", "names", "--loss", "0.05"])
    assert result.exit_code == 0
    assert result.stdout.startswith("4 peers, 3 steps of names, seed 0.")
    for text in ("3 of 3 steps certified", "message loss 5.0%", "consensus", "Trace b2:"):
        assert text in result.stdout
    assert len(result.stdout.splitlines()) < 24


def test_attackers_in_the_majority_are_warned_of(call: Call) -> None:
    _, _, said = call(*shlex.split("simulate --task names --peers 2 --byzantine 1 --attack sign_flip --steps 1"))
    assert "note that 1 of 2 peers attack" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("simulate --attack tickle --byzantine 1", "--attack must be one of none, sign_flip"),
        ("simulate --validators 9", "--validators must be at most half"),
        ("simulate --rule nope --peers 3 --steps 1", "is unknown; known are"),
        ("simulate --seeds 5:5", "--seeds must look like 0:300"),
        ("simulate --seeds five", "--seeds must look like 0:300"),
        ("simulate --seeds 0:2 --trace x", "--trace is for one seed"),
        ("simulate --seeds 0:2 --processes 0", "--processes must be at least 1"),
        ("simulate --seeds 0:2 --swarm-test --peers 3", "leave out --peers"),
        ("simulate --seed 1.5", "--seed"),
        ("story nowhere.jsonl", "there is no file nowhere.jsonl"),
        ("story .", "Is a directory"),
        ("robustness out.md --rules nope", "is unknown; known are"),
        ("robustness out.md --attacks tickle", "--attack must be one of"),
        ("robustness out.md --attacks zero,,nan", "separated by commas"),
    ],
)
def test_bad_input_is_a_sentence(arguments: str, text: str, call: Call) -> None:
    code, answer, said = call(*arguments.split())
    assert code == (1 if "directory" in text else 2)
    assert text in answer["error"]["message"]
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["", "{}\n", '{"t":1,"host":0,"step":0,"effect":"Refused"}\n'])
def test_a_file_that_is_no_trace(text: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    code, answer, _ = call("story", "file")
    if text:
        assert code == 2
        assert "file is no trace of a simulation" in answer["error"]["message"]
    else:
        assert (code, answer["happened"]) == (0, [])


def test_many_seeds_at_once(call: Call) -> None:
    code, answer, said = call(*shlex.split("simulate --task names --peers 3 --steps 2 --seeds 4:7 --processes 2"))
    assert code == 0
    assert (answer["runs"], answer["first_seed"], answer["failures"]) == (3, 4, [])
    assert "3 simulations, 6 certified steps" in said


def test_a_small_table_is_measured_and_goes_on_where_it_was(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crowdsurf.peer.robustness.run_jobs", run_jobs_here)
    arguments = "robustness page.md --attacks none,sign_flip --seeds 0:1 --peers 3 --byzantine 1 --steps 2 --rules"
    code, _, _ = call(*arguments.split(), "mean")
    assert code == 0
    with (tmp_path / "page.jsonl").open("a") as results:
        results.write('{"rule": "krum", "att')  # cut off in the middle of a line
    code, answer, said = call(*arguments.split(), "mean,median")
    assert code == 0
    assert "4 simulations, 2 of them done before" in said
    assert answer["simulations"] == 4
    page = (tmp_path / "page.md").read_text()
    assert "| attack | mean<br>1 | median<br>1 |" in page
    assert f"crowdsurf {arguments} mean,median --json" in page
    accuracy = 100 * answer["accuracy"]["mean sign_flip 0"]
    assert f"| sign_flip | {accuracy:.0f} ({accuracy:.0f}–{accuracy:.0f}) |" in page


def test_bench_simulate_measures_both_sides(call: Call) -> None:
    code, answer, _ = call("bench", "simulate", "--peers", "4", "--repeats", "1")
    assert (code, answer["bench"]) == (0, "simulate")
    ours, baseline = answer["ours"]["microseconds_per_message"], answer["baseline"]["microseconds_per_message"]
    assert answer["ratio"] == pytest.approx(ours["median"] / baseline["median"], abs=1e-3)
    assert answer["ours"]["messages"]["4"] > 1000
    assert answer["growth"] == 1.0
    told = CliRunner().invoke(app, ["bench", "simulate", "--peers", "3", "--repeats", "1"])
    assert "goal: at most 40 µs" in told.stdout


def test_simulating_names_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['crowdsurf', 'simulate', '--swarm-test', '--seed', '3', '--json']\n"
        "from crowdsurf.cli.main import run\n"
        "try:\n    run()\n"
        "except SystemExit as ending:\n    assert not ending.code\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "False"
