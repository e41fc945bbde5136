"""Whose event is next: an own lane first, then members in turn, then a few of strangers. Pure.

The idea: one queue for everybody lets whoever sends the most decide how long all others wait. So every source has a
queue of its own, in its order, and sources take turns. What this peer's own work has led to never waits for anybody
else's, and members never wait for strangers, whose identities cost nothing. Nobody has to be refused for want of room:
whoever hands over an event waits until there is room for it, which makes its sender wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from typing import NamedTuple

from crowdsurf.protocol import events, limits
from crowdsurf.protocol.ids import PeerId

OWN_EVENTS_MAX = 1024
"""Results of our own work that wait for the rules; whoever has more waits, and so does that work."""
MEMBER_EVENTS_MAX = 4096 // limits.ROSTER_PEERS_MAX
"""Events of one member that wait; then its streams do. All members together never have more than 4,096 waiting, and
one more for every stream."""
STRANGER_EVENTS_MAX = 0
"""The same for whoever is no member: each of its streams waits until its event is taken, so there are never more of
them than streams of strangers (`transport/base.py`)."""
EVENTS_PER_BATCH = 256
"""Events handled before their effects are carried out together: one wait for the disk for all of them."""
EVENTS_PER_SOURCE = 16
"""Of these, from one member: some 3 ms of checking signatures, after which the own lane is looked at again."""


class Waiting:
    """One event that waits, and what is called once when there is room for it."""

    def __init__(self, event: events.Event) -> None:
        self.event = event
        self.let_go: Callable[[], None] | None = None

    def release(self) -> None:
        """Let go whoever waits for room."""
        let_go, self.let_go = self.let_go, None
        if let_go is not None:
            let_go()


class Batch(NamedTuple):
    """Events in the order in which they are to be handled, those of strangers last and apart."""

    events: list[events.Event]
    of_strangers: list[events.Event]


class Turns:
    """All events that wait for the rules."""

    def __init__(self) -> None:
        self.members: Container[PeerId] | None = None
        """Who does not wait for strangers; None while everybody counts as a member. Call `reassess` if it changes."""
        self._own: deque[Waiting] = deque()
        self._queues: dict[PeerId, deque[Waiting]] = {}
        """Sources with something that waits; each is in one of the two circles."""
        self._circle: deque[PeerId] = deque()
        self._strangers: deque[PeerId] = deque()

    def add(self, source: PeerId | None, waiting: Waiting) -> bool:
        """Queue an event of a source, None for an own one; whether there was room, so that nobody need wait for it."""
        if source is None:
            self._own.append(waiting)
            return len(self._own) <= OWN_EVENTS_MAX
        if source not in self._queues:
            self._queues[source] = deque()
            self._circle_of(source).append(source)
        self._queues[source].append(waiting)
        is_news_of_a_link = isinstance(waiting.event, events.PeerSeen | events.PeerGone)
        room = MEMBER_EVENTS_MAX if is_news_of_a_link else self._room_of(source)  # we say that, and not often
        return len(self._queues[source]) <= room

    def has_room(self) -> bool:
        """Whether one more event of our own need not wait."""
        return len(self._own) < OWN_EVENTS_MAX

    def remove(self, source: PeerId | None, waiting: Waiting) -> None:
        """Take an event back that nobody stands for any more, if it still waits."""
        queue = self._own if source is None else self._queues.get(source, deque[Waiting]())
        if waiting in queue:
            queue.remove(waiting)

    def drop(self, source: PeerId) -> None:
        """Forget what a source has handed over; what we found out about it ourselves stays."""
        queue = self._queues.get(source, deque[Waiting]())
        handed_over = [waiting for waiting in queue if isinstance(waiting.event, HANDED_OVER)]
        for waiting in handed_over:
            queue.remove(waiting)
            waiting.release()

    def reassess(self) -> None:
        """Sort the sources that wait anew into members and strangers."""
        sources = [*self._circle, *self._strangers]
        self._circle.clear()
        self._strangers.clear()
        for source in sources:
            self._circle_of(source).append(source)

    @property
    def strangers_wait(self) -> bool:
        """Whether a stranger has something to say."""
        return bool(self._strangers)

    def take(self, strangers_max: int) -> Batch:
        """The next events: all own ones first, then those of members in turn, then at most so many of strangers."""
        own: list[events.Event] = []
        while self._own and len(own) < EVENTS_PER_BATCH:
            own.append(_pop(self._own, OWN_EVENTS_MAX))
        others = self._take_in_turn(self._circle, EVENTS_PER_BATCH - len(own), EVENTS_PER_SOURCE)
        return Batch(own + others, self._take_in_turn(self._strangers, strangers_max, strangers_max))

    def _take_in_turn(self, circle: deque[PeerId], events_max: int, per_source_max: int) -> list[events.Event]:
        """One event of each source after the other. Who has more is last in the circle next time."""
        found: list[events.Event] = []
        taken: dict[PeerId, int] = {}
        done: list[PeerId] = []
        while circle and len(found) < events_max:
            source = circle.popleft()
            queue = self._queues[source]
            if queue:
                found.append(_pop(queue, self._room_of(source)))
                taken[source] = taken.get(source, 0) + 1
            if not queue:
                del self._queues[source]
            elif taken[source] < per_source_max:
                circle.append(source)
            else:
                done.append(source)
        circle.extend(done)
        return found

    def _is_stranger(self, source: PeerId) -> bool:
        return self.members is not None and source not in self.members

    def _circle_of(self, source: PeerId) -> deque[PeerId]:
        return self._strangers if self._is_stranger(source) else self._circle

    def _room_of(self, source: PeerId) -> int:
        return STRANGER_EVENTS_MAX if self._is_stranger(source) else MEMBER_EVENTS_MAX


HANDED_OVER = (events.EnvelopeReceived, events.CertificateReceived, events.WantReceived)
"""What a peer itself has sent on its control stream."""


def source_of(event: events.Event) -> PeerId | None:
    """In whose queue an event waits; None for our own. What happens to a link waits behind what came over it."""
    if isinstance(event, HANDED_OVER):
        return event.source
    if isinstance(event, events.PeerSeen | events.PeerGone):
        return event.peer
    return None


def _pop(queue: deque[Waiting], room: int) -> events.Event:
    """Take the oldest event, and let in the one for which there is room now."""
    oldest = queue.popleft()
    oldest.release()
    if 0 < room <= len(queue):
        queue[room - 1].release()
    return oldest.event


class Allowance:
    """A share of the time, for whom a peer owes nothing: whoever has spent some waits until it is paid for.

    Times are seconds of any clock that never goes back.
    """

    def __init__(self, share: float) -> None:
        """`share` is between 0 and 1, both excluded."""
        self.free_at = -float("inf")
        """When something may be spent again."""
        self._waits_per_second = 1.0 / share - 1.0

    def spend(self, seconds: float, now: float) -> None:
        """Note that so many seconds were spent until `now`."""
        self.free_at = max(self.free_at, now) + seconds * self._waits_per_second
