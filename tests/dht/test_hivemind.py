"""The DHT over real p2pd processes on loopback keeps every promise of the suite, also when its nodes lie."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_asyncio

from crowdsurf.dht.base import Directory
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.keys import PeerKey, random_bytes, verify
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import peer_text
from tests.dht.conformance import OTHER_RUN, RUN, DirectoryConformance, Swarm, record_of

pytestmark = [pytest.mark.network]

hivemind_p2p = pytest.importorskip("hivemind.p2p")

from hivemind.dht.routing import DHTID  # noqa: E402  (an import of several seconds: after the check above)
from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.p2p import P2P  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402
from hivemind.utils import MSGPackSerializer  # noqa: E402
from hivemind.utils.timed_storage import ValueWithExpiration  # noqa: E402

from crowdsurf.dht.hivemind import HivemindDirectory, parse_address  # noqa: E402
from crowdsurf.dht.hivemind_guard import KEYS_PER_REQUEST_MAX, BoundedSerializer, node_id_of  # noqa: E402

PEERS = 4


def dictionary_of(*items: tuple[bytes, bytes, float]) -> DictionaryDHTValue:
    """hivemind's dictionary value of (name, record, expiry)."""
    dictionary = DictionaryDHTValue()
    dictionary.frozen = True
    for name, data, expires_at in items:
        dictionary.store(name, MSGPackSerializer.dumps(data), expires_at)
    return dictionary


async def start_p2p(folder: Path) -> P2P:
    """A p2pd process of its own, with an Ed25519 key."""
    key_path = folder / "identity.key"
    PeerKey.load_or_create(key_path)
    return await P2P.create(
        identity_path=str(key_path),
        check_if_identity_free=False,
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
    )


