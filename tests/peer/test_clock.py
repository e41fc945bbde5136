"""The manual clock moves only when told to."""

from __future__ import annotations

import pytest

from crowdsurf.peer.clock import Clock, ManualClock, SystemClock


def test_manual_clock() -> None:
    clock: Clock = ManualClock(wall_seconds=100.0)
    assert (clock.monotonic_seconds(), clock.wall_seconds()) == (0.0, 100.0)
    assert isinstance(clock, ManualClock)
    clock.advance(2.5)
    assert (clock.monotonic_seconds(), clock.wall_seconds()) == (2.5, 102.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_system_clock_does_not_go_back() -> None:
    clock: Clock = SystemClock()
    first = clock.monotonic_seconds()
    assert clock.monotonic_seconds() >= first
    assert clock.wall_seconds() > 1.7e9
