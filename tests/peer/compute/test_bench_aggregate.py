"""`bench aggregate`: what it measures is right and its figures are there; how fast it is, no test decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crowdsurf.peer.compute import bench_aggregate as bench
from crowdsurf.peer.compute.bench_aggregate import AggregateBench, peak_extra_bytes, plain_centered_clip
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows
from crowdsurf.protocol.errors import MisuseError


def ticking() -> Callable[[], float]:
    """A clock on which everything takes a second."""
    ticks = iter(range(1_000_000))
    return lambda: float(next(ticks))


def test_figures_of_a_small_run() -> None:
    said: list[str] = []
    figures = bench.bench_aggregate(AggregateBench(rows=8, elements=5000, repeats=2), ticking(), said.append)
    assert figures["bench"] == "aggregate"
    assert figures["ours"]["seconds"] == {"median": 1.0, "p10": 1.0, "p90": 1.0, "mean": 1.0}
    assert (figures["ratio"], figures["floor_ratio"]) == (1.0, 1.0)
    assert figures["ours"]["residual"] >= 0.0
    assert {row["rule"] for row in figures["rules"]} >= {"krum", "median", "geometric_median", "nnm+trimmed_mean"}
    assert said


def test_it_does_without_the_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load_byzfl", lambda: None)
    said: list[str] = []
    figures = bench.bench_aggregate(AggregateBench(rows=4, elements=100, repeats=1), ticking(), said.append)
    assert all(row["byzfl"] is None and row["ratio"] is None for row in figures["rules"])
    assert any("not installed" in line for line in said)


def test_both_sides_compute_the_same_thing() -> None:
    matrix = bench.make_rows(16, 3000)
    tau = bench.clipping_length(3000)
    out = torch.empty(3000)
    aggregate_rows(parse_rule("centered_clip", {"tau": tau}), list(matrix), out)
    torch.testing.assert_close(out, plain_centered_clip(matrix, tau, 300), rtol=1e-3, atol=1e-3)


def test_memory_that_rises_is_seen_and_a_system_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    seen = peak_extra_bytes(lambda: torch.ones(20_000_000).sum())
    assert seen is None or seen > 60_000_000
    assert peak_extra_bytes(lambda: None, tmp_path / "missing") is None


def test_what_cannot_be_measured_is_misuse() -> None:
    with pytest.raises(MisuseError):
        AggregateBench(rows=3)
