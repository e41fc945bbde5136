"""The table of faults: drawn from a seed, within its ranges, and calm means that only the network's nature stays."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.sim.faults import DRAWN, Faults, describe, draw

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_the_same_seed_draws_the_same_table(seed: int) -> None:
    assert draw(random.Random(seed)) == draw(random.Random(seed))


@given(SEEDS)
def test_what_is_drawn_is_off_or_within_its_range(seed: int) -> None:
    faults = draw(random.Random(seed))
    for name, (low, high) in DRAWN.items():
        value = getattr(faults, name)
        assert value == getattr(Faults(), name) or low <= value <= high * (1 + 1e-9)
    assert 0.0 <= faults.latency_seconds_min <= faults.latency_seconds_max <= 0.4


def test_most_faults_are_off_in_most_runs_and_each_is_on_in_some() -> None:
    tables = [draw(random.Random(seed)) for seed in range(200)]
    for name in DRAWN:
        having = sum(getattr(table, name) != getattr(Faults(), name) for table in tables)
        assert 40 <= having <= 110, name


@given(SEEDS)
def test_calm_keeps_conditions_and_ends_everything_else(seed: int) -> None:
    faults = draw(random.Random(seed))
    calm, plain = faults.calm(), Faults()
    kept = {
        field.name for field in dataclasses.fields(faults) if getattr(calm, field.name) == getattr(faults, field.name)
    }
    assert {"latency_seconds_min", "latency_seconds_max", "jitter", "bandwidth_bytes"} <= kept
    assert {"clock_offset_seconds_max", "clock_drift"} <= kept
    for name in ("message_loss", "partition_rate", "crash_rate", "worker_death_rate", "join_rate", "leave_rate"):
        assert getattr(calm, name) == getattr(plain, name) == 0.0
    assert calm.calm() == calm


def test_a_table_describes_what_differs() -> None:
    assert describe(Faults()) == "none"
    assert describe(Faults(message_loss=0.125)) == "message_loss=0.125"
