"""Jobs in worker processes: every one is answered once, and a worker that dies costs one job."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from crowdsurf.peer import workers
from crowdsurf.peer.workers import Job, run_jobs

MODULE = "crowdsurf.peer.simulate"
GOOD = {"peers": 2, "task": "names", "steps": 1}


async def answers(jobs: list[Job], processes: int, seconds_max: float = 60.0) -> list[tuple[Job, Job]]:
    found: list[tuple[Job, Job]] = []
    await run_jobs(MODULE, jobs, processes, seconds_max, lambda job, answer: found.append((job, answer)))
    return found


async def test_every_job_is_answered_and_a_death_costs_one() -> None:
    jobs = [{"options": GOOD | {"seed": 1}}, {"options": {"no_such_option": 1}}, {"options": GOOD | {"seed": 2}}]
    found = await answers(jobs, 1)
    assert [job for job, _ in found] == jobs
    assert re.fullmatch(r"its process ended with code \d+ before it was done", found[1][1]["error"])
    assert [answer["certified_steps"] for _, answer in (found[0], found[2])] == [1, 1]


async def test_a_job_that_takes_too_long_is_ended() -> None:
    found = await answers([{"options": GOOD}], 1, seconds_max=0.001)
    assert "before it was done" in found[0][1]["error"]


async def test_no_worker_is_started_without_a_job() -> None:
    assert await answers([], 3) == []


def test_what_a_job_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"number": 1}\n{"number": 2}\n'))

    def double(job: Job) -> Job:
        print("thinking")
        return {"number": 2 * job["number"]}

    workers.serve(double)
    out, err = capfd.readouterr()
    assert out == '{"number": 2}\n{"number": 4}\n'
    assert err == "thinking\nthinking\n"
