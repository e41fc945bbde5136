"""t"""

from __future__ import annotations
from pathlib import Path
import pytest
from tests.peer.shell import FakeCompute, Swarm

pytestmark = pytest.mark.usefixtures("tidy")

async def test_four(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 4) as swarm:
        swarm.start()
        outcomes = await swarm.end()
    assert {outcome.certified_steps for outcome in outcomes} == {8}
    assert len({outcome.state_digest for outcome in outcomes}) == 1
    for peer in swarm.founders:
        assert peer.slots_signed_twice() == []
        assert [c.header.step for c in peer.certificates()] == list(range(8))
