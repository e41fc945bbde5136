"""Work units are pure, the state round-trips, and what does not fit a run is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from crowdsurf.peer.compute.engine import Engine, check_model
from crowdsurf.peer.compute.errors import WorkCancelled, WorkFailed
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, RuleSection, TaskSection, WorkSection

MakeManifest = Callable[..., Manifest]
CPU = torch.device("cpu")
SEED = bytes(range(32))
TEXT = TaskSection(name="text", parameters={"layers": 1, "width": 16, "context": 8, "dropout": 0.2})


def work(engine: Engine, seed: bytes = SEED) -> torch.Tensor:
    out = torch.empty(engine.elements)
    engine.work(seed, out, lambda: False)
    return out


def move_to(engine: Engine, parameters: torch.Tensor) -> None:
    """Load the initial state with other parameters."""
    engine.load_initial()
    engine.state.parameters.copy_(parameters)
    saved = bytearray(engine.state.nbytes)
    engine.state.save(memoryview(saved))
    engine.load_state(memoryview(saved))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", [TaskSection(name="digits"), TEXT], ids=["digits", "text"])
def test_a_work_unit_is_a_function_of_state_and_seed(
    make_manifest: MakeManifest, task: TaskSection, precision: str
) -> None:
    section = WorkSection(micro_batches=2, micro_batch_samples=3, precision=precision)
    first, second = (Engine(make_manifest(task=task, work=section), CPU) for _ in range(2))
    gradient = work(first)
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(work(second), gradient)
    assert torch.equal(work(first), gradient)
    assert not torch.equal(work(first, bytes(32)), gradient)
    first.apply(gradient, ())
    assert not torch.equal(work(first), gradient)


def test_the_gradient_is_the_derivative_of_the_loss(make_manifest: MakeManifest) -> None:
    """A step along the gradient changes the mean loss of the same samples by the gradient's norm."""
    engine = Engine(make_manifest(work=WorkSection(micro_batches=2, micro_batch_samples=16)), CPU)
    out = torch.empty(engine.elements)
    assert engine.work(SEED, out, lambda: False)[1] == 32
    direction, initial = out / out.norm(), engine.state.parameters.clone()
    losses = []
    for sign in (-1.0, 1.0):
        move_to(engine, initial + direction * sign * 1e-3)
        losses.append(engine.work(SEED, torch.empty(engine.elements), lambda: False)[0])
    assert (losses[1] - losses[0]) / 2e-3 == pytest.approx(float(out.norm()), rel=0.02)


def test_a_cancelled_work_unit_stops_between_micro_batches(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(work=WorkSection(micro_batches=1000, micro_batch_samples=1)), CPU)
    answers = iter([False, False, True])
    with pytest.raises(WorkCancelled):
        engine.work(SEED, torch.empty(engine.elements), lambda: next(answers))
    assert next(answers, None) is None


def test_the_initial_state_depends_on_the_seed_only(make_manifest: MakeManifest) -> None:
    first = Engine(make_manifest(seed=1), CPU)
    initial = first.state.digest()
    first.apply(work(first), ())
    assert first.state.digest() != initial
    assert first.load_initial() == initial
    assert Engine(make_manifest(seed=1), CPU).state.digest() == initial
    assert Engine(make_manifest(seed=2), CPU).state.digest() != initial


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_saved_and_loaded_goes_on_with_the_same_bytes(make_manifest: MakeManifest, name: str) -> None:
    manifest = make_manifest(optimizer=OptimizerSection(name=name, learning_rate=0.1))
    first, second = Engine(manifest, CPU), Engine(manifest, CPU)
    first.apply(work(first), ())
    saved = bytearray(first.state.nbytes)
    first.state.save(memoryview(saved))
    assert second.load_state(memoryview(saved)) == first.state.digest()
    assert second.state.step == 1
    assert second.apply(work(second), ()) == first.apply(work(first), ())
    with pytest.raises(MisuseError, match="bytes"):
        second.load_state(memoryview(saved)[:-1])


def test_a_void_step_changes_only_the_counter(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), CPU)
    before = engine.state.parameters.clone()
    engine.apply(torch.full((engine.elements,), float("nan")), [(0, engine.elements)])
    assert torch.equal(engine.state.parameters, before)
    assert engine.state.step == 1


def test_a_non_finite_aggregate_changes_nothing(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), CPU)
    before = engine.state.digest()
    gradient = torch.zeros(engine.elements)
    gradient[5] = float("inf")
    with pytest.raises(WorkFailed):
        engine.apply(gradient, [(0, 5)])
    assert engine.state.digest() == before
    engine.apply(gradient, [(5, 6)])


def test_a_diverged_model_does_not_hand_out_a_gradient(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), CPU)
    move_to(engine, torch.full((engine.elements,), float("nan")))
    with pytest.raises(WorkFailed, match="not finite"):
        work(engine)


def test_everything_wrong_with_a_manifest_is_reported_at_once(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(
        task=TaskSection(name="digits", parameters={"model": "x", "hidden": -1}),
        rule=RuleSection(name="centered_clip", parameters={"tau": 0.0}),
    )
    with pytest.raises(MisuseError, match=r"model must .*hidden must .*tau must"):
        Engine(manifest, CPU)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (TaskSection(name="chess"), "task 'chess' is not installed; installed are: digits, quadratic, text"),
        (TaskSection(name="digits", version=9), "needs version 9 of task 'digits', installed is version 1"),
        (TaskSection(name="digits", dataset_digest=bytes(32)), "the data of task 'digits' here have digest b3:"),
    ],
)
def test_a_task_that_is_not_the_runs_is_one_sentence(
    make_manifest: MakeManifest, task: TaskSection, sentence: str
) -> None:
    with pytest.raises(MisuseError, match=sentence):
        Engine(make_manifest(task=task), CPU)


def test_models_with_hidden_state_are_refused() -> None:
    with pytest.raises(MisuseError, match="buffers"):
        check_model(nn.BatchNorm1d(3))
    with pytest.raises(MisuseError, match="float32"):
        check_model(nn.Linear(2, 2).double())


def test_export_is_readable_and_whole_or_not_at_all(make_manifest: MakeManifest, tmp_path: Path) -> None:
    engine = Engine(make_manifest(), CPU)
    engine.export(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["task"] == "digits"
        found = torch.cat([file.get_tensor(name).flatten() for name in ("1.weight", "1.bias")])
    assert torch.equal(found, engine.state.parameters[: len(found)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(WorldError, match="cannot write"):
        engine.export(tmp_path / "missing" / "model.safetensors")


def test_a_part_that_is_not_finite_counts_as_void(make_manifest: MakeManifest) -> None:
    engine, other = Engine(make_manifest(), CPU), Engine(make_manifest(), CPU)
    gradient = torch.ones(engine.elements)
    gradient[7] = float("nan")
    half = engine.elements // 2
    parts = [(0, half), (half, engine.elements)]
    expected = other.apply(torch.ones(engine.elements), [(0, half)])
    assert engine.apply(gradient, (), parts) == expected
