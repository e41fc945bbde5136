"""What every command prints, and where.

The idea: an answer is for a program (one JSON object, the last line of standard output, nothing else there) or for
a person (plain words on standard output). Logs are always on standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def people(json_output: bool) -> Console:
    """Where sentences for people go: standard output, unless that belongs to the JSON answer."""
    return Console(stderr=json_output, highlight=False, soft_wrap=True)


def answer(context: typer.Context, values: dict[str, Any]) -> None:
    """Print the one JSON object. An error after it sets the exit code only."""
    print(json.dumps(values), flush=True)
    context.obj.answered = True


def size(nbytes: int) -> str:
    """Bytes for people."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at the moment, so that a live line on the terminal stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def start_logging(level: str) -> None:
    """Log to standard error from `level` (debug, info, warning, error) on."""
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [other for other in root.handlers if not isinstance(other, _StandardError)] + [handler]
    root.setLevel(level.upper())
