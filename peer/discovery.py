"""Where peers are: addresses from the invite, from disk and from the directory, kept fresh.

The idea: an address book that other parts ask by peer id, and one task that announces us and looks others up,
quickly while somebody is missing and slowly afterwards. Nothing here decides who belongs to the swarm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from crowdsurf.dht.base import Directory
from crowdsurf.dht.records import sign_record
from crowdsurf.peer.clock import Clock
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.last_known import LastKnownPeers
from crowdsurf.peer.transport.base import Transport
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, peer_from_text

RECORD_LIFETIME_SECONDS = 600.0
ANNOUNCE_SECONDS = 120.0
SEARCH_SECONDS_MIN, SEARCH_SECONDS_MAX = 0.5, 30.0
BOOK_PEERS_MAX = 4 * limits.ROSTER_PEERS_MAX

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
    """Addresses by peer id, bounded."""

    def __init__(self) -> None:
        self._addresses: dict[PeerId, tuple[str, ...]] = {}

    def add(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember addresses; newer ones replace older ones."""
        if peer in self._addresses or len(self._addresses) < BOOK_PEERS_MAX:
            self._addresses[peer] = tuple(addresses[: limits.ADDRESSES_PER_PEER_MAX])

    def add_full(self, addresses: Sequence[str]) -> None:
        """Remember multiaddresses that end in a peer id. Raises MisuseError."""
        grouped: dict[PeerId, list[str]] = {}
        for address in addresses:
            grouped.setdefault(peer_of_address(address), []).append(address)
        for peer, found in grouped.items():
            self.add(peer, found)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        """Addresses of a peer, possibly none."""
        return self._addresses.get(peer, ())

    def peers(self) -> list[PeerId]:
        """Everyone with an address."""
        return sorted(self._addresses)


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
        self.step: Callable[[], int] = lambda: 0
        self.wanted: Callable[[], Sequence[PeerId]] = lambda: ()

    async def announce(self) -> None:
        """Publish our addresses. Raises WorldError."""
        addresses = await self._transport.addresses()
        expires_at = self._clock.wall_seconds() + RECORD_LIFETIME_SECONDS
        record = sign_record(self._run_id, self._key.peer_id, addresses, self.step(), expires_at, self._key.sign)
        await self._directory.announce(record)

    async def search(self) -> None:
        """Look up everyone and note their addresses. Raises WorldError."""
        for record in await self._directory.find(self._run_id):
            peer = PeerId(record.peer)
            if peer != self._key.peer_id:
                self._book.add(peer, record.addresses)
                self._last_known.remember(peer, record.addresses, record.step)

    async def run(self) -> None:
        """Announce and search until cancelled."""
        announce_at, pause = self._clock.monotonic_seconds(), SEARCH_SECONDS_MIN
        while True:
            try:
                if self._clock.monotonic_seconds() >= announce_at:
                    await self.announce()
                    announce_at = self._clock.monotonic_seconds() + ANNOUNCE_SECONDS
                await self.search()
                await asyncio.to_thread(self._last_known.save)
            except WorldError as error:
                log.debug("the directory does not answer: %s", error)
            complete = all(self._book.of(peer) for peer in self.wanted())
            pause = min(2 * pause, SEARCH_SECONDS_MAX) if complete else SEARCH_SECONDS_MIN
            await asyncio.sleep(pause)
