"""The guard in front of hivemind's DHT node: every request and answer is bounded before hivemind reads it.

The idea: hivemind gives us the routing table, the traversal and the RPCs. What it lacks is suspicion: it stores
any record of any size until any expiry, decodes nested values by recursion (some 900 bytes end the process with
a segmentation fault), lets a node choose its own place in the table, and ends a search at the first answer that
claims to expire last. So a subclass of its protocol checks what comes in, records live in our own RecordBook
instead of hivemind's storage, node ids are derived from peer ids, and a search takes what is valid from every
node that it visits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container, Coroutine, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgpack
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from crowdsurf.dht.book import BOOK_BYTES_MAX, RecordBook
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import Code, Refusal, Severity
from crowdsurf.protocol.ids import PEER_ID_BYTES

T = TypeVar("T")
Found = dict[Any, tuple[Any, dict[Any, Any]]]
"""hivemind's answer to a find: key -> (value or None, {node id: peer id})."""

logger = logging.getLogger(__name__)

NEAREST_NODES = 20
"""Nodes a search visits, and neighbours believed from one answer (Kademlia's k)."""
KEYS_PER_REQUEST_MAX = 16
"""We ask for one key; a stranger's request for many thousands would be answered with megabytes."""
RPC_SECONDS = 3.0
"""A node that does not answer for so long is silent."""

_DICTIONARY_EXTENSION = 0x50
_MSGPACK_OVERHEAD_BYTES = 16
_RECORD_OVERHEAD_BYTES = 128


class BoundedSerializer(MSGPackSerializer):  # type: ignore[misc]
    """hivemind's value encoding, read with bounds: plain values and one level of dictionary, nothing nested."""

    @classmethod
    def loads(cls, buf: bytes) -> object:
        """Raises Refusal(MALFORMED or OVERSIZED)."""
        bytes_max = BOOK_BYTES_MAX + limits.DHT_RECORDS_PER_KEY_MAX * _RECORD_OVERHEAD_BYTES
        if len(buf) > bytes_max:
            raise Refusal(Code.OVERSIZED, f"{len(buf)} bytes where at most {bytes_max} are allowed")
        return _unpack(buf, ext_hook=_load_dictionary)


def _unpack(data: bytes, **options: Any) -> Any:
    size = len(data)
    bounds = {"max_array_len": size, "max_map_len": size, "max_str_len": size, "max_bin_len": size}
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, **{"max_ext_len": size, **bounds, **options})
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Refusal(Code.MALFORMED, "not a value of this directory") from error


def _load_dictionary(extension: int, data: bytes) -> DictionaryDHTValue:
    """Parse {peer: (record, expiry)}. Extensions inside it are refused, so this never calls itself."""
    fields = _unpack(data, max_ext_len=0) if extension == _DICTIONARY_EXTENSION else None
    if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[2], list):
        raise Refusal(Code.MALFORMED, "not a dictionary of records")
    if len(fields[2]) > limits.DHT_RECORDS_PER_KEY_MAX:
        raise Refusal(Code.OVERSIZED, f"{len(fields[2])} records where {limits.DHT_RECORDS_PER_KEY_MAX} are allowed")
    dictionary = _frozen_dictionary()
    for item in fields[2]:
        if not isinstance(item, list) or [type(field) for field in item] != [bytes, bytes, float]:
            raise Refusal(Code.MALFORMED, "not a peer, its record and an expiry")
        dictionary.store(*item)
    return dictionary


def _frozen_dictionary() -> DictionaryDHTValue:
    """A dictionary that drops nothing by hivemind's clock: what has expired is for our book to say."""
    dictionary = DictionaryDHTValue()
    dictionary.frozen = True
    return dictionary


def node_id_of(peer_id: PeerID) -> DHTID:
    """A peer's place in the table: nobody chooses it freely, and one peer has only one."""
    return DHTID.generate(source=peer_id.to_bytes())


