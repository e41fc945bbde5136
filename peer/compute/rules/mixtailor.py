"""MixTailor: another rule in every step, drawn from a pool (Ramezani-Kebrya, Tabrizian, Faghri, Popovski 2022).

An attack tailored to one rule meets that rule only now and then. The draw comes from public data, as bucketing's
shuffle does, with the same weakness: whoever commits last, or proposes the cut, can compute which rule comes out before
deciding, and with a pool of six needs about six tries to get the one its attack was made for. It is a defence
against attackers who commit before they have seen the others' commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import Rule, RuleResult
from crowdsurf.peer.compute.rules.bulyan import BulyanRule
from crowdsurf.peer.compute.rules.centered_clip import CenteredClipRule
from crowdsurf.peer.compute.rules.geometric_median import GeometricMedianRule
from crowdsurf.peer.compute.rules.krum import KrumRule, MultiKrumRule
from crowdsurf.peer.compute.rules.mda import MinimumDiameterRule
from crowdsurf.peer.compute.rules.meamed import MeaMedRule
from crowdsurf.peer.compute.rules.median import MedianRule
from crowdsurf.peer.compute.rules.rows import RowSet
from crowdsurf.peer.compute.rules.trimmed_mean import TrimmedMeanRule
from crowdsurf.peer.compute.seeds import seeded_generator

_USUAL: tuple[type[Rule], ...] = (KrumRule, MultiKrumRule, MedianRule, TrimmedMeanRule, GeometricMedianRule, MeaMedRule)
_MORE: tuple[type[Rule], ...] = (BulyanRule, MinimumDiameterRule, CenteredClipRule)

POOL = {rule.name: rule for rule in (*_USUAL, *_MORE)}
"""What can be drawn from."""

USUAL_POOL = ",".join(rule.name for rule in _USUAL)
"""What is drawn from if nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class MixTailorRule(Rule):
    """One of several rules, drawn anew for every aggregation."""

    name = "mixtailor"

    pool: tuple[Rule, ...]

    @classmethod
    def parse(cls, reader: ParameterReader) -> Self:
        """Parameter: rules, names with commas between them; and the parameters of those rules."""
        names = [name.strip() for name in reader.text("rules", USUAL_POOL).split(",")]
        unknown = sorted({name for name in names if name not in POOL})
        if unknown or len(set(names)) != len(names):
            reader.problems.append(f"rules must be different names out of {', '.join(POOL)}, with commas between them")
            return cls(())
        return cls(tuple(POOL[name].parse(reader) for name in names))

    def byzantine_max(self, count: int) -> int:
        """As many as the weakest rule of the pool bears."""
        return min(rule.byzantine_max(count) for rule in self.pool)

    def combine(self, rows: RowSet, byzantine: int, out: torch.Tensor, seed: bytes) -> RuleResult:
        """See `Rule.combine`."""
        drawn = int(torch.randint(len(self.pool), (1,), generator=seeded_generator(seed, "mixtailor")))
        return self.pool[drawn].combine(rows, byzantine, out, seed)
