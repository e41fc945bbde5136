"""What a gradient attack is: a function from what an attacker sees to the vector that it sends.

The idea: work seeds are public, so an attacker can compute every honest peer's gradient before it chooses its own
vector. It is given all of them. A new attack is one decorated function; its name is the function's, its docstring
holds formula and source. The chance of an attack need not be equal on all machines (nobody recomputes a lie), so
normal numbers are allowed here, other than in honest work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class View:
    """What one attacker sees when it chooses its vector. All gradients are finite float32 of d elements."""

    own: torch.Tensor
    """(d,): the attacker's own work; with the labels flipped for an attack that asks for it."""
    byzantine: int
    """Attackers that send in this step, this one included."""
    strength: float
    generator: torch.Generator
    """All chance of the attack, a CPU generator."""
    load_honest: Callable[[], torch.Tensor]
    load_previous: Callable[[], torch.Tensor | None]

    @cached_property
    def honest(self) -> torch.Tensor:
        """(h, d) float32: the rows that honest members send; made only for attacks that look at them."""
        return self.load_honest()

    @cached_property
    def previous(self) -> torch.Tensor | None:
        """(d,) float32, finite: the aggregate of the last certified step, 0 in void parts; None before the first."""
        return self.load_previous()

    @property
    def members(self) -> int:
        """How many vectors are sent in this step: n = h + f."""
        return len(self.honest) + self.byzantine

    @cached_property
    def mean(self) -> torch.Tensor:
        """(d,) float64: mean of the honest rows."""
        return self.honest.to(torch.float64).mean(dim=0)

    @cached_property
    def deviation(self) -> torch.Tensor:
        """(d,) float64: standard deviation of the honest rows per coordinate (n - 1 in the denominator); zero for
        a single row."""
        if len(self.honest) < 2:
            return torch.zeros_like(self.mean)
        return self.honest.to(torch.float64).std(dim=0, correction=1)


@dataclass(frozen=True, slots=True)
class GradientAttack:
    """A named attack and what it needs from whoever plays it."""

    name: str
    default_strength: float
    """The strength of the literature."""
    vector: Callable[[View], torch.Tensor]
    """The vector to send, float32 or float64 (d,)."""
    alike: bool
    """Whether all attackers send the same vector: it does not depend on `View.own`."""
    flips_labels: bool
    """Whether `View.own` is the gradient on flipped labels."""
    own_chance: bool
    """Whether every attacker draws for itself even if the colluders share their salt."""

    def row(self, view: View) -> torch.Tensor:
        """The float32 row (d,) that is sent. What overflows float32 becomes its largest number: attacks that mean
        to send infinities or NaN write them themselves."""
        vector = self.vector(view)
        return vector.clamp(-FLOAT32_MAX, FLOAT32_MAX).float() if vector.dtype == torch.float64 else vector


ATTACKS: dict[str, GradientAttack] = {}
"""Every gradient attack by name."""

Vector = Callable[[View], torch.Tensor]


def gradient_attack(
    default_strength: float, *, alike: bool = False, flips_labels: bool = False, own_chance: bool = False
) -> Callable[[Vector], Vector]:
    """Decorator that enters a function into `ATTACKS` under its own name."""

    def enter(vector: Vector) -> Vector:
        name = vector.__name__
        ATTACKS[name] = GradientAttack(name, default_strength, vector, alike, flips_labels, own_chance)
        return vector

    return enter
