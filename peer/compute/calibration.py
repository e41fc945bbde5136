"""How far apart honest gradients of one work unit are on this machine, and how far the smallest cheat worth doing.

The idea: the same work units are computed in every way in which honest peers may differ (threads, kernels, the order of
additions, devices), in coarser arithmetic, and with one sample left out or replaced, which saves the least work that
can be saved. Each is compared with a plain computation on one thread. A bound that tells honest peers from cheats lies
between the two, far from both; `audit.relative_l2_max` of a manifest is such a bound (SPEC R-6.14).
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from crowdsurf.peer.compute.comparing import relative_distance
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import WorkFailed
from crowdsurf.protocol.ids import digest
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.tolerance import ACCUSING

HONEST, COARSER, CHEAT = "honest", "coarser", "cheat"
"""What a peer may do; arithmetic that a run may or may not want to allow; what must be caught."""

BOUND_MIN, BOUND_MAX = 1e-5, 0.1
"""The smallest and the largest bound that is suggested. Other machines' kernels differ by more than one machine shows:
nearer to rounding than this nobody should go."""
CLEARANCE = 2.0
"""What is accused must be so many times nearer than the smallest cheat, and the bound so many times as far as what
honest machines differ by here."""
BATCH_DISTANCE_MAX = 0.05
"""Above it a batch computed in halves is another computation: the task's chance depends on the batch (dropout)."""


class Way(NamedTuple):
    """One way to compute a work unit."""

    name: str
    kind: str
    engine: Engine
    setting: Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Distances:
    """Relative L2 distances of one way from the plain one, over all work units."""

    name: str
    kind: str
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured; every field is documented in the README."""

    task: str
    precision: str
    units: int
    ways: tuple[Distances, ...]
    honest_max: float
    """The farthest that honest ways were apart."""
    cheat_min: float | None
    """The nearest that a cheat came; None where the task shows no samples that could be left out."""
    relative_l2_max: float | None
    """The bound that is suggested; None if none is safe."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def suggest(honest_max: float, cheat_min: float) -> float | None:
    """The bound in the middle, by ratio; two digits of it. None where there is not room enough."""
    middle = min(max(math.sqrt(honest_max * cheat_min), BOUND_MIN), BOUND_MAX)
    bound = float(f"{middle:.1e}")
    fits = CLEARANCE * honest_max <= bound and CLEARANCE * ACCUSING * bound <= cheat_min
    return bound if fits else None


