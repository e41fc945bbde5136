"""The in-process transport keeps the transport's promises, and its buffers are bounded exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crowdsurf.peer.transport.base import StreamTimeout, Transport
from crowdsurf.peer.transport.frames import deadline
from crowdsurf.peer.transport.memory import PIPE_BYTES_MAX, MemoryNetwork
from crowdsurf.protocol.errors import MisuseError, WorldError
from tests.peer.transport.conformance import PROTOCOL, Pair, TransportConformance, close_all, joined, peer_of


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def pair(network: MemoryNetwork) -> AsyncIterator[Pair]:
    first, second = network.join(peer_of(1)), network.join(peer_of(2))
    yield first, second
    await close_all([first, second])


class TestMemory(TransportConformance):
    @pytest.fixture(autouse=True)
    def _keep(self, network: MemoryNetwork) -> None:
        self.network = network

    async def kill(self, transport: Transport) -> None:
        self.network.kill(transport.peer_id)

    async def test_one_direction_holds_256_kib(self, pair: Pair) -> None:
        near, _far = await joined(pair)
        await near.send(bytes(PIPE_BYTES_MAX))
        with pytest.raises(StreamTimeout):
            async with deadline(0.02, "room"):
                await near.send(b"x")

    async def test_bytes_sent_before_a_close_arrive(self, pair: Pair) -> None:
        near, far = await joined(pair)
        await near.send(b"last words")
        await near.close()
        last = bytearray(10)
        await far.receive_into(memoryview(last))
        assert last == b"last words"

    async def test_a_peer_joins_once(self, network: MemoryNetwork, pair: Pair) -> None:
        with pytest.raises(MisuseError):
            network.join(peer_of(1))

    async def test_a_killed_peer_reaches_nobody(self, network: MemoryNetwork, pair: Pair) -> None:
        network.kill(pair[0].peer_id)
        with pytest.raises(WorldError):
            await pair[0].open(pair[1].peer_id, PROTOCOL, 1.0)
