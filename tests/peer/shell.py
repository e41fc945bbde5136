"""What the tests of the daemon share: keys, manifests, a compute worker inside the process, and whole small swarms.

The idea: everything around the worker is the product's. `FakeCompute` stands in for it where a test is about the
shell and not about torch: it answers in microseconds, computes the same numbers everywhere, and dies on command.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import numpy.typing
import torch
from blake3 import blake3

from crowdsurf.peer.compute.client import (
    AggregateResult,
    CheckResult,
    Committed,
    ProjectResult,
    RecomputeResult,
    WorkerInfo,
    WorkResult,
)
from crowdsurf.peer.compute.errors import StateForgotten, WorkCancelled, WorkerDied
from crowdsurf.peer.compute.projections import project
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.daemon import Daemon, Outcome, Place
from crowdsurf.peer.journal import read_journal
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import MemorySwarm, run_folder
from crowdsurf.peer.links import Link
from crowdsurf.protocol import events, limits, wire
from crowdsurf.protocol.assignment import ELEMENT_BYTES, projection_seed
from crowdsurf.protocol.envelope import slot_of
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest, digest, finding_digest
from crowdsurf.protocol.manifest import DeadlineSection, Manifest, OptimizerSection, RuleSection, TaskSection, run_id_of
from crowdsurf.protocol.messages import Certificate, Envelope
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.recovery import RecordType
from crowdsurf.protocol.tolerance import Compared

Vector = numpy.typing.NDArray[numpy.float64]

ELEMENTS = 46
STATE_BYTES = ELEMENTS * ELEMENT_BYTES
QUICK = DeadlineSection(
    work_seconds_min=0.3,
    work_seconds_max=3.0,
    transfer_seconds_min=0.3,
    transfer_seconds_max=3.0,
    delivery_seconds=0.3,
)
PATIENCE_SECONDS = 60.0
"""A test that waits this long for an event has failed; a busy machine alone takes far less."""


def key_of(number: int) -> PeerKey:
    """The same key every time."""
    return PeerKey(bytes([number + 1]) * 32)


def manifest_of(founders: Sequence[PeerKey], **changes: Any) -> Manifest:
    """A run of eight steps of anything."""
    peers = tuple(key.peer_id for key in founders)
    fields: dict[str, Any] = {
        "name": "test",
        "organizer": peers[0],
        "founders": peers,
        "task": TaskSection(name="fake"),
        "optimizer": OptimizerSection(name="sgd", learning_rate=0.1),
        "rule": RuleSection(name="mean"),  # what `FakeCompute` does
        "deadlines": QUICK,
        "steps": 8,
    }
    return Manifest(**(fields | changes))


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Wait for something that must happen."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await awaitable


async def until(condition: Callable[[], Any]) -> None:
    """Let others run until a condition holds that tells nobody when it does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - nobody tells when it holds
            await asyncio.sleep(0)


