"""Whole nodes whose aggregates are checked: who lies about an aggregate is found, and nobody honest is ever banned.

The idea: the cheats are in `court.py`. Here a lie is any line that is not `RIGHT`, whether or not the lines add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from crowdsurf.protocol import events
from crowdsurf.protocol.cases import part_subject, proof_holds
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import run_id_of
from crowdsurf.protocol.messages import Accusation, Envelope, Kind, Projection, Reason, Reveal, indexes_of
from crowdsurf.protocol.projection import Line, clipping_of
from crowdsurf.protocol.tolerance import LENGTH_ERROR
from tests.protocol.court import (
    EVEN,
    NORM_ERROR,
    ODD,
    PROJECTION_ERROR,
    aggregate_late,
    answer_otherwise,
    assert_just,
    counting_parts,
    misproject,
    opened,
    others_of,
    proposer_of,
    publish_imbalance,
    round_otherwise,
    see_nothing,
    see_wrong_lines,
    watchful_swarm,
    working_swarm,
)
from tests.protocol.swarm import FakePeer, Swarm, verify_mac

pytestmark = pytest.mark.slow

STEP = 4


def banned_in(watcher: FakePeer) -> list[int]:
    """Steps whose headers ban somebody."""
    return [story.step for story in watcher.stories if story.banned]


def void_parts(watcher: FakePeer) -> list[int]:
    return [story.void_parts for story in watcher.stories]


def workers(swarm: Swarm) -> list[FakePeer]:
    """Peers that work in the step that is under way and do not validate."""
    head = swarm.list[0].node.chain.head
    return [peer for peer in swarm.list if head.roster.indexes[peer.id] not in head.validators]


@pytest.mark.parametrize("seed", range(3))
def test_lines_that_do_not_add_up_ban_in_the_very_step_and_void_their_part(seed: int) -> None:
    swarm = watchful_swarm(5, seed, steps=10)
    liar, watcher = swarm.list[seed], swarm.list[4]
    publish_imbalance(liar, range(STEP, 10))
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, liar, reason=Reason.WRONG_AGGREGATE)
    assert banned_in(watcher) == [STEP]
    assert counting_parts(watcher, liar, STEP) == [False]
    assert void_parts(watcher) == [0] * STEP + [1] + [0] * 5
    for peer in others_of(swarm, liar):
        (evidence,) = peer.evidence
        accusation = opened(evidence.accusation).payload
        assert isinstance(accusation, Accusation)
        assert proof_holds(accusation, run_id_of(swarm.manifest), verify_mac, clipping_of(swarm.manifest))
        assert (evidence.verdicts, evidence.exhibits) == ((), ())


@pytest.mark.parametrize("seed", range(3))
def test_a_lie_about_an_honest_contributor_bans_soon(seed: int) -> None:
    """Its victims vote against it at once; the others do so if they hear of it before they have voted."""
    swarm = watchful_swarm(5, seed, steps=16)
    liar, victim, other, watcher, _ = swarm.list
    lied_in = misproject(liar, {victim.id: ODD, other.id: EVEN}, range(STEP, 16))
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, liar, reason=Reason.WRONG_PROJECTION)
    (ban,) = banned_in(watcher)
    assert lied_in[0] < ban <= lied_in[0] + 3
    assert sum(void_parts(watcher)) <= len([step for step in lied_in if step <= ban])


def claim_on_the_edge(liar: FakePeer, lie: str) -> None:
    """All it says is off by just what honest computations may differ by."""
    about = Line((PROJECTION_ERROR, 0.0, 0.0), 1.0), Line((-PROJECTION_ERROR, 0.0, 0.0), 1.0)

    def change(event: events.Event) -> events.Event:
        if isinstance(event, events.PartProjected) and lie == "line" and len(event.lines) > 1:
            return replace(event, lines=(*about, *event.lines[2:]))
        if isinstance(event, events.PartProjected) and lie == "norm":
            return replace(event, norm=event.norm * (1 + NORM_ERROR))
        if isinstance(event, events.WorkDone) and lie == "length":
            return replace(event, norms=tuple(norm * (1 + LENGTH_ERROR) for norm in event.norms))
        return event

    answer_otherwise(liar, change)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("lie", "shares"),
    [("line", (0.4, -0.4, 0.4, 0.4)), ("length", (0.4, -0.4, 0.4, 0.4)), ("norm", (0.4, -0.4, -0.4))],
)
def test_a_claim_on_the_edge_of_what_is_allowed_neither_divides_nor_bans_anybody(
    lie: str, shares: tuple[float, ...], seed: int
) -> None:
    """Machines differ in the last bits. Whoever sees it beyond the edge must not be found wrong by those who see it
    within, nor must they block each other."""
    swarm = watchful_swarm(1 + len(shares), seed, steps=100)
    for peer, share in zip(swarm.list[1:], shares, strict=True):
        round_otherwise(peer, share)
    claim_on_the_edge(swarm.list[0], lie)
    swarm.start()
    assert swarm.run_to_end(9000)
    assert_just(swarm, reason=Reason.WRONG_PROJECTION)
    assert sum(void_parts(swarm.list[1])) == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_lie_about_a_silent_friend_is_found_by_an_audit(seed: int) -> None:
    """Until then the aggregate counts: nobody else can see that it is not so."""
    swarm = watchful_swarm(5, seed, steps=60)
    liar, friend, watcher = swarm.list[:3]
    see_nothing(liar)
    see_nothing(friend)
    lied_in = misproject(liar, {liar.id: ODD, friend.id: EVEN}, range(STEP, 60))
    swarm.start()
    assert swarm.run_to_end(6000)
    assert_just(swarm, liar, reason=Reason.WRONG_PROJECTION)
    assert counting_parts(watcher, liar, lied_in[0]) == [True]
    assert sum(void_parts(watcher)) == 0


@pytest.mark.parametrize("victim_index", [2, 3])
def test_a_false_objection_voids_one_part_at_most_and_bans_its_author(victim_index: int) -> None:
    swarm = working_swarm(5, STEP, steps=12)
    liar = workers(swarm)[0]
    victim = next(peer for peer in swarm.list[victim_index:] if peer is not liar)
    watcher = next(peer for peer in swarm.list if peer not in (liar, victim))
    see_wrong_lines(liar, {victim.id}, range(STEP, STEP + 1))
    assert swarm.run_to_end(3000)
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)
    assert sum(void_parts(watcher)) <= 1
    (ban,) = banned_in(watcher)
    assert STEP < ban <= STEP + 3


def test_false_objections_to_nearly_everybody_honest_send_nobody_to_rest() -> None:
    """Two liars after each other had three of five honest members rest at once, and their friends stood for half."""
    swarm = watchful_swarm(9, steps=28)
    liars, honest = swarm.list[:4], swarm.list[4:]
    victims = {peer.id for peer in honest[:3]}
    for number, liar in enumerate(liars[:2]):
        see_wrong_lines(liar, victims, range(17 + 2 * number, 19 + 2 * number))
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, *liars[:2], reason=Reason.FALSE_ACCUSATION)
    watcher = honest[0]
    assert len(victims) in void_parts(watcher)[17:21]  # a liar that validates has no line to object to
    roster = watcher.node.chain.head.roster
    assert {peer.id for peer in honest} <= set(roster.peers)
    assert roster.resting == ()
    assert not any(member.strikes for member in roster.members)


def test_an_aggregate_signed_after_the_nonces_were_open_counts_for_nothing() -> None:
    """Its author could have made it suit the directions. It was late, and nothing can be held against it."""
    swarm = working_swarm(5, STEP, steps=8)
    late, watcher = swarm.list[1], swarm.list[2]
    aggregate_late(swarm, late, STEP)
    assert swarm.run_to_end(3000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    assert counting_parts(watcher, late, STEP) == [False]
    assert void_parts(watcher) == [0] * STEP + [1] + [0] * 3
    assert not any(story.is_void for story in watcher.stories)


def test_an_aggregator_that_publishes_nothing_has_a_void_part_and_a_strike() -> None:
    swarm = working_swarm(5, STEP, steps=8)
    silent, watcher = swarm.list[1], swarm.list[2]
    send = swarm.deliver
    swarm.deliver = lambda sender, to, event: (  # type: ignore[method-assign]
        None
        if sender is silent and getattr(getattr(event, "envelope", None), "kind", 0) == Kind.PROJECTION
        else send(sender, to, event)
    )
    assert swarm.run_to_end(3000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    assert counting_parts(watcher, silent, STEP) == [False]
    strikes = {member.peer: member.strikes for member in watcher.node.chain.head.roster.members}
    assert strikes.get(silent.id, 4) > 0
    assert not any(count for peer, count in strikes.items() if peer != silent.id)


SILENT = (Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE)
"""What would settle a step."""


Change = Callable[[PeerId, Envelope], Envelope | None]
"""What a liar sends to somebody in place of a message; nothing."""


def working_swarm_with_two_faces(count: int, change: Change) -> tuple[Swarm, FakePeer]:
    """A member, which neither proposes nor validates, says in one step to each what `change` makes of its messages, and
    nothing that would settle the step."""
    swarm = working_swarm(count, STEP, steps=10)
    liar = next(peer for peer in workers(swarm) if peer is not proposer_of(swarm))
    send = swarm.deliver

    def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is None or sender is not liar or (said.step, said.sender) != (STEP, liar.id):
            send(sender, to, event)
            return
        other = None if said.kind in (*SILENT, Kind.OUTCOME) else change(to, said)
        if other is not None:
            send(sender, to, events.EnvelopeReceived(liar.id, other))

    swarm.deliver = deliver  # type: ignore[method-assign]
    return swarm, liar


@pytest.mark.parametrize("count", [5, 7])
def test_an_objection_that_half_of_the_members_are_shown_reaches_the_others(count: int) -> None:
    """Who has heard it lets the part not count, and who has not heard it does not do without: nobody had a quorum."""
    aware = set[PeerId]()

    def change(to: PeerId, said: Envelope) -> Envelope | None:
        return said if said.kind != Kind.ACCUSATION or to in aware else None

    swarm, liar = working_swarm_with_two_faces(count, change)
    honest = others_of(swarm, liar)
    aware |= {peer.id for peer in honest[: len(honest) // 2]}
    victim = next(peer for peer in honest if peer is not proposer_of(swarm))
    see_wrong_lines(liar, {victim.id}, range(STEP, STEP + 1))
    assert swarm.run_to_end(3000)
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)


@pytest.mark.parametrize("count", [5, 8])
def test_an_aggregator_that_says_something_else_to_everybody_is_objected_to(count: int) -> None:
    """To each a projection that is true about itself alone: each lets its own copy count, finds that of the others
    false, and nobody had a quorum."""

    def change(to: PeerId, said: Envelope) -> Envelope:
        projection = opened(said).payload
        if not isinstance(projection, Projection):
            return said
        members = swarm.list[0].node.chain.head.roster.peers
        others = [
            place
            for place, index in enumerate(indexes_of(projection.included))
            if members[index] not in (to, said.sender)
        ]
        lines = list(projection.lines)
        for number, place in enumerate(others):
            lines[place] = (0.5 if number == 0 else -0.5 / (len(others) - 1), *lines[place][1:])
        false = msgspec.structs.replace(projection, lines=tuple(lines))
        slot = Slot(said.step, said.view, Kind.PROJECTION, part_subject(false))
        return seal(liar.signer, said.run_id, slot, false).envelope

    swarm, liar = working_swarm_with_two_faces(count, change)
    assert swarm.run_to_end(3000)
    assert_just(swarm, liar, reason=Reason.EQUIVOCATION)


def test_reveals_that_name_other_aggregates_to_others_divide_nobody() -> None:
    """An aggregate that one honest member alone has heard of counts for those whom its author tells that it names it
    too. What some have heard they show to the others, and all agree on one header."""
    swarm = working_swarm(4, STEP, steps=10)
    liar = next(peer for peer in swarm.list if peer is not proposer_of(swarm))
    friend, _, doubter = others_of(swarm, liar)
    send = swarm.deliver

    def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is None or said.step != STEP or liar not in (sender, swarm.peers[to]):
            send(sender, to, event)
        elif to == liar.id:
            if said.kind not in SILENT:  # else its certificate would settle it
                send(sender, to, event)
        elif (said.kind == Kind.AGGREGATE and to != friend.id) or said.kind in SILENT:
            return
        elif said.kind == Kind.REVEAL and to == doubter.id:
            reveal = opened(said).payload
            assert isinstance(reveal, Reveal)
            other = msgspec.structs.replace(reveal, aggregates=(b"",) * len(reveal.aggregates))
            slot = Slot(STEP, 0, Kind.REVEAL, b"")
            send(sender, to, events.EnvelopeReceived(liar.id, seal(liar.signer, said.run_id, slot, other).envelope))
        else:
            send(sender, to, event)

    swarm.deliver = deliver  # type: ignore[method-assign]
    honest = others_of(swarm, liar)
    assert swarm.run(lambda: all(peer.node.chain.head.step > STEP + 1 for peer in honest), 400.0)
    assert swarm.violations == []
    assert not any(ban.peer in {peer.id for peer in honest} for one in friend.stories for ban in one.banned)
