"""Virtual time: what is due first happens first, ties in the order made, and time never goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.sim.timeline import Timeline


def never() -> bool:
    return False


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), max_size=40))
def test_entries_run_by_time_and_then_by_order(times: list[float]) -> None:
    timeline = Timeline()
    happened: list[tuple[float, int]] = []
    for number, time in enumerate(times):
        timeline.at(time, lambda time=time, number=number: happened.append((time, number)))
    assert not timeline.run(never, 10.0)
    assert happened == sorted(happened)
    assert len(happened) == len(times) == timeline.done
    assert len(timeline) == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-3, 3)), max_size=20))
def test_time_never_goes_back(plans: list[tuple[float, float]]) -> None:
    """Entries make new ones, some of them in the past."""
    timeline = Timeline()
    moments: list[float] = []

    def note() -> None:
        moments.append(timeline.now)

    def happen(delay: float) -> None:
        note()
        timeline.after(delay, note)

    for time, delay in plans:
        timeline.at(time, happen, delay)
    timeline.run(never, 100.0)
    assert moments == sorted(moments)
    assert len(moments) == 2 * len(plans)


def test_what_is_past_happens_now_after_what_is_due() -> None:
    timeline = Timeline()
    happened: list[str] = []

    def first() -> None:
        timeline.at(0.0, happened.append, "past")
        happened.append("first")

    timeline.at(2.0, first)
    timeline.at(2.0, happened.append, "second")
    timeline.run(never, 10.0)
    assert happened == ["first", "second", "past"]
    assert timeline.now == 2.0


def test_it_stops_as_soon_as_it_may() -> None:
    timeline = Timeline()
    happened: list[int] = []
    for number in range(5):
        timeline.at(float(number), happened.append, number)
    assert timeline.run(lambda: len(happened) == 2, 10.0)
    assert happened == [0, 1]
    assert timeline.now == 1.0


def test_it_stops_at_its_bound_and_keeps_the_rest() -> None:
    timeline = Timeline()
    happened: list[int] = []
    for number in range(5):
        timeline.at(float(number), happened.append, number)
    assert not timeline.run(never, 2.0)
    assert happened == [0, 1, 2]
    assert len(timeline) == 2


def test_with_nothing_left_nothing_can_change() -> None:
    timeline = Timeline()
    assert not timeline.run(never, 10.0)
    assert timeline.run(lambda: True, 10.0)
    assert timeline.now == 0.0
