"""Gradient attacks by name: wrong vectors as the literature defines them. Importing the files enters them."""

from __future__ import annotations

from crowdsurf.peer.compute.attacks import alone, colluding
from crowdsurf.peer.compute.attacks.base import ATTACKS, GradientAttack
from crowdsurf.protocol.errors import MisuseError

__all__ = ["ATTACKS", "DEFAULT_STRENGTH", "GradientAttack", "alone", "colluding", "find_attack"]

DEFAULT_STRENGTH = {name: attack.default_strength for name, attack in ATTACKS.items()}
"""The strength at which the literature plays each attack; its meaning is in the attack's docstring."""


def find_attack(name: str) -> GradientAttack:
    """The attack of that name. Raises MisuseError when there is none."""
    if name not in ATTACKS:
        raise MisuseError(f"gradient attack {name!r} is unknown; known are {', '.join(ATTACKS)}")
    return ATTACKS[name]
