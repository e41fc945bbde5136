"""Crash faults on the real rules, in virtual time: what the step machine must already survive."""

from __future__ import annotations

import pytest

from crowdsurf.protocol import effects, events
from tests.protocol.swarm import FakePeer, Swarm


def assert_sound(swarm: Swarm, steps: int = 10) -> None:
    assert swarm.violations == []
    alive = [peer for peer in swarm.list if peer.alive]
    assert all(peer.finished for peer in alive), [peer.node.chain.head.step for peer in alive]
    assert {peer.states[steps] for peer in alive} == {alive[0].states[steps]}


def kill_at_effect(swarm: Swarm, victim: FakePeer, count: int, noticed: bool) -> None:
    """SIGKILL in the middle of an effect list: the first `count` sends and journal writes happen, no more."""
    left = [count]

    def before(effect: effects.Effect) -> bool:
        if left[0] == 0:
            swarm.kill(victim, noticed)
            return False
        left[0] -= 1
        return True

    victim.before_effect = before


def test_four_peers_without_faults_end_alike_and_void_nothing() -> None:
    swarm = Swarm(4)
    swarm.start()
    assert swarm.run_to_end()
    assert_sound(swarm)
    stories = [story for peer in swarm.list for story in peer.stories]
    assert all(story.void_parts == 0 and story.view == 0 and len(story.contributors) == 4 for story in stories)


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 28, 31, 35])
def test_a_crash_anywhere_costs_one_step_at_most(count: int, victim: int, noticed: bool) -> None:
    swarm = Swarm(4, seed=count)
    kill_at_effect(swarm, swarm.list[victim], count, noticed)
    swarm.start()
    assert swarm.run_to_end(), f"stuck at {[peer.node.chain.head.step for peer in swarm.list]}"
    assert_sound(swarm)
    survivor = next(peer for peer in swarm.list if peer.alive)
    assert sum(1 for story in survivor.stories if story.void_parts) <= 1
    assert len(survivor.node.chain.head.roster) == 3


def test_a_bare_majority_goes_on_and_less_than_that_waits() -> None:
    swarm = Swarm(5)
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 2)
    swarm.kill(swarm.list[1])
    swarm.kill(swarm.list[2])
    assert swarm.run_to_end()
    assert_sound(swarm)

    stopped = Swarm(5)
    stopped.start(stopped.list[:2])
    assert not stopped.run_to_end(seconds_max=300)
    assert stopped.violations == []
    assert all(peer.node.chain.head.step == 0 for peer in stopped.list)


def test_a_straggler_delays_nobody_beyond_the_adaptive_deadline() -> None:
    swarm = Swarm(4, steps=40)
    slow = swarm.list[2]
    slow.work_seconds = lambda step: 0.2 if step < 5 else 1000.0
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 5)
    began = swarm.now
    assert swarm.run_to_end()
    assert_sound(swarm, steps=40)
    # Two steps wait for it (0.5 s is the lower bound of the commit deadline); then it is known to be late.
    assert swarm.now - began < 35 * 0.6 + 2 * 1.5


def test_a_straggler_that_takes_part_otherwise_keeps_its_place() -> None:
    """It hears and votes, and will commit when it is as fast as the others; nobody waits for that."""
    swarm = Swarm(4, steps=30)
    swarm.list[3].work_seconds = lambda step: 0.2 if step < 3 or step > 20 else 50.0
    swarm.start()
    assert swarm.run_to_end()
    assert_sound(swarm, steps=30)
    assert min(len(story.roster) for story in swarm.list[0].stories) == 4
    assert len(swarm.list[0].stories[15].contributors) == 3
    assert len(swarm.list[0].stories[29].contributors) == 4


def test_a_peer_that_misses_too_many_steps_drops_out_and_comes_back() -> None:
    swarm = Swarm(4, steps=30)
    swarm.start()
    away, chain = swarm.list[3], swarm.list[0].node.chain
    assert swarm.run(lambda: chain.head.step == 3)
    swarm.kill(away)
    assert swarm.run(lambda: chain.head.step == 16)
    away.restart()
    assert swarm.run_to_end()
    assert_sound(swarm, steps=30)
    rosters = [story.roster for story in swarm.list[0].stories]
    assert min(len(roster) for roster in rosters) == 3
    assert len(rosters[-1]) == 4


@pytest.mark.parametrize("seed", range(40))
def test_lost_and_late_messages_cost_time_but_no_agreement(seed: int) -> None:
    swarm = Swarm(5, seed=seed)
    swarm.loses = lambda sender, receiver: swarm.random.random() < 0.15
    swarm.delay = lambda: swarm.random.expovariate(10)
    swarm.start()
    assert swarm.run_to_end(seconds_max=3000), f"seed {seed} stuck"
    assert_sound(swarm)


@pytest.mark.parametrize("seed", range(40))
def test_a_restarted_peer_signs_no_slot_twice_and_catches_up(seed: int) -> None:
    swarm = Swarm(4, seed=seed)
    swarm.start()
    victim = swarm.list[seed % 4]
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 3)
    moment = swarm.now + swarm.random.random() * 0.4
    swarm.run(lambda: swarm.now >= moment)
    swarm.kill(victim)
    swarm.at(swarm.now + swarm.random.random() * 2, victim.restart)
    assert swarm.run_to_end()
    assert_sound(swarm)


