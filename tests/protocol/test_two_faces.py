"""Liars that sign two messages for one slot, and show one to some honest members and the other to the rest.

The idea: whatever was heard first, all honest members agree on one header within a few views. Nothing that the liars
could do to settle a step is done, and all of this happens in the first step. SPEC R-2.12, R-4.20 to R-4.24, R-5.4.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from crowdsurf.protocol import assignment, events
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import part_subject
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Aggregate,
    Commit,
    Envelope,
    Kind,
    Payload,
    Projection,
    Reveal,
    bitmap_of,
    indexes_of,
)
from crowdsurf.protocol.projection import Line
from tests.protocol.court import EVEN, ODD, opened
from tests.protocol.swarm import RIGHT, FakePeer, Swarm, name

SETTLING = (Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.OUTCOME, Kind.PROPOSAL, Kind.ACCUSATION)
"""What liars keep to themselves."""
UNCHECKED, CHECKED = 0.0, 0.0625
"""Shares of audits with which aggregates are not checked, or are."""

Faces = Callable[[FakePeer, FakePeer, Envelope], list[Envelope]]
"""What a liar sends to a member in place of a message: (liar, member, message)."""


class TwoFaced:
    """A swarm with as many liars as it stands, which propose last. They are honest nodes whose messages of step 0 are
    changed on their way."""

    def __init__(self, count: int, rate: float, liars: int) -> None:
        self.swarm = Swarm(count, steps=6, audit=AuditSection(rate=rate))
        head = self.swarm.list[0].node.chain.head
        order = assignment.proposers(head.beacon, head.roster, head.step)
        peers = [self.swarm.peers[head.roster.peers[index]] for index in order]
        self.honest, self.liars = peers[: count - liars], peers[count - liars :]

    def agree(self, faces: Faces, seconds_max: float = 200.0) -> bool:
        """Whether all honest members soon certify the step, and nobody honest is banned."""
        send = self.swarm.deliver

        def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
            said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
            honest = self.swarm.peers[to] not in self.liars
            if said is None or said.step != 0 or sender not in self.liars or not honest:
                send(sender, to, event)
            elif said.kind not in SETTLING and said.sender == sender.id:  # nor do they tell on each other
                for other in faces(sender, self.swarm.peers[to], said):
                    send(sender, to, events.EnvelopeReceived(sender.id, other))

        self.swarm.deliver = deliver  # type: ignore[method-assign]
        self.swarm.start()
        ends = self.swarm.run(lambda: all(peer.node.chain.head.step > 1 for peer in self.honest), seconds_max)
        banned = {ban.peer for peer in self.honest for story in peer.stories for ban in story.banned}
        assert self.swarm.violations == []
        assert banned <= {liar.id for liar in self.liars}
        return ends


def again(liar: FakePeer, said: Envelope, payload: Payload) -> Envelope:
    """Something else in the slot of a message."""
    slot = Slot(said.step, said.view, said.kind, said.subject)
    return seal(liar.signer, Digest(said.run_id), slot, payload).envelope


@pytest.mark.parametrize("rate", [UNCHECKED, CHECKED])
@pytest.mark.parametrize(("count", "liars"), [(5, 2), (9, 4)])
def test_nonces_that_are_shown_to_one_member_each_stop_nobody(count: int, liars: int, rate: float) -> None:
    """Each liar signs two commits, and opens to one honest member the nonce of the one that the cut names, to the rest
    that of the other one: each of these members insists on a nonce that the others had no use for."""
    group = TwoFaced(count, rate, liars)
    friends = dict(zip((liar.id for liar in group.liars), group.honest, strict=False))

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        payload, other = opened(said).payload, name("other nonce", liar.id)
        if isinstance(payload, Commit):  # the honest one is heard first, so the cut names it
            second = again(liar, said, msgspec.structs.replace(payload, nonce_digest=nonce_digest(other)))
            late = events.EnvelopeReceived(liar.id, second)
            group.swarm.at(group.swarm.now + 0.1, lambda: to.give(late))
        elif isinstance(payload, Reveal) and friends[liar.id] is not to:
            return [again(liar, said, msgspec.structs.replace(payload, nonce=other))]
        return [said]

    assert group.agree(faces)


@pytest.mark.parametrize(("count", "liars"), [(5, 2), (9, 4)])
def test_projections_that_are_right_for_one_member_each_stop_nobody(count: int, liars: int) -> None:
    """Each liar shows a projection that is so to one honest member. What others hear first does not add up, in a line
    about a liar, so nobody objects to it."""
    group = TwoFaced(count, CHECKED, liars)
    friends = dict(zip((liar.id for liar in group.liars), group.honest, strict=False))
    about = group.honest[0].node.chain.head.roster.indexes[group.liars[0].id]

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        projection = opened(said).payload
        if not isinstance(projection, Projection) or friends[liar.id] is to:
            return [said]
        lines = list(projection.lines)
        lines[indexes_of(projection.included).index(about)] = (0.5, 0.0, 0.0, 1.0)
        return [again(liar, said, msgspec.structs.replace(projection, lines=tuple(lines)))]

    assert group.agree(faces)


@pytest.mark.parametrize("count", [3, 5])
def test_two_aggregates_for_two_halves_stop_nobody_where_they_are_not_checked(count: int) -> None:
    """Each with its bytes: each half refused every header with the other one, and every one without."""
    group = TwoFaced(count, UNCHECKED, 1)
    half = group.honest[: len(group.honest) // 2]

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        aggregate = opened(said).payload
        if not isinstance(aggregate, Aggregate) or to not in half:
            return [said]
        other = name("other", aggregate.part)
        liar.blobs.add(other)
        group.swarm.deliver_blob(liar, to.id, other)
        return [again(liar, said, msgspec.structs.replace(aggregate, digest=other))]

    assert group.agree(faces)


@pytest.mark.parametrize("count", [3, 5])
def test_two_that_include_others_with_the_same_bytes_stop_nobody(count: int) -> None:
    """A projection can belong to one of the two only: for half of the members the part counted, the others held it for
    unproven."""
    group = TwoFaced(count, CHECKED, 1)
    half = group.honest[: len(group.honest) // 2]

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        aggregate = opened(said).payload
        if not isinstance(aggregate, Aggregate) or to not in half:
            return [said]
        fewer = bitmap_of(indexes_of(aggregate.included)[1:], count)
        return [again(liar, said, msgspec.structs.replace(aggregate, included=fewer))]

    assert group.agree(faces)


@pytest.mark.parametrize("count", [3, 5])
def test_two_aggregates_that_each_half_has_heard_named_stop_nobody(count: int) -> None:
    """Each half is told, in a reveal of its own, that the liar has heard of the aggregate that this half was shown, and
    gets a projection of it that is false about somebody of the other half, for whom the part does not count."""
    group = TwoFaced(count, CHECKED, 1)
    middle = len(group.honest) // 2
    halves = group.honest[:middle], group.honest[middle:]
    indexes = group.honest[0].node.chain.head.roster.indexes
    aggregates = list[Aggregate]()

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        payload = opened(said).payload
        mine, theirs = halves if to in halves[0] else halves[::-1]
        if isinstance(payload, Aggregate):
            shown = msgspec.structs.replace(payload, digest=name("shown to", mine[0].id, payload.part))
            aggregates.append(shown)
            liar.blobs.add(shown.digest)
            group.swarm.deliver_blob(liar, to.id, Digest(shown.digest))
            return [again(liar, said, shown)]
        if not isinstance(payload, Reveal):
            return [] if isinstance(payload, Projection) else [said]
        names, projections = list(payload.aggregates), []
        for one in aggregates:
            if one.digest == name("shown to", mine[0].id, one.part):
                names[one.part] = one.digest
                projections.append(about(one, {indexes[theirs[0].id]: ODD, indexes[liar.id]: EVEN}))
        reveal = again(liar, said, msgspec.structs.replace(payload, aggregates=tuple(names)))
        slots = [Slot(0, 0, Kind.PROJECTION, part_subject(one)) for one in projections]
        shown_with_it = [
            seal(liar.signer, Digest(said.run_id), *pair).envelope for pair in zip(slots, projections, strict=True)
        ]
        return [reveal, *shown_with_it]

    assert group.agree(faces)


def about(aggregate: Aggregate, lies: dict[int, Line]) -> Projection:
    """What an aggregator publishes about its aggregate, into which everybody went, if it lies about these members."""
    included = indexes_of(aggregate.included)
    lines = [lies.get(index, RIGHT) for index in included]
    said = tuple((*line.projections, line.norm) for line in lines)
    return Projection(aggregate.cut, aggregate.part, aggregate.digest, aggregate.included, 1.0, said, 0)


def test_a_nonce_for_one_member_and_an_aggregate_for_the_other_stop_nobody() -> None:
    """Nothing is signed twice. One proposed headers without the other's part, the other void steps for want of a nonce:
    neither learned from the other's headers what it lacked."""
    group = TwoFaced(3, UNCHECKED, 1)
    first, second = group.honest
    kept_from = {int(Kind.REVEAL): second, int(Kind.AGGREGATE): first}
    assert group.agree(lambda liar, to, said: [] if kept_from.get(said.kind) is to else [said])


