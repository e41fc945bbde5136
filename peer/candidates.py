"""Asking several peers for one thing: no single one of them can keep us waiting.

The idea: whoever does not begin to answer within a moment, or then sends slowly, is not taken back, but the next one is
asked beside it; the first good answer counts and the others are told to stop. Who was late is remembered for a while
and asked last, so that a peer which accepts questions and never answers them costs a moment once and not in every step.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from crowdsurf.peer.clock import Clock
from crowdsurf.protocol import limits
from crowdsurf.protocol.ids import PeerId

LATE_SECONDS = 1.5
"""Without the beginning of an answer for so long, the next peer is asked as well: a question and its answer take two
deliveries of a small message, and a swarm across the world delivers in a third of a second."""
LATE_BYTES_PER_SECOND = 1024 * 1024
"""An answer that has begun is late when it comes more slowly than this: so that a large one, on its way over an
ordinary connection, is not fetched twice."""
REMEMBERED_SECONDS = 600.0
"""How long somebody who was late is asked last."""
REMEMBERED_MAX = 4 * limits.ROSTER_PEERS_MAX

Answer = TypeVar("Answer")
Begun = Callable[[int], None]
"""Called by whoever asks once an answer of so many bytes has begun."""
Ask = Callable[[PeerId, Begun], Awaitable[Answer | None]]
"""Asks one peer; None if that came to nothing."""


class _Attempt:
    """One peer that is being asked, and from when on it is late."""

    def __init__(self, peer: PeerId, clock: Clock) -> None:
        self.peer = peer
        self._clock = clock
        self.late_at = clock.monotonic_seconds() + LATE_SECONDS

    def begun(self, nbytes: int) -> None:
        """It answers."""
        self.late_at = self._clock.monotonic_seconds() + LATE_SECONDS + nbytes / LATE_BYTES_PER_SECOND


class Candidates:
    """Asks peers, and remembers who was late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late: OrderedDict[PeerId, float] = OrderedDict()
        """Who was late, and until when that is remembered."""

    def late_ones_last(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """The same peers, in the same order but for those that were late."""
        now = self._clock.monotonic_seconds()
        return sorted(peers, key=lambda peer: self._late.get(peer, now) > now)

    async def ask(self, peers: Sequence[PeerId], ask: Ask[Answer], at_once_max: int) -> Answer | None:
        """The first good answer of any of them; None if there is none. At most `at_once_max` are asked at once."""
        waiting = deque(self.late_ones_last(peers))
        running: dict[asyncio.Task[Answer | None], _Attempt] = {}
        try:
            while waiting or running:
                now = self._clock.monotonic_seconds()
                patience = max((attempt.late_at for attempt in running.values()), default=now) - now
                may_start = bool(waiting) and len(running) < at_once_max
                if may_start and patience <= 0:
                    self._note_late(running.values())
                    attempt = _Attempt(waiting.popleft(), self._clock)
                    running[asyncio.ensure_future(ask(attempt.peer, attempt.begun))] = attempt
                    continue
                done, _ = await asyncio.wait(
                    running, timeout=patience if may_start else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    attempt = running.pop(task)
                    if (answer := task.result()) is not None:
                        self._late.pop(attempt.peer, None)
                        return answer
                    self._note_late([attempt])
            return None
        finally:
            self._note_late(running.values())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _note_late(self, attempts: Iterable[_Attempt]) -> None:
        now = self._clock.monotonic_seconds()
        for attempt in attempts:
            if attempt.late_at <= now:
                self._late[attempt.peer] = now + REMEMBERED_SECONDS
                self._late.move_to_end(attempt.peer)
        while len(self._late) > REMEMBERED_MAX:
            self._late.popitem(last=False)
