"""The trace: one seed tells one story, in this process and in others, and a file of it can be read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.sim.adversaries import Adversary, Body
from crowdsurf.protocol.sim.story import StoryWriter
from tests.simulation import hash_seed, liars
from tests.simulation.runs import Setting, run, simulation

HASH_ORDER = """
from crowdsurf.protocol.node import Node
Node.contacts = lambda self: tuple(self._contacts())
"""


def test_equal_seeds_tell_the_same_story_in_every_process() -> None:
    here = hash_seed.trace(7)
    assert hash_seed.trace(7) == here
    assert here.startswith("b2:")
    assert hash_seed.traces_elsewhere(7) == [here, here]


def test_a_peer_that_goes_by_hash_order_is_found_out() -> None:
    """A planted defect: certificates are sent to peers in the order of a set."""
    one, other = hash_seed.traces_elsewhere(7, HASH_ORDER)
    assert one != other


def test_chance_from_elsewhere_is_found_out() -> None:
    """A planted defect: somebody draws from the generator that nobody seeded."""

    class Careless(Adversary):
        def send(self, host: Body, effect: Effect) -> Iterable[Effect]:
            return (effect,) if random.random() < 0.9 else ()

    setting = Setting(liar=Careless)
    assert len({run(setting, 7).trace_digest for _ in range(3)}) > 1


def test_other_seeds_tell_other_stories() -> None:
    assert len({run(Setting(steps=3), seed).trace_digest for seed in range(4)}) == 4


def test_watching_changes_nothing() -> None:
    plain = simulation(Setting(faults=hash_seed.BUSY, steps=4), 3)
    watched = simulation(Setting(faults=hash_seed.BUSY, steps=4), 3)
    lines: list[str] = []
    watched.world.watch(StoryWriter(lines.append))
    assert plain.run().trace_digest == watched.run().trace_digest
    assert lines


def test_every_line_of_the_file_is_json_with_the_same_head() -> None:
    made = simulation(Setting(faults=hash_seed.BUSY, steps=4, liar=liars.SaysTwoThings), 3)
    lines: list[str] = []
    made.world.watch(StoryWriter(lines.append))
    made.run()
    times = []
    for line in lines:
        entry = json.loads(line)
        assert line.endswith("\n")
        assert line.count("\n") == 1
        assert {"t", "host", "step"} <= entry.keys()
        assert len({"event", "effect", "note"} & entry.keys()) == 1
        times.append(entry["t"])
    assert times == sorted(times)
    assert {"EnvelopeReceived", "BlobArrived"} <= {json.loads(line).get("event") for line in lines}
    assert {"SendEnvelope", "Refused"} <= {json.loads(line).get("effect") for line in lines}
