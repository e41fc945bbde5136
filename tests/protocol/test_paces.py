"""Who is faster, slower or earlier than others: no hurry of liars may cost an honest member its place.

The idea: whole nodes, and liars that sign nothing twice and keep nothing back for good. They propose before the others
are ready, show a cut when its view is nearly over, or make others believe that nobody need be waited for.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol import assignment, effects, events
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import DeadlineSection
from crowdsurf.protocol.messages import Cut, Envelope, Kind, ViewChange
from crowdsurf.protocol.roster import MISSED_STEPS_PATIENCE, withheld
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase
from tests.protocol.lying_minority import LyingMinority
from tests.protocol.swarm import FakePeer, name

pytestmark = pytest.mark.slow

MOMENT = 0.003
"""Seconds; how exactly an attacker guesses what the others are about to do."""


class Paced(LyingMinority):
    """Its liars' machines may be changed, and it is noted what honest members do without."""

    def __init__(self, count: int, seed: int, steps: int, **changes: Any) -> None:
        super().__init__(count, seed, steps, **changes)
        self.missing: list[PeerId] = []
        """Honest contributors whose part an honest aggregator did without."""
        for peer in self.honest:
            peer.before_effect = lambda effect, peer=peer: self.note(peer, effect)
        for peer in self.liars:
            peer.give = lambda event, peer=peer, give=peer.give: self.change(peer, give, event)  # type: ignore[method-assign]

    def note(self, peer: FakePeer, effect: effects.Effect) -> bool:
        """What an aggregator does without."""
        machine = peer.node.machine
        if isinstance(effect, effects.AggregatePart) and machine is not None and machine.accepted is not None:
            here = {member for member, _ in effect.inputs}
            wanted = [item for item in machine.accepted.inputs if item.part == effect.part]
            self.missing += [item.peer for item in wanted if item.member not in here and item.peer not in self.lying]
        return True

    def change(self, liar: FakePeer, give: Any, event: events.Event) -> None:
        """Have a liar's machine do something else, from its beginning on."""
        if liar.node.machine is not None:
            self.corrupt(liar.node.machine)
        give(event)

    def corrupt(self, machine: StepMachine) -> None:
        """What is different about it."""


# --- before the others are ready -----------------------------------------------------------------------------


class Hurried(Paced):
    """Liars propose as soon as they hold a bare quorum: theirs and the commit of the fastest honest member."""

    def __init__(self, count: int, seed: int, liars_seconds: float) -> None:
        super().__init__(count, seed, steps=16)
        for number, peer in enumerate(self.honest):
            peer.work_seconds = lambda step, number=number: 1.0 if number == 0 else 1.1
        for peer in self.liars:
            peer.work_seconds = lambda step: liars_seconds

    def corrupt(self, machine: StepMachine) -> None:
        machine.commits_lacking = lambda: iter(())  # type: ignore[method-assign]


@pytest.mark.parametrize(("count", "seed", "liars_seconds"), [(5, 1, 0.01), (5, 2, 1.0), (9, 2, 0.01), (9, 0, 1.0)])
def test_a_cut_that_leaves_out_all_but_the_fastest_costs_nobody_its_place(
    count: int, seed: int, liars_seconds: float
) -> None:
    played = Hurried(count, seed, liars_seconds)
    played.run()
    assert played.honest_strikes() == [0] * len(played.honest)
    members = played.honest[0].node.chain.head.roster.members
    assert len(members) == count
    assert max(member.missed for member in members) <= MISSED_STEPS_PATIENCE


def test_liars_in_a_hurry_do_not_make_honest_proposers_hurry() -> None:
    """Whoever is left out never commits, and liars and the fastest would be all that the others learn from."""
    played = Hurried(9, 0, 0.01)
    led: dict[int, bool] = {}
    watched = played.honest[1]

    def note(effect: effects.Effect) -> bool:
        machine = watched.node.machine
        if machine is not None:
            led.setdefault(machine.facts.head.step, machine.proposer(0) in played.lying)
        return True

    watched.before_effect = note
    played.run()
    sizes = [len(story.contributors) for story in played.honest[0].stories if not led.get(story.step, True)]
    assert sizes
    assert min(sizes) > 2 * len(played.liars)


