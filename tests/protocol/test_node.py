"""Whole nodes in uncommon but honest trouble: lost state, restarts, early messages, failed work, catching up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from crowdsurf.protocol import effects, events, limits
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.messages import Certificate, Envelope, Join, Kind, Vote
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.recovery import Recovered
from crowdsurf.protocol.step_table import Phase
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import ELEMENTS, FakePeer, FakeSigner, Swarm, name, verify_mac


def assert_agreed(swarm: Swarm, steps: int) -> None:
    assert swarm.violations == []
    assert {peer.states[steps] for peer in swarm.list if peer.alive} == {swarm.list[0].states[steps]}


def in_step(swarm: Swarm, step: int) -> Callable[[], bool]:
    return lambda: all(peer.node.chain.head.step == step and peer.node.machine for peer in swarm.list)


def test_a_lost_state_in_the_middle_of_a_step_makes_nobody_sign_twice() -> None:
    """A newcomer asks between the two commits, so that the second one would say something else."""
    swarm = Swarm(4, steps=8)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    hurt = swarm.list[0]
    machine = hurt.node.machine
    assert machine is not None
    assert swarm.run(lambda: hurt.id in machine.transcript.commits)
    hurt.give(events.StateLost())
    join = seal(FakeSigner(50), hurt.node.chain.run_id, Slot(3, 0, Kind.JOIN, b""), Join()).envelope
    hurt.give(events.EnvelopeReceived(FakeSigner(50).peer_id, join))
    hurt.give(events.StateReady(3, hurt.states[3]))
    assert hurt.node.machine is not None
    assert swarm.run_to_end()
    assert_agreed(swarm, 8)


def test_a_lost_state_does_not_make_a_voter_forget_its_lock() -> None:
    swarm = Swarm(4, steps=8)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    hurt = swarm.list[0]
    assert swarm.run(lambda: hurt.node.machine is not None and hurt.node.machine.ballot.lock is not None)
    assert hurt.node.machine is not None
    lock, step = hurt.node.machine.ballot.lock, hurt.node.chain.head.step
    hurt.give(events.StateLost())
    hurt.give(events.StateReady(step, hurt.states[step]))
    assert hurt.node.machine is not None
    assert hurt.node.machine.ballot.lock == lock
    assert {envelope.kind for envelope in hurt.node.machine.lock_grounds()} >= {
        Kind.PROPOSAL,
        Kind.COMMIT,
        Kind.PREPARE,
    }
    assert swarm.run_to_end()
    assert_agreed(swarm, 8)


def keep_only_the_disk(peer: FakePeer) -> None:
    """What a power cut leaves of a peer's bytes: the updates it has applied or was about to vote for."""
    newest = max(peer.states, default=0)
    kept = {part for c in peer.journal_certificates if c.header.step < newest for part in c.header.parts}
    kept |= {part for header, _ in peer.journal_locks for part in header.parts}
    peer.blobs &= kept


def cut_the_power(swarm: Swarm, at: FakePeer, count: int, absent: FakePeer | None = None) -> effects.Effect | None:
    """All peers stop while one of them is about to carry out its `count`-th effect; all but `absent` come back a second
    later."""
    left, stopped_at = [count], []

    def before(effect: effects.Effect) -> bool:
        if left[0] == 0:
            stopped_at.append(effect)
            for peer in swarm.list:
                swarm.kill(peer, noticed=False)
            return False
        left[0] -= 1
        return True

    at.before_effect = before
    if not swarm.run(lambda: bool(stopped_at)):
        return None
    at.before_effect = lambda effect: True
    back = swarm.now + 1.0
    swarm.run(lambda: swarm.now >= back)
    for peer in swarm.list:
        if peer is not absent:
            keep_only_the_disk(peer)
            peer.restart()
    return stopped_at[0]


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_a_power_cut_of_all_peers_anywhere_loses_nothing(peers: int) -> None:
    """Their messages and bytes were in memory. Work units are recomputed; signatures and locks are in the journal, the
    bytes of a header and its grounds on the disk of whoever voted for it."""
    for count in range(60):
        swarm = Swarm(peers, steps=3)
        swarm.start()
        effect = cut_the_power(swarm, swarm.list[0], count)
        if effect is None:
            assert count > 20
            break
        assert swarm.run_to_end(), f"stuck after a power cut at effect {count}, {effect}"
        assert_agreed(swarm, 3)


