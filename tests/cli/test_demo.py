"""`crowdsurf demo` with peers that misbehave: what is wrong with the options is said in one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from crowdsurf.cli.demo_view import summary, table
from crowdsurf.peer.demo import PeerView, View
from tests.cli.conftest import Call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "4", "--byzantine", "2", "--attack", "zero"), "less than half"),
        (("--byzantine", "1", "--attack", "sing_flip"), "must be one of sign_flip, "),
        (("--byzantine", "1"), "needs --attack"),
        (("--attack", "sign_flip"), "needs --byzantine"),
        (("--strength", "2"), "needs --attack"),
        (("--attack-from", "2"), "needs --attack"),
    ],
)
def test_an_attack_that_makes_no_sense(arguments: tuple[str, ...], words: str, call: Call, tmp_path: Path) -> None:
    code, answer, _ = call("demo", "--out", tmp_path, *arguments)
    assert code == 2
    assert words in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--rehearse", "sing_flip"), "must be one of"), (("--colluders", "x"), "need --rehearse")],
)
def test_a_rehearsal_that_makes_no_sense(arguments: tuple[str, ...], words: str, call: Call) -> None:
    code, answer, _ = call("join", "crowdsurf1:AAAA", *arguments)
    assert code == 2
    assert words in answer["error"]["message"]


def test_liars_are_marked() -> None:
    peers = [PeerView(0, "12D3honest"), PeerView(1, "12D3liar", byzantine=True, status={"phase": "commit"})]
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(table(View("digits", 5, "memory", "", 0.0, peers)))
    honest, liar = console.export_text().splitlines()[1:3]
    assert "byzantine, commit" in liar
    assert "byzantine" not in honest


def test_the_summary_says_whose_figures_they_are() -> None:
    answer = {"certified_steps": 5, "steps": 5, "wall_s": 1.0, "setup_s": 0.5, "transport": "memory", "peers": 7}
    answer |= {
        "byzantine": 3,
        "attack": "zero",
        "test_loss": None,
        "initial_test_loss": None,
        "killed": [],
        "banned": [],
    }
    answer |= {"consensus": True, "bytes_sent_per_peer_step": 1, "control_bytes_sent_per_peer_step": 1, "journal": "j"}
    lines = summary(answer)
    assert any("3 of 7 peers misbehaved (zero)" in line for line in lines)
    assert any("All honest peers hold the same model" in line for line in lines)
    ban = {"peer": "12D3KooWliar", "step": 3, "reason": "wrong_gradient", "offence_step": 2, "byzantine": True}
    lines = summary(answer | {"banned": [ban], "honest_banned": 0})
    assert any("1 of 3 misbehaving peers and 0 honest ones" in line for line in lines)
    assert any("crowdsurf why KooWliar --home j/peer-0" in line for line in lines)
