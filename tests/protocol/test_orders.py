"""The order in which messages come, and how often, cannot matter: the same step has the same outcome.

Two ways to ask: whole swarms with a different network each, and one node that hears one step's messages in any order.
"""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import DeadlineSection
from crowdsurf.protocol.messages import Header
from crowdsurf.protocol.node import Node
from tests.protocol.swarm import ELEMENTS, FakePeer, FakeSigner, Swarm, name, verify_mac

DEADLINES = DeadlineSection(
    work_seconds_min=0.5,
    work_seconds_max=10.0,
    transfer_seconds_min=2.0,
    transfer_seconds_max=5.0,
    delivery_seconds=0.5,
)
"""No transfer takes longer than the shortest wait: how long they take, which commits name, is the one thing that may
differ."""


def final_head(seed: int, disturbed: bool) -> object:
    """The head after five steps; a disturbed network delays up to five times as long and delivers twice or thrice."""
    swarm = Swarm(4, seed=seed, steps=5, deadlines=DEADLINES)
    deliver = swarm.deliver

    def deliver_often(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        for _ in range(swarm.random.randint(1, 3)):
            deliver(sender, to, event)

    if disturbed:
        swarm.deliver = deliver_often  # type: ignore[method-assign]
        swarm.delay = lambda: swarm.random.random() * 0.1
    swarm.start()
    assert swarm.run_to_end()
    assert swarm.violations == []
    heads = {(peer.node.chain.head.previous, peer.states[5]) for peer in swarm.list}
    assert len(heads) == 1
    return heads.pop()


@functools.cache
def undisturbed_head() -> object:
    return final_head(0, disturbed=False)


@pytest.mark.parametrize("seed", range(15))
def test_duplicates_and_any_order_within_the_deadlines_give_the_same_chain(seed: int) -> None:
    assert final_head(seed, disturbed=True) == undisturbed_head()


@functools.cache
def one_step() -> tuple[Swarm, list[events.Event], Header]:
    """Everything peer 0 of four hears in an undisturbed step 0, and what the step ended with."""
    swarm = Swarm(4, steps=1)
    heard: list[events.Event] = []
    listener = swarm.list[0]
    give = listener.give

    def listen(event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived | events.BlobArrived):
            heard.append(event)
        give(event)

    listener.give = listen  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end()
    return swarm, heard, listener.journal_certificates[0].header


def outcome_of(inbox: list[events.Event]) -> Header | None:
    """What a fresh peer 0 makes of these events at one moment of time; its own computations are instant."""
    swarm, _, _ = one_step()
    node = Node(swarm.manifest, FakeSigner(0), verify_mac, ELEMENTS)
    queue: list[events.Event] = [events.StateReady(0, name("state 0")), *inbox]
    while queue:
        for effect in node.handle(queue.pop(0), 0.0):
            if isinstance(effect, effects.ComputeWork):
                parts = tuple(name("gradient", name("state 0"), effect.seed, part) for part in range(effect.parts))
                queue.insert(0, events.WorkDone(effect.step, parts, 1.0, 32))
            elif isinstance(effect, effects.AggregatePart):
                included = tuple(member for member, _ in effect.inputs)
                result = name("aggregate", effect.inputs)
                queue.insert(0, events.PartAggregated(effect.step, effect.cut, effect.part, result, included))
            elif isinstance(effect, effects.PersistCertificate):
                return effect.certificate.header
    return None


@settings(max_examples=70)
@given(st.data())
def test_one_step_heard_in_any_order_and_any_number_of_times(data: st.DataObject) -> None:
    _, heard, header = one_step()
    repeated = [event for event in heard for _ in range(data.draw(st.integers(1, 2)))]
    assert outcome_of(data.draw(st.permutations(repeated))) == header


def test_without_the_messages_of_two_of_four_there_is_no_outcome() -> None:
    """The property above can fail: it needs what it is given."""
    _, heard, _ = one_step()
    silent = {FakeSigner(1).peer_id, FakeSigner(2).peer_id}
    rest = [e for e in heard if not isinstance(e, events.EnvelopeReceived) or e.source not in silent]
    assert outcome_of(rest) is None
