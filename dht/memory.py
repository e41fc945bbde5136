"""The in-process twin of the DHT, for tests and for a demo whose peers share one process.

The idea: same rules, no network. All peers of a run share one record book, and every record passes the same
checks as one that came from a stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from crowdsurf.dht.base import Directory
from crowdsurf.dht.book import RecordBook, offer_own
from crowdsurf.dht.records import PeerRecord, Verify
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest


class MemoryDirectoryNetwork:
    """What the twins of one process share: a record book per run."""

    def __init__(self, verify: Verify, now: Callable[[], float], chance: Callable[[int], bytes]) -> None:
        """`now` gives wall-clock unix seconds, `chance` as many random bytes as it is asked for."""
        self._verify = verify
        self._now = now
        self._chance = chance
        self._books: dict[Digest, RecordBook] = {}

    def book(self, run_id: Digest) -> RecordBook:
        """The record book of a run, made on first use."""
        if run_id not in self._books:
            self._books[run_id] = RecordBook(run_id, self._verify, self._now, self._chance)
        return self._books[run_id]

    def open(self, run_id: Digest) -> MemoryDirectory:
        """A directory for one peer of one run."""
        return MemoryDirectory(self, run_id)


class MemoryDirectory(Directory):
    """One peer's view of a MemoryDirectoryNetwork."""

    def __init__(self, network: MemoryDirectoryNetwork, run_id: Digest) -> None:
        self._network = network
        self._run_id = run_id
        self._closed = False
        self._refused: Container[bytes] = frozenset()

    async def announce(self, record: bytes) -> None:
        """See Directory."""
        if self._closed:
            raise MisuseError("the directory is closed")
        offer_own(self._network.book(self._run_id), record)

    async def find(self, run_id: Digest) -> list[PeerRecord]:
        """See Directory."""
        if self._closed or run_id != self._run_id:
            return []
        return [record for record in self._network.book(run_id).records() if record.peer not in self._refused]

    def refuse(self, peers: Container[bytes]) -> None:
        """See Directory. The shared book is everybody's; this peer only does not see them in it."""
        self._refused = peers

    def keep(self, contacts: Callable[[], Iterable[bytes]]) -> None:
        """See Directory. Whoever announces itself here is in this process, and in the shared book no stranger."""

    async def close(self) -> None:
        """See Directory."""
        self._closed = True
