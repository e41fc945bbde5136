"""Configs: presets are whole and explained, a bad file reports everything wrong with it, and nothing else gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.config import (
    FILLED_IN,
    PRESETS,
    ConfigDraft,
    NodeConfig,
    load_config,
    load_node_config,
    preset_text,
)
from crowdsurf.peer.config_reader import (
    ConfigErrors,
    ConfigReader,
    expectation,
    fields_of,
    is_section,
    plain_scalar,
)
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, peer_id_from_public_key
from crowdsurf.protocol.manifest import Manifest, decode_manifest, encode_manifest

PEERS = [peer_id_from_public_key(bytes([number]) * 32) for number in range(65)]
DATA = Digest(bytes([9]) * 32)
NODE_EXAMPLE = Path(__file__).parents[2] / "configs" / "node.example.yaml"

SMALL = """
name: small
task: {name: digits, parameters: {model: mlp}}
optimizer: {name: sgd, learning_rate: 1e-1}
"""


def all_paths() -> set[str]:
    """Every field a config can set, by dotted path."""
    found = set()
    for name, info in fields_of(Manifest, "", FILLED_IN).items():
        found.add(name)
        if is_section(info.type):
            found |= {f"{name}.{inner}" for inner in fields_of(info.type, name + ".", FILLED_IN)}
    return found


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str) -> list[str]:
    """What is said about a config, without the folder's name."""
    path = written(folder, text)
    with pytest.raises(ConfigErrors) as caught:
        load_config(path)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_set_and_explain_every_field(name: str) -> None:
    draft = load_config(name)
    assert all_paths() <= set(draft.lines)
    lines = preset_text(name).splitlines()
    assert [line for line in lines if line.strip() and "# " not in line] == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_manifests(name: str) -> None:
    manifest = load_config(name).build(PEERS[0], PEERS[1:5], DATA)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert (manifest.organizer, manifest.founders) == (PEERS[0], tuple(PEERS[1:5]))
    assert manifest.task.dataset_digest == DATA


def test_absent_fields_take_the_manifests_defaults(tmp_path: Path) -> None:
    manifest = load_config(written(tmp_path, SMALL)).build(PEERS[0], PEERS[:1], DATA)
    assert manifest.optimizer.learning_rate == 0.1
    assert manifest.quorum == "majority"
    assert manifest.work.micro_batches == 1


