"""Duties: all parts covered exactly, only contributors aggregate, present members propose first."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.assignment import (
    ELEMENT_BYTES,
    NEWCOMER_STEPS,
    aggregation_seed,
    aggregators,
    audits,
    part_bytes,
    part_ranges,
    proposers,
    validators_of,
    work_seed,
)
from crowdsurf.protocol.ids import PeerId
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
        order = proposers(name("beacon", draw), roster, 0)
        assert sorted(order) == list(range(8))
        assert set(order[-2:]) == {2, 5}
    assert len({tuple(proposers(name("beacon", draw), roster, 0)[:6]) for draw in range(20)}) > 15


def test_everyone_gets_a_seed_of_its_own_in_every_step() -> None:
    step = CompleteStep()
    seeds = {work_seed(name("beacon", draw), peer) for draw in range(3) for peer in step.peers}
    assert len(seeds) == 12


PEERS = sorted(FakeSigner(number).peer_id for number in range(40))


subsets = st.sets(st.integers(0, 39))


@given(st.binary(min_size=32, max_size=32), st.integers(0, 40), subsets, subsets, st.integers(0, 20))
def test_validators_and_targets_are_all_distinct_and_idle_ones_are_no_targets(
    beacon: bytes, size: int, gone_indexes: set[int], idle_indexes: set[int], count: int
) -> None:
    pool, idle = PEERS[:size], {PEERS[index] for index in idle_indexes}
    members = set(PEERS) - {PEERS[index] for index in gone_indexes}
    drawn = audits(beacon, pool, members, idle, count)
    everyone = [peer for pair in drawn for peer in pair]
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(pool)
    assert {validator for validator, _ in drawn} <= members
    assert not {target for _, target in drawn} & idle
    # As many as asked for, unless there are too few to validate or to be validated.
    validators = min(count, len(set(pool) & members))
    assert len(drawn) <= validators
    assert len(drawn) >= min(validators, len(set(pool) - idle) - validators)


def test_everybody_validates_and_is_validated_equally_often() -> None:
    """Six peers, one validator, 6,000 draws: each pair 200 times, give or take five standard deviations."""
    pool, pairs = PEERS[:6], Counter[tuple[PeerId, PeerId]]()
    for draw in range(6000):
        pairs.update(audits(name("beacon", draw), pool, set(pool), set(), 1))
    assert len(pairs) == 30
    assert all(abs(count - 200) < 5 * 14 for count in pairs.values())


def test_audits_depend_on_the_beacon() -> None:
    pool = PEERS[:16]
    drawn = [tuple(audits(name("beacon", draw), pool, set(pool), set(), 1)) for draw in (*range(50), 0)]
    assert len(set(drawn)) > 40
    assert drawn[0] == drawn[-1]


def test_nobody_escapes_an_audit_by_leaving() -> None:
    """It is a target even in one third of the draws instead of one sixth: it is one as well where it would validate."""
    pool = PEERS[:6]
    drawn = [audits(name("beacon", draw), pool, set(pool[1:]), set(), 1) for draw in range(300)]
    targets = Counter(target for pairs in drawn for _, target in pairs)
    assert 60 < targets[pool[0]] < 140
    assert all(validator != pool[0] for pairs in drawn for validator, _ in pairs)


def test_half_of_the_members_validate_at_most_and_one_at_least() -> None:
    assert [validators_of(size, 0.0) for size in (1, 16, 256)] == [0, 0, 0]
    assert [validators_of(size, 0.0625) for size in (1, 2, 3, 7, 16, 40, 256)] == [0, 1, 1, 1, 1, 2, 16]
    assert [validators_of(size, 0.5) for size in (1, 2, 3, 7, 16)] == [0, 1, 1, 3, 8]
    assert all(validators_of(size, 0.5) <= size // 2 for size in range(1, 257))


def test_the_chance_of_a_rule_belongs_to_one_part_of_one_cut() -> None:
    seeds = {aggregation_seed(bytes([cut]) * 32, part) for cut in range(3) for part in (0, 1, 255, 256)}
    assert len(seeds) == 12
    assert all(len(seed) == 32 for seed in seeds)


def test_newcomers_propose_after_those_who_are_known() -> None:
    peers = sorted(FakeSigner(number).peer_id for number in range(6))
    joined, missed = [0, 0, 5, 5, 9, 0], [0, 0, 0, 1, 0, 2]
    roster = Roster(tuple(Member(p, first, count) for p, first, count in zip(peers, joined, missed, strict=True)))
    orders = {
        step: [proposers(name("beacon", draw), roster, step) for draw in range(40)]
        for step in (10, 5 + NEWCOMER_STEPS, 9 + NEWCOMER_STEPS)
    }
    assert all((set(o[:2]), set(o[2:4]), set(o[4:])) == ({0, 1}, {2, 4}, {3, 5}) for o in orders[10])
    assert all((set(o[:3]), o[3], set(o[4:])) == ({0, 1, 2}, 4, {3, 5}) for o in orders[5 + NEWCOMER_STEPS])
    assert all((set(o[:4]), set(o[4:])) == ({0, 1, 2, 4}, {3, 5}) for o in orders[9 + NEWCOMER_STEPS])
    assert (
        len({tuple(order) for order in orders[10]}) == 2 * 2
    )  # within each sort in drawn order; one of 3 and 5 is new
