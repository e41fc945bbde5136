"""The shared compute names the same bytes as the live worker, does nothing twice and forgets in time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crowdsurf.peer.compute.attacks import ATTACKS, DEFAULT_STRENGTH
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import WorkFailed
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows, norm_of
from crowdsurf.peer.compute.shared import Recent, SharedCompute
from crowdsurf.protocol import assignment
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, blob_digest, digest, peer_id_from_public_key
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, RuleSection, TaskSection, WorkSection
from crowdsurf.protocol.projection import (
    Clipping,
    as_often_as_they_count,
    clipping_of,
    lines_to_publish,
    projection_problem,
    wrong_norm,
)
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS, Compute, Forgery
from tests.peer.compute.plain_swarm import PlainSwarm

MakeManifest = Callable[..., Manifest]
CPU = torch.device("cpu")
SALT = digest("test", b"salt")


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(work=WorkSection(micro_batch_samples=4))


def seed_of(number: int) -> Digest:
    return digest("test", bytes([number]))


def vector(compute: SharedCompute, name: bytes) -> torch.Tensor:
    return compute.vector(Digest(name))


def forgery_of(compute: SharedCompute, attack: str, member: int = 9, strength: float = 1.0) -> Forgery:
    return Forgery(
        attack=attack,
        strength=strength,
        state=compute.initial_state(),
        seed=seed_of(member),
        parts=4,
        honest_seeds=tuple(seed_of(number) for number in range(3)),
        byzantine=2,
        previous=(),
        salt=SALT,
    )


def test_it_is_a_compute(manifest: Manifest) -> None:
    compute: Compute = SharedCompute(manifest)
    assert compute.elements == Engine(manifest, CPU).elements


def live_states(manifest: Manifest, swarm: PlainSwarm, steps: int) -> list[Digest]:
    """State digests of the same swarm by what the live worker does for each command, one engine per member."""
    engines = [Engine(manifest, CPU) for _ in range(swarm.members)]
    elements = engines[0].elements
    ranges = assignment.part_ranges(elements, swarm.members)
    rule = parse_rule(manifest.rule.name, manifest.rule.parameters)
    states = [engines[0].state.digest()]
    for step in range(steps):
        gradients = [torch.empty(elements) for _ in engines]
        for engine, seed, gradient in zip(engines, swarm.seeds(step), gradients, strict=True):
            engine.work(seed, gradient, lambda: False)
        averaged = torch.empty(elements)
        for part, (start, stop) in enumerate(ranges):
            matrix = torch.stack([gradient[start:stop] for gradient in gradients])  # as the daemon's memory lies
            chance = assignment.aggregation_seed(swarm.cut(step), part)
            aggregate_rows(rule, list(matrix), averaged[start:stop], chance)
        states += {engine.apply(averaged, (), ranges) for engine in engines}
    return states


@pytest.mark.parametrize("rule", ["mean", "centered_clip", "bucketing+median", "nnm+geometric_median", "mixtailor"])
def test_a_simulated_run_has_the_bytes_of_a_live_one(make_manifest: MakeManifest, rule: str) -> None:
    manifest = make_manifest(work=WorkSection(micro_batch_samples=4), rule=RuleSection(name=rule))
    swarm = PlainSwarm(SharedCompute(manifest), members=3)
    swarm.run(3)
    assert live_states(manifest, swarm, 3) == swarm.states


def test_work_is_named_as_the_worker_names_it(manifest: Manifest) -> None:
    compute, engine = SharedCompute(manifest), Engine(manifest, CPU)
    gradient = torch.empty(engine.elements)
    loss, samples = engine.work(seed_of(0), gradient, lambda: False)
    work = compute.work(compute.initial_state(), seed_of(0), 3)
    ranges = assignment.part_ranges(engine.elements, 3)
    assert work.parts == tuple(blob_digest(gradient[start:stop].numpy().tobytes()) for start, stop in ranges)
    assert (work.loss, work.samples) == (loss, samples)
    assert compute.initial_state() == engine.state.digest()


def test_a_finding_is_that_of_the_live_worker_also_some_steps_later(manifest: Manifest) -> None:
    compute, engine = SharedCompute(manifest, vector_bytes_max=8 * 4 * 731), Engine(manifest, CPU)
    finders = [peer_id_from_public_key(bytes([number]) * 32) for number in range(2)]
    gradient = torch.empty(engine.elements)
    engine.work(seed_of(0), gradient, lambda: False)
    expected = [digest("finding", finder + gradient.numpy().tobytes()) for finder in finders]
    state = compute.initial_state()
    assert [compute.finding(state, seed_of(0), 4, finder) for finder in finders] == expected
    part = compute.work(state, seed_of(0), 4).parts[0]
    PlainSwarm(compute, members=4).run(3)
    with pytest.raises(MisuseError, match="was forgotten"):
        compute.vector(part)
    assert [compute.finding(state, seed_of(0), 4, finder) for finder in finders] == expected
    assert len(set(expected)) == 2


def test_nothing_is_computed_twice(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = SharedCompute(manifest)
    calls: list[str] = []
    for name in ("work", "apply", "evaluate"):
        monkeypatch.setattr(compute.engine, name, counted(getattr(compute.engine, name), name, calls))
    counted_rule = counted(aggregate_rows, "aggregate", calls)
    monkeypatch.setattr("crowdsurf.peer.compute.shared.aggregate_rows", counted_rule)
    for _ in range(2):  # the second one repeats every question of the first
        PlainSwarm(compute, members=4, byzantine=1).run(3)
    assert sorted(calls) == ["aggregate"] * 12 + ["apply"] * 3 + ["evaluate"] + ["work"] * 12


def counted(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return call


def test_states_can_be_worked_at_in_any_order(manifest: Manifest) -> None:
    """Work at a state is the same after the engine has been elsewhere."""
    compute = SharedCompute(manifest)
    swarm = PlainSwarm(compute, members=2)
    swarm.run(2)
    fresh = SharedCompute(manifest)
    expected = fresh.work(fresh.initial_state(), seed_of(50), 2)
    assert compute.work(compute.initial_state(), seed_of(50), 2) == expected
    assert compute.apply(swarm.states[0], (b"", b"")) != swarm.states[1]
    assert compute.evaluate(swarm.states[1]) == PlainSwarm(SharedCompute(manifest), members=2).run(1)


def test_old_states_and_vectors_are_forgotten_in_one_sentence(manifest: Manifest) -> None:
    compute = SharedCompute(manifest, keep_states=2, vector_bytes_max=8 * 4 * 731)
    assert compute.elements <= 731
    swarm = PlainSwarm(compute, members=2)
    first = compute.work(compute.initial_state(), seed_of(9), 2)
    swarm.run(10)
    with pytest.raises(MisuseError, match="not among the newest 2; raise keep_states"):
        compute.work(compute.initial_state(), seed_of(3), 2)
    with pytest.raises(MisuseError, match="was forgotten; raise vector_bytes_max"):
        compute.aggregate(((0, first.parts[0]),), SALT, 0)


def test_forgotten_work_is_computed_again(manifest: Manifest) -> None:
    compute = SharedCompute(manifest, vector_bytes_max=1)
    state = compute.initial_state()
    first = compute.work(state, seed_of(0), 1)
    compute.work(state, seed_of(1), 1)
    assert compute.work(state, seed_of(0), 1) == first
    assert len(vector(compute, first.parts[0])) == compute.elements


def test_recent_forgets_what_was_not_used_for_longest() -> None:
    recent: Recent[str, int] = Recent(3)
    for name in ("a", "b", "c"):
        recent.put(name, 1)
    assert recent["a"] == 1
    recent.put("d", 2)
    assert [name in recent for name in ("a", "b", "c", "d")] == [True, False, True, True]
    recent.put("big", 5, weight=9)
    assert [name in recent for name in ("a", "c", "d", "big")] == [False, False, False, True]
    recent.put("big", 6, weight=1)
    recent.put("a", 1, weight=2)
    assert recent["big"] == 6


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_every_attack_is_forged_and_repeatable(manifest: Manifest, attack: str) -> None:
    first, second = SharedCompute(manifest), SharedCompute(manifest)
    forgery = forgery_of(first, attack, strength=DEFAULT_STRENGTH[attack])
    forged = first.forge(forgery)
    honest = second.work(forgery.state, forgery.seed, 4)
    assert second.forge(forgery) == forged
    assert (forged.loss, forged.samples) == (honest.loss, honest.samples)
    assert (forged.parts == honest.parts) is (attack == "delayed_gradient")
    colluder = first.forge(dataclasses.replace(forgery, seed=seed_of(10)))
    assert (colluder.parts == forged.parts) is ATTACKS[attack].alike


def test_a_forgery_is_what_its_formula_says(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    state = compute.initial_state()
    rows = torch.stack([gradient_of(compute, state, seed_of(number)) for number in range(3)])
    forged = compute.forge(forgery_of(compute, "ipm", strength=0.5))
    expected = (rows.double().mean(dim=0) * -0.5).float()
    assert torch.equal(torch.cat([vector(compute, name) for name in forged.parts]), expected)


def gradient_of(compute: SharedCompute, state: Digest, seed: Digest) -> torch.Tensor:
    return torch.cat([vector(compute, name) for name in compute.work(state, seed, 4).parts])


def test_flipped_labels_are_those_of_the_task(manifest: Manifest) -> None:
    compute, engine = SharedCompute(manifest), Engine(manifest, CPU)
    forged = compute.forge(forgery_of(compute, "label_flip"))
    expected = torch.empty(engine.elements)
    engine.work(seed_of(9), expected, lambda: False, flip_labels=True)
    assert torch.equal(torch.cat([vector(compute, name) for name in forged.parts]), expected)


def test_the_previous_aggregate_reaches_the_attack(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    work = compute.work(compute.initial_state(), seed_of(0), 4)
    forgery = forgery_of(compute, "rop")
    void = dataclasses.replace(forgery, previous=(b"", *work.parts[1:]))
    names = [compute.forge(one).parts for one in (forgery, void, dataclasses.replace(forgery, previous=work.parts))]
    assert len(set(names)) == 3
    broken = compute.forge(forgery_of(compute, "nan")).parts
    sent = compute.forge(dataclasses.replace(forgery, previous=broken)).parts
    assert all(bool(vector(compute, name).isfinite().all()) for name in sent)


def test_without_honest_members_an_attacker_looks_at_its_own_work(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    forged = compute.forge(dataclasses.replace(forgery_of(compute, "mimic"), honest_seeds=()))
    assert forged == compute.work(compute.initial_state(), seed_of(9), 4)


def test_rows_that_are_not_finite_are_left_out_by_member(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    honest = compute.work(compute.initial_state(), seed_of(0), 4).parts[1]
    broken = compute.forge(forgery_of(compute, "nan")).parts[1]
    result = compute.aggregate(((2, honest), (5, broken)), SALT, 1)
    assert result is not None
    assert result[1] == (2,)
    assert compute.aggregate(((5, broken),), SALT, 1) is None
    assert compute.aggregate(((5, broken),), SALT, 1) is None


def test_void_parts_and_parts_that_are_not_finite_change_nothing(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    state = compute.initial_state()
    broken = compute.forge(forgery_of(compute, "inf")).parts
    assert compute.apply(state, (b"",) * 4) == compute.apply(state, broken)


def test_a_distorted_aggregate_is_as_far_away_as_asked(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    state = compute.initial_state()
    name = compute.work(state, seed_of(0), 2).parts[0]
    true = vector(compute, name).double()
    wrong = vector(compute, compute.distort(name, 0.25, SALT)).double()
    assert float((wrong - true).norm() / true.norm()) == pytest.approx(0.25, rel=1e-5)
    assert compute.distort(name, 0.25, SALT) == compute.distort(name, 0.25, SALT)
    assert compute.distort(name, 0.25, SALT) != compute.distort(name, 0.25, seed_of(1))
    zeros = compute.forge(forgery_of(compute, "zero")).parts[0]
    assert compute.distort(zeros, 0.25, SALT) != zeros


def test_training_that_diverged_is_said_so(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(
        task=TaskSection(name="quadratic", parameters={"dimension": 4}),
        optimizer=OptimizerSection(name="sgd", learning_rate=1e12, momentum=0.0),
    )
    swarm = PlainSwarm(SharedCompute(manifest), members=2)
    with pytest.raises(WorkFailed, match="not finite"):
        swarm.run(10)


@pytest.fixture(params=[RuleSection(name="mean"), RuleSection(parameters={"tau": 0.05})], ids=["mean", "clipped"])
def clipped(make_manifest: MakeManifest, request: pytest.FixtureRequest) -> tuple[SharedCompute, Clipping]:
    """Rules that projections can check."""
    manifest = make_manifest(rule=request.param, work=WorkSection(micro_batch_samples=4))
    clipping = clipping_of(manifest)
    assert clipping is not None
    return SharedCompute(manifest), clipping


def test_an_honest_aggregate_is_balanced_and_a_distorted_one_is_not(clipped: tuple[SharedCompute, Clipping]) -> None:
    compute, clipping = clipped
    works = [compute.work(compute.initial_state(), seed_of(number), 2) for number in range(4)]
    assert works[0].norms == tuple(norm_of(vector(compute, name)) for name in works[0].parts)
    rows = tuple(work.parts[1] for work in works)
    found = compute.aggregate(tuple(enumerate(rows)), SALT, 1)
    assert found is not None
    seed = assignment.projection_seed(digest("test", b"beacon"), 1)
    nothing, lines = compute.project(rows, found[0], seed)
    assert nothing is not None
    assert not wrong_norm(nothing.norm, norm_of(vector(compute, found[0])))
    assert projection_problem(lines, nothing.norm, clipping) is None
    assert compute.project(rows[2:3], found[0], seed) == (nothing, lines[2:3])
    wrong = compute.distort(found[0], 0.1, SALT)
    nothing, lines = compute.project(rows, wrong, seed)
    assert nothing is not None
    assert projection_problem(lines, nothing.norm, clipping) is not None


def test_lines_about_what_is_missing_balance_those_about_the_others(clipped: tuple[SharedCompute, Clipping]) -> None:
    compute, clipping = clipped
    rows = tuple(compute.work(compute.initial_state(), seed_of(number), 2).parts[1] for number in range(2))
    seed = assignment.projection_seed(digest("test", b"beacon"), 1)
    for absent in (1, 3):
        found = compute.aggregate(tuple(enumerate(rows)), SALT, 1, absent)
        assert found is not None
        nothing, lines = compute.project(rows, found[0], seed)
        assert nothing is not None
        whole = as_often_as_they_count(lines_to_publish(lines, nothing, absent), absent)
        assert projection_problem(whole, nothing.norm, clipping) is None
        assert projection_problem(lines, nothing.norm, clipping) is not None


def test_there_are_no_lines_about_numbers_that_are_not_finite(manifest: Manifest) -> None:
    compute = SharedCompute(manifest)
    good = compute.work(compute.initial_state(), seed_of(0), 2).parts[0]
    bad = compute.forge(forgery_of(compute, "nan")).parts
    assert all(math.isnan(norm) for norm in compute.forge(forgery_of(compute, "nan")).norms)
    broken = compute.work(compute.initial_state(), seed_of(0), 4).parts[0]
    nothing, lines = compute.project((bad[0],), broken, SALT)
    assert nothing is not None
    assert lines == ()
    assert compute.project((broken,), bad[0], SALT) == (None, ())
    with pytest.raises(MisuseError, match="forgotten"):
        compute.project((good,), digest("test", b"?"), SALT)
