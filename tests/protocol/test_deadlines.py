"""Adaptive deadlines: they follow the swarm, not its stragglers, and stay within the manifest's bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol import assignment, limits
from crowdsurf.protocol.accepted_cut import Waits, lay_out
from crowdsurf.protocol.deadlines import Estimator, Patience, Timing, timing_of
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.step import StepMachine
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import ELEMENTS, FakeSigner, name


def estimator(*arrivals: float) -> Estimator:
    result = Estimator(0.5, 60.0, 8.0)
    for seconds in arrivals:
        result.observe(seconds)
    return result


def test_without_experience_the_longest_wait_holds() -> None:
    assert estimator().bound_seconds() == 60.0


def test_median_plus_deviations() -> None:
    assert estimator(1.0, 2.0, 3.0, 4.0, 5.0).bound_seconds() == 3.0 + 8.0 * 1.0


def test_liars_that_take_no_time_and_are_half_of_the_others_hurry_nobody() -> None:
    assert estimator(0.0, 0.0, 3.0, 7.0).bound_seconds() >= 6.0


def test_a_minority_of_stragglers_teaches_nobody_patience() -> None:
    honest = [1.0, 1.1, 1.2, 1.1, 1.0]
    assert estimator(*honest, *[1e9] * 4).bound_seconds() <= 1.2 + 8.0 * 0.2


def test_old_arrivals_are_forgotten() -> None:
    assert estimator(*[30.0] * 500, *[1.0] * 128).bound_seconds() == 2.0


@given(st.lists(st.floats(0, 1e12), max_size=200))
def test_the_bounds_hold_whatever_was_seen(arrivals: list[float]) -> None:
    assert 0.5 <= estimator(*arrivals).bound_seconds() <= 60.0


@given(st.floats(0, 1e6), st.floats(0.01, 1e3), st.floats(0.01, 1e3))
def test_the_waits_of_a_cut_come_one_after_the_other(now: float, transfer: float, delivery: float) -> None:
    waits = lay_out(now, Waits(transfer, transfer, delivery))
    assert now == waits.accepted < waits.pull < waits.parts < waits.aggregates < waits.reveals < waits.outcome
    assert waits.outcome <= now + transfer + max(transfer, delivery) + 9 * delivery + 1e-3
    assert waits.projections == waits.reveals
    checked = lay_out(now, Waits(transfer, transfer, delivery), is_checked=True)
    assert checked.reveals == waits.reveals < checked.projections < checked.outcome
    assert checked.outcome <= now + 2 * transfer + max(transfer, delivery) + 12 * delivery + 1e-3


def test_a_proposer_is_given_as_long_again_and_a_view() -> None:
    """Whoever has all at once waits little for a header, whoever waited for the last thing as long as its proposer
    may, and in a later view no less than that view takes."""
    waits = lay_out(100.0, Waits(5.0, 5.0, 1.0))
    assert waits.outcome == 119.0
    assert waits.give_up_at(100.5, 2.0) == 103.0
    assert waits.give_up_at(103.0, 2.0) == 108.0
    assert waits.give_up_at(114.0, 2.0) == waits.outcome
    assert waits.give_up_at(114.0, 8.0) == 122.0


def test_no_honest_member_waits_for_parts_until_others_have_given_its_aggregate_up() -> None:
    """However different the waits that they have learned: the aggregate has as long again to arrive."""
    named = [0.5, 0.5, 2.0, 7.0, 9.0]
    for own in named:
        timing = waiting_for_transfers(own / 2)
        parts, aggregate = timing.transfers(named, 3)
        assert parts == min(own, 2.0)
        assert aggregate == max(own, 2.0)
        assert timing.transfer_to_name == {0.5: 0.5, 2.0: 2.0, 7.0: 8.0, 9.0: 16.0}[own]
    assert timing.transfers([0.0, 0.0], 3) == (0.5, 9.0)
    assert timing.transfers([1e9], 3) == (9.0, 60.0)


def waiting_for_transfers(*seen: float) -> Timing:
    timing = Timing(Estimator(0.5, 60.0, 8.0), Estimator(0.5, 60.0, 8.0), 1.0)
    for seconds in seen:
        timing.transfer.observe(seconds)
    return timing


@given(st.lists(st.floats(0.5, 60.0), min_size=1, max_size=5), st.lists(st.floats(0, 1e9), max_size=4))
def test_no_lies_make_the_common_wait_shorter_than_what_somebody_honest_has_named(
    honest: list[float], lies: list[float]
) -> None:
    """Four liars of nine, in a cut of theirs that lets in as few honest members as it may."""
    parts, _ = waiting_for_transfers(60.0).transfers(honest + lies, len(lies) + 1)
    assert parts >= min(honest)


FIRST, SECOND = (FakeSigner(number).peer_id for number in range(2))


def steps_spared(patience: Patience, peer: PeerId) -> int:
    """In how many steps it is not waited for from now on."""
    for steps in range(10_000):
        if peer not in patience.spent():
            return steps
        patience.next_step({FIRST, SECOND})
    raise AssertionError("for ever")


def be_in_time(patience: Patience, steps: int) -> None:
    for _ in range(steps):
        patience.came(FIRST)
        patience.next_step({FIRST, SECOND})


def test_patience_ends_after_two_waits_in_vain_and_comes_back() -> None:
    patience = Patience()
    patience.waited_in_vain({FIRST, SECOND}, 5)
    assert patience.spent() == set()
    patience.waited_in_vain({FIRST}, 5)
    assert patience.spent() == {FIRST}
    patience.waited_in_vain({FIRST}, 5)
    patience.next_step({FIRST, SECOND})
    be_in_time(patience, 7)
    assert patience.spent() == {FIRST}, "sixteen steps, or eight in time"
    be_in_time(patience, 1)
    assert patience.spent() == set()
    patience.waited_in_vain({FIRST}, 5)
    assert patience.spent() == set(), "forgotten altogether"


def test_to_be_in_time_in_every_other_step_does_not_bring_patience_back() -> None:
    patience = Patience()
    for _ in range(2):
        be_in_time(patience, 3)
        patience.waited_in_vain({FIRST}, 5)
        patience.next_step({FIRST, SECOND})
    assert patience.spent() == {FIRST}


def test_if_half_of_a_group_is_late_the_network_failed_and_everybody_is_waited_for() -> None:
    patience = Patience()
    for _ in range(5):
        patience.waited_in_vain({FIRST, SECOND}, 4)
    assert patience.spent() == set()


def test_whoever_is_late_again_is_spared_for_twice_as_long() -> None:
    patience = Patience()
    patience.waited_in_vain({FIRST}, 5)
    spared = []
    for _ in range(10):
        patience.waited_in_vain({FIRST}, 5)
        spared.append(steps_spared(patience, FIRST))
    assert spared == [8, 16, 32, 64, 128, 256, 512, 512, 512, 512]


def test_who_drops_out_is_remembered_and_its_time_stands_still() -> None:
    patience = Patience()
    for _ in range(2):
        patience.waited_in_vain({FIRST, SECOND}, 5)
    for _ in range(100):
        patience.next_step({SECOND})
    assert patience.spent() == {FIRST}
    assert steps_spared(patience, FIRST) == 8


def test_not_everybody_that_was_ever_a_member_is_remembered() -> None:
    patience, count = Patience(), limits.ROSTER_PEERS_MAX + 5
    strangers = [PeerId(number.to_bytes(34, "big")) for number in range(count)]
    for stranger in strangers:
        patience.waited_in_vain({stranger}, 5)
        patience.waited_in_vain({stranger}, 5)
    patience.next_step({FIRST, SECOND})
    assert patience.spent() == set(strangers[5:])


def test_aggregates_that_come_late_lengthen_no_later_wait() -> None:
    """Their aggregators may have waited for a part that somebody keeps back, as long as a part may take; were that
    learned from, they would wait longer in the next step."""
    step = CompleteStep(4)
    timing = timing_of(step.manifest)
    order = assignment.proposers(step.head.beacon, step.head.roster, 0)
    machine = StepMachine(step.facts, step.signers[order[3]], step.run_id, ELEMENTS, timing, now=0.0)
    machine.start([], [], None, 0.0)
    for opened in step.transcript.of_kind(Kind.COMMIT):
        machine.on_message(opened, 0.0)
    machine.on_message(step.say(order[0], Kind.PROPOSAL, step.cut), 0.0)
    assert machine.accepted is not None
    for item in machine.accepted.inputs:
        machine.on_blob(item.digest, 1.0)
    usual = timing.transfer.bound_seconds()
    assert usual == 2.0
    for part in range(4):
        for _ in range(20):
            machine.on_blob(name("aggregate", part), 10.0)
    assert timing.transfer.bound_seconds() == usual
