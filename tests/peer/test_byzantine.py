"""The page about attackers: which simulations it is made of, what is kept of one, and what the page makes of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer import byzantine
from crowdsurf.peer.byzantine import (
    BORNE,
    NONE,
    TABLES,
    VIOLATIONS_KEPT,
    Cell,
    Study,
    answer_job,
    cells_of,
    choose,
    measure,
    play,
    read_results,
)
from crowdsurf.peer.byzantine_page import Results, caught_after, page
from crowdsurf.peer.byzantine_plots import check_matplotlib, draw_all
from crowdsurf.peer.simulate_options import check_options, make_plan
from crowdsurf.peer.workers import Job
from crowdsurf.protocol import effects
from crowdsurf.protocol.assignment import rate_of
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.sim import simulation, theory
from crowdsurf.protocol.sim.adversaries import ATTACKS
from crowdsurf.protocol.sim.checkers import Checker
from crowdsurf.protocol.sim.host import Host

SMALL = Study(
    gradient=("sign_flip",),
    protocol=("equivocate", "slow", "wrong_aggregate"),
    baselines=("mean",),
    seeds=(0, 1),
    runs=3,
    peers=6,
    byzantine=2,
    attack_from=2,
    steps=4,
    longer_steps=5,
    protocol_from=2,
    protocol_steps=6,
)


def result(cell: Cell) -> dict[str, Any]:
    """As if both attackers had been caught in the third attacked step, one honest peer in the first."""
    if cell.table == "detection":
        return {"draws": 3 + cell.seed, "lag": 0, "diverged": False}
    offence = cell.attack_from + 2
    bans = [(offence, offence + 1, "wrong_gradient", True)] * 2 if cell.attack == "sign_flip" else []
    return {
        "certified_steps": cell.steps,
        "bans": bans if cell.table != "baselines" else [],
        "honest_strikes": 0,
        "attackers_rested": 0,
        "honest_rested": 0,
        "void_steps": 0,
        "attacked_s": 2.0 if cell.attack == "slow" else 1.0,
        "accuracy": [0.1, 0.5, 0.8, 0.4, 0.9 if cell.attack == NONE else 0.85],
        "trace_digest": "b2:00",
        "diverged": False,
    }


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that were asked for; every one is answered at once."""
    asked: list[Job] = []

    async def run(module: str, wanted: Any, processes: int, seconds: float, done: Any) -> None:
        for job in wanted:
            asked.append(job)
            done(job, result(Cell(**job)))

    monkeypatch.setattr(byzantine, "run_jobs", run)
    return asked


def quiet(text: str) -> None:
    """Say nothing."""


# --- which simulations ------------------------------------------------------------------------------------


def test_the_whole_study_can_be_planned() -> None:
    cells = list(cells_of(replace(Study(), runs=2)))
    assert len(cells) == len(set(cells)) == 3 * (2 * 13 + 4 + 23 + 11 * 4) + 2 * 2
    for cell in cells:
        check_options(cell.options())
    for cell in (cells[0], cells[1], cells[-1], next(cell for cell in cells if cell.attack == "ipm:0.1")):
        plan, manifest = make_plan(cell.options(), cell.overrides())
        assert (plan.byzantine, plan.attack_from) == ((0, 0) if cell.attack == NONE else (7, cell.attack_from))
        assert manifest.audit.rate == rate_of(cell.validators, 16)
        assert manifest.optimizer.decay_steps == (cell.steps - 3 if cell.learns else 0) or not cell.learns
        assert cell.attack != "ipm:0.1" or plan.strength == 0.1


def test_every_attack_is_played() -> None:
    played = {name.split(":")[0] for name in (*Study().gradient, *Study().protocol)}
    assert set(ATTACKS) - played == {"none", "scaled_noise", "zero"}
    assert set(BORNE) < set(Study().protocol)


def test_the_steps_are_enough_for_the_time_that_theory_gives() -> None:
    study = Study()
    for validators in study.validators:
        law = theory.ban_times(16, 7, audit_rate=rate_of(validators, 16), lag=1, idle_validators=True)
        assert theory.percentile(law, 0.99) + 2 <= study.steps - study.attack_from


def test_a_part_of_a_study_is_chosen_by_names() -> None:
    chosen = choose(Study(), "ipm:0.6,slow", "audited,protocol")
    assert (chosen.gradient, chosen.protocol, chosen.tables) == (("ipm:0.6",), ("slow",), ("audited", "protocol"))
    assert choose(Study(), None, None) == Study()
    for attacks, tables in (("tickle", None), (None, "audited,,"), ("", None)):
        with pytest.raises(MisuseError, match="with commas between them"):
            choose(Study(), attacks, tables)


