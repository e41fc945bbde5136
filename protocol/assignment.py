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


def proposers(previous_beacon: bytes, roster: Roster) -> list[int]:
    """Member indexes in the order they propose: view v belongs to entry v modulo the roster's size.

    Members that did their part in the last step come first (in random order), so a member known to be missing
    costs a view only when everyone before it failed.
    """
    order = beacon.shuffle(previous_beacon, "proposers", len(roster))
    return sorted(order, key=lambda index: roster.members[index].missed > 0)


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


def validators_of(members: int, rate: float) -> int:
    """How many members validate in a step: the share `rate`, one at least, half of them at most; none at rate 0."""
    if not rate:
        return 0
    return min(max(1, round(rate * members)), members // 2)


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
