"""The outer optimizer: the one place where the model changes, with identical bytes on every peer.

The idea: SGD with momentum and AdamW on flat float32 vectors on the CPU, whatever device computed the
gradient. Every line is one elementwise operation that is rounded once (no `alpha=`, `addcmul`, `addcdiv`,
`lerp`: they may fuse a multiplication with an addition, and then machines differ), and every scalar is made of
additions, multiplications, divisions and square roots only, because powers and cosines of the mathematics
library differ between machines too. The vectors are walked in blocks that stay in the cache.

Void ranges are parts for which the swarm agreed on no aggregate: their parameters and state stay as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.manifest import OptimizerSection

BLOCK_ELEMENTS = 1 << 15
"""Elements updated at a time: five float32 vectors of this length fit the second-level cache."""

Range = tuple[int, int]


class OuterOptimizer(ABC):
    """One update rule. `state_vectors` of the parameters' length belong to it and to the certified state."""

    state_vectors: int

    def __init__(self, section: OptimizerSection) -> None:
        self._section = section
        self._scratch = torch.empty(2, BLOCK_ELEMENTS)

    def step(
        self,
        parameters: torch.Tensor,
        state: Sequence[torch.Tensor],
        gradient: torch.Tensor,
        step: int,
        void_ranges: Sequence[Range] = (),
    ) -> None:
        """Update `parameters` and `state` in place; all are 1-D float32 on the CPU and of equal length.

        `step` counts certified steps from 0. Raises MisuseError for ranges outside the vector.
        """
        rate = learning_rate(self._section, step)
        for start, stop in live_ranges(parameters.numel(), void_ranges):
            for low in range(start, stop, BLOCK_ELEMENTS):
                block = slice(low, min(low + BLOCK_ELEMENTS, stop))
                self._update(parameters[block], [vector[block] for vector in state], gradient[block], step, rate)

    @abstractmethod
    def _update(
        self, parameters: torch.Tensor, state: Sequence[torch.Tensor], gradient: torch.Tensor, step: int, rate: float
    ) -> None:
        """Update one block."""

    def _decay(self, parameters: torch.Tensor, rate: float) -> None:
        """Decoupled weight decay: parameters shrink by rate x weight_decay, apart from the gradient."""
        if self._section.weight_decay:
            parameters.mul_(1.0 - rate * self._section.weight_decay)


class Sgd(OuterOptimizer):
    """momentum <- m * momentum + gradient; parameters <- parameters - rate * momentum."""

    state_vectors = 1

    def _update(
        self, parameters: torch.Tensor, state: Sequence[torch.Tensor], gradient: torch.Tensor, step: int, rate: float
    ) -> None:
        change = self._scratch[0, : len(gradient)]
        momentum = state[0]
        self._decay(parameters, rate)
        momentum.mul_(self._section.momentum).add_(gradient)
        parameters.sub_(torch.mul(momentum, rate, out=change))


class AdamW(OuterOptimizer):
    """Adam with bias correction and decoupled weight decay (Loshchilov and Hutter, 2019)."""

    state_vectors = 2

    def _update(
        self, parameters: torch.Tensor, state: Sequence[torch.Tensor], gradient: torch.Tensor, step: int, rate: float
    ) -> None:
        beta1, beta2 = self._section.momentum, self._section.second_momentum
        first, second = state
        change, scale = self._scratch[0, : len(gradient)], self._scratch[1, : len(gradient)]
        self._decay(parameters, rate)
        first.mul_(beta1).add_(torch.mul(gradient, 1.0 - beta1, out=change))
        torch.mul(gradient, gradient, out=change)
        second.mul_(beta2).add_(change.mul_(1.0 - beta2))
        torch.sqrt(second, out=scale)
        scale.div_(math.sqrt(1.0 - power(beta2, step + 1))).add_(self._section.epsilon)
        torch.mul(first, rate / (1.0 - power(beta1, step + 1)), out=change)
        parameters.sub_(change.div_(scale))


OPTIMIZERS: dict[str, type[OuterOptimizer]] = {"sgd": Sgd, "adamw": AdamW}


def live_ranges(length: int, void_ranges: Sequence[Range]) -> list[Range]:
    """What is left of [0, length) without the void ranges, in order. Raises MisuseError for a range outside."""
    live: list[Range] = []
    position = 0
    for start, stop in sorted(void_ranges):
        if not 0 <= start <= stop <= length:
            raise MisuseError(f"void range {start}..{stop} is not inside a vector of {length} elements")
        if position < start:
            live.append((position, start))
        position = max(position, stop)
    if position < length:
        live.append((position, length))
    return live


def learning_rate(section: OptimizerSection, step: int) -> float:
    """Rate of a step (counted from 0): linear warm-up, then constant or half a cosine down to the floor."""
    if step < section.warmup_steps:
        return section.learning_rate * ((step + 1) / section.warmup_steps)
    if section.decay_steps == 0:
        return section.learning_rate
    progress = min(1.0, (step - section.warmup_steps) / section.decay_steps)
    weight = 0.5 * (1.0 + cosine_of_half_turns(progress))
    return section.learning_rate_floor + (section.learning_rate - section.learning_rate_floor) * weight


def power(base: float, exponent: int) -> float:
    """base ** exponent for exponent >= 0 by repeated squaring: multiplications only, so the same everywhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def cosine_of_half_turns(fraction: float) -> float:
    """cos(pi * fraction) for 0 <= fraction <= 1 to 1e-15, by its Taylor series: the same bits everywhere."""
    reflected = fraction > 0.5
    angle = math.pi * (1.0 - fraction if reflected else fraction)
    term = total = 1.0
    for index in range(1, 13):
        term *= -angle * angle / ((2 * index - 1) * (2 * index))
        total += term
    return -total if reflected else total
