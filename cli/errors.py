"""From an error to a sentence and an exit code; the only place that knows the codes.

The idea: the family of an error says whose fault it is (`protocol/errors.py`), and that is what the exit code says
too. With `--json` the sentence is also the one JSON object on standard output. Whatever is in no family is a bug of
ours: the user gets a sentence and a file to send us, not a traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAILED, MISUSED, REFUSED, UNREACHABLE = 1, 2, 3, 4
"""Exit codes; 0 is done."""

BUG_FILE = "last-bug.txt"


@dataclass(slots=True)
class CommandLine:
    """The arguments as typed, for errors that happen before or after they are parsed."""

    arguments: tuple[str, ...]
    answered: bool = False
    """Whether the one JSON object has been printed already."""

    @property
    def json(self) -> bool:
        """Is the answer to be one JSON object?"""
        return "--json" in self.arguments

    def option(self, name: str) -> str | None:
        """The value given for an option, if any."""
        for index, argument in enumerate(self.arguments):
            if argument == name and index + 1 < len(self.arguments):
                return self.arguments[index + 1]
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
        return None


def is_typers_own(error: BaseException) -> bool:
    """Whether this is typer's way of ending (wrong usage, an exit), for typer to handle."""
    return type(error).__module__.startswith(("typer.", "click."))


def report(error: BaseException, line: CommandLine) -> int:
    """Say what went wrong; the exit code."""
    from crowdsurf.protocol.errors import printable

    code, sentence = explain(error, line)
    sentence = printable(sentence)  # it may quote a file, or a peer
    print(f"crowdsurf: {sentence}", file=sys.stderr)
    if line.json and not line.answered:
        _print_error(code, sentence)
    return code


def note_wrong_usage(error: BaseException, line: CommandLine) -> None:
    """Typer says on standard error what is wrong with the command line; with `--json` it is said there too."""
    if line.json and is_typers_own(error) and hasattr(error, "format_message"):
        _print_error(MISUSED, error.format_message())


def explain(error: BaseException, line: CommandLine) -> tuple[int, str]:
    """Exit code and sentence."""
    from crowdsurf.peer.invite import WrongVersion
    from crowdsurf.protocol.errors import CrowdsurfError, MisuseError, Refusal, RefusedBySwarm, Unreachable

    if isinstance(error, KeyboardInterrupt):
        return FAILED, "stopped before it was done"
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return FAILED, f"the system refused: {error.strerror or error}{place}"
    if not isinstance(error, CrowdsurfError):
        return FAILED, _bug(error, line)
    if isinstance(error, RefusedBySwarm | WrongVersion):
        return REFUSED, str(error)
    if isinstance(error, Unreachable):
        return UNREACHABLE, str(error)
    if isinstance(error, MisuseError):
        return MISUSED, str(error)
    return FAILED, error.detail if isinstance(error, Refusal) else str(error)


def _bug(error: BaseException, line: CommandLine) -> str:
    """Keep the traceback where the user finds it."""
    from crowdsurf.protocol.errors import printable

    what = f"this is a bug in crowdsurf ({type(error).__name__}: {error})"
    text = "".join(traceback.format_exception(error))
    if "debug" in (line.option("--log-level"), os.environ.get("CROWDSURF_LOG_LEVEL")):
        print(printable(text), file=sys.stderr)
        return f"{what}; please report it with the traceback above"
    home = Path(line.option("--home") or os.environ.get("CROWDSURF_HOME") or "~/.crowdsurf").expanduser()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / BUG_FILE).write_text(text, encoding="utf-8")
    except OSError:
        return f"{what}; run it again with CROWDSURF_LOG_LEVEL=debug and please report what it says"
    return f"{what}; please report it with the file {home / BUG_FILE}"


def _print_error(code: int, message: str) -> None:
    answer: dict[str, Any] = {"error": {"code": code, "message": message}}
    print(json.dumps(answer), flush=True)
