"""How soon random audits should catch attackers, computed exactly, to hold simulated and real runs against.

The idea: nobody influences the draw, so detection is a small Markov chain over the attackers that are left. Its law
is summed up here, not sampled, and a run that disagrees with it points at a bug in the draw, in the audit or in here.

Symbols are those of the paper's section on validators and of its usual summary (BTARD, Gorbunov et al., ICML 2022):
n members of the group, b attackers among them, m audits a step. A step draws 2m distinct members uniformly; the
k-th of the first m audits the k-th of the last m. An attacker that is the target of an honest member is caught; an
attacking validator stays silent. All b attack in every step, which is how they do most harm before they are gone:
who attacks rarely is caught after as many attacked steps, only later.

In our protocol a validator has no gradient of its own in its step: it may be drawn again as a validator, but not as a
target, in the draw after that step. Every attacker still is a target in m/n of the steps, but draws are no longer
independent; `idle_validators` says which of the two laws is meant.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from crowdsurf.protocol.errors import MisuseError

TAIL = 1e-9
"""Probability of the longest runs that `ban_times` leaves out."""

_State = tuple[tuple[int, int], ...]
"""Members that did work in this step and members that validated instead, of each kind: the honest, attackers not caught
yet, then those that were caught 1, 2 … lag steps ago and still belong to the group."""


def single_catch_probability(n: int, b: int, m: int) -> float:
    """Chance that one given attacker is caught in a step in which it attacks: (m/n)·(n-b)/(n-1)."""
    _check(n, b, m)
    return m / n * (n - b) / (n - 1)


def catch_distribution(n: int, b: int, m: int) -> list[float]:
    """Probabilities that one step in which all attack catches 0, 1 … m of them; m+1 numbers.

    Raises MisuseError unless 0 <= b < n and 1 <= m <= n/2.
    """
    _check(n, b, m)
    law = [0.0] * (m + 1)
    for _, caught, probability in _draws(((n - b, 0), (b, 0)), m):
        law[caught] += probability
    return law


def ban_times(
    n: int,
    b: int,
    m: int | None = None,
    audit_rate: float | None = None,
    lag: int = 0,
    idle_validators: bool = False,
) -> list[float]:
    """The law of the number of steps until all b have been caught: entry s is the probability of s steps.

    Give either m, the same in every step, or `audit_rate`, with m = max(1, round(rate · members)) as the group
    shrinks; either way m is at most half the members. Who is caught leaves the group `lag` steps late: it takes part
    in that many further draws, where catching it again is nothing new and it finds nobody. `idle_validators`: whoever
    validated in a step is no target of the next draw, not even if there was no target left for it (which takes a
    group of fewer than 3m; the protocol lets such a validator work).

    Exact but for a tail of at most TAIL. 16 members take well under a second; the number of states grows like
    b^(lag+1), and again with m^(lag+1) if validators are idle. Raises MisuseError for numbers that describe no group.
    """
    _check(n, b, 1 if m is None else m)
    if (m is None) == (audit_rate is None) or (audit_rate is not None and not 0 < audit_rate <= 0.5) or lag < 0:
        raise MisuseError("Give either m or an audit rate above 0 and up to 0.5, and a lag of no less than 0 steps.")
    if b == 0:
        return [1.0]
    law = [0.0]
    running: dict[_State, float] = {((n - b, 0), (b, 0), *((0, 0),) * lag): 1.0}
    while sum(running.values()) > TAIL:
        following: defaultdict[_State, float] = defaultdict(float)
        ended = 0.0
        for state, weight in running.items():
            members = sum(map(sum, state))
            audits = max(1, round((audit_rate or 0) * members)) if m is None else m
            for next_state, probability in _moves(state, min(audits, members // 2), idle_validators):
                if sum(next_state[1]):
                    following[next_state] += weight * probability
                else:
                    ended += weight * probability
        law.append(ended)
        running = following
    return law


def mean(law: list[float]) -> float:
    """Mean number of steps under a law as `ban_times` returns it."""
    return math.fsum(step * probability for step, probability in enumerate(law))


def percentile(law: list[float], share: float) -> int:
    """The fewest steps that are enough with probability `share` (0.99: the 99th percentile), 0 < share <= 1 - TAIL."""
    if 0 < share <= 1 - TAIL:
        for step, reached in enumerate(itertools.accumulate(law)):
            if reached >= share:
                return step
    raise MisuseError(f"A share of {share} is not between 0 and 1, or lies in the tail that the law leaves out.")


def median(law: list[float]) -> int:
    """The 50th percentile, in steps."""
    return percentile(law, 0.5)


def cumulative(law: list[float]) -> Callable[[int], float]:
    """The law as a function from a number of steps to the probability of at most that many."""
    sums = [min(value, 1.0) for value in itertools.accumulate(law)]
    return lambda step: 0.0 if step < 0 else sums[min(step, len(sums) - 1)]


def rerun_probability(p: float, identities: int) -> float:
    """Chance of having an event of probability p when each sacrificed identity buys one more draw of the beacon.

    The rule of a rerun without whoever withheld its nonce: 1 - (1-p)^(k+1).
    """
    return _any_of(p, identities + 1, identities)


def xor_probability(p: float, identities: int) -> float:
    """The same where the beacon is the XOR of what was revealed: k colluders choose among 2^k, so 1 - (1-p)^(2^k).

    Not our rule; it is the comparison that shows what the rerun is for.
    """
    return _any_of(p, 2**identities if identities >= 0 else 0, identities)


def kolmogorov_smirnov(samples: list[int], cdf: Callable[[int], float]) -> tuple[float, float]:
    """(statistic, p-value): the largest distance between the samples' distribution and `cdf`, over the integers.

    The p-value is that of Kolmogorov's limit law for continuous distributions. For a discrete one it is too large,
    never too small (but for few samples), so "p > 0.01" passes a right law in more than 99 % of cases and lets a
    slightly wrong one pass more easily than it says. Raises MisuseError without samples.
    """
    if not samples:
        raise MisuseError("The Kolmogorov-Smirnov test needs at least one sample.")
    counts = Counter(samples)
    below, statistic = 0, 0.0
    for value in sorted(counts):
        # Between two samples theirs is flat and `cdf` climbs: the distance is largest at the ends.
        statistic = max(statistic, abs(below / len(samples) - cdf(value - 1)))
        below += counts[value]
        statistic = max(statistic, abs(below / len(samples) - cdf(value)))
    return statistic, _kolmogorov_tail(math.sqrt(len(samples)) * statistic)


def _check(n: int, b: int, m: int) -> None:
    if not (0 <= b < n and 1 <= m <= n // 2):
        raise MisuseError(
            f"No group has {n} members, {b} of them attackers, and {m} audits a step: "
            "at least one member is honest, and an audit takes two members."
        )


@functools.lru_cache(maxsize=4096)
def _moves(state: _State, m: int, idle_validators: bool) -> tuple[tuple[_State, float], ...]:
    """The states after one draw, with their probabilities."""
    moves: defaultdict[_State, float] = defaultdict(float)
    for validators, caught, probability in _draws(state, m):
        sizes = [sum(kind) for kind in state]
        sizes[1] -= caught
        idle = validators if idle_validators else (0,) * len(state)
        kinds = [(size - some, some) for size, some in zip(sizes, idle, strict=True)]
        leaving = [(caught, 0), *kinds[2:]][: len(state) - 2]
        moves[kinds[0], kinds[1], *leaving] += probability
    return tuple(moves.items())


def _draws(state: _State, m: int) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """Every way a draw can end: how many of each kind validate, how many attackers are newly caught, probability."""
    flat = tuple(itertools.chain.from_iterable(state))
    for chosen, ways in _choices(flat, m):
        share = ways / math.comb(sum(flat), m)
        validators = tuple(active + idle for active, idle in zip(chosen[::2], chosen[1::2], strict=True))
        pool = sum(flat[::2]) - sum(chosen[::2])
        # In a tiny group there may be fewer targets than validators: only so many validators have one.
        for judges, first in _hypergeometric(m, validators[0], min(m, pool)):
            for caught, second in _hypergeometric(pool, flat[2] - chosen[2], judges):
                yield validators, caught, share * first * second


def _choices(counts: tuple[int, ...], number: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every way to take `number` things of several kinds: how many of each, and how many choices of things that is."""
    if not counts:
        if number == 0:
            yield (), 1
        return
    for some in range(min(counts[0], number) + 1):
        for others, ways in _choices(counts[1:], number - some):
            yield (some, *others), math.comb(counts[0], some) * ways


def _hypergeometric(total: int, marked: int, drawn: int) -> Iterator[tuple[int, float]]:
    """How many of `drawn` things out of `total` are among the `marked` ones, with probabilities."""
    for hits in range(max(0, drawn - (total - marked)), min(drawn, marked) + 1):
        yield hits, math.comb(marked, hits) * math.comb(total - marked, drawn - hits) / math.comb(total, drawn)


def _any_of(p: float, draws: int, identities: int) -> float:
    if not 0 <= p <= 1 or identities < 0:
        raise MisuseError(f"There is no event of probability {p}, or no group of {identities} identities.")
    return 1.0 if p == 1 else -math.expm1(draws * math.log1p(-p))


def _kolmogorov_tail(distance: float) -> float:
    """P(K > distance) of Kolmogorov's law: 2 Σ (-1)^(j-1) exp(-2 j² distance²), which is 1 to 12 digits below 0.2."""
    if distance < 0.2:
        return 1.0
    terms = (2 * (-1) ** (j - 1) * math.exp(-2 * (j * distance) ** 2) for j in range(1, 50))
    return min(1.0, max(0.0, math.fsum(terms)))
