"""What liars show to one honest member alone, or sooner than others can speak, costs nobody its place.

The idea: whole nodes, and liars that sign nothing twice. With one honest member on their side they are a quorum and end
a step alone; whatever the others owe in it they must have had the time and the means to give.
"""

from __future__ import annotations

from typing import Any

import pytest

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import DeadlineSection
from crowdsurf.protocol.messages import Cut, Kind
from crowdsurf.protocol.step import StepMachine
from tests.protocol.lying_minority import LyingMinority
from tests.protocol.swarm import FakePeer, name

pytestmark = pytest.mark.slow

DELIVERY_SECONDS = 0.5


class Fast(LyingMinority):
    """Liars have links of their own; what they show to others than the first honest member is a subclass's."""

    def __init__(self, count: int, seed: int, steps: int, honest_seconds: float, liars_seconds: float) -> None:
        bounds = DeadlineSection(
            work_seconds_min=0.5,
            work_seconds_max=10.0,
            transfer_seconds_min=0.5,
            transfer_seconds_max=5.0,
            delivery_seconds=DELIVERY_SECONDS,
        )
        super().__init__(count, seed, steps, deadlines=bounds)
        self.honest_seconds, self.liars_seconds = honest_seconds, liars_seconds
        self.first = self.honest[0]
        self.chosen: dict[int, bool] = {}
        """By step, whether it is one to lie in."""
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]
        self.swarm.deliver_blob = self.deliver_blob  # type: ignore[method-assign]
        for liar in self.liars:
            liar.give = lambda event, liar=liar, give=liar.give: self.change(liar, give, event)  # type: ignore[method-assign]

    def change(self, liar: FakePeer, give: Any, event: events.Event) -> None:
        if liar.node.machine is not None:
            self.corrupt(liar.node.machine)
        give(event)

    def corrupt(self, machine: StepMachine) -> None:
        """All are to be in the cut, and nobody's echo is needed."""
        machine.awaited = lambda: iter(())  # type: ignore[method-assign]
        machine.commits_lacking = lambda: (  # type: ignore[method-assign]
            peer for peer in machine.facts.peers if peer not in machine.transcript.commits
        )

    def is_on(self, step: int) -> bool:
        machines = (peer.node.machine for peer in self.swarm.list)
        machine = next((one for one in machines if one is not None and one.facts.head.step == step), None)
        if machine is None:
            return False
        return self.chosen.setdefault(step, self.suits(machine))

    def suits(self, machine: StepMachine) -> bool:
        return machine.proposer(0) in self.lying

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        """Whether one of them says nothing of this kind to this member in a chosen step."""
        raise NotImplementedError

    def takes_seconds(self, sender: PeerId, to: PeerId) -> float:
        if self.lying & {sender, to}:
            return self.liars_seconds
        return self.honest_seconds * (1 - 0.1 * self.swarm.random.random())

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        is_lie = said is not None and sender.id in self.lying and to not in self.lying and self.is_on(said.step)
        if is_lie and said is not None and self.is_kept_back(sender, to, said.kind):
            return
        late = self.takes_seconds(sender.id, to) + (self.late_seconds(said.kind) if is_lie and said else 0.0)
        self.swarm.at(self.swarm.now + late, lambda: self.swarm.peers[to].give(event))

    def late_seconds(self, kind: int) -> float:
        return 0.0

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        self.swarm.at(self.swarm.now + self.takes_seconds(sender.id, to), lambda: self.swarm.arrive(to, digest))

    def check(self) -> None:
        """Nobody honest has lost its place for a moment, or stands worse than before."""
        founders = {peer.id for peer in self.honest}
        assert all(founders <= set(story.roster) for story in self.first.stories)
        assert self.honest_strikes() == [0] * len(self.honest)
        assert any(self.chosen.values())


