"""Client and worker, two real processes: every command, and every way a worker or a caller can go away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crowdsurf.peer.compute import frames
from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import (
    BY_NAME,
    NoUsableRows,
    StateForgotten,
    WorkCancelled,
    WorkerDied,
    WorkFailed,
    name_of,
)
from crowdsurf.peer.compute.rules.base import norm_of
from crowdsurf.peer.compute.segments import Segment, SegmentPool
from crowdsurf.protocol.assignment import part_ranges, projection_seed
from crowdsurf.protocol.errors import Code, MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, blob_digest, digest, peer_id_from_public_key
from crowdsurf.protocol.manifest import Manifest, TaskSection, WorkSection
from crowdsurf.protocol.projection import PROJECTIONS, Clipping, Line, projection_problem, wrong_norm

pytestmark = pytest.mark.slow

MakeManifest = Callable[..., Manifest]
SEED = bytes(range(32))
FINDER = peer_id_from_public_key(bytes(32))
ENDLESS = WorkSection(micro_batches=2**40, micro_batch_samples=1)


def floats(segment: Segment) -> torch.Tensor:
    return torch.frombuffer(segment.view, dtype=torch.float32)


@pytest.mark.asyncio
async def test_every_command_round_trips(make_manifest: MakeManifest, tmp_path: Path) -> None:
    """The worker's bytes are those of an engine in this process: a work unit is the same in two processes."""
    manifest = make_manifest()
    engine = Engine(manifest, torch.device("cpu"))
    pool = SegmentPool(idle_bytes_max=1 << 24)
    client = ComputeClient()
    try:
        info = await client.start(manifest, "cpu")
        assert (info.vector_elements, info.state_bytes) == (engine.elements, engine.state.nbytes)
        assert info.dataset_digest == engine.dataset_digest
        assert info.device == "cpu"
        assert info.has_accuracy
        assert "handwritten digits" in info.task_description
        assert await client.load_initial() == engine.state.digest()

        gradient = pool.take(4 * info.vector_elements)
        ranges = [(0, 10), (10, info.vector_elements)]
        result = await client.work(SEED, ranges, gradient)
        expected = torch.empty(engine.elements)
        loss, samples = engine.work(SEED, expected, lambda: False)
        assert torch.equal(floats(gradient), expected)
        assert (result.loss, result.samples) == (loss, samples)
        assert result.part_digests == tuple(blob_digest(gradient.view[4 * a : 4 * b]) for a, b in ranges)
        assert result.norms == tuple(norm_of(expected[a:b]) for a, b in ranges)
        assert await client.digest_blob(gradient, 0, 40) == result.part_digests[0]

        await check_aggregation(client, pool)

        initial = engine.state.digest()
        state_digest = await client.apply(gradient, [(3, 7)])
        assert state_digest == engine.apply(expected, [(3, 7)])
        saved = pool.take(info.state_bytes)
        assert await client.save_state(saved) == (info.state_bytes, state_digest)
        again = pool.take(4 * info.vector_elements)
        recomputed = await client.recompute(initial, SEED, ranges, again, FINDER)
        assert again.view == gradient.view
        assert (recomputed.part_digests, recomputed.norms) == (result.part_digests, result.norms)
        assert recomputed.lines == ()
        assert recomputed.finding == digest("finding", FINDER + again.view.tobytes())
        assert await client.finding(gradient, gradient.nbytes, FINDER) == recomputed.finding
        assert await client.save_state(saved) == (info.state_bytes, state_digest)

        await client.load_initial()
        assert await client.load_state(saved, info.state_bytes) == state_digest
        with pytest.raises(StateForgotten, match="cannot be computed again here"):
            await client.recompute(initial, SEED, ranges, again, FINDER)
        assert await client.evaluate() == engine.evaluate()
        await client.export(tmp_path / "model.safetensors")
        assert (tmp_path / "model.safetensors").stat().st_size > 4 * info.vector_elements
        await check_refusals(client, pool, tmp_path, info.state_bytes)
    finally:
        await client.close()
        await client.close()
        pool.close()


