"""Who does what in a step, drawn from the beacon of the step before.

The idea: assignments are functions of certified facts only (beacon, roster, the cut's contributors), so every
peer knows everyone's duties without a message. SPEC R-4.2 to R-4.6. Validators and targets will be drawn here too.
"""

from __future__ import annotations

import functools
import itertools

from crowdsurf.protocol import beacon
from crowdsurf.protocol.ids import Digest, digest
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
