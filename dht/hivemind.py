"""The DHT that crosses the network: hivemind's Kademlia node, guarded, for one run.

The idea: no process and no socket of its own. The node runs in the daemon's event loop and over the transport's
one p2pd, and every record goes through the guard (hivemind_guard.py) into our own book. Importing this module
imports hivemind; nothing else in `dht` does but that guard.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Container, Iterable, Sequence

import hivemind.dht.node as hivemind_node
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
from hivemind.utils.multiaddr import Multiaddr

from crowdsurf.dht.base import Directory
from crowdsurf.dht.book import RecordBook, offer_own
from crowdsurf.dht.hivemind_guard import (
    NEAREST_NODES,
    RPC_SECONDS,
    BookStorage,
    CrowdsurfDirectory,
    NoCache,
    RecordValidator,
    node_id_of,
)
from crowdsurf.dht.records import PeerRecord, Verify
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, digest_text, peer_from_text

logger = logging.getLogger(__name__)

REPLICAS = 5
"""Nodes nearest to the key that are asked to keep a record; hivemind's default."""
PARALLEL_RPCS_MAX = 32

# What goes wrong with single nodes is everyday life here; hivemind would report it on the terminal.
if "HIVEMIND_LOGLEVEL" not in os.environ and logging.getLogger("hivemind").level < logging.ERROR:
    logging.getLogger("hivemind").setLevel(logging.ERROR)

# DHTNode names its protocol class only through its module, and takes no other way.
hivemind_node.DHTProtocol = CrowdsurfDirectory


class HivemindDirectory(Directory):
    """A directory over hivemind's DHT, for one run."""

    def __init__(self, node: DHTNode, book: RecordBook, key_id: DHTID, deadline_seconds: float) -> None:
        """Use `HivemindDirectory.open`."""
        self._node = node
        self._book = book
        self._key_id = key_id
        self._deadline_seconds = deadline_seconds
        self._closed = False

    @staticmethod
    async def open(
        p2p: P2P,
        run_id: Digest,
        initial_peers: Sequence[str],
        *,
        verify: Verify,
        now: Callable[[], float],
        chance: Callable[[int], bytes],
        deadline_seconds: float = 10.0,
    ) -> HivemindDirectory:
        """Join the DHT over a running p2pd, which stays the caller's.

        `initial_peers` are multiaddresses that end in /p2p/<peer id>; none for the first peer of a swarm. `now`
        gives wall-clock unix seconds, `chance` as many random bytes as it is asked for. Raises MisuseError on a
        malformed address and WorldError if there are initial peers and none answers within `deadline_seconds`.
        """
        for address in initial_peers:
            parse_address(address)
        key_id = DHTID.generate(source=digest_text(run_id))
        book = RecordBook(run_id, verify, now, chance)
        node = await DHTNode.create(
            p2p=p2p,
            node_id=node_id_of(p2p.peer_id),
            bucket_size=NEAREST_NODES,
            num_replicas=REPLICAS,
            parallel_rpc=PARALLEL_RPCS_MAX,
            wait_timeout=RPC_SECONDS,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            record_validator=RecordValidator(key_id, book),
        )
        if not isinstance(node.protocol, CrowdsurfDirectory):
            raise RuntimeError("hivemind's DHTNode did not take the guarded protocol")
        node.protocol.storage, node.protocol.cache = BookStorage(key_id, book), NoCache(key_id, book)
        directory = HivemindDirectory(node, book, key_id, deadline_seconds)
        try:
            if initial_peers and not await directory.join(initial_peers):
                raise WorldError(
                    f"none of the {len(initial_peers)} bootstrap addresses answers; check them and the network"
                )
        except BaseException:
            await directory.close()
            raise
        return directory

    async def join(self, initial_peers: Sequence[str]) -> int:
        """Dial peers and learn our neighbours from them; how many answered. May be called again at any time, also
        with addresses that others gave us: malformed ones count as silent."""
        answers = [asyncio.create_task(self._introduce(address)) for address in initial_peers]
        if not answers:
            return 0
        try:
            await asyncio.wait(answers, timeout=self._deadline_seconds)
            answered = sum(task.done() and task.result() for task in answers)
        finally:
            for task in answers:
                task.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
        await self._visit_nearest(self._node.node_id)
        return answered

    async def announce(self, record: bytes) -> None:
        """See Directory. Ours is kept here too, so it is found even when no other node takes it."""
        if self._closed:
            raise MisuseError("the directory is closed")
        own = offer_own(self._book, record)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._node.store(digest_text(self._book.run_id), record, own.expires_at, subkey=own.peer)
        except TimeoutError as error:
            raise WorldError(
                f"the directory did not take our record within {self._deadline_seconds:.0f} s; check the network"
            ) from error

    async def find(self, run_id: Digest) -> list[PeerRecord]:
        """See Directory. Silent nodes cost at most the deadline; what is known by then is the answer."""
        if self._closed or run_id != self._book.run_id:
            return []
        await self._visit_nearest(self._key_id)
        return self._book.records()

    def refuse(self, peers: Container[bytes]) -> None:
        """See Directory."""
        self._book.refuse(peers)
        self._node.protocol.refused = peers

    def keep(self, contacts: Callable[[], Iterable[bytes]]) -> None:
        """See Directory."""
        self._book.keep(contacts)

    async def close(self) -> None:
        """See Directory. The P2P stays open. End calls of `find`, `join` and `announce` first."""
        if not self._closed:
            self._closed = True
            self._node.is_alive = False
            await self._node.protocol.close()

    async def _visit_nearest(self, target: DHTID) -> None:
        self._node.protocol.forget_refused()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._node.find_nearest_nodes([target], exclude_self=True)
        except TimeoutError:
            logger.debug("a search in the directory ran into its deadline")

    async def _introduce(self, address: str) -> bool:
        """Connect and exchange node ids; whether the peer answered."""
        try:
            peer_id, route = parse_address(address)
            if peer_id.to_bytes() in self._node.protocol.refused:
                return False
            await self._node.p2p._client.connect(peer_id, [route])  # P2P offers no public way to dial an address
        except (MisuseError, P2PDaemonError, OSError, EOFError) as error:
            logger.debug("%s cannot be reached: %r", address, error)
            return False
        node_id = await self._node.protocol.call_ping(peer_id)
        if node_id is None or node_id != node_id_of(peer_id):
            return False
        await self._node.protocol.update_routing_table(node_id, peer_id, responded=True)
        return True


def parse_address(text: str) -> tuple[PeerID, Multiaddr]:
    """The peer at the end of a multiaddress, and the way to it. Raises MisuseError."""
    route, _, peer = text.rpartition("/p2p/")
    try:
        return PeerID(peer_from_text(peer)), Multiaddr(route)
    except (ValueError, LookupError, Refusal) as error:
        raise MisuseError(f"{text!r} is not a multiaddress that ends in /p2p/<Ed25519 peer id>") from error