class NoncesForOne(Fast):
    """Nonces, and what a header takes, are shown to no more honest members than make a quorum with the liars. The
    others never know the beacon, so they cannot publish projections."""

    hidden = (Kind.REVEAL, Kind.OUTCOME, Kind.ECHO, Kind.PREPARE, Kind.VOTE)

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        shown = self.honest[: len(self.swarm.list) // 2 + 1 - len(self.liars)]
        return kind in self.hidden and to not in {peer.id for peer in shown}


@pytest.mark.parametrize(
    ("count", "seed", "honest_seconds", "liars_seconds"),
    [(4, 0, 0.03, 0.03), (5, 0, 0.03, 0.03), (5, 1, 0.45, 0.005), (9, 0, 0.03, 0.005)],
)
def test_who_is_not_shown_the_nonces_is_told_them_before_its_projection_is_missed(
    count: int, seed: int, honest_seconds: float, liars_seconds: float
) -> None:
    played = NoncesForOne(count, seed, 30, honest_seconds, liars_seconds)
    played.run()
    played.check()


class Overtaken(Fast):
    """Liars propose themselves and the fastest honest member, and tell the others nothing but that the step is over,
    before they can have said anything in it."""

    hidden = (*NoncesForOne.hidden, Kind.AGGREGATE)

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        for peer in self.honest:
            peer.work_seconds = lambda step: 1.1
        self.first.work_seconds = lambda step: 1.0
        for peer in self.liars:
            peer.work_seconds = lambda step: 0.01

    def corrupt(self, machine: StepMachine) -> None:
        machine.awaited = machine.commits_lacking = lambda: iter(())  # type: ignore[method-assign]
        machine.holdings.whole_cut = lambda: self.cut_of(machine)  # type: ignore[assignment,method-assign,return-value]

    def cut_of(self, machine: StepMachine) -> Cut | None:
        said, peers = machine.transcript.commits, machine.facts.peers
        wanted = self.lying | {self.first.id}
        chosen = [(index, said[peer].digest) for index, peer in enumerate(peers) if peer in wanted and peer in said]
        is_whole = self.first.id in said and len(chosen) >= machine.facts.quorum
        return Cut(machine.facts.head.previous, tuple(chosen)) if is_whole else None

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        return kind in self.hidden and to != self.first.id


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (5, 1), (9, 0)])
def test_who_learns_that_a_step_is_over_before_it_could_speak_keeps_its_place(count: int, seed: int) -> None:
    played = Overtaken(count, seed, 60, 0.03, 0.005)
    played.run()
    played.check()


class TwoViews(Fast):
    """Somebody honest leads the first view and a liar the second. One honest member alone has the liars' commits, so it
    gives up the first view long before the others begin to wait, and shows them a cut they cannot yet act on."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        for peer in self.swarm.list:
            peer.work_seconds = lambda step: 3.0

    def corrupt(self, machine: StepMachine) -> None:
        if self.is_on(machine.facts.head.step):
            super().corrupt(machine)

    def suits(self, machine: StepMachine) -> bool:
        return machine.proposer(0) not in self.lying and machine.proposer(1) in self.lying

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        return kind in (Kind.COMMIT, Kind.VIEW_CHANGE) and to != self.first.id

    def late_seconds(self, kind: int) -> float:
        return 1.0 if kind == Kind.VIEW_CHANGE else 0.0

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        is_lie = sender.id in self.lying and to not in self.lying and to != self.first.id
        if not (is_lie and self.chosen.get(self.first.node.chain.head.step) and not lossless):
            super().deliver_blob(sender, to, digest, lossless)


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (9, 0)])
def test_who_has_shown_a_cut_is_asked_for_its_commits_once_it_is_the_one_to_act_on(count: int, seed: int) -> None:
    played = TwoViews(count, seed, 40, 0.03, 0.03)
    played.run()
    played.check()


class NothingForAValidator(Fast):
    """Whenever an honest member validates, and so has no part of its own, liars have it accept the cut before the
    others, and keep their parts from it."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.validator: dict[int, PeerId] = {}

    def corrupt(self, machine: StepMachine) -> None:
        awaited = machine.awaited
        super().corrupt(machine)
        machine.awaited = awaited  # type: ignore[method-assign]

    def suits(self, machine: StepMachine) -> bool:
        head = machine.facts.head
        honest = [audit.validator for audit in head.audits if audit.validator not in self.lying]
        if not honest or machine.proposer(0) not in {*self.lying, honest[0]}:
            return False
        self.validator[head.step] = honest[0]
        return True

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        return kind in (Kind.COMMIT, Kind.PROPOSAL) and to not in self.validator.values()

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        machine = sender.node.machine
        if sender.id in self.lying and machine is not None and to == self.validator.get(machine.facts.head.step):
            mine = machine.transcript.commit_of(sender.id)
            if mine is not None and digest in mine.parts:
                return
        super().deliver_blob(sender, to, digest, lossless)


