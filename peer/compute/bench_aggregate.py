"""`bench aggregate`: robust rules beside the obvious way to compute them, in one process, on one thread, in turns.

The idea: every figure has its counterpart measured in the same minute on the same rows, because a machine that does
other work too changes its speed by half. CenteredClip to its fixed point is compared with twenty plain iterations over
the vectors, and with the least that any rule built on distances must do: one product of the matrix with itself and one
weighted sum. The other rules are compared with byzfl's, where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows
from crowdsurf.protocol.errors import MisuseError

Clock = Callable[[], float]
Timed = Callable[[], object]

PLAIN_ITERATIONS = 20
OUTLIERS_EVERY = 5
"""One row in so many is far from the others and points the other way."""
LIBRARY_ELEMENTS_MAX = 1 << 20
"""Length of the rows on which rules are compared with byzfl's."""
BYZANTINE_SHARE = 0.25

PLAIN_RATIO_GOAL = 1 / 30
FLOOR_RATIO_GOAL = 3.0
EXTRA_PERCENT_GOAL = 10.0
LIBRARY_RATIO_GOAL = 1 / 10


@dataclass(frozen=True, slots=True)
class AggregateBench:
    """What is measured: `rows` vectors of `elements` float32, `repeats` rounds of all sides in turn."""

    rows: int = 16
    elements: int = 4_000_000
    repeats: int = 7

    def __post_init__(self) -> None:
        if self.rows < 4 or self.elements < 1 or self.repeats < 1:
            raise MisuseError("bench aggregate needs at least 4 peers, 1 element and 1 repeat")


