"""The daemon's side of the compute worker: asyncio methods, no torch, no vector ever copied through the socket.

The idea: one command at a time, answered by its id; vectors are in shared segments whose descriptors travel once.
A worker that dies, for whatever reason, is one exception (`WorkerDied`) from the pending call; `restart` brings a
new one, and the daemon loads the state it has kept.

A cancelled caller still waits for its command's answer (work is told to stop first), because the worker may be
writing into a segment that the caller would reuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdsurf.peer.compute import frames
from crowdsurf.peer.compute.errors import BY_NAME, WorkerDied
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import Manifest, encode_manifest
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.tolerance import Compared

if TYPE_CHECKING:
    from crowdsurf.protocol.sim.compute import Forgery

WORKER_MODULE = "crowdsurf.peer.compute.worker"
START_SECONDS_MAX = 180.0
"""Importing torch from a cold disk, preparing a large text and building a large model."""
CLOSE_SECONDS_MAX = 2.0
"""How long a closed worker may take to end before it is killed."""

NO_SEED = bytes(32)
"""For rules that draw nothing."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a started worker says about the run. `vector_elements` float32 parameters, `state_bytes` of raw state."""

    vector_elements: int
    state_bytes: int
    device: str
    dataset_digest: Digest
    task_description: str
    has_accuracy: bool


