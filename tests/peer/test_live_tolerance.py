"""Whole swarms of daemons whose machines compute a little differently: bytes are really fetched, liars are banned, and
nobody honest is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.compute.client import Committed, RecomputeResult, WorkResult
from crowdsurf.peer.compute.comparing import sketch_of
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.demo import Demo, DemoOptions, failed
from crowdsurf.peer.journal import read_journal
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest
from crowdsurf.protocol.recovery import certificates_of
from crowdsurf.protocol.sim.compute import Forgery
from tests.peer.shell import ELEMENTS, FakeCompute, soon
from tests.peer.stand_ins import daemons_use, demos_use_fakes, no_command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tidy")]

PEERS, LIARS = 5, 2
NOISE = 1e-6
CONFIG = """
name: mixed
task: {name: digits, parameters: {model: mlp, hidden: 8}}
work: {micro_batch_samples: 32}
optimizer: {name: sgd, learning_rate: 0.05}
rule: {name: mean}
audit: {comparison: tolerance, relative_l2_max: 1.0e-4, rate: 0.2}
deadlines:
  work_seconds_min: 0.3
  work_seconds_max: 3.0
  transfer_seconds_min: 0.3
  transfer_seconds_max: 3.0
  delivery_seconds: 0.3
steps: 4
"""


class OtherMachine(FakeCompute):
    """Adds what no other machine adds; compares by numbers and sketches."""

    made = 0

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        OtherMachine.made += 1
        self._chance = OtherMachine.made
        self.compared = 0

    def _gradient(self, state: bytes, seed: bytes) -> Any:
        values = super()._gradient(state, seed)
        noise = numpy.random.default_rng([self._chance, seed[0]]).standard_normal(ELEMENTS)
        scale = NOISE * numpy.linalg.norm(values) / numpy.linalg.norm(noise)
        return (values + scale * noise).astype(numpy.float32)

    async def finding(self, segment: Segment, nbytes: int, finder: PeerId) -> Digest:
        await super().finding(segment, nbytes, finder)
        return sketch_of(torch.frombuffer(segment.view[:nbytes], dtype=torch.float32), finder)

    async def recompute(self, *arguments: Any) -> RecomputeResult:
        result = await super().recompute(*arguments)
        state, seed, finder = arguments[0], arguments[1], arguments[4]
        committed: Committed | None = arguments[8]
        self.compared += committed is not None
        sketch = sketch_of(torch.from_numpy(self._gradient(self._past[state], seed)), finder)
        return RecomputeResult(result.part_digests, result.norms, sketch, result.lines, result.compared)

    async def forge(
        self,
        forgery: Forgery,
        usual_strength: bool,
        seed: bytes,
        ranges: Sequence[tuple[int, int]],
        gradient: Segment,
        previous: tuple[Segment, Sequence[tuple[int, int]]] | None = None,
    ) -> WorkResult:
        honest = await self.work(seed, ranges, gradient)
        values = numpy.frombuffer(gradient.view, numpy.float32)
        values[:] *= -1.0
        digests = tuple(blob_digest(gradient.view[4 * start : 4 * stop]) for start, stop in ranges)
        return WorkResult(digests, honest.norms, honest.loss, honest.samples)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[OtherMachine]:
    """The worker of every daemon, in the order in which they start."""
    demos_use_fakes(monkeypatch)
    return daemons_use(monkeypatch, OtherMachine)


async def play(folder: Path, steps: int, attack: str | None = None) -> dict[str, Any]:
    config = folder / "mixed.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    options: dict[str, Any] = {"folder": folder, "peers": PEERS, "steps": steps, "transport": "memory"}
    if attack is not None:
        options |= {"byzantine": LIARS, "attack": attack, "attack_from": 1}
    answer = await soon(Demo(DemoOptions(**options, task=str(config)), no_command).run())
    assert failed(answer) is None
    assert answer["honest_banned"] == 0
    return answer


async def test_honest_machines_that_differ_train_together(tmp_path: Path, machines: list[OtherMachine]) -> None:
    answer = await play(tmp_path, 12)
    assert answer["consensus"]
    assert answer["banned"] == []
    assert sum(machine.compared for machine in machines) >= 6  # validators have seen bytes that were not theirs
    (run,) = (tmp_path / "peer-0" / "runs").iterdir()
    assert all(not certificate.header.bans for certificate in certificates_of(read_journal(run)))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [("sign_flip", "wrong_gradient"), ("lazy_validator", "wrong_finding"), ("false_accusation", "false_accusation")],
)
async def test_liars_are_banned(tmp_path: Path, machines: list[OtherMachine], attack: str, reason: str) -> None:
    answer = await play(tmp_path, 50, attack)
    assert {row["reason"] for row in answer["banned"]} == {reason}
    assert len(answer["banned"]) == LIARS


async def test_without_any_bytes_nobody_is_banned(
    tmp_path: Path, machines: list[OtherMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = BlobStore.gather
    monkeypatch.setattr(BlobStore, "gather", lambda self, parts: (gather(self, parts)[0], [False] * len(parts)))
    answer = await play(tmp_path, 12, "sign_flip")
    assert answer["banned"] == []
