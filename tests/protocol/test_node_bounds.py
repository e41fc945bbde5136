"""Floods: whatever strangers and members send, what a node keeps stays bounded and honest peers get their turn."""

from __future__ import annotations

import msgspec

from crowdsurf.protocol import assignment, effects, events, limits, wire
from crowdsurf.protocol.cases import part_subject
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import (
    Aggregate,
    Commit,
    Cut,
    Envelope,
    Join,
    Kind,
    Vote,
    bitmap_of,
    payload_digest,
)
from crowdsurf.protocol.node import Node
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import ELEMENTS, FakeSigner, Swarm, manifest_for, name, verify_mac

STRANGERS = [FakeSigner(number) for number in range(1000, 1000 + 2 * limits.ROSTER_PEERS_MAX)]


def started_swarm() -> Swarm:
    swarm = Swarm(4, steps=6)
    swarm.start()
    swarm.run(lambda: all(peer.node.chain.head.step == 2 and peer.node.machine for peer in swarm.list))
    return swarm


def vote(node: Node, signer: FakeSigner, step: int, number: int = 0) -> Envelope:
    return seal(signer, node.chain.run_id, Slot(step, number, Kind.VOTE, b""), Vote(name("x"))).envelope


def codes(wanted: list[effects.Effect]) -> list[Code]:
    return [effect.code for effect in wanted if isinstance(effect, effects.Refused)]


def finish(swarm: Swarm) -> None:
    assert swarm.run_to_end()
    assert swarm.violations == []
    assert all(story.void_parts == 0 for peer in swarm.list for story in peer.stories)


def test_a_member_ahead_of_us_is_buffered_up_to_its_share() -> None:
    swarm = started_swarm()
    node, sender = swarm.list[0].node, swarm.list[1]
    for number in range(limits.BUFFERED_MESSAGES_PER_PEER + 20):
        event = events.EnvelopeReceived(sender.id, vote(node, sender.signer, 3, number))
        full = number >= limits.BUFFERED_MESSAGES_PER_PEER
        assert codes(node.handle(event, swarm.now)) == ([Code.QUEUE_FULL] if full else [])
    assert len(node._early[sender.id]) == limits.BUFFERED_MESSAGES_PER_PEER
    finish(swarm)


def test_strangers_take_no_room_in_the_buffer_of_early_messages() -> None:
    """One message each of many identities would otherwise lock every member out, and hold a lot of memory."""
    swarm = started_swarm()
    node = swarm.list[0].node
    for stranger in STRANGERS:
        event = events.EnvelopeReceived(stranger.peer_id, vote(node, stranger, 3))
        assert codes(node.handle(event, swarm.now)) == [Code.NOT_MEMBER]
    assert node._early == {}
    member = swarm.list[1]
    assert codes(node.handle(events.EnvelopeReceived(member.id, vote(node, member.signer, 3)), swarm.now)) == []
    assert set(node._early) == {member.id}
    finish(swarm)


def test_a_newcomer_about_to_enter_may_be_early() -> None:
    swarm = started_swarm()
    node, newcomer = swarm.list[0].node, STRANGERS[0]
    join = seal(newcomer, node.chain.run_id, Slot(2, 0, Kind.JOIN, b""), Join()).envelope
    assert codes(node.handle(events.EnvelopeReceived(newcomer.peer_id, join), swarm.now)) == []
    assert codes(node.handle(events.EnvelopeReceived(newcomer.peer_id, vote(node, newcomer, 3)), swarm.now)) == []
    finish(swarm)


def test_claims_to_be_ahead_are_bounded_and_members_are_asked_first() -> None:
    swarm = started_swarm()
    node, member = swarm.list[0].node, swarm.list[2]
    some = swarm.list[0].journal_certificates[-1]
    far = msgspec.structs.replace(some, header=msgspec.structs.replace(some.header, step=2**40))
    asked: list[effects.RequestChain] = []
    for stranger in STRANGERS:
        wanted = node.handle(events.CertificateReceived(stranger.peer_id, far), swarm.now)
        wanted += node.handle(events.EnvelopeReceived(stranger.peer_id, vote(node, stranger, 2**41)), swarm.now)
        assert codes(wanted) == [Code.FUTURE, Code.FUTURE]
        asked += [effect for effect in wanted if isinstance(effect, effects.RequestChain)]
    assert len(node._ahead) <= limits.ROSTER_PEERS_MAX
    assert len(asked) == 1
    node.handle(events.EnvelopeReceived(member.id, vote(node, member.signer, 4)), swarm.now)
    wanted = node.handle(events.ChainFailed(asked[0].peer), swarm.now)
    assert effects.RequestChain(member.id, 2) in wanted
    assert len(node._ahead) <= limits.ROSTER_PEERS_MAX + 4


