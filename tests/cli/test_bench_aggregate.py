"""`crowdsurf bench aggregate`: one JSON object for programs, tables for people."""

from __future__ import annotations

from typer.testing import CliRunner

from crowdsurf.cli.main import app
from tests.cli.conftest import Call

SMALL = ("bench", "aggregate", "--peers", "8", "--elements", "2000", "--repeats", "1")


def test_the_answer_has_both_sides_and_their_ratio(call: Call) -> None:
    code, figures, _ = call(*SMALL)
    assert code == 0
    assert (figures["bench"], figures["peers"], figures["elements"]) == ("aggregate", 8, 2000)
    ours, baseline = figures["ours"]["seconds"]["median"], figures["baseline"]["seconds"]["median"]
    assert figures["ratio"] == ours / baseline
    assert len(figures["rules"]) >= 8


def test_people_see_every_rule_and_whether_goals_are_met() -> None:
    result = CliRunner().invoke(app, SMALL, env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("times faster than plain", "geometric_median", "nnm+trimmed_mean"))
