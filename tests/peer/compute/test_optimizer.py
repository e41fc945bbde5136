"""The outer optimizer against torch.optim in float64, void ranges, and the learning rate schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.compute.optimizer import (
    BLOCK_ELEMENTS,
    OPTIMIZERS,
    cosine_of_half_turns,
    learning_rate,
    live_ranges,
    power,
)
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.manifest import OptimizerSection

LENGTH = BLOCK_ELEMENTS + 1000  # one block is not enough


def run(section: OptimizerSection, gradients: list[torch.Tensor], voids: list[tuple[int, int]]) -> list[torch.Tensor]:
    optimizer = OPTIMIZERS[section.name](section)
    parameters = torch.linspace(-1.0, 1.0, LENGTH)
    state = [torch.zeros(LENGTH) for _ in range(optimizer.state_vectors)]
    for step, gradient in enumerate(gradients):
        optimizer.step(parameters, state, gradient, step, voids)
    return [parameters, *state]


def random_gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(LENGTH, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_it_agrees_with_torch_in_float64(name: str) -> None:
    section = OptimizerSection(name=name, learning_rate=0.05, momentum=0.8, second_momentum=0.9)
    expected = torch.nn.Parameter(torch.linspace(-1.0, 1.0, LENGTH).double())
    reference: torch.optim.Optimizer
    if name == "sgd":
        reference = torch.optim.SGD([expected], lr=0.05, momentum=0.8)
    else:
        reference = torch.optim.AdamW([expected], lr=0.05, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.0)
    gradients = random_gradients(6)
    for gradient in gradients:
        expected.grad = gradient.double()
        reference.step()
    parameters = run(section, gradients, [])[0]
    assert torch.allclose(parameters.double(), expected.detach(), atol=2e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_decoupled(name: str) -> None:
    plain = OptimizerSection(name=name, learning_rate=0.1)
    decayed = OptimizerSection(name=name, learning_rate=0.1, weight_decay=0.5)
    gradients = random_gradients(1)
    start = torch.linspace(-1.0, 1.0, LENGTH)
    difference = run(plain, gradients, [])[0] - run(decayed, gradients, [])[0]
    assert torch.allclose(difference, start * 0.05, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_void_ranges_stay_as_they_are_and_the_rest_is_untouched_by_them(name: str) -> None:
    section = OptimizerSection(name=name, learning_rate=0.1, weight_decay=0.1)
    voids = [(LENGTH - 10, LENGTH), (100, 40_000 if LENGTH > 50_000 else 20_000)]
    gradients = random_gradients(3)
    without = run(section, gradients, [])
    gradients[0][-1] = float("nan")  # nobody agreed on what lies in a void range
    found = run(section, gradients, voids)
    start = [torch.linspace(-1.0, 1.0, LENGTH)] + [torch.zeros(LENGTH)] * (len(found) - 1)
    void = torch.zeros(LENGTH, dtype=torch.bool)
    for low, high in voids:
        void[low:high] = True
    for before, full, after in zip(start, without, found, strict=True):
        assert torch.equal(after[void], before[void])
        assert torch.equal(after[~void], full[~void])


def test_live_ranges_are_what_void_ranges_leave() -> None:
    assert live_ranges(10, []) == [(0, 10)]
    assert live_ranges(10, [(0, 10)]) == []
    assert live_ranges(10, [(6, 8), (2, 4), (3, 7)]) == [(0, 2), (8, 10)]
    assert live_ranges(10, [(5, 5)]) == [(0, 5), (5, 10)]
    for outside in ((-1, 2), (0, 11), (7, 3)):
        with pytest.raises(MisuseError):
            live_ranges(10, [outside])


def test_the_learning_rate_warms_up_decays_and_stays_at_its_floor() -> None:
    section = OptimizerSection(name="sgd", learning_rate=1.0, warmup_steps=4, decay_steps=10, learning_rate_floor=0.1)
    assert [learning_rate(section, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(section, 9) == pytest.approx(0.55)
    assert learning_rate(section, 14) == pytest.approx(0.1)
    assert learning_rate(section, 1_000_000) == learning_rate(section, 14)
    constant = OptimizerSection(name="sgd", learning_rate=0.3)
    assert learning_rate(constant, 0) == learning_rate(constant, 10**9) == 0.3


@given(st.floats(0.0, 1.0))
def test_cosine(fraction: float) -> None:
    assert cosine_of_half_turns(fraction) == pytest.approx(math.cos(math.pi * fraction), abs=1e-14)


@given(st.floats(0.0, 0.999999), st.integers(0, 100_000))
def test_power(base: float, exponent: int) -> None:
    assert power(base, exponent) == pytest.approx(base**exponent, rel=1e-9, abs=1e-300)
