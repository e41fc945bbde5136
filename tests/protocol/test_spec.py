"""SPEC.md and the code say the same: every number, function, test and table in one exists in the other."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.step_table import TRANSITIONS, Phase, Trigger

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")
RULE = re.compile(r"^\*\*R-(\d+)\.(\d+)\b", re.MULTILINE)
MENTION = re.compile(r"\bR-\d+\.\d+\b")
REFERENCE = re.compile(r"`(\w+\.py):([\w.]+)`")


def rules() -> dict[str, str]:
    """Text of every rule by its number, up to the next rule or heading."""
    starts = list(RULE.finditer(SPEC))
    found = {}
    for here, following in zip(starts, [*starts[1:], None], strict=True):
        text = SPEC[here.start() : following.start() if following else len(SPEC)]
        found[f"R-{here[1]}.{here[2]}"] = re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]
    return found


@cache
def names_in(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def table(header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first line begins like this."""
    lines = SPEC[SPEC.index(header) :].split("\n")[2:]
    rows = [line for line in lines[: [*map(bool, lines), False].index(False)] if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_rules_are_numbered_without_gaps() -> None:
    numbers = [(int(match[1]), int(match[2])) for match in RULE.finditer(SPEC)]
    assert len(numbers) > 60
    for section in {section for section, _ in numbers}:
        assert [number for its, number in numbers if its == section] == list(
            range(1, 1 + sum(its == section for its, _ in numbers))
        )
    assert numbers == sorted(numbers)


def test_every_rule_names_a_function_and_a_test() -> None:
    for number, text in rules().items():
        files = {file for file, _ in REFERENCE.findall(text)}
        assert any(not file.startswith("test_") for file in files), f"{number} names no function"
        assert any(file.startswith("test_") for file in files), f"{number} names no test"


def test_everything_the_specification_names_exists() -> None:
    references = REFERENCE.findall(SPEC)
    assert len(references) > 150
    missing = [
        f"{file}:{name}"
        for file, name in references
        if name not in names_in(ROOT / ("tests/protocol" if file.startswith("test_") else "protocol") / file)
    ]
    assert missing == []


def test_every_number_that_code_and_specification_mention_exists() -> None:
    known = set(rules())
    texts = {"SPEC.md": SPEC}
    for folder in ("protocol", "dht", "peer", "cli", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md"):
                texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    unknown = [(where, number) for where, text in texts.items() for number in MENTION.findall(text)]
    assert [item for item in unknown if item[1] not in known] == []
    assert len(unknown) > len(known)


def test_sections_the_code_mentions_exist() -> None:
    sections = set(re.findall(r"^## (\d+)\.", SPEC, re.MULTILINE))
    for path in sorted((ROOT / "protocol").glob("*.py")):
        for mentioned in re.findall(r"SPEC\.md §(\d+(?:\.\d+)?)", path.read_text(encoding="utf-8")):
            assert mentioned in sections, f"{path.name}: §{mentioned}"


def test_the_table_of_phases_is_that_of_the_code() -> None:
    written = {(Phase[phase], Trigger[trigger]): Phase[target] for phase, trigger, target in table("| phase | trigger")}
    assert written == {
        (phase, trigger): target for phase, row in TRANSITIONS.items() for trigger, target in row.items()
    }


def test_the_table_of_kinds_is_that_of_the_code() -> None:
    assert {row[0]: int(row[1]) for row in table("| kind | number")} == {kind.name: kind.value for kind in Kind}


def test_the_table_of_codes_is_that_of_the_code() -> None:
    written = {row[0]: row[2] for row in table("| code | when")}
    assert written == {code.value: Refusal(code, "").severity.value for code in Code}


def test_the_table_of_limits_is_that_of_the_code() -> None:
    written = {row[0]: int(row[1]) for row in table("| name | value")}
    assert written == {name: getattr(limits, name) for name in written}
    assert len(written) >= 15