@pytest.mark.slow
def test_a_power_cut_after_which_one_of_four_never_comes_back() -> None:
    """What it said in the step is needed to judge the header that some have voted for."""
    for count in range(90):
        for absent in (1, 2):
            swarm = Swarm(4, steps=3)
            swarm.start()
            effect = cut_the_power(swarm, swarm.list[0], count, absent=swarm.list[absent])
            if effect is None:
                assert count > 30
                return
            assert swarm.run_to_end(), f"stuck after a power cut at effect {count}, {effect}, without {absent}"
            assert not swarm.violations


def test_a_lone_founder_that_is_locked_but_has_not_voted_goes_on_after_a_restart() -> None:
    """The header it is locked on needs bytes that were only in memory: they are computed again."""
    count = 0
    while True:
        trial = Swarm(1, steps=3)
        trial.start()
        effect = cut_the_power(trial, trial.list[0], count)
        assert effect is not None
        if trial.list[0].journal_locks and isinstance(effect, effects.PersistSigned):
            break
        count += 1
    assert trial.run_to_end()
    assert_agreed(trial, 3)


def test_damaged_grounds_do_not_keep_a_peer_from_starting() -> None:
    """They lie beside the journal, and what still parses need not be what was written."""
    swarm = Swarm(3, steps=3)
    swarm.start()
    peer = swarm.list[0]
    swarm.run(lambda: bool(peer.grounds) and peer.grounds[0].step == peer.node.chain.head.step)
    damaged = [msgspec.structs.replace(envelope, signature=bytes(64)) for envelope in peer.grounds]
    peer.grounds = (*damaged, msgspec.structs.replace(peer.grounds[0], kind=255))
    peer.restart()
    assert {refused.code for refused in peer.refused} == {Code.BAD_SIGNATURE, Code.UNKNOWN_KIND}
    assert swarm.run_to_end()
    assert_agreed(swarm, 3)


def test_restarted_voters_count_their_own_votes() -> None:
    """Two of three are left and both restart after voting: without its own vote neither ever sees a quorum."""
    swarm = Swarm(3, steps=5)
    swarm.start()
    swarm.run(in_step(swarm, 2))
    swarm.kill(swarm.list[2], noticed=False)
    first, second = swarm.list[:2]
    silent = [True]
    swarm.loses = lambda sender, receiver: silent[0] and voting(first) and voting(second)

    def voting(peer: FakePeer) -> bool:
        return peer.node.machine is not None and peer.node.machine.ballot.voted_view >= 0

    assert swarm.run(lambda: voting(first) and voting(second))
    for peer in (first, second):
        swarm.kill(peer, noticed=False)
    silent[0] = False
    first.restart()
    second.restart()
    assert first.node.machine is not None
    mine = first.node.machine.facts.peers.index(first.id)
    assert first.node.machine.ballot.voters(header_voted_for(first)) == {mine}
    assert swarm.run_to_end()
    assert_agreed(swarm, 5)


def header_voted_for(peer: FakePeer) -> bytes:
    assert peer.node.machine is not None
    own = peer.node.machine.transcript.own(peer.id)
    return next(opened.payload.header for opened in own if isinstance(opened.payload, Vote))