def test_broken_connections_of_strangers_are_not_remembered() -> None:
    swarm = started_swarm()
    node = swarm.list[0].node
    for stranger in STRANGERS:
        node.handle(events.PeerGone(stranger.peer_id), swarm.now)
    assert node._gone == set()
    node.handle(events.PeerGone(swarm.list[3].id), swarm.now)
    assert node._gone == {swarm.list[3].id}
    node.handle(events.PeerSeen(swarm.list[3].id), swarm.now)
    finish(swarm)


def test_peers_that_are_no_contacts_any_more_are_forgotten() -> None:
    swarm = started_swarm()
    node, newcomer = swarm.list[0].node, STRANGERS[0]
    for signer in STRANGERS[: limits.CANDIDATES_MAX + 5]:
        join = seal(signer, node.chain.run_id, Slot(2, 0, Kind.JOIN, b""), Join()).envelope
        node.handle(events.EnvelopeReceived(signer.peer_id, join), swarm.now)
        node.handle(events.PeerGone(signer.peer_id), swarm.now)
    assert newcomer.peer_id in node._gone
    swarm.run(lambda: node.chain.head.step > 2)
    assert newcomer.peer_id not in node._gone
    assert len(node._gone) <= limits.CANDIDATES_MAX


def test_a_flood_of_newcomers_changes_contacts_only_within_bounds() -> None:
    swarm = started_swarm()
    node = swarm.list[0].node
    for stranger in STRANGERS:
        join = seal(stranger, node.chain.run_id, Slot(2, 0, Kind.JOIN, b""), Join()).envelope
        for effect in node.handle(events.EnvelopeReceived(stranger.peer_id, join), swarm.now):
            assert isinstance(effect, effects.RosterChanged)
            assert len(effect.peers) <= 3 + limits.CANDIDATES_MAX
    commit = swarm.run(lambda: any(isinstance(o.payload, Commit) for o in own_messages(node)))
    assert commit
    assert all(
        len(o.payload.joins) <= limits.JOINS_PER_COMMIT_MAX for o in own_messages(node) if isinstance(o.payload, Commit)
    )
    finish(swarm)


def own_messages(node: Node) -> list:  # type: ignore[type-arg]
    return node.machine.transcript.own(node.me) if node.machine is not None else []


def test_wants_are_answered_to_contacts_only_and_with_what_is_there() -> None:
    swarm = started_swarm()
    node, member = swarm.list[0].node, swarm.list[1]
    swarm.run(lambda: node.machine is not None and len(node.machine.transcript.commits) == 4)
    assert node.machine is not None
    wanted = tuple(opened.digest for opened in node.machine.transcript.commits.values())
    unknown = tuple(name(number) for number in range(limits.WANTS_PER_MESSAGE_MAX))
    assert node.handle(events.WantReceived(STRANGERS[0].peer_id, wanted), swarm.now) == []
    assert node.handle(events.WantReceived(member.id, unknown), swarm.now) == []
    answers = node.handle(events.WantReceived(member.id, wanted), swarm.now)
    assert [effect.to for effect in answers if isinstance(effect, effects.SendEnvelope)] == [(member.id,)] * 4
    finish(swarm)


def test_proofs_of_equivocation_are_bounded() -> None:
    step = CompleteStep(4)
    me = next(signer for signer in map(FakeSigner, range(4)) if signer.peer_id == step.peers[0])
    node = Node(step.manifest, me, verify_mac, ELEMENTS)
    node.handle(events.StateReady(0, step.facts.state), 0.0)
    for number in range(limits.EVIDENCE_MAX + 20):
        commit = Commit(step.head.previous, step.facts.state, (name(number),) * 4, name("nonce"), 0.0, 0)
        node.handle(events.EnvelopeReceived(step.peers[1], step.say(1, Kind.COMMIT, commit).envelope), 0.0)
    assert len(node.evidence) == limits.EVIDENCE_MAX


def test_a_finished_peer_helps_members_and_nobody_else() -> None:
    swarm = started_swarm()
    finish(swarm)
    node, member = swarm.list[0].node, swarm.list[1]
    (helped,) = node.handle(events.EnvelopeReceived(member.id, vote(node, member.signer, 3)), swarm.now)
    assert isinstance(helped, effects.SendCertificates)
    assert [certificate.header.step for certificate in helped.certificates] == [3, 4, 5]
    for sender in STRANGERS[:3]:
        assert node.handle(events.EnvelopeReceived(sender.peer_id, vote(node, sender, 0)), swarm.now) == []