# --- one simulation ---------------------------------------------------------------------------------------


def test_what_is_kept_of_a_run_in_which_attackers_are_caught() -> None:
    cell = Cell("protocol", "equivocate", None, 1, 0, peers=6, byzantine=2, attack_from=3, steps=8)
    kept = play(cell)
    assert kept == play(cell)
    assert kept["bans"] == [(3, 3, "equivocation", True)] * 2
    assert (kept["certified_steps"], kept["accuracy"], kept["diverged"], kept["violations"]) == (8, [], False, [])
    assert caught_after(3, kept, 2) == 1
    assert caught_after(3, kept, 3) is None


def test_a_run_that_learns_keeps_its_accuracy_after_every_step() -> None:
    kept = play(Cell("baselines", "sign_flip", "mean", 0, 0, peers=3, byzantine=1, attack_from=2, steps=3))
    assert len(kept["accuracy"]) == 4
    assert kept["bans"] == []


def test_a_run_that_waits_for_bans_ends_with_the_last_of_them() -> None:
    kept = play(Cell("detection", "sign_flip", None, 2, 1, peers=6, byzantine=2, attack_from=0, steps=1000))
    assert 1 <= kept["draws"] < 100
    assert kept["lag"] >= 0


def test_what_is_wrong_with_a_job_is_said() -> None:
    job = asdict(Cell("protocol", "tickle", None, 1, 0, 6, 2, 3, 8))
    assert "must be one of" in answer_job(job)["error"]


# --- all of them ------------------------------------------------------------------------------------------


async def test_what_is_done_is_not_done_again(jobs: list[Job], tmp_path: Path) -> None:
    await measure(SMALL, tmp_path / "deep" / "page", 1, quiet)
    count = len(list(cells_of(SMALL)))
    assert len(jobs) == count
    await measure(SMALL, tmp_path / "deep" / "page", 1, quiet)
    assert len(jobs) == count
    await measure(replace(SMALL, steps=5), tmp_path / "deep" / "page", 1, quiet)
    assert len(jobs) == count + 2 * (2 * 2 + 1)


async def test_a_line_that_was_cut_off_costs_one_run(jobs: list[Job], tmp_path: Path) -> None:
    await measure(SMALL, tmp_path, 1, quiet)
    file = tmp_path / "protocol.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    before = len(jobs)
    await measure(SMALL, tmp_path, 1, quiet)
    assert len(jobs) == before + 1
    assert len(read_results(tmp_path)) == before


async def test_a_failed_simulation_is_said_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(module: str, wanted: Any, processes: int, seconds: float, done: Any) -> None:
        for number, job in enumerate(wanted):
            done(job, result(Cell(**job)) if number else {"error": "a promise was broken"})

    monkeypatch.setattr(byzantine, "run_jobs", run)
    with pytest.raises(WorldError, match=r"1 simulations failed, .* a promise was broken"):
        await measure(SMALL, tmp_path, 1, quiet)
    assert len(read_results(tmp_path)) == len(list(cells_of(SMALL))) - 1


def test_lines_of_other_versions_are_left_out(tmp_path: Path) -> None:
    cell = Cell("protocol", "slow", None, 1, 0, 6, 2, 2, 6)
    good = json.dumps(asdict(cell) | {"bans": []})
    (tmp_path / "protocol.jsonl").write_text("\n".join(["[]", "7", "{}", good, good[:30]]))
    assert read_results(tmp_path) == {cell: {"bans": []}}


# --- the page ---------------------------------------------------------------------------------------------


def made_up(study: Study = SMALL) -> dict[Cell, dict[str, Any]]:
    return {cell: result(cell) for cell in cells_of(study)}


DRAWS = {
    "games": [
        {"strategy": "event", "identities": 1, "validators": 1, "peers": 16, "byzantine": 7, "trials": 100}
        | {"hits": 20, "expected": 0.2}
    ],
    "lasting": [{"validators": 1, "peers": 16, "byzantine": 7, "steps": 50.0, "void": 0.25, "gradients": 30.0}],
    "detection": {"1": [3, 4, 5], "2": [2]},
}


