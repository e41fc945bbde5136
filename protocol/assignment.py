"""Who does what in a step, drawn from the beacon of the step before.

The idea: assignments are functions of certified facts only (beacon, roster, the cut's contributors), so every
peer knows everyone's duties without a message. SPEC R-4.2 to R-4.6, R-4.37.
"""

from __future__ import annotations

import functools
import itertools

from crowdsurf.protocol import beacon
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.roster import Roster

ELEMENT_BYTES = 4
"""Parts travel as float32."""


NEWCOMER_STEPS = 16
"""So long after it has joined (again) a member proposes after all others: a proposer that fails costs everybody a view,
and whoever is slow, or was left out for a while, would be back in that place at once."""


def proposers(previous_beacon: bytes, roster: Roster, step: int) -> list[int]:
    """Member indexes in the order they propose in a step: view v belongs to entry v modulo the roster's size.

    Members that did their part in the last step come first, then newcomers, then those known to be missing (each in
    random order), so that these cost a view only when everyone before them failed.
    """

    def rank(index: int) -> tuple[bool, bool]:
        member = roster.members[index]
        return member.missed > 0, member.joined > 0 and step < member.joined + NEWCOMER_STEPS

    return sorted(beacon.shuffle(previous_beacon, "proposers", len(roster)), key=rank)


def work_seed(previous_beacon: bytes, peer: bytes) -> Digest:
    """The public 32-byte seed of a peer's work unit."""
    return beacon.derive(previous_beacon, "work", peer)


def part_ranges(elements: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous [start, stop) element ranges of `parts` parts that differ by at most one element."""
    bounds = [part * elements // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))


def part_bytes(elements: int, parts: int, part: int) -> int:
    """Bytes of one part of a vector of `elements` float32 cut into `parts`."""
    return ((part + 1) * elements // parts - part * elements // parts) * ELEMENT_BYTES


@functools.lru_cache(maxsize=256)
def aggregators(previous_beacon: bytes, contributors: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Member index that aggregates each part: contributors in random order, round robin.

    Parts are as many as roster members, because they are cut before anybody knows who will contribute; parts
    of members that are not in the cut go to those that are, so a known absence voids nothing.
    """
    order = beacon.shuffle(previous_beacon, "aggregators", len(contributors))
    return tuple(contributors[order[part % len(order)]] for part in range(parts))


def aggregation_seed(cut: bytes, part: int) -> Digest:
    """All the chance a rule may use for one part: 32 bytes from public data, so anybody can repeat the aggregation.

    It is no secret: who commits last, or proposes the cut, can compute it before deciding and try until it suits.
    """
    return digest("aggregation seed", cut + part.to_bytes(4, "big"))


def projection_seed(drawn_beacon: bytes, part: int) -> Digest:
    """What the directions of one part's projections are drawn from, once all nonces of the step are open."""
    return beacon.derive(drawn_beacon, "projection", part.to_bytes(4, "big"))


def validators_of(members: int, rate: float) -> int:
    """How many members validate in a step: the share `rate`, one at least, half of them at most; none at rate 0."""
    if not rate:
        return 0
    return min(max(1, round(rate * members)), members // 2)


def rate_of(validators: int, members: int) -> float:
    """The audit rate at which so many of a group validate. It is the largest that does with room to spare, so that they
    stay as many for as long as possible while the group shrinks."""
    return min(0.5, (validators + 0.4) / members) if validators else 0.0


OWED_VALIDATORS = 3
"""How many look at work whose author kept its nonce back. With a little less than half liars all three are in league
with it in one case of ten: keeping a nonce back is a worse way to dodge an audit than hoping not to be drawn."""


def several_each(drawn_beacon: bytes, pool: list[PeerId], groups: int, room: int) -> list[list[PeerId]]:
    """`OWED_VALIDATORS` distinct peers for each of so many groups, from the pool in random order, `room` in all."""
    order = [pool[index] for index in beacon.shuffle(drawn_beacon, "owed audits", len(pool))][: max(0, room)]
    return [order[OWED_VALIDATORS * index : OWED_VALIDATORS * (index + 1)] for index in range(groups)]


def audits(
    drawn_beacon: bytes, pool: list[PeerId], members: set[PeerId], idle: set[PeerId], count: int
) -> list[tuple[PeerId, PeerId]]:
    """Pairs (validator, target), all distinct, from the pool in random order: its first `count` members validate, the
    first of all others that have computed a gradient are validated. `idle` ones were validators themselves and have
    none."""
    order = [pool[index] for index in beacon.shuffle(drawn_beacon, "audits", len(pool))]
    validators = [peer for peer in order if peer in members][:count]
    targets = [peer for peer in order if peer not in validators and peer not in idle]
    return list(zip(validators, targets, strict=False))
