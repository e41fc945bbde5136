"""From an invite to a running peer: the place a daemon lives in, for every transport.

The idea: `Daemon` runs one peer of a known run; this file finds out which run and where. A volunteer has an
invite and a home folder; the demo has a manifest and a few folders; both end in a `Place`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crowdsurf.dht.base import Directory
from crowdsurf.dht.memory import MemoryDirectoryNetwork
from crowdsurf.peer.clock import SystemClock, wall_seconds
from crowdsurf.peer.config import NodeConfig
from crowdsurf.peer.daemon import Place, fetch_manifest
from crowdsurf.peer.discovery import AddressBook, peer_of_address
from crowdsurf.peer.files import write_whole
from crowdsurf.peer.invite import Invite
from crowdsurf.peer.keys import PeerKey, random_bytes, verify
from crowdsurf.peer.last_known import LastKnownPeers
from crowdsurf.peer.transport.base import Transport
from crowdsurf.peer.transport.memory import MemoryNetwork
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, Refusal, RefusedBySwarm, Unreachable, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, peer_text
from crowdsurf.protocol.manifest import Manifest, decode_manifest, encode_manifest, run_id_of

if TYPE_CHECKING:
    from crowdsurf.dht.hivemind import HivemindDirectory

KEY_FILE = "peer.key"
MANIFEST_FILE = "manifest.msgpack"
BOOTSTRAP_SECONDS_MAX = 30.0
"""How long the bootstrap addresses are tried before giving up."""

log = logging.getLogger(__name__)


def run_folder(home: Path, run_id: Digest) -> Path:
    """The folder of a run in a peer's home."""
    return home / "runs" / run_id.hex()[:16]


def home_of(config: NodeConfig) -> Path:
    """The home folder, with `~` resolved."""
    return Path(config.home).expanduser().absolute()


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Keep the manifest beside the journal. Raises WorldError."""
    try:
        write_whole(folder / MANIFEST_FILE, encode_manifest(manifest), replace=False)
    except OSError as error:
        raise WorldError(f"cannot write to {folder}: {error.strerror or error}") from error


def load_manifest(folder: Path) -> Manifest:
    """The manifest kept in a run folder. Raises MisuseError if there is none, WorldError if it is damaged."""
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MisuseError(f"there is no run in {folder}: it has no {MANIFEST_FILE}") from error
    try:
        return decode_manifest(data)
    except Refusal as refusal:
        raise WorldError(
            f"{path} is damaged ({refusal.detail}); move it away, and the next join fetches it again"
        ) from refusal


@contextlib.asynccontextmanager
async def p2pd_place(
    invite: Invite, config: NodeConfig, evaluate_steps: int = 0, tell: Callable[[str], None] = log.info
) -> AsyncIterator[tuple[Manifest, Place]]:
    """Everything a volunteer's peer needs over libp2p. `tell` gets one plain sentence per event.

    Raises MisuseError, WorldError, Unreachable, RefusedBySwarm, each with one plain sentence.
    """
    # Imported here: hivemind takes two seconds and 280 MB, and only this path needs it.
    from crowdsurf.dht.hivemind import HivemindDirectory
    from crowdsurf.peer.transport.p2pd import P2pdOptions, P2pdTransport

    home = home_of(config)
    key = PeerKey.load_or_create(home / KEY_FILE)
    run_id = Digest(invite.run_id)
    folder = run_folder(home, run_id)
    options = P2pdOptions(home / KEY_FILE, listen=config.listen, announce=config.announce)
    transport = await P2pdTransport.create(options)
    try:
        others = [address for address in invite.addresses if peer_of_address(address) != key.peer_id]
        book = AddressBook()
        book.add_full(others)
        for known in LastKnownPeers.open(folder / "peers").peers():
            peer = PeerId(known.peer)
            book.add(peer, book.of(peer) or known.addresses)
        manifest = await _manifest_of(invite, folder, transport, book, tell)
        tell(f"Run {manifest.name} trains task {manifest.task.name} with rule {manifest.rule.name}.")
        _check_admission(manifest, invite, key)
        bootstrap = tuple(address for peer in book.peers() for address in _with_peer(book.of(peer), peer))
        directory = await HivemindDirectory.open(
            transport.p2p, run_id, (), verify=verify, now=wall_seconds, chance=random_bytes
        )
        try:
            if bootstrap:
                await _join_directory(directory, bootstrap, may_fail=key.peer_id in manifest.founders)
            yield (
                manifest,
                Place(
                    folder=folder,
                    key=key,
                    transport=transport,
                    directory=directory,
                    bootstrap=bootstrap,
                    device=config.device,
                    threads=config.threads,
                    evaluate_steps=evaluate_steps,
                ),
            )
        finally:
            await directory.close()
    finally:
        await transport.close()


async def _manifest_of(
    invite: Invite, folder: Path, transport: Transport, book: AddressBook, tell: Callable[[str], None]
) -> Manifest:
    """The run's manifest: kept from last time, or fetched from a peer the invite names."""
    if (folder / MANIFEST_FILE).exists():
        manifest = load_manifest(folder)
        if run_id_of(manifest) == invite.run_id:
            return manifest
        raise WorldError(f"{folder / MANIFEST_FILE} belongs to another run; move the folder away and join again")
    if not book.peers():
        raise Unreachable("the invite names no address but this peer's own, and there is no manifest here")
    tell(f"Looking for the swarm at {', '.join(invite.addresses)}.")
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + BOOTSTRAP_SECONDS_MAX
    while True:
        try:
            manifest = await fetch_manifest(transport, book, Digest(invite.run_id))
            break
        except Unreachable:
            if loop.time() >= give_up_at:
                raise
            await asyncio.sleep(1.0)
    save_manifest(folder, manifest)
    tell("Found the swarm and fetched the run's manifest.")
    return manifest


