"""Where peers are: addresses from the invite, from disk and from the directory, kept fresh.

The idea: an address book that other parts ask by peer id, and one task that announces us and looks others up,
quickly while somebody is missing and slowly afterwards. Nothing here decides who belongs to the swarm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Coroutine, Sequence
from typing import Any

from crowdsurf.dht.base import Directory
from crowdsurf.dht.records import sign_record
from crowdsurf.peer.clock import Clock
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.last_known import LastKnownPeer, LastKnownPeers
from crowdsurf.peer.transport.base import Transport
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, peer_from_text

RECORD_LIFETIME_SECONDS = 600.0
ANNOUNCE_SECONDS = 120.0
SEARCH_SECONDS_MIN, SEARCH_SECONDS_MAX = 0.5, 30.0
BOOK_PEERS_MAX = 4 * limits.ROSTER_PEERS_MAX
TRANSPORT_FAILURES_MAX = 3
"""Times in a row our own transport may fail to say where we are before it is taken for dead."""

log = logging.getLogger(__name__)


def peer_of_address(address: str) -> PeerId:
    """The peer id at the end of a multiaddress. Raises MisuseError."""
    head, separator, text = address.rpartition("/p2p/")
    if not separator or not head:
        raise MisuseError(f"the address {address} does not end in /p2p/ and a peer id")
    try:
        return peer_from_text(text)
    except Refusal as refusal:
        raise MisuseError(f"the address {address} names no Ed25519 peer id") from refusal


class AddressBook:
    """Addresses by peer id, bounded: who was not heard of for longest goes, but no contact for a stranger's sake.

    Whoever is in `banned`, now or later, is not in the book.
    """

    def __init__(self, banned: Container[PeerId] = frozenset()) -> None:
        self.banned = banned
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self.contacts: Callable[[], Sequence[PeerId]] = lambda: ()
        """Peers whose addresses are kept whoever else comes."""

    def add(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember addresses; newer ones replace older ones."""
        self._addresses.pop(peer, None)
        if peer in self.banned:
            return
        self._addresses[peer] = tuple(addresses[: limits.ADDRESSES_PER_PEER_MAX])
        if len(self._addresses) > BOOK_PEERS_MAX:
            contacts = set(self.contacts())
            oldest = next((known for known in self._addresses if known not in contacts), peer)
            del self._addresses[oldest]

    def add_full(self, addresses: Sequence[str]) -> None:
        """Remember multiaddresses that end in a peer id. Raises MisuseError."""
        grouped: dict[PeerId, list[str]] = {}
        for address in addresses:
            grouped.setdefault(peer_of_address(address), []).append(address)
        for peer, found in grouped.items():
            self.add(peer, found)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        """Addresses of a peer, possibly none."""
        return () if peer in self.banned else self._addresses.get(peer, ())

    def peers(self) -> list[PeerId]:
        """Everyone with an address."""
        return sorted(peer for peer in self._addresses if peer not in self.banned)


class Discovery:
    """Announces this peer and keeps the address book."""

    def __init__(
        self,
        directory: Directory,
        transport: Transport,
        key: PeerKey,
        run_id: Digest,
        book: AddressBook,
        last_known: LastKnownPeers,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._transport = transport
        self._key = key
        self._run_id = run_id
        self._book = book
        self._last_known = last_known
        self._clock = clock
        self._saved: list[LastKnownPeer] = []
        self.step: Callable[[], int] = lambda: 0
        self.members: Container[PeerId] = frozenset()
        """Who belongs to the run, and is remembered before all others."""

    async def announce(self) -> None:
        """Publish our addresses. Raises WorldError."""
        addresses = await self._transport.addresses()
        expires_at = self._clock.wall_seconds() + RECORD_LIFETIME_SECONDS
        record = sign_record(self._run_id, self._key.peer_id, addresses, self.step(), expires_at, self._key.sign)
        await self._directory.announce(record)

    async def search(self) -> None:
        """Look up everyone and note their addresses, but of nobody who is banned. Raises WorldError."""
        for known in self._last_known.peers():
            if known.peer in self._book.banned:
                self._last_known.forget(PeerId(known.peer))
        for record in await self._directory.find(self._run_id):
            peer = PeerId(record.peer)
            if peer != self._key.peer_id and peer not in self._book.banned:
                self._book.add(peer, record.addresses)
                self._last_known.remember(peer, record.addresses, self.step(), self.members)

    async def run(self) -> None:
        """Announce and search until cancelled. Raises WorldError once our own transport does not answer any more."""
        announce_at, pause, failures = self._clock.monotonic_seconds(), SEARCH_SECONDS_MIN, 0
        while True:
            try:
                await self._transport.addresses()
                failures = 0
            except WorldError:
                failures += 1
                if failures >= TRANSPORT_FAILURES_MAX:
                    raise
            if self._clock.monotonic_seconds() >= announce_at and await self._attempt(self.announce()):
                announce_at = self._clock.monotonic_seconds() + ANNOUNCE_SECONDS
            if await self._attempt(self.search()):
                await self._attempt(self._save())
            complete = not failures and all(self._book.of(peer) for peer in self._book.contacts())
            pause = min(2 * pause, SEARCH_SECONDS_MAX) if complete else SEARCH_SECONDS_MIN
            await asyncio.sleep(pause)

    async def _save(self) -> None:
        known = self._last_known.peers()
        if known != self._saved:
            await asyncio.to_thread(self._last_known.save)
            self._saved = known

    async def _attempt(self, action: Coroutine[Any, Any, None]) -> bool:
        """Whether it worked. What fails here is tried again soon: a directory is a help and not a need."""
        try:
            await action
        except (WorldError, MisuseError) as error:
            log.debug("the directory: %s", error)
            return False
        return True