# --- when a view is nearly over ------------------------------------------------------------------------------


class AcceptedTwice(Paced):
    """Two liars in a row are to propose. The first shows its cut to one honest member, the fastest, a moment before the
    others give its view up; the second proposes the same cut when its own view is nearly over."""

    def __init__(self, count: int, seed: int, steps: int) -> None:
        # The second view is to take as long as all waits for aggregates.
        bounds = DeadlineSection(transfer_seconds_min=0.5, transfer_seconds_max=30.0, delivery_seconds=1.0)
        super().__init__(count, seed, steps, deadlines=bounds)
        self.first = self.honest[0]
        self.kept: dict[tuple[int, int], events.EnvelopeReceived] = {}
        self.told: set[tuple[int, int]] = set()
        self.played_in: set[int] = set()
        self._deliver = self.swarm.deliver
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]

    def is_chosen(self, step: int) -> bool:
        """Whether liars propose in both views of a step."""
        head = self.first.node.chain.head
        if head.step != step:
            return False
        order = [head.roster.peers[index] for index in assignment.proposers(head.beacon, head.roster, head.step)]
        return set(order[:2]) <= self.lying

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is None or sender not in self.liars or to in self.lying or not self.is_chosen(said.step):
            return self._deliver(sender, to, event)
        if said.kind == Kind.VIEW_CHANGE and (said.step, 0) not in self.told:
            return None
        if said.kind == Kind.PROPOSAL and said.view < 2 and (said.step, said.view) not in self.told:
            if (said.step, said.view) not in self.kept and said.sender == sender.id:
                self.kept[said.step, said.view] = events.EnvelopeReceived(sender.id, said)
                self.swarm.at(self.swarm.now, lambda: self.watch(said))
            return None
        return self._deliver(sender, to, event)

    def watch(self, said: Envelope) -> None:
        """Tell when those who are told nothing are about to ask for the next view."""
        machines = [peer.node.machine for peer in self.honest[1:] if peer.node.machine is not None]
        if self.first.node.chain.head.step != said.step or not machines:
            return
        waiting = [one for one in machines if one.phase is Phase.PROPOSE and one.ballot.view == said.view]
        left = min((one._deadline for one in waiting), default=0.0) - self.swarm.now
        if len(waiting) < len(machines) or left > (20 if said.view else 5) * MOMENT:
            return self.swarm.at(self.swarm.now + MOMENT, lambda: self.watch(said))
        self.told.add((said.step, said.view))
        for peer in self.honest if said.view else [self.first]:
            peer.give(self.kept[said.step, said.view])
        if said.view == 0:
            self.played_in.add(said.step)
            self.ask_for_next_view(said)

    def ask_for_next_view(self, said: Envelope) -> None:
        """All liars ask, so that one honest request opens it."""
        for liar in self.liars:
            asked = seal(liar.signer, said.run_id, Slot(said.step, 1, Kind.VIEW_CHANGE, b""), ViewChange(None, 0))
            for peer in self.honest[1:]:
                event = events.EnvelopeReceived(liar.id, asked.envelope)
                self.swarm.at(self.swarm.now + 0.002, lambda peer=peer, event=event: peer.give(event))


@pytest.mark.parametrize("seed", [0, 2])
def test_a_cut_that_one_has_accepted_a_view_before_is_no_less_waited_for(seed: int) -> None:
    played = AcceptedTwice(9, seed, steps=24)
    played.run()
    assert played.played_in
    assert played.void_parts() == 0
    assert played.honest_strikes() == [0] * 5


# --- nobody need be waited for -------------------------------------------------------------------------------


