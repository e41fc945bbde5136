"""Text: a small GPT that learns the bytes of any text file or folder.

Without a path it learns the language reference shipped inside CPython (`pydoc_data.topics`), so that it needs
no download. That text differs between Python versions; the data set digest in the manifest catches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.peer.compute.task import Task
from crowdsurf.peer.compute.tasks.gpt import Gpt, GptShape
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, digest

BYTE_VALUES = 256
VALIDATION_FRACTION = 0.1
EVALUATION_WINDOWS_MAX = 64
"""Windows of the validation text the loss is taken on, evenly spread and always the same."""
EVALUATION_TOKENS_PER_BATCH = 16 * 1024
"""Bounds the memory of an evaluation."""
DOCUMENT_END = b"\n\n"


@dataclass(frozen=True)
class TextTask(Task):
    """Predict the next byte; the first nine tenths of the text are for training, the rest for validation."""

    name = "text"
    version = 1
    has_accuracy = False

    shape: GptShape
    path: str

    @classmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Parameters: layers, heads, width, context (bytes), dropout, tied, vocabulary (bytes), path (file or
        folder; empty: the language reference inside CPython)."""
        reader = ParameterReader("task text", parameters)
        reader.choice("vocabulary", "bytes", ("bytes",))
        shape = GptShape(
            vocabulary=BYTE_VALUES,
            layers=reader.integer("layers", 2, 1, 128),
            heads=reader.integer("heads", 4, 1, 256),
            width=reader.integer("width", 128, 1, 16384),
            context=reader.integer("context", 64, 2, 65536),
            dropout=reader.number("dropout", 0.0, 0.0, 0.9),
            tied=reader.flag("tied", True),
        )
        path = reader.text("path", "")
        if shape.width % shape.heads:
            reader.problems.append(f"width {shape.width} must be a multiple of heads {shape.heads}")
        if path and not Path(path).exists():
            reader.problems.append(f"path {path!r} does not exist")
        reader.finish()
        return cls(shape, path)

    def describe(self) -> str:
        """See `Task.describe`."""
        shape = self.shape
        source = self.path or "CPython's language reference"
        model = f"GPT of {shape.layers} layers, width {shape.width}, context {shape.context}"
        return f"{model}, on {len(self._text)} bytes of {source}"

    def dataset_digest(self) -> Digest:
        """See `Task.dataset_digest`; the split is a fixed function of the text."""
        return digest("dataset", self._text.numpy().data)

    @cached_property
    def _text(self) -> torch.Tensor:
        """The whole text, uint8 (n,)."""
        text = read_text(self.path)
        if len(text) * VALIDATION_FRACTION < self.shape.context + 1:
            needed = round((self.shape.context + 1) / VALIDATION_FRACTION)
            raise MisuseError(f"the text has {len(text)} bytes; context {self.shape.context} needs {needed} or more")
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    @property
    def _training_bytes(self) -> int:
        return len(self._text) - int(len(self._text) * VALIDATION_FRACTION)

    def build_model(self, seed: int) -> nn.Module:
        """See `Task.build_model`."""
        model = Gpt(self.shape)
        model.initialise(seeded_generator(seed.to_bytes(8, "little"), "initial parameters"))
        return model

    def loss(
        self,
        model: nn.Module,
        generator: torch.Generator,
        samples: int,
        device: torch.device,
        flip_labels: bool = False,
    ) -> torch.Tensor:
        """See `Task.loss`: cross-entropy in nats per byte of `samples` windows drawn with replacement. A flipped
        byte b is b + 1 modulo 256."""
        starts = torch.randint(self._training_bytes - self.shape.context, (samples,), generator=generator)
        return self._window_loss(model, starts, device, generator, flip_labels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """See `Task.evaluate`: windows spread evenly over the validation text."""
        first, last = self._training_bytes, len(self._text) - self.shape.context - 1
        count = min(EVALUATION_WINDOWS_MAX, last - first + 1)
        starts = torch.tensor([first + (last - first) * index // max(count - 1, 1) for index in range(count)])
        total = 0.0
        for batch in starts.split(max(1, EVALUATION_TOKENS_PER_BATCH // self.shape.context)):
            total += float(self._window_loss(model, batch, device, None)) * len(batch)
        return {"test_loss": total / count}

    def _window_loss(
        self,
        model: nn.Module,
        starts: torch.Tensor,
        device: torch.device,
        generator: torch.Generator | None,
        flip_labels: bool = False,
    ) -> torch.Tensor:
        """Mean loss of the windows that begin at `starts`, int64 (n,)."""
        offsets = starts[:, None] + torch.arange(self.shape.context + 1)
        window_BT = self._text[offsets].to(device=device, dtype=torch.int64)
        logits_BTV = model(window_BT[:, :-1], generator)
        labels = window_BT[:, 1:].flatten()
        if flip_labels:
            labels = (labels + 1) % BYTE_VALUES
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels)


def read_text(path: str) -> bytes:
    """Bytes of a file, of all files of a folder (in order of their relative paths, hidden ones left out), or of
    the language reference inside CPython for an empty path. Raises MisuseError when it cannot be read."""
    if not path:
        from pydoc_data.topics import topics

        return DOCUMENT_END.join(topics[name].encode("utf-8") for name in sorted(topics))
    root = Path(path)
    try:
        if root.is_file():
            return root.read_bytes()
        relative = (file.relative_to(root) for file in root.rglob("*") if file.is_file())
        names = sorted(name.as_posix() for name in relative if not any(part.startswith(".") for part in name.parts))
        return DOCUMENT_END.join((root / name).read_bytes() for name in names)
    except OSError as error:
        raise MisuseError(f"cannot read the text at {path!r}: {error.strerror}") from error
