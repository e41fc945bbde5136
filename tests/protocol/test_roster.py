"""Membership as a function of headers: who stays, who comes, who drops out."""

from __future__ import annotations

import msgspec
import pytest

from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import bitmap_of
from crowdsurf.protocol.roster import Member, Roster, admitted, founding_roster, next_roster, quorum_of
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import FakeSigner

NEWCOMERS: tuple[bytes, ...] = tuple(sorted(FakeSigner(number).peer_id for number in range(50, 60)))
STEP = CompleteStep(4)
DUTIES = (0, 1, 2, 3)
PATIENCE = 2


def follow(roster: Roster, **changes: object) -> Roster:
    header = msgspec.structs.replace(STEP.header, **changes)
    return next_roster(roster, header, DUTIES, PATIENCE)


def missed(roster: Roster) -> list[int]:
    return [member.missed for member in roster.members]


def without(values: tuple[bytes, ...], index: int) -> tuple[bytes, ...]:
    return (*values[:index], b"", *values[index + 1 :])


@pytest.mark.parametrize(
    ("size", "majority", "two_thirds"),
    [(1, 1, 1), (2, 2, 2), (3, 2, 3), (4, 3, 3), (5, 3, 4), (6, 4, 5), (7, 4, 5), (16, 9, 11), (256, 129, 171)],
)
def test_a_quorum_is_more_than_half_or_more_than_two_thirds(size: int, majority: int, two_thirds: int) -> None:
    assert quorum_of(size, "majority") == majority
    assert quorum_of(size, "two_thirds") == two_thirds
    assert 2 * majority > size
    assert 3 * two_thirds > 2 * size


def test_founders_are_sorted_whatever_order_the_manifest_gives_them() -> None:
    peers = STEP.peers
    assert founding_roster(tuple(reversed(peers))) == founding_roster(peers) == STEP.head.roster
    assert STEP.head.roster.indexes[peers[2]] == 2
    assert len(STEP.head.roster) == 4


def test_whoever_did_everything_has_missed_nothing() -> None:
    behind = Roster(tuple(Member(member.peer, 0, 2) for member in STEP.head.roster.members))
    assert missed(follow(behind)) == [0, 0, 0, 0]


def test_not_contributing_not_revealing_and_void_parts_are_missed_steps() -> None:
    roster = STEP.head.roster
    assert missed(follow(roster, contributors=bitmap_of([0, 1, 3], 4))) == [0, 0, 1, 0]
    assert missed(follow(roster, nonces=without(STEP.header.nonces, 1))) == [0, 1, 0, 0]
    assert missed(follow(roster, parts=without(STEP.header.parts, 3))) == [0, 0, 0, 1]


def test_a_member_drops_out_after_too_many_missed_steps_in_a_row() -> None:
    roster = STEP.head.roster
    for step in range(PATIENCE):
        roster = follow(roster, contributors=bitmap_of([0, 1, 3], 4))
        assert missed(roster) == [0, 0, step + 1, 0]
    assert STEP.peers[2] not in follow(roster, contributors=bitmap_of([0, 1, 3], 4)).indexes
    assert missed(follow(roster)) == [0, 0, 0, 0]


def test_a_step_that_fails_for_everybody_leaves_somebody() -> None:
    """Every part void for ever: nobody's fault, and a roster without members could never go on."""
    roster = STEP.head.roster
    for _ in range(PATIENCE + 3):
        roster = follow(roster, parts=(b"", b"", b"", b""))
    assert roster.peers == STEP.peers
    assert missed(follow(roster, parts=(*STEP.header.parts[:1], b"", b"", b""))) == [0]


def test_the_last_one_present_may_leave_without_emptying_the_roster() -> None:
    worn = Roster(tuple(Member(peer, 0, PATIENCE if index else 0) for index, peer in enumerate(STEP.peers)))
    left = follow(worn, parts=(STEP.header.parts[0], b"", b"", b""), left=(STEP.peers[0],))
    assert left.peers == STEP.peers[1:]


def test_leaving_and_joining_take_effect_at_the_next_step() -> None:
    roster = follow(STEP.head.roster, left=(STEP.peers[1],), joined=(NEWCOMERS[0],))
    assert set(roster.peers) == {*STEP.peers, NEWCOMERS[0]} - {STEP.peers[1]}
    assert list(roster.peers) == sorted(roster.peers)
    assert roster.members[roster.peers.index(PeerId(NEWCOMERS[0]))] == Member(NEWCOMERS[0], STEP.header.step + 1, 0)


def test_the_digest_of_a_roster_tells_rosters_apart() -> None:
    roster = STEP.head.roster
    digests = {roster.digest, follow(roster, left=(STEP.peers[1],)).digest, follow(roster, parts=(b"",) * 4).digest}
    assert len(digests) == 3


def test_admission_needs_more_than_half_of_the_commits() -> None:
    first, second, third = NEWCOMERS[:3]
    named = [(first, second), (first,), (first, second), (third,)]
    assert admitted(named, {first, second, third}, 10) == (first,)
    assert admitted(named, {second, third}, 10) == ()
    assert admitted([], {first}, 10) == ()


def test_admission_counts_a_commit_once_and_stops_when_there_is_no_room() -> None:
    first, second = NEWCOMERS[:2]
    assert admitted([(first, first, first), (), ()], {first}, 10) == ()
    assert admitted([(second, first)] * 3, {first, second}, 1) == (first,)
    assert admitted([(second, first)] * 3, {first, second}, -5) == ()
