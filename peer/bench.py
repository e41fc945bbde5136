"""`bench step`: what certifying a step costs, measured beside the same all-reduce that certifies nothing.

The idea: a figure of one run on one machine means little, a ratio inside one run means something. So both sides
(the daemon of the product, and `bench_plain.py`) live in the same processes and run in turns, a block of steps each;
every pair of neighbouring blocks gives one ratio, and the median of those with its spread is the answer. The work
unit's own time is the same on both sides and taken off both: what is left is the step around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crowdsurf.peer.bench_peer import BenchPeer, resident_bytes
from crowdsurf.peer.config import load_config
from crowdsurf.peer.invite import encode_invite
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import KEY_FILE, MemorySwarm, run_folder, save_manifest
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, peer_text
from crowdsurf.protocol.manifest import Manifest, run_id_of

OVERHEAD_PERCENT_GOAL = 25.0
CONTROL_PERCENT_GOAL = 2.0
RESIDENT_BYTES_GOAL = 450 * 10**6

WARM_UP_STEPS = {"ours": 22, "plain": 3}
"""Steps before anything is counted: two checkpoints for the daemon, from then on it only repeats itself."""
_ANSWER_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class StepBench:
    """What to measure. Every block runs one step more than `steps`, whose first is not counted."""

    peers: int = 4
    elements: int = 4_000_000
    steps: int = 10
    repeats: int = 7
    transport: str = "p2pd"

    def __post_init__(self) -> None:
        """Raises MisuseError for what cannot be measured."""
        if self.transport not in ("p2pd", "memory"):
            raise MisuseError(f"there is no transport {self.transport!r}; use p2pd or memory")
        if self.peers < 2 or self.elements < 1000 or self.steps < 1 or self.repeats < 1:
            raise MisuseError("a benchmark needs at least 2 peers, 1000 elements, 1 step and 1 repeat")


class Peer(Protocol):
    """A peer that carries out the commands of `BenchPeer.answer`, wherever it lives."""

    process_id: int

    async def ask(self, command: str, steps: int) -> dict[str, Any]:
        """Carry out one command. Raises WorldError."""
        ...


@dataclass(slots=True)
class Side:
    """What was measured of one side: for every block, the seconds of its steps."""

    blocks: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor seconds of all processes together, per step, for every block."""
    control_bytes: list[float] = field(default_factory=list)
    part_bytes: list[float] = field(default_factory=list)


# --- the run ---------------------------------------------------------------------------------------------------


