"""Swarms with audits and the cheats in them, for tests of accusations and bans.

The idea: a cheat is an honest peer of `swarm.py` whose results or messages are changed on the way out, so what convicts
it is the product's own node.
"""

from __future__ import annotations

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.cases import subject_of
from crowdsurf.protocol.envelope import Opened, Slot, open_envelope, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Envelope, Kind, Reason
from tests.protocol.swarm import FakePeer, Swarm, name, verify_mac

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
            peer._later(0.2, events.WorkDone(effect.step, parts, 1.0, 32))
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


def working_swarm(count: int = 4, step: int = 3, steps: int = 8) -> Swarm:
    """All peers are at work in the same step."""
    swarm = watchful_swarm(count, steps=steps)
    swarm.start()
    assert swarm.run(lambda: all(peer.node.chain.head.step == step and peer.node.machine for peer in swarm.list))
    return swarm
