"""The beacon: draws are uniform, independent of each other, and nobody's nonce is without effect."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.beacon import derive, first_beacon, next_beacon, nonce_digest, shuffle
from crowdsurf.protocol.ids import digest
from tests.protocol.swarm import name


@given(st.binary(max_size=40), st.integers(0, 256))
def test_a_shuffle_is_a_permutation(beacon: bytes, count: int) -> None:
    assert sorted(shuffle(beacon, "test", count)) == list(range(count))


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_every_order_of_four_is_equally_likely() -> None:
    draws = Counter(tuple(shuffle(name("beacon", draw), "test", 4)) for draw in range(6000))
    counts = [draws[order] for order in itertools.permutations(range(4))]
    # 23 degrees of freedom: a fair shuffle stays below 49.7 in 99.9 % of cases, and these draws are fixed.
    assert chi_square(counts) < 49.7


@pytest.mark.parametrize("count", [5, 7, 100])
def test_the_first_of_a_shuffle_is_uniform(count: int) -> None:
    draws = Counter(shuffle(name("beacon", draw), "test", count)[0] for draw in range(count * 100))
    # Mean count - 1, standard deviation sqrt(2 (count - 1)); four of them.
    assert chi_square([draws[value] for value in range(count)]) < count - 1 + 4 * (2 * (count - 1)) ** 0.5


def test_labels_subjects_and_beacons_draw_independently() -> None:
    beacon = name("beacon")
    draws = [derive(beacon, "work", b"a"), derive(beacon, "work", b"b"), derive(beacon, "audit", b"a")]
    assert len({*draws, derive(name("other"), "work", b"a")}) == 4
    orders = [shuffle(beacon, "proposers", 20), shuffle(beacon, "aggregators", 20), shuffle(name("other"), "x", 20)]
    assert len({tuple(order) for order in orders}) == 3


def test_every_nonce_its_place_and_the_past_change_the_beacon() -> None:
    a, b = name("nonce a"), name("nonce b")
    beacons = {
        next_beacon(name("past"), (a, b)),
        next_beacon(name("past"), (b, a)),
        next_beacon(name("past"), (a, b"")),
        next_beacon(name("past"), (b"", a)),
        next_beacon(name("past"), (a,)),
        next_beacon(name("other past"), (a, b)),
        next_beacon(name("past"), ()),
    }
    assert len(beacons) == 7


def test_the_first_beacon_and_nonce_digests_have_contexts_of_their_own() -> None:
    value = name("value")
    assert len({first_beacon(value), nonce_digest(value), digest("payload", value), digest("blob", value)}) == 4
