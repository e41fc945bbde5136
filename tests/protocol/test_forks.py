"""What liars that sign twice, or too much, do to locks and nonces: nobody is led to another header, nor kept from one.

The idea: whole nodes, and a network in which the liars choose for each honest member what it gets of theirs.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from crowdsurf.protocol import assignment, events, limits, wire
from crowdsurf.protocol.chain import following_roster
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Echo,
    Envelope,
    Header,
    Kind,
    Payload,
    Prepare,
    Vote,
    header_digest,
    payload_digest,
)
from tests.protocol.swarm import FakePeer, Swarm, name

Deliver = Callable[[FakePeer, PeerId, events.Event], None]
SETTLING = (Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE, Kind.ACCUSATION)
FAR_VIEWS = range(100, 700)


def swarm_of(count: int) -> tuple[Swarm, list[FakePeer]]:
    """A swarm that has not begun, and its members in the order in which they propose."""
    swarm = Swarm(count, steps=6, audit=AuditSection(rate=0.0625))
    head = swarm.list[0].node.chain.head
    return swarm, [swarm.peers[head.roster.peers[i]] for i in assignment.proposers(head.beacon, head.roster, 0)]


def say(liar: FakePeer, run_id: bytes, view: int, kind: Kind, payload: Payload) -> events.EnvelopeReceived:
    return events.EnvelopeReceived(liar.id, seal(liar.signer, run_id, Slot(0, view, kind, b""), payload).envelope)


def of_first_step(event: events.Event) -> Envelope | None:
    said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
    return said if said is not None and said.step == 0 else None


class Fork:
    """Liars that let one honest member alone vote for a header without the part of one of them, and then help the
    others to another one. `before` is what they say to the others first, so that these do not believe that vote."""

    def __init__(self, count: int, before: Callable[[Fork, FakePeer, bytes, bytes], None]) -> None:
        self.swarm, order = swarm_of(count)
        liars = (count - 1) // 2
        self.liars, self.others, self.alone = order[:liars], order[liars:-1], order[-1]
        self.author = self.liars[-1]
        self.before = before
        self.name = b""
        self._done = set[object]()
        self._deliver: Deliver = self.swarm.deliver
        self.swarm.deliver = self.deliver  # type: ignore[method-assign]

    def deliver(self, sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said, receiver = of_first_step(event), self.swarm.peers[to]
        if said is not None and sender in self.liars and receiver not in self.liars:
            if said.kind == Kind.OUTCOME and said.view == 0:
                return self.show(sender, receiver, said)
            is_later = said.kind in (Kind.OUTCOME, Kind.PROPOSAL) and said.view > 0
            is_kept = said.kind == Kind.AGGREGATE and said.sender == self.author.id and receiver is self.alone
            if said.kind in SETTLING or is_later or is_kept:
                return None
        if said is not None and sender in self.others and said.kind == Kind.OUTCOME and said.view > 0:
            self.help(sender, said)
        if said is not None and sender in self.others and said.kind == Kind.VOTE:
            self.tell_the_lone_voter(sender, said.run_id)
        return self._deliver(sender, to, event)

    def show(self, proposer: FakePeer, receiver: FakePeer, said: Envelope) -> None:
        """The first header leaves out a part that all others hold."""
        header = wire.unpack(said.payload, Header, limits.ENVELOPE_BYTES_MAX)
        head, machine = proposer.node.chain.head, proposer.node.machine
        assert machine is not None
        assert machine.accepted is not None
        lost = machine.accepted.duties.index(self.author.id)
        parts, shown = ((*t[:lost], b"", *t[lost + 1 :]) for t in (header.parts, header.projections))
        header = msgspec.structs.replace(header, parts=parts, projections=shown)
        roster = following_roster(head, header, self.swarm.manifest.missed_steps_max)
        header = msgspec.structs.replace(header, next_roster=roster.digest)
        self.name = header_digest(header)
        outcome = say(proposer, said.run_id, 0, Kind.OUTCOME, header)
        self._deliver(proposer, receiver.id, outcome)
        for liar in self.liars[1:]:
            echo = Echo(self.name, outcome.envelope.signature)
            self._deliver(liar, receiver.id, say(liar, said.run_id, 0, Kind.ECHO, echo))
        for liar in self.liars:
            if receiver is not self.alone:
                self.before(self, receiver, liar.id, said.run_id)
            if receiver is self.alone:
                prepare = say(liar, said.run_id, 0, Kind.PREPARE, Prepare(self.name))
                self._deliver(liar, receiver.id, prepare)

    def help(self, proposer: FakePeer, said: Envelope) -> None:
        """The header of somebody honest in a later view gets what the liars can give."""
        if said.sender != proposer.id or said.view in self._done:
            return
        self._done.add(said.view)
        wanted = payload_digest(said.payload)
        for receiver in self.others:
            for liar in self.liars if self.before is prepare_something_else else self.liars[:-1]:
                for kind, payload in (
                    (Kind.ECHO, Echo(wanted, said.signature)),
                    (Kind.PREPARE, Prepare(wanted)),
                    (Kind.VOTE, Vote(wanted)),
                ):
                    self._deliver(liar, receiver.id, say(liar, said.run_id, said.view, kind, payload))

    def tell_the_lone_voter(self, voter: FakePeer, run_id: bytes) -> None:
        """Once all others have voted, the lone one gets the votes that its own header lacks."""
        self._done.add(voter.id)
        if self._done.issuperset(peer.id for peer in self.others) and "told" not in self._done:
            self._done.add("told")
            for liar in self.liars:  # by a short way
                vote = say(liar, run_id, 0, Kind.VOTE, Vote(self.name))
                self.swarm.at(self.swarm.now + 0.001, lambda vote=vote: self.alone.give(vote))  # type: ignore[misc]


def prepare_something_else(fork: Fork, receiver: FakePeer, liar: bytes, run_id: bytes) -> None:
    sender = fork.swarm.peers[PeerId(liar)]
    garbage = say(sender, run_id, 0, Kind.PREPARE, Prepare(name("another header")))
    fork._deliver(sender, receiver.id, garbage)


def fill_the_share(fork: Fork, receiver: FakePeer, liar: bytes, run_id: bytes) -> None:
    sender = fork.swarm.peers[PeerId(liar)]
    for view in FAR_VIEWS if sender is fork.author else ():
        for kind, payload in ((Kind.VOTE, Vote(name("junk"))), (Kind.PREPARE, Prepare(name("junk")))):
            receiver.give(say(sender, run_id, view, kind, payload))
    fork._deliver(sender, receiver.id, say(sender, run_id, 0, Kind.PREPARE, Prepare(fork.name)))


@pytest.mark.parametrize("count", [5, 9])
@pytest.mark.parametrize("before", [prepare_something_else, fill_the_share])
def test_prepares_for_other_headers_take_no_lock_from_anybody(
    count: int, before: Callable[[Fork, FakePeer, bytes, bytes], None]
) -> None:
    """Whoever does not believe an honest lock certifies another header with the liars' help."""
    fork = Fork(count, before)
    fork.swarm.start()
    honest = [fork.alone, *fork.others]
    assert fork.swarm.run(lambda: all(peer.node.chain.head.step >= 1 for peer in honest), 400.0)
    assert [one for one in fork.swarm.violations if "outcome" in one] == []
    assert len({header_digest(peer.journal_certificates[0].header) for peer in honest}) == 1


def test_a_share_that_was_filled_at_some_keeps_nobody_from_a_nonce() -> None:
    """Each of two liars of five fills its share at one honest member before it opens its nonce; that one votes for
    nothing without it."""
    swarm, order = swarm_of(5)
    liars, honest = order[-2:], order[:-2]
    victims = {liar.id: honest[number].id for number, liar in enumerate(liars)}
    deliver, filled = swarm.deliver, set[PeerId]()

    def changed(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = of_first_step(event)
        if said is not None and sender in liars and swarm.peers[to] not in liars:
            if said.kind in (Kind.PREPARE, Kind.VOTE, Kind.OUTCOME, Kind.PROPOSAL, Kind.ACCUSATION):
                return
            if said.kind == Kind.REVEAL and said.sender == sender.id and victims[sender.id] == to and to not in filled:
                filled.add(to)
                for view in range(100, 1300):
                    swarm.peers[to].give(say(sender, said.run_id, view, Kind.VOTE, Vote(name("junk"))))
        deliver(sender, to, event)

    swarm.deliver = changed  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run(lambda: all(peer.node.chain.head.step >= 1 for peer in honest), 400.0)
    assert len(filled) == 2
