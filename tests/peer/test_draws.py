"""The rules' dice: strategies against the draw win just as often as theory says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from crowdsurf.peer import draws
from crowdsurf.peer.draws import GAMES, STRATEGIES, Game, Table, detection_times, expected, lasting, play
from crowdsurf.protocol.assignment import rate_of
from crowdsurf.protocol.chain import Head
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.roster import REST_STEPS
from crowdsurf.protocol.sim import theory

TRIALS = 600


@pytest.mark.parametrize("game", GAMES, ids=lambda game: f"{game.strategy}-{game.identities}-{game.validators}")
def test_a_strategy_wins_as_often_as_theory_says(game: Game) -> None:
    found = play(replace(game, trials=TRIALS))
    error = math.sqrt(found["expected"] * (1 - found["expected"]) / TRIALS)
    assert abs(found["hits"] / TRIALS - found["expected"]) < 4 * error


def test_every_identity_buys_one_more_draw() -> None:
    assert expected(Game("event", 3)) == theory.rerun_probability(draws.EVENT, 3)
    assert expected(Game("dodge", 0)) == pytest.approx(1 - theory.catch_distribution(16, 7, 1)[1])
    assert expected(Game("dodge", 0, 2)) == pytest.approx(theory.catch_distribution(16, 7, 2)[0])


def test_who_proposes_first_depends_on_where_colluders_stand() -> None:
    """Of fifteen places eight fall on one of the seven for some choice of whom to leave out, and 7 of 16 did before."""
    assert expected(Game("proposer", 0)) == pytest.approx(7 / 16)
    assert expected(Game("proposer", 1)) == pytest.approx(1 - 9 / 16 * 7 / 15)


def test_dodging_an_audit_buys_little_because_what_was_hidden_is_looked_at() -> None:
    free, once = expected(Game("dodge", 0)), expected(Game("dodge", 1))
    assert once - free < 0.1 * (theory.rerun_probability(free, 1) - free)


def test_a_withheld_nonce_voids_the_step_and_costs_the_place() -> None:
    table = Table(Game("event"), 0)
    nonces = table.nonces()
    silent = min(table.colluders)
    del nonces[silent]
    head = table.after(nonces)
    assert head.audits == ()
    assert silent not in head.roster.indexes
    assert silent in head.roster.kept_out(REST_STEPS)
    assert len(table.after(table.nonces()).audits) == 1


def test_whoever_dodges_every_audit_it_can_is_banned_all_the_same() -> None:
    table = Table(Game("lasting"), 1)
    steps, void, gradients = lasting(table)
    assert table.head.roster.outlaws == table.colluders
    assert 0 < void < steps
    assert gradients < 7 * (steps - void)


@pytest.mark.parametrize("validators", [1, 2])
def test_everybody_is_caught_as_soon_as_theory_says(validators: int) -> None:
    law = theory.ban_times(16, 7, audit_rate=rate_of(validators, 16), idle_validators=True)
    times = detection_times(validators, 250, seed=3)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(law))[1] > 0.01
    other = theory.ban_times(16, 5, audit_rate=rate_of(validators, 16), idle_validators=True)
    assert theory.kolmogorov_smirnov(times, theory.cumulative(other))[1] < 0.01


def test_only_honest_validators_catch() -> None:
    table = Table(Game("event", validators=2), 0)
    heads: list[Head] = []
    for trial in range(60):
        other = Table(Game("event", validators=2), trial)
        heads.append(other.after(other.nonces()))
    caught = [peer for head in heads for peer in table.caught(head)]
    assert caught
    assert set(caught) <= table.colluders
    everybody = [audit.target for head in heads for audit in head.audits if audit.target in table.colluders]
    assert len(caught) < len(everybody)


def test_chance_follows_from_the_game_alone() -> None:
    game = replace(GAMES[1], trials=50)
    assert play(game) == play(game)
    assert play(replace(game, trials=400))["hits"] != play(replace(game, trials=400, seed=1))["hits"]
    assert {game.strategy for game in GAMES} == set(STRATEGIES)
    assert Table(game, 0).head.beacon != Table(game, 1).head.beacon != Digest(b"")


def test_what_was_played_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "LASTING_TRIALS", 3)
    assert draws.read(tmp_path) is None
    draws.measure(tmp_path / "page", (1,), (Game("event", trials=5),), runs=2)
    found = draws.read(tmp_path / "page")
    assert found is not None
    assert [len(found[name]) for name in ("games", "lasting", "detection")] == [1, 1, 1]
    assert len(found["detection"]["1"]) == 2
    (tmp_path / draws.FILE).write_text('{"games": [')
    assert draws.read(tmp_path) is None
