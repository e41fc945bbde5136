"""Jobs that keep a processor busy, in parallel processes: one JSON object a line in, one a line out.

The idea: a worker is a program that reads jobs until its input ends, so none outlives us, whatever ends us. Nothing
but JSON crosses the pipes. A worker that dies costs the job it had; the next job gets a new worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Job = dict[str, Any]

ANSWER_BYTES_MAX = 1 << 24


async def run_jobs(
    module: str, jobs: Iterable[Job], processes: int, seconds_max: float, done: Callable[[Job, Job], None]
) -> None:
    """Run `python -m module` in up to `processes` processes and hand each the next job when it is free.

    `done(job, answer)` is called once per job, in the order in which they end. A worker that died, or took longer than
    `seconds_max` for one job, gives the answer {"error": sentence}.
    """
    waiting = iter(jobs)
    async with asyncio.TaskGroup() as group:
        for _ in range(processes):
            group.create_task(_work(module, waiting, seconds_max, done))


async def _work(module: str, waiting: Iterator[Job], seconds_max: float, done: Callable[[Job, Job], None]) -> None:
    process: asyncio.subprocess.Process | None = None
    try:
        for job in waiting:
            if process is None:
                process = await _start(module)
            line = await _ask(process, job, seconds_max)
            if line:
                done(job, json.loads(line))
            else:
                await _end(process)
                done(job, {"error": f"its process ended with code {process.returncode} before it was done"})
                process = None
    finally:
        if process is not None:
            await _end(process)


async def _start(module: str) -> asyncio.subprocess.Process:
    """A worker in a session of its own, so that Ctrl-C reaches us alone and we end it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=ANSWER_BYTES_MAX,
    )


async def _ask(process: asyncio.subprocess.Process, job: Job, seconds_max: float) -> bytes:
    """The line it answers; empty if it died or took too long."""
    if process.stdin is None or process.stdout is None:
        return b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(seconds_max):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            await process.stdin.drain()
            return await process.stdout.readline()
    return b""


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def serve(answer: Callable[[Job], Job]) -> None:
    """The worker's side: answer jobs until the input ends. What a job prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            os.write(1, json.dumps(answer(json.loads(line))).encode() + b"\n")