class HivemindSwarm(Swarm):
    """Nodes in a line: each knows only the one before it. The last one serves as the stranger that lies."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.p2ps: list[P2P] = []
        self.nodes: list[HivemindDirectory] = []
        self.directories = []

    async def add(self, p2p: P2P) -> None:
        """Open one more directory."""
        bootstrap = self.addresses(-1)[:1] if self.p2ps else []
        now = self.clock.wall_seconds
        node = await HivemindDirectory.open(p2p, RUN, bootstrap, verify=verify, now=now, chance=random_bytes)
        self.p2ps.append(p2p)
        self.nodes.append(node)
        self.directories = list(self.nodes[: PEERS - 1])

    def addresses(self, index: int) -> list[str]:
        """Where a node listens."""
        return [f"{address}/p2p/{self.p2ps[index].peer_id.to_base58()}" for address in self.p2ps[index]._visible_maddrs]

    @property
    def liar(self) -> Any:
        """The protocol object of the last node, for requests that our own code would never send."""
        return self.nodes[-1]._node.protocol

    async def push(self, directory: Directory, name: bytes, data: bytes) -> bool:
        """A store request for one record; the expiry beside it is a lie."""
        return await self.store(directory, MSGPackSerializer.dumps(name), MSGPackSerializer.dumps(data))

    async def store(self, directory: Directory, tag: bytes, value: bytes, key: DHTID | None = None) -> bool:
        """A raw store request. False also if it was answered with an error."""
        index = self.nodes.index(directory)  # type: ignore[arg-type]
        request = dht_pb2.StoreRequest(
            keys=[(key or self.nodes[0]._key_id).to_bytes()],
            subkeys=[tag],
            values=[value],
            expiration_time=[1e300],
            in_cache=[False],
            peer=self.liar.node_info,
        )
        try:
            response = await self.liar.get_stub(self.p2ps[index].peer_id).rpc_store(request, timeout=10)
        except hivemind_p2p.P2PHandlerError:
            return False
        return bool(response.store_ok[0])

    async def close(self) -> None:
        """Close every directory; the p2pd processes stay."""
        for node in self.nodes:
            await node.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def p2ps(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[P2P]]:
    """p2pd processes that all tests of this module share; their directories are new for every test."""
    p2ps = await asyncio.gather(*(start_p2p(tmp_path_factory.mktemp("peer")) for _ in range(PEERS)))
    yield p2ps
    for p2p in p2ps:
        await p2p.shutdown()


@pytest_asyncio.fixture(loop_scope="module")
async def swarm(p2ps: list[P2P]) -> AsyncIterator[HivemindSwarm]:
    """See HivemindSwarm."""
    swarm = HivemindSwarm()
    try:
        for p2p in p2ps:
            await swarm.add(p2p)
        yield swarm
    finally:
        await swarm.close()


class LyingStorage:
    """What a liar answers to every find."""

    def __init__(self, key: DHTID, value: Any, expires_at: float) -> None:
        self.key, self.value = key, ValueWithExpiration(value, expires_at)

    def get(self, key: DHTID) -> Any:
        """The lie."""
        return self.value if key == self.key else None

    def items(self) -> Iterator[Any]:
        """Nothing to hand on."""
        return iter(())

    def store(self, *arguments: Any, **options: Any) -> bool:
        """Claims to keep everything."""
        return True

    store_subkey = store


class CountingStorage(LyingStorage):
    """Has nothing, and counts who asks."""

    def __init__(self, key: DHTID) -> None:
        super().__init__(key, None, 0.0)
        self.questions = 0

    def get(self, key: DHTID) -> Any:
        """Nothing."""
        self.questions += 1
        return None


@pytest.mark.asyncio(loop_scope="module")
class TestHivemindDirectory(DirectoryConformance):
    """The suite, and what only a network can do to us."""

    async def test_lying_answers_hide_nothing_and_add_nothing(self, swarm: HivemindSwarm) -> None:
        """Under stock hivemind the first three end a search at once, with the liar's answer as the result."""
        honest, victim = PeerKey.generate(), PeerKey.generate()
        now = swarm.clock.wall_seconds()
        await swarm.directories[0].announce(record_of(honest, now + 60))
        forged = record_of(honest, now + 3000)[:-1] + b"x"
        key = swarm.nodes[0]._key_id
        lies = [
            (dictionary_of(), 1e300),
            (dictionary_of((honest.peer_id, forged, 1e300)), 1e300),
            (MSGPackSerializer.dumps(record_of(victim, now + 60)), 1e300),
            (dictionary_of((victim.peer_id, record_of(victim, now + 60, run_id=OTHER_RUN), now)), float("nan")),
            (dictionary_of((b"x" * 100, b"y" * 100_000, now)), now),
        ]
        for value, expires_at in lies:
            swarm.liar.storage = LyingStorage(key, value, expires_at)
            for directory in swarm.directories:
                assert [record.peer for record in await directory.find(RUN)] == [honest.peer_id]

    async def test_nested_values_do_not_end_the_process(self, swarm: HivemindSwarm) -> None:
        """A tuple in a tuple in a tuple …: hivemind's own decoder overflows the stack from about 240 levels."""
        nested = MSGPackSerializer.dumps(None)
        for _ in range(2000):
            nested = msgpack.packb(msgpack.ExtType(0x40, nested))
        in_dictionary = msgpack.packb(
            msgpack.ExtType(0x50, msgpack.packb([None, 0.0, [[b"x", msgpack.ExtType(0x50, nested), 0.0]]]))
        )
        for value in (nested, in_dictionary, b"\x91" * 100_000):
            with pytest.raises(Refusal):
                BoundedSerializer.loads(value)
            for tag in (b"", nested, MSGPackSerializer.dumps(b"name")):
                assert not await swarm.store(swarm.directories[0], tag, value)
        assert await swarm.directories[0].find(RUN) == []

    async def test_other_keys_and_values_without_a_name_are_refused(self, swarm: HivemindSwarm) -> None:
        key = PeerKey.generate()
        data = record_of(key, swarm.clock.wall_seconds() + 60)
        name, value = MSGPackSerializer.dumps(key.peer_id), MSGPackSerializer.dumps(data)
        assert not await swarm.store(swarm.directories[0], name, value, DHTID.generate("another key"))
        assert not await swarm.store(swarm.directories[0], MSGPackSerializer.dumps(None), value)
        too_many = dictionary_of(*[(b"%d" % number, b"", 1.0) for number in range(limits.DHT_RECORDS_PER_KEY_MAX + 1)])
        assert not await swarm.store(swarm.directories[0], b"", MSGPackSerializer.dumps(too_many))
        assert await swarm.directories[0].find(RUN) == []
        assert await swarm.store(swarm.directories[0], name, value)

    async def test_one_expired_record_does_not_spoil_a_dictionary(self, swarm: HivemindSwarm) -> None:
        one, other = PeerKey(b"1" * 32), PeerKey(b"2" * 32)
        now = swarm.clock.wall_seconds()
        stale, sound = record_of(one, now + 1), record_of(other, now + 60)
        swarm.clock.advance(2)
        value = dictionary_of((one.peer_id, stale, now + 1), (other.peer_id, sound, now + 60))
        await swarm.store(swarm.directories[0], b"", MSGPackSerializer.dumps(value))
        assert [record.peer for record in await swarm.directories[0].find(RUN)] == [other.peer_id]

    async def test_a_node_cannot_choose_its_place_or_ask_for_too_much(self, swarm: HivemindSwarm) -> None:
        victim = swarm.nodes[0]._node.protocol
        stub = swarm.liar.get_stub(swarm.p2ps[0].peer_id)
        chosen = dht_pb2.NodeInfo(node_id=swarm.nodes[0]._key_id.to_bytes())
        keys = [b"\0" * 20] * (KEYS_PER_REQUEST_MAX + 1)
        for request, call in (
            (dht_pb2.PingRequest(peer=chosen), stub.rpc_ping),
            (dht_pb2.FindRequest(peer=chosen), stub.rpc_find),
            (dht_pb2.StoreRequest(peer=chosen), stub.rpc_store),
            (dht_pb2.FindRequest(peer=swarm.liar.node_info, keys=keys), stub.rpc_find),
            (dht_pb2.StoreRequest(peer=swarm.liar.node_info, keys=keys), stub.rpc_store),
        ):
            with pytest.raises(hivemind_p2p.P2PHandlerError, match="Refusal"):
                await call(request, timeout=10)
        assert swarm.nodes[0]._key_id not in victim.routing_table
        assert node_id_of(swarm.p2ps[-1].peer_id) == swarm.liar.node_id

    async def test_records_of_banned_peers_are_not_kept_for_others(self, swarm: HivemindSwarm) -> None:
        banned, honest = PeerKey.generate(), PeerKey.generate()
        expires_at = swarm.clock.wall_seconds() + 60
        for key in (banned, honest):
            assert await swarm.push(swarm.directories[0], key.peer_id, record_of(key, expires_at))
        swarm.directories[0].refuse({banned.peer_id})
        assert not await swarm.push(swarm.directories[0], banned.peer_id, record_of(banned, expires_at + 1))
        # It asks the first one too, which has a place among its neighbours.
        assert [record.peer for record in await swarm.directories[1].find(RUN)] == [honest.peer_id]
        both = dictionary_of(
            (banned.peer_id, record_of(banned, expires_at + 2), 1e300),
            (honest.peer_id, record_of(honest, expires_at + 2), 1e300),
        )
        swarm.liar.storage = LyingStorage(swarm.nodes[0]._key_id, both, 1e300)
        (record,) = await swarm.directories[0].find(RUN)
        assert (record.peer, record.expires_at) == (honest.peer_id, expires_at + 2)

    async def test_a_banned_node_is_not_answered_not_asked_and_not_named(
        self, swarm: HivemindSwarm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await asyncio.gather(*(directory.find(RUN) for directory in swarm.directories))
        asked = CountingStorage(swarm.nodes[0]._key_id)
        swarm.liar.storage = asked
        liar_id, liar_node = swarm.p2ps[-1].peer_id, swarm.liar.node_id
        protocol = swarm.nodes[0]._node.protocol
        assert await protocol.call_ping(liar_id) == liar_node
        await protocol.update_routing_table(liar_node, liar_id)
        assert liar_node in protocol.routing_table
        await swarm.nodes[0].find(RUN)
        assert asked.questions == 1
        swarm.directories[0].refuse({liar_id.to_bytes()})
        await swarm.nodes[0].find(RUN)
        assert liar_node not in protocol.routing_table
        assert protocol._plausible({liar_node: liar_id}) == {}
        protocol.routing_table.add_or_update_node(liar_node, liar_id)  # as if it was banned just now
        stub = swarm.liar.get_stub(swarm.p2ps[0].peer_id)
        me = swarm.liar.node_info
        for request, call in (
            (dht_pb2.PingRequest(peer=me), stub.rpc_ping),
            (dht_pb2.FindRequest(peer=me), stub.rpc_find),
            (dht_pb2.StoreRequest(peer=me), stub.rpc_store),
            (dht_pb2.PingRequest(), stub.rpc_ping),
        ):
            with pytest.raises(hivemind_p2p.P2PHandlerError, match="banned"):
                await call(request, timeout=10)
        key = swarm.nodes[0]._key_id
        found = await swarm.nodes[1]._node.protocol.call_find(swarm.p2ps[0].peer_id, [key])
        assert found is not None
        assert liar_node not in found[key][1]
        assert await protocol.call_ping(liar_id) is None
        assert await protocol.call_find(liar_id, [key]) is None
        assert await protocol.call_store(liar_id, [key], [b""], 1.0) is None
        dialled: list[Any] = []
        monkeypatch.setattr(swarm.p2ps[0]._client, "connect", lambda *route: dialled.append(route))
        assert await swarm.nodes[0].join(swarm.addresses(-1)) == 0
        assert dialled == []
        await protocol.update_routing_table(liar_node, liar_id)
        assert liar_node not in protocol.routing_table
        assert asked.questions == 1

    async def test_records_outlive_their_announcer_and_a_dead_neighbour(
        self, swarm: HivemindSwarm, tmp_path: Path
    ) -> None:
        key = PeerKey.generate()
        p2p = await start_p2p(tmp_path)
        await swarm.add(p2p)
        await swarm.nodes[-1].announce(record_of(key, swarm.clock.wall_seconds() + 60))
        # Its process first: the directory must end without an answer from it.
        await p2p.shutdown()
        await swarm.nodes[-1].close()
        for directory in swarm.directories:
            assert [record.peer for record in await directory.find(RUN)] == [key.peer_id]

    async def test_close_leaves_no_task_and_keeps_the_transport(self, swarm: HivemindSwarm) -> None:
        await asyncio.gather(*(directory.find(RUN) for directory in swarm.directories))
        for node in swarm.nodes:
            await node.close()
            assert node._node.protocol._tasks == set()
        assert all(p2p.is_alive for p2p in swarm.p2ps)

    async def test_unreachable_bootstrap_is_one_plain_sentence(self, swarm: HivemindSwarm) -> None:
        await swarm.nodes[0].close()
        nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_text(PeerKey.generate().peer_id)}"
        options: dict[str, Any] = {"verify": verify, "now": swarm.clock.wall_seconds, "chance": random_bytes}
        with pytest.raises(WorldError, match="none of the 1 bootstrap addresses answers"):
            await HivemindDirectory.open(swarm.p2ps[0], RUN, [nobody], **options)
        with pytest.raises(MisuseError, match="not a multiaddress"):
            await HivemindDirectory.open(swarm.p2ps[0], RUN, ["/ip4/127.0.0.1/tcp/9"], **options)
        # The name is free again, and one address that answers is enough.
        again = await HivemindDirectory.open(swarm.p2ps[0], RUN, [nobody, *swarm.addresses(1)], **options)
        assert await again.join(["nonsense", "/p2p/x", nobody]) == 0
        await again.close()


