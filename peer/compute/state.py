"""The certified state as one run of bytes, so that saving it is a copy and its digest is one pass.

Layout, without a header (all little-endian):

    float32 parameters        `elements` values, the model's parameters one after another in their named order
    float32 optimizer vectors  each `elements` values: sgd momentum | adamw first moment, second moment
    uint64  step counter       certified steps applied so far

The model on the device and the certified state are two things: the state is on the CPU and changes in exactly
one place (the outer optimizer); the device has a copy.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

import torch
from torch import nn

from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, digest

STATE_CONTEXT = "state"
"""Digest context of the state's bytes."""

_COUNTER = struct.Struct("<Q")
_FLOAT_BYTES = 4


class State:
    """Parameters, optimizer vectors and step counter over one buffer of `nbytes` bytes."""

    def __init__(self, elements: int, optimizer_vectors: int) -> None:
        if sys.byteorder != "little":
            raise WorldError("this machine is big-endian; states are little-endian")
        vectors_bytes = _FLOAT_BYTES * elements * (1 + optimizer_vectors)
        self.nbytes = vectors_bytes + _COUNTER.size
        self._buffer = torch.zeros(self.nbytes, dtype=torch.uint8)
        self._view = self._buffer.numpy().data
        vectors = self._buffer[:vectors_bytes].view(torch.float32).split(elements)
        self.parameters: torch.Tensor = vectors[0]
        self.optimizer_vectors: Sequence[torch.Tensor] = vectors[1:]

    @property
    def step(self) -> int:
        """Certified steps applied so far."""
        return int(_COUNTER.unpack_from(self._view, self.nbytes - _COUNTER.size)[0])

    @step.setter
    def step(self, value: int) -> None:
        _COUNTER.pack_into(self._view, self.nbytes - _COUNTER.size, value)

    def digest(self) -> Digest:
        """Digest of all bytes."""
        return digest(STATE_CONTEXT, self._view)

    def reset(self, model: nn.Module) -> None:
        """The state before the first step: the model's parameters, zero optimizer vectors, step 0."""
        self._buffer.zero_()
        torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()], out=self.parameters)

    def save(self, target: memoryview) -> None:
        """Copy all bytes into `target`. Raises MisuseError if it has another size."""
        self._check(target)
        target[:] = self._view

    def load(self, source: memoryview) -> None:
        """Replace all bytes by those of `source`. Raises MisuseError if it has another size."""
        self._check(source)
        self._view[:] = source

    def _check(self, view: memoryview) -> None:
        if len(view) != self.nbytes:
            raise MisuseError(f"a state of this run has {self.nbytes} bytes, not {len(view)}")
