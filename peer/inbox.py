"""The driver's inbox: events from everywhere, in the order in which `Turns` gives them.

The idea: `turns.py` decides who is next; this adds the waiting. Whoever posts waits while its source has no room, and
the driver waits while there is nothing. No task and no clock lives here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container

from crowdsurf.peer.turns import Batch, Turns, Waiting, source_of
from crowdsurf.protocol import events
from crowdsurf.protocol.ids import PeerId


class Inbox:
    """Everything that waits for the rules."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._news = asyncio.Event()

    def tell_apart(self, members: Container[PeerId]) -> None:
        """From now on whoever is not in `members` is a stranger; until this is called, nobody is."""
        self._turns.members = members
        self._turns.reassess()

    def reassess(self) -> None:
        """The members have changed: whoever is one now waits no longer among strangers."""
        self._turns.reassess()

    async def post(self, event: events.Event) -> None:
        """Give the driver an event; waits while its source has too many."""
        await self._post(source_of(event), event)

    async def post_from(self, source: PeerId, event: events.Event) -> None:
        """The same for an event that would be ours, but which a peer can cause as often as it likes."""
        await self._post(source, event)

    def offer(self, event: events.Event) -> None:
        """Give the driver an event of our own, unless it is too busy for it."""
        if self._turns.has_room():
            self._turns.add(None, Waiting(event))
            self._news.set()

    def drop(self, source: PeerId) -> None:
        """Forget what a peer has handed over and nobody has looked at yet."""
        self._turns.drop(source)

    def take(self, strangers_max: int) -> Batch:
        """The next events, possibly none; at most so many of strangers."""
        return self._turns.take(strangers_max)

    @property
    def strangers_wait(self) -> bool:
        """Whether strangers have something to say."""
        return self._turns.strangers_wait

    async def wait(self, seconds: float | None) -> bool:
        """Wait for one more event; False if the time is up first. None waits for ever."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        return self._news.is_set()

    async def _post(self, source: PeerId | None, event: events.Event) -> None:
        waiting = Waiting(event)
        has_room = self._turns.add(source, waiting)
        self._news.set()
        if has_room:
            return
        may_go = asyncio.Event()
        waiting.let_go = may_go.set
        try:
            await may_go.wait()
        except asyncio.CancelledError:
            self._turns.remove(source, waiting)
            raise