@dataclass(frozen=True, slots=True)
class WorkResult:
    """A finished work unit: of the ranges asked for the blob digests and the lengths (NaN for what is not finite), then
    mean loss and number of samples."""

    part_digests: tuple[Digest, ...]
    norms: tuple[float, ...]
    loss: float
    samples: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What somebody has committed to: its gradient (float32, all parameters), blob digests by range (empty where
    nothing is asked), and of which ranges the bytes are there."""

    gradient: Segment
    names: Sequence[bytes]
    is_there: Sequence[bool]


@dataclass(frozen=True, slots=True)
class RecomputeResult:
    """A work unit computed again: blob digests and lengths of the ranges asked for, what its finder commits to
    (`protocol.ids.finding_digest`), and what aggregators must have said about it."""

    part_digests: tuple[Digest, ...]
    norms: tuple[float, ...]
    finding: Digest
    lines: tuple[Line | None, ...]
    """By part, where they were asked for; None for an aggregate that is not remembered or not finite."""
    compared: tuple[Compared | None, ...] = ()
    """By part, where committed bytes were given; None for a part whose bytes are missing."""


@dataclass(frozen=True, slots=True)
class AggregateResult:
    """A finished aggregation: blob digest of the output, indexes of rows that were not finite, how the rule ended."""

    digest: Digest
    excluded_rows: tuple[int, ...]
    iterations: int
    residual: float


@dataclass(frozen=True, slots=True)
class ProjectResult:
    """A line about a row of zeros, whose norm is the aggregate's length, and one for each of its rows."""

    nothing: Line
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What lines about a gradient must say, by part (None for an aggregate that is not held or not finite; nothing
    without a gradient), and lines about a row of zeros."""

    lines: tuple[Line | None, ...]
    nothings: tuple[Line | None, ...]


class ComputeClient:
    """Starts, commands and ends one worker. Not for use from several event loops."""

    def __init__(self, threads: int = 1, module: str = WORKER_MODULE) -> None:
        """`threads` is the number of CPU threads of the worker's kernels; `module` is the program of its process."""
        self._threads = threads
        self._module = module
        self._process: asyncio.subprocess.Process | None = None
        self._connection: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._attached: dict[int, Segment] = {}
        self._control = Segment(frames.CANCEL.size)
        self._one_at_a_time = asyncio.Lock()
        self._last_id = 0
        self._work_id = 0
        self._start_arguments: tuple[Manifest, str] | None = None
        self._death = "the worker has not been started"

    @property
    def process_id(self) -> int | None:
        """Process id of the worker; None when none is running."""
        return self._process.pid if self._process is not None else None

    async def start(self, manifest: Manifest, device: str = "auto") -> WorkerInfo:
        """Start the worker at the manifest's initial state. Raises MisuseError for what is wrong with the manifest
        here (task, parameters, rule, data set digest, device), WorkerDied if it does not come up."""
        await self._stop()
        self._start_arguments = (manifest, device)
        process = await self._spawn()
        deadline = asyncio.get_running_loop().call_later(START_SECONDS_MAX, process.kill)
        try:
            arguments = {"manifest": encode_manifest(manifest), "device": device}
            return WorkerInfo(**await self._call("start", arguments, control=self._control))
        except BaseException:
            await self._stop()
            raise
        finally:
            deadline.cancel()

    async def restart(self) -> WorkerInfo:
        """End whatever is left of the worker and start it again as before; then load the state."""
        if self._start_arguments is None:
            raise MisuseError("restart needs a worker that has been started once")
        return await self.start(*self._start_arguments)

    async def load_initial(self) -> Digest:
        """Go to the state before the first step; its digest."""
        return Digest((await self._call("load_initial", {}))["digest"])

    async def load_state(self, segment: Segment, nbytes: int) -> Digest:
        """Replace the state by the first `nbytes` of `segment`; their state digest, for the caller to compare.
        Raises MisuseError when the size is not `state_bytes`."""
        return Digest((await self._call("load_state", {"nbytes": nbytes}, segment=segment))["digest"])

    async def save_state(self, segment: Segment) -> tuple[int, Digest]:
        """Copy the state into `segment`: bytes written and state digest."""
        result = await self._call("save_state", {}, segment=segment)
        return result["nbytes"], Digest(result["digest"])

    async def work(self, seed: bytes, ranges: Sequence[Range], gradient: Segment) -> WorkResult:
        """Compute the work unit of `seed` (32 bytes) at the current state into `gradient` (float32, all parameters)
        and digest the given element ranges. Raises WorkCancelled after `cancel_work`, WorkFailed for a gradient
        that is not finite."""
        arguments = {"seed": seed, "ranges": list(ranges)}
        return _work_result(await self._call("work", arguments, gradient=gradient))

    async def recompute(
        self,
        state: Digest,
        seed: bytes,
        ranges: Sequence[Range],
        gradient: Segment,
        finder: PeerId,
        aggregates: Sequence[bytes] = (),
        radius: float = math.inf,
        beacon: bytes = b"",
        committed: Committed | None = None,
    ) -> RecomputeResult:
        """Compute the work unit of `seed` (32 bytes) again, at the present state or one of the last before it, into
        `gradient` (float32, all parameters): the bytes `work` gave there. The state stays as it is. `cancel_work`
        does not stop it; cancelling the caller does. `aggregates` are blob digests by range, empty where nothing is
        asked; of those that `check` was given lately the lines about this gradient are worked out, with this clipping
        `radius` and `beacon`. With `committed`, for a run that compares numbers, the gradient is compared
        with it, and the lines are about it. Raises StateForgotten, and WorkFailed as `work` does."""
        arguments: dict[str, Any] = {"state": state, "seed": seed, "ranges": list(ranges), "finder": finder}
        arguments |= {"aggregates": list(aggregates), "radius": radius, "beacon": beacon}
        segments = {"gradient": gradient}
        if committed is not None:
            segments["committed"] = committed.gradient
            arguments |= {"names": list(committed.names), "is_there": list(committed.is_there)}
        answer = await self._call("recompute", arguments, **segments)
        return RecomputeResult(
            part_digests=tuple(Digest(value) for value in answer["part_digests"]),
            norms=tuple(answer["norms"]),
            finding=Digest(answer["finding"]),
            lines=tuple(map(_line, answer["lines"])),
            compared=tuple(None if seen is None else Compared(*seen) for seen in answer["compared"]),
        )

    async def finding(self, segment: Segment, nbytes: int, finder: PeerId) -> Digest:
        """What `finder` commits to (`protocol.ids.finding_digest`) when it finds the gradient in the first `nbytes`
        of `segment`."""
        arguments = {"nbytes": nbytes, "finder": finder}
        return Digest((await self._call("finding", arguments, segment=segment))["finding"])

    async def forge(
        self,
        forgery: Forgery,
        usual_strength: bool,
        seed: bytes,
        ranges: Sequence[Range],
        gradient: Segment,
        previous: tuple[Segment, Sequence[Range]] | None = None,
    ) -> WorkResult:
        """As `work`, of a peer that rehearses an attack: write the forged gradient at the current state instead; it
        may be non-finite. Loss and samples are those of the honest unit of `seed`. `usual_strength` takes that of
        the literature. `previous` is the last averaged gradient and its void ranges. Raises as `work`, and
        MisuseError for an unknown attack."""
        arguments = {
            "forgery": asdict(forgery),
            "usual_strength": usual_strength,
            "seed": seed,
            "ranges": list(ranges),
            "void_ranges": list(previous[1]) if previous is not None else [],
        }
        segments = {"gradient": gradient} | ({"previous": previous[0]} if previous is not None else {})
        return _work_result(await self._call("forge", arguments, **segments))

    async def distort(self, segment: Segment, offset: int, elements: int, strength: float, salt: bytes) -> Digest:
        """Of a peer that rehearses an attack: move the aggregate of `elements` float32 at byte `offset` by `strength`
        times its norm, in a direction drawn from `salt`; its new blob digest."""
        arguments = {"offset": offset, "elements": elements, "strength": strength, "salt": salt}
        return Digest((await self._call("distort", arguments, segment=segment))["digest"])

    def cancel_work(self) -> None:
        """Ask the running `work` or `forge`, if any, to stop before its next micro-batch. Returns at once."""
        if self._work_id:
            frames.CANCEL.pack_into(self._control.view, 0, self._work_id)

    async def aggregate(
        self,
        rule_name: str,
        rule_parameters: Mapping[str, int | float | str | bool],
        segment: Segment,
        rows: Sequence[int],
        elements: int,
        output: Segment,
        output_offset: int = 0,
        seed: bytes = NO_SEED,
        absent: int = 0,
    ) -> AggregateResult:
        """Apply a rule to rows of `elements` float32 that begin at the byte offsets `rows` of `segment`, in that
        order, and to `absent` rows of zeros, into `output` at byte `output_offset`. All chance of a rule that draws
        comes from `seed` (32 bytes). Raises NoUsableRows when no row is finite."""
        arguments = {"rule": rule_name, "parameters": dict(rule_parameters), "rows": list(rows), "elements": elements}
        arguments |= {"output_offset": output_offset, "seed": seed, "absent": absent}
        result = await self._call("aggregate", arguments, segment=segment, output=output)
        return AggregateResult(
            digest=Digest(result["digest"]),
            excluded_rows=tuple(result["excluded_rows"]),
            iterations=result["iterations"],
            residual=result["residual"],
        )

    async def project(
        self,
        segment: Segment,
        rows: Sequence[int],
        elements: int,
        output: Segment,
        output_offset: int,
        radius: float,
        seed: Digest,
    ) -> ProjectResult:
        """The lines (`protocol/projection.py`) of the aggregate of `elements` float32 at byte `output_offset` of
        `output`, about a row of zeros, and about rows that begin at the byte offsets `rows` of `segment`, in that
        order. `radius` is positive, perhaps infinite. Raises WorkFailed for numbers that are not finite."""
        arguments = {"rows": list(rows), "elements": elements, "output_offset": output_offset}
        arguments |= {"radius": radius, "seed": seed}
        answer = await self._call("project", arguments, segment=segment, output=output)
        lines = tuple(_whole_line(line) for line in answer["lines"])
        return ProjectResult(nothing=_whole_line(answer["nothing"]), lines=lines)

    async def check(
        self,
        step: int,
        names: Sequence[bytes],
        ranges: Sequence[Range],
        radius: float,
        beacon: Digest,
        aggregates: Segment,
        gradient: Segment | None,
    ) -> CheckResult:
        """Work out what lines about a gradient of a step must say, and keep copies of that step's aggregates for
        `recompute`. Both are float32, all parameters; `names` are the blob digests of the given element ranges of
        `aggregates`, empty for one that does not count."""
        arguments = {"step": step, "names": list(names), "ranges": list(ranges), "radius": radius, "beacon": beacon}
        segments = {"aggregates": aggregates} | ({"gradient": gradient} if gradient is not None else {})
        answer = await self._call("check", arguments, **segments)
        return CheckResult(lines=tuple(map(_line, answer["lines"])), nothings=tuple(map(_line, answer["nothings"])))

    async def apply(
        self, aggregate: Segment, void_ranges: Sequence[Range] = (), part_ranges: Sequence[Range] = ()
    ) -> Digest:
        """One outer optimizer step on the averaged gradient in `aggregate`; the new state's digest. Elements of
        void ranges, and of any of `part_ranges` that is not finite, keep parameters and optimizer state. Raises
        WorkFailed, with the state unchanged, when another element is not finite."""
        arguments = {"void_ranges": list(void_ranges), "part_ranges": list(part_ranges)}
        result = await self._call("apply", arguments, aggregate=aggregate)
        return Digest(result["digest"])

    async def digest_blob(self, segment: Segment, offset: int, nbytes: int) -> Digest:
        """Blob digest of bytes of a segment, off the event loop."""
        result = await self._call("digest_blob", {"offset": offset, "nbytes": nbytes}, segment=segment)
        return Digest(result["digest"])

    async def evaluate(self) -> dict[str, float]:
        """`test_loss` and, for tasks that have one, `test_accuracy` (0 to 1)."""
        figures: dict[str, float] = (await self._call("evaluate", {}))["figures"]
        return figures

    async def export(self, path: Path) -> None:
        """Write the parameters as safetensors, whole or not at all. Raises WorldError."""
        await self._call("export", {"path": str(path)})

    async def close(self) -> None:
        """End the worker and give its memory back. Closing twice is harmless."""
        await self._stop()
        self._control.close()

    async def _spawn(self) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = ["-m", self._module, "--threads", str(self._threads)]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                "--socket-descriptor",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=worker_environment(self._threads),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,  # the daemon's standard output is for its own answers
            )
        except OSError as error:
            ours.close()
            raise WorkerDied(f"the worker could not be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._process, self._connection, self._death = process, ours, ""
        self._reader = asyncio.create_task(self._read_answers(ours, process))
        return process

    async def _read_answers(self, connection: socket.socket, process: asyncio.subprocess.Process) -> None:
        """Give every answer to its caller; at the end of the socket fail whoever waits."""
        while (answer := await frames.receive_async(connection)) is not None:
            waiting = self._pending.pop(answer["id"])
            if "error" not in answer:
                waiting.set_result(answer["result"])
                continue
            kind = BY_NAME[answer["error"]]
            if kind is WorkerDied:
                self._death = answer["text"]
            waiting.set_exception(kind(answer["text"]))
        code = await process.wait()
        if self._connection is connection:
            self._connection = None
            connection.close()
            if not self._death:
                self._death = f"the worker process ended with {_exit_text(code)}"
        self._fail_pending()

    def _fail_pending(self) -> None:
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(WorkerDied(self._death))
        self._pending.clear()

    async def _call(self, command: str, arguments: dict[str, Any], **segments: Segment) -> Any:
        """Send one command and wait for its answer, even if the caller is cancelled (work is told to stop then).
        Segments are passed to the worker as their identifiers, under the names given."""
        async with self._one_at_a_time:
            if self._connection is None:
                raise WorkerDied(self._death)
            self._last_id += 1
            frame, descriptors = self._frame(command, arguments, segments)
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._pending[self._last_id] = answer
            self._work_id = self._last_id if command in ("work", "forge") else 0
            with contextlib.suppress(OSError):  # the worker is gone; its reader says why
                await frames.send_async(self._connection, frame, descriptors)
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                if not answer.done():
                    frames.CANCEL.pack_into(self._control.view, 0, self._last_id)  # what computes no gradient goes on
                if command != "start":
                    await asyncio.wait([answer])
                    answer.exception()  # seen: nobody else will look at it
                raise
            finally:
                self._work_id = 0

    def _frame(
        self, command: str, arguments: dict[str, Any], segments: Mapping[str, Segment]
    ) -> tuple[bytes, list[int]]:
        """The command's bytes, and the descriptors of segments the worker does not have yet."""
        forget = [identifier for identifier, segment in self._attached.items() if segment.closed]
        for identifier in forget:
            del self._attached[identifier]
        if any(segment.closed for segment in segments.values()):
            raise MisuseError("this segment has been closed")
        new = {s.identifier: s for s in segments.values() if s.identifier not in self._attached}
        self._attached |= new
        message = {
            "id": self._last_id,
            "command": command,
            "arguments": arguments | {name: segment.identifier for name, segment in segments.items()},
            "attach": [(segment.identifier, segment.capacity) for segment in new.values()],
            "forget": forget,
        }
        return frames.encode(message), [segment.descriptor for segment in new.values()]

    async def _stop(self) -> None:
        """Close the socket, which ends the worker; kill it if it takes too long."""
        connection, process, reader = self._connection, self._process, self._reader
        self._connection = self._process = self._reader = None
        self._death = "the worker has been closed"
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        if connection is not None:
            connection.close()
        self._fail_pending()
        self._attached.clear()
        if process is not None and process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), CLOSE_SECONDS_MAX)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def _work_result(answer: Mapping[str, Any]) -> WorkResult:
    digests = tuple(Digest(value) for value in answer["part_digests"])
    return WorkResult(
        part_digests=digests, norms=tuple(answer["norms"]), loss=answer["loss"], samples=answer["samples"]
    )


def _line(numbers: Sequence[float] | None) -> Line | None:
    return None if numbers is None else _whole_line(numbers)


def _whole_line(numbers: Sequence[float]) -> Line:
    return Line(projections=tuple(numbers[:-1]), norm=numbers[-1])


def worker_environment(threads: int) -> dict[str, str]:
    """The worker's environment: kernels on `threads` threads that sleep when idle (a spinning thread costs other
    processes whole time slices), and what CUDA needs for deterministic matrix products."""
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
