"""A member that signs nonsense: whatever fields its messages have, no honest node raises, and all agree.

The idea: one of four runs the real rules, but some of its messages are changed in one field and signed anew before
they leave, differently for every receiver or the same for all. What such a member may still do to the *content* of a
step is listed in SPEC.md; here it must neither crash nor split the others, and at this dose it does not stop them
either.
"""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crowdsurf.protocol import events, wire
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import PAYLOAD_TYPES, Envelope, Kind, Payload
from crowdsurf.protocol.node import Node
from tests.protocol.builders import CompleteStep
from tests.protocol.strategies import PAYLOADS
from tests.protocol.swarm import ELEMENTS, FakePeer, FakeSigner, Swarm, verify_mac


def garbled(envelope: Envelope, signer: FakeSigner, chance: random.Random) -> Envelope:
    """The message with one field of its payload or slot changed, signed with the sender's own key."""
    kind = Kind(envelope.kind)
    payload: Payload = wire.unpack(envelope.payload, PAYLOAD_TYPES[kind], 1 << 16)
    step, view, subject = envelope.step, envelope.view, envelope.subject
    fields = [field.name for field in msgspec.structs.fields(payload)]
    choice = chance.choice([*fields, "step", "view", "subject"])
    if choice in fields:
        payload = msgspec.structs.replace(payload, **{choice: other_value(getattr(payload, choice), chance)})
    elif choice == "step":
        step += chance.choice([-1, 1, 2, 1000]) if step else 1
    elif choice == "view":
        view += chance.choice([1, 2, 60_000])
    else:
        subject = chance.randbytes(34)
    return seal(signer, envelope.run_id, Slot(step, view, kind, subject), payload).envelope


def other_value(value: object, chance: random.Random) -> object:
    """Another value of the same type; out of bounds now and then."""
    if isinstance(value, bytes):
        return chance.choice([b"", bytes(len(value)), chance.randbytes(len(value)), value + b"\0"])
    if isinstance(value, int):
        return chance.choice([0, value + 1, 255, 256, 2**40])
    if isinstance(value, float):
        return chance.choice([float("nan"), float("inf"), -1e308])
    if isinstance(value, tuple):
        shuffled = list(value)
        chance.shuffle(shuffled)
        return chance.choice([(), value[:1], value * 2, tuple(shuffled)])
    return None


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_member_whose_messages_are_garbled_neither_crashes_nor_splits_the_others(seed: int, alike: bool) -> None:
    """Told everybody alike they are no proof against it, so that it stays longer."""
    swarm = Swarm(4, seed=seed, steps=6, audit=AuditSection(rate=0.25))
    liar = swarm.list[seed % 4]
    deliver = swarm.deliver
    told: dict[Envelope, Envelope] = {}

    def said(envelope: Envelope) -> Envelope:
        if alike and envelope in told:
            return told[envelope]
        is_garbled = swarm.random.random() < 0.3 and (envelope.sender == liar.id or not alike)
        told[envelope] = garbled(envelope, liar.signer, swarm.random) if is_garbled else envelope
        return told[envelope]

    def lie(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if sender is liar and isinstance(event, events.EnvelopeReceived):
            event = events.EnvelopeReceived(liar.id, said(event.envelope))
        deliver(sender, to, event)

    swarm.deliver = lie  # type: ignore[method-assign]
    swarm.start()
    honest = [peer for peer in swarm.list if peer is not liar]
    assert swarm.run(lambda: all(peer.finished for peer in honest), 3000)
    assert swarm.violations == []
    assert len({peer.states[6] for peer in honest}) == 1
    assert {ban.peer for peer in honest for story in peer.stories for ban in story.banned} <= {liar.id}


STEP = CompleteStep(4)
ME = next(FakeSigner(number) for number in range(4) if FakeSigner(number).peer_id == STEP.peers[0])


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_signed_payload_raises_anything(data: st.DataObject) -> None:
    """Random payloads of every kind from members, into a node that has heard a whole step already."""
    node = Node(STEP.manifest, ME, verify_mac, ELEMENTS)
    node.handle(events.StateReady(0, STEP.facts.state), 0.0)
    for peer in STEP.peers[1:]:
        for opened in STEP.transcript.own(peer):
            node.handle(events.EnvelopeReceived(peer, opened.envelope), 0.0)
    now = 0.0
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(sorted(Kind)))
        payload = data.draw(PAYLOADS[PAYLOAD_TYPES[kind]])
        slot = Slot(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3)), kind, data.draw(st.binary(max_size=64)))
        sender = data.draw(st.integers(1, 3))
        envelope = seal(STEP.signers[sender], STEP.run_id, slot, payload).envelope
        node.handle(events.EnvelopeReceived(STEP.peers[sender], envelope), now)
        now += data.draw(st.sampled_from([0.0, 0.4, 30.0]))
        node.handle(events.Tick(), now)
