"""What is logged of refusals: enough to see who does what, and no more however much of it they do.

The idea: a peer decides how often it is refused, so it must not decide how long the log gets. Of one peer and code a
line a minute is told, of all together some; the next line says how many were left out. The counters of `Metrics` count
every one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId

LINE_SECONDS = 60.0
"""From one line about a peer and a code to the next."""
LINES_MAX = 60
"""Lines in such a time about all peers: new identities cost nothing. Some ten megabytes a day."""
PEERS_AND_CODES_MAX = 1024
"""Remembered; the one heard of longest ago is forgotten, and what was left out of it counts among the others."""


class LeftOut(NamedTuple):
    """What a line has to say of those that were not told since."""

    alike: int
    """Of the same peer and code."""
    others: int
    """Of those nobody remembers one by one."""

    def __str__(self) -> str:
        words = [f"{self.alike} more like it"] * (self.alike > 0) + [f"{self.others} of others"] * (self.others > 0)
        return f"; {' and '.join(words)} not told" if words else ""


class _Told:
    def __init__(self) -> None:
        self.at = -float("inf")
        self.left_out = 0


class RefusalLog:
    """Decides which refusals are told. Pure: times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[PeerId, Code], _Told] = OrderedDict()
        self._others_left_out = 0
        self._window_began = -float("inf")
        self._lines = 0

    def admit(self, peer: PeerId, code: Code, now: float) -> LeftOut | None:
        """What a line about this refusal must add; None if there is to be no line."""
        told = self._remember(peer, code)
        if now >= self._window_began + LINE_SECONDS:
            self._window_began, self._lines = now, 0
        if now < told.at + LINE_SECONDS or self._lines >= LINES_MAX:
            told.left_out += 1
            return None
        left_out = LeftOut(told.left_out, self._others_left_out)
        told.at, told.left_out, self._others_left_out = now, 0, 0
        self._lines += 1
        return left_out

    def _remember(self, peer: PeerId, code: Code) -> _Told:
        told = self._told.setdefault((peer, code), _Told())
        self._told.move_to_end((peer, code))
        while len(self._told) > PEERS_AND_CODES_MAX:
            self._others_left_out += self._told.popitem(last=False)[1].left_out
        return told

    def __len__(self) -> int:
        return len(self._told)
