"""Who we last met, kept on disk, so that a restart does not depend on one bootstrap address.

The idea: a convenience, never a truth. The file is small, bounded and replaced as a whole; if it is damaged
the peer starts without it and says so, and whatever it names is dialled and checked like any stranger.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from crowdsurf.peer.files import write_whole
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Refusal, WorldError
from crowdsurf.protocol.ids import PEER_ID_BYTES, PeerId

PEERS_MAX = 64
"""Peers remembered; those seen in the latest steps stay."""

_FILE_BYTES_MAX = PEERS_MAX * (limits.DHT_RECORD_BYTES_MAX + PEER_ID_BYTES)

Address = Annotated[str, msgspec.Meta(max_length=limits.ADDRESS_BYTES_MAX)]


class LastKnownPeer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One peer as we last saw it."""

    peer: Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
    """Its peer id, 38 bytes."""
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=limits.ADDRESSES_PER_PEER_MAX)]
    """Multiaddresses as text."""
    step: Annotated[int, msgspec.Meta(ge=0)]
    """The step in which we saw it last."""


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

    def remember(self, peer: PeerId, addresses: Sequence[str], step: int) -> None:
        """Note that `peer` was met in `step`. Addresses out of bounds are left out; an older step changes nothing."""
        known = self._peers.get(peer)
        if known is not None and known.step > step:
            return
        usable = [address for address in addresses if len(address) <= limits.ADDRESS_BYTES_MAX]
        self._peers[peer] = LastKnownPeer(peer, tuple(usable[: limits.ADDRESSES_PER_PEER_MAX]), step)
        if len(self._peers) > PEERS_MAX:
            del self._peers[self.peers()[-1].peer]

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