async def check_aggregation(client: ComputeClient, pool: SegmentPool) -> None:
    rows, output = pool.take(4 * 4 * 100), pool.take(1000)
    matrix = floats(rows).view(4, 100)
    for index in range(4):
        matrix[index] = float(index)
    matrix[2, 50] = float("nan")
    offsets = [0, 400, 800, 1200]
    result = await client.aggregate("mean", {}, rows, offsets, 100, output, output_offset=400)
    assert result.excluded_rows == (2,)
    assert torch.equal(floats(output)[100:200], torch.full((100,), 4.0 / 4.0))  # what is not finite counts as nothing
    assert result.digest == blob_digest(output.view[400:800])
    await client.aggregate("mean", {}, rows, [400, 1200], 100, output, absent=2)
    assert torch.equal(floats(output)[:100], torch.full((100,), 4.0 / 4.0))
    clipped = await client.aggregate("centered_clip", {"tau": 5.0}, rows, [0, 400], 100, output)
    assert (clipped.excluded_rows, clipped.digest) == ((), blob_digest(output.view[:400]))
    one, two = [await client.aggregate("bucketing+median", {}, rows, offsets, 100, output, 0, s) for s in (SEED, SEED)]
    assert one.digest == two.digest
    by_seed = [
        await client.aggregate("mixtailor", {}, rows, offsets, 100, output, 0, bytes([s] * 32)) for s in range(9)
    ]
    assert len({result.digest for result in by_seed}) > 1
    with pytest.raises(NoUsableRows):
        await client.aggregate("mean", {}, rows, [], 100, output)
    with pytest.raises(MisuseError, match="float32"):
        await client.aggregate("mean", {}, rows, [0, 2], 10, output)
    with pytest.raises(NoUsableRows):
        await client.aggregate("mean", {}, rows, [800], 100, output)
    rows.close()  # the worker drops its mapping with the next command
    with pytest.raises(MisuseError, match="closed"):
        await client.digest_blob(rows, 0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
async def test_an_aggregator_a_contributor_and_whoever_judges_them_find_the_same_lines(
    make_manifest: MakeManifest, device: str
) -> None:
    beacon, radius = digest("test", b"beacon"), 0.05
    client = ComputeClient()
    try:
        info = await client.start(make_manifest(), device)
        ranges, state = part_ranges(info.vector_elements, 3), await client.load_initial()
        gradient, averaged, inbox = (Segment(count * 4 * info.vector_elements) for count in (1, 1, 2))
        work = await client.work(SEED, ranges, gradient)
        names, said = [], []
        for part, (start, stop) in enumerate(ranges):
            size = 4 * (stop - start)
            inbox.view[:size] = gradient.view[4 * start : 4 * stop]
            floats(inbox)[stop - start : 2 * (stop - start)] = 0.25
            place = (inbox, [0, size], stop - start, averaged, 4 * start)
            names.append((await client.aggregate("centered_clip", {"tau": radius}, *place)).digest)
            said.append(await client.project(*place, radius, projection_seed(beacon, part)))
            length = said[part].nothing.norm
            assert projection_problem(said[part].lines, length, Clipping(radius, 1e-6)) is None
            assert not wrong_norm(length, norm_of(floats(averaged)[start:stop]))

        wanted = [names[0], b"", names[2]]
        checked = await client.check(7, wanted, ranges, radius, beacon, averaged, gradient)
        assert checked.nothings == (said[0].nothing, None, said[2].nothing)
        assert checked.lines == (said[0].lines[0], None, said[2].lines[0])
        # Somebody without work in that step; it can be judged later all the same.
        later = await client.check(8, [b"", names[1], b""], ranges, radius, beacon, averaged, None)
        assert (later.lines, later.nothings) == ((), (None, said[1].nothing, None))

        floats(averaged).zero_()  # the daemon uses its memory again
        asked = (state, SEED, ranges, gradient, FINDER)
        judged = await client.recompute(*asked, names, radius, beacon)
        assert judged.norms == work.norms
        assert judged.lines == tuple(one.lines[0] for one in said)
        judged = await client.recompute(*asked, [names[2], names[1], b""], radius, beacon)
        assert judged.lines == (None, said[1].lines[0], None)  # the last part is longer than the first
        await client.load_initial()
        assert (await client.recompute(*asked, names, radius, beacon)).lines == (None,) * 3
    finally:
        await client.close()


@pytest.mark.asyncio
async def test_nothing_is_said_about_numbers_that_are_not_finite(make_manifest: MakeManifest) -> None:
    """Whoever sends such an aggregate sends it to everybody."""
    client, beacon = ComputeClient(), digest("test", b"beacon")
    try:
        info = await client.start(make_manifest(), "cpu")
        ranges = part_ranges(info.vector_elements, 2)
        gradient, averaged = Segment(4 * info.vector_elements), Segment(4 * info.vector_elements)
        floats(gradient).fill_(1.0)
        floats(averaged).fill_(1.0)
        floats(averaged)[0] = float("inf")
        names = [blob_digest(averaged.view[4 * start : 4 * stop]) for start, stop in ranges]
        checked = await client.check(0, names, ranges, 1.0, beacon, averaged, gradient)
        assert checked.lines[0] is None
        assert checked.lines[1] == Line((0.0,) * PROJECTIONS, 0.0)
        assert checked.nothings[0] is None
        with pytest.raises(WorkFailed, match="not finite"):
            await client.project(gradient, [0], 10, averaged, 0, 1.0, beacon)
        with pytest.raises(MisuseError, match="range"):
            await client.check(0, names, [(0, 1 << 40)], 1.0, beacon, averaged, gradient)
    finally:
        await client.close()


async def check_refusals(client: ComputeClient, pool: SegmentPool, tmp_path: Path, state_bytes: int) -> None:
    """Errors of ours cross the socket as what they are, and the worker goes on."""
    segment = pool.take(state_bytes)
    with pytest.raises(MisuseError, match="a state of this run has"):
        await client.load_state(segment, state_bytes - 4)
    with pytest.raises(MisuseError, match="32 bytes"):
        await client.work(b"short", [], segment)
    with pytest.raises(MisuseError, match="range"):
        await client.work(SEED, [(0, 1 << 40)], segment)
    with pytest.raises(MisuseError, match="range"):
        await client.recompute(Digest(bytes(32)), SEED, [(0, 1 << 40)], segment, FINDER)
    with pytest.raises(MisuseError, match="outside a segment"):
        await client.finding(segment, 1 << 40, FINDER)
    with pytest.raises(MisuseError, match="outside a segment"):
        await client.digest_blob(segment, 0, 1 << 40)
    with pytest.raises(MisuseError, match="'crumb' is unknown"):
        await client.aggregate("crumb", {}, segment, [0], 4, segment, 400)
    with pytest.raises(WorldError, match="cannot write"):
        await client.export(tmp_path / "missing" / "model.safetensors")
    floats(segment).fill_(float("nan"))
    with pytest.raises(WorkFailed):
        await client.apply(segment)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once the next command has been sent to the worker."""
    event = asyncio.Event()
    send = frames.send_async

    async def send_and_tell(*arguments: object) -> None:
        await send(*arguments)  # type: ignore[arg-type]
        event.set()

    monkeypatch.setattr(frames, "send_async", send_and_tell)
    return event


@pytest.mark.asyncio
async def test_cancelled_and_killed_work(make_manifest: MakeManifest, sent: asyncio.Event) -> None:
    """`cancel_work`, a cancelled caller, and a SIGKILL, each in the middle of a work unit that never ends."""
    client = ComputeClient()
    try:
        info = await client.start(make_manifest(work=ENDLESS), "cpu")
        gradient = Segment(4 * info.vector_elements)
        initial = await client.load_initial()
        client.cancel_work()  # nothing runs: no effect on the next command

        async def begin() -> asyncio.Task[object]:
            sent.clear()
            task: asyncio.Task[object] = asyncio.create_task(client.work(SEED, [], gradient))
            await sent.wait()
            return task

        working = await begin()
        client.cancel_work()
        with pytest.raises(WorkCancelled):
            await working

        working = await begin()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await client.load_initial() == initial

        working = await begin()
        assert client.process_id is not None
        os.kill(client.process_id, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="signal 9"):
            await working
        with pytest.raises(WorkerDied, match="signal 9"):
            await client.load_initial()

        assert (await client.restart()).vector_elements == info.vector_elements
        assert await client.load_initial() == initial
        assert (await client.save_state(Segment(info.state_bytes)))[1] == initial
    finally:
        await client.close()


@pytest.mark.asyncio
async def test_only_its_caller_stops_a_recomputation(make_manifest: MakeManifest, sent: asyncio.Event) -> None:
    """`cancel_work` is about this step's own work and never about an audit."""
    client = ComputeClient()
    try:
        info = await client.start(make_manifest(work=WorkSection(micro_batches=500, micro_batch_samples=1)), "cpu")
        gradient, state = Segment(4 * info.vector_elements), await client.load_initial()
        sent.clear()
        auditing = asyncio.create_task(client.recompute(state, SEED, [(0, 10)], gradient, FINDER))
        await sent.wait()
        client.cancel_work()
        assert (await auditing).part_digests == (await client.work(SEED, [(0, 10)], gradient)).part_digests

        await client.start(make_manifest(work=ENDLESS), "cpu")
        state = await client.load_initial()
        sent.clear()
        auditing = asyncio.create_task(client.recompute(state, SEED, [], gradient, FINDER))
        await sent.wait()
        auditing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await auditing
        assert await client.load_initial() == state
    finally:
        await client.close()


@pytest.mark.asyncio
async def test_a_manifest_that_cannot_run_here_ends_the_worker(make_manifest: MakeManifest) -> None:
    client = ComputeClient()
    with pytest.raises(MisuseError, match="restart needs"):
        await client.restart()
    with pytest.raises(WorkerDied, match="not been started"):
        await client.evaluate()
    manifest = make_manifest(task=TaskSection(name="digits", parameters={"hidden": 0}))
    with pytest.raises(MisuseError, match="hidden must be"):
        await client.start(manifest, "cpu")
    assert client.process_id is None
    await client.close()


ORPHAN = """
import asyncio, sys
from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.protocol.manifest import decode_manifest

async def main():
    client = ComputeClient()
    info = await client.start(decode_manifest(bytes.fromhex(sys.argv[1])), "cpu")
    print(client.process_id, flush=True)
    await client.work(bytes(32), [], Segment(4 * info.vector_elements))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's process descriptors")
def test_a_worker_never_outlives_its_daemon(make_manifest: MakeManifest) -> None:
    """The daemon is killed in the middle of a work unit that never ends."""
    from crowdsurf.protocol.manifest import encode_manifest

    manifest = encode_manifest(make_manifest(work=ENDLESS)).hex()
    with subprocess.Popen([sys.executable, "-c", ORPHAN, manifest], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        worker = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.kill()
    with contextlib.closing(os.fdopen(worker)):
        ended, _, _ = select.select([worker], [], [], 30)
    assert ended


def test_the_daemons_side_never_imports_torch() -> None:
    code = "import sys, crowdsurf.peer.compute.client; print('torch' in sys.modules or 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "False"


def test_errors_cross_under_their_nearest_listed_name() -> None:
    assert all(name_of(kind("text")) == name for name, kind in BY_NAME.items())
    assert name_of(Refusal(Code.MALFORMED, "not ours")) == "WorkFailed"
