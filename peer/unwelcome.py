"""Who gets no stream here: whoever is banned, and for a while strangers that sent what no correct peer sends.

The idea: a ban is the swarm's word and for good (`bans.py`); this is our own, about strangers only, and short. A member
loses the stream and nothing else: it is the rules that judge members.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from crowdsurf.peer.clock import Clock
from crowdsurf.protocol.ids import PeerId

TURNED_AWAY_SECONDS = 60.0
"""How long a stranger gets no stream: long beside what one takes, short for somebody whose program is updated."""
TURNED_AWAY_MAX = 1024
"""Strangers remembered; who was turned away longest ago is forgotten. Identities cost nothing, so more help little."""


class TurnedAway:
    """Strangers that are turned away, and until when. Pure: times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._until: OrderedDict[PeerId, float] = OrderedDict()

    def add(self, peer: PeerId, now: float) -> None:
        """Turn a peer away from now on."""
        self._until[peer] = now + TURNED_AWAY_SECONDS
        self._until.move_to_end(peer)
        while len(self._until) > TURNED_AWAY_MAX:
            self._until.popitem(last=False)

    def holds(self, peer: PeerId, now: float) -> bool:
        """Whether its time is not over."""
        return now < self._until.get(peer, now)

    def __len__(self) -> int:
        return len(self._until)


class Unwelcome:
    """`peer in unwelcome`, for the transport."""

    def __init__(self, bans: Container[PeerId], members: Container[PeerId], clock: Clock) -> None:
        self._bans = bans
        self._members = members
        self._clock = clock
        self._turned_away = TurnedAway()

    def turn_away(self, peer: PeerId) -> None:
        """Refuse a peer for a while, as long as it is no member."""
        if peer not in self._members:
            self._turned_away.add(peer, self._clock.monotonic_seconds())

    def __contains__(self, peer: object) -> bool:
        if peer in self._bans:
            return True
        if not isinstance(peer, bytes) or not self._turned_away.holds(PeerId(peer), self._clock.monotonic_seconds()):
            return False
        return peer not in self._members
