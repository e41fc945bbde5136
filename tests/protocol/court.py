"""Swarms with audits and the cheats in them, for tests of accusations and bans.

The idea: a cheat is an honest peer of `swarm.py` whose results or messages are changed on the way out, so what convicts
it is the product's own node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.assignment import aggregators, proposers
from crowdsurf.protocol.cases import part_subject, subject_of
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.envelope import Opened, Slot, open_envelope, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Envelope, Kind, Projection, Reason, bitmap_of, indexes_of
from crowdsurf.protocol.projection import PART_ELEMENTS_MAX, RULE_RADIUS, Line, line_tolerance
from crowdsurf.protocol.tolerance import LENGTH_ERROR
from tests.protocol.swarm import RIGHT, FakePeer, Swarm, name, projected, verify_mac

AUDIT = AuditSection(rate=0.0625)
BANNED = "this peer is banned from the run"


def watchful_swarm(count: int, seed: int = 0, steps: int = 60) -> Swarm:
    return Swarm(count, seed=seed, steps=steps, audit=AUDIT)


def bans_of(peer: FakePeer) -> list[tuple[PeerId, int]]:
    """Who was banned for what, as one peer's chain has it."""
    return [(PeerId(ban.peer), ban.reason) for story in peer.stories for ban in story.banned]


def assert_just(swarm: Swarm, *guilty: FakePeer, reason: Reason) -> None:
    """All the guilty and nobody else is banned, for this; the others have come to the same end."""
    assert swarm.violations == []
    honest = [peer for peer in swarm.list if peer not in guilty]
    for peer in honest:
        assert sorted(bans_of(peer)) == sorted((cheat.id, int(reason)) for cheat in guilty)
    steps = swarm.manifest.steps
    assert len({peer.states[steps] for peer in honest}) == 1
    assert all(peer.finished == BANNED for peer in guilty)


def forge(peer: FakePeer, from_step: int = 0) -> None:
    """It commits to parts that are not its gradient."""
    compute = peer._compute

    def forged(effect: effects.Effect) -> None:
        if isinstance(effect, effects.ComputeWork) and effect.step >= from_step:
            parts = tuple(name("forged", effect.step, part) for part in range(effect.parts))
            peer.blobs.update(parts)
            peer.beacons[effect.step] = peer.node.chain.head.beacon
            peer._later(0.2, events.WorkDone(effect.step, parts, 1.0, 32, (1.0,) * effect.parts))
        else:
            compute(effect)

    peer._compute = forged  # type: ignore[method-assign]


def idle(peer: FakePeer) -> None:
    """As validator, it makes its finding up."""
    compute = peer._compute

    def lazy(effect: effects.Effect) -> None:
        if isinstance(effect, effects.RecomputeWork) and effect.finder == peer.id:
            parts = tuple(name("gradient", effect.state, effect.seed, part) for part in range(effect.parts))
            finding = name("looks like a finding", effect.step)
            peer._later(0.01, events.WorkRecomputed(effect.step, effect.seed, peer.id, parts, finding))
        else:
            compute(effect)

    peer._compute = lazy  # type: ignore[method-assign]


ODD = Line((0.5, 0.0, 0.0), 1.0)
EVEN = Line((-0.5, 0.0, 0.0), 1.0)
"""Two lines that are not so of any aggregate here; together they add up to nothing."""


def compute_otherwise(peer: FakePeer, change: Callable[[effects.Effect], events.Event | None]) -> None:
    """Its worker answers some commands with something else (`change`, None for the honest answer)."""
    compute = peer._compute

    def altered(effect: effects.Effect) -> None:
        event = change(effect)
        if event is None:
            compute(effect)
        else:
            peer._later(0.01, event)

    peer._compute = altered  # type: ignore[method-assign]