def test_the_page_shows_what_the_runs_say() -> None:
    text = page(Results(SMALL, made_up(), DRAWS), "crowdsurf byzantine x", ["x/detection.png"])
    assert "| sign_flip | 3, 3 | 2 of 2 | 0 | 85.0 (85.0–85.0) | -5.0 | 40.0 |" in text
    assert "| slow | 0 | – | 0 / 0 / 0 | 0 | 0 | 50 % | borne |" in text
    assert "| wrong_aggregate | 0 | – | 0 / 0 / 0 | 0 | 0 | 100 % | **not caught yet** |" in text
    assert "| 1 | swarms | 3 | 4 | 5 | 5 |" in text
    assert "| 1 | 100 | 0.200 | 0.200 | +0.0 |" in text
    assert "| 1 of 16 | 50 | 25% | 30 |" in text
    assert "![detection](x/detection.png)" in text
    assert "accuracy-1" not in text


def test_attacks_that_leave_most_behind_are_played_for_longer() -> None:
    study = replace(SMALL, gradient=("sign_flip", "min_max"))
    longer = [cell for cell in cells_of(study) if cell.table == "longer"]
    assert {(cell.attack, cell.steps, cell.overrides()["optimizer.decay_steps"]) for cell in longer} == {
        ("none", 5, 2),
        ("min_max", 5, 2),
    }
    text = page(Results(study, {cell: result(cell) for cell in longer}, {}), "x", [])
    table = text.partition("## Whether harm lasts")[2]
    assert "| none | – | 90.0 (90.0–90.0) | – |" in table
    assert "| min_max | not all, not all | 85.0 (85.0–85.0) | -5.0 |" in table


def test_an_attacker_that_is_left_and_an_honest_peer_that_is_banned_are_seen() -> None:
    stored = made_up()
    for cell, found in stored.items():
        if (cell.table, cell.attack, cell.seed) == ("audited", "sign_flip", 1):
            found["bans"] = [(4, 5, "wrong_gradient", True), (4, 5, "wrong_gradient", False)]
    text = page(Results(SMALL, stored, {}), "x", [])
    assert "| sign_flip | 3, not all | 1 of 2 | 1 | 85.0" in text


def test_a_broken_promise_is_kept_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Grumbler(Checker):
        name = "grumbler"
        sees_effects = (effects.StepCertified,)

        def on_effect(self, host: Host, effect: Effect) -> None:
            self.report(host, "this is not to my taste")

    real = simulation.all_checkers
    monkeypatch.setattr(simulation, "all_checkers", lambda *arguments: [*real(*arguments), Grumbler()])
    cell = next(cell for cell in cells_of(SMALL) if cell.attack == "slow")
    kept = play(cell)
    assert len(kept["violations"]) == VIOLATIONS_KEPT
    results = Results(SMALL, {cell: kept}, {})
    assert [text.split(": t=")[0] for text in results.broken()] == ["protocol, slow, 1, seed 0: grumbler"]
    assert "- protocol, slow, 1, seed 0: grumbler" in page(results, "x", [])


def test_a_page_without_runs_says_so() -> None:
    text = page(Results(SMALL, {}, {}), "x", [])
    assert "audited 0 of 8, longer 0 of 2, protocol 0 of 8, baselines 0 of 2, detection 0 of 6" in text
    assert "| slow |  |  |  |  |  |  | not measured yet |" in text


def test_the_share_of_validators_is_what_theory_is_told() -> None:
    results = Results(Study(), {}, {})
    assert theory.percentile(results.law(1, 0), 0.5) == 35
    assert results.law(2, 1) == theory.ban_times(16, 7, audit_rate=rate_of(2, 16), lag=1, idle_validators=True)


def test_the_usual_lag_is_that_of_most_bans() -> None:
    results = Results(SMALL, made_up(), {})
    assert results.lag("audited", 1) == results.lag("detection", 2) == 0
    stored = made_up()
    for found in stored.values():
        found["bans"] = [(step, header + 1, why, right) for step, header, why, right in found.get("bans", ())]
    assert Results(SMALL, stored, {}).lag("audited", 1) == 1


def test_pictures_show_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_all(Results(SMALL, {}, {}), tmp_path) == []
    drawn = draw_all(Results(SMALL, made_up(), DRAWS), tmp_path)
    assert [file.name for file in drawn] == ["accuracy-1.png", "accuracy-2.png", "detection.png"]
    first = drawn[0].read_bytes()
    assert first.startswith(b"\x89PNG")
    draw_all(Results(SMALL, made_up(), DRAWS), tmp_path)
    assert drawn[0].read_bytes() == first


def test_a_missing_matplotlib_is_said_before_anything_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MisuseError, match="make env"):
        check_matplotlib()


def test_tables_are_known() -> None:
    assert {cell.table for cell in cells_of(SMALL)} == set(TABLES)
