"""Who has said anything lately: the word of each contributor on who is there.

The idea: a member keeps its place as long as somebody honest in the cut has heard of it, so it must not hang on one
step whether it was heard. Liars that are faster than everybody else can end a step before the words of others arrive;
these count when they come, whatever step they belong to. SPEC R-7.2.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from crowdsurf.protocol.ids import PeerId

_WINDOW_DELIVERIES = 4
"""How long a word counts at least: in two the end of a step reaches a member and its word comes back; between two of
them lies a step, and one may take up to two longer than the other."""


class Hearing:
    """When each member was heard last."""

    def __init__(self, delivery_seconds: float) -> None:
        self._window_seconds = _WINDOW_DELIVERIES * delivery_seconds
        self._heard_at: dict[PeerId, float] = {}
        self._began = math.inf
        self._lately: set[PeerId] = set()

    def note(self, peer: PeerId, now: float) -> None:
        """A member has said something, or somebody has shown what it signed."""
        self._heard_at[peer] = now
        self._lately.add(peer)

    def next_step(self, members: Collection[PeerId], now: float) -> set[PeerId]:
        """A step of these members begins. Those heard since the step before began, or within four deliveries; whoever
        is heard from now on is added to what was returned."""
        self._heard_at = {peer: moment for peer, moment in self._heard_at.items() if peer in members}
        since = min(self._began, now - self._window_seconds)
        self._began = now
        self._lately = {peer for peer, moment in self._heard_at.items() if moment >= since}
        return self._lately
