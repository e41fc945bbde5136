"""Who is banned: one set that everything which meets peers is given.

The idea: the chain decides who is banned; this is the shell's copy of that fact. The transport asks it before it gives
anybody a stream (so bulk and fetch need not), links before they queue a message, the address book before it names an
address, the directory before it takes a record. So a ban takes effect everywhere at once, and nobody has to be told.
"""

from __future__ import annotations

from collections.abc import Iterable

from crowdsurf.protocol import limits
from crowdsurf.protocol.ids import PeerId


class Bans:
    """The banned peers: `peer in bans`. At most limits.BANNED_MAX; the oldest goes, as it does from the roster."""

    def __init__(self) -> None:
        self._banned: dict[PeerId, None] = {}

    def __contains__(self, peer: object) -> bool:
        return peer in self._banned

    def add(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Ban peers, in the order in which they were banned; which of them are new."""
        new = [peer for peer in dict.fromkeys(peers) if peer not in self._banned]
        self._banned.update(dict.fromkeys(new))
        while len(self._banned) > limits.BANNED_MAX:
            del self._banned[next(iter(self._banned))]
        return new
