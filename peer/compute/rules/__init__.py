"""Aggregation rules, found by the name a manifest gives. A new rule is one file and one line in `RULES`."""

from __future__ import annotations

from collections.abc import Mapping

from crowdsurf.peer.compute.parameters import Value
from crowdsurf.peer.compute.rules.base import Rule
from crowdsurf.peer.compute.rules.centered_clip import CenteredClipRule
from crowdsurf.peer.compute.rules.mean import MeanRule
from crowdsurf.protocol.errors import MisuseError

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (MeanRule, CenteredClipRule)}
"""Every rule a manifest can name."""


def parse_rule(name: str, parameters: Mapping[str, Value]) -> Rule:
    """The rule a manifest asks for. Raises MisuseError for an unknown name or bad parameters (all listed)."""
    if name not in RULES:
        raise MisuseError(f"rule {name!r} is unknown; known are {', '.join(sorted(RULES))}")
    return RULES[name].parse(parameters)
