"""What attackers can do to learning, with a rule that trusts and with one that bounds them.

The bound of CenteredClip for one part, with n rows of which f are wrong, h = n - f honest ones of mean mu and
distances r_i from it, and fixed point v. Every wrong row pulls by at most tau, so |sum over honest of clip(x_i - v)|
is at most f tau. From that:

- if every r_i <= tau (h - f) / h, no honest row is clipped and |v - mu| <= tau f / h, with equality when the wrong
  rows are far away on one side;
- in any case, if f < h: |v - mu| <= max(tau, 2 h / (h - f) * mean of r_i).

With SGD at rate eta on a quadratic with curvatures between a and 1 and P parts, the first gives
|x' - t| <= (1 - eta a) |x - t| + eta sqrt(P) tau f / h, so the swarm ends within sqrt(P) tau f / (h a) of the optimum.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crowdsurf.peer.compute.shared import SharedCompute
from crowdsurf.peer.compute.tasks.quadratic import QuadraticTask
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, RuleSection, TaskSection, WorkSection
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS
from tests.peer.compute.plain_swarm import PlainSwarm

MakeManifest = Callable[..., Manifest]
TAU = 0.5
RATE = 0.5
CONDITION = 2.0
DIMENSION = 64
MEMBERS = 16
STEPS = 18
"""Of digits: enough to tell learning from not learning."""
CUT = digest("test", b"cut")
ROUNDING = 1.0 + 1e-4
"""The rule stops at a relative residual of 1e-6, and its result is float32."""


def quadratic(make_manifest: MakeManifest, noise: float, rule: str = "centered_clip") -> SharedCompute:
    return SharedCompute(
        make_manifest(
            task=TaskSection(
                name="quadratic", parameters={"dimension": DIMENSION, "condition": CONDITION, "noise": noise}
            ),
            work=WorkSection(micro_batch_samples=4),
            optimizer=OptimizerSection(name="sgd", learning_rate=RATE, momentum=0.0),
            rule=RuleSection(name=rule, parameters={"tau": TAU} if rule == "centered_clip" else {}),
        )
    )


def digits(make_manifest: MakeManifest, rule: str) -> SharedCompute:
    return SharedCompute(
        make_manifest(
            task=TaskSection(name="digits", parameters={"model": "mlp", "hidden": 32}),
            work=WorkSection(micro_batch_samples=32),
            optimizer=OptimizerSection(name="adamw", learning_rate=0.02),
            rule=RuleSection(name=rule, parameters={"tau": 0.1} if rule == "centered_clip" else {}),
        )
    )


def vector(compute: SharedCompute, name: Digest) -> torch.Tensor:
    return compute.vector(name).double()


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
@pytest.mark.parametrize("byzantine", [3, 7])
@pytest.mark.parametrize("noise", [0.02, 1.0])
def test_centered_clip_keeps_every_attack_within_its_bound(
    make_manifest: MakeManifest, attack: str, byzantine: int, noise: float
) -> None:
    compute = quadratic(make_manifest, noise)
    swarm = PlainSwarm(compute, MEMBERS, byzantine, attack)
    swarm.previous = compute.work(swarm.states[0], digest("test", b"previous"), MEMBERS).parts
    works = swarm.works(0)
    honest = MEMBERS - byzantine
    for part in (0, MEMBERS - 1):
        result = compute.aggregate(tuple((member, work.parts[part]) for member, work in enumerate(works)), CUT, part)
        assert result is not None
        rows = torch.stack([vector(compute, work.parts[part]) for work in works[:honest]])
        spread = (rows - rows.mean(dim=0)).norm(dim=1)
        moved = float((vector(compute, result[0]) - rows.mean(dim=0)).norm())
        bound = max(TAU, 2.0 * honest / (honest - byzantine) * float(spread.mean()))
        if float(spread.max()) <= TAU * (honest - byzantine) / honest:
            bound = TAU * byzantine / honest
        assert moved <= bound * ROUNDING


@pytest.mark.parametrize("byzantine", [1, 3, 7])
def test_far_attackers_reach_the_bound_and_strength_adds_nothing(make_manifest: MakeManifest, byzantine: int) -> None:
    for strength in (1e3, 1e6):
        compute = quadratic(make_manifest, noise=0.0)
        works = PlainSwarm(compute, MEMBERS, byzantine, "sign_flip", strength).works(0)
        result = compute.aggregate(tuple((member, work.parts[0]) for member, work in enumerate(works)), CUT, 0)
        assert result is not None
        moved = float((vector(compute, result[0]) - vector(compute, works[0].parts[0])).norm())
        assert moved == pytest.approx(TAU * byzantine / (MEMBERS - byzantine), rel=1e-4)


@pytest.mark.parametrize(
    ("attack", "byzantine"), [("sign_flip", 7), ("random_direction", 3), ("label_flip", 7), ("huge", 3)]
)
def test_the_optimum_is_missed_by_no_more_than_the_formula(
    make_manifest: MakeManifest, attack: str, byzantine: int
) -> None:
    compute = quadratic(make_manifest, noise=0.0)
    task, place = compute.engine.task, compute.engine.state.parameters
    assert isinstance(task, QuadraticTask)
    swarm = PlainSwarm(compute, MEMBERS, byzantine, attack)
    push = MEMBERS**0.5 * TAU * byzantine / (MEMBERS - byzantine)
    bound = float((place.double() - task.optimum).norm())
    for _ in range(12):
        swarm.step()
        bound = bound * (1.0 - RATE / CONDITION) + RATE * push
        assert float((place.double() - task.optimum).norm()) <= bound * ROUNDING
    assert bound <= push * CONDITION * 1.5


def test_a_mean_has_no_bound(make_manifest: MakeManifest) -> None:
    compute = quadratic(make_manifest, noise=0.0, rule="mean")
    start = compute.evaluate(compute.initial_state())["test_loss"]
    assert PlainSwarm(compute, MEMBERS, 1, "sign_flip").run(2)["test_loss"] > 1e4 * start


def test_digits_are_destroyed_under_a_mean_and_learn_under_centered_clip(make_manifest: MakeManifest) -> None:
    clean = PlainSwarm(digits(make_manifest, "mean"), MEMBERS).run(STEPS)
    destroyed = PlainSwarm(digits(make_manifest, "mean"), MEMBERS, 3, "sign_flip").run(STEPS)
    bounded = PlainSwarm(digits(make_manifest, "centered_clip"), MEMBERS, 3, "sign_flip").run(STEPS)
    assert clean["test_accuracy"] > 0.8
    assert destroyed["test_accuracy"] < 0.3
    assert bounded["test_accuracy"] > clean["test_accuracy"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "low", "high"), [("mean", 0.0, 0.3), ("centered_clip", 0.85, 1.0)])
def test_digits_under_seven_sign_flippers_of_sixteen(
    make_manifest: MakeManifest, rule: str, low: float, high: float
) -> None:
    """The tau of this file is below the length of an honest part; one of 1.0 is not, and does not save the digits."""
    after = PlainSwarm(digits(make_manifest, rule), MEMBERS, 7, "sign_flip").run(80)
    assert low < after["test_accuracy"] < high