@pytest.mark.parametrize(
    "text", ["", "/p2p/", "/ip4/1.2.3.4/tcp/x/p2p/12D3KooW", "/nonsense/1/p2p/" + "1" * 52, "/ip4/1/tcp/1"]
)
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(MisuseError, match="not a multiaddress"):
        parse_address(text)


def test_quiet_and_alive_under_uvloop(tmp_path: Path) -> None:
    """Two nodes in a fresh process, on uvloop: they find each other, end in order, and print nothing."""
    program = f"""
        import asyncio, logging, uvloop
        from pathlib import Path
        from tests.dht.test_hivemind import RUN, HivemindSwarm, record_of, start_p2p
        from crowdsurf.peer.keys import PeerKey
        logging.basicConfig(level=logging.WARNING)

        async def main():
            p2ps = [await start_p2p(Path({str(tmp_path)!r}) / name) for name in "ab"]
            swarm = HivemindSwarm()
            for p2p in p2ps:
                await swarm.add(p2p)
            await swarm.nodes[1].announce(record_of(PeerKey.generate(), swarm.clock.wall_seconds() + 60))
            print(len(await swarm.nodes[0].find(RUN)))
            await swarm.close()
            for p2p in p2ps:
                await p2p.shutdown()

        uvloop.run(main())
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=root, timeout=100
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
