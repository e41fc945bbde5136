"""The compute worker: `python -m crowdsurf.peer.compute.worker`, one process per device, started by the daemon.

The idea: a CUDA crash or an out-of-memory kill must not end the peer, and the daemon's event loop must never
wait for a kernel. So all tensors live here. Commands come one at a time over a socket, vectors through shared
memory; the worker ends when its socket does, so it never outlives the daemon.
"""

from __future__ import annotations

import argparse
import mmap
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crowdsurf.peer.compute import frames
from crowdsurf.peer.compute.comparing import Recomputed, compare_parts, sketch_of
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import WorkerDied, WorkFailed, name_of
from crowdsurf.peer.compute.projections import NOTHING, lines_about, project
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows, norm_of
from crowdsurf.protocol.errors import CrowdsurfError, MisuseError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest, finding_digest
from crowdsurf.protocol.manifest import decode_manifest
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.tolerance import relative_bound

if TYPE_CHECKING:
    from crowdsurf.peer.compute.forging import Forger

FLOAT_BYTES = 4


class SharedMemory:
    """The segments the daemon has sent, by identifier."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def attach(self, identifier: int, capacity: int, descriptor: int) -> None:
        """Map a segment; the descriptor is closed."""
        try:
            self._maps[identifier] = mmap.mmap(descriptor, capacity)
        finally:
            os.close(descriptor)

    def forget(self, identifier: int) -> None:
        """Drop a segment; its memory goes with the last tensor over it."""
        self._maps.pop(identifier, None)

    def view(self, identifier: int, offset: int, nbytes: int) -> memoryview:
        """Bytes of a segment. Raises MisuseError outside its bounds."""
        whole = self._maps[identifier]
        if not 0 <= offset <= offset + nbytes <= len(whole):
            raise MisuseError(f"bytes {offset}..{offset + nbytes} are outside a segment of {len(whole)}")
        return memoryview(whole)[offset : offset + nbytes]

    def vector(self, identifier: int, offset: int, elements: int) -> torch.Tensor:
        """float32 (elements,) over a segment, no copy. Raises MisuseError outside its bounds or unaligned."""
        if offset % FLOAT_BYTES or elements < 1:
            raise MisuseError(f"no float32 vector of {elements} elements can begin at byte {offset}")
        return torch.frombuffer(self.view(identifier, offset, elements * FLOAT_BYTES), dtype=torch.float32)

    def vectors(self, identifier: int, offsets: list[int], elements: int) -> list[torch.Tensor]:
        """Several vectors as in `vector`, all views of one tensor, so that a rule can see that they form a matrix."""
        first = min(offsets, default=0)
        whole = self.vector(identifier, first, (max(offsets, default=0) - first) // FLOAT_BYTES + elements)
        starts = [(offset - first) // FLOAT_BYTES for offset in offsets]
        if any((offset - first) % FLOAT_BYTES for offset in offsets):
            raise MisuseError("rows must begin a whole number of float32 apart")
        return [whole[start : start + elements] for start in starts]


class Worker:
    """Carries out commands; `connection` is only watched here for the daemon's death."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._memory = SharedMemory()
        self._control: int | None = None
        self._engine: Engine | None = None
        self._forger: Forger | None = None
        self._recomputed: Recomputed | None = None
        """Where gradients are compared by their numbers and not by their digests."""
        self._commands: dict[str, Callable[..., dict[str, Any]]] = {
            "start": self._start,
            "load_initial": lambda: {"digest": self._running.load_initial()},
            "load_state": self._load_state,
            "save_state": self._save_state,
            "work": self._work,
            "recompute": self._recompute,
            "finding": self._finding,
            "forge": self._forge,
            "distort": self._distort,
            "aggregate": self._aggregate,
            "project": self._project,
            "check": self._check,
            "apply": self._apply,
            "digest_blob": self._digest_blob,
            "evaluate": lambda: {"figures": self._running.evaluate()},
            "export": self._export,
        }
        self._command_id = 0
        self.in_doubt = False

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise MisuseError("the worker has not been started with a manifest")
        return self._engine

    def handle(self, message: frames.Message, descriptors: list[int]) -> frames.Message:
        """Carry out one command and make its answer.

        After an error of ours the worker goes on. After one of torch or of the system (want of memory, a sticky
        CUDA error) its state is in doubt: it says why and ends. Anything else is a bug and ends it with a traceback.
        """
        self._command_id = message["id"]
        for identifier in message["forget"]:
            self._memory.forget(identifier)
        try:
            for (identifier, capacity), descriptor in zip(message["attach"], descriptors, strict=True):
                self._memory.attach(identifier, capacity, descriptor)
            result = self._commands[message["command"]](**message["arguments"])
        except CrowdsurfError as error:
            return {"id": message["id"], "error": name_of(error), "text": str(error)}
        except (RuntimeError, MemoryError, OSError) as error:  # torch reports want of memory as RuntimeError
            self.in_doubt = True
            text = f"the worker ended in {message['command']}: {type(error).__name__}: {error}"
            return {"id": message["id"], "error": WorkerDied.__name__, "text": text}
        return {"id": message["id"], "result": result}

    def _start(self, manifest: bytes, device: str, control: int) -> dict[str, Any]:
        self._control = control
        self._engine, self._forger = Engine(decode_manifest(manifest), choose_device(device)), None
        self._recomputed = Recomputed() if relative_bound(self._engine.manifest) is not None else None
        return {
            "vector_elements": self._engine.elements,
            "state_bytes": self._engine.state.nbytes,
            "device": describe_device(self._engine.device),
            "dataset_digest": self._engine.dataset_digest,
            "task_description": self._engine.task.describe(),
            "has_accuracy": self._engine.task.has_accuracy,
        }

    def _load_state(self, segment: int, nbytes: int) -> dict[str, Any]:
        return {"digest": self._running.load_state(self._memory.view(segment, 0, nbytes))}

    def _save_state(self, segment: int) -> dict[str, Any]:
        state = self._running.state
        state.save(self._memory.view(segment, 0, state.nbytes))
        return {"nbytes": state.nbytes, "digest": state.digest()}

    def _work(self, seed: bytes, ranges: list[tuple[int, int]], gradient: int) -> dict[str, Any]:
        out = self._gradient(gradient, ranges)
        loss, samples = self._running.work(seed, out, self._should_stop)
        return self._described(gradient, out, ranges) | {"loss": loss, "samples": samples}

    def _recompute(
        self,
        state: bytes,
        seed: bytes,
        ranges: list[tuple[int, int]],
        finder: bytes,
        aggregates: list[bytes],
        radius: float,
        beacon: bytes,
        gradient: int,
        committed: int | None = None,
        names: list[bytes] | None = None,
        is_there: list[bool] | None = None,
    ) -> dict[str, Any]:
        out = self._gradient(gradient, ranges)
        self._compute_again(Digest(state), seed, out)
        described = self._described(gradient, out, ranges) | self._finding(gradient, out.nbytes, finder)
        looked_at, there, compared = out, [True] * len(ranges), []
        if committed is not None and names is not None and is_there is not None:
            looked_at = self._gradient(committed, ranges)
            for part, (start, stop) in enumerate(ranges):
                if names[part] == described["part_digests"][part]:  # the very bytes, whether handed over or not
                    looked_at[start:stop], is_there[part] = out[start:stop], True
            there, compared = is_there, compare_parts(out, looked_at, ranges, is_there)
        past = self._running.past_aggregates
        lines: list[Line | None] = []
        if aggregates:
            spans = zip(aggregates, ranges, there, strict=True)
            wanted = [past.find(name, stop - start) if name and held else None for name, (start, stop), held in spans]
            _, lines = lines_about(looked_at, wanted, ranges, radius, beacon)
        return described | {"lines": [pack_line(line) for line in lines], "compared": compared}

    def _compute_again(self, state: Digest, seed: bytes, out: torch.Tensor) -> None:
        """Another peer's work unit into `out`, or a copy of it."""
        known = self._recomputed.find(state, seed) if self._recomputed is not None else None
        if known is not None:
            out.copy_(known)
            return
        self._running.recompute(state, seed, out, self._should_stop)
        if self._recomputed is not None:
            self._recomputed.remember(state, seed, out)

    def _finding(self, segment: int, nbytes: int, finder: bytes) -> dict[str, Any]:
        if self._recomputed is not None:
            return {"finding": sketch_of(self._memory.vector(segment, 0, nbytes // FLOAT_BYTES), PeerId(finder))}
        return {"finding": finding_digest(PeerId(finder), self._memory.view(segment, 0, nbytes))}

    def _gradient(self, segment: int, ranges: list[tuple[int, int]]) -> torch.Tensor:
        """Where a gradient is written, float32 (elements,). Raises MisuseError for a range outside of it."""
        elements = self._running.elements
        if any(not 0 <= start <= stop <= elements for start, stop in ranges):
            raise MisuseError(f"a range is not inside a vector of {elements} elements")
        return self._memory.vector(segment, 0, elements)

    def _described(self, segment: int, gradient: torch.Tensor, ranges: list[tuple[int, int]]) -> dict[str, Any]:
        """Digests and lengths of the parts of a gradient that is at the beginning of a segment."""
        return {
            "part_digests": [
                blob_digest(self._memory.view(segment, start * FLOAT_BYTES, (stop - start) * FLOAT_BYTES))
                for start, stop in ranges
            ],
            "norms": [norm_of(gradient[start:stop]) for start, stop in ranges],
        }

    def _forge(
        self,
        forgery: dict[str, Any],
        usual_strength: bool,
        seed: bytes,
        ranges: list[tuple[int, int]],
        void_ranges: list[tuple[int, int]],
        gradient: int,
        previous: int | None = None,
    ) -> dict[str, Any]:
        # Imported here: only a peer that rehearses an attack needs it.
        from crowdsurf.peer.compute.forging import Forger
        from crowdsurf.protocol.sim.compute import Forgery

        elements = self._running.elements
        if self._forger is None:
            self._forger = Forger(self._running)
        out = self._memory.vector(gradient, 0, elements)
        before = None
        if previous is not None:
            before = self._memory.vector(previous, 0, elements).clone()
            for start, stop in void_ranges:
                before[start:stop] = 0.0
        loss, samples = self._forger.forge(Forgery(**forgery), usual_strength, seed, out, before, self._should_stop)
        return self._described(gradient, out, ranges) | {"loss": loss, "samples": samples}

    def _distort(self, segment: int, offset: int, elements: int, strength: float, salt: bytes) -> dict[str, Any]:
        from crowdsurf.peer.compute.forging import distort

        distort(self._memory.vector(segment, offset, elements), strength, salt)
        return self._digest_blob(segment, offset, elements * FLOAT_BYTES)

    def _aggregate(
        self,
        rule: str,
        parameters: dict[str, Any],
        segment: int,
        rows: list[int],
        elements: int,
        output: int,
        output_offset: int,
        seed: bytes,
        absent: int,
    ) -> dict[str, Any]:
        vectors = self._memory.vectors(segment, rows, elements)
        out = self._memory.vector(output, output_offset, elements)
        outcome = aggregate_rows(parse_rule(rule, parameters), vectors, out, seed, absent)
        return {
            "digest": blob_digest(self._memory.view(output, output_offset, elements * FLOAT_BYTES)),
            "excluded_rows": list(outcome.excluded_rows),
            "iterations": outcome.iterations,
            "residual": outcome.residual,
        }

    def _project(
        self,
        segment: int,
        rows: list[int],
        elements: int,
        output: int,
        output_offset: int,
        radius: float,
        seed: bytes,
    ) -> dict[str, Any]:
        vectors = self._memory.vectors(segment, rows, elements)
        aggregate = self._memory.vector(output, output_offset, elements)
        nothing, *lines = project([NOTHING, *vectors], aggregate, radius, seed)
        if nothing is None or None in lines:
            raise WorkFailed("there are no projections of numbers that are not finite")
        return {"nothing": pack_line(nothing), "lines": [pack_line(line) for line in lines]}

    def _check(
        self,
        step: int,
        names: list[bytes],
        ranges: list[tuple[int, int]],
        radius: float,
        beacon: bytes,
        aggregates: int,
        gradient: int | None = None,
    ) -> dict[str, Any]:
        whole, past = self._gradient(aggregates, ranges), self._running.past_aggregates
        held = [(name, start, stop) for name, (start, stop) in zip(names, ranges, strict=True) if name]
        past.remember(step, [(Digest(name), start, whole[start:stop]) for name, start, stop in held])
        found = [whole[start:stop] if name else None for name, (start, stop) in zip(names, ranges, strict=True)]
        own = None if gradient is None else self._gradient(gradient, ranges)
        nothings, lines = lines_about(own, found, ranges, radius, beacon)
        return {
            "lines": [pack_line(line) for line in lines],
            "nothings": [pack_line(line) for line in nothings],
        }

    def _apply(
        self, aggregate: int, void_ranges: list[tuple[int, int]], part_ranges: list[tuple[int, int]]
    ) -> dict[str, Any]:
        gradient = self._memory.vector(aggregate, 0, self._running.elements)
        void, parts = ([(start, stop) for start, stop in ranges] for ranges in (void_ranges, part_ranges))
        return {"digest": self._running.apply(gradient, void, parts)}

    def _digest_blob(self, segment: int, offset: int, nbytes: int) -> dict[str, Any]:
        return {"digest": blob_digest(self._memory.view(segment, offset, nbytes))}

    def _export(self, path: str) -> dict[str, Any]:
        self._running.export(Path(path))
        return {}

    def _should_stop(self) -> bool:
        """Whether the daemon has cancelled this work command or is gone."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        if readable and not self._connection.recv(1, socket.MSG_PEEK):
            return True
        if self._control is None:
            return False
        (cancelled,) = frames.CANCEL.unpack(self._memory.view(self._control, 0, frames.CANCEL.size))
        return bool(cancelled == self._command_id)


def pack_line(line: Line | None) -> list[float] | None:
    """A line as it goes to the daemon: its projections, and the norm last."""
    return None if line is None else [*line.projections, line.norm]


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when it is there, else the CPU. Raises MisuseError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MisuseError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MisuseError(f"device {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise MisuseError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def describe_device(device: torch.device) -> str:
    """`cpu`, or the CUDA device with its name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def set_numerics(threads: int) -> None:
    """Settings that decide the bits of a result; process-wide, before any tensor is made."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    # The same as use_deterministic_algorithms(True), which would also import torch's compiler: two more seconds.
    torch.set_deterministic_debug_mode("error")
    # Every buffer here is written before it is read; filling each with NaN first would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def serve(connection: socket.socket) -> None:
    """Answer commands until the daemon closes its end or the worker's state is in doubt."""
    worker = Worker(connection)
    while not worker.in_doubt and (received := frames.receive(connection)) is not None:
        message, descriptors = received
        answer = worker.handle(message, descriptors)
        try:
            connection.sendall(frames.encode(answer))
        except ConnectionError:
            return


def main() -> None:
    """Entry point of the process; the daemon passes the socket's descriptor and the number of threads."""
    parser = argparse.ArgumentParser(description="compute worker; started by the daemon")
    parser.add_argument("--socket-descriptor", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group they are for the daemon, which ends us
    set_numerics(arguments.threads)
    with socket.socket(fileno=arguments.socket_descriptor) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
