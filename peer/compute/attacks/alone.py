"""Attacks for which a peer needs nobody else's gradient.

g is the attacker's own honest gradient, s the strength, d its length. "BTARD" is Gorbunov, Borzunov, Diskin and
Ryabinin, "Secure Distributed Training at Scale" (ICML 2022), whose experiments use the first four.
"""

from __future__ import annotations

import torch

from crowdsurf.peer.compute.attacks.base import View, gradient_attack

HUGE = 1e38
"""Finite in float32, but its square, and the sum of four of them, are not."""


@gradient_attack(default_strength=1000.0)
def sign_flip(view: View) -> torch.Tensor:
    """-s g. BTARD: s = 1000."""
    return view.own.double() * -view.strength


@gradient_attack(default_strength=1000.0)
def random_direction(view: View) -> torch.Tensor:
    """s |g| u, with u one random unit vector that all attackers of a step share.

    BTARD: s = 1000; there the length is matched per layer, here for the whole gradient.
    """
    return random_unit(len(view.own), view.generator) * (view.strength * float(view.own.double().norm()))


@gradient_attack(default_strength=1.0, flips_labels=True)
def label_flip(view: View) -> torch.Tensor:
    """s g', with g' the gradient on wrong labels: class C-1-y instead of y, or the byte after the right one.

    BTARD: s = 1. What the flip is for a task, `Task.loss` says.
    """
    return view.own.double() * view.strength


@gradient_attack(default_strength=1.0)
def delayed_gradient(view: View) -> torch.Tensor:
    """s g_old, with g_old the attacker's true gradient some steps ago. BTARD: s = 1, 1,000 steps.

    How old it is, is for the caller to say: it hands over the gradient at an older state.
    """
    return view.own.double() * view.strength


@gradient_attack(default_strength=10.0, own_chance=True)
def scaled_noise(view: View) -> torch.Tensor:
    """s |g| / sqrt(d) times independent standard normal numbers, so of a length near s |g|; every attacker draws
    its own. The Gaussian attack of Blanchard et al. (NeurIPS 2017), with a scale that follows the gradients."""
    noise = torch.randn(len(view.own), dtype=torch.float64, generator=view.generator)
    return noise * (view.strength * float(view.own.double().norm()) / len(view.own) ** 0.5)


@gradient_attack(default_strength=1.0, alike=True)
def zero(view: View) -> torch.Tensor:
    """Zeros, whatever the strength: a free rider."""
    return torch.zeros_like(view.own)


@gradient_attack(default_strength=1.0, alike=True)
def nan(view: View) -> torch.Tensor:
    """Not-a-number everywhere, whatever the strength."""
    return torch.full_like(view.own, torch.nan)


@gradient_attack(default_strength=1.0, alike=True)
def inf(view: View) -> torch.Tensor:
    """Infinity everywhere, whatever the strength. byzfl's `Inf`."""
    return torch.full_like(view.own, torch.inf)


@gradient_attack(default_strength=1.0, alike=True)
def huge(view: View) -> torch.Tensor:
    """1e38 everywhere, whatever the strength: passes a check for finite numbers, overflows sums and squares."""
    return torch.full_like(view.own, HUGE)


def random_unit(length: int, generator: torch.Generator) -> torch.Tensor:
    """A float64 vector of length one, all directions equally likely."""
    direction = torch.randn(length, dtype=torch.float64, generator=generator)
    return direction / direction.norm()