def test_a_straggler_is_helped_once_per_step_and_strangers_never() -> None:
    swarm = started_swarm()
    node, member = swarm.list[0].node, swarm.list[1]
    late = [events.EnvelopeReceived(member.id, vote(node, member.signer, 0)) for _ in range(5)]
    sent = [effect for event in late for effect in node.handle(event, swarm.now)]
    assert len([effect for effect in sent if isinstance(effect, effects.SendCertificates)]) == 1
    strange = events.EnvelopeReceived(STRANGERS[0].peer_id, vote(node, STRANGERS[0], 0))
    assert codes(node.handle(strange, swarm.now)) == [Code.STALE]
    assert len(node._helped) == 1
    swarm.run(lambda: node.chain.head.step == 3)
    again = node.handle(late[0], swarm.now)
    assert any(isinstance(effect, effects.SendCertificates) for effect in again)
    finish(swarm)


def test_who_asks_to_join_in_a_past_step_is_shown_the_newest_certificate_and_takes_no_room_for_stragglers() -> None:
    swarm = started_swarm()
    node, member = swarm.list[0].node, swarm.list[1]
    shown = []
    for number in range(100, 100 + limits.ROSTER_PEERS_MAX):
        stranger = FakeSigner(number)
        said = seal(stranger, node.chain.run_id, Slot(node.chain.head.step - 1, 0, Kind.JOIN, b""), Join()).envelope
        sent = node.handle(events.EnvelopeReceived(stranger.peer_id, said), swarm.now)
        shown += [effect for effect in sent if isinstance(effect, effects.SendCertificates)]
    assert len(shown) == limits.CANDIDATES_MAX
    assert {effect.certificates[0].header.step for effect in shown} == {node.chain.head.step - 1}
    late = node.handle(events.EnvelopeReceived(member.id, vote(node, member.signer, 0)), swarm.now)
    assert any(isinstance(effect, effects.SendCertificates) and effect.to == (member.id,) for effect in late)
    finish(swarm)


def test_the_last_words_of_strangers_take_no_memory() -> None:
    swarm = started_swarm()
    node = swarm.list[0].node
    for stranger in STRANGERS:
        said = seal(stranger, node.chain.run_id, Slot(node.chain.head.step - 1, 0, Kind.VOTE, b""), Vote(name("x")))
        assert codes(node.handle(events.EnvelopeReceived(stranger.peer_id, said.envelope), swarm.now)) == [Code.STALE]
    assert not node._late_words & {(stranger.peer_id, int(Kind.VOTE)) for stranger in STRANGERS}
    finish(swarm)


def test_the_newest_step_number_and_the_largest_group_are_no_trouble() -> None:
    signers = [FakeSigner(number) for number in range(limits.ROSTER_PEERS_MAX)]
    manifest = manifest_for(signers, peers_max=limits.ROSTER_PEERS_MAX)
    node = Node(manifest, signers[0], verify_mac, ELEMENTS)
    assert node.handle(events.StateReady(0, name("state 0")), 0.0)
    last = seal(signers[1], node.chain.run_id, Slot(2**48, 65535, Kind.VOTE, b""), Vote(name("x"))).envelope
    assert codes(node.handle(events.EnvelopeReceived(PeerId(last.sender), last), 0.0)) == [Code.FUTURE]


def test_aggregates_of_cuts_that_nobody_accepted_take_no_memory() -> None:
    """A member may propose in every later view that is its own, each time a cut of commits that it made up, and say
    what its part of each is: room is made for none of them."""
    swarm = started_swarm()
    node, liar = swarm.list[0].node, swarm.list[1]
    head, size = node.chain.head, len(swarm.list)
    place = assignment.proposers(head.beacon, head.roster, head.step).index(head.roster.indexes[liar.id])
    part = assignment.aggregators(head.beacon, tuple(range(size)), size).index(head.roster.indexes[liar.id])
    wanted: list[effects.Effect] = []
    for number in range(20):
        cut = Cut(head.previous, tuple((index, name("made up", number, index)) for index in range(size)))
        aggregate = Aggregate(payload_digest(wire.pack(cut)), part, name("aggregate", number), bitmap_of([0, 1], size))
        for kind, view, subject, payload in (
            (Kind.PROPOSAL, place + size * (number + 1), b"", cut),
            (Kind.AGGREGATE, 0, part_subject(aggregate), aggregate),
        ):
            envelope = seal(liar.signer, node.chain.run_id, Slot(head.step, view, kind, subject), payload).envelope
            wanted += node.handle(events.EnvelopeReceived(liar.id, envelope), swarm.now)
    assert codes(wanted) == []
    assert not any(isinstance(effect, effects.ExpectAggregate) for effect in wanted)
    finish(swarm)