def _check_admission(manifest: Manifest, invite: Invite, key: PeerKey) -> None:
    """Things the swarm would refuse later, said at once."""
    if manifest.organizer != invite.organizer:
        raise RefusedBySwarm("the invite is not signed by the organizer of the run it names; ask for another invite")
    if manifest.protocol_version != limits.PROTOCOL_VERSION:
        raise RefusedBySwarm(
            f"the run speaks protocol version {manifest.protocol_version}, this program {limits.PROTOCOL_VERSION}; "
            "install the version of crowdsurf that the run was created with"
        )
    if manifest.admission == "founders" and key.peer_id not in manifest.founders:
        raise RefusedBySwarm("only founders are admitted to this run, and this peer is none of them")


async def _join_directory(directory: HivemindDirectory, bootstrap: tuple[str, ...], may_fail: bool) -> None:
    """Meet the directory. A founder may be the first one there; everybody else needs an answer."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + BOOTSTRAP_SECONDS_MAX
    while not await directory.join(bootstrap):
        if may_fail:
            return
        if loop.time() >= give_up_at:
            raise Unreachable(
                "none of the invite's addresses answers; check the network, and that the organizer's peer is running"
            )
        await asyncio.sleep(1.0)


def _with_peer(addresses: tuple[str, ...], peer: PeerId) -> list[str]:
    """Multiaddresses that end in the peer id, as the directory wants them."""
    ending = f"/p2p/{peer_text(peer)}"
    return [address if "/p2p/" in address else address + ending for address in addresses]


class MemorySwarm:
    """Network and directory of a swarm inside one process."""

    def __init__(self) -> None:
        self._network = MemoryNetwork()
        self._directories = MemoryDirectoryNetwork(verify, wall_seconds, random_bytes)

    def place(self, manifest: Manifest, home: Path, key: PeerKey, evaluate_steps: int = 0) -> Place:
        """A peer's place in it."""
        run_id = run_id_of(manifest)
        directory: Directory = self._directories.open(run_id)
        return Place(
            folder=run_folder(home, run_id),
            key=key,
            transport=self._network.join(key.peer_id),
            directory=directory,
            device="cpu",
            evaluate_steps=evaluate_steps,
            clock=SystemClock(),
        )

    def kill(self, key: PeerKey) -> None:
        """A peer's streams all break at once."""
        self._network.kill(key.peer_id)