class RecordValidator(RecordValidatorBase):  # type: ignore[misc]
    """Lets a record pass if our book took it or has it. hivemind asks before it stores or uses any record."""

    def __init__(self, key_id: DHTID, book: RecordBook) -> None:
        self._key = key_id.to_bytes()
        self._book = book

    def validate(self, record: DHTRecord) -> bool:
        """False for other keys than our run's, and for what `admit` refuses."""
        try:
            self.admit(record)
        except Refusal as refusal:
            logger.debug("a directory record was refused: %s", refusal)
            return False
        return True

    def admit(self, record: DHTRecord) -> None:
        """Put the record into the book. Raises Refusal. Only the signed expiry counts, not the one beside it."""
        if record.key != self._key:
            raise Refusal(Code.WRONG_RUN, "the record is under a key that is not ours")
        if len(record.subkey) > PEER_ID_BYTES + _MSGPACK_OVERHEAD_BYTES:
            raise Refusal(Code.OVERSIZED, "the record's name is too long")
        if len(record.value) > limits.DHT_RECORD_BYTES_MAX + _MSGPACK_OVERHEAD_BYTES:
            raise Refusal(Code.OVERSIZED, f"the record has {len(record.value)} bytes")
        peer, data = _unpack(record.subkey, max_ext_len=0), _unpack(record.value, max_ext_len=0)
        if not isinstance(peer, bytes) or not isinstance(data, bytes):
            raise Refusal(Code.MALFORMED, "the record and its name must be bytes")
        self._book.offer(data, peer)


class BookStorage:
    """The part of hivemind's storage that a DHTNode uses, over our record book, for our one key.

    The validator has put a record into the book before hivemind stores it; storing only says whether it is there.
    """

    def __init__(self, key_id: DHTID, book: RecordBook) -> None:
        self._key_id = key_id
        self._book = book

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        """Whether the record is held."""
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """Whether the record is held."""
        if key != self._key_id or not isinstance(subkey, bytes):
            return False
        return self._book.holds(_unpack(value, max_ext_len=0), subkey)

    def get(self, key: DHTID) -> ValueWithExpiration | None:
        """All records as hivemind's dictionary value."""
        return dict(self.items()).get(key)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        """The one key, if there are records."""
        entries = self._book.entries()
        if not entries:
            return
        dictionary = _frozen_dictionary()
        for record, data in entries:
            dictionary.store(record.peer, MSGPackSerializer.dumps(data), record.expires_at)
        yield self._key_id, ValueWithExpiration(dictionary, dictionary.latest_expiration_time)


class NoCache(BookStorage):
    """hivemind's cache, which we have no use for: what a stranger wants cached is in the book or refused."""

    def get(self, key: DHTID) -> None:
        """Nothing."""
        return None


