"""Membership as a function of headers: who stays, who comes, who drops out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol import limits
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Ban, Header, Reason, bitmap_of
from crowdsurf.protocol.roster import (
    REST_DOUBLINGS_MAX,
    REST_FORGOTTEN_STEPS,
    REST_STEPS,
    STRIKE_FADES_STEPS,
    STRIKES_MAX,
    Member,
    Resting,
    Roster,
    admitted,
    blamed,
    enough_for_an_honest_one,
    enough_to_be_named,
    founding_roster,
    next_roster,
    quorum_of,
    withheld,
)
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import FakeSigner, name

NEWCOMERS: tuple[bytes, ...] = tuple(sorted(FakeSigner(number).peer_id for number in range(50, 60)))
STEP = CompleteStep(4)
SIXTEEN = CompleteStep(16, audit=AuditSection(rate=0.0625))
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
    assert missed(follow(roster, parts=without(STEP.header.parts, 3))) == [0, 0, 0, 1]
    two_silent = (*STEP.header.nonces[:2], b"", b"")
    assert missed(follow(roster, nonces=two_silent)) == [0, 0, 1, 1]


def test_whom_contributors_have_heard_never_misses_so_many_steps_that_it_drops_out() -> None:
    """Else liars that propose could make everybody honest drop out, and be a majority of those that are left."""
    roster, there = STEP.head.roster, bitmap_of([0, 1, 3], 4)
    for expected in (1, 2, 2, 2):
        roster = follow(roster, contributors=there, heard=bitmap_of([2], 4))
        assert missed(roster) == [0, 0, expected, 0]
    assert len(follow(roster, contributors=there)) == 3
    roster = STEP.head.roster
    assert missed(follow(roster, parts=without(STEP.header.parts, 3), heard=bitmap_of([3], 4))) == [0, 0, 0, 1]
    void = follow(roster, contributors=there, parts=(b"",) * 4, heard=bitmap_of([2], 4))
    assert missed(void) == [1, 1, 1, 1]  # then all are alike, or who is left out would be the only one left


@pytest.mark.parametrize(("size", "enough"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (16, 15), (17, 17)])
def test_enough_to_be_named_are_as_many_as_liars_cannot_outweigh(size: int, enough: int) -> None:
    assert enough_to_be_named(size) == enough
    liars = size - quorum_of(size, "majority")
    assert enough - liars >= enough_for_an_honest_one(size, quorum_of(size, "majority"))


def test_a_void_part_costs_nothing_where_few_have_contributed() -> None:
    """Liars that propose could name themselves and few others, and none of the aggregates of these when they open their
    nonces: the others would rest, two by two."""
    roster = STEP.head.roster
    lame = without(STEP.header.parts, 3)
    three = follow(roster, contributors=bitmap_of([0, 1, 3], 4), parts=lame)
    assert [member.strikes for member in three.members] == [0, 0, 0, 1]
    two = follow(roster, contributors=bitmap_of([0, 3], 4), parts=lame)
    assert [member.strikes for member in two.members] == [0, 0, 0, 0]
    assert missed(two) == [0, 1, 1, 0]


def test_a_void_part_costs_nothing_in_a_step_that_bans_somebody() -> None:
    """It may be banned for two cuts, and an honest member have acted on the other one."""
    roster, ban = STEP.head.roster, Ban(STEP.peers[0], Reason.EQUIVOCATION, 0, name("case"))
    after = follow(roster, parts=without(STEP.header.parts, 3), bans=(ban,))
    assert [member.strikes for member in after.members] == [0, 0, 0]


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


def silent(*indexes: int) -> dict[str, object]:
    """What a header says when these members do not open their nonce."""
    nonces = tuple(b"" if index in indexes else nonce for index, nonce in enumerate(STEP.header.nonces))
    return {"nonces": nonces, "parts": (b"",) * 4}


def header_with(**changes: object) -> Header:
    return msgspec.structs.replace(STEP.header, **changes)


def ban(peer: bytes) -> Ban:
    return Ban(peer, 1, 0, bytes(32))


def test_who_is_in_the_step_and_opens_nothing_withholds() -> None:
    assert withheld(STEP.header) == frozenset()
    assert withheld(header_with(**silent(1, 3))) == {1, 3}
    absent = header_with(contributors=bitmap_of([0, 2, 3], 4), **silent(1, 3))
    assert withheld(absent) == {3}


def test_who_withholds_its_nonce_is_blamed_if_more_than_half_of_the_contributors_opened_theirs() -> None:
    """In a cut of a bare quorum, too: whoever proposes it would have its friends withhold what they like."""
    assert blamed(header_with(**silent(2))) == {2}
    assert blamed(header_with(**silent(2, 3))) == frozenset()
    few = header_with(contributors=bitmap_of([0, 1, 2], 4), **silent(2))
    assert blamed(few) == {2}
    for size in range(2, 17):
        for contributors in range(quorum_of(size, "majority"), size + 1):
            bits = bitmap_of(range(contributors), size)
            nonces = (b"", *(bytes(32) for _ in range(contributors - 1)), *(b"" for _ in range(size - contributors)))
            assert blamed(header_with(contributors=bits, nonces=nonces)) == ({0} if contributors > 2 else set())


def test_who_is_blamed_rests_at_once_and_nobody_gets_strikes_for_parts_of_a_void_step() -> None:
    after = follow(STEP.head.roster, **silent(2))
    assert after.peers == (*STEP.peers[:2], STEP.peers[3])
    assert after.resting == (Resting(STEP.peers[2], 1 + REST_STEPS),)
    assert [(member.missed, member.strikes) for member in after.members] == [(0, 0)] * 3


def test_who_misses_a_quorum_of_nonces_stays_and_has_missed_a_step() -> None:
    after = follow(STEP.head.roster, **silent(2, 3))
    assert after.peers == STEP.peers
    assert after.resting == ()
    assert [(member.missed, member.strikes) for member in after.members] == [(0, 0), (0, 0), (1, 0), (1, 0)]


def strikes(roster: Roster) -> list[int]:
    return [member.strikes for member in roster.members]


def test_strikes_rise_with_void_parts_and_lead_to_a_rest() -> None:
    roster = STEP.head.roster
    for count in range(1, STRIKES_MAX):
        roster = follow(roster, parts=without(STEP.header.parts, 3))
        assert strikes(roster) == [0, 0, 0, count]
        roster = follow(roster)
        assert missed(roster) == [0, 0, 0, 0]
        assert strikes(roster) == [0, 0, 0, count]
    roster = follow(roster, parts=without(STEP.header.parts, 3))
    assert roster.peers == STEP.peers[:3]
    assert [rest.peer for rest in roster.resting] == [STEP.peers[3]]


@pytest.mark.parametrize(("times", "credit"), [(0, STRIKES_MAX), (1, STRIKES_MAX // 2), (2, 1), (9, 1)])
def test_whoever_rested_lately_is_given_less_credit(times: int, credit: int) -> None:
    peer = STEP.peers[3]
    rests = (Resting(peer, 0, times),) if times else ()
    for count in range(1, credit + 1):
        worn = Roster((*STEP.head.roster.members[:3], Member(peer, 0, 0, count - 1)), resting=rests)
        after = follow(worn, parts=without(STEP.header.parts, 3))
        assert (peer in after.peers) == (count < credit)


def test_a_validator_that_found_nothing_has_done_its_part_and_gets_a_strike() -> None:
    after = follow(STEP.head.roster, excused=bitmap_of([1], 4))
    assert (strikes(after), missed(after)) == ([0, 1, 0, 0], [0, 0, 0, 0])
    tired = Roster(tuple(Member(peer, 0, 0, STRIKES_MAX - 1) for peer in STEP.peers))
    assert follow(tired, excused=bitmap_of([1], 4)).resting == (Resting(STEP.peers[1], 1 + REST_STEPS),)


def test_one_strike_of_everybody_fades_now_and_then() -> None:
    worn = Roster(tuple(Member(peer, 0, 0, index) for index, peer in enumerate(STEP.peers)))
    assert strikes(follow(worn, step=STRIKE_FADES_STEPS - 2)) == [0, 1, 2, 3]
    assert strikes(follow(worn, step=STRIKE_FADES_STEPS - 1)) == [0, 0, 1, 2]
    assert strikes(follow(worn, step=2 * STRIKE_FADES_STEPS - 1)) == [0, 0, 1, 2]
    assert strikes(follow(worn, step=STRIKE_FADES_STEPS - 1, parts=without(STEP.header.parts, 3))) == [0, 0, 1, 3]


def test_nobody_gets_a_strike_when_half_of_the_aggregators_fail() -> None:
    """Then the network failed. Otherwise a bad hour could make everybody rest but one that has just come."""
    one, two = STEP.header.parts[:3], STEP.header.parts[:2]
    assert strikes(follow(STEP.head.roster, parts=(*one, b""))) == [0, 0, 0, 1]
    assert strikes(follow(STEP.head.roster, parts=(*two, b"", b""))) == [0, 0, 0, 0]
    roster = STEP.head.roster
    for _ in range(STRIKES_MAX + 1):
        roster = follow(roster, parts=(b"",) * 4)
    roster = follow(roster, joined=(NEWCOMERS[0],))
    assert set(roster.peers) == {*STEP.peers, NEWCOMERS[0]}


@given(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)), st.integers(0, STRIKES_MAX - 1), st.booleans())
def test_objections_cost_an_aggregator_nothing_whoever_and_how_many_are_objected_to(
    objected: set[int], failed: set[int], strikes_before: int, is_tired: bool
) -> None:
    """Liars may object to everybody in every step: the roster that follows is that of a step without objections. So
    false objections send nobody to rest, and take their authors' places."""
    members = tuple(Member(member.peer, 0, 0, strikes_before) for member in SIXTEEN.head.roster.members)
    rests = tuple(Resting(member.peer, 0, 2) for member in members) if is_tired else ()
    roster, duties = Roster(members, resting=rests), tuple(SIXTEEN.aggregator(part) for part in range(16))

    def after(void: set[int], shown: set[int]) -> Roster:
        parts = tuple(b"" if part in void else name for part, name in enumerate(SIXTEEN.header.parts))
        vouched = tuple(name if part in shown else b"" for part, name in enumerate(SIXTEEN.header.projections))
        header = msgspec.structs.replace(SIXTEEN.header, parts=parts, projections=vouched)
        return next_roster(roster, header, duties, PATIENCE)

    spared, others = objected - failed, set(range(16)) - failed
    assert after(failed | spared, others) == after(failed, others)
    assert not failed or 2 * len(failed) >= 16 or after(failed, others) != after(set(), set(range(16)))


