"""The trace file, and the story of a step that is read out of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crowdsurf.cli.simulate_view import story_lines
from crowdsurf.protocol.sim.checkers import Violation
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest
from crowdsurf.protocol.sim.story import Story, StoryWriter, tell_story

PEERS, STEPS = 4, 5


def traced(violations: list[Violation] | None = None, **plan: Any) -> list[str]:
    lines: list[str] = []
    writer = StoryWriter(lines.append)
    chosen = Plan(peers=PEERS, **plan)
    Simulation(chosen, plain_manifest(chosen, STEPS), NamesCompute(), [writer]).run()
    writer.finish(violations or [])
    return lines


@pytest.fixture(scope="module")
def quiet() -> list[str]:
    return traced(seed=1)  # in which nobody is late


def line(**fields: Any) -> str:
    return json.dumps({"t": 1.0, "host": 0, "step": 2} | fields)


def message(kind: str, sender: int, step: int = 2, view: int = 0) -> dict[str, Any]:
    return {"kind": kind, "step": step, "view": view, "sender": sender}


def test_a_quiet_step_has_everything_and_nothing_else(quiet: list[str]) -> None:
    story = tell_story(quiet, 2)
    told = "\n".join(story.happened)
    for text in ("commits", "proposes a cut in view 0", "sends its aggregates", "opens its nonce", "votes in view 0"):
        assert text in told
    assert story.happened[-1].endswith("has it certified")
    assert sorted(story.contributors) == list(range(PEERS))
    assert story.ended is not None
    assert story.began < story.ended
    assert (story.void_parts, story.refused, story.lost, story.complaints) == (0, [], [], [])


def test_peers_that_do_the_same_share_a_line(quiet: list[str]) -> None:
    commits = [text for text in tell_story(quiet, 1).happened if "commits" in text]
    assert len(commits) == 1
    assert commits[0].startswith("+0.000 to +")
    assert all(f" {number}" in commits[0] for number in range(PEERS))


def test_a_cut_lists_its_members(quiet: list[str]) -> None:
    cuts = [json.loads(text) for text in quiet if '"note":"cut"' in text]
    assert len(cuts) == STEPS
    assert all(sorted(cut["members"]) == list(range(PEERS)) for cut in cuts)


def test_what_goes_wrong_is_told() -> None:
    lines = traced(faults=Faults(message_loss=0.1, message_duplicate=0.2, crash_rate=20.0), seed=4)
    stories = [tell_story(lines, step) for step in range(STEPS)]
    assert any(story.lost for story in stories)
    assert any("is back after a crash" in text for story in stories for text in story.happened)
    assert any(story.late for story in stories)


@pytest.mark.parametrize("attack", ["garbage", "equivocate", "sign_flip"])
def test_whatever_attackers_send_can_be_written(attack: str) -> None:
    lines = traced(byzantine=1, attack=attack)
    assert all(isinstance(json.loads(text), dict) for text in lines)
    assert any("(an attacker)" in text for text in tell_story(lines, 0).happened)


def test_lost_late_and_double_messages_are_told_apart() -> None:
    sent = line(effect="SendEnvelope", to=[1, 2, 3], envelope=message("vote", 0))
    came = [line(host=1, event="EnvelopeReceived", source=0, envelope=message("vote", 0)) for _ in range(2)]
    late = line(host=2, step=3, event="EnvelopeReceived", source=0, envelope=message("vote", 0))
    other = line(host=3, event="EnvelopeReceived", source=0, envelope=message("vote", 0, step=1))
    story = tell_story([sent, *came, late, other], 2)
    assert story.lost == ["1 × vote: 0→3"]
    assert story.late == ["1 × vote: 0→2"]


def test_complaints_belong_to_the_step_they_name_or_were_made_in() -> None:
    lines = [
        line(effect="SendEnvelope", to=[], envelope=message("commit", 0)),
        line(t=9.0, note="violation", text="one_outcome: a second outcome of step 2 is certified"),
        line(t=1.0, note="violation", text="awake: something else"),
        line(t=9.0, note="violation", text="one_outcome: a second outcome of step 21 is certified"),
    ]
    story = tell_story(lines, 2)
    assert [text.split(":")[0] for text in story.complaints] == ["one_outcome", "awake"]
    assert story.complaints_in_all == 3


def test_the_trace_ends_with_what_checkers_found() -> None:
    lines = traced([Violation("awake", 0.5, 1, "it spins in step 3")])
    assert tell_story(lines, 3).complaints == ["awake: t=0.500 peer 1: it spins in step 3"]


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"t": 1}', "7"])
def test_what_is_no_trace_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        tell_story([text], 0)


def test_an_unknown_step_has_no_story(quiet: list[str]) -> None:
    assert story_lines(tell_story(quiet, 99)) == ["This trace says nothing about step 99."]


def test_people_see_all_of_it() -> None:
    story = Story(3, 1.0, None, [], None, ["+0.000 s  peer 1 commits"], ["a"], ["b"], ["c"], ["d"], 3)
    told = "\n".join(story_lines(story))
    assert "Nobody had it certified." in told
    assert all(f"\n  {entry}" in told for entry in "abcd")
    assert "2 complaints about other steps" in told