class SlowTransfers(Paced):
    """Every part and aggregate takes some seconds, which is less than it may."""

    def __init__(self, count: int, seed: int, steps: int, transfer_seconds: float) -> None:
        super().__init__(count, seed, steps)
        self.transfer_seconds = transfer_seconds
        swarm = self.swarm

        def deliver_blob(sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
            takes_seconds = self.seconds_between(sender.id, to)
            swarm.at(swarm.now + takes_seconds, lambda: swarm.arrive(to, digest))

        swarm.deliver_blob = deliver_blob  # type: ignore[method-assign]

    def seconds_between(self, sender: PeerId, to: PeerId) -> float:
        """How long the bytes take from one to another."""
        return self.transfer_seconds * (0.9 + 0.2 * self.swarm.random.random())


class NamesNothing(SlowTransfers):
    """Liars name no wait at all, and let in no more honest members than they are themselves."""

    def corrupt(self, machine: StepMachine) -> None:
        holdings = machine.holdings
        if "whole_cut" in vars(holdings):
            return
        commit = holdings.commit
        holdings.commit = lambda *fields: msgspec.structs.replace(commit(*fields), transfer_seconds=0.0)  # type: ignore[method-assign]
        holdings.whole_cut = lambda: self.cut_of(machine)  # type: ignore[method-assign]

    def cut_of(self, machine: StepMachine) -> Cut:
        said, peers = machine.transcript.commits, machine.facts.peers
        here = [index for index, peer in enumerate(peers) if peer in said]
        chosen = sorted(here, key=lambda index: peers[index] not in self.lying)[: 2 * len(self.liars)]
        return Cut(machine.facts.head.previous, tuple((index, said[peers[index]].digest) for index in sorted(chosen)))


@pytest.mark.parametrize("count", [5, 9])
def test_liars_that_name_no_wait_make_nobody_wait_less(count: int) -> None:
    played = NamesNothing(count, 0, 24, 2.0)
    played.run()
    assert played.missing == []
    assert played.void_parts() == 0
    assert played.honest_strikes() == [0] * len(played.honest)


class FastLinks(SlowTransfers):
    """What liars send, and what is sent to them, is there at once."""

    def seconds_between(self, sender: PeerId, to: PeerId) -> float:
        return 0.005 if {sender, to} & self.lying else super().seconds_between(sender, to)


@pytest.mark.parametrize("count", [3, 5, 9])
def test_liars_with_fast_links_make_nobody_wait_less(count: int) -> None:
    """They are half of the others: whoever learned from its own part, too, would wait for nobody else."""
    played = FastLinks(count, 0, 24, 2.0)
    played.run()
    assert played.missing == []
    assert played.void_parts() == 0
    assert played.honest_strikes() == [0] * len(played.honest)


@pytest.mark.parametrize("count", [2, 3])
def test_few_members_wait_for_each_other_though_their_own_parts_take_no_time(count: int) -> None:
    played = SlowTransfers(count, 0, 24, 1.0)
    played.liars, played.lying = [], set()
    played.run()
    assert played.missing == []


def test_a_network_that_becomes_slower_is_waited_for_again() -> None:
    """After a few steps in which everything was too late."""
    played = SlowTransfers(5, 0, 40, 0.1)
    played.liars, played.lying = [], set()
    chain, late = played.honest[0].node.chain, []

    def go_on() -> bool:
        if chain.head.step >= 8:
            played.transfer_seconds = 2.0
        if chain.head.step == 24:
            late.extend(played.missing)
            played.missing.clear()
        return all(peer.node.chain.head.step >= 40 for peer in played.honest)

    played.swarm.start()
    assert played.swarm.run(go_on, 2000.0)
    assert late
    assert played.missing == []


# --- just too late -------------------------------------------------------------------------------------------


class LateCommits(Paced):
    """Liars say their commits when nobody waits for them any more, always."""

    def __init__(self, count: int, seed: int, steps: int, late_seconds: float) -> None:
        super().__init__(count, seed, steps)
        deliver, swarm = self.swarm.deliver, self.swarm

        def late(sender: FakePeer, to: PeerId, event: events.Event) -> None:
            said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
            if said is None or said.kind != Kind.COMMIT or said.sender not in self.lying or late_seconds == 0.0:
                return deliver(sender, to, event)
            return swarm.at(swarm.now + late_seconds, lambda: swarm.peers[to].give(event))

        swarm.deliver = late  # type: ignore[method-assign]


def test_commits_that_are_just_too_late_again_and_again_are_waited_for_ever_less_often() -> None:
    """Liars vote and so keep their places; the others wait for their commits twice, and then once in a while."""
    played, waits = LateCommits(5, 0, 60, 0.45), 0
    patience = played.honest[0].node._timing.commits
    waited_in_vain = patience.waited_in_vain

    def count(peers: set[PeerId], among: int) -> None:
        nonlocal waits
        waits += bool(peers)
        waited_in_vain(peers, among)

    patience.waited_in_vain = count  # type: ignore[method-assign]
    played.run()
    assert len(played.honest[0].node.chain.head.roster) == 5
    assert 2 <= waits <= 6


# --- an answer that takes its time ---------------------------------------------------------------------------


class SilentTowardsMost(Paced):
    """In one step liars show their aggregates and nonces to one honest member alone, and call the others silent. What
    these and that one tell each other takes nearly as long as it may."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed, steps=20)
        self.first, self.step = self.honest[0], -1
        self.others = {peer.id for peer in self.honest[1:]}
        self.own: set[bytes] = set()
        self._deliver = self.swarm.deliver
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]
        self.swarm.deliver_blob = self.deliver_blob  # type: ignore[method-assign]
        for peer in self.liars:
            peer.before_effect = self.note_own

    def note_own(self, effect: effects.Effect) -> bool:
        if isinstance(effect, effects.AggregatePart):
            self.own.add(name("aggregate", effect.inputs, effect.absent))
        return True

    def is_on(self, step: int) -> bool:
        machine = self.first.node.machine
        if self.step < 0 and step >= 4 and machine is not None and machine.facts.head.step == step:
            self.step = step if machine.proposer(0) in self.lying else -1
        return step == self.step

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is not None and self.is_on(said.step):
            hidden = to in self.others and said.sender in self.lying and said.kind in (Kind.REVEAL, Kind.AGGREGATE)
            unheard = to in self.lying and said.sender in self.others and said.kind == Kind.REVEAL
            if (sender.id in self.lying and hidden) or unheard:
                return None
        if said is not None and not self.lying & {sender.id, to}:
            return self.swarm.at(self.swarm.now + 0.45, lambda: self.swarm.peers[to].give(event))
        return self._deliver(sender, to, event)

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        if not (self.step >= 0 and sender.id in self.lying and to in self.others and digest in self.own):
            self.swarm.at(self.swarm.now + 2.0, lambda: self.swarm.arrive(to, digest))

    def corrupt(self, machine: StepMachine) -> None:
        accepted = machine.accepted
        if machine.facts.head.step == self.step and accepted is not None:
            reveals = machine.transcript.reveals
            accepted.reveals_lacking = lambda gone: (  # type: ignore[method-assign]
                peer for peer in accepted.contributors if peer not in reveals and peer not in self.others
            )
            machine._grace.is_over = lambda now: True  # type: ignore[method-assign]


@pytest.mark.parametrize(("count", "seed"), [(5, 1), (9, 0)])
def test_an_answer_that_takes_three_deliveries_saves_a_member_its_place(count: int, seed: int) -> None:
    played = SilentTowardsMost(count, seed)
    chains = [peer.node.chain for peer in played.honest]
    played.swarm.start()
    assert played.swarm.run(lambda: played.step > 0 and all(one.head.step > played.step for one in chains), 600.0)
    header = played.first.journal_certificates[played.step].header
    assert not withheld(header)
    assert len(played.honest_strikes()) == len(played.honest)
