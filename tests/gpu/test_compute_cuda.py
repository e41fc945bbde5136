"""The compute path on a CUDA device: the same code, repeatable bytes, gradients close to the CPU's."""

from __future__ import annotations

import os

import pytest
import torch

from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.worker import choose_device, set_numerics
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import peer_id_from_public_key
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, TaskSection, WorkSection

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FOUNDER = peer_id_from_public_key(bytes(range(32)))
TASKS = {
    "conv": TaskSection(name="digits"),
    "mlp": TaskSection(name="digits", parameters={"model": "mlp"}),
    "text": TaskSection(name="text", parameters={"dropout": 0.1}),
}


@pytest.fixture(autouse=True)
def numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemon and the worker set for every worker process."""
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_numerics(torch.get_num_threads())


def make_engine(task: TaskSection, precision: str, device: str) -> Engine:
    manifest = Manifest(
        name="test",
        organizer=FOUNDER,
        founders=(FOUNDER,),
        task=task,
        work=WorkSection(micro_batches=2, micro_batch_samples=8, precision=precision),
        optimizer=OptimizerSection(name="adamw", learning_rate=0.01),
    )
    return Engine(manifest, torch.device(device))


def work(engine: Engine) -> torch.Tensor:
    out = torch.empty(engine.elements)
    engine.work(bytes(range(32)), out, lambda: False)
    return out


@pytest.mark.parametrize(("precision", "distance_max"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_work_repeats_and_is_close_to_the_cpu(task: TaskSection, precision: str, distance_max: float) -> None:
    engine = make_engine(task, precision, "cuda")
    gradient = work(engine)
    assert torch.equal(work(engine), gradient)
    assert torch.equal(work(make_engine(task, precision, "cuda")), gradient)
    expected = work(make_engine(task, precision, "cpu"))
    assert float((gradient - expected).norm() / expected.norm()) < distance_max


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_the_certified_state_has_the_same_bytes_on_both_devices(task: TaskSection) -> None:
    there, here = make_engine(task, "float32", "cuda"), make_engine(task, "float32", "cpu")
    for _ in range(2):
        gradient = work(there)
        assert there.apply(gradient, [(5, 9)]) == here.apply(gradient, [(5, 9)])
    assert there.evaluate()["test_loss"] == pytest.approx(here.evaluate()["test_loss"], rel=1e-4)


def test_devices_are_named_or_refused() -> None:
    assert choose_device("auto").type == "cuda"
    with pytest.raises(MisuseError, match="is not there"):
        choose_device("cuda:99")
