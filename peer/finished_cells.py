"""Finished simulations of a table in a file, a line each, so that an interrupted one goes on where it was.

The idea: a cell is a frozen dataclass, and its line holds its fields beside what came of it. A line may be cut off by
an interruption, or come from another version of this program; such a one counts as not there.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TextIO, TypeVar

CellT = TypeVar("CellT")


def read_cells(file: Path, kind: type[CellT]) -> dict[CellT, dict[str, Any]]:
    """Results by cell; none if there is no file yet. `kind` is a frozen dataclass."""
    found = {}
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            line = json.loads(text)
            cell = kind(**{name: line.pop(name) for name in names})
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        found[cell] = line
    return found


def open_for_more(file: Path) -> TextIO:
    """Open for more lines, after a line that an interruption may have cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    results = file.open("a", encoding="utf-8")
    results.write("\n" if cut_off else "")
    return results
