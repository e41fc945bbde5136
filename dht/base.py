"""What every directory offers: put up a record, look up a run, leave.

The idea: the daemon does not care how peers find each other. It hands over bytes it has signed and gets back
records that were checked, and whatever a directory is told by strangers ends here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable

from crowdsurf.dht.records import PeerRecord
from crowdsurf.protocol.ids import Digest


class Directory(ABC):
    """A place where the peers of one run find each other. Answers are a hint, never a roster."""

    @abstractmethod
    async def announce(self, record: bytes) -> None:
        """Publish our own signed record (from `sign_record`). Announce again well before it expires.

        Raises MisuseError if the record is not valid now, WorldError if the directory could not be reached.
        """

    @abstractmethod
    async def find(self, run_id: Digest) -> list[PeerRecord]:
        """Valid, unexpired records of the run, ours included: one per peer, sorted by peer, at most
        limits.DHT_RECORDS_PER_KEY_MAX. Empty for a run this directory was not opened for."""

    @abstractmethod
    def refuse(self, peers: Container[bytes]) -> None:
        """Whoever is in `peers`, now or later, does not exist here: its records are neither returned nor kept for
        others, its requests are not answered, and it is asked nothing."""

    @abstractmethod
    def keep(self, contacts: Callable[[], Iterable[bytes]]) -> None:
        """Say whose records no stranger's may displace when there are too many, besides our own: whoever is among
        `contacts` then."""

    @abstractmethod
    async def close(self) -> None:
        """Stop and free everything; announced records stay with others until they expire. Safe to call twice."""