def bench_aggregate(plan: AggregateBench, clock: Clock, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure and return what `bench aggregate --json` prints; seconds, bytes and ratios."""
    torch.set_num_threads(1)
    tell(f"CenteredClip of {plan.rows} vectors of {plan.elements} elements, beside {PLAIN_ITERATIONS} plain iterations")
    figures = _centered_clip(plan, clock)
    rules = []
    library = load_byzfl()
    if library is None:
        tell("byzfl is not installed, so the other rules are measured alone")
    else:
        tell("the other rules beside byzfl's")
    matrix = make_rows(plan.rows, min(plan.elements, LIBRARY_ELEMENTS_MAX))
    for name, theirs in _library_rules(library, matrix).items():
        sides = {"ours": _ours(name, matrix)} | ({"byzfl": theirs} if library else {})
        seconds = in_turns(sides, plan.repeats, clock)
        rules.append(
            {
                "rule": name,
                "ours": spread(seconds["ours"]),
                "byzfl": spread(seconds["byzfl"]) if library else None,
                "ratio": float(numpy.median(_ratios(seconds["ours"], seconds["byzfl"]))) if library else None,
            }
        )
    return {"bench": "aggregate", **figures, "rules_elements": matrix.shape[1], "rules": rules}


def _centered_clip(plan: AggregateBench, clock: Clock) -> dict[str, Any]:
    matrix = make_rows(plan.rows, plan.elements)
    tau = clipping_length(plan.elements)
    out = torch.empty(plan.elements)
    rule = parse_rule("centered_clip", {"tau": tau, "tolerance": 1e-6})
    rows = list(matrix)
    out.fill_(0.0)  # its pages are not what is measured
    extra = peak_extra_bytes(lambda: aggregate_rows(rule, rows, out))  # the first use: nothing is kept from before
    result = aggregate_rows(rule, rows, out)
    weights = torch.full((plan.rows,), 1 / plan.rows)
    sides: dict[str, Timed] = {
        "ours": lambda: aggregate_rows(rule, rows, out),
        "floor": lambda: (matrix @ matrix.T, weights @ matrix),
        "plain": lambda: plain_centered_clip(matrix, tau, PLAIN_ITERATIONS),
    }
    seconds = in_turns(sides, plan.repeats, clock)
    plain, floor = _ratios(seconds["ours"], seconds["plain"]), _ratios(seconds["ours"], seconds["floor"])
    nbytes = matrix.numel() * matrix.element_size()
    return {
        "peers": plan.rows,
        "elements": plan.elements,
        "ours": {
            "seconds": spread(seconds["ours"]),
            "iterations": result.iterations,
            "residual": result.residual,
            "extra_bytes": extra,
            "extra_percent": None if extra is None else 100 * extra / nbytes,
        },
        "baseline": {"seconds": spread(seconds["plain"]), "iterations": PLAIN_ITERATIONS},
        "floor": {"seconds": spread(seconds["floor"])},
        "ratio": float(numpy.median(plain)),
        "ratio_spread": spread(plain),
        "floor_ratio": float(numpy.median(floor)),
        "floor_ratio_spread": spread(floor),
    }


def make_rows(count: int, elements: int) -> torch.Tensor:
    """Normal float32 rows (count, elements) around a common direction, with far ones that point the other way."""
    generator = torch.Generator().manual_seed(count)
    matrix = torch.randn(count, elements, generator=generator)
    matrix += 0.3 * torch.randn(elements, generator=generator)
    matrix[::OUTLIERS_EVERY] *= -10
    return matrix


def clipping_length(elements: int) -> float:
    """About the distance between two ordinary rows."""
    return float((2.0 * elements) ** 0.5)


def plain_centered_clip(matrix: torch.Tensor, tau: float, iterations: int) -> torch.Tensor:
    """The obvious way, as the authors of BTARD and byzfl write it, from zero."""
    centre = torch.zeros(matrix.shape[1])
    for _ in range(iterations):
        differences = matrix - centre
        clip = (tau / differences.norm(dim=1)).clamp(max=1.0)
        centre = centre + (differences * clip[:, None]).mean(dim=0)
    return centre


def _ours(name: str, matrix: torch.Tensor) -> Timed:
    values: dict[str, float] = {"byzantine_share": BYZANTINE_SHARE}
    if name == "centered_clip":
        values["tau"] = clipping_length(matrix.shape[1])
    rule = parse_rule(name, values)
    out = torch.empty(matrix.shape[1])
    return lambda: aggregate_rows(rule, list(matrix), out)


def _library_rules(library: types.ModuleType | None, matrix: torch.Tensor) -> dict[str, Timed]:
    """byzfl's form of each robust rule that both have, by our name; calling one fails if it is not installed."""
    byzantine = int(BYZANTINE_SHARE * len(matrix))
    tau = clipping_length(matrix.shape[1])
    byzfl: Any = library
    return {
        "centered_clip": lambda: byzfl.CenteredClipping(L=PLAIN_ITERATIONS, tau=tau)(matrix),
        "krum": lambda: byzfl.Krum(f=byzantine)(matrix),
        "multi_krum": lambda: byzfl.MultiKrum(f=byzantine)(matrix),
        "geometric_median": lambda: byzfl.GeometricMedian(nu=0.1, T=3)(matrix),
        "mda": lambda: byzfl.MDA(f=byzantine)(matrix),
        "median": lambda: byzfl.Median()(matrix),
        "trimmed_mean": lambda: byzfl.TrMean(f=byzantine)(matrix),
        "meamed": lambda: byzfl.Meamed(f=byzantine)(matrix),
        "nnm+trimmed_mean": lambda: byzfl.TrMean(f=byzantine)(byzfl.NNM(f=byzantine)(matrix)),
    }


def load_byzfl() -> types.ModuleType | None:
    """byzfl's aggregators, or None if it is not installed.

    Its top package also imports plotting and torchvision, which need not fit this torch, so that is passed over."""
    found = importlib.util.find_spec("byzfl")
    if found is None:
        return None
    sys.modules.setdefault("byzfl", importlib.util.module_from_spec(found))
    return importlib.import_module("byzfl.aggregators")


def in_turns(sides: dict[str, Timed], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every side, `repeats` times each, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, side in sides.items():
            begin = clock()
            side()
            if number:
                seconds[name].append(clock() - begin)
    return seconds


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, and mean."""
    low, middle, high = numpy.percentile(values, (10, 50, 90)).tolist()
    return {"median": middle, "p10": low, "p90": high, "mean": float(numpy.mean(values))}


def peak_extra_bytes(work: Timed, process: Path = Path("/proc/self")) -> int | None:
    """By how much the resident memory of this process rises while `work` runs; None where Linux does not tell.

    The kernel keeps the highest value (VmHWM) and forgets it when 5 is written to clear_refs."""
    try:
        (process / "clear_refs").write_text("5")
        before = _status_bytes(process, "VmRSS")
        work()
        return max(0, _status_bytes(process, "VmHWM") - before)
    except (OSError, StopIteration):
        return None


def _status_bytes(process: Path, field: str) -> int:
    lines = (process / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
