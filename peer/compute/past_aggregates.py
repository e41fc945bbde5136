"""What was aggregated in the last steps, so that it can be said what others should have said about it.

The idea: whoever judges what an aggregator published about a contributor needs the contributor's work, which it can
compute again, and the aggregate itself, which it held when the step was decided and whose memory is used again soon
after. So the worker keeps copies by blob digest, next to the past states; their memory is taken once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.limits import PAST_AGGREGATES

Place = tuple[Digest, int, torch.Tensor]
"""Blob digest of an aggregate, where it begins in the whole gradient, and the aggregate itself, float32 (k,)."""


@dataclass(slots=True)
class _Step:
    whole: torch.Tensor
    """float32 (elements,); parts that nobody was asked about hold anything."""
    parts: dict[int, tuple[Digest, int]] = field(default_factory=dict)
    """By where they begin: blob digests and numbers of elements."""


class PastAggregates:
    """Aggregates of the steps remembered last, on the CPU; the oldest step goes when there are more than `limit`."""

    def __init__(self, elements: int, limit: int = PAST_AGGREGATES) -> None:
        """`elements` is the length of the whole gradient."""
        self._elements = elements
        self._limit = limit
        self._steps: OrderedDict[int, _Step] = OrderedDict()
        self._unused: list[torch.Tensor] = []

    def remember(self, step: int, aggregates: Iterable[Place]) -> None:
        """Copy aggregates of a step. Of one part the newest is kept: another cut may come to be decided on."""
        kept = self._steps.get(step)
        if kept is None:
            kept = self._steps[step] = _Step(self._room())
        for name, start, vector in aggregates:
            kept.whole[start : start + len(vector)] = vector
            kept.parts[start] = name, len(vector)

    def find(self, name: bytes, elements: int) -> torch.Tensor | None:
        """The aggregate of that blob digest, float32 (elements,), not to be changed; None if it is not remembered or
        has another length."""
        for kept in self._steps.values():
            for start, known in kept.parts.items():
                if known == (name, elements):
                    return kept.whole[start : start + elements]
        return None

    def clear(self) -> None:
        """Forget all of them and keep their memory for the next ones."""
        self._unused += [kept.whole for kept in self._steps.values()]
        self._steps.clear()

    def _room(self) -> torch.Tensor:
        """Memory for one more step."""
        if len(self._steps) >= self._limit:
            return self._steps.popitem(last=False)[1].whole
        return self._unused.pop() if self._unused else torch.empty(self._elements)