def answer_otherwise(peer: FakePeer, change: Callable[[events.Event], events.Event]) -> None:
    """What its worker answers is changed on the way to its node."""
    later = peer._later
    peer._later = lambda seconds, event: later(seconds, change(event))  # type: ignore[method-assign]


PROJECTION_ERROR, NORM_ERROR = line_tolerance(1.0, RULE_RADIUS, PART_ELEMENTS_MAX)
"""How far two honest computations of a line like `RIGHT` may differ."""


def round_otherwise(peer: FakePeer, share: float) -> None:
    """Its machine adds up in another order than others: all it works out is off by so much of what honest computations
    may differ by."""

    def off(line: Line | None) -> Line | None:
        if line is None:
            return None
        return Line(
            tuple(one + share * PROJECTION_ERROR for one in line.projections), line.norm * (1 + share * NORM_ERROR)
        )

    def change(event: events.Event) -> events.Event:
        if isinstance(event, events.AggregatesChecked):
            return replace(event, lines=tuple(map(off, event.lines)), nothings=tuple(map(off, event.nothings)))
        if isinstance(event, events.WorkRecomputed):
            norms = tuple(norm * (1 + share * LENGTH_ERROR) for norm in event.norms)
            return replace(event, lines=tuple(map(off, event.lines)), norms=norms)
        return event

    answer_otherwise(peer, change)


def misproject(peer: FakePeer, lines: dict[PeerId, Line], steps: range) -> list[int]:
    """As aggregator it says this of the parts of some members, where they all went in, in some steps; those in which
    it did."""
    lied_in: list[int] = []

    def change(effect: effects.Effect) -> events.Event | None:
        if not isinstance(effect, effects.ProjectPart) or effect.step not in steps:
            return None
        members = peer.node.chain.head.roster.peers
        included = [members[index] for index, _ in effect.inputs]
        if not set(lines) <= set(included):
            return None
        lied_in.append(effect.step)
        said = tuple(lines.get(member, RIGHT) for member in included)
        return projected(effect, said)

    compute_otherwise(peer, change)
    return lied_in


def publish_imbalance(peer: FakePeer, steps: range) -> None:
    """As aggregator it signs lines that do not add up, in some steps, which its own node would not."""

    def change(effect: effects.Effect) -> events.Event | None:
        node, swarm = peer.node, peer.swarm
        if not isinstance(effect, effects.ProjectPart) or effect.step not in steps:
            return None
        included = bitmap_of([index for index, _ in effect.inputs], len(node.chain.head.roster))
        about = projected(effect, (ODD, *(RIGHT,) * (len(effect.inputs) - 1))).lines
        lines = tuple((*line.projections, line.norm) for line in about)
        said = Projection(effect.cut, effect.part, effect.aggregate, included, 1.0, lines, effect.absent)
        slot = Slot(effect.step, 0, Kind.PROJECTION, part_subject(said))
        envelope = seal(peer.signer, node.chain.run_id, slot, said).envelope
        for other in others_of(swarm, peer):
            swarm.deliver(peer, other.id, events.EnvelopeReceived(peer.id, envelope))
        return events.Tick()

    compute_otherwise(peer, change)


def see_wrong_lines(peer: FakePeer, aggregators: set[PeerId], steps: range) -> None:
    """It makes up what lines about its own part must say, of the aggregates of some members in some steps; so it
    objects to what they publish, although it is so."""

    def change(effect: effects.Effect) -> events.Event | None:
        machine = peer.node.machine
        if not isinstance(effect, effects.CheckAggregates) or effect.step not in steps:
            return None
        if machine is None or machine.accepted is None:
            return None
        duties = machine.accepted.duties
        lines = tuple(ODD if duties[part] in aggregators else RIGHT for part in range(len(duties)))
        return events.AggregatesChecked(effect.step, effect.aggregates, effect.beacon, lines, (RIGHT,) * len(duties))

    compute_otherwise(peer, change)


