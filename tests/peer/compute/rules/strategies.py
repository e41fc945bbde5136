"""Rows for property tests: any shape, and everything that is unpleasant about numbers from strangers."""

from __future__ import annotations

import numpy
import torch
from hypothesis import strategies as st

from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import NO_SEED, Aggregation, aggregate_rows

Rows = list[torch.Tensor]
KINDS = ("normal", "ties", "equal", "duplicates", "outliers", "huge", "denormal")


def make_rows(kind: str, count: int, length: int, seed: int) -> Rows:
    generator = numpy.random.default_rng(seed)
    normal = generator.standard_normal((count, length))
    matrix = {
        "normal": lambda: normal,
        "ties": lambda: generator.integers(-3, 4, (count, length)).astype(float),
        "equal": lambda: numpy.tile(normal[0], (count, 1)),
        "duplicates": lambda: normal[generator.integers(0, count, count)],
        "outliers": lambda: normal * numpy.where(generator.random((count, 1)) < 0.3, 1e6, 1.0),
        "huge": lambda: numpy.clip(normal, -3.4, 3.4) * 1e38,
        "denormal": lambda: normal * 1e-42,
    }[kind]()
    return [torch.from_numpy(row.astype(numpy.float32)) for row in matrix]


def rows_of(*kinds: str, count_min: int = 1, count_max: int = 12) -> st.SearchStrategy[Rows]:
    return st.builds(
        make_rows,
        kind=st.sampled_from(kinds or KINDS),
        count=st.integers(count_min, count_max),
        length=st.integers(1, 20),
        seed=st.integers(0, 100_000),
    )


def aggregate(name: str, rows: Rows, seed: bytes = NO_SEED, /, **parameters: float | int | str) -> torch.Tensor:
    return aggregate_fully(name, rows, seed, **parameters)[0]


def aggregate_fully(
    name: str, rows: Rows, seed: bytes = NO_SEED, /, **parameters: float | int | str
) -> tuple[torch.Tensor, Aggregation]:
    out = torch.full_like(rows[0], float("nan"))
    return out, aggregate_rows(parse_rule(name, parameters), rows, out, seed)


def share(byzantine: int, count: int) -> float:
    """The share that makes a rule defend against exactly `byzantine` of `count` rows."""
    return byzantine / count + 1e-6


def wide(rows: Rows) -> numpy.typing.NDArray[numpy.float64]:
    """As one float64 matrix."""
    return torch.stack(rows).double().numpy()
