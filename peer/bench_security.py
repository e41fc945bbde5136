"""`bench security`: what it costs to be checked, measured beside the same daemon that checks nothing.

The idea: two swarms of the product's own peers live beside each other and run in turns, a block of steps each. One is
as it ships: signed, its aggregates projected and checked, one member in every step an auditor. In the other nobody
signs, verifies, projects or audits; everything else is the same. An auditor does another's work instead of its own, so
what audits cost is not time but their share of the gradients, which the organizer has chosen.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crowdsurf.peer.bench import Side, StepBench, ask_all, measure, processes_of, spread, swarm
from crowdsurf.protocol.assignment import validators_of

BYTES_RATIO_GOAL = 1.02
SECONDS_RATIO_GOAL = 1.15
AUDIT_RATE = 0.125
WARM_UP_STEPS = 12
"""One checkpoint, and every kind of work once."""


async def bench_security(plan: StepBench, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run the benchmark; its figures as plain values, and a line for `tell` now and then. Raises CrowdsurfError."""
    load_before = os.getloadavg()[0]
    tell(f"starting two swarms of {plan.peers} peers")
    with tempfile.TemporaryDirectory(prefix="crowdsurf-bench-") as folder:
        checked_folder, bare_folder = Path(folder) / "checked", Path(folder) / "bare"
        async with (
            swarm(plan, checked_folder, AUDIT_RATE, baseline=False) as checked_peers,
            swarm(plan, bare_folder, signed=False, baseline=False) as bare_peers,
        ):
            sides = []
            for peers in (checked_peers, bare_peers):
                processes = processes_of(peers, await ask_all(peers, "ready", 0))
                await measure(peers, "ours", WARM_UP_STEPS, Side(), processes)
                sides.append((peers, Side(), processes))
            for number in range(1, plan.repeats + 1):
                for peers, side, processes in sides:
                    await measure(peers, "ours", plan.steps, side, processes)
                medians = [statistics.median(side.blocks[-1]) for _, side, _ in sides]
                tell(f"block {number} of {plan.repeats}: {medians[0]:.3f} s a step, unchecked {medians[1]:.3f} s")
    checked, bare = (side for _, side, _ in sides)
    settings = {name: getattr(plan, name) for name in ("peers", "elements", "steps", "repeats", "transport")}
    machine = {"cores": os.cpu_count(), "load_average_before": round(load_before, 2)}
    return {"bench": "security", **security_figures(checked, bare, plan.peers), **settings, "machine": machine}


def security_figures(checked: Side, bare: Side, peers: int) -> dict[str, Any]:
    """Both sides and their ratios: seconds and processor seconds block by block, bytes over all blocks."""
    pairs = list(zip(checked.blocks, bare.blocks, strict=True))
    ratio = spread([statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs])
    cpu = zip(checked.cpu_seconds, bare.cpu_seconds, strict=True)
    sent = [statistics.fmean(side.control_bytes) + statistics.fmean(side.part_bytes) for side in (checked, bare)]
    return {
        "ours": _side(checked),
        "baseline": _side(bare),
        "ratio": ratio["median"],
        "ratio_spread": ratio,
        "cpu_ratio": spread([ours / max(1e-9, theirs) for ours, theirs in cpu]),
        "bytes_ratio": round(sent[0] / sent[1], 5),
        "audit_percent": 100 * validators_of(peers, AUDIT_RATE) / peers,
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "step_seconds": spread([second for block in side.blocks for second in block]),
        "cpu_seconds_per_step": spread(side.cpu_seconds),
        "control_bytes_per_peer_and_step": round(statistics.fmean(side.control_bytes)),
        "part_bytes_per_peer_and_step": round(statistics.fmean(side.part_bytes)),
    }