def see_nothing(peer: FakePeer) -> None:
    """It never objects to anything."""

    def change(effect: effects.Effect) -> events.Event | None:
        if not isinstance(effect, effects.CheckAggregates):
            return None
        count = len(effect.aggregates)
        names = effect.aggregates
        return events.AggregatesChecked(effect.step, names, effect.beacon, (None,) * count, (RIGHT,) * count)

    compute_otherwise(peer, change)


def aggregate_late(swarm: Swarm, peer: FakePeer, step: int) -> None:
    """It shows nobody what it has aggregated in a step before it has heard the nonces of all others."""
    send, waiting, heard = swarm.deliver, list[tuple[PeerId, events.Event]](), set[bytes]()

    def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if not isinstance(event, events.EnvelopeReceived) or event.envelope.step != step:
            send(sender, to, event)
        elif event.envelope.kind == Kind.AGGREGATE and event.envelope.sender == peer.id:
            waiting.append((to, event))
        else:
            send(sender, to, event)
            if event.envelope.kind == Kind.REVEAL and to == peer.id:
                heard.add(event.envelope.sender)
            if len(heard) == len(swarm.list) - 1:
                while waiting:
                    send(peer, *waiting.pop())

    swarm.deliver = deliver  # type: ignore[method-assign]


def counting_parts(watcher: FakePeer, aggregator: FakePeer, step: int) -> list[bool]:
    """Which of the parts that a member aggregated in a step count, as one peer's chain has it."""
    chain = Chain(watcher.swarm.manifest)
    for certificate in watcher.journal_certificates[:step]:
        chain.extend(certificate, verify_mac)
    head, header = chain.head, watcher.journal_certificates[step].header
    duties = aggregators(head.beacon, tuple(indexes_of(header.contributors)), len(head.roster))
    mine = head.roster.indexes[aggregator.id]
    return [bool(name) for name, duty in zip(header.parts, duties, strict=True) if duty == mine]


def say(swarm: Swarm, sender: FakePeer, accusation: Accusation, to: list[FakePeer], step: int | None = None) -> None:
    """Hand a signed accusation to some peers at once."""
    said_in = sender.node.chain.head.step if step is None else step
    slot = Slot(said_in, 0, Kind.ACCUSATION, subject_of(accusation))
    envelope = seal(sender.signer, sender.node.chain.run_id, slot, accusation).envelope
    for peer in to:
        peer.give(events.EnvelopeReceived(sender.id, envelope))


def others_of(swarm: Swarm, peer: FakePeer) -> list[FakePeer]:
    return [other for other in swarm.list if other is not peer]


def opened(envelope: Envelope) -> Opened:
    return open_envelope(envelope, envelope.run_id, verify_mac)


def run_until_drawn(swarm: Swarm, role: str) -> tuple[FakePeer, FakePeer, int]:
    """(validator, target, step the work was done in) of an audit that is to be done (or, as target, has been done)."""
    node = swarm.list[0].node
    swarm.start()
    assert swarm.run(lambda: node.chain.head.step > 2 and bool(node.chain.head.audits) and node.machine is not None)
    audit = node.chain.head.audits[0]
    if role == "target":
        step = node.chain.head.step
        assert swarm.run(lambda: all(peer.node.chain.head.step == step + 1 for peer in swarm.list))
    return swarm.peers[audit.validator], swarm.peers[audit.target], audit.step


def proposer_of(swarm: Swarm) -> FakePeer:
    """Who proposes first in the step that the first peer is in."""
    head = swarm.list[0].node.chain.head
    return swarm.peers[head.roster.peers[proposers(head.beacon, head.roster, head.step)[0]]]


def working_swarm(count: int = 4, step: int = 3, steps: int = 8) -> Swarm:
    """All peers are at work in the same step."""
    swarm = watchful_swarm(count, steps=steps)
    swarm.start()
    assert swarm.run(lambda: all(peer.node.chain.head.step == step and peer.node.machine for peer in swarm.list))
    return swarm