def test_reveals_of_commits_that_one_member_alone_was_shown_stop_nobody() -> None:
    """The liars' aggregates are shown to one member, with reveals that name them and open second commits, which it was
    shown too. The others cannot believe these reveals without the commits, and it insists on the parts."""
    group = TwoFaced(5, CHECKED, 2)
    friend, guilty = group.honest[0], {liar.id for liar in group.liars}

    def faces(liar: FakePeer, to: FakePeer, said: Envelope) -> list[Envelope]:
        payload, nonce = opened(said).payload, name("other nonce", liar.id)
        if isinstance(payload, Commit):
            second = msgspec.structs.replace(payload, nonce_digest=nonce_digest(nonce))
            late = events.EnvelopeReceived(liar.id, again(liar, said, second))
            if to is friend:  # the honest one is heard first, so the cut names it
                group.swarm.at(group.swarm.now + 0.1, lambda: friend.give(late))
        elif isinstance(payload, Aggregate):
            return [said] if to is friend else []
        elif isinstance(payload, Reveal):
            machine = liar.node.machine
            assert machine is not None
            assert machine.accepted is not None
            duties = zip(machine.accepted.duties, payload.aggregates, strict=True)
            unheard = tuple(b"" if duty in guilty else digest for duty, digest in duties)
            first = again(liar, said, msgspec.structs.replace(payload, aggregates=unheard))
            second_reveal = again(liar, said, msgspec.structs.replace(payload, nonce=nonce))
            return [first, second_reveal] if to is friend else [first]
        return [said]

    assert group.agree(faces)
