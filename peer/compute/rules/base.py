"""What an aggregation rule is, and the door every set of rows goes through before any rule sees it.

The idea: rows come from strangers. One NaN or infinity poisons every robust rule, so rows are checked here,
once for all rules; a row of zeros stands for each that has a non-finite number, which is reported by index.

A rule is a class with a name, a bound on how many Byzantine rows it can bear, and one of three bodies:
`WeightRule.weights` for rules that weigh rows by their distances, `CoordinateRule.reduce` for rules that look at each
coordinate alone, or `Rule.combine` for anything else. Whatever it is, it sees its rows through a `RowSet`, so every
pre-step (`PreStep`) works in front of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy
import torch

from crowdsurf.peer.compute.errors import NoUsableRows
from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.rules.gram import Array
from crowdsurf.peer.compute.rules.rows import Row, RowSet
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.projection import BLOCK_ELEMENTS as NORM_BLOCK_ELEMENTS

BLOCK_ELEMENTS = 1 << 13
"""Coordinates a coordinate rule works on at a time: 16 rows of a block are 512 KiB, second-level cache."""

NO_SEED = bytes(32)
"""For callers whose rule draws nothing."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """How a rule came to its answer: iterations done (0 for a direct rule) and the norm of what is left over."""

    iterations: int
    residual: float


DIRECT = RuleResult(iterations=0, residual=0.0)
"""The result of a rule that computes its answer in one go."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A rule's result and the indexes of the rows that count as zeros for non-finite numbers."""

    excluded_rows: tuple[int, ...]
    iterations: int
    residual: float


class Rule(ABC):
    """A function of rows to one row. It must be deterministic and must not change its input."""

    name: ClassVar[str]

    @property
    def reads_gram(self) -> bool:
        """Whether it needs the inner products of its rows; then those also tell whether all rows are finite."""
        return False

    @classmethod
    def parse(cls, reader: ParameterReader) -> Self:
        """Take this rule's parameters from `reader`, which collects what is wrong. This one has none."""
        return cls()

    @abstractmethod
    def byzantine_max(self, count: int) -> int:
        """How many of `count` >= 1 rows may be arbitrary while the result still stays near the others."""

    @abstractmethod
    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """Write the aggregate of finite rows to `out`, float32 (rows.length,).

        `byzantine`, at most `byzantine_max(rows.count)`, is how many of them to defend against. Chance comes from
        `seed` alone."""


class WeightRule(Rule):
    """A rule whose result is a weighted sum of the rows, with weights that follow from their inner products."""

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return True

    @abstractmethod
    def weights(self, gram: Array, byzantine: int) -> Array:
        """Weights float64 (n,), not negative and adding up to one, from inner products float64 (n, n)."""

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`."""
        rows.weighted_sum(self.weights(rows.gram, byzantine), out)
        return DIRECT


class CoordinateRule(Rule):
    """A rule that treats every coordinate alone, whatever the others are."""

    @abstractmethod
    def reduce(self, rows: list[Row], byzantine: int, out: Row) -> None:
        """Write to `out`, float32 (w,), from rows float32 (w,) that must not be changed."""

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`."""
        target = out.numpy()
        for start, stop, block in rows.blocks(BLOCK_ELEMENTS):
            part = target[start:stop]
            self.reduce(block, byzantine, part)
            part += numpy.float32(0.0)  # which of -0.0 and 0.0 a minimum picks depends on the processor; now it is 0.0
        return DIRECT


@dataclass(frozen=True)
class PreStep(Rule):
    """A rule that replaces its rows by weighted means of them and hands those to the rule behind it."""

    inner: Rule

    @property
    def reads_gram(self) -> bool:
        """See `Rule.reads_gram`."""
        return self.inner.reads_gram

    @classmethod
    def parse_before(cls, reader: ParameterReader, inner: Rule) -> Self:
        """As `Rule.parse`, in front of `inner`."""
        return cls(inner)

    @abstractmethod
    def mixing(self, rows: RowSet, byzantine: int, seed: bytes) -> Array:
        """Weights float64 (m, n): new row i is the sum of [i, j] times old row j. Each row adds up to one."""

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`."""
        mixed = rows.mixed(self.mixing(rows, byzantine, seed))
        return self.inner.combine(mixed, min(byzantine, self.inner.byzantine_max(mixed.count)), out, seed)