class Inbox:
    """Collects events, as the driver's queue would, and refusals."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.refusals: asyncio.Queue[tuple[PeerId, Refusal]] = asyncio.Queue()

    async def post(self, event: events.Event) -> None:
        await self.events.put(event)

    def refuse(self, peer: PeerId, refusal: Refusal) -> None:
        self.refusals.put_nowait((peer, refusal))

    async def event(self) -> events.Event:
        found: events.Event = await soon(self.events.get())
        return found

    async def refusal(self) -> Refusal:
        _, refusal = await soon(self.refusals.get())
        found: Refusal = refusal
        return found


def _names(values: Any, ranges: Sequence[tuple[int, int]]) -> tuple[Digest, ...]:
    return tuple(blob_digest(values[start:stop].tobytes()) for start, stop in ranges)


def _compared(values: Any, committed: Committed, ranges: Sequence[tuple[int, int]]) -> tuple[Compared | None, ...]:
    other = numpy.frombuffer(committed.gradient.view, numpy.float32)
    spans = zip(committed.is_there, ranges, strict=True)
    return tuple(
        Compared(*_norms(values - other, [span]), *_norms(other, [span])) if there else None for there, span in spans
    )


def _norms(values: Any, ranges: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    return tuple(float(numpy.linalg.norm(values[start:stop].astype(float))) for start, stop in ranges)


def _vector(segment: Segment, offset: int, elements: int) -> Vector:
    return numpy.frombuffer(segment.view[offset : offset + elements * ELEMENT_BYTES], numpy.float32).astype(float)


def _line(row: Any, aggregate: Vector, radius: float, seed: bytes) -> Line:
    (line,) = project([torch.from_numpy(row).float()], torch.from_numpy(aggregate).float(), radius, seed)
    if line is None:
        raise ValueError("not finite")
    return line


def _lines(
    gradient: Any,
    aggregates: Sequence[Vector | None],
    ranges: Sequence[tuple[int, int]],
    radius: float,
    beacon: bytes,
) -> tuple[Line | None, ...]:
    return tuple(
        None if one is None else _line(gradient[start:stop], one, radius, projection_seed(beacon, part))
        for part, (one, (start, stop)) in enumerate(zip(aggregates, ranges, strict=True))
    )


class FakeCompute:
    """Takes the place of `ComputeClient`: same methods, no process. `before` may delay, fail or kill a command."""

    def __init__(self, threads: int = 1) -> None:
        self.alive = False
        self.starts = 0
        self.before: Callable[[str], Awaitable[None]] = self._nothing
        self._state = numpy.zeros(ELEMENTS, numpy.float32)
        self._lock = asyncio.Lock()
        self._cancelled = asyncio.Event()
        self._past: dict[bytes, bytes] = {}
        self._aggregates: dict[bytes, Vector] = {}

    async def _nothing(self, command: str) -> None:
        """The usual."""

    async def start(self, manifest: Manifest, device: str = "auto") -> WorkerInfo:
        self.alive = True
        self.starts += 1
        self._state = numpy.zeros(ELEMENTS, numpy.float32)
        await self._turn("start")
        return WorkerInfo(ELEMENTS, STATE_BYTES, "cpu", Digest(bytes(32)), "fake", True)

    async def restart(self) -> WorkerInfo:
        return await self.start(None)  # type: ignore[arg-type]

    async def close(self) -> None:
        self.alive = False

    def kill(self) -> None:
        """As SIGKILL of the worker."""
        self.alive = False

    def cancel_work(self) -> None:
        self._cancelled.set()

    async def load_initial(self) -> Digest:
        async with self._lock:
            await self._turn("load_initial")
            self._state = numpy.zeros(ELEMENTS, numpy.float32)
            return self._digest()

    async def load_state(self, segment: Segment, nbytes: int) -> Digest:
        async with self._lock:
            await self._turn("load_state")
            self._state = numpy.frombuffer(segment.view[:nbytes], numpy.float32).copy()
            return self._digest()

    async def save_state(self, segment: Segment) -> tuple[int, Digest]:
        async with self._lock:
            await self._turn("save_state")
            segment.view[:STATE_BYTES] = self._state.tobytes()
            return STATE_BYTES, self._digest()

    async def work(self, seed: bytes, ranges: Sequence[tuple[int, int]], gradient: Segment) -> WorkResult:
        async with self._lock:
            self._cancelled.clear()
            await self._turn("work")
            if self._cancelled.is_set():
                raise WorkCancelled("cancelled")
            values = self._gradient(self._state.tobytes(), seed)
            gradient.view[:STATE_BYTES] = values.tobytes()
            return WorkResult(_names(values, ranges), _norms(values, ranges), float(abs(values).mean()), 32)

    def _gradient(self, state: bytes, seed: bytes) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        self._past[digest("state", state)] = state
        return numpy.frombuffer(blake3(seed + state).digest(ELEMENTS), numpy.int8).astype(numpy.float32) / 128

    async def recompute(
        self,
        state: Digest,
        seed: bytes,
        ranges: Sequence[tuple[int, int]],
        gradient: Segment,
        finder: PeerId,
        aggregates: Sequence[bytes] = (),
        radius: float = math.inf,
        beacon: bytes = b"",
        committed: Committed | None = None,
    ) -> RecomputeResult:
        async with self._lock:
            await self._turn("recompute")
            if state == self._digest():
                self._past[state] = self._state.tobytes()  # a step may be judged before it is applied
            if state not in self._past:
                raise StateForgotten("it was not worked at here")
            values = self._gradient(self._past[state], seed)
            wanted, shown = [self._aggregates.get(name) for name in aggregates], values
            if committed is not None:
                shown = numpy.frombuffer(committed.gradient.view, numpy.float32)
                held = zip(wanted, committed.is_there, strict=True) if wanted else ()
                wanted = [aggregate if is_there else None for aggregate, is_there in held]
            lines = _lines(shown, wanted, ranges, radius, beacon) if wanted else ()
            finding = finding_digest(finder, values.tobytes())
            names, norms = _names(values, ranges), _norms(values, ranges)
            compared = _compared(values, committed, ranges) if committed is not None else ()
            return RecomputeResult(names, norms, finding, lines, compared)

    async def finding(self, segment: Segment, nbytes: int, finder: PeerId) -> Digest:
        async with self._lock:
            await self._turn("finding")
            return finding_digest(finder, segment.view[:nbytes])

    async def aggregate(
        self,
        rule_name: str,
        rule_parameters: Mapping[str, Any],
        segment: Segment,
        rows: Sequence[int],
        elements: int,
        output: Segment,
        output_offset: int = 0,
        seed: bytes = bytes(32),
        absent: int = 0,
    ) -> AggregateResult:
        async with self._lock:
            await self._turn("aggregate")
            nbytes = elements * ELEMENT_BYTES
            found = [numpy.frombuffer(segment.view[row : row + nbytes], numpy.float32) for row in rows]
            found += [numpy.zeros(elements, numpy.float32)] * absent
            mean = numpy.mean(found, axis=0, dtype=numpy.float64).astype(numpy.float32).tobytes()
            output.view[output_offset : output_offset + nbytes] = mean
            return AggregateResult(blob_digest(mean), (), 0, 0.0)

    async def project(
        self,
        segment: Segment,
        rows: Sequence[int],
        elements: int,
        output: Segment,
        output_offset: int,
        radius: float,
        seed: bytes,
    ) -> ProjectResult:
        async with self._lock:
            await self._turn("project")
            whole = _vector(output, output_offset, elements)
            lines = tuple(_line(_vector(segment, row, elements), whole, radius, seed) for row in rows)
            return ProjectResult(_line(0.0 * whole, whole, radius, seed), lines)

    async def check(
        self,
        step: int,
        names: Sequence[bytes],
        ranges: Sequence[tuple[int, int]],
        radius: float,
        beacon: bytes,
        aggregates: Segment,
        gradient: Segment | None,
    ) -> CheckResult:
        async with self._lock:
            await self._turn("check")
            whole = _vector(aggregates, 0, ELEMENTS)
            spans = zip(names, ranges, strict=True)
            held = [whole[start:stop].copy() if name else None for name, (start, stop) in spans]
            self._aggregates.update({name: one for name, one in zip(names, held, strict=True) if one is not None})
            nothings = _lines(numpy.zeros(ELEMENTS), held, ranges, radius, beacon)
            if gradient is None:
                return CheckResult((), nothings)
            return CheckResult(_lines(_vector(gradient, 0, ELEMENTS), held, ranges, radius, beacon), nothings)

    async def apply(
        self,
        aggregate: Segment,
        void_ranges: Sequence[tuple[int, int]] = (),
        part_ranges: Sequence[tuple[int, int]] = (),
    ) -> Digest:
        async with self._lock:
            await self._turn("apply")
            self._past[self._digest()] = self._state.tobytes()
            gradient = numpy.frombuffer(aggregate.view[:STATE_BYTES], numpy.float32).copy()
            for start, stop in void_ranges:
                gradient[start:stop] = 0
            self._state = self._state - numpy.float32(0.1) * gradient
            return self._digest()

    async def evaluate(self) -> dict[str, float]:
        async with self._lock:
            await self._turn("evaluate")
            return {"test_loss": float(abs(self._state).mean()), "test_accuracy": 0.5}

    async def _turn(self, command: str) -> None:
        await asyncio.sleep(0)
        await self.before(command)
        if not self.alive:
            raise WorkerDied("the worker was killed by signal 9")

    def _digest(self) -> Digest:
        return digest("state", self._state.tobytes())


class Peer:
    """One daemon of a test swarm, which can be stopped and started again on the same folder."""

    def __init__(self, swarm: Swarm, key: PeerKey) -> None:
        self.swarm = swarm
        self.key = key
        self.home = swarm.folder / f"peer-{key.peer_id[-4:].hex()}"
        self.folder = run_folder(self.home, run_id_of(swarm.manifest))
        self.steps: list[int] = []
        self.reached: dict[int, asyncio.Event] = {}
        self.task: asyncio.Task[Outcome] | None = None
        self.evaluate_steps = 0

    def start(self) -> None:
        """Start the daemon."""
        self.place: Place = self.swarm.network.place(self.swarm.manifest, self.home, self.key, self.evaluate_steps)
        self.daemon = Daemon(self.swarm.manifest, self.place)
        self.daemon.on_step = self._on_step
        self.task = asyncio.create_task(self.daemon.run(), name="daemon")

    async def end(self) -> Outcome:
        """Its outcome, once the run is over."""
        outcome: Outcome = await soon(self.running)
        await self.place.transport.close()
        return outcome

    @property
    def running(self) -> asyncio.Task[Outcome]:
        if self.task is None:
            raise RuntimeError("not started")
        return self.task

    async def kill(self) -> None:
        """End it as SIGKILL would: nothing more is sent, and what the journal has not synced is lost."""
        self.swarm.network.kill(self.key)
        parts = getattr(self.daemon._driver, "_parts", None)
        if parts is not None:
            parts.journal._pending.clear()
            parts.journal._pending_bytes = 0
        await self.stop()

    async def stop(self) -> None:
        """Cancel it, as a second Ctrl-C does."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            await self.place.transport.close()

    async def certified(self, step: int) -> None:
        """Wait until a step (or a later one) is certified here, or the daemon ends."""
        event = self.reached.setdefault(step, asyncio.Event())
        if any(known >= step for known in self.steps):
            return
        waiting = asyncio.ensure_future(event.wait())
        await soon(asyncio.wait((waiting, self.running), return_when=asyncio.FIRST_COMPLETED))
        waiting.cancel()
        if self.running.done():
            self.running.result()

    def _on_step(self, story: Any) -> None:
        self.steps.append(story.step)
        for step, event in self.reached.items():
            if story.step >= step:
                event.set()

    def envelopes(self) -> list[Envelope]:
        """Everything it signed, from its journal."""
        records = read_journal(self.folder)
        return [
            wire.unpack(data, Envelope, limits.ENVELOPE_BYTES_MAX)
            for kind, data in records
            if kind == RecordType.SIGNED
        ]

    def certificates(self) -> list[Certificate]:
        """Every certified step in its journal."""
        records = read_journal(self.folder)
        return [
            wire.unpack(data, Certificate, limits.CERTIFICATE_BYTES_MAX)
            for kind, data in records
            if kind == RecordType.CERTIFICATE
        ]

    def slots_signed_twice(self) -> list[Any]:
        """Slots for which its journal holds two different payloads; must be none."""
        signed: dict[Any, bytes] = {}
        return [
            slot_of(envelope)
            for envelope in self.envelopes()
            if signed.setdefault(slot_of(envelope), envelope.payload) != envelope.payload
        ]


class Swarm:
    """Daemons over one memory network."""

    def __init__(self, folder: Path, founders: int, extra: int = 0, **changes: Any) -> None:
        keys = [key_of(number) for number in range(founders + extra)]
        self.folder = folder
        self.manifest = manifest_of(keys[:founders], **changes)
        self.network = MemorySwarm()
        self.peers = [Peer(self, key) for key in keys]
        self.founders = self.peers[:founders]

    async def __aenter__(self) -> Swarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(peer.stop() for peer in self.peers))

    def start(self) -> None:
        """Start the founders."""
        for peer in self.founders:
            peer.start()

    async def end(self, *peers: Peer) -> list[Outcome]:
        """Outcomes of these peers (default: the founders)."""
        return list(await asyncio.gather(*(peer.end() for peer in peers or self.founders)))


def link_to(daemon: Daemon, peer: PeerKey) -> Link:
    """A daemon's control link to a peer."""
    links = daemon._links
    if links is None:
        raise RuntimeError("not started")
    return links._links[peer.peer_id]
