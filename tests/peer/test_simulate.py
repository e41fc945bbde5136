"""Rehearsals: options, the manifest they make, and the answer about a simulated swarm."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest

from crowdsurf.peer import simulate as module
from crowdsurf.peer.simulate import answer_job, simulate, simulate_many
from crowdsurf.peer.simulate_options import SimulateOptions, check_options, command, make_plan, warning
from crowdsurf.protocol.errors import MisuseError

SMALL = SimulateOptions(peers=4, steps=4, task="names")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"peers": 0}, "--peers must be between 1 and 256, not 0"),
        ({"peers": 257}, "not 257"),
        ({"peers": 4, "byzantine": 4, "attack": "zero"}, "--byzantine must leave an honest peer among 4"),
        ({"byzantine": -1, "attack": "zero"}, "--byzantine"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed"),
        ({"attack": "tickle", "byzantine": 1}, "--attack must be one of none, sign_flip"),
        ({"attack": "random", "byzantine": 1}, "--attack must be one of"),
        ({"attack": "zero"}, "--attack needs --byzantine"),
        ({"byzantine": 1}, "--byzantine needs --attack"),
        ({"attack_from": -1}, "--attack-from must be a step"),
        ({"task": "poetry"}, "--task must be one of names, digits, quadratic, text, not poetry"),
        ({"task": "names", "rule": "krum"}, "--rule needs a task that computes"),
        ({"loss": 1.0}, "--loss must be less than 1"),
        ({"loss": float("nan")}, "--loss must be a number"),
        ({"churn": -0.5}, "--churn must be a number that is not negative"),
        ({"latency_ms": "50"}, "--latency-ms must look like 10:50"),
        ({"latency_ms": "50:10"}, "--latency-ms"),
        ({"latency_ms": "a:b"}, "--latency-ms"),
        ({"validators": 9}, "--validators must be at most half"),
        ({"probation": 3}, "--probation must be 0"),
        ({"swarm_test": True, "peers": 3, "loss": 0.1}, "leave out --peers, --loss"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises(MisuseError) as error:
        check_options(SimulateOptions(**options))
    assert text in str(error.value)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(MisuseError) as error:
        check_options(SimulateOptions(peers=0, steps=0, task="x"))
    assert len(str(error.value).splitlines()) == 3


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(MisuseError, match=r"known are .*centered_clip.*krum.*mean"):
        simulate(dataclasses.replace(SMALL, task="quadratic", rule="nope"))


@pytest.mark.parametrize(
    "options",
    [
        SimulateOptions(swarm_test=True, seed=76),
        SimulateOptions(peers=5, byzantine=2, attack="zero", adaptive=True, attack_from=3, loss=0.25, latency_ms="1:2"),
        SimulateOptions(),
    ],
)
def test_the_command_says_the_options(options: SimulateOptions) -> None:
    words = shlex.split(command(options))
    assert words[:2] == ["crowdsurf", "simulate"]
    said: dict[str, Any] = {}
    for index, word in enumerate(words[2:], start=2):
        if word.startswith("--"):
            value = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("--") else True
            name = word[2:].replace("-", "_")
            kind = type(getattr(options, name))
            said[name] = value if value is True else kind(value)
    assert SimulateOptions(**said) == options


def test_the_command_of_a_swarm_test_is_short() -> None:
    text = command(SimulateOptions(swarm_test=True, seed=76), trace="trace.jsonl")
    assert text == "crowdsurf simulate --swarm-test --seed 76 --trace trace.jsonl"


def test_options_reach_plan_and_manifest() -> None:
    options = SimulateOptions(
        peers=10,
        byzantine=3,
        attack="sign_flip",
        attack_from=2,
        attack_until=5,
        seed=9,
        steps=7,
        rule="krum",
        loss=0.1,
        latency_ms="20:80",
        partition=2.0,
        crash_rate=0.5,
        churn=0.25,
    )
    plan, manifest = make_plan(options, {})
    assert (plan.peers, plan.byzantine, plan.attack, plan.attack_from, plan.attack_until) == (10, 3, "sign_flip", 2, 5)
    assert plan.strength == 1000.0
    assert (plan.faults.latency_seconds_min, plan.faults.latency_seconds_max) == (0.02, 0.08)
    assert (plan.faults.message_loss, plan.faults.partition_rate, plan.faults.crash_rate) == (0.1, 2.0, 0.5)
    assert (plan.faults.leave_rate, plan.faults.join_rate) == (0.25, 2.5)
    assert (manifest.rule.name, manifest.rule.parameters) == ("krum", {"byzantine_share": 0.3})
    assert (manifest.task.name, manifest.steps, manifest.seed, len(manifest.founders)) == ("digits", 7, 9, 10)


def test_the_presets_rule_keeps_its_parameters() -> None:
    _, manifest = make_plan(SimulateOptions(peers=16, byzantine=7, attack="zero", rule="centered_clip"), {})
    assert manifest.rule.parameters["tau"] == 0.1
    assert manifest.rule.parameters["byzantine_share"] == 7 / 16


def test_a_majority_of_attackers_is_warned_of() -> None:
    assert warning(SimulateOptions(peers=4, byzantine=1, attack="zero")) is None
    assert "2 of 4 peers attack" in str(warning(SimulateOptions(peers=4, byzantine=2, attack="zero")))


def test_an_answer_is_that_of_a_demo_and_more() -> None:
    answer = simulate(SMALL)
    assert answer["certified_steps"] == answer["steps"] == 4
    assert answer["consensus"] is True
    assert len(answer["state_digests"]) == 4
    assert answer["violations"] == []
    assert (answer["transport"], answer["journal"], answer["replay"], answer["test_loss"]) == ("simulated",) + (
        None,
    ) * 3
    assert answer["bytes_sent_per_peer_step"] > answer["control_bytes_sent_per_peer_step"] > 0
    assert simulate(SMALL)["trace_digest"] == answer["trace_digest"]
    assert simulate(dataclasses.replace(SMALL, seed=1))["trace_digest"] != answer["trace_digest"]


def test_who_is_banned_is_told_and_for_what() -> None:
    lies = {"peers": 7, "byzantine": 3, "attack": "sign_flip", "attack_from": 2, "task": "names"}
    answer = simulate(SimulateOptions(**lies, steps=60, seed=1))
    assert answer["violations"] == []
    assert (len(answer["banned"]), answer["honest_banned"]) == (3, 0)
    assert {row["reason"] for row in answer["banned"]} == {"wrong_gradient"}
    assert all(row["byzantine"] and 2 <= row["offence_step"] < row["step"] for row in answer["banned"])
    assert answer["all_byzantine_banned_at"] == max(row["step"] for row in answer["banned"])
    assert answer["steps_attacked"] == answer["all_byzantine_banned_at"] - 1
    nobody = simulate(SimulateOptions(**lies, steps=60, seed=1, validators=0))
    assert (nobody["banned"], nobody["all_byzantine_banned_at"], nobody["steps_attacked"]) == ([], None, 58)


def test_a_real_model_is_trained_and_looked_at() -> None:
    said: list[str] = []
    small = {"task.parameters": {"model": "mlp", "hidden": 8}, "work.micro_batch_samples": 32}
    lies = {"peers": 4, "byzantine": 1, "attack": "sign_flip", "rule": "mean", "attack_from": 2, "validators": 0}
    answer = simulate(SimulateOptions(**lies, steps=10), small, tell=said.append)
    assert answer["test_loss"] > answer["initial_test_loss"]
    assert answer["test_accuracy"] is not None
    assert answer["steps_attacked"] == 8
    assert len(answer["state_digests"]) == 3
    assert said[-1].startswith("step 10 of 10 · test loss")


def test_a_quadratic_has_no_accuracy() -> None:
    answer = simulate(SimulateOptions(peers=3, steps=5, task="quadratic"))
    assert answer["test_loss"] < answer["initial_test_loss"]
    assert answer["test_accuracy"] is None


def test_training_that_diverges_ends_the_run_and_is_no_broken_promise() -> None:
    options = SimulateOptions(peers=3, steps=40, task="quadratic", rule="mean")
    answer = simulate(options, {"optimizer.learning_rate": 1e12})
    assert answer["diverged"]
    assert answer["violations"] == []
    assert answer["certified_steps"] < 40
    assert answer["test_loss"] is None


async def test_many_seeds_are_the_same_as_one_by_one() -> None:
    seen: list[int] = []
    options = dataclasses.replace(SMALL, steps=2)
    found = await simulate_many(options, range(3), 2, lambda seed, answer: seen.append(seed))
    assert sorted(seen) == [0, 1, 2]
    singles = [simulate(dataclasses.replace(options, seed=seed)) for seed in range(3)]
    for name in ("events", "certified_steps"):
        assert found[name] == sum(single[name] for single in singles)
    assert (found["runs"], found["failures"], found["violations"]) == (3, [], [])
    again = await simulate_many(options, range(3), 1, lambda seed, answer: None)
    assert again["trace_digest"] == found["trace_digest"]


async def test_a_bug_that_one_seed_finds_is_reported_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_worker(module: str, jobs: Any, processes: int, seconds: float, done: Any) -> None:
        for job in jobs:
            done(job, answer_job(job))

    def break_seed_one(options: SimulateOptions, overrides: Any) -> dict[str, Any]:
        return simulate(options) if options.seed != 1 else {}[0]

    monkeypatch.setattr(module, "run_jobs", one_worker)
    monkeypatch.setattr(module, "simulate", break_seed_one)
    found = await simulate_many(dataclasses.replace(SMALL, steps=1), range(2), 1, lambda seed, answer: None)
    assert found["failures"] == [
        {
            "seed": 1,
            "violation": "a bug: KeyError: 0",
            "replay": "crowdsurf simulate --peers 4 --steps 1 --task names --seed 1 --trace trace.jsonl",
        }
    ]
