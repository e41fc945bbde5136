"""Reading the free-form parameters of a task or a rule: every mistake is reported, not only the first.

The idea: a reader asks for each parameter by name, type and range, collects problems instead of raising, and
at the end also names what nobody asked for.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from crowdsurf.protocol.errors import MisuseError

Value = int | float | str | bool


class ParameterReader:
    """Collects the parameters of `subject` (for example "task digits") and all that is wrong with them."""

    def __init__(self, subject: str, parameters: Mapping[str, Value]) -> None:
        self._subject = subject
        self._parameters = parameters
        self._known: list[str] = []
        self.problems: list[str] = []

    def _take(self, name: str, default: Value) -> Value:
        self._known.append(name)
        return self._parameters.get(name, default)

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        """A whole number in [minimum, maximum]."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self.problems.append(f"{name} must be a whole number from {minimum} to {maximum}, not {value!r}")
            return default
        return value

    def number(self, name: str, default: float, minimum: float, maximum: float) -> float:
        """A finite number in [minimum, maximum]."""
        value = self._take(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not minimum <= float(value) <= maximum:
            self.problems.append(f"{name} must be a number from {minimum:g} to {maximum:g}, not {value!r}")
            return default
        return float(value)

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """One of `options`."""
        value = self._take(name, default)
        if not isinstance(value, str) or value not in options:
            self.problems.append(f"{name} must be one of {', '.join(options)}, not {value!r}")
            return default
        return value

    def text(self, name: str, default: str) -> str:
        """Any text."""
        value = self._take(name, default)
        if not isinstance(value, str):
            self.problems.append(f"{name} must be text, not {value!r}")
            return default
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            self.problems.append(f"{name} must be true or false, not {value!r}")
            return default
        return value

    def finish(self) -> None:
        """Raise one MisuseError that lists every problem, unknown names included; nothing if there is none."""
        for name in self._parameters:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._known) or 'none'}"
                self.problems.append(f"{name} is unknown ({hint})")
        if self.problems:
            raise MisuseError(f"{self._subject}: " + "; ".join(self.problems))
