"""Aggregation rules, found by the name a manifest gives. A new rule is one file and one line in `RULES`.

A name is that of a rule, with pre-steps in front that are applied from left to right: `krum`, `nnm+krum`,
`bucketing+nnm+krum`.
"""

from __future__ import annotations

from collections.abc import Mapping

from crowdsurf.peer.compute.parameters import Value
from crowdsurf.peer.compute.rules.base import ConfiguredRule, PreStep, Rule
from crowdsurf.peer.compute.rules.bucketing import Bucketing
from crowdsurf.peer.compute.rules.bulyan import BulyanRule
from crowdsurf.peer.compute.rules.centered_clip import CenteredClipRule
from crowdsurf.peer.compute.rules.geometric_median import GeometricMedianRule
from crowdsurf.peer.compute.rules.krum import KrumRule, MultiKrumRule
from crowdsurf.peer.compute.rules.mda import MinimumDiameterRule
from crowdsurf.peer.compute.rules.meamed import MeaMedRule
from crowdsurf.peer.compute.rules.mean import MeanRule
from crowdsurf.peer.compute.rules.median import MedianRule
from crowdsurf.peer.compute.rules.mixtailor import MixTailorRule
from crowdsurf.peer.compute.rules.nnm import NearestNeighbourMixing
from crowdsurf.peer.compute.rules.sign_majority import SignMajorityRule
from crowdsurf.peer.compute.rules.trimmed_mean import TrimmedMeanRule
from crowdsurf.protocol.errors import MisuseError

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        MeanRule,
        CenteredClipRule,
        KrumRule,
        MultiKrumRule,
        MedianRule,
        TrimmedMeanRule,
        GeometricMedianRule,
        BulyanRule,
        MinimumDiameterRule,
        MeaMedRule,
        SignMajorityRule,
        MixTailorRule,
    )
}
"""Every rule a manifest can name."""

PRE_STEPS: dict[str, type[PreStep]] = {step.name: step for step in (NearestNeighbourMixing, Bucketing)}
"""What can stand in front of a rule, each at most once."""


def parse_rule(name: str, parameters: Mapping[str, Value]) -> ConfiguredRule:
    """The rule a manifest asks for. Raises MisuseError for an unknown name or bad parameters (all listed)."""
    *steps, last = name.split("+")
    if last not in RULES:
        raise MisuseError(f"rule {name!r} is unknown; known are {', '.join(sorted(RULES))}")
    if len(set(steps)) != len(steps) or any(step not in PRE_STEPS for step in steps):
        known = ", ".join(f"{step}+" for step in PRE_STEPS)
        raise MisuseError(f"rule {name!r} is unknown; in front of a rule may stand {known} each once")
    return ConfiguredRule.parse(name, [PRE_STEPS[step] for step in steps], RULES[last], parameters)
