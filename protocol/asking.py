"""What was asked for, or complained about, lately: the same thing once per delivery bound.

The idea: a step machine looks at what it lacks after every message, so without this it would ask for a missing
commit dozens of times before the answer can be here. SPEC R-4.36.
"""

from __future__ import annotations

from collections.abc import Iterable

from crowdsurf.protocol.ids import Digest


class Asking:
    """Names asked for in one step, and when."""

    def __init__(self, began: float, delivery_seconds: float) -> None:
        self._began = began
        self._delivery_seconds = delivery_seconds
        self._asked: dict[bytes, float] = {}

    def may_ask(self, name: bytes, now: float | None) -> bool:
        """Whether to ask now; then it is noted. Without a time, as if at the beginning of the step."""
        moment = self._began if now is None else now
        last = self._asked.get(name)
        if last is not None and moment < last + self._delivery_seconds:
            return False
        self._asked[name] = moment
        return True

    def fresh(self, names: Iterable[Digest], now: float | None) -> tuple[Digest, ...]:
        """Those that may be asked for now."""
        return tuple(name for name in names if self.may_ask(name, now))

    def first_time(self, name: bytes) -> bool:
        """Whether this was never asked for; then it is noted."""
        if name in self._asked:
            return False
        self._asked[name] = self._began
        return True

    def clear(self) -> None:
        """Everything may be asked for again."""
        self._asked.clear()