@pytest.mark.parametrize(("count", "seed", "honest_seconds"), [(3, 0, 0.4), (5, 0, 0.45), (5, 2, 0.45)])
def test_a_validator_waits_for_the_first_of_what_it_is_to_aggregate(
    count: int, seed: int, honest_seconds: float
) -> None:
    played = NothingForAValidator(count, seed, 60, honest_seconds, 0.005)
    played.run()
    played.check()


class BytesSlowToOne(NoncesForOne):
    """What honest members send to the first one takes some seconds, which it may."""

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        takes_seconds = self.takes_seconds(sender.id, to)
        if to == self.first.id and sender.id not in self.lying:
            takes_seconds = 1.6 + 0.4 * self.swarm.random.random()
        self.swarm.at(self.swarm.now + takes_seconds, lambda: self.swarm.arrive(to, digest))


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (9, 0)])
def test_who_is_not_shown_the_nonces_is_told_them_also_while_its_bytes_are_on_their_way(count: int, seed: int) -> None:
    played = BytesSlowToOne(count, seed, 30, 0.03, 0.005)
    played.run()
    played.check()


class SlowToApply(Overtaken):
    """The others need longer to apply a step than the liars and the fastest member for a whole one."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        for peer in self.honest[1:]:
            peer._apply = lambda effect, peer=peer: self.apply(peer, effect)  # type: ignore[method-assign]

    def apply(self, peer: FakePeer, effect: effects.ApplyUpdate) -> None:
        state = name("state", peer.node.catch_up.digest, effect.parts)
        peer.states[effect.step + 1] = state
        peer._later(3.0, events.StateReady(effect.step + 1, state))


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (9, 0)])
def test_who_has_no_state_yet_to_speak_with_keeps_its_place(count: int, seed: int) -> None:
    played = SlowToApply(count, seed, 30, 0.03, 0.005)
    played.run()
    played.check()


class SpentOnAValidator(Overtaken):
    """Liars let nobody but themselves and an honest validator in, who then has nothing to aggregate: others tire of
    waiting for it. From then on they keep their parts from it until it gives them up, and it is the last."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.validators: dict[int, PeerId | None] = {}
        for peer in self.swarm.list:
            peer.work_seconds = lambda step: 0.2

    def validator(self, machine: StepMachine) -> PeerId | None:
        """The one that is to be spent in a step, if a liar proposes."""
        step = machine.facts.head.step
        if step not in self.validators:
            honest = [one.validator for one in machine.facts.head.audits if one.validator not in self.lying]
            self.validators[step] = honest[0] if honest and machine.proposer(0) in self.lying else None
            self.chosen[step] = self.validators[step] is not None
        return self.validators[step]

    def corrupt(self, machine: StepMachine) -> None:
        Fast.corrupt(self, machine)
        if self.validator(machine) is not None:
            machine.holdings.whole_cut = lambda: self.cut_of(machine)  # type: ignore[assignment,method-assign,return-value]

    def cut_of(self, machine: StepMachine) -> Cut | None:
        said, peers = machine.transcript.commits, machine.facts.peers
        wanted = {*self.lying, self.validator(machine)}
        wanted |= set([peer for peer in peers if peer not in wanted][: max(0, machine.facts.quorum - len(wanted))])
        chosen = [(index, said[peer].digest) for index, peer in enumerate(peers) if peer in wanted and peer in said]
        is_whole = all(peer in said for peer in wanted if peer in peers)
        return Cut(machine.facts.head.previous, tuple(chosen)) if is_whole else None

    def is_kept_back(self, sender: FakePeer, to: PeerId, kind: int) -> bool:
        return False

    def is_spent(self, peer: PeerId) -> bool:
        tired = [one for one in self.honest if peer in one.node._timing.aggregates.spent()]
        return len(tired) >= len(self.honest) - 1

    def deliver_blob(self, sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        machine = sender.node.machine
        if sender.id in self.lying and to not in self.lying and machine is not None:
            mine = machine.transcript.commit_of(sender.id)
            is_part = mine is not None and digest in mine.parts
            if is_part and (to == self.validator(machine) or self.is_spent(to)):
                return
        super().deliver_blob(sender, to, digest, lossless)


def test_nobody_tires_of_a_validator_that_was_left_nothing_to_aggregate() -> None:
    played = SpentOnAValidator(5, 0, 80, 0.03, 0.005)
    played.run()
    played.check()
