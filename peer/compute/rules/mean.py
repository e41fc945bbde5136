"""The mean: the rule for swarms that trust each other, and the yardstick of every other rule.

The idea: float64 sums in row order, block by block, rounded to float32 once. Every operation is a single
correctly rounded one, so the same rows give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.rules.base import Rule, RuleResult

BLOCK_ELEMENTS = 1 << 15
"""The float64 sum of a block stays in the second-level cache (256 KiB)."""


class MeanRule(Rule):
    """Arithmetic mean of the rows."""

    name = "mean"

    @classmethod
    def parse(cls, parameters: Mapping[str, Value]) -> Self:
        """The mean has no parameters."""
        ParameterReader("rule mean", parameters).finish()
        return cls()

    def aggregate(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> RuleResult:
        """See `Rule.aggregate`; residual is zero."""
        total = torch.empty(min(BLOCK_ELEMENTS, out.numel()), dtype=torch.float64)
        for start in range(0, out.numel(), BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, out.numel())
            block = total[: stop - start].copy_(rows[0][start:stop])
            for row in rows[1:]:
                block.add_(row[start:stop])
            out[start:stop].copy_(block.div_(len(rows)))
        return RuleResult(iterations=0, residual=0.0)
