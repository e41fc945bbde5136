"""What is trained: the interface of a task, and how an installed task is found.

The idea: a swarm never ships code. A manifest names a task by its entry point in the group `crowdsurf.tasks`,
with a version and parameters; every peer runs the one it has installed. A task gives a model, a loss that is a
pure function of (model, generator), and an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import ClassVar, Self

import torch
from torch import nn

from crowdsurf.peer.compute.parameters import Value
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest

ENTRY_POINT_GROUP = "crowdsurf.tasks"


class Task(ABC):
    """A model, its data and its loss.

    The model's parameters are the whole state: it has no buffers that training changes (so no batch
    normalisation), and all its parameters are float32.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the same manifest would train differently."""
    has_accuracy: ClassVar[bool]
    """Whether `evaluate` gives `test_accuracy` besides `test_loss`."""

    @classmethod
    @abstractmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Make the task from a manifest's parameters. Raises MisuseError that lists all problems."""

    @abstractmethod
    def dataset_digest(self) -> Digest:
        """Digest of the prepared data, split included; peers with another one compute other gradients."""

    @abstractmethod
    def build_model(self, seed: int) -> nn.Module:
        """The model on the CPU with its initial parameters: the same bytes on every machine."""

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        generator: torch.Generator,
        samples: int,
        device: torch.device,
        flip_labels: bool = False,
    ) -> torch.Tensor:
        """Mean loss (scalar) of `samples` samples. All chance (which samples, augmentation, dropout) comes from
        `generator`, a CPU generator. `flip_labels` is for attackers in a simulation: the same samples with wrong
        labels, by a rule of the task."""

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """`test_loss` and, with `has_accuracy`, `test_accuracy` (0 to 1) on held-out data; deterministic."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: model and data."""


def load_task(name: str, version: int) -> type[Task]:
    """The installed task of that name. Raises MisuseError when there is none or its version is another."""
    found = entry_points(group=ENTRY_POINT_GROUP)
    matching = [point for point in found if point.name == name]
    if not matching:
        known = ", ".join(sorted(point.name for point in found)) or "none"
        raise MisuseError(f"task {name!r} is not installed; installed are: {known}")
    task = matching[0].load()
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise MisuseError(f"the entry point of task {name!r} is not a Task class")
    if task.version != version:
        raise MisuseError(f"the run needs version {version} of task {name!r}, installed is version {task.version}")
    return task
