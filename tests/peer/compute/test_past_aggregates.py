"""Aggregates are remembered by digest for a few steps, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.past_aggregates import PastAggregates
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.limits import PAST_AGGREGATES
from crowdsurf.protocol.manifest import Manifest


def name_of(text: str) -> Digest:
    return digest("test", text.encode())


def filled(number: float, elements: int = 3) -> torch.Tensor:
    return torch.full((elements,), float(number))


def values(past: PastAggregates, name: str, elements: int = 3) -> list[float] | None:
    found = past.find(name_of(name), elements)
    return None if found is None else found.tolist()


def test_aggregates_of_the_last_steps_are_kept_in_memory_taken_once() -> None:
    past = PastAggregates(6, limit=2)
    addresses = set()
    for step in range(10):
        vector = filled(step)
        past.remember(step, [(name_of(f"{step} first"), 0, vector), (name_of(f"{step} second"), 3, -vector)])
        vector.fill_(99.0)  # it is a copy
        found = past.find(name_of(f"{step} first"), 3)
        assert found is not None
        addresses.add(found.data_ptr())
        if step == 6:
            past.clear()
            assert values(past, "6 first") is None
    assert len(addresses) == 2
    assert values(past, "9 first") == [9.0] * 3
    assert values(past, "8 second") == [-8.0] * 3
    assert values(past, "7 first") is None


def test_a_step_can_be_told_more_and_of_one_part_the_newest_is_kept() -> None:
    past = PastAggregates(6)
    past.remember(0, [(name_of("a"), 0, filled(1))])
    past.remember(0, [(name_of("b"), 3, filled(2))])
    past.remember(0, [])
    assert (values(past, "a"), values(past, "b")) == ([1.0] * 3, [2.0] * 3)
    past.remember(0, [(name_of("c"), 0, filled(3))])
    assert (values(past, "a"), values(past, "c")) == (None, [3.0] * 3)


def test_an_aggregate_is_not_taken_for_one_of_another_length() -> None:
    past = PastAggregates(6)
    past.remember(0, [(name_of("a"), 0, filled(1))])
    assert values(past, "a", 4) is None
    assert values(past, "b") is None
    assert values(past, "a") == [1.0] * 3


def test_they_are_remembered_while_work_of_their_step_can_be_done_again(make_manifest: Callable[..., Manifest]) -> None:
    """Also when the present step already has some, and not beyond a state that was loaded."""
    engine = Engine(make_manifest(), torch.device("cpu"))
    states = [engine.load_initial()]
    gradient = torch.zeros(engine.elements)
    for step in range(PAST_AGGREGATES):
        engine.past_aggregates.remember(step, [(name_of(str(step)), 0, filled(step))])
        if step < PAST_AGGREGATES - 1:
            states.append(engine.apply(gradient, ()))
    engine.recompute(states[0], bytes(32), gradient, lambda: False)
    assert engine.past_aggregates.find(name_of("0"), 3) is not None
    saved = bytearray(engine.state.nbytes)
    engine.state.save(memoryview(saved))
    engine.load_state(memoryview(saved))
    assert engine.past_aggregates.find(name_of("0"), 3) is None
    engine.past_aggregates.remember(0, [(name_of("0"), 0, filled(0))])
    engine.load_initial()
    assert engine.past_aggregates.find(name_of("0"), 3) is None
