"""One peer of `bench step`: the product's daemon and the baseline, side by side, one block of steps at a time.

The idea: both sides live in one process on one transport, and a gate before each work unit lets either side run
only when it is its turn. The gate is also the watch: a step is over when the work unit of the next one could begin.
Over p2pd a peer is a process of its own that answers JSON lines; over the memory transport it is an object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crowdsurf.peer.bench_plain import WORKER_MODULE, PlainReducer
from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.compute.client import ComputeClient, WorkerInfo
from crowdsurf.peer.config import NodeConfig
from crowdsurf.peer.daemon import Daemon, Place
from crowdsurf.peer.discovery import AddressBook
from crowdsurf.peer.driver import Parts
from crowdsurf.peer.invite import decode_invite
from crowdsurf.peer.journal import Journal
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.peer.launch import p2pd_place
from crowdsurf.protocol import effects
from crowdsurf.protocol.errors import CrowdsurfError, WorldError
from crowdsurf.protocol.ids import SIGNATURE_BYTES, PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.node import Node

READY_SECONDS_MAX = 240.0
BLOCK_SECONDS_MAX = 300.0

Addresses = Mapping[PeerId, Sequence[str]]


class Gate:
    """Holds steps back until they are let through, and notes when each one came."""

    def __init__(self) -> None:
        self.arrivals: dict[int, float] = {}
        self._open_until = 0
        self._changed = asyncio.Event()

    async def pass_through(self, step: int) -> None:
        """Note the arrival of a step and wait until it may go on."""
        self.arrivals[step] = monotonic_seconds()
        self._notify()
        while step >= self._open_until:
            await self._changed.wait()

    def open(self, until_step: int) -> None:
        """Let steps before this one through."""
        self._open_until = until_step
        self._notify()

    async def reached(self, step: int) -> None:
        """Wait for the arrival of a step, or of a later one."""
        while max(self.arrivals, default=-1) < step:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class GatedDaemon(Daemon):
    """The product's daemon as it is, except that a work unit waits for the gate before it begins."""

    def __init__(self, manifest: Manifest, place: Place, gate: Gate) -> None:
        super().__init__(manifest, place)
        self._gate = gate
        self.worker_process_id: int | None = None

    async def _assemble(
        self, stack: contextlib.AsyncExitStack, node: Node, journal: Journal, client: ComputeClient, info: WorkerInfo
    ) -> Parts:
        parts = await super()._assemble(stack, node, journal, client, info)
        self.worker_process_id = client.process_id
        work, recompute = parts.duties.work, parts.duties.recompute

        async def gated_work(effect: effects.ComputeWork) -> None:
            await self._gate.pass_through(effect.step)
            await work(effect)

        async def gated_recompute(effect: effects.RecomputeWork) -> None:
            if effect.finder == node.me:  # its step's work, of a validator
                await self._gate.pass_through(node.chain.head.step)
            await recompute(effect)

        parts.duties.work = gated_work  # type: ignore[method-assign]
        parts.duties.recompute = gated_recompute  # type: ignore[method-assign]
        return parts


class BlankKey(PeerKey):
    """A peer's key that signs nothing, to see what signatures cost."""

    def __init__(self, key: PeerKey) -> None:
        vars(self).update(vars(key))

    def sign(self, message: bytes) -> bytes:
        """As long as a signature."""
        return bytes(SIGNATURE_BYTES)

    @staticmethod
    def believe(peer: PeerId, message: bytes, signature: bytes) -> bool:
        """What stands in for verifying."""
        return True


