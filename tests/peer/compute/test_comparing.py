"""Gradients compared by their numbers: distances, sketches, and the worker that does both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from crowdsurf.peer.compute.client import Committed, ComputeClient
from crowdsurf.peer.compute.comparing import (
    RECOMPUTED_MAX,
    Recomputed,
    compare_parts,
    distance_between,
    relative_distance,
    sketch_of,
)
from crowdsurf.peer.compute.segments import Segment, SegmentPool
from crowdsurf.protocol.assignment import part_ranges, projection_seed
from crowdsurf.protocol.ids import Digest, blob_digest, peer_id_from_public_key
from crowdsurf.protocol.manifest import AuditSection, Manifest
from crowdsurf.protocol.tolerance import Compared, as_it_should_be, gap_between, sketches_apart

MakeManifest = Callable[..., Manifest]
SEED = bytes(range(32))
FINDER, OTHER = (peer_id_from_public_key(bytes([number]) * 32) for number in (1, 2))
BOUND = 1e-4
ELEMENTS = 70_001


def vector(seed: int, elements: int = ELEMENTS) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def moved(base: torch.Tensor, relative: float, seed: int) -> torch.Tensor:
    """`base`, moved so far in a random direction."""
    direction = vector(seed, len(base)).double()
    return (base.double() + direction * (relative * base.double().norm() / direction.norm())).float()


def floats(segment: Segment) -> torch.Tensor:
    return torch.frombuffer(segment.view, dtype=torch.float32)


@pytest.mark.parametrize("relative", [1e-5, 1e-3, 0.2, 3.0])
def test_distances_are_those_of_float64(relative: float) -> None:
    base = vector(0)
    other = moved(base, relative, 1)
    exact = float((base.double() - other.double()).norm() / base.double().norm())
    assert relative_distance(base, other) == pytest.approx(exact, rel=1e-12)
    assert relative_distance(base, other) == pytest.approx(relative, rel=1e-2)


def test_distances_of_nothing_and_of_what_is_not_finite() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert (relative_distance(zero, zero), relative_distance(zero, one)) == (0.0, math.inf)
    assert math.isnan(distance_between(one, torch.tensor([math.nan, 0, 0, 0])))
    assert math.isinf(distance_between(one, torch.tensor([math.inf, 0, 0, 0])))


def test_parts_that_are_not_there_are_not_looked_at() -> None:
    base = vector(0, 10)
    other = base.clone()
    other[0] += 3.0
    other[9] = math.nan
    ranges = part_ranges(10, 3)
    compared = compare_parts(base, other, ranges, [True, True, False])
    assert compared[0] == Compared(pytest.approx(3.0), pytest.approx(float(other[:3].norm())))
    assert compared[1:] == [Compared(0.0, pytest.approx(float(other[3:6].norm()))), None]


@pytest.mark.parametrize("relative", [1e-6, 1e-4, 1e-2])
def test_sketches_of_near_gradients_are_near(relative: float) -> None:
    """Never farther apart than the gradients, and not much nearer: one number in eight would do to see them differ."""
    base = vector(0)
    own = sketch_of(base, FINDER)
    for seed in range(20):
        apart = sketches_apart(sketch_of(moved(base, relative, seed + 1), FINDER), own)
        assert relative / 30 <= apart <= relative


def test_a_gradient_that_is_another_one_has_another_sketch() -> None:
    base = vector(0)
    own = sketch_of(base, FINDER)
    for made_up in (sketch_of(vector(1), FINDER), sketch_of(-base, FINDER), sketch_of(base, OTHER), Digest(bytes(32))):
        assert sketches_apart(made_up, own) > 0.1
    assert sketches_apart(sketch_of(2 * base, FINDER), own) < 1e-6  # a direction has no length


def test_a_gradient_without_direction_has_a_sketch() -> None:
    assert sketch_of(torch.zeros(5), FINDER) == bytes(32)


def test_gradients_computed_again_are_kept_for_a_while() -> None:
    kept = Recomputed()
    for number in range(RECOMPUTED_MAX + 1):
        kept.remember(b"state", bytes([number]), torch.full((3,), float(number)))
    assert kept.find(b"state", bytes([0])) is None
    found = kept.find(b"state", bytes([RECOMPUTED_MAX]))
    assert found is not None
    assert found.tolist() == [RECOMPUTED_MAX] * 3
    assert kept.find(b"other", bytes([RECOMPUTED_MAX])) is None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_compares_what_was_committed_to(make_manifest: MakeManifest) -> None:
    """What differs by rounding is as it should be, what differs by more is not; bytes that are missing decide nothing
    unless they are the very ones; lines are about what was committed to."""
    manifest = make_manifest(audit=AuditSection(comparison="tolerance", relative_l2_max=BOUND))
    client, pool = ComputeClient(), SegmentPool(idle_bytes_max=1 << 24)
    try:
        info = await client.start(manifest, "cpu")
        state = await client.load_initial()
        size = 4 * info.vector_elements
        right, again, committed = (pool.take(size) for _ in range(3))
        ranges = part_ranges(info.vector_elements, 4)
        work = await client.work(SEED, ranges, right)
        found = await client.recompute(state, SEED, ranges, again, FINDER)
        assert (found.part_digests, found.compared) == (work.part_digests, ())
        assert found.finding == sketch_of(floats(right), FINDER) == await client.finding(right, size, FINDER)

        for relative, verdict in ((1e-7, True), (1e-2, False)):
            floats(committed).copy_(moved(floats(right), relative, 1))
            names = [blob_digest(committed.view[4 * start : 4 * stop]) for start, stop in ranges]
            norms = [float(floats(committed)[start:stop].double().norm()) for start, stop in ranges]
            shown = Committed(committed, names, [True] * 4)
            judged = await client.recompute(state, SEED, ranges, again, FINDER, committed=shown)
            gap = gap_between(names, norms, judged.part_digests, judged.norms, judged.compared)
            assert as_it_should_be(gap, BOUND) is verdict
            assert gap.at_least == pytest.approx(relative, rel=0.2)

        names[1], norms[1] = work.part_digests[1], work.norms[1]
        shown = Committed(committed, names, [True, False, False, True])
        judged = await client.recompute(state, SEED, ranges, again, FINDER, committed=shown)
        assert [seen is not None for seen in judged.compared] == [True, True, False, True]
        assert judged.compared[1] == Compared(0.0, work.norms[1])

        (start, stop), beacon = ranges[0], Digest(bytes(32))
        aggregates, inbox = pool.take(size), pool.take(size)
        floats(aggregates)[: stop - start] = 0.5
        name = await client.digest_blob(aggregates, 0, 4 * (stop - start))
        await client.check(0, [name, b"", b"", b""], ranges, 1.0, beacon, aggregates, None)
        asked = (state, SEED, ranges, again, FINDER, [name, b"", b"", b""], 1.0, beacon)
        judged = await client.recompute(*asked, Committed(committed, names, [True] * 4))
        inbox.view[: 4 * (stop - start)] = committed.view[: 4 * (stop - start)]
        said = await client.project(inbox, [0], stop - start, aggregates, 0, 1.0, projection_seed(beacon, 0))
        assert judged.lines[0] == said.lines[0]
        judged = await client.recompute(*asked, Committed(committed, names, [False] * 4))
        assert judged.lines[0] is None
    finally:
        await client.close()
        pool.close()