def test_several_mistakes_are_all_reported_with_their_lines(tmp_path: Path) -> None:
    text = """\
name: my run
steps: many
stesp: 3
steps: 4
task:
  name: digits
  dataset_digest: abc
  parameters: {depth: [1], huge: 99999999999999999999, endless: 1e999, "two words": 1}
optimizer:
  learning_rate: -1e-3
  momentum: 1
work: 3
deadlines:
  work_seconds_min: 90
  transfer_seconds_min: 90
  transfer_seconds_max: fast
rule:
quorum: most
seed: !!int 3
"""
    parameter = "expected a finite number (a whole one of at most 64 bits), text, or true or false"
    name = "expected a name of 1 to 64 letters, digits and _ . + -, the first a letter or digit"
    assert problems_of(tmp_path, text) == [
        f"run.yaml:1: name: found 'my run', {name}",
        "run.yaml:2: steps: found 'many', expected a whole number from 0 to 1099511627776",
        "run.yaml:3: stesp: found an unknown field; did you mean steps?",
        "run.yaml:4: steps: found a second time, expected once (first in line 2)",
        "run.yaml:7: task.dataset_digest: found an unknown field; expected one of name, version, parameters",
        f"run.yaml:8: task.parameters.depth: found ['1'], {parameter}",
        f"run.yaml:8: task.parameters.huge: found 99999999999999999999, {parameter}",
        f"run.yaml:8: task.parameters.endless: found inf, {parameter}",
        f"run.yaml:8: task.parameters: found 'two words', {name}",
        "run.yaml:10: optimizer.learning_rate: found -0.001, expected a number, above 0 and at most 1e+12",
        "run.yaml:10: optimizer.name: is required and missing; expected sgd or adamw",
        "run.yaml:11: optimizer.momentum: found 1, expected a number, at least 0 and below 1",
        "run.yaml:12: work: found 3, expected a section with the fields micro_batches, micro_batch_samples, precision",
        "run.yaml:14: deadlines.work_seconds_min: "
        "deadlines.work_seconds_min must not exceed deadlines.work_seconds_max",
        "run.yaml:16: deadlines.transfer_seconds_max: found 'fast', expected a number, above 0 and at most 1e+12",
        "run.yaml:17: rule: found nothing, expected a section with the fields name, parameters",
        "run.yaml:18: quorum: found 'most', expected majority or two_thirds",
        "run.yaml:19: seed: found the tag !!int; configs have no tags",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty, expected a section with the fields name, task"),
        ("- a", "found ['a'], expected a section"),
        ("just words", "found 'just words', expected a section"),
        ("a: [1\nb: 2", "2: not valid YAML: "),
        ("a: 1\n\x01", "not valid YAML: "),
        ("a: 1\n---\nb: 2", "not valid YAML: "),
        ("[" * 5000, "nested too deeply"),
        ("? [a]\n: 1", "found a list or section as a field's name"),
    ],
)
def test_what_is_no_config_is_called_that(tmp_path: Path, text: str, said: str) -> None:
    assert said in problems_of(tmp_path, text)[0]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no preset or file named digitz; the presets are digits, text, text-gpt2"):
        load_config("digitz")
    with pytest.raises(MisuseError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(MisuseError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(MisuseError, match="more than"):
        load_config(tmp_path / "large.yaml")


@given(st.text(max_size=300))
def test_any_text_is_read_or_reported(text: str) -> None:
    reader = ConfigReader("any.yaml")
    assert reader.read(text, NodeConfig) == {} or reader.lines
    assert all(str(problem) for problem in reader.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3.0e-4", 0.0003),
        (".5", 0.5),
        ("10", 10),
        ("-7", -7),
        ("010", 10),
        ("true", True),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        ("9" * 30, 10**30 - 1),
        ("9" * 5000, float("inf")),
    ],
)
def test_unquoted_text_means_what_it_looks_like(text: str, value: object) -> None:
    found = plain_scalar(text)
    assert (found, type(found)) == (value, type(value))


def test_quoted_text_stays_text(tmp_path: Path) -> None:
    draft = load_config(written(tmp_path, SMALL.replace("model: mlp", "model: '12', path: \"\"")))
    assert draft.values["task"]["parameters"] == {"model": "12", "path": ""}


def test_every_field_has_words_for_what_it_takes() -> None:
    for kind in (Manifest, NodeConfig):
        for info in fields_of(kind, "", FILLED_IN).values():
            inner = fields_of(info.type, info.name + ".", FILLED_IN).values() if is_section(info.type) else ()
            assert all(expectation(field.type) for field in (info, *inner))


@pytest.fixture
def digits() -> ConfigDraft:
    return load_config("digits")


def test_overrides_replace_values_and_none_does_not(digits: ConfigDraft) -> None:
    rule = {"rule.name": "mean", "rule.parameters": {}}
    manifest = digits.build(PEERS[0], PEERS[:4], DATA, steps=5, seed=None, **rule, **{"task.parameters.hidden": 8})
    assert (manifest.steps, manifest.seed, manifest.rule.name, manifest.rule.parameters) == (5, 0, "mean", {})
    assert manifest.task.parameters["hidden"] == 8
    assert digits.build(PEERS[0], PEERS[:4], DATA).rule.name == "centered_clip"


def test_bad_overrides_and_founders_are_all_reported(digits: ConfigDraft) -> None:
    bad = {"stesp": 5, "seed": -1, "rule.paramters.tau": 3, "task.parameters.hidden.x": 3, "task.dataset_digest": b""}
    with pytest.raises(ConfigErrors) as caught:
        digits.build(PEERS[0], [*PEERS, PEERS[0]], DATA, **bad)
    text = str(caught.value)
    for said in (
        "override: stesp: found an unknown field; did you mean steps?",
        "override: seed: found -1, expected a whole number from 0",
        "override: rule.paramters.tau: found an unknown field; did you mean parameters?",
        "override: task.parameters.hidden.x: found a field inside `task.parameters.hidden`, which has none",
        "override: task.dataset_digest: found an unknown field",
        "peers_max: there are more founders than peers_max",
        "founders must be distinct",
    ):
        assert said in text


def test_an_override_may_break_a_rule_across_fields(digits: ConfigDraft) -> None:
    with pytest.raises(ConfigErrors, match="work_seconds_min must not exceed"):
        digits.build(PEERS[0], PEERS[:1], DATA, **{"deadlines.work_seconds_min": 1000.0})


def test_what_only_the_manifest_refuses_is_still_our_misuse(digits: ConfigDraft) -> None:
    with pytest.raises(ConfigErrors, match="dataset_digest"):
        digits.build(PEERS[0], PEERS[:1], Digest(bytes(33)))


def test_the_node_example_shows_the_defaults() -> None:
    assert load_node_config(NODE_EXAMPLE) == load_node_config() == NodeConfig()
    lines = NODE_EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert {line.split(":")[0] for line in lines if line and line[0] not in "# "} == set(fields_of(NodeConfig))
    for name in fields_of(NodeConfig):
        assert f"[CROWDSURF_{name.upper()}" in "\n".join(lines)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "threads: 4\ndevice: cpu")
    environment = {
        "CROWDSURF_THREADS": "2",
        "CROWDSURF_LISTEN": "/ip4/127.0.0.1/tcp/1,/ip6/::1/tcp/1",
        "CROWDSURF_HOME": "7",
        "CROWDSURF_LOG_LEVEL": "",
        "CROWDSURF_INVITE": "belongs to the command line",
        "PATH": "/bin",
    }
    assert load_node_config(path, environment) == NodeConfig(
        threads=2, device="cpu", home="7", listen=("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1")
    )


def test_mistakes_of_file_and_environment_are_reported_together(tmp_path: Path) -> None:
    path = written(tmp_path, "therads: 4\nlisten: tcp\nlog_level: loud")
    environment = {"CROWDSURF_THREADS": "two", "CROWDSURF_DEVICE": "tpu", "CROWDSURF_ANNOUNCE": "/ip4/1.2.3.4,x"}
    with pytest.raises(ConfigErrors) as caught:
        load_node_config(path, environment)
    addresses = "expected a list of at most 16 items, each a multiaddress such as /ip4/203.0.113.7/tcp/31337"
    assert [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()] == [
        "run.yaml:1: therads: found an unknown field; did you mean threads?",
        f"run.yaml:2: listen: found 'tcp', {addresses}",
        "run.yaml:3: log_level: found 'loud', expected debug or info or warning or error",
        f"environment: CROWDSURF_ANNOUNCE: found ['/ip4/1.2.3.4', 'x'], {addresses}",
        "environment: CROWDSURF_DEVICE: found 'tpu', expected auto, cpu, cuda or cuda:NUMBER",
        "environment: CROWDSURF_THREADS: found 'two', expected a whole number from 1 to 1024",
    ]
