"""Every attack against an independent statement of its formula in numpy and float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy
import numpy.typing
import pytest
import torch

from crowdsurf.peer.compute.attacks import ATTACKS, DEFAULT_STRENGTH, find_attack
from crowdsurf.peer.compute.attacks.base import FLOAT32_MAX, View
from crowdsurf.peer.compute.attacks.colluding import alie_z
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS

Array = numpy.typing.NDArray[numpy.float64]
ELEMENTS = 50


def view(
    honest: int = 9,
    byzantine: int = 7,
    strength: float = 1.0,
    scale: float = 1.0,
    seed: int = 1,
    previous: torch.Tensor | None = None,
) -> View:
    """Honest rows around a common mean; our own gradient is one more."""
    generator = seeded_generator(seed.to_bytes(8, "little"), "test")
    mean = torch.randn(ELEMENTS, generator=generator)
    rows = (mean + torch.randn(honest + 1, ELEMENTS, generator=generator)) * scale
    chance = seeded_generator(bytes(32), "attack")
    return View(rows[-1], byzantine, strength, chance, lambda: rows[:-1], lambda: previous)


def send(name: str, seen: View) -> Array:
    row = find_attack(name).row(seen)
    assert row.dtype == torch.float32
    assert row.shape == (ELEMENTS,)
    return row.double().numpy()


def rows_of(seen: View) -> Array:
    return seen.honest.double().numpy()


def close(found: Array, expected: Array) -> bool:
    return bool(numpy.allclose(found, expected, rtol=3e-7, atol=1e-7 * float(numpy.abs(expected).max())))


def test_every_name_of_the_simulator_is_an_attack() -> None:
    assert set(ATTACKS) == set(GRADIENT_ATTACKS) == set(DEFAULT_STRENGTH)
    with pytest.raises(MisuseError, match="gradient attack 'sign_flop' is unknown; known are sign_flip"):
        find_attack("sign_flop")


@pytest.mark.parametrize(
    ("name", "strength", "factor"),
    [("sign_flip", 1000.0, -1000.0), ("label_flip", 1.0, 1.0), ("delayed_gradient", 2.0, 2.0)],
)
def test_attacks_that_scale_the_own_gradient(name: str, strength: float, factor: float) -> None:
    seen = view(strength=strength)
    assert close(send(name, seen), factor * seen.own.double().numpy())


def test_a_random_direction_is_common_and_as_long_as_asked() -> None:
    first, second = view(strength=1000.0), view(strength=1000.0, seed=2)
    sent, other = send("random_direction", first), send("random_direction", second)
    length = numpy.linalg.norm(sent)
    assert length == pytest.approx(1000.0 * float(first.own.double().norm()), rel=1e-6)
    assert sent @ other == pytest.approx(length * numpy.linalg.norm(other), rel=1e-6)


def test_scaled_noise_has_the_length_of_the_gradient() -> None:
    seen = view(strength=3.0)
    lengths = [numpy.linalg.norm(send("scaled_noise", seen)) for _ in range(200)]  # the generator goes on
    expected = 3.0 * float(seen.own.double().norm())
    assert float(numpy.sqrt(numpy.mean(numpy.square(lengths)))) == pytest.approx(expected, rel=0.03)
    assert len(set(lengths)) == 200


def test_payloads() -> None:
    assert not send("zero", view()).any()
    assert numpy.isnan(send("nan", view())).all()
    assert (send("inf", view()) == numpy.inf).all()
    assert (send("huge", view()) == float(torch.tensor(1e38))).all()


@pytest.mark.parametrize("strength", [0.1, 0.6])
def test_ipm(strength: float) -> None:
    seen = view(strength=strength)
    assert close(send("ipm", seen), -strength * rows_of(seen).mean(axis=0))


@pytest.mark.parametrize(("members", "byzantine", "z"), [(16, 3, 0.10), (16, 7, 0.76), (25, 5, 0.25), (25, 11, 1.07)])
def test_alie_hides_as_deep_as_the_formula_says(members: int, byzantine: int, z: float) -> None:
    assert alie_z(members, byzantine) == pytest.approx(z, abs=0.006)
    for strength, used in ((0.0, alie_z(members, byzantine)), (1.5, 1.5)):
        seen = view(members - byzantine, byzantine, strength)
        rows = rows_of(seen)
        assert close(send("alie", seen), rows.mean(axis=0) - used * rows.std(axis=0, ddof=1))


def test_alie_stays_defined_where_its_formula_is_not() -> None:
    for members in range(1, 30):
        for byzantine in range(members):
            assert 0.0 <= alie_z(members, byzantine) < 3.0


def test_mimic_copies_the_row_farthest_along_the_main_direction() -> None:
    seen = view()
    rows = rows_of(seen)
    centred = rows - rows.mean(axis=0)
    main = numpy.linalg.svd(centred)[2][0]
    assert close(send("mimic", seen), rows[numpy.abs(centred @ main).argmax()])


def min_max_slack(rows: Array, sent: Array) -> float:
    """How far inside its bound a vector is, relative to the bound; 0 is on it."""
    apart = max(float(numpy.linalg.norm(one - two)) for one in rows for two in rows)
    return 1.0 - max(float(numpy.linalg.norm(sent - row)) for row in rows) / apart


def min_sum_slack(rows: Array, sent: Array) -> float:
    apart = max(sum(float(numpy.sum((one - two) ** 2)) for two in rows) for one in rows)
    return 1.0 - sum(float(numpy.sum((sent - row) ** 2)) for row in rows) / apart


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("honest", [2, 9, 13])
@pytest.mark.parametrize(("name", "slack"), [("min_max", min_max_slack), ("min_sum", min_sum_slack)])
def test_min_max_and_min_sum_are_on_their_bound(
    name: str, slack: Callable[[Array, Array], float], honest: int, scale: float
) -> None:
    seen = view(honest, 16 - honest, scale=scale)
    rows = rows_of(seen)
    sent = send(name, seen)
    assert slack(rows, sent) == pytest.approx(0.0, abs=1e-6)
    shift = rows.mean(axis=0) - sent
    deviation = rows.std(axis=0, ddof=1)
    cosine = shift @ deviation / numpy.linalg.norm(shift) / numpy.linalg.norm(deviation)
    assert cosine == pytest.approx(1.0, abs=1e-6)


def test_rop_is_across_the_reference_and_as_long_as_asked() -> None:
    previous = torch.linspace(-1.0, 2.0, ELEMENTS)
    seen = view(strength=0.5, previous=previous)
    push = send("rop", seen) - previous.double().numpy()
    reference = 0.9 * previous.double().numpy() + 0.1 * rows_of(seen).mean(axis=0)
    assert numpy.linalg.norm(push) == pytest.approx(0.5, rel=1e-6)
    assert push @ reference == pytest.approx(0.0, abs=1e-6 * float(numpy.linalg.norm(reference)))
    ones = numpy.ones(ELEMENTS)
    expected = ones - reference * (ones @ reference) / (reference @ reference)
    assert numpy.allclose(push, 0.5 * expected / numpy.linalg.norm(expected), atol=1e-6)  # a float32 was subtracted


def test_rop_before_the_first_aggregate_is_across_the_mean() -> None:
    seen = view()
    sent = send("rop", seen)
    assert numpy.linalg.norm(sent) == pytest.approx(1.0, rel=1e-6)
    assert sent @ rows_of(seen).mean(axis=0) == pytest.approx(0.0, abs=1e-5)


ONE_ROW = torch.linspace(-1.0, 1.0, ELEMENTS)[None]
DEGENERATE = {
    "one honest row": (ONE_ROW, 1.0),
    "all alike": (torch.ones(4, ELEMENTS), 1.0),
    "all zero": (torch.zeros(4, ELEMENTS), 1.0),
    "huge strength": (ONE_ROW.expand(4, -1), 1e38),
}


@pytest.mark.parametrize("name", sorted(set(GRADIENT_ATTACKS) - {"nan", "inf"}))
@pytest.mark.parametrize("case", DEGENERATE)
def test_what_is_sent_is_finite_whatever_is_seen(name: str, case: str) -> None:
    honest, strength = DEGENERATE[case]
    chance = seeded_generator(bytes(32), "attack")
    seen = View(honest[0], 3, strength, chance, lambda: honest, lambda: None)
    assert numpy.abs(send(name, seen)).max() <= FLOAT32_MAX


def test_attacks_marked_alike_do_not_look_at_the_own_gradient() -> None:
    for name, attack in ATTACKS.items():
        seen = view()
        first, second = (send(name, dataclasses.replace(seen, own=own)) for own in (seen.own, seen.own * 2.0))
        assert numpy.array_equal(first, second, equal_nan=True) is attack.alike, name
