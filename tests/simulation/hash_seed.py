"""The trace digest of a run, here and in other processes with other hash seeds.

The idea: sets and dicts of bytes are walked in an order that depends on the hash seed of the process. As long as
nothing a peer does depends on it, every process tells the same story.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from crowdsurf.protocol.sim.faults import Faults
from tests.simulation.runs import Setting, run

ROOT = Path(__file__).parents[2]
BUSY = Faults(
    message_loss=0.1, crash_rate=2.0, worker_death_rate=1.0, join_rate=5.0, leave_rate=0.5, partition_rate=2.0
)


def trace(seed: int) -> str:
    """The trace digest of a busy run."""
    return run(Setting(faults=BUSY, steps=6), seed).trace_digest


def traces_elsewhere(seed: int, before: str = "") -> list[str]:
    """The same in two processes with different hash seeds, side by side; `before` is run first in them."""
    code = f"from tests.simulation import hash_seed\n{before}\nprint(hash_seed.trace({seed}))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "4711")
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return answers
