"""A work unit computed again at a past state has the bits of then, and leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import StateForgotten, WorkCancelled, WorkFailed
from crowdsurf.peer.compute.past_states import PastStates
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.limits import PAST_STATES
from crowdsurf.protocol.manifest import Manifest, TaskSection, WorkSection

MakeManifest = Callable[..., Manifest]
STEPS = PAST_STATES + 2
TASKS = {
    "mlp": TaskSection(name="digits", parameters={"model": "mlp", "hidden": 8}),
    "conv": TaskSection(name="digits", parameters={"model": "conv", "hidden": 8}),
    "text": TaskSection(name="text", parameters={"layers": 1, "width": 16, "context": 8, "dropout": 0.2}),
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device, with deterministic kernels as the worker has them."""
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")
    yield torch.device(request.param)
    torch.set_deterministic_debug_mode("default")


def name_of(number: int) -> Digest:
    return digest("test", bytes([number]))


def never() -> bool:
    return False


def work(engine: Engine, number: int) -> torch.Tensor:
    out = torch.empty(engine.elements)
    engine.work(name_of(number), out, never)
    return out


def recompute(engine: Engine, state: Digest, number: int) -> torch.Tensor:
    out = torch.full((engine.elements,), float("nan"))
    engine.recompute(state, name_of(number), out, never)
    return out


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def state_bytes(engine: Engine) -> bytes:
    saved = bytearray(engine.state.nbytes)
    engine.state.save(memoryview(saved))
    return bytes(saved)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_recomputed_work_has_the_bits_of_then_and_changes_nothing(
    make_manifest: MakeManifest, task: TaskSection, precision: str, device: torch.device
) -> None:
    """One engine audits everything it remembers after every step, the other one never does."""
    section = WorkSection(micro_batches=2, micro_batch_samples=3, precision=precision)
    auditor, plain = (Engine(make_manifest(task=task, work=section), device) for _ in range(2))
    states, gradients = [plain.load_initial()], []
    for step in range(STEPS):
        gradients.append(work(plain, step))
        for past in range(max(0, step - PAST_STATES), step + 1):
            assert same_bits(recompute(auditor, states[past], past), gradients[past])
            assert state_bytes(auditor) == state_bytes(plain)
        assert same_bits(work(auditor, step), gradients[step])
        states.append(plain.apply(gradients[step], [(3, 7)]))
        assert auditor.apply(gradients[step], [(3, 7)]) == states[-1]
    assert auditor.evaluate() == plain.evaluate()
    assert len({gradient.numpy().tobytes() for gradient in gradients}) == STEPS
    with pytest.raises(StateForgotten):
        recompute(auditor, states[STEPS - PAST_STATES - 1], 0)


def test_another_seed_or_state_is_another_gradient(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), torch.device("cpu"))
    first = engine.load_initial()
    then = work(engine, 0)
    second = engine.apply(then, ())
    assert not same_bits(recompute(engine, first, 1), then)
    assert not same_bits(recompute(engine, second, 0), then)
    with pytest.raises(MisuseError, match="32 bytes"):
        engine.recompute(first, b"short", then, never)


def test_recomputing_that_is_stopped_leaves_the_present_state(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(work=WorkSection(micro_batches=3, micro_batch_samples=2)), torch.device("cpu"))
    first = engine.load_initial()
    engine.apply(work(engine, 0), ())
    before, expected, figures = state_bytes(engine), work(engine, 1), engine.evaluate()
    answers = iter([False, True])
    with pytest.raises(WorkCancelled):
        engine.recompute(first, name_of(0), torch.empty(engine.elements), lambda: next(answers))
    assert state_bytes(engine) == before
    assert engine.evaluate() == figures
    assert same_bits(work(engine, 1), expected)


def test_a_loaded_state_has_no_past(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), torch.device("cpu"))
    first = engine.load_initial()
    second = engine.apply(work(engine, 0), ())
    assert engine.load_state(memoryview(state_bytes(engine))) == second
    with pytest.raises(StateForgotten, match=r"neither the present one nor one of the 4 before it"):
        recompute(engine, first, 0)
    recompute(engine, second, 0)
    engine.apply(work(engine, 1), ())
    engine.load_initial()
    with pytest.raises(StateForgotten):
        recompute(engine, second, 0)


def test_an_update_that_fails_is_no_step_into_the_past(make_manifest: MakeManifest) -> None:
    engine = Engine(make_manifest(), torch.device("cpu"))
    first, then = engine.load_initial(), work(engine, 0)
    for step in range(PAST_STATES):
        engine.apply(work(engine, step), ())
    for _ in range(PAST_STATES):
        with pytest.raises(WorkFailed):
            engine.apply(torch.full((engine.elements,), float("inf")), ())
    assert same_bits(recompute(engine, first, 0), then)


def test_only_the_newest_states_are_kept_in_memory_taken_once() -> None:
    past, parameters = PastStates(2), torch.zeros(4)
    addresses = set()
    for number in range(10):
        parameters.fill_(number)
        past.remember(name_of(number), parameters)
        addresses.add(past.parameters(name_of(number)).data_ptr())
        if number == 6:
            past.clear()
            with pytest.raises(StateForgotten):
                past.parameters(name_of(6))
    assert len(addresses) == 2
    assert parameters.data_ptr() not in addresses
    for number in (8, 9):
        assert past.parameters(name_of(number)).tolist() == [number] * 4
    with pytest.raises(StateForgotten):
        past.parameters(name_of(7))


def test_a_state_remembered_again_becomes_the_newest() -> None:
    past = PastStates(2)
    for number in (0, 1, 0, 2):
        past.remember(name_of(number), torch.full((4,), float(number)))
    assert [past.parameters(name_of(number))[0] for number in (0, 2)] == [0.0, 2.0]
    with pytest.raises(StateForgotten):
        past.parameters(name_of(1))
