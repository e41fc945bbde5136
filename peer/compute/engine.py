"""Everything the worker can do, without the socket: work units, optimizer steps, evaluation, export.

The idea: a work unit is a pure function of (state, seed). The model's parameters and gradients are views of two
flat vectors on the device, so a gradient leaves the device in one copy and the next state enters in one. CPU and
CUDA take the same path; the device is only a variable. The model's parameters are always a copy of the certified
ones, never those themselves: the model can go back to a past state without the certified state noticing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from crowdsurf.peer.compute.errors import WorkCancelled, WorkFailed
from crowdsurf.peer.compute.optimizer import OPTIMIZERS, Range, live_ranges
from crowdsurf.peer.compute.past_aggregates import PastAggregates
from crowdsurf.peer.compute.past_states import PastStates
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import is_finite
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.peer.compute.state import State
from crowdsurf.peer.compute.task import Task, load_task
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, digest_text
from crowdsurf.protocol.limits import PAST_AGGREGATES
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.tolerance import relative_bound

SEED_BYTES = 32


class Engine:
    """The model of one run on one device, at its initial state."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        """Raises MisuseError: task, task parameters, rule or rule parameters (all problems), data set digest."""
        self.manifest = manifest
        self.device = device
        self.task = parse_manifest(manifest)
        self.dataset_digest = self.task.dataset_digest()
        expected = manifest.task.dataset_digest
        if expected and expected != self.dataset_digest:
            raise MisuseError(
                f"the data of task {manifest.task.name!r} here have digest {digest_text(self.dataset_digest)}, "
                f"the run needs {digest_text(Digest(expected))}"
            )
        model = self.task.build_model(manifest.seed)
        check_model(model)
        self.elements = sum(parameter.numel() for parameter in model.parameters())
        self._optimizer = OPTIMIZERS[manifest.optimizer.name](manifest.optimizer)
        self.state = State(self.elements, self._optimizer.state_vectors)
        self.state.reset(model)
        self._digest = self.state.digest()
        self._past = PastStates()
        self.past_aggregates = PastAggregates(self.elements, PAST_AGGREGATES + (relative_bound(manifest) is not None))
        """What was aggregated in the last steps; forgotten with the past states."""
        self._model = model.to(device)
        self._parameters = self.state.parameters.to(device, copy=True)
        self._gradient = torch.zeros(self.elements, device=device)
        bind_flat(self._model, self._parameters, self._gradient)

    def load_initial(self) -> Digest:
        """Back to the state before the first step; its digest."""
        self.state.reset(self.task.build_model(self.manifest.seed))
        return self._arrive()

    def load_state(self, source: memoryview) -> Digest:
        """Replace the state by raw bytes (layout: `state.py`) and say what their digest is; the caller compares.
        Raises MisuseError for another size."""
        self.state.load(source)
        return self._arrive()

    def work(
        self, seed: bytes, out: torch.Tensor, should_stop: Callable[[], bool], flip_labels: bool = False
    ) -> tuple[float, int]:
        """Compute one work unit: the mean gradient of the manifest's micro-batches at the current state.

        Writes float32 (elements,) into `out` and gives (mean loss, samples). `should_stop` is asked before every
        micro-batch. Raises WorkCancelled, MisuseError for a seed of another length, WorkFailed when the gradient
        is not finite. `flip_labels` makes it a lie: see `Task.loss`.
        """
        if len(seed) != SEED_BYTES:
            raise MisuseError(f"a work unit's seed has {SEED_BYTES} bytes, not {len(seed)}")
        section = self.manifest.work
        self._model.train()
        self._gradient.zero_()
        total = 0.0
        for index in range(section.micro_batches):
            if should_stop():
                raise WorkCancelled("the work unit was cancelled")
            generator = seeded_generator(seed, f"micro-batch {index}")
            with self._precision():
                samples = section.micro_batch_samples
                loss = self.task.loss(self._model, generator, samples, self.device, flip_labels)
            loss.backward()
            total += float(loss.detach())
        if section.micro_batches > 1:
            self._gradient.div_(section.micro_batches)
        out.copy_(self._gradient)
        if not is_finite(out):
            raise WorkFailed("the gradient of this work unit is not finite: training has diverged")
        return total / section.micro_batches, section.micro_batches * section.micro_batch_samples

    def recompute(
        self, state: Digest, seed: bytes, out: torch.Tensor, should_stop: Callable[[], bool]
    ) -> tuple[float, int]:
        """The work unit of `seed` at the present state or a past one: the bits that `work` gave there, and the same
        answer. The certified state is not touched. Raises as `work` does, and StateForgotten (`past_states.py`)."""
        if state == self._digest:
            return self.work(seed, out, should_stop)
        self._parameters.copy_(self._past.parameters(state))
        try:
            return self.work(seed, out, should_stop)
        finally:
            self._parameters.copy_(self.state.parameters)

    @contextlib.contextmanager
    def seen_through(self, wrap: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
        """Compute work units with what `wrap` makes of the model, which must have the same parameters; for
        measurements (`calibration.py`)."""
        plain = self._model
        self._model = wrap(plain)
        try:
            yield
        finally:
            self._model = plain

    def apply(self, gradient: torch.Tensor, void_ranges: Sequence[Range], part_ranges: Sequence[Range] = ()) -> Digest:
        """One step of the outer optimizer on the aggregated gradient, float32 (elements,) on the CPU; the new
        state's digest. Void ranges stay as they are, whatever the gradient holds there; so does every one of
        `part_ranges` that is not finite: its bytes are certified, so all peers leave it out alike. Raises
        WorkFailed (and changes nothing) when an element outside of both is not finite."""
        broken = [(start, stop) for start, stop in part_ranges if not is_finite(gradient[start:stop])]
        void_ranges = [*void_ranges, *broken]
        if not all(is_finite(gradient[start:stop]) for start, stop in live_ranges(self.elements, void_ranges)):
            raise WorkFailed("the aggregated gradient is not finite outside the void ranges")
        self._past.remember(self._digest, self.state.parameters)
        vectors = self.state.optimizer_vectors
        self._optimizer.step(self.state.parameters, vectors, gradient, self.state.step, void_ranges)
        self.state.step += 1
        return self._refresh()

    def evaluate(self) -> dict[str, float]:
        """The task's figures on held-out data at the current state."""
        self._model.eval()
        with torch.no_grad():
            return self.task.evaluate(self._model, self.device)

    def export(self, path: Path) -> None:
        """Write the parameters as safetensors, whole or not at all. Raises WorldError."""
        tensors = {name: value.detach().cpu().clone() for name, value in self._model.named_parameters()}
        metadata = {
            "run": self.manifest.name,
            "task": self.manifest.task.name,
            "task_version": str(self.manifest.task.version),
            "step": str(self.state.step),
            "state_digest": digest_text(self.state.digest()),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            safetensors.torch.save_file(tensors, partial, metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, safetensors.SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise WorldError(f"cannot write {path}: {error}") from error

    def _arrive(self) -> Digest:
        """The state is one that did not come out of the last one; its digest."""
        self._past.clear()
        self.past_aggregates.clear()
        return self._refresh()

    def _refresh(self) -> Digest:
        """Bring the model and the digest up to date with the certified state; the digest."""
        self._parameters.copy_(self.state.parameters)
        self._digest = self.state.digest()
        return self._digest

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast as the manifest says; float32 means no autocast at all."""
        wanted = self.manifest.work.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)


def parse_manifest(manifest: Manifest) -> Task:
    """The manifest's task. Raises one MisuseError for all that is wrong with the task and the rule."""
    problems = []
    task: Task | None = None
    try:
        task = load_task(manifest.task.name, manifest.task.version).parse(manifest.task.parameters)
    except MisuseError as error:
        problems.append(str(error))
    try:
        parse_rule(manifest.rule.name, manifest.rule.parameters)
    except MisuseError as error:
        problems.append(str(error))
    if task is None or problems:
        raise MisuseError("; ".join(problems))
    return task


def check_model(model: nn.Module) -> None:
    """Refuse a model whose state is more than float32 parameters. Raises MisuseError."""
    if any(parameter.dtype != torch.float32 or not parameter.requires_grad for parameter in model.parameters()):
        raise MisuseError("all parameters of a task's model must be trainable float32")
    if any(True for _ in model.buffers()):
        raise MisuseError("a task's model must not have buffers: they would not be part of the certified state")


def bind_flat(model: nn.Module, parameters: torch.Tensor, gradient: torch.Tensor) -> None:
    """Make every parameter of `model`, and its gradient, a view of the two flat vectors, one after another."""
    offset = 0
    for parameter in model.parameters():
        stop = offset + parameter.numel()
        parameter.data = parameters[offset:stop].view(parameter.shape)
        parameter.grad = gradient[offset:stop].view(parameter.shape)
        offset = stop
