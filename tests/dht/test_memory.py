"""The in-process directory keeps every promise of the suite."""

from __future__ import annotations

import pytest

from crowdsurf.dht.base import Directory
from crowdsurf.dht.memory import MemoryDirectoryNetwork
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.keys import PeerKey, random_bytes, verify
from crowdsurf.protocol.errors import Refusal
from tests.dht.conformance import OTHER_RUN, RUN, DirectoryConformance, Swarm, record_of


class MemorySwarm(Swarm):
    """Three directories over one network."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryDirectoryNetwork(verify, self.clock.wall_seconds, random_bytes)
        self.directories = [self.network.open(RUN) for _ in range(3)]

    async def push(self, directory: Directory, name: bytes, data: bytes) -> bool:
        """Straight into the shared book."""
        try:
            self.network.book(RUN).offer(data, name)
        except Refusal:
            return False
        return True


@pytest.fixture
def swarm() -> MemorySwarm:
    """See MemorySwarm."""
    return MemorySwarm()


@pytest.mark.asyncio
class TestMemoryDirectory(DirectoryConformance):
    """The suite."""

    async def test_runs_do_not_see_each_other(self, swarm: MemorySwarm) -> None:
        other = swarm.network.open(OTHER_RUN)
        key = PeerKey.generate()
        await other.announce(record_of(key, swarm.clock.wall_seconds() + 60, run_id=OTHER_RUN))
        assert await swarm.directories[0].find(RUN) == []
        assert len(await other.find(OTHER_RUN)) == 1
