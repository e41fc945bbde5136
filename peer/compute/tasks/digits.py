"""Handwritten digits: the task that shows within a minute that a swarm learns.

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn (UCI "optical recognition of
handwritten digits"), split into training and test images of every class. The file is read directly, because
importing scikit-learn takes longer than a demo's first ten steps.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import numpy
import torch
from torch import nn
from torch.nn import functional

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.seeds import centered_uniform, seeded_generator
from crowdsurf.peer.compute.task import Task
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, digest

SIDE_PIXELS = 8
CLASSES = 10
TEST_FRACTION = 0.2
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` float32 (n, 1, 8, 8) in [0, 1]; `labels` int64 (n,)."""

    pixels: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class DigitsTask(Task):
    """Classify digits with an MLP (two hidden layers) or a small convolutional net."""

    name = "digits"
    version = 1
    has_accuracy = True

    model: str
    hidden: int
    shifted: float

    @classmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Parameters: model (mlp, conv), hidden (width of the hidden layers), shifted (fraction of
        the training images moved by one pixel)."""
        reader = ParameterReader("task digits", parameters)
        task = cls(
            model=reader.choice("model", "conv", ("mlp", "conv")),
            hidden=reader.integer("hidden", 64, 1, 65536),
            shifted=reader.number("shifted", 0.2, 0.0, 1.0),
        )
        reader.finish()
        return task

    def describe(self) -> str:
        """See `Task.describe`."""
        train, test = self._split
        counts = f"{len(train.labels)} training and {len(test.labels)} test images"
        return f"handwritten digits, {self.model} of width {self.hidden}, {counts}"

    def dataset_digest(self) -> Digest:
        """See `Task.dataset_digest`."""
        arrays = [tensor.numpy().tobytes() for part in self._split for tensor in (part.pixels, part.labels)]
        return digest("dataset", b"".join(arrays))

    @cached_property
    def _split(self) -> tuple[Images, Images]:
        return split_by_class(read_images())

    def build_model(self, seed: int) -> nn.Module:
        """See `Task.build_model`."""
        model = _convolutional(self.hidden) if self.model == "conv" else _perceptron(self.hidden)
        generator = seeded_generator(seed.to_bytes(8, "little"), "initial parameters")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.zero_()
                else:  # uniform with the variance He et al. (2015) derive for rectifiers
                    inputs = parameter[0].numel()
                    parameter.copy_(centered_uniform(tuple(parameter.shape), math.sqrt(6.0 / inputs), generator))
        return model

    def loss(
        self,
        model: nn.Module,
        generator: torch.Generator,
        samples: int,
        device: torch.device,
        flip_labels: bool = False,
    ) -> torch.Tensor:
        """See `Task.loss`: cross-entropy of images drawn with replacement, some of them shifted. A flipped digit
        y is 9 - y."""
        train, _ = self._split
        chosen = torch.randint(len(train.labels), (samples,), generator=generator)
        pixels = shifted(train.pixels[chosen], self.shifted, generator)
        labels = train.labels[chosen]
        if flip_labels:
            labels = CLASSES - 1 - labels
        return functional.cross_entropy(model(pixels.to(device)), labels.to(device))

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """See `Task.evaluate`: all test images."""
        _, test = self._split
        logits = model(test.pixels.to(device)).float().cpu()
        return {
            "test_loss": float(functional.cross_entropy(logits, test.labels)),
            "test_accuracy": float((logits.argmax(dim=1) == test.labels).double().mean()),
        }


def read_images() -> Images:
    """All images in file order. Raises MisuseError when scikit-learn is not installed."""
    package = find_spec("sklearn")  # locates the package without importing it
    if package is None or package.origin is None:
        raise MisuseError("task digits needs the images that come with scikit-learn; install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = numpy.loadtxt(gzip.decompress(path.read_bytes()).splitlines(), delimiter=",", dtype=numpy.float32)
    except OSError as error:
        raise MisuseError(f"cannot read the digits of scikit-learn at {path}: {error.strerror}") from error
    pixels = torch.from_numpy(table[:, :-1].copy()).div_(16.0).reshape(-1, 1, SIDE_PIXELS, SIDE_PIXELS)
    return Images(pixels, torch.from_numpy(table[:, -1].astype(numpy.int64)))


def split_by_class(images: Images) -> tuple[Images, Images]:
    """Training and test images, one fifth of every class for the test. The order comes from hashes of the
    indexes, so it never changes with a library's version."""
    by_hash = sorted(range(len(images.labels)), key=lambda index: digest("digits split", index.to_bytes(8, "little")))
    labels = images.labels.tolist()
    train: list[int] = []
    test: list[int] = []
    for label in range(CLASSES):
        members = [index for index in by_hash if labels[index] == label]
        cut = round(TEST_FRACTION * len(members))
        test += members[:cut]
        train += members[cut:]
    return (
        Images(images.pixels[train], images.labels[train]),
        Images(images.pixels[test], images.labels[test]),
    )


def shifted(pixels: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """About `fraction` of the images (n, 1, 8, 8) moved by one pixel up, down, left or right, empty pixels coming
    in. More would hurt: one pixel is an eighth of the image, and the test images are all centred."""
    count = len(pixels)
    moved = torch.rand(count, generator=generator) < fraction
    direction = torch.randint(len(_MOVES), (count,), generator=generator)
    down, right = (torch.tensor(_MOVES)[direction] * moved[:, None] + 1).unbind(dim=1)
    windows = functional.pad(pixels[:, 0], (1, 1, 1, 1)).unfold(1, SIDE_PIXELS, 1).unfold(2, SIDE_PIXELS, 1)
    return windows[torch.arange(count), down, right].unsqueeze(1)


def _perceptron(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE_PIXELS * SIDE_PIXELS, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )


def _convolutional(hidden: int) -> nn.Module:
    """Strided convolutions instead of pooling: the backward pass of max pooling is not deterministic on GPUs."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (SIDE_PIXELS // 2) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )
