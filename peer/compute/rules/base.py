"""What an aggregation rule is, and the door every set of rows goes through before any rule sees it.

The idea: rows come from strangers. One NaN or infinity poisons every robust rule, so rows are checked here,
once for all rules, and those with a non-finite number are left out and reported by index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from crowdsurf.peer.compute.errors import NoUsableRows
from crowdsurf.peer.compute.parameters import Value
from crowdsurf.protocol.errors import MisuseError


@dataclass(frozen=True, slots=True)
class RuleResult:
    """How a rule came to its answer: iterations done (0 for a direct rule) and the norm of what is left over."""

    iterations: int
    residual: float


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A rule's result and the indexes of the rows that were left out for non-finite numbers."""

    excluded_rows: tuple[int, ...]
    iterations: int
    residual: float


class Rule(ABC):
    """A function of rows to one row. It must be deterministic and must not change its input."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """Make the rule from a manifest's parameters. Raises MisuseError that lists all problems."""

    @abstractmethod
    def aggregate(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> RuleResult:
        """Aggregate at least one finite 1-D float32 row of equal length into `out` (same shape and type)."""


def aggregate_rows(rule: Rule, rows: Sequence[torch.Tensor], out: torch.Tensor) -> Aggregation:
    """Leave out rows with non-finite numbers, then apply `rule` to the rest in the order given.

    `rows` are 1-D float32 tensors of equal length, `out` one more. Raises MisuseError for shapes that do not fit
    and NoUsableRows when no row is left.
    """
    for tensor in (*rows, out):
        if tensor.dtype != torch.float32 or tensor.shape != (out.numel(),) or out.numel() == 0:
            raise MisuseError("rows and output must be non-empty 1-D float32 vectors of equal length")
    finite = [is_finite(row) for row in rows]
    usable = [row for row, good in zip(rows, finite, strict=True) if good]
    if not usable:
        raise NoUsableRows(f"none of {len(rows)} rows is finite")
    result = rule.aggregate(usable, out)
    excluded = tuple(index for index, good in enumerate(finite) if not good)
    return Aggregation(excluded, result.iterations, result.residual)


def is_finite(vector: torch.Tensor) -> bool:
    """Whether every element is finite, in one pass and without a temporary (minimum and maximum propagate NaN)."""
    low, high = torch.aminmax(vector)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
