"""Who we last met, kept on disk, so that a restart does not depend on one bootstrap address.

The idea: a convenience, never a truth. The file is small, bounded and replaced as a whole; if it is damaged
the peer starts without it and says so, and whatever it names is dialled and checked like any stranger. What counts is
what we know for ourselves, a peer's place in the run and our own step: identities and their claims cost nothing.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from crowdsurf.peer.files import write_whole
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Refusal, WorldError
from crowdsurf.protocol.ids import PEER_ID_BYTES, PeerId

PEERS_MAX = 64
"""Peers remembered: members first, then those that were members in the latest steps; strangers fill what is left."""

_FILE_BYTES_MAX = PEERS_MAX * (limits.DHT_RECORD_BYTES_MAX + PEER_ID_BYTES)

Address = Annotated[str, msgspec.Meta(max_length=limits.ADDRESS_BYTES_MAX)]


class LastKnownPeer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One peer as we last saw it."""

    peer: Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
    """Its peer id, 38 bytes."""
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=limits.ADDRESSES_PER_PEER_MAX)]
    """Multiaddresses as text."""
    step: Annotated[int, msgspec.Meta(ge=0)]
    """Our own step when it was a member last, as far as we know; 0 of a stranger."""


class _File(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The file: canonical msgpack."""

    peers: Annotated[tuple[LastKnownPeer, ...], msgspec.Meta(max_length=PEERS_MAX)]


class LastKnownPeers:
    """At most PEERS_MAX peers, in memory; `save` writes them. Not for several threads at once."""

    def __init__(self, path: Path, peers: Sequence[LastKnownPeer] = (), warning: str | None = None) -> None:
        self._path = path
        self._peers = {peer.peer: peer for peer in peers}
        self.warning = warning
        """Why the file could not be used, as a sentence for people; None if it could or was not there."""

    @staticmethod
    def open(path: Path) -> LastKnownPeers:
        """What the file at `path` holds. Never fails: a missing file is empty, an unusable one gives a warning."""
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
            return LastKnownPeers(path, wire.unpack(data, _File, _FILE_BYTES_MAX).peers)
        except FileNotFoundError:
            return LastKnownPeers(path)
        except (OSError, Refusal) as error:
            return LastKnownPeers(
                path, warning=f"the list of last-known peers in {path} cannot be used and starts empty: {error}"
            )

    def peers(self) -> list[LastKnownPeer]:
        """Latest step first."""
        return sorted(self._peers.values(), key=lambda peer: (-peer.step, peer.peer))

    def remember(
        self, peer: PeerId, addresses: Sequence[str], step: int, members: Container[PeerId] = frozenset()
    ) -> None:
        """Note where `peer` is; `step`, our own, counts if it is one of the `members`, whose places nobody else gets.

        Addresses out of bounds are left out."""
        known = self._peers.get(peer)
        usable = [address for address in addresses if len(address) <= limits.ADDRESS_BYTES_MAX]
        met = max(step if peer in members else 0, known.step if known is not None else 0)
        self._peers[peer] = LastKnownPeer(peer, tuple(usable[: limits.ADDRESSES_PER_PEER_MAX]), met)
        if len(self._peers) > PEERS_MAX:
            others = [peer for peer in self._peers if PeerId(peer) not in members] or list(self._peers)
            del self._peers[max(others, key=lambda peer: (-self._peers[peer].step, peer))]

    def doubt_steps_after(self, step: int) -> None:
        """Steps that we have not reached are nothing we could have seen: whoever has one is as good as a stranger."""
        for known in self.peers():
            if known.step > step:
                self._peers[known.peer] = LastKnownPeer(known.peer, known.addresses, 0)

    def forget(self, peer: PeerId) -> None:
        """Drop a peer, for example one that was banned."""
        self._peers.pop(peer, None)

    def save(self) -> None:
        """Replace the file as a whole, durably. Blocks on the disk. Raises WorldError; the old file then stays."""
        data = wire.pack(_File(tuple(self.peers())))
        try:
            write_whole(self._path, data, replace=True)
        except OSError as error:
            raise WorldError(
                f"the list of last-known peers could not be written to {self._path}: {error.strerror or error}"
            ) from error