def test_every_further_rest_is_twice_as_long_up_to_a_bound_and_a_late_one_is_a_first_one() -> None:
    peer, step, length = STEP.peers[2], 0, REST_STEPS
    roster = STEP.head.roster
    for times in range(1, REST_DOUBLINGS_MAX + 4):
        after = follow(roster, step=step, **silent(2))
        assert after.resting == (Resting(peer, step + 1 + length, times),)
        # It comes back as soon as it may, and fails again.
        step, length = after.resting[0].until, min(2 * length, REST_STEPS << REST_DOUBLINGS_MAX)
        roster = Roster(STEP.head.roster.members, resting=after.resting)
    until = roster.resting[0].until
    remembered = follow(roster, step=until + REST_FORGOTTEN_STEPS - 2, **silent(2))
    assert remembered.resting[0].times == roster.resting[0].times + 1
    forgotten = follow(roster, step=until + REST_FORGOTTEN_STEPS - 1, **silent(2))
    assert forgotten.resting == (Resting(peer, until + REST_FORGOTTEN_STEPS + REST_STEPS),)
    assert follow(roster, step=until + REST_FORGOTTEN_STEPS).resting == ()


def test_kept_out_are_the_banned_for_ever_and_the_resting_for_their_time() -> None:
    banned, resting = NEWCOMERS[0], NEWCOMERS[1]
    roster = Roster(STEP.head.roster.members, (banned,), (Resting(resting, 9),))
    assert roster.kept_out(8) == {banned, resting}
    assert roster.kept_out(9) == {banned}
    assert roster.kept_out(10**6) == {banned}
    assert roster.outlaws == {banned}
    assert roster.rests == {resting}


