"""The house rules over the whole tree, and each rule shown able to fail."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.house import checks
from tests.house.checks import CHECKS, FOLDERS, Check, Source

ROOT = Path(__file__).parents[2]


def sources() -> list[Source]:
    """Every Python file of the project; folders that tools make are not looked into."""
    paths = [path for folder in (*FOLDERS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


@pytest.fixture(scope="module")
def tree() -> list[Source]:
    return sources()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_tree_keeps_the_rule(check: Check, tree: list[Source]) -> None:
    found = [f"{source.path}:{line}: {text}" for source in tree for line, text in check(source)]
    assert not found, "\n" + "\n".join(found)


def test_the_walk_sees_the_tree(tree: list[Source]) -> None:
    paths = {source.path for source in tree}
    assert {"protocol/ids.py", "peer/config.py", "tests/house/test_house.py"} <= paths


DOC = '"""Doc."""\n'
LONG_BODY = "    pass\n" * 70

BAD = [
    (checks.imports_are_absolute, "peer/x.py", "from . import y"),
    (checks.imports_are_absolute, "peer/x.py", "from protocol.ids import PeerId"),
    (checks.imports_respect_layers, "protocol/x.py", "from crowdsurf.dht import base"),
    (checks.imports_respect_layers, "dht/x.py", "import crowdsurf.peer.clock"),
    (checks.imports_respect_layers, "peer/x.py", "from crowdsurf.cli import main"),
    (checks.imports_respect_layers, "peer/x.py", "from tests.house import checks"),
    (checks.imports_respect_layers, "peer/x.py", "def f():\n    from crowdsurf.peer.compute import worker"),
    (checks.imports_respect_layers, "peer/simulate.py", "from crowdsurf.peer.compute import worker"),
    (checks.imports_respect_layers, "peer/daemon.py", "from crowdsurf.peer.compute.shared import SharedCompute"),
    (checks.imports_respect_layers, "peer/compute/x.py", "from crowdsurf.protocol import wire"),
    (checks.imports_respect_layers, "peer/compute/x.py", "from crowdsurf.peer import clock"),
    (checks.imports_respect_layers, "configs/x.py", "from crowdsurf.protocol import ids"),
    (checks.protocol_is_pure, "protocol/x.py", "import asyncio"),
    (checks.protocol_is_pure, "protocol/x.py", "from os import path"),
    (checks.protocol_is_pure, "protocol/x.py", "import random"),
    (checks.protocol_is_pure, "protocol/sim/x.py", "import time"),
    (checks.imports_stay_in_their_place, "peer/x.py", "import torch.nn"),
    (checks.imports_stay_in_their_place, "cli/x.py", "import numpy as np"),
    (checks.imports_stay_in_their_place, "peer/transport/p2pd.py", "import trio"),
    (checks.imports_stay_in_their_place, "dht/records.py", "import asyncio"),
    (checks.imports_stay_in_their_place, "peer/daemon.py", "from hivemind import DHT"),
    (checks.imports_stay_in_their_place, "peer/daemon.py", "import time"),
    (checks.imports_stay_in_their_place, "peer/compute/x.py", "from time import perf_counter"),
    (checks.imports_stay_in_their_place, "cli/x.py", "import os\nos.urandom(8)"),
    (checks.imports_stay_in_their_place, "cli/x.py", "from os import urandom"),
    (checks.nothing_unsafe, "peer/x.py", "import pickle"),
    (checks.nothing_unsafe, "peer/compute/x.py", "import torch\ntorch.load('x')"),
    (checks.nothing_unsafe, "peer/x.py", "from yaml import load"),
    (checks.nothing_unsafe, "peer/x.py", "import yaml\nyaml.load('x', None)"),
    (checks.nothing_unsafe, "cli/x.py", "eval('1')"),
    (checks.nothing_unsafe, "cli/x.py", "run = exec"),
    (checks.nothing_sleeps, "peer/clock.py", "import time\ntime.sleep(1)"),
    (checks.nothing_sleeps, "peer/clock.py", "from time import sleep"),
    (checks.nothing_sleeps, "tests/x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)"),
    (checks.nothing_sleeps, "tests/x.py", "from asyncio import sleep"),
    (checks.excepts_are_narrow, "peer/x.py", "try:\n    pass\nexcept Exception:\n    pass"),
    (checks.excepts_are_narrow, "peer/x.py", "try:\n    pass\nexcept (ValueError, BaseException):\n    pass"),
    (checks.excepts_are_narrow, "cli/x.py", "try:\n    pass\nexcept:\n    pass"),
    (checks.excepts_are_narrow, "dht/x.py", "try:\n    pass\nexcept Exception:\n    if x:\n        raise"),
    (checks.nothing_asserts, "dht/x.py", "assert 1"),
    (checks.functions_are_short, "peer/x.py", "def f():\n" + LONG_BODY),
    (checks.functions_are_short, "tests/x.py", "class A:\n  async def f():\n" + LONG_BODY),
    (checks.files_are_short, "peer/x.py", "\n" * 601),
    (checks.files_say_what_they_are, "peer/x.py", "import os"),
    (checks.nothing_left_over, "peer/x.py", "a = 1  # " + "TO" + "DO later"),
    (checks.nothing_left_over, "peer/x.py", "a = 1  # " + "FIX" + "ME"),
]


@pytest.mark.parametrize(("check", "path", "text"), BAD)
def test_the_rule_catches(check: Check, path: str, text: str) -> None:
    assert list(check(Source(path, text)))


def test_every_rule_has_a_bad_example() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS)


GOOD = [
    ("peer/simulate.py", "def f():\n    from crowdsurf.peer.compute.shared import SharedCompute"),
    ("protocol/x.py", "from crowdsurf.protocol import ids\nimport math"),
    ("protocol/sim/x.py", "import random"),
    ("dht/hivemind.py", "import asyncio\nfrom hivemind.dht.node import DHTNode\nfrom crowdsurf.protocol import wire"),
    ("peer/x.py", "import asyncio\nimport os\nfrom crowdsurf.peer.compute.client import ComputeClient\nos.getpid()"),
    ("peer/x.py", "from crowdsurf.peer.compute import client"),
    ("peer/clock.py", "import time\ntime.monotonic()"),
    ("peer/compute/x.py", "import torch\nfrom crowdsurf.protocol.errors import Refusal\nmodel.eval()"),
    ("cli/x.py", "from crowdsurf.peer.compute import worker"),
    ("tests/x.py", "import asyncio, torch, time\nasync def f():\n    await asyncio.sleep(0)\n    assert 1"),
    ("peer/x.py", "try:\n    pass\nexcept Exception:  # our own bug: reported, then the process ends\n    pass"),
    ("peer/x.py", "try:\n    pass\nexcept BaseException:\n    undo()\n    raise"),
    ("peer/x.py", "def f():\n" + "    pass\n" * 69),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_the_rules_leave_good_code_alone(path: str, text: str) -> None:
    assert [(check.__name__, *found) for check in CHECKS for found in check(Source(path, DOC + text))] == []


def test_every_shared_vector_is_used(tree: list[Source]) -> None:
    folder = ROOT / "tests" / "vectors"
    vectors = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    tests = [source.text for source in tree if source.is_test and not source.path.startswith("tests/house/")]
    assert checks.unused_vectors(vectors, tests) == []


def test_an_unused_vector_is_found() -> None:
    texts = ["read('wire/envelope.json')", "for path in folder('ledger')"]
    vectors = ["wire/envelope.json", "ledger/a.json", "wire2/other.json"]
    assert checks.unused_vectors(vectors, texts) == ["wire2/other.json"]


def test_listed_packages_are_the_packages() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    inits = [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    assert checks.package_mismatches(listed, [path.parent.relative_to(ROOT).as_posix() for path in inits]) == []


def test_package_mismatches_are_found_both_ways() -> None:
    assert len(checks.package_mismatches(["crowdsurf.dht"], ["peer/compute"])) == 2
