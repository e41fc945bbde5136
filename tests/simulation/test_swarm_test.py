"""What a seed draws, and many seeds of it: nothing may break, whatever fails."""

from __future__ import annotations

import pytest

from crowdsurf.peer.simulate import simulate_many
from crowdsurf.peer.simulate_options import SimulateOptions
from crowdsurf.protocol.sim.adversaries import ATTACKS
from crowdsurf.protocol.sim.faults import DRAWN
from crowdsurf.protocol.sim.swarm_test import PEERS_MAX, PEERS_MIN, STEPS_MAX, STEPS_MIN, draw_plan

BLOCK = 10


def test_a_seed_says_everything() -> None:
    assert draw_plan(7) == draw_plan(7)
    assert len({draw_plan(seed)[0].faults for seed in range(20)}) == 20


def test_honest_swarms_are_drawn_from_the_whole_range() -> None:
    drawn = [draw_plan(seed) for seed in range(300)]
    assert {plan.peers for plan, _ in drawn} == set(range(PEERS_MIN, PEERS_MAX + 1))
    assert {manifest.steps for _, manifest in drawn} == set(range(STEPS_MIN, STEPS_MAX + 1))
    assert all(plan.byzantine == 0 and plan.attack == "none" for plan, _ in drawn)
    for name in DRAWN:
        with_it = sum(getattr(plan.faults, name) > 0 for plan, _ in drawn)
        assert 50 < with_it < 200


def test_attackers_are_fewer_than_half_and_of_every_kind() -> None:
    drawn = [draw_plan(seed, "random") for seed in range(1000)]
    assert {plan.attack for plan, _ in drawn} == set(ATTACKS) - {"none"}
    assert all(0 < plan.byzantine < plan.peers / 2 for plan, _ in drawn)
    assert all(plan.attack_from < manifest.steps for plan, manifest in drawn)


def test_the_rest_does_not_depend_on_the_attack() -> None:
    for seed in range(20):
        honest, attacked = draw_plan(seed), draw_plan(seed, "equivocate")
        assert attacked[0].faults == honest[0].faults
        assert attacked[0].peers == max(honest[0].peers, 3)
        assert attacked[0].attack == "equivocate"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, 40, BLOCK))
async def test_no_promise_is_broken(first: int) -> None:
    seeds = range(first, first + BLOCK)
    found = await simulate_many(SimulateOptions(swarm_test=True), seeds, 2, lambda seed, answer: None)
    assert found["failures"] == []
    assert found["runs"] == BLOCK


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, 100, BLOCK))
async def test_no_promise_is_broken_by_whoever_lies_either(first: int) -> None:
    options = SimulateOptions(swarm_test=True, attack="random")
    found = await simulate_many(options, range(first, first + BLOCK), 2, lambda seed, answer: None)
    assert found["failures"] == []
    assert found["runs"] == BLOCK