def test_the_banned_are_out_and_remembered_in_order_up_to_a_bound() -> None:
    roster = follow(STEP.head.roster, bans=(ban(STEP.peers[0]), ban(STEP.peers[2])))
    assert roster.peers == (STEP.peers[1], STEP.peers[3])
    assert roster.banned == (STEP.peers[0], STEP.peers[2])
    many = tuple(bytes([1]) * 6 + number.to_bytes(32, "big") for number in range(limits.BANNED_MAX))
    full = follow(Roster(STEP.head.roster.members, many), bans=(ban(STEP.peers[1]),))
    assert full.banned == (*many[1:], STEP.peers[1])


def test_who_is_banned_does_not_rest_besides() -> None:
    after = follow(STEP.head.roster, bans=(ban(STEP.peers[2]),), **silent(2))
    assert (after.banned, after.resting) == ((STEP.peers[2],), ())


def test_a_ban_leaves_the_banned_no_way_to_be_the_last_one() -> None:
    """Everybody else drops out in the same step; they stay, and the banned one does not."""
    worn = Roster(tuple(Member(peer, 0, PATIENCE) for peer in STEP.peers))
    after = follow(worn, parts=(b"",) * 4, bans=(ban(STEP.peers[1]),))
    assert set(after.peers) == set(STEP.peers) - {STEP.peers[1]}


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
    rosters = [
        roster,
        follow(roster, left=(STEP.peers[1],)),
        follow(roster, parts=(b"",) * 4),
        follow(roster, parts=without(STEP.header.parts, 3)),
        follow(roster, bans=(ban(STEP.peers[1]),)),
        follow(roster, **silent(1)),
    ]
    assert len({one.digest for one in rosters}) == 6


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
