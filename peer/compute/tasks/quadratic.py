"""A noisy quadratic: the task for which harm and convergence can be calculated.

    f(x) = 1/2 sum_i a_i (x_i - t_i)^2

The curvatures a_i fall from 1 to 1/condition in equal ratios, the optimum t and the first x are uniform in [-1, 1)
per coordinate. A sample adds n.(x - t) to the loss, with noise n of independent coordinates of mean 0 and standard
deviation `noise`. So the gradient of B samples is a (x - t) plus noise of standard deviation noise / sqrt(B) per
coordinate, whatever x is, and the mean loss is f(x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import nn

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.seeds import centered_uniform, seeded_generator
from crowdsurf.peer.compute.task import Task
from crowdsurf.protocol.ids import Digest, digest


class Point(nn.Module):
    """The place x, float32 (d,), as a model: all there is to train."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.place = nn.Parameter(start)


@dataclass(frozen=True)
class QuadraticTask(Task):
    """Find the minimum of a quadratic whose gradients are noisy. Loss 0 is the optimum."""

    name = "quadratic"
    version = 1
    has_accuracy = False

    dimension: int
    condition: float
    noise: float
    optimum_seed: int

    @classmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Parameters: dimension (d), condition (largest curvature over smallest), noise (standard deviation per
        sample and coordinate), optimum_seed (where the optimum is)."""
        reader = ParameterReader("task quadratic", parameters)
        task = cls(
            dimension=reader.integer("dimension", 256, 1, 1 << 24),
            condition=reader.number("condition", 10.0, 1.0, 1e6),
            noise=reader.number("noise", 1.0, 0.0, 1e6),
            optimum_seed=reader.integer("optimum_seed", 0, 0, 2**62),
        )
        reader.finish()
        return task

    @cached_property
    def curvatures(self) -> torch.Tensor:
        """a, float32 (d,)."""
        steps = max(self.dimension - 1, 1)
        return torch.tensor([self.condition ** (-index / steps) for index in range(self.dimension)])

    @cached_property
    def optimum(self) -> torch.Tensor:
        """t, float32 (d,)."""
        generator = seeded_generator(self.optimum_seed.to_bytes(8, "little"), "optimum")
        return centered_uniform((self.dimension,), 1.0, generator)

    def value(self, place: torch.Tensor) -> float:
        """f(x) in float64."""
        offset = place.detach().cpu().double() - self.optimum
        return 0.5 * float(self.curvatures.double() @ offset.square())

    def expected_gradient(self, place: torch.Tensor) -> torch.Tensor:
        """a (x - t), float64 (d,): what a work unit gives without noise."""
        return self.curvatures.double() * (place.detach().cpu().double() - self.optimum)

    def describe(self) -> str:
        """See `Task.describe`."""
        return f"quadratic in {self.dimension} dimensions, condition {self.condition:g}, noise {self.noise:g}"

    def dataset_digest(self) -> Digest:
        """See `Task.dataset_digest`: curvatures and optimum."""
        return digest("dataset", torch.cat([self.curvatures, self.optimum]).numpy().tobytes())

    def build_model(self, seed: int) -> nn.Module:
        """See `Task.build_model`."""
        generator = seeded_generator(seed.to_bytes(8, "little"), "initial parameters")
        return Point(centered_uniform((self.dimension,), 1.0, generator))

    def loss(
        self,
        model: nn.Module,
        generator: torch.Generator,
        samples: int,
        device: torch.device,
        flip_labels: bool = False,
    ) -> torch.Tensor:
        """See `Task.loss`. Flipped labels pull to -t instead of t. The noise is uniform, because normal numbers
        differ between machines in their last bits."""
        (place,) = model.parameters()
        bound = self.noise * math.sqrt(3.0)  # a uniform number in [-b, b) has standard deviation b / sqrt(3)
        noise = centered_uniform((samples, self.dimension), bound, generator).mean(dim=0)
        target = -self.optimum if flip_labels else self.optimum
        offset = place - target.to(device)
        half_slope = self.curvatures.to(device) * offset * 0.5
        return ((half_slope + noise.to(device)) * offset).sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """See `Task.evaluate`: f without noise."""
        (place,) = model.parameters()
        return {"test_loss": self.value(place)}
