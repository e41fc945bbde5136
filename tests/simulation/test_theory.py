"""The theory of detection against enumeration, closed forms, published figures, plain sampling and scipy."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.sim import theory


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, int, int]:
    """(n, b, m) with at least one honest member and room for m audits."""
    n = draw(st.integers(2, 60))
    return n, draw(st.integers(0, n - 1)), draw(st.integers(1, n // 2))


def sampled_ban_times(
    n: int, b: int, m: int, runs: int, seed: int, *, lag: int = 0, audit_rate: float = 0.0, idle: bool = False
) -> list[int]:
    """What `ban_times` sums up, played as the words say it; `idle`: a validator is no target of the next draw."""
    chance = random.Random(seed)
    times = []
    for _ in range(runs):
        members = list(range(n))  # The first b are the attackers.
        caught: dict[int, int] = {}
        validators: list[int] = []
        step = 0
        while len(caught) < b:
            step += 1
            members = [member for member in members if step <= caught.get(member, step) + lag]
            audits = min(max(m, round(audit_rate * len(members))), len(members) // 2)
            order = chance.sample(members, len(members))
            last, validators = validators, order[:audits]
            targets = [member for member in order[audits:] if not (idle and member in last)]
            for validator, target in zip(validators, targets, strict=False):
                if validator >= b > target:
                    caught.setdefault(target, step)
        times.append(step)
    return times


# One step


@pytest.mark.parametrize(("n", "b", "m"), [(2, 1, 1), (5, 2, 2), (6, 3, 1), (6, 2, 3), (7, 4, 3)])
def test_a_step_catches_what_enumeration_counts(n: int, b: int, m: int) -> None:
    draws = Counter(
        sum(validator >= b > target for validator, target in zip(draw[:m], draw[m:], strict=True))
        for draw in itertools.permutations(range(n), 2 * m)
    )
    expected = [draws[caught] / math.perm(n, 2 * m) for caught in range(m + 1)]
    assert theory.catch_distribution(n, b, m) == pytest.approx(expected, abs=1e-15)


@given(groups())
def test_catches_are_probabilities_with_the_mean_of_the_single_catch(group: tuple[int, int, int]) -> None:
    n, b, m = group
    law = theory.catch_distribution(n, b, m)
    assert len(law) == m + 1
    assert min(law) >= 0
    assert math.fsum(law) == pytest.approx(1, abs=1e-12)
    assert theory.mean(law) == pytest.approx(b * theory.single_catch_probability(n, b, m), abs=1e-12)


@given(groups().filter(lambda group: group[1] > 0))
def test_attackers_and_honest_can_change_places(group: tuple[int, int, int]) -> None:
    n, b, m = group
    assert theory.catch_distribution(n, b, m) == pytest.approx(theory.catch_distribution(n, n - b, m), abs=1e-12)


def test_the_published_chance_of_one_step() -> None:
    assert theory.single_catch_probability(16, 7, 1) == pytest.approx(0.0375)
    assert theory.catch_distribution(16, 7, 1)[1] == pytest.approx(0.2625, abs=1e-12)


# Until all are caught


@given(groups(), st.integers(0, 2))
def test_a_single_attacker_is_caught_after_a_geometric_time(group: tuple[int, int, int], lag: int) -> None:
    n, _, m = group
    p = theory.single_catch_probability(n, 1, m)
    law = theory.ban_times(n, 1, m, lag=lag)
    assert law[:4] == pytest.approx([0.0, p, (1 - p) * p, (1 - p) ** 2 * p], abs=1e-12)
    assert theory.mean(law) == pytest.approx(1 / p, rel=1e-5)


@given(st.integers(1, 12), st.integers(1, 12))
def test_one_audit_a_step_catches_one_after_the_other(honest: int, b: int) -> None:
    law = theory.ban_times(honest + b, b, 1)
    waits = [(honest + left) * (honest + left - 1) / (honest * left) for left in range(1, b + 1)]
    assert theory.mean(law) == pytest.approx(sum(waits), rel=1e-5)
    assert 1 - theory.TAIL <= math.fsum(law) <= 1 + 1e-12
    assert law[:b] == [0.0] * b


# attacks-and-rules 4.4, sampled with few runs: n, b, m, and the 50th, 95th and 99th percentile printed there.
PERCENTILES = [
    (16, 7, 1, 35, 64, 78),
    (16, 7, 2, 17, 31, 40),
    (16, 3, 2, 12, 28, 39),
    (64, 19, 8, 23, 36, 43),
    (256, 76, 32, 30, 42, 51),
]
# BTARD as summarised, section 4, sampled with 20,000 runs: n, b, m, mean, 95th percentile.
MEANS = [
    (16, 7, 1, 37, 63),
    (16, 7, 2, 18, 30),
    (16, 3, 1, 28, 60),
    (64, 31, 1, 205, 291),
    (64, 6, 1, 152, 288),
    (64, 6, 4, 37, 70),
]


@pytest.mark.parametrize(("n", "b", "m", "median", "p95", "p99"), PERCENTILES)
def test_the_published_percentiles_are_samples_of_the_law(
    n: int, b: int, m: int, median: int, p95: int, p99: int
) -> None:
    law = theory.ban_times(n, b, m)
    cdf = theory.cumulative(law)
    assert theory.median(law) == median
    for step, share, slack in ((p95, 0.95, 0.012), (p99, 0.99, 0.005)):
        assert cdf(step - 1) - slack <= share <= cdf(step) + slack


@pytest.mark.parametrize(("n", "b", "m", "mean", "p95"), MEANS)
def test_the_published_means_are_those_of_the_law(n: int, b: int, m: int, mean: int, p95: int) -> None:
    law = theory.ban_times(n, b, m)
    cdf = theory.cumulative(law)
    assert round(theory.mean(law)) == mean
    assert cdf(p95 - 1) - 0.004 <= 0.95 <= cdf(p95) + 0.004


def test_the_exact_percentiles() -> None:
    """Beside the sampled ones above: what reports should print."""
    found = {
        (n, b, m): [theory.percentile(theory.ban_times(n, b, m), share) for share in (0.5, 0.95, 0.99)]
        for n, b, m, *_ in PERCENTILES[:4]
    }
    assert found == {
        (16, 7, 1): [35, 63, 79],
        (16, 7, 2): [17, 31, 38],
        (16, 3, 2): [12, 29, 40],
        (64, 19, 8): [23, 37, 45],
    }


@pytest.mark.parametrize(("n", "b", "m", "lag"), [(16, 7, 2, 0), (16, 7, 2, 3), (7, 3, 1, 1), (12, 4, 5, 2)])
def test_the_law_agrees_with_plain_sampling(n: int, b: int, m: int, lag: int) -> None:
    times = sampled_ban_times(n, b, m, 2000, seed=5, lag=lag)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(theory.ban_times(n, b, m, lag=lag)))[1] > 0.01
    other = theory.ban_times(n, b, m, lag=lag + 3)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(other))[1] < 0.01


def test_the_law_agrees_with_plain_sampling_at_a_rate_and_in_a_group_that_gets_too_small() -> None:
    times = sampled_ban_times(20, 9, 1, 2000, seed=6, audit_rate=0.2)
    law = theory.ban_times(20, 9, audit_rate=0.2)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(law))[1] > 0.01
    assert theory.kolmogorov_smirnov(times, theory.cumulative(theory.ban_times(20, 9, 4)))[1] < 0.01
    times = sampled_ban_times(9, 8, 4, 2000, seed=7)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(theory.ban_times(9, 8, 4)))[1] > 0.01


@pytest.mark.parametrize(
    ("n", "b", "m", "lag"), [(16, 7, 1, 0), (16, 7, 2, 0), (16, 7, 2, 2), (9, 5, 3, 0), (5, 4, 2, 1), (2, 1, 1, 0)]
)
def test_the_law_agrees_with_plain_sampling_when_validators_are_idle(n: int, b: int, m: int, lag: int) -> None:
    times = sampled_ban_times(n, b, m, 2000, seed=8, lag=lag, idle=True)
    law = theory.ban_times(n, b, m, lag=lag, idle_validators=True)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(law))[1] > 0.01


def test_idle_validators_change_the_law_where_they_are_many() -> None:
    times = sampled_ban_times(9, 5, 3, 2000, seed=8, idle=True)
    law = theory.cumulative(theory.ban_times(9, 5, 3))
    assert theory.kolmogorov_smirnov(times, law)[1] < 0.01


def test_the_smallest_group_waits_for_work_to_check() -> None:
    """One of two validates. The attacker is caught if that is the honest one and the attacker just worked."""
    law = theory.ban_times(2, 1, 1, idle_validators=True)
    assert law[:5] == pytest.approx([0, 1 / 2, 0, 1 / 4 * 1 / 2, 1 / 4 * 1 / 4], abs=1e-12)


def test_nobody_to_catch_takes_no_step() -> None:
    assert theory.ban_times(8, 0, 2) == [1.0]


def test_a_law_is_read_by_its_mean_percentiles_and_sums() -> None:
    law = [0.0, 0.25, 0.25, 0.5]
    cdf = theory.cumulative(law)
    assert [cdf(step) for step in (-1, 0, 1, 2, 3, 99)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert [theory.percentile(law, share) for share in (0.2, 0.25, 0.26, 0.51)] == [1, 1, 2, 3]
    assert theory.median(law) == 2
    assert theory.mean(law) == 2.25


# The beacon


@pytest.mark.parametrize(("identities", "rerun", "xor"), [(0, 0.010, 0.010), (3, 0.039, 0.077), (16, 0.157, 1.0)])
def test_the_published_bias_of_a_one_percent_event(identities: int, rerun: float, xor: float) -> None:
    assert theory.rerun_probability(0.01, identities) == pytest.approx(rerun, abs=0.0005)
    assert theory.xor_probability(0.01, identities) == pytest.approx(xor, abs=0.0005)


def test_one_abort_dodges_an_audit_as_published() -> None:
    caught = theory.catch_distribution(16, 7, 1)[1]
    assert 1 - theory.rerun_probability(1 - caught, 1) == pytest.approx(0.069, abs=0.0005)


@given(st.floats(0, 1), st.integers(0, 10))
def test_xor_is_worth_as_many_reruns_as_there_are_other_outcomes(p: float, identities: int) -> None:
    assert theory.xor_probability(p, identities) == theory.rerun_probability(p, 2**identities - 1)
    assert theory.rerun_probability(p, identities) == pytest.approx(1 - (1 - p) ** (identities + 1), abs=1e-12)


# Samples against a law


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.floats(0.05, 0.9))
def test_the_statistic_is_the_largest_distance_at_any_integer(samples: list[int], p: float) -> None:
    def cdf(step: int) -> float:
        return float(stats.geom.cdf(step, p))

    statistic, p_value = theory.kolmogorov_smirnov(samples, cdf)
    distances = [abs(sum(s <= step for s in samples) / len(samples) - cdf(step)) for step in range(-1, 14)]
    assert statistic == pytest.approx(max(distances), abs=1e-12)
    assert p_value == pytest.approx(stats.kstwobign.sf(math.sqrt(len(samples)) * statistic), abs=1e-9)


def test_a_right_law_is_rejected_no_more_often_than_the_level() -> None:
    cdf = theory.cumulative(theory.ban_times(16, 7, 2))
    values = [theory.kolmogorov_smirnov(sampled_ban_times(16, 7, 2, 60, seed), cdf)[1] for seed in range(200)]
    # At most a tenth, plus three standard deviations of 200 trials; and the test is not blind either.
    assert 0 < sum(value < 0.1 for value in values) / 200 <= 0.1 + 0.064


# What cannot be


@pytest.mark.parametrize(("n", "b", "m"), [(4, 4, 1), (4, -1, 1), (4, 1, 0), (4, 1, 3), (1, 0, 1)])
def test_impossible_groups_are_misuse(n: int, b: int, m: int) -> None:
    for function in (theory.catch_distribution, theory.single_catch_probability, theory.ban_times):
        with pytest.raises(MisuseError, match="at least one member is honest"):
            function(n, b, m)


def test_contradictory_or_impossible_arguments_are_misuse() -> None:
    for arguments in ({}, {"m": 1, "audit_rate": 0.1}, {"audit_rate": 0.0}, {"audit_rate": 0.6}, {"m": 1, "lag": -1}):
        with pytest.raises(MisuseError, match="either m or an audit rate"):
            theory.ban_times(16, 7, **arguments)
    for share in (0.0, 1.0):
        with pytest.raises(MisuseError, match="share"):
            theory.percentile(theory.ban_times(16, 7, 1), share)
    for function in (theory.rerun_probability, theory.xor_probability):
        for p, identities in ((1.5, 1), (0.5, -1)):
            with pytest.raises(MisuseError, match="no event of probability"):
                function(p, identities)
    with pytest.raises(MisuseError, match="at least one sample"):
        theory.kolmogorov_smirnov([], lambda step: 1.0)