def test_a_newcomer_fetches_state_joins_and_contributes() -> None:
    swarm = Swarm(3, extra=1, steps=30)
    swarm.start(swarm.list[:3])
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 5)
    newcomer = swarm.list[3]
    newcomer.begin()
    newcomer.give(events.CertificateReceived(swarm.list[0].id, swarm.list[0].journal_certificates[-1]))
    assert swarm.run_to_end()
    assert_sound(swarm, steps=30)
    assert newcomer.id in swarm.list[0].stories[-1].contributors
    assert any(newcomer.id in story.joined for story in swarm.list[0].stories)


def test_leaving_in_order_voids_nothing() -> None:
    swarm = Swarm(4, steps=20)
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 4)
    leaver = swarm.list[1]
    leaver.give(events.LeaveAsked())
    swarm.run(lambda: bool(leaver.finished))
    assert leaver.finished == "this peer has left the roster"
    assert leaver.node.catch_up.step == leaver.node.chain.head.step
    leaver.alive = False
    assert swarm.run_to_end()
    assert_sound(swarm, steps=20)
    assert all(story.void_parts == 0 for story in swarm.list[0].stories)


def founder_and_newcomer(steps: int) -> tuple[Swarm, FakePeer, FakePeer]:
    """A founder at work, and somebody who has just heard of the run."""
    swarm = Swarm(1, extra=1, steps=steps)
    founder, newcomer = swarm.list
    swarm.start([founder])
    swarm.run(lambda: founder.node.chain.head.step >= 2)
    newcomer.begin()
    newcomer.give(events.CertificateReceived(founder.id, founder.journal_certificates[-1]))
    return swarm, founder, newcomer


def leave_a_little_later(swarm: Swarm, peer: FakePeer, moment: int) -> None:
    """Ask a peer to leave, at one of many moments."""
    moment_seconds = swarm.now + moment * 0.05
    swarm.run(lambda: swarm.now >= moment_seconds)
    peer.give(events.LeaveAsked())


@pytest.mark.parametrize("moment", range(12))
def test_a_newcomer_that_changes_its_mind_leaves_no_ghost(moment: int) -> None:
    """A founder alone would wait for ever for a second member that is gone."""
    swarm, founder, newcomer = founder_and_newcomer(steps=60)
    swarm.run(lambda: newcomer.id in founder.node.membership.candidates())
    leave_a_little_later(swarm, newcomer, moment)
    assert swarm.run(lambda: bool(newcomer.finished))
    newcomer.alive = False
    assert swarm.run_to_end()
    assert_sound(swarm, steps=60)
    assert founder.node.chain.head.roster.peers == (founder.id,)


@pytest.mark.parametrize("seed", range(6))
def test_who_leaves_is_told_so_although_all_else_to_it_is_lost(seed: int) -> None:
    """Its connection may end in the moment it is out: it needs the certificate, or help when it says goodbye again."""
    swarm = Swarm(2, seed=seed, steps=0)
    stayer, leaver = swarm.list
    swarm.start()
    swarm.run(lambda: stayer.node.chain.head.step >= 4)
    leaver.give(events.LeaveAsked())
    swarm.loses = lambda sender, receiver: len(stayer.node.chain.head.roster) == 1 and swarm.now < cut_until[0]
    cut_until = [float("inf")]
    assert swarm.run(lambda: len(stayer.node.chain.head.roster) == 1)
    # Some forty steps later it can be heard and answered again; it is known for `JOIN_WINDOW_STEPS`.
    cut_until[0] = swarm.now + 9.0
    assert swarm.run(lambda: bool(leaver.finished), swarm.now + 60.0)


@pytest.mark.parametrize("moment", range(8))
def test_a_member_that_a_header_has_let_go_waits_for_nothing(moment: int) -> None:
    """Fast steps let it go in the very step in which it asks, and nobody tells it of later ones."""
    swarm, _, leaver = founder_and_newcomer(steps=0)
    swarm.run(lambda: leaver.node.is_member)
    leave_a_little_later(swarm, leaver, moment)
    swarm.run(lambda: not leaver.node.is_member)
    swarm.loses = lambda sender, receiver: True
    assert swarm.run(lambda: bool(leaver.finished), swarm.now + 60.0)
    assert leaver.finished == "this peer has left the roster"


def test_the_last_member_leaves_too() -> None:
    swarm = Swarm(2, steps=0)
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 2)
    for peer in swarm.list:
        peer.give(events.LeaveAsked())
    assert swarm.run_to_end()


def test_a_dead_worker_skips_the_step_and_the_peer_recovers() -> None:
    swarm = Swarm(4, steps=15)
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 4)
    hurt = swarm.list[0]
    hurt.give(events.StateLost())
    hurt.give(events.StateReady(2, hurt.states[2]))
    assert swarm.run_to_end()
    assert_sound(swarm, steps=15)


def test_the_founder_alone_trains_alone() -> None:
    swarm = Swarm(1)
    swarm.start()
    assert swarm.run_to_end()
    assert_sound(swarm)