def test_a_step_certified_by_messages_that_waited_is_applied_at_once() -> None:
    """A peer whose state comes late finds all messages of the step waiting, and nothing else need come to wake it:
    all parts are void, so that there are none to wait for."""
    swarm = Swarm(4, steps=1)
    late, waiting = swarm.list[0], dict[Envelope, events.EnvelopeReceived]()
    give = late.give

    def hold_back(event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived):
            waiting.setdefault(event.envelope, event)  # from its author; others hand some of them on

    late.give = hold_back  # type: ignore[method-assign]
    for peer in swarm.list:
        forget_aggregates(peer, until_step=1)
    swarm.start(swarm.list[1:])
    assert swarm.run(lambda: all(peer.finished for peer in swarm.list[1:]))
    swarm.run(lambda: False, swarm.now + 1.0)  # what is on its way comes, too
    late.give = give  # type: ignore[method-assign]
    for event in waiting.values():
        late.node.handle(event, swarm.now)
    wanted = late.node.handle(events.StateReady(0, name("state 0")), swarm.now)
    assert late.node.chain.head.step == 1
    assert effects.ApplyUpdate(0, (b"", b"", b"", b"")) in wanted


def test_work_that_failed_is_tried_again_when_the_step_cannot_go_on_without_it() -> None:
    swarm = Swarm(2, steps=4)
    unlucky, failures = swarm.list[0], [3]
    carry_out = unlucky._compute

    def fail_sometimes(effect: effects.Effect) -> None:
        if isinstance(effect, effects.ComputeWork) and failures[0]:
            failures[0] -= 1
            unlucky._later(0.1, events.WorkFailed(effect.step, "out of memory"))
        else:
            carry_out(effect)

    unlucky._compute = fail_sometimes  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end()
    assert_agreed(swarm, 4)
    assert failures == [0]


def test_a_peer_whose_work_fails_skips_the_step_and_stays() -> None:
    swarm = Swarm(4, steps=6)
    unlucky = swarm.list[0]
    carry_out = unlucky._compute

    def fail_once(effect: effects.Effect) -> None:
        if isinstance(effect, effects.ComputeWork) and effect.step == 2:
            unlucky._later(0.1, events.WorkFailed(effect.step, "out of memory"))
        else:
            carry_out(effect)

    unlucky._compute = fail_once  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end()
    assert_agreed(swarm, 6)
    stories = swarm.list[1].stories
    assert [unlucky.id in story.contributors for story in stories] == [step != 2 for step in range(6)]
    assert all(story.void_parts == 0 for story in stories)


def test_aggregation_too_slow_for_everybody_ends_nothing() -> None:
    """Every part of ten steps is void. Somebody is left to go on when the trouble is over, and the others come back."""
    swarm = Swarm(3, steps=24)
    for peer in swarm.list:
        forget_aggregates(peer, until_step=10)
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_agreed(swarm, 24)
    stories = swarm.list[0].stories
    assert [story.void_parts for story in stories[:10]] == [3] * 10
    assert not any(story.void_parts for story in stories[11:])  # in the first one not everybody was waited for yet
    assert all(len(story.roster) == 3 for story in stories[:10])
    assert len(stories[-1].contributors) == 3


def forget_aggregates(peer: FakePeer, until_step: int) -> None:
    carry_out = peer._compute

    def compute(effect: effects.Effect) -> None:
        if not isinstance(effect, effects.AggregatePart) or effect.step >= until_step:
            carry_out(effect)

    peer._compute = compute  # type: ignore[method-assign]


def test_a_peer_cut_off_for_some_steps_catches_up_and_contributes_again() -> None:
    swarm = Swarm(4, steps=16)
    apart = swarm.list[3]
    cut_off = [False]
    swarm.loses = lambda sender, receiver: cut_off[0] and apart.id in (sender, receiver)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    cut_off[0] = True
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 7)
    assert apart.node.chain.head.step < 5
    cut_off[0] = False
    assert swarm.run_to_end()
    assert_agreed(swarm, 16)
    assert apart.id in swarm.list[0].stories[-1].contributors


def test_a_state_that_is_not_the_certified_one_is_refused_and_asked_for_again() -> None:
    swarm = Swarm(4, steps=6)
    swarm.start()
    swarm.run(in_step(swarm, 4))
    hurt, server = swarm.list[0], swarm.list[1].id
    hurt.give(events.StateLost())
    hurt.give(events.StateReady(2, name("forged"), server))
    assert [refused.code for refused in hurt.refused] == [Code.WRONG_DIGEST]
    assert hurt.node.catch_up.step is None
    hurt.give(events.StateReady(2, hurt.states[2], server))
    assert swarm.run_to_end()
    assert_agreed(swarm, 6)