class CrowdsurfDirectory(DHTProtocol):  # type: ignore[misc]
    """hivemind's RPCs with bounds. The name is on the wire: plain hivemind swarms do not answer to it."""

    serializer = BoundedSerializer
    # hivemind fills these on first use and would otherwise inherit a plain DHTProtocol's.
    _rpc_handlers = None
    _stub_type = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.refused: Container[bytes] = frozenset()
        """Peers that are not answered, not asked, not named to others, and have no place in the table."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        """A node introduces itself. Raises Refusal if it is banned or its node id is not its own."""
        self._check_sender(request.peer, context.remote_id)
        return await self._owned(super().rpc_ping(request, context))

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """A node gives us records. Raises Refusal."""
        self._check_sender(request.peer, context.remote_id)
        lengths = {len(request.subkeys), len(request.values), len(request.expiration_time), len(request.in_cache)}
        if len(request.keys) > KEYS_PER_REQUEST_MAX or lengths != {len(request.keys)}:
            raise Refusal(Code.MALFORMED, f"a store request for {len(request.keys)} keys")
        return await self._owned(super().rpc_store(request, context))

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """A node asks for records and neighbours. Raises Refusal."""
        self.forget_refused()
        self._check_sender(request.peer, context.remote_id)
        if len(request.keys) > KEYS_PER_REQUEST_MAX:
            raise Refusal(Code.MALFORMED, f"a find request for {len(request.keys)} keys")
        return await self._owned(super().rpc_find(request, context))

    async def call_ping(self, peer: PeerID, validate: bool = False, strict: bool = True) -> DHTID | None:
        """Introduce ourselves; the node's id, or None if it does not answer."""
        if self._refuses(peer):
            return None
        try:
            return await self._owned(super().call_ping(peer, validate, strict))
        except AssertionError:  # hivemind's own check of the length of the node id in the answer
            return None

    async def call_store(self, peer: PeerID, *arguments: Any, **options: Any) -> list[bool] | None:
        """Give a node records; which of them it took, or None if it does not answer."""
        if self._refuses(peer):
            return None
        return await self._owned(super().call_store(peer, *arguments, **options))

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> Found | None:
        """Ask a node. Its valid records are in our book when this returns; only its neighbours are handed on."""
        found = None if self._refuses(peer) else await self._owned(super().call_find(peer, keys))
        if found is None:
            return None
        return {key: (None, self._plausible(neighbours)) for key, (_, neighbours) in found.items()}

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Note that a peer was there or was not. A node id that is not the peer's own is ignored; a banned peer is
        never there."""
        if node_id is None or node_id == node_id_of(peer_id):
            is_there = responded and not self._refuses(peer_id)
            await self._owned(super().update_routing_table(node_id, peer_id, is_there))

    def forget_refused(self) -> None:
        """Take whoever was banned since out of the table."""
        for peer_id, node_id in list(self.routing_table.peer_id_to_uid.items()):
            if self._refuses(peer_id):
                del self.routing_table[node_id]

    async def close(self) -> None:
        """Stop answering and end every task that hivemind left behind."""
        self._closing = True
        try:
            # A p2pd that is gone never answers.
            async with asyncio.timeout(RPC_SECONDS):
                await self.shutdown()
        except (TimeoutError, OSError, P2PDaemonError) as error:
            logger.debug("the directory's handlers could not be removed: %r", error)
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Take every valid record. One that has expired on the way does not spoil the others; one that no honest
        node would hold ends it, so a liar costs us one signature check and not a thousand."""
        for peer, (value, expiration_time) in dictionary.items():
            record = DHTRecord(key_bytes, MSGPackSerializer.dumps(peer), value, expiration_time)
            try:
                self.record_validator.admit(record)
            except Refusal as refusal:
                if refusal.severity is Severity.REJECT:
                    logger.debug("a directory answer was refused: %s", refusal)
                    return False
        return True

    def _plausible(self, neighbours: dict[DHTID, PeerID]) -> dict[DHTID, PeerID]:
        own = ((node, peer) for node, peer in neighbours.items() if node == node_id_of(peer) and node != self.node_id)
        return dict(islice(((node, peer) for node, peer in own if not self._refuses(peer)), NEAREST_NODES))

    def _refuses(self, peer: PeerID) -> bool:
        return peer.to_bytes() in self.refused

    def _check_sender(self, node: dht_pb2.NodeInfo, sender: PeerID) -> None:
        """Raise Refusal for a banned sender, or a node id that is neither its own nor empty (a client's)."""
        if self._refuses(sender):
            raise Refusal(Code.BANNED, "the node is banned")
        if node.node_id and node.node_id != node_id_of(sender).to_bytes():
            raise Refusal(Code.MALFORMED, "the node id does not belong to the sender")

    async def _owned(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` so that `close` ends it: hivemind starts tasks and forgets them."""
        if self._closing:
            work.close()
            raise asyncio.CancelledError
        task = asyncio.current_task()
        added = task is not None and task not in self._tasks
        if task is not None:
            self._tasks.add(task)
        try:
            return await work
        finally:
            if added and task is not None:
                self._tasks.discard(task)
