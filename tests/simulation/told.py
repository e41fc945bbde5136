"""What tests tell single checkers, and how they read the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from crowdsurf.protocol import effects
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.sim.checker import Checker
from crowdsurf.protocol.sim.names import name_of

A, B = name_of("a"), name_of("b")
STEPS = 4
"""Of the runs that are told from."""


def texts(checker: Checker) -> list[str]:
    return [violation.text for violation in checker.violations]


def fake_certificate(step: int) -> Any:
    return effects.PersistCertificate(cast(Certificate, SimpleNamespace(header=SimpleNamespace(step=step))))
