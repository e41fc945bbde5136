"""What a proposer can do with the cut: show it to some, show it late, keep back what it names, show two.

The idea: whole nodes, and liars that propose to all but nearly half of the members: one less than drag the others into
the next view, and too few for it to be the network that failed. Whoever does not act on the cut misses the step.
"""

from __future__ import annotations

import pytest

from crowdsurf.protocol import events, limits, wire
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Cut, Envelope, Kind, Reason
from tests.protocol.lying_minority import LyingMinority
from tests.protocol.swarm import FakePeer

pytestmark = pytest.mark.slow

COUNT, STEPS = 9, 16


class KeptBack(LyingMinority):
    """Four liars of nine, and four honest members from whom they keep what decides who acts on a cut."""

    def __init__(self, seed: int, late_seconds: float = 0.0, kinds: tuple[Kind, ...] = (Kind.PROPOSAL,)) -> None:
        super().__init__(COUNT, seed, STEPS)
        self.victims = {peer.id for peer in self.honest[1:]}
        self.late_seconds = late_seconds
        self.kinds = kinds
        self._deliver = self.swarm.deliver
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is None or sender not in self.liars or said.sender != sender.id or said.kind not in self.kinds:
            return self._deliver(sender, to, event)
        if to in self.victims:
            return self.to_victim(sender, to, said)
        if self.late_seconds and said.kind == Kind.PROPOSAL:
            return self.swarm.at(self.swarm.now + self.late_seconds, lambda: self.swarm.peers[to].give(event))
        return self._deliver(sender, to, event)

    def to_victim(self, sender: FakePeer, to: PeerId, said: Envelope) -> None:
        """Nothing."""


@pytest.mark.parametrize(("seed", "late_seconds"), [(0, 0.0), (1, 0.0), (0, 0.95), (1, 0.99)])
def test_a_cut_that_nearly_half_are_not_shown_costs_nobody_its_place(seed: int, late_seconds: float) -> None:
    """Whoever accepts it shows it to them, and they act on it also when they have given up on the view by then."""
    played = KeptBack(seed, late_seconds)
    played.run()
    assert played.honest_strikes() == [0] * 5


def test_commits_that_a_cut_names_and_nearly_half_were_not_sent_are_had_of_whoever_shows_the_cut() -> None:
    played = KeptBack(1, kinds=(Kind.PROPOSAL, Kind.COMMIT))
    played.run()
    assert played.honest_strikes() == [0] * 5


class TwoCuts(KeptBack):
    """The victims are shown another cut: one without its proposer, or without the first one in it."""

    def to_victim(self, sender: FakePeer, to: PeerId, said: Envelope) -> None:
        cut = wire.unpack(said.payload, Cut, limits.ENVELOPE_BYTES_MAX)
        other = Cut(cut.previous, cut.commits[1:])
        slot = Slot(said.step, said.view, Kind.PROPOSAL, b"")
        shown = seal(sender.signer, said.run_id, slot, other).envelope
        self._deliver(sender, to, events.EnvelopeReceived(sender.id, shown))


@pytest.mark.parametrize("seed", [0, 1])
def test_who_proposes_two_cuts_is_banned_and_whoever_acted_on_one_of_them_is_blamed_for_nothing(seed: int) -> None:
    played = TwoCuts(seed)
    played.run()
    assert played.honest_strikes() == [0] * 5
    bans = [ban for _, ban in played.honest[0].node.chain.bans]
    assert bans
    assert {ban.reason for ban in bans} == {Reason.EQUIVOCATION}
    assert {ban.peer for ban in bans} <= played.lying


class LateParts(KeptBack):
    """Nothing is kept back but parts: whoever asks for one is given it, after half of the time that it would wait. Only
    the victims learn to wait longer from that."""

    def __init__(self, seed: int, kinds: tuple[Kind, ...] = ()) -> None:
        super().__init__(seed, kinds=kinds)
        deliver_blob = self.swarm.deliver_blob

        def late(sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
            if lossless or sender.id not in self.lying or to not in self.victims:
                deliver_blob(sender, to, digest, lossless)

        self.swarm.deliver_blob = late  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", [0, 1])
def test_whom_liars_teach_to_wait_longer_is_not_too_late_for_the_others(seed: int) -> None:
    played = LateParts(seed)
    played.run()
    assert played.honest_strikes() == [0] * 5


class SlowAcross(LateParts):
    """Cuts and commits are kept back, too, and whatever honest members tell the victims takes as long as it may."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, kinds=(Kind.PROPOSAL, Kind.COMMIT))

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        is_across = (sender.id in self.victims) != (to in self.victims)
        if is_across and not self.lying & {sender.id, to}:
            return self.swarm.at(self.swarm.now + 0.45, lambda: self.swarm.peers[to].give(event))
        return super().deliver(sender, to, event)


@pytest.mark.parametrize("seed", [0, 2])
def test_who_accepts_a_cut_three_deliveries_later_aggregates_in_time(seed: int) -> None:
    played = SlowAcross(seed)
    played.run()
    assert played.honest_strikes() == [0] * 5
