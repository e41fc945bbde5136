"""A worker that rehearses an attack sends the very bytes that the same attacker sends in a simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from crowdsurf.peer.compute.attacks import DEFAULT_STRENGTH
from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import WorkCancelled
from crowdsurf.peer.compute.forging import Forger, distort
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.compute.shared import SharedCompute
from crowdsurf.protocol.assignment import part_ranges
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, blob_digest, digest
from crowdsurf.protocol.manifest import Manifest, WorkSection
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS, Forgery

MakeManifest = Callable[..., Manifest]
CPU = torch.device("cpu")
SALT = digest("test", b"salt")
PARTS = 4


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(work=WorkSection(micro_batch_samples=4))


def seed_of(number: int) -> Digest:
    return digest("test", bytes([number]))


def forgery_of(attack: str, state: Digest, member: int = 9, strength: float = 2.0) -> Forgery:
    honest = tuple(seed_of(number) for number in range(3))
    return Forgery(attack, strength, state, seed_of(member), PARTS, honest, 2, (), SALT)


def names(vector: torch.Tensor) -> tuple[Digest, ...]:
    """Blob digests of its parts."""
    ranges = part_ranges(len(vector), PARTS)
    return tuple(blob_digest(vector[start:stop].contiguous().view(torch.uint8).numpy().data) for start, stop in ranges)


def never() -> bool:
    return False


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_a_forged_gradient_is_that_of_the_simulation(manifest: Manifest, attack: str) -> None:
    shared, forger = SharedCompute(manifest), Forger(Engine(manifest, CPU))
    forgery = forgery_of(attack, shared.initial_state())
    out = torch.empty(shared.elements)
    loss, samples = forger.forge(forgery, False, forgery.seed, out, None, never)
    expected = shared.forge(forgery)
    assert (names(out), loss, samples) == (expected.parts, expected.loss, expected.samples)
    assert names(out) != shared.work(forgery.state, forgery.seed, PARTS).parts or attack == "delayed_gradient"


def test_the_usual_strength_is_that_of_the_literature(manifest: Manifest) -> None:
    engine = Engine(manifest, CPU)
    honest, out = torch.empty(engine.elements), torch.empty(engine.elements)
    engine.work(seed_of(9), honest, never)
    Forger(engine).forge(forgery_of("sign_flip", engine.state.digest()), True, seed_of(9), out, None, never)
    assert torch.equal(out, (honest.double() * -DEFAULT_STRENGTH["sign_flip"]).float())


def test_a_delayed_gradient_is_the_oldest_one_kept(manifest: Manifest) -> None:
    engine = Engine(manifest, CPU)
    forger = Forger(engine, kept_bytes_max=2 * 4 * engine.elements)
    state, out = engine.state.digest(), torch.empty(engine.elements)
    gradients = []
    for member, attack in ((1, "none"), (2, "none"), (3, "none"), (4, "delayed_gradient")):
        forgery = dataclasses.replace(forgery_of(attack, state, strength=1.0), seed=seed_of(1))
        forger.forge(forgery, False, seed_of(member), out, None, never)
        gradients.append(torch.empty(engine.elements))
        engine.work(seed_of(member), gradients[-1], never)
        if attack == "none":
            assert torch.equal(out, gradients[-1])
    assert torch.equal(out, gradients[2])  # two of them fit: that of member 3 and the newest


def test_rop_moves_away_from_the_last_aggregate(manifest: Manifest) -> None:
    """Which may have been poisoned: what is not finite there counts as zero."""
    engine = Engine(manifest, CPU)
    forger, out = Forger(engine), torch.empty(engine.elements)
    forgery = forgery_of("rop", engine.state.digest(), strength=1.0)
    previous = torch.full((engine.elements,), 3.0)
    previous[5] = torch.nan
    forger.forge(forgery, False, forgery.seed, out, previous, never)
    assert torch.isfinite(out).all()
    assert abs(float((out - torch.nan_to_num(previous)).norm()) - 1.0) < 1e-3


def test_a_forgery_can_be_cancelled_between_the_work_of_others(manifest: Manifest) -> None:
    engine = Engine(manifest, CPU)
    asked = iter([False, False])
    with pytest.raises(WorkCancelled):
        Forger(engine).forge(
            forgery_of("ipm", engine.state.digest()),
            False,
            seed_of(9),
            torch.empty(engine.elements),
            None,
            lambda: next(asked, True),
        )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_distorted_aggregate_is_that_of_the_simulation(manifest: Manifest, scale: float) -> None:
    shared = SharedCompute(manifest)
    vector = torch.arange(100, dtype=torch.float32) * scale
    expected = shared.distort(shared._put(vector.clone()), 3.0, SALT)
    distort(vector, 3.0, SALT)
    assert torch.equal(vector, shared.vector(expected))


@pytest.mark.asyncio
async def test_the_worker_forges_and_distorts_in_shared_memory(manifest: Manifest) -> None:
    engine = Engine(manifest, CPU)
    forgery = forgery_of("rop", engine.state.digest())
    ranges = part_ranges(engine.elements, PARTS)
    pool, client = SegmentPool(1 << 24), ComputeClient()
    try:
        await client.start(manifest, "cpu")
        gradient, before = pool.take(4 * engine.elements), pool.take(4 * engine.elements)
        torch.frombuffer(before.view, dtype=torch.float32).fill_(1.0)
        result = await client.forge(forgery, False, forgery.seed, ranges, gradient, (before, [(0, 10)]))
        previous, out = torch.ones(engine.elements), torch.empty(engine.elements)
        previous[:10] = 0.0
        loss, samples = Forger(engine).forge(forgery, False, forgery.seed, out, previous, never)
        assert (result.part_digests, result.loss, result.samples) == (names(out), loss, samples)
        assert torch.equal(torch.frombuffer(before.view, dtype=torch.float32), torch.ones(engine.elements))

        poisoned = await client.forge(forgery_of("nan", forgery.state), True, forgery.seed, ranges, gradient)
        assert poisoned.part_digests == names(torch.full((engine.elements,), torch.nan))

        assert await client.distort(before, 8, 6, 1.0, SALT) == blob_digest(before.view[8:32])
        assert before.view[:8] == torch.ones(2).view(torch.uint8).numpy().data

        with pytest.raises(MisuseError, match="gradient attack 'unheard_of' is unknown"):
            await client.forge(forgery_of("unheard_of", forgery.state), True, forgery.seed, ranges, gradient)
    finally:
        await client.close()
        pool.close()
