"""The two tasks: their data, their determinism, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.peer.compute.task import Task
from crowdsurf.peer.compute.tasks.digits import DigitsTask, read_images, shifted, split_by_class
from crowdsurf.peer.compute.tasks.gpt import Gpt, dropout
from crowdsurf.peer.compute.tasks.text import TextTask, read_text
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, TaskSection, WorkSection

CPU = torch.device("cpu")


def train(manifest: Manifest, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures before and after `steps` steps of one contributor."""
    engine = Engine(manifest, CPU)
    gradient = torch.empty(engine.elements)
    before = engine.evaluate()
    for step in range(steps):
        engine.work(step.to_bytes(32, "little"), gradient, lambda: False)
        engine.apply(gradient, ())
    return before, engine.evaluate()


def test_the_digits_are_split_by_class_and_nothing_is_in_both_parts() -> None:
    images = read_images()
    train_part, test_part = split_by_class(images)
    assert len(train_part.labels) + len(test_part.labels) == len(images.labels) == 1797
    for label in range(10):
        share = int((test_part.labels == label).sum()) / int((images.labels == label).sum())
        assert share == pytest.approx(0.2, abs=0.01)
    everything = torch.cat([train_part.pixels, test_part.pixels]).sum(dtype=torch.float64)
    assert everything == images.pixels.sum(dtype=torch.float64)
    assert float(images.pixels.max()) == 1.0


def test_shifted_images_move_by_one_pixel() -> None:
    pixels = torch.zeros(200, 1, 8, 8)
    pixels[:, 0, 4, 4] = 1.0
    moved = shifted(pixels, 0.5, seeded_generator(bytes(32), "test"))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(4, 4), (3, 4), (5, 4), (4, 3), (4, 5)}
    assert moved.sum() == 200.0
    assert torch.equal(shifted(pixels, 0.0, seeded_generator(bytes(32), "test")), pixels)


class Ramp(nn.Module):
    """Answers 0, 1, 2, … for the classes, whatever it sees: its loss on class y is a constant minus y."""

    def __init__(self, classes: int, input_axes: int) -> None:
        super().__init__()
        self.answer = torch.arange(classes).float()
        self.input_axes = input_axes

    def forward(self, inputs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.answer.expand(*inputs.shape[: self.input_axes], -1)


def ramp_losses(task: Task, model: Ramp) -> tuple[float, float, float]:
    """The constant, the loss on right labels and the loss on flipped ones."""
    losses = [
        float(task.loss(model, seeded_generator(bytes(32), "test"), 50, CPU, flip_labels))
        for flip_labels in (False, True)
    ]
    return float(model.answer.logsumexp(dim=0)), losses[0], losses[1]


def test_a_flipped_digit_is_nine_minus_the_right_one() -> None:
    constant, right, flipped = ramp_losses(DigitsTask.parse({}), Ramp(10, input_axes=1))
    assert constant - flipped == pytest.approx(9.0 - (constant - right), rel=1e-5)
    assert flipped != right


def test_a_flipped_byte_is_the_next_one() -> None:
    constant, right, flipped = ramp_losses(TextTask.parse({}), Ramp(256, input_axes=2))
    assert constant - flipped == pytest.approx(constant - right + 1.0, rel=1e-5)


def test_digits_learn(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(
        task=TaskSection(name="digits"),
        work=WorkSection(micro_batch_samples=256),
        optimizer=OptimizerSection(name="adamw", learning_rate=0.01, warmup_steps=3),
    )
    before, after = train(manifest, steps=30)
    assert before["test_accuracy"] < 0.3
    assert after["test_accuracy"] > 0.9
    assert after["test_loss"] < before["test_loss"] / 3


def test_text_learns(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(
        task=TaskSection(name="text", parameters={"width": 64}),
        work=WorkSection(micro_batch_samples=16),
        optimizer=OptimizerSection(name="adamw", learning_rate=0.005, warmup_steps=3),
    )
    before, after = train(manifest, steps=15)
    assert set(after) == {"test_loss"}
    assert before["test_loss"] == pytest.approx(5.5, abs=0.3)  # ln 256 = 5.55: it knows nothing yet
    assert after["test_loss"] < before["test_loss"] - 1.0


@pytest.mark.parametrize("parameters", [{"model": "conv"}, {"model": "mlp", "hidden": 20}])
def test_initial_digits_models_are_the_same_bytes_again(parameters: dict[str, str | int]) -> None:
    task = DigitsTask.parse(parameters)
    first, second, other = (task.build_model(seed) for seed in (7, 7, 8))
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two, _ in pairs)
    assert not all(torch.equal(one, three) for one, _, three in pairs)


def test_the_datasets_have_digests_that_follow_the_data(tmp_path: Path) -> None:
    assert DigitsTask.parse({}).dataset_digest() == DigitsTask.parse({"hidden": 3}).dataset_digest()
    (tmp_path / "a.txt").write_bytes(b"x" * 2000)
    first = TextTask.parse({"path": str(tmp_path)}).dataset_digest()
    (tmp_path / "a.txt").write_bytes(b"y" * 2000)
    assert TextTask.parse({"path": str(tmp_path)}).dataset_digest() != first


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_bytes(b"first")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"never")
    assert read_text(str(tmp_path)) == b"first\n\nsecond"
    assert read_text(str(tmp_path / "b.txt")) == b"second"
    assert len(read_text("")) > 100_000


def test_a_text_that_is_too_short_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(b"too short")
    task = TextTask.parse({"path": str(tmp_path / "short.txt"), "context": 64})
    with pytest.raises(MisuseError, match="the text has 9 bytes; context 64 needs 650 or more"):
        task.dataset_digest()


def test_gpt_2_small_has_its_size() -> None:
    task = TextTask.parse({"layers": 12, "heads": 12, "width": 768, "context": 1024})
    with torch.device("meta"):
        model = Gpt(task.shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_039_040


def test_gpt_is_causal_and_drops_only_with_a_generator() -> None:
    task = TextTask.parse({"width": 16, "layers": 2, "context": 8, "dropout": 0.5, "tied": False})
    model = task.build_model(0)
    tokens = torch.arange(8).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 5] = 200
    plain, other = model(tokens), model(changed)
    assert torch.equal(plain[0, :5], other[0, :5])
    assert not torch.equal(plain[0, 5], other[0, 5])
    masks = [model(tokens, seeded_generator(bytes([index]), "dropout")) for index in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    kept = dropout(torch.ones(10_000), 0.25, seeded_generator(bytes(32), "dropout"))
    assert sorted(set(kept.tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
