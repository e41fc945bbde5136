"""The page about simulation names every fault and every checker, and the README every field of the answers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from crowdsurf.cli.main import COMMANDS
from crowdsurf.peer.simulate import simulate
from crowdsurf.peer.simulate_options import TASKS, SimulateOptions, flag
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(title: str) -> set[str]:
    """The names in the first column of the table under a heading."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)} - {"--task"}


def test_every_fault_is_explained() -> None:
    assert rows("What can go wrong") == {field.name for field in dataclasses.fields(Faults)}


def test_every_checker_is_explained() -> None:
    plan = Plan(peers=2)
    checkers = Simulation(plan, plain_manifest(plan, 1), NamesCompute()).checkers
    assert rows("What is checked, always") == {checker.name for checker in checkers}


def test_every_task_is_explained() -> None:
    assert rows("What is computed") == set(TASKS)


def documented(command: str) -> str:
    """What the README says about the fields of a command's answer."""
    return README.split(f"**`{command}`**")[1].split("\n**`")[0].split("\n## ")[0]


def test_every_field_of_an_answer_is_in_the_readme() -> None:
    fields = simulate(SimulateOptions(peers=2, steps=1, task="names"))
    text = documented("demo") + documented("simulate")
    assert [name for name in fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("simulate --seeds", "runs first_seed failures violations certified_steps events virtual_s wall_s processes"),
        ("story", "step began ended contributors void_parts happened lost late refused complaints complaints_in_all"),
        ("robustness", "page results simulations accuracy"),
        ("bench simulate", "bench ours microseconds_per_message by_peers messages baseline ratio growth repeats"),
    ],
)
def test_the_other_answers_are_in_the_readme(command: str, fields: str) -> None:
    text = documented(command)
    assert [name for name in fields.split() if f"`{name}`" not in text] == []


def test_every_command_and_option_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"| `{name}" not in README] == []
    row = next(line for line in README.splitlines() if line.startswith("| `simulate`"))
    names = [name for name in SimulateOptions.__dataclass_fields__ if name not in ("validators", "probation")]
    assert [name for name in names if f"`{flag(name)}" not in row] == []
