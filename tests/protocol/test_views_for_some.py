"""What liars can do with the order in which honest members come to know of views and locks: no two headers of one step.

The idea: whole nodes and a punctual network, in which liars choose whom they tell what, and when; they sign no slot
twice. A view that is open for some honest members only, or a lock whose proof comes in pieces, once made two headers.
"""

from __future__ import annotations

import pytest

from crowdsurf.protocol import assignment, events
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Echo,
    Envelope,
    Kind,
    Payload,
    Prepare,
    ViewChange,
    Vote,
    header_digest,
    payload_digest,
)
from tests.protocol import test_forks
from tests.protocol.swarm import FakePeer, Swarm

SHOWN_AT_SECONDS = 9.0
"""When the header of view 0 is shown to those that stay there; they vote a second later."""


class OneLiar:
    """The first proposer shows its cut to one half of the honest members, and later its header. The others give up, and
    it asks for the next view as well, at these alone: they have a quorum there, and the first half hears one request
    too few to follow. Its own aggregate it keeps from them, so that theirs is another header."""

    def __init__(self, count: int) -> None:
        self.swarm = Swarm(count, steps=6, audit=AuditSection(rate=0.0625))
        head = self.swarm.list[0].node.chain.head
        self.liar, *self.honest = (
            self.swarm.peers[head.roster.peers[i]] for i in assignment.proposers(head.beacon, head.roster, 0)
        )
        self.gone_on, self.left = self.honest[: count // 2], self.honest[count // 2 :]
        self.votes: list[tuple[FakePeer, events.Event]] = []
        self.done = set[object]()
        self._deliver = self.swarm.deliver
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said, receiver = test_forks.of_first_step(event), self.swarm.peers[to]
        is_told = self.done.issuperset({peer.id for peer in self.gone_on})
        if sender is self.liar and not is_told and (said is None or said.step):
            return  # it does not show that it knows how the step ends
        if said is not None and sender is self.liar:
            return self.lie(receiver, said, event)
        if said is not None and receiver is self.liar and sender in self.gone_on and said.view == 1:
            self.help(sender, said)
        self._deliver(sender, to, event)

    def lie(self, receiver: FakePeer, said: Envelope, event: events.Event) -> None:
        if said.kind == Kind.VIEW_CHANGE:
            return
        if receiver in self.gone_on:
            is_own = said.kind == Kind.AGGREGATE and said.sender == self.liar.id
            if is_own or said.kind in (Kind.PROPOSAL, Kind.OUTCOME, Kind.ECHO, Kind.PREPARE, Kind.VOTE):
                return
        elif said.kind in (Kind.OUTCOME, Kind.PREPARE) and self.swarm.now < SHOWN_AT_SECONDS:
            return self.swarm.at(SHOWN_AT_SECONDS, lambda: self._deliver(self.liar, receiver.id, event))
        elif said.kind == Kind.VOTE:
            return self.votes.append((receiver, event))
        self._deliver(self.liar, receiver.id, event)

    def help(self, sender: FakePeer, said: Envelope) -> None:
        """Those that have gone on get what they need from the liar; the others its vote, when that is too late."""
        run_id, name = said.run_id, payload_digest(said.payload)
        if said.kind == Kind.VIEW_CHANGE and "view" not in self.done:
            self.tell(run_id, Kind.VIEW_CHANGE, ViewChange(None, 0))
        if said.kind == Kind.OUTCOME and "outcome" not in self.done:
            self.done.add("outcome")
            for kind, payload in (
                (Kind.ECHO, Echo(name, said.signature)),
                (Kind.PREPARE, Prepare(name)),
                (Kind.VOTE, Vote(name)),
            ):
                self.tell(run_id, kind, payload)
        if said.kind == Kind.VOTE:
            self.done.add(sender.id)
            if self.done.issuperset({peer.id for peer in self.gone_on}):
                for receiver, vote in self.votes:
                    receiver.give(vote)

    def tell(self, run_id: bytes, kind: Kind, payload: Payload) -> None:
        self.done.add("view")
        for peer in self.gone_on:
            self._deliver(self.liar, peer.id, test_forks.say(self.liar, run_id, 1, kind, payload))


@pytest.mark.parametrize("count", [5, 9])
def test_a_view_that_is_open_for_some_is_open_for_all(count: int) -> None:
    played = OneLiar(count)
    played.swarm.start()
    assert played.swarm.run(lambda: all(peer.node.chain.head.step >= 1 for peer in played.honest), 400.0)
    assert len({header_digest(peer.journal_certificates[0].header) for peer in played.honest}) == 1


class Reordered(test_forks.Fork):
    """The header is shown to the lone voter when its view is nearly over, and what it prepares there comes after what
    it says when it asks for the next view. The proposer of that one is honest."""

    def __init__(self, count: int) -> None:
        super().__init__(count, test_forks.prepare_something_else)
        order = [*self.liars, *self.others, self.alone]
        self.liars = [order[0], *order[len(order) - len(self.liars) + 1 :]]
        rest = [peer for peer in order if peer not in self.liars]
        self.others, self.alone, self.author = rest[:-1], rest[-1], self.liars[-1]
        self._shown = set[object]()

    def show(self, proposer: FakePeer, receiver: FakePeer, said: Envelope) -> None:
        if receiver in self._shown:
            return
        self._shown.add(receiver)
        self._show_late(proposer, receiver, said)

    def _show_late(self, proposer: FakePeer, receiver: FakePeer, said: Envelope) -> None:
        machine = self.alone.node.machine
        assert machine is not None
        if machine.phase.name != "SIGN":
            return self.swarm.at(self.swarm.now + 0.05, lambda: self._show_late(proposer, receiver, said))
        show = super().show
        self.swarm.at(machine._deadline - 0.2, lambda: show(proposer, receiver, said))

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said, receiver = test_forks.of_first_step(event), self.swarm.peers[to]
        is_own = said is not None and sender is self.alone and said.sender == sender.id
        if said is not None and is_own and receiver not in self.liars and said.kind == Kind.PREPARE and said.view == 0:
            return self.swarm.at(self.swarm.now + 0.45, lambda: receiver.give(event))
        return super().deliver(sender, to, event)


@pytest.mark.parametrize("count", [5, 9])
def test_a_lock_is_believed_in_whatever_order_things_come(count: int) -> None:
    played = Reordered(count)
    played.swarm.start()
    honest = [played.alone, *played.others]
    assert played.swarm.run(lambda: all(peer.node.chain.head.step >= 1 for peer in honest), 400.0)
    assert len({header_digest(peer.journal_certificates[0].header) for peer in honest}) == 1
