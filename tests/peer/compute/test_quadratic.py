"""The quadratic is what it says: value, gradient, noise and optimum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.peer.compute.tasks.quadratic import QuadraticTask
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, TaskSection, WorkSection

CPU = torch.device("cpu")
MakeManifest = Callable[..., Manifest]


def make_engine(make_manifest: MakeManifest, noise: float, samples: int = 4, rate: float = 0.5) -> Engine:
    return Engine(
        make_manifest(
            task=TaskSection(name="quadratic", parameters={"dimension": 200, "condition": 10.0, "noise": noise}),
            work=WorkSection(micro_batch_samples=samples),
            optimizer=OptimizerSection(name="sgd", learning_rate=rate, momentum=0.0),
        ),
        CPU,
    )


def task_of(engine: Engine) -> QuadraticTask:
    assert isinstance(engine.task, QuadraticTask)
    return engine.task


def work(engine: Engine, seed: int = 0, flip_labels: bool = False) -> tuple[torch.Tensor, float]:
    gradient = torch.empty(engine.elements)
    loss, _ = engine.work(seed.to_bytes(32, "little"), gradient, lambda: False, flip_labels)
    return gradient, loss


def test_curvatures_span_the_condition_in_equal_ratios() -> None:
    curvatures = QuadraticTask.parse({"dimension": 5, "condition": 16.0}).curvatures
    assert curvatures.tolist() == pytest.approx([1.0, 0.5, 0.25, 0.125, 0.0625])
    assert QuadraticTask.parse({"dimension": 1, "condition": 16.0}).curvatures.tolist() == [1.0]


def test_without_noise_loss_and_gradient_are_exact(make_manifest: MakeManifest) -> None:
    engine = make_engine(make_manifest, noise=0.0)
    task, place = task_of(engine), engine.state.parameters
    gradient, loss = work(engine)
    assert torch.allclose(gradient.double(), task.expected_gradient(place), rtol=1e-6, atol=1e-7)
    assert loss == pytest.approx(task.value(place), rel=1e-5)
    assert engine.evaluate() == {"test_loss": task.value(place)}
    by_hand = sum(
        0.5 * a * (x - t) ** 2
        for a, x, t in zip(task.curvatures.tolist(), place.tolist(), task.optimum.tolist(), strict=True)
    )
    assert task.value(place) == pytest.approx(by_hand, rel=1e-9)
    assert task.value(task.optimum) == 0.0


def test_flipped_labels_pull_to_the_mirrored_optimum(make_manifest: MakeManifest) -> None:
    engine = make_engine(make_manifest, noise=0.0)
    task = task_of(engine)
    expected = task.curvatures.double() * (engine.state.parameters.double() + task.optimum)
    assert torch.allclose(work(engine, flip_labels=True)[0].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_noise_has_its_deviation_and_no_bias(make_manifest: MakeManifest) -> None:
    engine = make_engine(make_manifest, noise=2.0, samples=4)
    expected = task_of(engine).expected_gradient(engine.state.parameters)
    noise = torch.stack([work(engine, seed)[0].double() - expected for seed in range(200)])
    assert float(noise.std()) == pytest.approx(2.0 / 2.0, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=5.0 / 40_000**0.5)
    assert not torch.equal(noise[0], noise[1])


def test_descent_contracts_by_the_exact_factor(make_manifest: MakeManifest) -> None:
    """x - t shrinks by 1 - rate a_i per step and coordinate."""
    engine = make_engine(make_manifest, noise=0.0, rate=0.5)
    task = task_of(engine)
    expected = engine.state.parameters.double() - task.optimum
    for _ in range(20):
        engine.apply(work(engine)[0], ())
        expected *= 1.0 - 0.5 * task.curvatures.double()
    assert torch.allclose(engine.state.parameters.double() - task.optimum, expected, atol=1e-6)


def test_the_data_digest_follows_optimum_and_curvatures() -> None:
    digests = [
        QuadraticTask.parse(parameters).dataset_digest()
        for parameters in ({}, {"optimum_seed": 1}, {"condition": 2.0}, {"dimension": 3})
    ]
    assert len(set(digests)) == 4
    assert QuadraticTask.parse({"noise": 3.0}).dataset_digest() == digests[0]
    start, again, other = (QuadraticTask.parse({}).build_model(seed) for seed in (1, 1, 2))
    places = [next(iter(model.parameters())) for model in (start, again, other)]
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])


def test_the_loss_draws_only_from_its_generator() -> None:
    task = QuadraticTask.parse({"dimension": 8})
    model = task.build_model(0)
    torch.manual_seed(1)
    first = task.loss(model, seeded_generator(bytes(32), "x"), 3, CPU)
    torch.manual_seed(2)
    assert torch.equal(task.loss(model, seeded_generator(bytes(32), "x"), 3, CPU), first)


def test_bad_parameters_are_all_named() -> None:
    with pytest.raises(MisuseError, match=r"dimension must .*condition must .*noise must .*conditon is unknown"):
        QuadraticTask.parse({"dimension": 0, "condition": 0.5, "noise": -1.0, "conditon": 2})