@dataclass(frozen=True, slots=True)
class ConfiguredRule:
    """A rule, its pre-steps included, and the share of rows it is to defend against."""

    rule: Rule
    byzantine_share: float

    @classmethod
    def parse(cls, name: str, chain: Sequence[type[PreStep]], rule: type[Rule], values: Mapping[str, Value]) -> Self:
        """Make pre-steps (first one first) and rule from a manifest's parameters. Raises MisuseError, all listed."""
        reader = ParameterReader(f"rule {name}", values)
        parsed = rule.parse(reader)
        for step in reversed(chain):
            parsed = step.parse_before(reader, parsed)
        share = reader.number("byzantine_share", 0.25, 0.0, 0.499)
        reader.finish()
        return cls(parsed, share)

    def byzantine_max(self, count: int) -> int:
        """See `Rule.byzantine_max`."""
        return self.rule.byzantine_max(count)

    def byzantine(self, count: int) -> int:
        """How many of `count` rows it defends against: the share, rounded down, but no more than it can bear."""
        wanted = int(self.byzantine_share * count + 1e-9)  # 0.29 * 100 is a little less than 29
        return min(wanted, self.byzantine_max(count))

    def combine(self, rows: RowSet, out: torch.Tensor, seed: bytes = NO_SEED) -> RuleResult:
        """Write the aggregate of finite rows to `out`, float32 (rows.length,)."""
        return self.rule.combine(rows, self.byzantine(rows.count), out, seed)


def aggregate_rows(
    rule: ConfiguredRule, rows: Sequence[torch.Tensor], out: torch.Tensor, seed: bytes = NO_SEED, absent: int = 0
) -> Aggregation:
    """Apply `rule` to these rows, in the order given, without those that have non-finite numbers; and to a row of zeros
    for each of those, and for each that is `absent`, behind them.

    What is missing counts as nothing, and not as if there had never been anything: else whoever decides what is missing
    decides who is in the majority (SPEC R-5.10). `rows` are 1-D float32 tensors of equal length on the CPU, `out` one
    more that overlaps none of them; `seed` is all the chance a rule may use. Raises MisuseError for shapes that do not
    fit and NoUsableRows when no row is left.
    """
    for tensor in (*rows, out):
        if tensor.dtype != torch.float32 or tensor.shape != (out.numel(),) or out.numel() == 0:
            raise MisuseError("rows and output must be non-empty 1-D float32 vectors of equal length")
    usable = RowSet([*rows, *_nothings(absent, out)])
    excluded: tuple[int, ...] = ()
    # A number that is not finite makes its row's product with itself not finite, so a good matrix saves a look.
    if not (rows and rule.rule.reads_gram and numpy.isfinite(usable.gram).all()):
        finite = [is_finite(row) for row in rows]
        if not any(finite):
            raise NoUsableRows(f"none of {len(rows)} rows is finite")
        if not all(finite):
            excluded = tuple(index for index, good in enumerate(finite) if not good)
            good_rows = [row for row, good in zip(rows, finite, strict=True) if good]
            usable = RowSet([*good_rows, *_nothings(absent + len(excluded), out)])
    result = rule.combine(usable, out, seed)
    return Aggregation(excluded, result.iterations, result.residual)


def _nothings(count: int, like: torch.Tensor) -> list[torch.Tensor]:
    """So many rows of zeros, in the memory of one."""
    return [torch.zeros_like(like)] * count if count else []


def is_finite(vector: torch.Tensor) -> bool:
    """Whether every element is finite, in one pass and without a temporary (minimum and maximum propagate NaN)."""
    low, high = torch.aminmax(vector)
    return math.isfinite(low) and math.isfinite(high)


def norm_of(vector: torch.Tensor) -> float:
    """Euclidean length of a float32 vector (k,), added up in float64; NaN if a number is not finite."""
    square = 0.0
    for start in range(0, len(vector), NORM_BLOCK_ELEMENTS):
        block = vector[start : start + NORM_BLOCK_ELEMENTS].double()
        square += float(block @ block)
    return math.sqrt(square) if math.isfinite(square) else math.nan
