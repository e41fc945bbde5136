"""`crowdsurf byzantine` as its user meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from crowdsurf.peer import draws
from crowdsurf.peer.byzantine import answer_job, read_results
from crowdsurf.peer.draws import Game
from crowdsurf.peer.workers import Job
from tests.cli.conftest import Call

pytestmark = pytest.mark.slow

Done = Callable[[Job, Job], None]
ARGUMENTS = ["byzantine", "page.md", "--tables=protocol", "--attacks=equivocate", "--seeds=0:1", "--runs=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes, whose imports take longer than the jobs, and few throws of the dice."""
    pytest.importorskip("matplotlib")

    async def run_jobs_here(module: str, jobs: Iterable[Job], processes: int, seconds: float, done: Done) -> None:
        for job in jobs:
            done(job, answer_job(job))

    def few(folder: Path, validators: tuple[int, ...]) -> None:
        measure(folder, validators, (Game("event", 1, trials=20),), 5)

    measure = draws.measure
    monkeypatch.setattr(draws, "LASTING_TRIALS", 2)
    monkeypatch.setattr(draws, "measure", few)
    monkeypatch.setattr("crowdsurf.peer.byzantine.run_jobs", run_jobs_here)


@pytest.mark.timeout(400)
def test_a_part_is_measured_and_the_page_says_what_is_missing(call: Call, tmp_path: Path) -> None:
    code, answer, said = call(*ARGUMENTS)
    assert code == 0
    assert "2 simulations, 0 of them done before" in said
    assert answer["simulations"] == {"audited": 0, "longer": 0, "protocol": 2, "baselines": 0, "detection": 0}
    text = (tmp_path / "page.md").read_text()
    assert "    crowdsurf byzantine page.md --seeds 0:1 --runs 1\n" in text
    assert "| equivocate | 7 | 1–1 | 0 / 0 / 0 | 0 |" in text
    assert "| slow |  |  |  |  |  |  | not measured yet |" in text
    assert "page/detection.png" in text
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"protocol.jsonl", "draws.json", "detection.png"}
    assert len(read_results(tmp_path / "page")) == 2
    it_goes_on_where_it_was_and_writes_the_page_from_what_is_stored(call, tmp_path)


def it_goes_on_where_it_was_and_writes_the_page_from_what_is_stored(call: Call, tmp_path: Path) -> None:
    page = (tmp_path / "page.md").read_bytes()
    results = (tmp_path / "page" / "protocol.jsonl").read_bytes()
    code, _, said = call(*ARGUMENTS)
    assert code == 0
    assert "2 simulations, 2 of them done before" in said
    (tmp_path / "page.md").unlink()
    code, _, said = call(*ARGUMENTS, "--stored")
    assert code == 0
    assert "simulations," not in said
    assert (tmp_path / "page.md").read_bytes() == page
    assert (tmp_path / "page" / "protocol.jsonl").read_bytes() == results


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--tables nope", "--tables must be some of audited"),
        ("--attacks tickle", "--attacks must be some of sign_flip"),
        ("--seeds 3", "--seeds must look like 0:300"),
    ],
)
def test_what_is_wrong_is_said(call: Call, arguments: str, sentence: str) -> None:
    code, answer, _ = call("byzantine", "page.md", *arguments.split())
    assert code == 2
    assert sentence in answer["error"]["message"]
