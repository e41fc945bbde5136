"""A swarm that really learns on machines that round differently: leaving out one sample bans, rounding does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from crowdsurf.peer.compute.calibration import Weighed, calibrate
from crowdsurf.peer.compute.comparing import compare_parts, sketch_of
from crowdsurf.peer.compute.shared import SharedCompute
from crowdsurf.protocol.assignment import part_ranges
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import AuditSection, Manifest, OptimizerSection, TaskSection, WorkSection
from crowdsurf.protocol.messages import Reason
from crowdsurf.protocol.sim.compute import Forgery, Work
from crowdsurf.protocol.sim.simulation import Plan, Report, Simulation, plain_manifest
from crowdsurf.protocol.tolerance import Compared

pytestmark = pytest.mark.slow

PEERS, LIARS, STEPS, SAMPLES = 6, 2, 40, 16
NOISE = 1e-7


class Skipping(SharedCompute):
    """Whoever forges leaves out one of its samples, and scales up the others, so that nothing shows in the length."""

    def forge(self, forgery: Forgery) -> Work:
        honest = self.work(forgery.state, forgery.seed, forgery.parts)
        self._go_to(forgery.state)
        weights, gradient = [0.0] + [SAMPLES / (SAMPLES - 1)] * (SAMPLES - 1), torch.empty(self.elements)
        with self.engine.seen_through(lambda model: Weighed(model, weights, 1)):
            self.engine.work(forgery.seed, gradient, lambda: False)
        names = self._keep(gradient, forgery.parts)
        return Work(names, honest.loss, honest.samples, self._norms(names))


class OtherMachine:
    """A machine of its own: adds to every gradient what no other machine adds; all else is shared."""

    def __init__(self, shared: SharedCompute, number: int) -> None:
        self._shared = shared
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)

    def _gradient(self, state: Digest, seed: Digest, parts: int) -> torch.Tensor:
        gradient = self._shared._join(self._shared.work(state, seed, parts).parts)
        chance = torch.Generator().manual_seed(self._number * 1_000_003 + int.from_bytes(seed[:4], "little"))
        noise = torch.randn(len(gradient), generator=chance)
        return gradient + noise * (NOISE * gradient.norm() / noise.norm())

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        honest = self._shared.work(state, seed, parts)
        names = self._shared._keep(self._gradient(state, seed, parts), parts)
        return Work(names, honest.loss, honest.samples, self._shared._norms(names))

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        return sketch_of(self._gradient(state, seed, parts), finder)

    def compare(
        self, state: Digest, seed: Digest, parts: int, committed: tuple[bytes, ...]
    ) -> tuple[Compared | None, ...]:
        ranges = part_ranges(self._shared.elements, parts)
        whole, shown = self._gradient(state, seed, parts), self._shared._join(committed)
        return tuple(compare_parts(whole, shown, ranges, [bool(name) for name in committed]))


def manifest_for(plan: Plan, bound: float) -> Manifest:
    return msgspec.structs.replace(
        plain_manifest(plan, STEPS),
        task=TaskSection(name="digits", parameters={"model": "mlp", "hidden": 8}),
        work=WorkSection(micro_batch_samples=SAMPLES),
        optimizer=OptimizerSection(name="sgd", learning_rate=0.05),
        audit=AuditSection(rate=0.34, comparison="tolerance", relative_l2_max=bound),
    )


def play(attack: str, compute: type[SharedCompute] = SharedCompute) -> Report:
    """With the bound that calibration suggests for this very run."""
    plan = Plan(peers=PEERS, byzantine=LIARS if attack != "none" else 0, attack=attack, attack_from=2)
    bound = calibrate(manifest_for(plan, 1e-3), 3).relative_l2_max
    assert bound is not None
    manifest = manifest_for(plan, bound)
    shared = compute(manifest)
    made = Simulation(plan, manifest, shared)
    machines = {host.number: OtherMachine(shared, host.number) for host in made.hosts}
    made.world.machine = machines.__getitem__
    report = made.run()
    assert report.violations == []
    return report


@pytest.mark.parametrize(
    ("attack", "compute", "reason"),
    [
        ("sign_flip", SharedCompute, Reason.WRONG_GRADIENT),
        ("sign_flip", Skipping, Reason.WRONG_GRADIENT),
        ("lazy_validator", SharedCompute, Reason.WRONG_FINDING),
    ],
    ids=["turned around", "one sample left out", "nothing validated"],
)
def test_cheats_are_banned(attack: str, compute: type[SharedCompute], reason: Reason) -> None:
    report = play(attack, compute)
    bans = [ban for one in report.honest[0].disk.certificates for ban in one.header.bans]
    assert {ban.peer for ban in bans} == {host.id for host in report.hosts if not host.honest}
    assert {ban.reason for ban in bans} == {reason}


def test_rounding_is_no_cheat_and_the_swarm_learns() -> None:
    report = play("none")
    assert report.certified_steps == STEPS
    assert not any(certificate.header.bans for certificate in report.honest[0].disk.certificates)
    assert report.compute.evaluate(report.honest[0].state)["test_loss"] < 2.0  # it begins above 2.3: guessing