def test_whoever_serves_an_old_state_again_and_again_keeps_nobody_from_coming_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is certified, but nobody holds the step after it any more. The liar is the first of all members."""
    swarm = Swarm(4, extra=1, steps=40)
    liar = min(swarm.list[:4], key=lambda peer: peer.id)
    newcomer = swarm.list[4]

    def request_state(effect: effects.RequestState) -> None:
        if effect.candidates[0] != liar.id:
            FakePeer._request_state(newcomer, effect)
        else:
            newcomer._later(0.1, events.StateReady(1, liar.states[1], liar.id))

    monkeypatch.setattr(newcomer, "_request_state", request_state)
    swarm.start(swarm.list[:4])
    assert swarm.run(lambda: liar.node.chain.head.step == 6)
    for peer in swarm.list:
        for certificate in swarm.list[0].journal_certificates[1:3]:
            peer.blobs -= set(certificate.header.parts)
    newcomer.begin()
    assert swarm.run_to_end()
    assert_agreed(swarm, 40)


def test_admission_of_founders_only_lets_nobody_else_in() -> None:
    swarm = Swarm(3, extra=1, steps=8, admission="founders")
    swarm.start()
    assert swarm.run(lambda: all(peer.finished for peer in swarm.list[:3]))
    assert all(story.joined == () for story in swarm.list[0].stories)
    assert {refused.code for refused in swarm.list[0].refused} >= {Code.NOT_MEMBER}


def test_newcomers_wait_while_the_group_is_full_and_enter_when_somebody_leaves() -> None:
    swarm = Swarm(3, extra=1, steps=40, peers_max=3)
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 10)
    assert all(len(story.roster) == 3 and not story.joined for story in swarm.list[0].stories)
    swarm.list[1].give(events.LeaveAsked())
    assert swarm.run(lambda: swarm.list[1].finished != "" and swarm.list[0].finished != "")
    assert any(swarm.list[3].id in story.joined for story in swarm.list[0].stories)
    swarm.list[1].alive = False
    assert swarm.run_to_end()
    assert_agreed(swarm, 40)


def test_a_journal_whose_chain_does_not_hold_is_refused() -> None:
    step = CompleteStep(4)
    node = Node(step.manifest, FakeSigner(0), verify_mac, ELEMENTS)
    refused(lambda: node.restore(Recovered([step.certificate([0, 1])])), Code.BAD_CERTIFICATE)
    node = Node(step.manifest, FakeSigner(0), verify_mac, ELEMENTS)
    node.restore(Recovered([step.certificate()]))
    assert node.chain.head.step == 1


def test_a_node_without_a_state_waits_for_one() -> None:
    step = CompleteStep(4)
    node = Node(step.manifest, FakeSigner(0), verify_mac, ELEMENTS)
    assert node.handle(events.Tick(), 0.0) == []
    assert node.next_deadline() is None
    began = node.handle(events.StateReady(0, name("state 0")), 1.0)
    assert [type(effect) for effect in began] == [effects.ComputeWork]
    assert node.machine is not None
    assert node.machine.phase is Phase.WORK
    assert (node.next_deadline() or 0.0) > 1.0


def test_members_that_missed_steps_are_not_waited_for() -> None:
    """The step goes on as soon as everyone expected is there, so an absent member costs no deadline."""
    swarm = Swarm(4, steps=20, missed_steps_max=100)
    certified: list[float] = []
    on_certified = swarm.on_certified

    def record(peer: FakePeer, certificate: Certificate) -> None:
        if peer is swarm.list[0]:
            certified.append(swarm.now)
        on_certified(peer, certificate)

    swarm.on_certified = record  # type: ignore[method-assign]
    swarm.list[3].alive = False
    swarm.start(swarm.list[:3])
    assert swarm.run(lambda: all(peer.finished for peer in swarm.list[:3]))
    assert len(certified) == 20
    assert all(after - before < 0.6 for before, after in pairwise(certified[3:]))
    assert len(swarm.list[0].node.chain.head.roster) == 4


def test_a_member_that_dropped_out_while_it_was_cut_off_hears_of_it_and_comes_back() -> None:
    """It still thinks that it is a member of a roster the others left behind long ago."""
    swarm = Swarm(4, steps=60)
    apart = swarm.list[3]
    cut_off = [False]
    swarm.loses = lambda sender, receiver: cut_off[0] and apart.id in (sender, receiver)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    cut_off[0] = True
    assert swarm.run(lambda: apart.id not in swarm.list[0].node.chain.head.roster.indexes)
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 15)
    cut_off[0] = False
    assert swarm.run_to_end()
    assert_agreed(swarm, 60)
    assert apart.id in swarm.list[0].stories[-1].contributors


def test_a_member_that_was_left_behind_and_forgotten_asks_for_the_chain() -> None:
    """All others have restarted since it dropped out, and nobody remembers that it ever was a member."""
    swarm = Swarm(4, steps=60)
    apart = swarm.list[3]
    cut_off = [False]
    swarm.loses = lambda sender, receiver: cut_off[0] and apart.id in (sender, receiver)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    cut_off[0] = True
    assert swarm.run(lambda: apart.id not in swarm.list[0].node.chain.head.roster.indexes)
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 20)
    for peer in swarm.list[:3]:
        swarm.kill(peer)
        peer.restart()
    cut_off[0] = False
    assert swarm.run_to_end()
    assert_agreed(swarm, 60)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_member_that_was_away_for_longer_than_one_answer_tells_of_comes_back(
    monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    """It has learned from the first answer that it is no member any more; whether or not the second one comes, it goes
    on until it knows all."""
    monkeypatch.setattr(limits, "CERTIFICATES_PER_RESPONSE_MAX", 8)
    swarm = Swarm(4, steps=120)
    apart, asked = swarm.list[3], [0]
    cut_off = [False]
    swarm.loses = lambda sender, receiver: cut_off[0] and apart.id in (sender, receiver)
    ask = apart._request_chain

    def request_chain(effect: effects.RequestChain) -> None:
        asked[0] += not cut_off[0]
        if cut_off[0] or (asked[0] == 2 and not is_answered):
            apart._later(0.1, events.ChainFailed(effect.peer))
        else:
            ask(effect)

    monkeypatch.setattr(apart, "_request_chain", request_chain)
    swarm.start()
    swarm.run(in_step(swarm, 3))
    cut_off[0] = True
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 100)
    cut_off[0] = False
    assert swarm.run_to_end()
    assert_agreed(swarm, 120)
    assert asked[0] > 7


@pytest.mark.parametrize("seed", [26, 119, 132, *range(5)])
def test_random_crashes_restarts_and_losses(seed: int) -> None:
    """Five peers, one message in ten lost, six crashes with and without a loss of everything in memory."""
    swarm = Swarm(5, seed=seed, steps=12)
    chance = swarm.random
    swarm.loses = lambda sender, receiver: chance.random() < 0.1
    swarm.start()

    def crash(victim: FakePeer, seconds: float) -> None:
        if not victim.alive or victim.finished or sum(peer.alive for peer in swarm.list) < 2:
            return
        swarm.kill(victim, noticed=chance.random() < 0.5)
        if chance.random() < 0.7:
            keep_only_the_disk(victim)
        swarm.at(swarm.now + seconds, victim.restart)

    for _ in range(6):
        victim, moment, seconds = chance.choice(swarm.list), chance.random() * 10, chance.random() * 4
        swarm.at(moment, lambda victim=victim, seconds=seconds: crash(victim, seconds))  # type: ignore[misc]
    swarm.run(lambda: swarm.now > 16)
    assert swarm.run_to_end(3000)
    assert_agreed(swarm, 12)
