"""`bench step`: both sides train, the figures add up, and what must differ between them does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crowdsurf.peer.bench import Side, StepBench, _figures, bench_manifest, bench_step, measure, spread
from crowdsurf.peer.bench_peer import Gate, leaf, resident_bytes
from crowdsurf.peer.bench_plain import WORKER_MODULE, PlainReducer
from crowdsurf.peer.bench_security import bench_security, security_figures
from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.transport.memory import MemoryNetwork
from crowdsurf.protocol.errors import CrowdsurfError, MisuseError, WorldError

pytestmark = pytest.mark.slow

SMALL = {"elements": 2000, "steps": 2, "repeats": 2}


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_whole_benchmark_over_memory() -> None:
    lines: list[str] = []
    found = await bench_step(StepBench(peers=2, transport="memory", **SMALL), tell=lines.append)
    check_figures(found, peers=2)
    assert len(lines) == 1 + 2


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.asyncio
async def test_the_whole_benchmark_over_p2pd() -> None:
    found = await bench_step(StepBench(peers=2, **SMALL))
    check_figures(found, peers=2)
    assert 10_000_000 < found["daemon_bytes_before_model"] <= found["daemon_bytes_at_end"] * 2
    assert found["worker_bytes"] > 0 < found["p2pd_bytes"]


def check_figures(found: dict[str, Any], peers: int) -> None:
    assert found["bench"] == "step"
    for side in ("ours", "baseline"):
        seconds = found[side]["step_seconds_with_work"]
        assert 0 < seconds["p10"] <= seconds["median"] <= seconds["p90"]
    assert found["ratio"] == found["ratio_spread"]["median"]
    ours = found["ours"]
    # Everybody's gradient but the own part goes out, and the own aggregate goes to everybody else.
    elements = bench_elements(2000)
    assert ours["part_bytes_per_peer_and_step"] == pytest.approx(2 * 4 * elements * (peers - 1) / peers, rel=0.2)
    assert 0 < ours["control_bytes_per_peer_and_step"] < 20_000


def bench_elements(elements: int) -> int:
    hidden = int(bench_manifest(StepBench(elements=elements), [PeerKey.generate()]).task.parameters["hidden"])
    return hidden * hidden + 76 * hidden + 10


@pytest.mark.parametrize("elements", [2000, 40_000, 4_000_000])
def test_the_model_has_about_the_size_asked_for(elements: int) -> None:
    assert bench_elements(elements) == pytest.approx(elements, rel=0.05)


@pytest.mark.parametrize(
    "wrong", [{"peers": 1}, {"elements": 10}, {"steps": 0}, {"repeats": 0}, {"transport": "carrier"}]
)
def test_what_cannot_be_measured_is_misuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        StepBench(**wrong)


@pytest.mark.asyncio
async def test_plain_peers_reduce_to_the_same_model(tmp_path: Path) -> None:
    """The baseline is a real all-reduce: after steps on different gradients all peers hold the same bytes."""
    keys = [PeerKey.generate() for _ in range(2)]
    manifest = bench_manifest(StepBench(peers=2, elements=2000), keys)
    network = MemoryNetwork()
    clients = [ComputeClient(module=WORKER_MODULE) for _ in keys]
    reducers = []
    states = []
    try:
        for key, client in zip(keys, clients, strict=True):
            info = await client.start(manifest, "cpu")
            initial = Segment(info.state_bytes)
            nbytes, digest = await client.save_state(initial)
            assert digest == bytes(32)  # the plain worker digests nothing
            reducers.append(PlainReducer(network.join(key.peer_id), client, info, manifest))
            await reducers[-1].start()
        for reducer in reducers:
            await reducer.connect({})
        for number in (1, 2):
            await asyncio.gather(*(reducer.step(number) for reducer in reducers))
        for client in clients:
            state = Segment(info.state_bytes)
            await client.save_state(state)
            states.append(bytes(state.view[:nbytes]))
        assert states[0] == states[1] != bytes(initial.view[:nbytes])
        assert all(len(reducer.work_seconds) == 2 for reducer in reducers)
    finally:
        for reducer in reducers:
            reducer.close()
        for client in clients:
            await client.close()


@pytest.mark.asyncio
async def test_the_gate_holds_steps_back_and_notes_them() -> None:
    gate = Gate()
    passing = asyncio.create_task(gate.pass_through(0))
    await gate.reached(0)
    assert not passing.done()
    gate.open(1)
    await passing
    held = asyncio.create_task(gate.pass_through(1))
    await gate.reached(1)
    assert not held.done()
    held.cancel()
    assert sorted(gate.arrivals) == [0, 1]
    assert gate.arrivals[0] <= gate.arrivals[1]


def peer(ends: list[float | None], **more: Any) -> Any:
    async def ask(command: str, steps: int) -> dict[str, Any]:
        return {"ends": ends, **more}

    return SimpleNamespace(process_id=0, ask=ask)


@pytest.mark.asyncio
async def test_a_step_ends_with_its_last_peer_and_the_first_is_not_counted() -> None:
    side = Side()
    peers = [peer([0.0, 1.0, 2.0, 4.0], work_seconds=[9.0, 0.5]), peer([0.0, 1.5, 1.9, 5.0], work_seconds=[9.0, 0.7])]
    assert await measure(peers, "plain", 2, side, set()) == [0.5, 0.7]
    assert side.blocks == [[0.5, 3.0]]


@pytest.mark.asyncio
async def test_a_missed_step_is_no_measurement() -> None:
    with pytest.raises(WorldError, match="missed a step"):
        await measure([peer([0.0, 1.0, 2.0]), peer([0.0, None, 2.0])], "ours", 1, Side(), set())


def test_the_work_unit_is_taken_off_both_sides() -> None:
    ours = Side([[0.5, 0.6, 0.7], [0.9]], [1.0, 1.0], [10.0], [1000.0])
    plain = Side([[0.3, 0.4, 0.5], [0.5]], [0.5, 0.5])
    found = _figures(ours, plain, work_seconds=0.1)
    assert found["ratio_spread"]["p90"] > found["ratio"] == pytest.approx((5 / 3 + 2) / 2, abs=1e-3)
    assert found["overhead_percent"] == pytest.approx(83.3, abs=0.1)
    assert found["control_percent"] == 1.0
    assert found["cpu_ratio_with_work"]["median"] == 2.0


def test_spread_is_between_the_neighbours() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p10": 1.2, "p90": 2.8, "mean": 2.0}
    assert spread([7.0]) == {"median": 7.0, "p10": 7.0, "p90": 7.0, "mean": 7.0}


def test_the_first_error_of_nested_groups() -> None:
    first = WorldError("first")
    group: ExceptionGroup[CrowdsurfError] = ExceptionGroup("outer", [ExceptionGroup("inner", [first])])
    assert leaf(group) is first


def test_memory_of_a_process_that_is_not_there() -> None:
    assert resident_bytes("no such process") is None


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_security_is_measured_beside_the_same_steps_without_it() -> None:
    plan = StepBench(peers=4, elements=20_000, steps=2, repeats=2, transport="memory")
    figures = await bench_security(plan)
    assert figures["audit_percent"] == 25.0
    assert 0.5 < figures["bytes_ratio"] < 1.1
    assert figures["ours"]["control_bytes_per_peer_and_step"] > figures["baseline"]["control_bytes_per_peer_and_step"]
    assert figures["ratio"] > 0


def test_ratios_are_taken_block_by_block() -> None:
    checked, bare = Side(), Side()
    for side, factor in ((checked, 2.0), (bare, 1.0)):
        side.blocks = [[0.1 * factor] * 3, [0.3 * factor] * 3]
        side.cpu_seconds, side.control_bytes, side.part_bytes = [0.2 * factor] * 2, [10.0 * factor], [1000.0]
    figures = security_figures(checked, bare, 8)
    assert figures["ratio"] == pytest.approx(2.0)
    assert figures["cpu_ratio"]["median"] == pytest.approx(2.0)
    assert figures["bytes_ratio"] == pytest.approx(1020 / 1010, abs=1e-5)
    assert figures["audit_percent"] == 12.5
