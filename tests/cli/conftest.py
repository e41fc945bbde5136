"""One finished run for all tests of the command line, and a way to call the program."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crowdsurf.cli.main import app
from tests.cli.small_run import SmallRun, make_small_run

Call = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Not to be changed by a test; copy it."""
    return make_small_run(tmp_path_factory.mktemp("small-run"))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Call the program in this process with `--json`: exit code, the one JSON object, standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("CROWDSURF_HOME", "CROWDSURF_INVITE", "CROWDSURF_CONFIG", "CROWDSURF_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], prog_name="crowdsurf")
        lines = result.stdout.splitlines()
        assert len(lines) == 1, f"standard output must be one JSON object:\n{result.output}"
        return result.exit_code, json.loads(lines[0]), result.stderr

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
