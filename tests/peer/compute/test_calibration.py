"""Calibration: honest ways are near, cheats are far, and a bound is suggested only where there is room for one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from crowdsurf.peer.compute.calibration import BOUND_MAX, BOUND_MIN, CHEAT, HONEST, Halves, Weighed, calibrate, suggest
from crowdsurf.peer.compute.comparing import relative_distance
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.protocol.manifest import Manifest, TaskSection, WorkSection
from crowdsurf.protocol.tolerance import ACCUSING

MakeManifest = Callable[..., Manifest]
SEED = bytes(range(32))
SMOOTH = TaskSection(name="text", parameters={"layers": 1, "width": 16, "context": 8, "dropout": 0.0})


@pytest.mark.parametrize(("honest", "cheat"), [(1e-7, 0.05), (3e-4, 0.2), (0.0, 0.3), (1e-6, 0.9)])
def test_a_bound_is_far_from_honest_ways_and_from_cheats(honest: float, cheat: float) -> None:
    bound = suggest(honest, cheat)
    assert bound is not None
    assert BOUND_MIN <= bound <= BOUND_MAX
    assert 2 * honest <= bound <= cheat / ACCUSING / 2
    if honest:
        assert bound == pytest.approx(math.sqrt(honest * cheat), rel=0.06)


@pytest.mark.parametrize(("honest", "cheat"), [(1e-2, 0.05), (0.3, 0.2), (1e-7, 2e-5), (0.0, 0.0)])
def test_without_room_no_bound_is_suggested(honest: float, cheat: float) -> None:
    assert suggest(honest, cheat) is None


@pytest.mark.parametrize("task", [TaskSection(name="digits", parameters={"model": "mlp", "hidden": 8}), SMOOTH])
def test_one_sample_of_a_small_unit_is_far_from_what_honest_peers_differ_by(
    make_manifest: MakeManifest, task: TaskSection
) -> None:
    manifest = make_manifest(task=task, work=WorkSection(micro_batches=2, micro_batch_samples=4))
    found = calibrate(manifest, 2)
    assert {way.kind for way in found.ways} >= {HONEST, CHEAT}
    assert found.honest_max < 1e-5
    assert found.cheat_min is not None
    assert found.cheat_min > 1e-2
    assert found.relative_l2_max is not None
    assert found.honest_max < found.relative_l2_max < found.cheat_min
    assert found.as_json()["units"] == 2


def test_a_task_that_shows_no_samples_gets_no_bound(make_manifest: MakeManifest) -> None:
    found = calibrate(make_manifest(task=TaskSection(name="quadratic")), 1)
    assert (found.cheat_min, found.relative_l2_max) == (None, None)


def test_a_task_whose_chance_depends_on_the_batch_is_not_split(make_manifest: MakeManifest) -> None:
    task = TaskSection(name="text", parameters=SMOOTH.parameters | {"dropout": 0.5})
    found = calibrate(make_manifest(task=task, work=WorkSection(micro_batch_samples=4)), 1)
    assert not any("halves" in way.name for way in found.ways)


def test_a_sample_left_out_is_left_out(make_manifest: MakeManifest) -> None:
    """All but one of the samples, weighed up, give the gradient of a batch without it."""
    manifest = make_manifest(work=WorkSection(micro_batch_samples=3))
    engine = Engine(manifest, torch.device("cpu"))
    whole, halves, ones = (torch.empty(engine.elements) for _ in range(3))
    engine.work(SEED, whole, lambda: False)
    with engine.seen_through(Halves):
        engine.work(SEED, halves, lambda: False)
    assert relative_distance(whole, halves) < 1e-6
    total = torch.zeros(engine.elements)
    for index in range(3):
        weights = [1.0 if other == index else 0.0 for other in range(3)]
        with engine.seen_through(lambda model, chosen=weights: Weighed(model, chosen, 1)):  # type: ignore[misc]
            engine.work(SEED, ones, lambda: False)
        assert relative_distance(whole, ones) > 0.1
        total += ones
    assert relative_distance(whole, total) < 1e-6
    engine.work(SEED, ones, lambda: False)
    assert torch.equal(ones, whole)  # the model is the plain one again
