"""What becomes of attackers: which attacks end in bans, that nobody honest ever pays for it, and how long it takes."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from crowdsurf.peer.workers import Job, run_jobs
from crowdsurf.protocol.messages import Ban, Reason
from crowdsurf.protocol.recheck import recheck
from crowdsurf.protocol.sim import theory
from crowdsurf.protocol.sim.adversaries import ATTACKS
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Report, Simulation, plain_manifest
from tests.simulation.ban_times import caught

BANNED_FOR: dict[str, Reason] = {
    **dict.fromkeys((*GRADIENT_ATTACKS, "leave_out"), Reason.WRONG_GRADIENT),
    "equivocate": Reason.EQUIVOCATION,
    "two_faces": Reason.EQUIVOCATION,
    "split_objection": Reason.FALSE_ACCUSATION,
    "lazy_validator": Reason.WRONG_FINDING,
    "false_accusation": Reason.FALSE_ACCUSATION,
    "wrong_aggregate": Reason.WRONG_AGGREGATE,
    "wrong_projection": Reason.WRONG_PROJECTION,
    "colluding_aggregate": Reason.WRONG_PROJECTION,
}
"""Attacks that cost everybody who plays them its place for good."""
NEVER_BANNED = {
    *("none", "slow", "replay", "garbage"),
    *("withhold_part", "withhold_reveal", "withhold_projection", "late_aggregate", "late_part"),
    *("withhold_cut", "split_views", "show_to_some"),
}
"""Nobody else can tell these from a bad network, or they harm nobody: they cost strikes and rests at most."""

EXHAUSTIVE = bool(os.environ.get("CROWDSURF_EXHAUSTIVE"))
PEERS, BYZANTINE, START, STEPS = 9, 4, 3, 60
LONG = START + theory.percentile(theory.ban_times(PEERS, BYZANTINE, 1, idle_validators=True), 0.9999) + 1
"""In so many steps audits have caught everybody in all but one swarm of 10,000."""
FAST = {
    "sign_flip": (2, 34),
    "equivocate": (0, 8),
    "lazy_validator": (2, 32),
    "false_accusation": (0, 10),
    "wrong_aggregate": (0, 6),
    "wrong_projection": (0, 8),
    "colluding_aggregate": (1, 30),
}
"""A seed and a number of steps that are enough."""
SWARM = {"n": 16, "b": 7, "audit_rate": 0.0625, "idle_validators": True}
"""The group whose bans are compared with theory: one validator a step, from the first ban to the last."""


def attacked(attack: str, seed: int, steps: int = STEPS) -> tuple[Simulation, Report]:
    """A swarm with nearly as many attackers as there can be, and no other trouble."""
    plan = Plan(peers=PEERS, byzantine=BYZANTINE, attack=attack, seed=seed, attack_from=START)
    made = Simulation(plan, plain_manifest(plan, steps), NamesCompute())
    return made, made.run()


def bans_of(report: Report) -> list[Ban]:
    """All bans of a run, in order."""
    return [ban for certificate in report.honest[0].disk.certificates for ban in certificate.header.bans]


def check(attack: str, seed: int, steps: int = STEPS) -> None:
    made, report = attacked(attack, seed, steps)
    if BANNED_FOR.get(attack) is Reason.WRONG_GRADIENT and len(bans_of(report)) < BYZANTINE and steps < LONG:
        return check(attack, seed, LONG)  # audits are drawn, and few swarms have so little luck
    assert report.violations == []
    assert report.certified_steps == steps
    bans, liars = bans_of(report), {host.id for host in report.hosts if not host.honest}
    assert {ban.peer for ban in bans} <= liars
    assert all(ban.step >= START - 1 for ban in bans)  # the first lie may be about the step before
    if attack in BANNED_FOR:
        assert {ban.peer for ban in bans} == liars
        assert {ban.reason for ban in bans} == {BANNED_FOR[attack]}
    if attack in NEVER_BANNED:
        assert bans == []
    shown = Counter(evidence.ban for host in report.honest for evidence in host.evidence)
    assert all(shown[ban] for ban in bans), "an honest one has voted for it, and can show why"
    for host in report.honest:
        for evidence in host.evidence:
            judgement = recheck(evidence, host.disk.certificates, made.manifest, made.registry.verify)
            assert judgement.ban == evidence.ban


@pytest.mark.parametrize("attack", FAST)
def test_attackers_alone_pay_for_an_attack(attack: str) -> None:
    check(attack, *FAST[attack])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3 if EXHAUSTIVE else 1))
@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_alone_pay_for_any_attack(attack: str, seed: int) -> None:
    check(attack, seed)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["wrong_aggregate", "wrong_projection"])
def test_whoever_lies_about_a_sum_is_banned_for_the_first_time_it_does(attack: str) -> None:
    """However many do so at once: what the objections of a step need is computed once for all of them."""
    plan = Plan(peers=16, byzantine=7, attack=attack, seed=1, attack_from=START)
    report = Simulation(plan, plain_manifest(plan, START + 4), NamesCompute()).run()
    assert report.violations == []
    assert [ban.step for ban in bans_of(report)] == [START] * 7


def test_whoever_withholds_its_nonce_is_left_out_again_and_again() -> None:
    _, report = attacked("withhold_reveal", 0, 24)
    honest = {host.id for host in report.honest}
    resting = report.honest[0].node.chain.head.roster.resting
    assert resting
    assert not honest & {rest.peer for rest in resting}
    assert max(rest.times for rest in resting) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whoever_forges_in_every_step_is_gone_in_time(seed: int) -> None:
    """In the time that is enough for 9,999 swarms of 10,000."""
    ends = caught(seed)
    assert len(ends) == SWARM["b"]
    assert max(end.step for end in ends) < theory.percentile(theory.ban_times(**SWARM), 0.9999)
    assert all(end.banned <= end.step + 2 for end in ends)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_bans_come_as_fast_as_theory_says() -> None:
    """Steps until the last attacker is caught, over many swarms, against the exact law."""
    ends: list[list[list[int]]] = []

    def done(_: Job, answer: Job) -> None:
        ends.append(answer["caught"])

    await run_jobs(
        "tests.simulation.ban_times", ({"seed": seed} for seed in range(80 if EXHAUSTIVE else 48)), 2, 120.0, done
    )
    lags = Counter(banned - step - 1 for swarm in ends for step, banned in swarm)
    assert lags[0] > 0.98 * lags.total(), "a ban is in the header of the very next step, or the law is another"
    attacked_steps = [max(step for step, _ in swarm) + 1 for swarm in ends]
    law = theory.ban_times(**SWARM)
    _, p_value = theory.kolmogorov_smirnov(attacked_steps, theory.cumulative(law))
    assert p_value > 0.01
    # The test can fail: neither a second audit in every step nor fewer attackers would pass for it.
    for wrong in (theory.ban_times(16, 7, 2), theory.ban_times(16, 3, 1)):
        assert theory.kolmogorov_smirnov(attacked_steps, theory.cumulative(wrong))[1] < 0.01