class BenchPeer:
    """Both sides of one peer. `answer` carries out one command of the benchmark."""

    def __init__(self, place: Place, daemon: GatedDaemon, gate: Gate, client: ComputeClient) -> None:
        self._place = place
        self._daemon = daemon
        self._gate = gate
        self._client = client
        self._plain: PlainReducer | None = None
        self._steps_plain = 0
        self._before_bytes = resident_bytes("self")

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        manifest: Manifest, place: Place, signed: bool = True, baseline: bool = True
    ) -> AsyncIterator[BenchPeer]:
        """Start both sides, each with a worker of its own. Whatever ends the daemon ends the block it is used in.
        Without a baseline there is only one side."""
        gate = Gate()
        if not signed:
            place = replace(place, key=BlankKey(place.key), verify=BlankKey.believe)
        daemon = GatedDaemon(manifest, place, gate)
        client = ComputeClient(place.threads, WORKER_MODULE)
        peer = BenchPeer(place, daemon, gate, client)
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(daemon.run(), name="daemon")
                async with asyncio.timeout(READY_SECONDS_MAX):
                    await gate.reached(0)
                    if baseline:
                        info = await client.start(manifest, "cpu")
                        peer._plain = PlainReducer(place.transport, client, info, manifest)
                        await client.load_initial()
                        await peer._plain.start()
                yield peer
                running.cancel()
        except* CrowdsurfError as failed:
            raise leaf(failed) from None
        finally:
            if peer._plain is not None:
                peer._plain.close()
            await client.close()

    async def answer(self, command: str, steps: int, addresses: Addresses) -> dict[str, Any]:
        """`ready`, `connect`, `ours` or `plain`; the last two run a block of steps."""
        async with asyncio.timeout(BLOCK_SECONDS_MAX):
            if command == "ours":
                return await self._ours(steps)
            if command == "plain":
                return await self._plain_steps(steps)
            if command == "connect":
                await self._reducer.connect(addresses)
            return self._facts()

    async def _ours(self, steps: int) -> dict[str, Any]:
        gate, metrics = self._gate, self._daemon.metrics
        first = max(gate.arrivals)
        control, part = metrics.control_bytes_sent, metrics.part_bytes_sent
        gate.arrivals[first] = monotonic_seconds()
        gate.open(first + steps)
        await gate.reached(first + steps)
        return {
            "ends": [gate.arrivals.get(step) for step in range(first, first + steps + 1)],
            "control_bytes": (metrics.control_bytes_sent - control) / steps,
            "part_bytes": (metrics.part_bytes_sent - part) / steps,
        }

    async def _plain_steps(self, steps: int) -> dict[str, Any]:
        self._reducer.work_seconds.clear()
        ends = [monotonic_seconds()]
        for _ in range(steps):
            self._steps_plain += 1
            await self._reducer.step(self._steps_plain)
            ends.append(monotonic_seconds())
        return {"ends": ends, "work_seconds": list(self._reducer.work_seconds)}

    @property
    def _reducer(self) -> PlainReducer:
        if self._plain is None:
            raise WorldError("the baseline has not been started")
        return self._plain

    def _facts(self) -> dict[str, Any]:
        p2pd = getattr(getattr(self._place.transport, "p2p", None), "_child", None)
        return {
            "resident_bytes_before_model": self._before_bytes,
            "worker": self._daemon.worker_process_id,
            "plain_worker": self._client.process_id,
            "p2pd": p2pd.pid if p2pd is not None else None,
        }


def leaf(group: BaseExceptionGroup[CrowdsurfError]) -> CrowdsurfError:
    """The first error of a group of groups."""
    first = group.exceptions[0]
    return leaf(first) if isinstance(first, BaseExceptionGroup) else first


def resident_bytes(process: int | str) -> int | None:
    """Resident memory of a process (its id, or `self`); None where /proc does not say."""
    try:
        fields = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split() for line in fields.splitlines() if line.startswith("VmRSS:")]
    return int(found[0][1]) * 1024 if found else None


async def serve_lines(home: Path, invite_text: str, listen: str, signed: bool, baseline: bool) -> None:
    """Be one peer over p2pd: a JSON command per line on standard input, a JSON answer per line on standard output."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    invite = decode_invite(invite_text, verify)
    book = AddressBook()
    book.add_full(invite.addresses)
    addresses = {peer: book.of(peer) for peer in book.peers()}
    config = NodeConfig(home=str(home), listen=(listen,), device="cpu")
    async with (
        p2pd_place(invite, config) as (manifest, place),
        BenchPeer.open(manifest, place, signed, baseline) as peer,
    ):
        while line := await reader.readline():
            request = json.loads(line)
            answer = await peer.answer(request["command"], request["steps"], addresses)
            print(json.dumps(answer), flush=True)


def main() -> None:
    """Entry point of a peer's process; `bench step` starts it."""
    import uvloop

    parser = argparse.ArgumentParser(description="one peer of a benchmark; started by `crowdsurf bench step`")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--invite", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--unsigned", action="store_true", help="sign nothing and believe everything")
    parser.add_argument("--alone", action="store_true", help="no baseline beside the daemon")
    arguments = parser.parse_args()
    try:
        signed, baseline = not arguments.unsigned, not arguments.alone
        uvloop.run(serve_lines(arguments.home, arguments.invite, arguments.listen, signed, baseline))
    except CrowdsurfError as error:
        sys.exit(f"a peer of the benchmark failed: {error}")


if __name__ == "__main__":
    main()
