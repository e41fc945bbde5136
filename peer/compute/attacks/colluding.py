"""Attacks that look at all honest gradients and of which all attackers send the same vector.

mu is the mean of the h honest rows x_i, sigma their standard deviation per coordinate (h - 1 in the denominator),
f the number of attackers, n = h + f, s the strength. All arithmetic is float64, rounded once at the end.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from crowdsurf.peer.compute.attacks.base import View, gradient_attack

ROP_RELOCATION = 1.0
"""pi of ROP: 1 attacks around the previous aggregate, 0 around the mean of the honest rows."""
ROP_REFERENCE = 0.9
"""lambda of ROP: share of the previous aggregate in the reference direction."""
ROP_ANGLE = math.pi / 2
"""theta of ROP, in radians: angle between the perturbation and the reference."""


@gradient_attack(default_strength=0.6, alike=True)
def ipm(view: View) -> torch.Tensor:
    """-s mu: the inner product of the sum with the true gradient shall turn negative.

    Xie, Koyejo and Gupta, "Fall of Empires" (UAI 2019); Karimireddy et al. (2021) use s = 0.1, BTARD 0.1 and 0.6.
    """
    return view.mean * -view.strength


@gradient_attack(default_strength=0.0, alike=True)
def alie(view: View) -> torch.Tensor:
    """mu - z sigma, with z = s, or for s = 0 the largest z that should hide among the honest rows (`alie_z`).

    Baruch, Baruch and Goldberg, "A Little Is Enough" (NeurIPS 2019). The formula is weak for few attackers; 1.5 is
    a common choice.
    """
    z = view.strength if view.strength > 0.0 else alie_z(view.members, view.byzantine)
    return view.mean - z * view.deviation


@gradient_attack(default_strength=1.0, alike=True)
def mimic(view: View) -> torch.Tensor:
    """s x_i, for the honest row i that lies farthest from mu along the direction in which the rows vary most.

    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing" (ICLR 2022).
    There the direction is estimated over many steps, because the data of the workers differ for good; here they
    do not, and it is the exact first principal direction of this step's rows. It over-represents one honest row.
    """
    centred = view.honest.double() - view.mean
    _, directions = torch.linalg.eigh(centred @ centred.T)
    chosen = int(directions[:, -1].abs().argmax())  # row i lies at directions[i, -1] * sqrt(largest eigenvalue)
    return view.honest[chosen].double() * view.strength


@gradient_attack(default_strength=1.0, alike=True)
def min_max(view: View) -> torch.Tensor:
    """mu - s g sigma, with the largest g such that no honest row is farther from it than two honest rows from each
    other: max_i |v - x_i| <= max_ij |x_i - x_j|.

    Shejwalkar and Houmansadr, "Manipulating the Byzantine" (NDSS 2021), with the direction they found strongest
    most often (-sigma; the others are -mu/|mu| and -sign(mu)). They search for g by bisection; it is the smallest
    positive root of h quadratic equations.
    """
    centred = view.honest.double() - view.mean
    square = float(view.deviation @ view.deviation)
    if square == 0.0:
        return view.mean
    bound = float(pairwise_squares(centred).max())
    # |mu - g sigma - x_i|^2 = g^2 |sigma|^2 + 2 g sigma.c_i + |c_i|^2 with c_i = x_i - mu
    slope = centred @ view.deviation
    room = bound - centred.square().sum(dim=1)
    scale = float(((slope.square() + square * room).sqrt() - slope).min()) / square
    return view.mean - view.strength * scale * view.deviation


@gradient_attack(default_strength=1.0, alike=True)
def min_sum(view: View) -> torch.Tensor:
    """mu - s g sigma, with the largest g such that the sum of its squared distances to the honest rows is at most
    the largest such sum of an honest row: sum_i |v - x_i|^2 <= max_i sum_j |x_i - x_j|^2.

    Same source as `min_max`; this is the bound of the paper, their published code takes the smallest sum.
    """
    centred = view.honest.double() - view.mean
    square = float(view.deviation @ view.deviation)
    if square == 0.0:
        return view.mean
    bound = float(pairwise_squares(centred).sum(dim=1).max())
    scale = math.sqrt((bound - float(centred.square().sum())) / (len(centred) * square))
    return view.mean - view.strength * scale * view.deviation


@gradient_attack(default_strength=1.0, alike=True)
def rop(view: View) -> torch.Tensor:
    """l + s (p sin(theta) + u/|u| cos(theta)): relocated orthogonal perturbation, of length s around the place l.

    With c the previous aggregate (zero before the first): l = pi c + (1 - pi) mu; the reference is
    u = lambda c + (1 - lambda) mu, or mu before the first; p is the vector of ones without its projection on u,
    at length one. pi = 1, lambda = 0.9, theta = 90 degrees. Ozfatura, Ozfatura, Kupcu and Gunduz, "Byzantines Can
    Also Learn From History" (2022, arXiv 2208.09894): made against CenteredClip, whose clipping length is the
    natural unit of s.
    """
    previous = torch.zeros_like(view.mean) if view.previous is None else view.previous.double()
    place = ROP_RELOCATION * previous + (1.0 - ROP_RELOCATION) * view.mean
    reference = view.mean
    if view.previous is not None:
        reference = ROP_REFERENCE * previous + (1.0 - ROP_REFERENCE) * view.mean
    reference = unit(reference)
    ones = torch.ones_like(reference)
    across = unit(ones - reference * (ones @ reference))
    return place + view.strength * (across * math.sin(ROP_ANGLE) + reference * math.cos(ROP_ANGLE))


def alie_z(members: int, byzantine: int) -> float:
    """z = Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2 + 1) - f, the honest rows it takes for a majority.

    Never below zero, and the quantile is kept inside the honest rows where the formula leaves them.
    """
    honest = members - byzantine
    supporters = min(max(members // 2 + 1 - byzantine, 1), honest)
    share = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0.0 else 0.0


def pairwise_squares(centred: torch.Tensor) -> torch.Tensor:
    """Squared distances of all pairs of rows, float64 (h, h), from rows (h, d) that are centred on their mean."""
    gram = centred @ centred.T
    squares = gram.diagonal()
    return (squares[:, None] + squares[None, :] - 2.0 * gram).clamp_(min=0.0)


def unit(vector: torch.Tensor) -> torch.Tensor:
    """The vector at length one; zero stays zero."""
    length = float(vector.norm())
    return vector / length if length > 0.0 else vector