def calibrate(manifest: Manifest, units: int, tell: Callable[[str], None] = lambda line: None) -> Calibration:
    """Measure with so many work units, each at the state after the one before it was applied. Changes torch's number of
    threads while it runs. Raises MisuseError for what is wrong with the manifest here, WorkFailed if it diverges."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is used: deterministic matrix products
    threads = torch.get_num_threads()
    plain = Engine(manifest, torch.device("cpu"))
    ways = list(ways_of(manifest, plain))
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    saved = bytearray(plain.state.nbytes)
    right, other = torch.empty(plain.elements), torch.empty(plain.elements)
    try:
        for unit in range(units):
            tell(f"work unit {unit + 1} of {units}, in {len(ways) + 1} ways")
            seed = digest("seed calibration", unit.to_bytes(8, "little"))
            torch.set_num_threads(1)
            plain.state.save(memoryview(saved))
            plain.work(seed, right, lambda: False)
            for way in ways:
                if way.engine is not plain:
                    way.engine.load_state(memoryview(saved))
                torch.set_num_threads(1)
                with way.setting():
                    way.engine.work(seed, other, lambda: False)
                found[way.name].append(relative_distance(right, other))
            torch.set_num_threads(1)
            plain.apply(right, ())
    finally:
        torch.set_num_threads(threads)
    measured = [_distances(way, found[way.name]) for way in ways if _tells(way, found[way.name])]
    return _conclude(manifest, units, measured)


def ways_of(manifest: Manifest, plain: Engine) -> Iterator[Way]:
    """All ways that this machine and this work unit have, but the plain one."""
    work = manifest.work
    for count in sorted({2, 3, os.cpu_count() or 1} - {1}):
        yield Way(f"{count} threads", HONEST, plain, lambda count=count: _threads(count))  # type: ignore[misc]
    if torch.backends.mkldnn.is_available():
        yield Way("other kernels (no oneDNN)", HONEST, plain, _other_kernels)
    if work.micro_batch_samples > 1:
        yield Way("every batch in two halves", HONEST, plain, lambda: plain.seen_through(Halves))
    if torch.cuda.is_available():
        on_gpu = Engine(manifest, torch.device("cuda"))
        yield Way("GPU", HONEST, on_gpu, contextlib.nullcontext)
        if work.precision == "float32":
            yield Way("GPU in TF32", COARSER, on_gpu, _tf32)
            yield Way("GPU in bfloat16", COARSER, Engine(_in_bfloat16(manifest), on_gpu.device), contextlib.nullcontext)
    if work.precision == "float32":
        yield Way("bfloat16", COARSER, Engine(_in_bfloat16(manifest), plain.device), contextlib.nullcontext)
    samples, batches = work.micro_batch_samples, work.micro_batches
    unit = f"of {samples * batches} samples"
    skipped = [samples / (samples - 1)] * (samples - 1) + [0.0] if samples > 1 else [0.0]
    yield Way(f"one {unit} left out", CHEAT, plain, lambda: plain.seen_through(_weighed(skipped, batches)))
    if samples > 1:
        doubled = [2.0, *[1.0] * (samples - 2), 0.0]
        yield Way(f"one {unit} replaced", CHEAT, plain, lambda: plain.seen_through(_weighed(doubled, batches)))


class Halves(nn.Module):
    """A model that computes its batch in two halves: the same sums in another order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: torch.Tensor, *others: object) -> torch.Tensor:
        """`batch` (B, …) to the model's output (B, …)."""
        return torch.cat([self.model(half, *others) for half in batch.chunk(2)])


class Weighed(nn.Module):
    """A model whose samples count with these weights (one each) in the gradient of the last micro-batch."""

    def __init__(self, model: nn.Module, weights: list[float], micro_batches: int) -> None:
        super().__init__()
        self.model = model
        self._weights = weights
        self._left = micro_batches

    def forward(self, batch: torch.Tensor, *others: object) -> torch.Tensor:
        """`batch` (B, …) to the model's output (B, …)."""
        out: torch.Tensor = self.model(batch, *others)
        self._left -= 1
        if self._left:
            return out
        weights = torch.tensor(self._weights, dtype=out.dtype).view(-1, *[1] * (out.dim() - 1))
        return out.detach() + weights * (out - out.detach())


def _weighed(weights: list[float], micro_batches: int) -> Callable[[nn.Module], nn.Module]:
    return lambda model: Weighed(model, weights, micro_batches)


def _in_bfloat16(manifest: Manifest) -> Manifest:
    work = msgspec.structs.replace(manifest.work, precision="bfloat16")
    return msgspec.structs.replace(manifest, work=work)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    torch.set_num_threads(count)
    yield


@contextlib.contextmanager
def _other_kernels() -> Iterator[None]:
    """torch's own kernels, as on a CPU of another make."""
    torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(True)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _tells(way: Way, distances: list[float]) -> bool:
    """Whether a way says anything: not a cheat that changed nothing (the task shows no samples), nor a batch in halves
    that was another computation."""
    if way.kind == CHEAT:
        return min(distances) > 0.0
    return way.kind != HONEST or "halves" not in way.name or max(distances) <= BATCH_DISTANCE_MAX


def _distances(way: Way, found: list[float]) -> Distances:
    return Distances(way.name, way.kind, min(found), statistics.median(found), max(found))


def _conclude(manifest: Manifest, units: int, ways: list[Distances]) -> Calibration:
    honest = max((way.largest for way in ways if way.kind == HONEST), default=0.0)
    cheat = min((way.smallest for way in ways if way.kind == CHEAT), default=None)
    if not math.isfinite(honest):
        raise WorkFailed("a gradient was not finite in one way and finite in another: training is about to diverge")
    bound = suggest(honest, cheat) if cheat is not None else None
    return Calibration(manifest.task.name, manifest.work.precision, units, tuple(ways), honest, cheat, bound)
