"""The simulated network: every fault of a link does what its name says, and nothing else."""

from __future__ import annotations

import random

import pytest

from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.network import Network
from crowdsurf.protocol.sim.timeline import Timeline

Arrivals = list[tuple[float, str]]


def network(seed: int = 1, **faults: float) -> tuple[Network, Timeline, Arrivals]:
    """A network without jitter unless asked for, its clock, and a list for what arrives."""
    plain = {"latency_seconds_min": 0.1, "latency_seconds_max": 0.1, "jitter": 0.0, "bandwidth_bytes": 1000.0}
    timeline = Timeline()
    return Network(timeline, random.Random(seed), Faults(**(plain | faults))), timeline, []


def wait(timeline: Timeline) -> None:
    timeline.run(lambda: False, 1e6)


def noter(timeline: Timeline, arrived: Arrivals) -> object:
    return lambda what: arrived.append((round(timeline.now, 9), what))


def test_a_message_takes_its_transmission_and_its_latency() -> None:
    net, timeline, arrived = network()
    net.send(0, 1, 500, noter(timeline, arrived), "a")  # type: ignore[arg-type]
    wait(timeline)
    assert arrived == [(0.6, "a")]


def test_what_one_peer_sends_queues_on_its_uplink() -> None:
    net, timeline, arrived = network()
    note = noter(timeline, arrived)
    net.send(0, 1, 1000, note, "first")  # type: ignore[arg-type]
    net.send_bulk(0, 2, 1000, note, "second")  # type: ignore[arg-type]
    net.send(3, 1, 1000, note, "from another")  # type: ignore[arg-type]
    wait(timeline)
    assert sorted(arrived) == [(1.1, "first"), (1.1, "from another"), (2.1, "second")]
    assert net.bytes_sent == {0: 2000, 3: 1000}
    assert net.control_bytes_sent == {0: 1000, 3: 1000}


def test_an_idle_uplink_does_not_save_up() -> None:
    net, timeline, arrived = network()
    timeline.at(5.0, net.send, 0, 1, 1000, noter(timeline, arrived), "late")
    wait(timeline)
    assert arrived == [(6.1, "late")]


def test_links_have_their_own_latencies_which_stay() -> None:
    net, _, _ = network(latency_seconds_min=0.01, latency_seconds_max=1.0)
    pairs = [(one, other) for one in range(4) for other in range(4) if one != other]
    first = [net.latency(*pair) for pair in pairs]
    assert first == [net.latency(*pair) for pair in pairs]
    assert len(set(first)) == len(pairs)
    assert all(0.01 <= seconds <= 1.0 for seconds in first)


def test_jitter_only_adds() -> None:
    net, timeline, arrived = network(jitter=0.5, bandwidth_bytes=1e12)
    for number in range(200):
        net.send(number, 999, 0, noter(timeline, arrived), str(number))  # type: ignore[arg-type]
    wait(timeline)
    assert all(0.1 <= time <= 0.15 for time, _ in arrived)
    assert max(arrived)[0] - min(arrived)[0] > 0.04


@pytest.mark.parametrize("bulk", [False, True])
def test_loss_takes_its_share(bulk: bool) -> None:
    net, timeline, arrived = network(message_loss=0.3)
    send = net.send_bulk if bulk else net.send
    answers = [send(0, 1, 1, noter(timeline, arrived), str(number)) for number in range(1000)]  # type: ignore[arg-type]
    wait(timeline)
    assert 620 <= len(arrived) <= 780
    if bulk:
        assert answers.count(True) == len(arrived)


def test_duplicates_are_of_messages_and_not_of_bulk() -> None:
    net, timeline, arrived = network(message_duplicate=0.5)
    for number in range(400):
        net.send(0, 1, 1, noter(timeline, arrived), str(number))  # type: ignore[arg-type]
    wait(timeline)
    assert 540 <= len(arrived) <= 660
    assert len({what for _, what in arrived}) == 400
    arrived.clear()
    for number in range(400):
        net.send_bulk(0, 1, 1, noter(timeline, arrived), str(number))  # type: ignore[arg-type]
    wait(timeline)
    assert len(arrived) == 400


def test_reordering_holds_some_up_within_its_bound() -> None:
    net, timeline, arrived = network(message_reorder=0.3, bandwidth_bytes=1e12)
    for number in range(300):
        net.send(0, 1, 1, noter(timeline, arrived), f"{number:03}")  # type: ignore[arg-type]
    wait(timeline)
    assert [what for _, what in arrived] != sorted(what for _, what in arrived)
    assert max(arrived)[0] <= 2.1001
    assert 150 <= sum(time == 0.1 for time, _ in arrived) <= 270


def sends(net: Network, timeline: Timeline, arrived: Arrivals, pairs: list[tuple[int, int]]) -> set[str]:
    arrived.clear()
    for one, other in pairs:
        net.send(one, other, 0, noter(timeline, arrived), f"{one}{other}")  # type: ignore[arg-type]
    wait(timeline)
    return {what for _, what in arrived}


PAIRS = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
ALL = {"01", "10", "02", "20", "12", "21"}


def test_a_cut_blocks_both_ways_and_heals() -> None:
    net, timeline, arrived = network()
    heal = net.cut([0], [1, 2], asymmetric=False)
    assert net.blocks(0, 1)
    assert net.blocks(1, 0)
    assert sends(net, timeline, arrived, PAIRS) == {"12", "21"}
    heal()
    assert sends(net, timeline, arrived, PAIRS) == ALL


def test_an_asymmetric_cut_blocks_one_way() -> None:
    net, timeline, arrived = network()
    heal = net.cut([0], [1, 2], asymmetric=True)
    assert sends(net, timeline, arrived, PAIRS) == {"10", "20", "12", "21"}
    heal()
    assert sends(net, timeline, arrived, PAIRS) == ALL


def test_cuts_overlap_and_each_heals_only_its_own() -> None:
    net, timeline, arrived = network()
    first = net.cut([0], [1], asymmetric=False)
    second = net.cut([0], [1, 2], asymmetric=False)
    second()
    assert sends(net, timeline, arrived, PAIRS) == ALL - {"01", "10"}
    first()
    assert sends(net, timeline, arrived, PAIRS) == ALL


def test_heal_ends_every_cut_and_an_old_cut_cannot_end_a_new_one_twice() -> None:
    net, timeline, arrived = network()
    net.cut([0], [1, 2], asymmetric=False)
    net.cut([1], [2], asymmetric=True)
    net.heal()
    assert sends(net, timeline, arrived, PAIRS) == ALL


def test_what_is_on_its_way_when_a_cut_comes_arrives() -> None:
    net, timeline, arrived = network()
    net.send(0, 1, 0, noter(timeline, arrived), "before")  # type: ignore[arg-type]
    net.cut([0], [1], asymmetric=False)
    net.send(0, 1, 0, noter(timeline, arrived), "after")  # type: ignore[arg-type]
    wait(timeline)
    assert [what for _, what in arrived] == ["before"]