async def bench_step(plan: StepBench, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run the benchmark; its figures as plain values, and a line for `tell` now and then. Raises CrowdsurfError."""
    load_before = os.getloadavg()[0]
    tell(f"starting {plan.peers} peers, each with two workers")
    with tempfile.TemporaryDirectory(prefix="crowdsurf-bench-") as folder:
        async with swarm(plan, Path(folder)) as peers:
            facts = await ask_all(peers, "ready", 0)
            await ask_all(peers, "connect", 0)
            processes = processes_of(peers, facts)
            ours, plain, work_seconds = Side(), Side(), []
            for side, command in ((Side(), "ours"), (Side(), "plain")):
                await measure(peers, command, WARM_UP_STEPS[command], side, processes)
            for number in range(1, plan.repeats + 1):
                await measure(peers, "ours", plan.steps, ours, processes)
                work_seconds += await measure(peers, "plain", plan.steps, plain, processes)
                medians = [statistics.median(side.blocks[-1]) for side in (ours, plain)]
                tell(f"block {number} of {plan.repeats}: {medians[0]:.3f} s a step, baseline {medians[1]:.3f} s")
            resident = _resident(plan, peers, facts)
    figures = _figures(ours, plain, statistics.median(work_seconds))
    machine = {"cores": os.cpu_count(), "load_average_before": round(load_before, 2)}
    settings = {name: getattr(plan, name) for name in ("peers", "elements", "steps", "repeats", "transport")}
    return {"bench": "step", **figures, **resident, **settings, "machine": machine}


async def measure(peers: Sequence[Peer], command: str, steps: int, side: Side, processes: set[int]) -> list[float]:
    """One block. Its steps' seconds go to `side`; the result is how long its work units took, where that is known."""
    before = cpu_seconds(processes)
    answers = await ask_all(peers, command, steps + 1)
    after = cpu_seconds(processes)
    ends = [[end for end in step if end is not None] for step in zip(*(a["ends"] for a in answers), strict=True)]
    if not all(len(step) == len(peers) for step in ends):
        raise WorldError("a peer missed a step, so the machine is too busy to measure anything; try again later")
    lasts = [max(step) for step in ends[1:]]  # without the first step, which began with a command and not with a step
    side.blocks.append([end - begin for begin, end in itertools.pairwise(lasts)])
    side.cpu_seconds.append((after - before) / (steps + 1))
    side.control_bytes += [a["control_bytes"] for a in answers if "control_bytes" in a]
    side.part_bytes += [a["part_bytes"] for a in answers if "part_bytes" in a]
    return [seconds for answer in answers for seconds in answer.get("work_seconds", ())[1:]]


async def ask_all(peers: Sequence[Peer], command: str, steps: int) -> list[dict[str, Any]]:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            return await asyncio.gather(*(peer.ask(command, steps) for peer in peers))
    except TimeoutError as error:
        raise WorldError(f"the peers of the benchmark did not finish {command!r} in time") from error


# --- figures ---------------------------------------------------------------------------------------------------


def _figures(ours: Side, plain: Side, work_seconds: float) -> dict[str, Any]:
    """Both sides, their ratio block by block, and the goals' figures."""
    pairs = list(zip(ours.blocks, plain.blocks, strict=True))
    ratios = [(statistics.median(a) - work_seconds) / max(1e-9, statistics.median(b) - work_seconds) for a, b in pairs]
    means = [(statistics.fmean(a) - work_seconds) / max(1e-9, statistics.fmean(b) - work_seconds) for a, b in pairs]
    cpu = [a / max(1e-9, b) for a, b in zip(ours.cpu_seconds, plain.cpu_seconds, strict=True)]
    ratio = spread(ratios)
    control, part = statistics.fmean(ours.control_bytes), statistics.fmean(ours.part_bytes)
    return {
        "ours": _side(ours, work_seconds)
        | {"control_bytes_per_peer_and_step": round(control), "part_bytes_per_peer_and_step": round(part)},
        "baseline": _side(plain, work_seconds),
        "ratio": ratio["median"],
        "ratio_spread": ratio,
        "ratio_of_means": spread(means),
        "cpu_ratio_with_work": spread(cpu),
        "overhead_percent": round(100 * (ratio["median"] - 1), 1),
        "control_percent": round(100 * control / part, 3),
        "work_unit_seconds": round(work_seconds, 4),
    }


def _side(side: Side, work_seconds: float) -> dict[str, Any]:
    seconds = [second for block in side.blocks for second in block]
    return {
        "step_seconds": spread([second - work_seconds for second in seconds]),
        "step_seconds_with_work": spread(seconds),
        "cpu_seconds_per_step": spread(side.cpu_seconds),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile and mean."""
    ordered = sorted(values)
    found = {"median": statistics.median(ordered), "mean": statistics.fmean(ordered)}
    for name, share in (("p10", 0.1), ("p90", 0.9)):
        position = share * (len(ordered) - 1)
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        found[name] = low + (high - low) * (position - math.floor(position))
    return {name: round(found[name], 4) for name in ("median", "p10", "p90", "mean")}


def cpu_seconds(processes: set[int]) -> float:
    """Processor seconds these processes have used so far; 0 where /proc does not say."""
    total = 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def processes_of(peers: Sequence[Peer], facts: Sequence[dict[str, Any]]) -> set[int]:
    """Every process that computes or moves bytes for either side."""
    helpers = (fact[name] for fact in facts for name in ("worker", "plain_worker", "p2pd"))
    return {peer.process_id for peer in peers} | {process for process in helpers if process is not None}


def _resident(plan: StepBench, peers: Sequence[Peer], facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Resident memory in bytes: the largest of each kind of process."""
    if plan.transport == "memory":
        return {}  # all daemons share a process

    def largest(sizes: list[int | None]) -> int | None:
        return max((size for size in sizes if size is not None), default=None)

    return {
        "daemon_bytes_before_model": largest([fact["resident_bytes_before_model"] for fact in facts]),
        "daemon_bytes_at_end": largest([resident_bytes(peer.process_id) for peer in peers]),
        "worker_bytes": largest([resident_bytes(fact["worker"]) for fact in facts]),
        "p2pd_bytes": largest([resident_bytes(fact["p2pd"]) for fact in facts]),
    }


# --- the peers -------------------------------------------------------------------------------------------------


def bench_manifest(plan: StepBench, keys: Sequence[PeerKey], audit_rate: float = 0.0) -> Manifest:
    """A run of the digits task with a network of about `elements` parameters and one picture per work unit.

    h hidden units make h² + 76 h + 10 parameters. The learning rate is tiny so that the run never diverges; SGD is
    the cheaper optimizer, so certifying has less to hide behind.
    """
    hidden = round(math.sqrt(38**2 + plan.elements - 10) - 38)
    overrides: dict[str, Any] = {
        "name": "bench-step",
        "steps": 0,
        "task.parameters": {"model": "mlp", "hidden": hidden},
        "work.micro_batches": 1,
        "work.micro_batch_samples": 1,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 1e-6,
        "audit.rate": audit_rate,
    }
    founders = [key.peer_id for key in keys]
    return load_config("digits").build(founders[0], founders, Digest(b""), **overrides)


@contextlib.asynccontextmanager
async def swarm(
    plan: StepBench, folder: Path, audit_rate: float = 0.0, signed: bool = True, baseline: bool = True
) -> AsyncIterator[Sequence[Peer]]:
    """All peers, ready for commands; with a baseline beside each, or without."""
    homes = [folder / f"peer-{index}" for index in range(plan.peers)]
    keys = [PeerKey.load_or_create(home / KEY_FILE) for home in homes]
    manifest = bench_manifest(plan, keys, audit_rate)
    async with contextlib.AsyncExitStack() as stack:
        if plan.transport == "memory":
            memory = MemorySwarm()
            opened = [
                BenchPeer.open(manifest, memory.place(manifest, home, key), signed, baseline)
                for home, key in zip(homes, keys, strict=True)
            ]
            yield [_LocalPeer(await stack.enter_async_context(peer)) for peer in opened]
            return
        run_id, ports = run_id_of(manifest), free_ports(plan.peers)
        listen = [f"/ip4/127.0.0.1/tcp/{port}" for port in ports]
        addresses = [f"{at}/p2p/{peer_text(key.peer_id)}" for at, key in zip(listen, keys, strict=True)]
        invite = encode_invite(run_id, addresses, keys[0].peer_id, keys[0].sign)
        children: list[Peer] = []
        for home, at in zip(homes, listen, strict=True):
            save_manifest(run_folder(home, run_id), manifest)
            options = [] if signed else ["--unsigned"]
            options += [] if baseline else ["--alone"]
            children.append(await stack.enter_async_context(_child(home, invite, at, options)))
        yield children


class _LocalPeer:
    """A peer in this process."""

    def __init__(self, peer: BenchPeer) -> None:
        self.process_id = os.getpid()
        self._peer = peer

    async def ask(self, command: str, steps: int) -> dict[str, Any]:
        """See Peer."""
        return await self._peer.answer(command, steps, {})


class _ChildPeer:
    """A peer in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process_id = process.pid
        self._process = process

    async def ask(self, command: str, steps: int) -> dict[str, Any]:
        """See Peer."""
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise WorldError("a peer of the benchmark has no pipes")
        line = b""
        with contextlib.suppress(ConnectionError):
            to.write(json.dumps({"command": command, "steps": steps}).encode() + b"\n")
            await to.drain()
            line = await back.readline()
        if not line:
            raise WorldError("a peer of the benchmark ended before it answered; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def _child(home: Path, invite: str, listen: str, options: Sequence[str]) -> AsyncIterator[_ChildPeer]:
    """Start a peer's process, and end it: the end of its input is its sign to stop."""
    arguments = ["--home", str(home), "--invite", invite, "--listen", listen, *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "crowdsurf.peer.bench_peer", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield _ChildPeer(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(15.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
