"""Duties: all parts covered exactly, only contributors aggregate, present members propose first."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.assignment import (
    ELEMENT_BYTES,
    aggregation_seed,
    aggregators,
    part_bytes,
    part_ranges,
    proposers,
    work_seed,
)
from crowdsurf.protocol.roster import Member, Roster
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import FakeSigner, name


@given(st.integers(1, 10**9), st.integers(1, 256))
def test_parts_cover_the_vector_exactly(elements: int, parts: int) -> None:
    ranges = part_ranges(elements, parts)
    assert len(ranges) == parts
    assert (ranges[0][0], ranges[-1][1]) == (0, elements)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= 1
    assert [part_bytes(elements, parts, part) for part in range(parts)] == [ELEMENT_BYTES * n for n in lengths]


@given(st.binary(min_size=32, max_size=32), st.sets(st.integers(0, 40), min_size=1), st.integers(41, 64))
def test_only_contributors_aggregate_and_all_of_them_alike(beacon: bytes, members: set[int], parts: int) -> None:
    duties = aggregators(beacon, tuple(sorted(members)), parts)
    assert len(duties) == parts
    counts = Counter(duties)
    assert set(counts) == members
    assert max(counts.values()) - min(counts.values()) <= 1


def test_aggregators_change_with_the_beacon_and_with_who_is_there() -> None:
    everyone = tuple(range(8))
    draws = {aggregators(name("beacon", draw), everyone, 8) for draw in range(50)}
    assert len(draws) > 40
    assert 3 not in aggregators(name("beacon", 0), (0, 1, 2, 4), 8)


def test_members_known_to_be_missing_propose_last() -> None:
    peers = sorted(FakeSigner(number).peer_id for number in range(8))
    roster = Roster(tuple(Member(peer, 0, 1 if index in (2, 5) else 0) for index, peer in enumerate(peers)))
    for draw in range(20):
        order = proposers(name("beacon", draw), roster)
        assert sorted(order) == list(range(8))
        assert set(order[-2:]) == {2, 5}
    assert len({tuple(proposers(name("beacon", draw), roster)[:6]) for draw in range(20)}) > 15


def test_everyone_gets_a_seed_of_its_own_in_every_step() -> None:
    step = CompleteStep()
    seeds = {work_seed(name("beacon", draw), peer) for draw in range(3) for peer in step.peers}
    assert len(seeds) == 12


def test_the_chance_of_a_rule_belongs_to_one_part_of_one_cut() -> None:
    seeds = {aggregation_seed(bytes([cut]) * 32, part) for cut in range(3) for part in (0, 1, 255, 256)}
    assert len(seeds) == 12
    assert all(len(seed) == 32 for seed in seeds)
