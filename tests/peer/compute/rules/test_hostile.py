"""What strangers' rows can do to each rule: nothing that is not finite, and no more harm than the theory allows."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given, settings

from crowdsurf.peer.compute.rules import PRE_STEPS, RULES, parse_rule
from tests.peer.compute.rules.strategies import Rows, aggregate, aggregate_fully, make_rows, rows_of

ALL = sorted(RULES) + [f"{step}+{rule}" for step in sorted(PRE_STEPS) for rule in sorted(RULES)]
ALL += ["bucketing+nnm+trimmed_mean", "nnm+bucketing+krum"]
LARGEST = float(torch.finfo(torch.float32).max)
PAYLOADS = {
    "nan": torch.full((200,), float("nan")),
    "one nan": torch.cat([torch.zeros(199), torch.tensor([float("nan")])]),
    "infinities": torch.tensor([float("inf"), float("-inf")]).repeat(100),
    "huge": torch.full((200,), 1e38),
    "denormal": torch.full((200,), 1e-45),
    "zeros": torch.zeros(200),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("liars", [1, 3, 7])
def test_no_payload_makes_a_result_that_is_not_finite(name: str, payload: str, liars: int) -> None:
    rows = [PAYLOADS[payload]] * liars + make_rows("normal", 16 - liars, 200, seed=1)
    out, result = aggregate_fully(name, rows)
    assert torch.isfinite(out).all()
    bad = not torch.isfinite(PAYLOADS[payload]).all()
    assert result.excluded_rows == (tuple(range(liars)) if bad else ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=40)
@given(rows_of())
def test_finite_rows_give_a_finite_result_within_their_range(name: str, rows: Rows) -> None:
    out = aggregate(name, rows)
    assert torch.isfinite(out).all()
    if "sign_majority" not in name:
        stacked = torch.stack(rows).double()
        slack = 1e-6 * stacked.abs().amax() + 2e-45
        assert (out.double() >= stacked.amin(dim=0) - slack).all()
        assert (out.double() <= stacked.amax(dim=0) + slack).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 1e-45, 0.0, 1.5])
def test_equal_rows_give_themselves(name: str, count: int, value: float) -> None:
    rows = [torch.full((70,), value)] * count
    expected = torch.full((70,), value) if "sign_majority" not in name else torch.sign(torch.full((70,), value))
    torch.testing.assert_close(aggregate(name, rows), expected, rtol=2e-7, atol=0.0)


@pytest.mark.parametrize(
    "name", [name for name in ALL if "sign_majority" not in name and "mean" not in name.split("+")]
)
def test_far_outliers_do_not_move_a_robust_rule_out_of_the_others_reach(name: str) -> None:
    """As many liars as the default share says, all alike and far away, and each far away elsewhere."""
    honest = make_rows("normal", 12, 300, seed=2)
    far = [row * 1e6 for row in make_rows("normal", 4, 300, seed=3)]
    byzantine = min(parse_rule(name, {}).byzantine(16), 4)
    stacked = torch.stack(honest)
    reach = float(torch.cdist(stacked, stacked).max())
    for liars in ([far[0]] * byzantine, far[:byzantine]):
        rows = liars + honest[: 16 - byzantine]
        out = aggregate(name, rows, tau=10.0) if "centered_clip" in name else aggregate(name, rows)
        centre = torch.stack(rows[byzantine:]).mean(dim=0)
        # Median and geometric median may be off by the spread of the others, all else by less.
        assert float((out - centre).norm()) <= 2 * reach


@pytest.mark.parametrize("byzantine", [1, 3, 7])
def test_bounds_that_theory_gives(byzantine: int) -> None:
    honest = make_rows("normal", 16 - byzantine, 50, seed=4)
    rows = [torch.full((50,), 1e6)] * byzantine + honest
    stacked = torch.stack(honest)
    low, high = stacked.amin(dim=0), stacked.amax(dim=0)
    values = {"byzantine_share": byzantine / 16}
    for name in ("median", "trimmed_mean"):
        out = aggregate(name, rows, **values)
        assert ((out >= low) & (out <= high)).all()
    out = aggregate("meamed", rows, **values)
    assert ((out >= low - (high - low)) & (out <= high + (high - low))).all()
    # Minsker 2015, lemma 2.1: within 2 (n - f) / (n - 2f) times the radius of the honest rows.
    centre = stacked.mean(dim=0)
    radius = float((stacked - centre).norm(dim=1).max())
    gone = float((aggregate("geometric_median", rows) - centre).norm())
    assert gone <= 2 * (16 - byzantine) / (16 - 2 * byzantine) * radius
    # Fewer than half of the votes cannot turn a sign on which all others agree.
    agreed = [row.abs() + 0.1 for row in honest]
    assert torch.equal(aggregate("sign_majority", [*agreed, *[torch.full((50,), -1e6)] * byzantine]), torch.ones(50))


@pytest.mark.parametrize("name", ["krum", "multi_krum", "mda", "bulyan", "nnm+krum", "nnm+mda"])
def test_rules_that_choose_rows_leave_far_ones_out(name: str) -> None:
    honest = make_rows("normal", 13, 100, seed=5)
    rows = [torch.full((100,), 1e6)] * 3 + honest
    out = aggregate(name, rows, byzantine_share=3 / 16)
    assert float(out.abs().max()) < 10.0
    if name == "krum":
        assert any(torch.equal(out, row) for row in honest)


ORDERLESS = [name for name in sorted(RULES) if name != "mda"]  # several sets of rows may have the least diameter


@pytest.mark.parametrize("name", [*ORDERLESS, "nnm+trimmed_mean", "nnm+krum"])
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    rows = make_rows("normal", 16, 400, seed=6)
    straight = aggregate(name, rows)
    for order in itertools.islice(itertools.permutations(range(16)), 1, 400, 57):
        torch.testing.assert_close(aggregate(name, [rows[i] for i in order]), straight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(aggregate(name, rows[::-1]), straight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_same_rows_give_the_same_bytes_and_stay_as_they_are(name: str) -> None:
    rows = make_rows("outliers", 9, 30_000, seed=7)
    before = [row.clone() for row in rows]
    first = aggregate(name, rows, b"7" * 32)
    matrix = torch.stack(rows)  # the same rows side by side in one memory
    assert first.numpy().tobytes() == aggregate(name, list(matrix), b"7" * 32).numpy().tobytes()
    assert all(torch.equal(row, old) for row, old in zip(rows, before, strict=True))


def test_a_zero_has_no_sign_in_a_result() -> None:
    for first, second in itertools.product((0.0, -0.0), repeat=2):
        rows = [torch.full((40,), value) for value in (first, second, -0.0)]
        for name in ("median", "trimmed_mean", "meamed"):
            assert aggregate(name, rows).numpy().tobytes() == bytes(160)


def test_chance_comes_from_the_seed_alone() -> None:
    rows = make_rows("normal", 16, 64, seed=8)
    seeds = [bytes([number] * 32) for number in range(12)]
    for name in ("bucketing+median", "mixtailor"):
        results = [aggregate(name, rows, seed) for seed in seeds]
        again = [aggregate(name, rows, seed) for seed in seeds]
        assert all(torch.equal(one, two) for one, two in zip(results, again, strict=True))
        assert len({tuple(result.tolist()) for result in results}) > 1
    for name in ("krum", "nnm+median"):
        assert torch.equal(aggregate(name, rows, seeds[0]), aggregate(name, rows, seeds[1]))


def test_mixtailor_gives_the_result_of_a_rule_of_its_pool() -> None:
    rows = make_rows("normal", 16, 64, seed=9)
    pool = ("median", "krum", "trimmed_mean")
    single = {tuple(aggregate(name, rows).tolist()) for name in pool}
    drawn = {
        tuple(aggregate("mixtailor", rows, bytes([number] * 32), rules=", ".join(pool)).tolist())
        for number in range(40)
    }
    assert drawn == single


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", (0, 0, 0, 0)),
        ("median", (0, 1, 7, 31)),
        ("krum", (0, 0, 6, 30)),
        ("bulyan", (0, 0, 3, 15)),
        ("nnm+krum", (0, 0, 6, 30)),
        ("bucketing+median", (0, 0, 3, 15)),
        ("mixtailor", (0, 0, 6, 30)),
    ],
)
def test_how_many_byzantine_rows_a_rule_can_bear(name: str, expected: tuple[int, ...]) -> None:
    rule = parse_rule(name, {"byzantine_share": 0.499})
    assert tuple(rule.byzantine_max(count) for count in (1, 3, 16, 64)) == expected
    assert all(rule.byzantine(count) <= min(rule.byzantine_max(count), count * 0.499) for count in range(1, 65))
    assert numpy.isclose(parse_rule("median", {"byzantine_share": 0.29}).byzantine(100), 29)
