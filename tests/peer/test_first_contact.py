"""A newcomer learns the certified past from whoever has it, however many strangers say that there is none."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.dht.memory import MemoryDirectory
from crowdsurf.peer import daemon as daemon_module
from crowdsurf.peer.daemon import CHAIN_ASKED_AT_ONCE_MAX, CHAIN_ASKED_MEMBERS_MAX, Daemon
from crowdsurf.peer.keys import verify
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.errors import Unreachable
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.node import Node
from tests.peer.shell import ELEMENTS, FakeCompute, Swarm, key_of, soon

pytestmark = pytest.mark.usefixtures("tidy")

STRANGERS = sorted(key_of(number).peer_id for number in range(100, 140))
HONEST = STRANGERS[-1]
"""The one that sorts last; all others say that there is nothing to know."""


class Newcomer:
    """A daemon that looks for the swarm among strangers; what they answer is said here."""

    def __init__(self, swarm: Swarm, folder: Path) -> None:
        key = key_of(99)
        self.place = swarm.network.place(swarm.manifest, folder, key)
        self.place.random_bytes = random.Random(7).randbytes
        self.daemon: Any = Daemon(swarm.manifest, self.place)
        self.node = Node(swarm.manifest, key, verify, ELEMENTS)
        self.past: tuple[Certificate, ...] = ()
        self.mute: set[PeerId] = set()
        self.asked: list[PeerId] = []
        self.daemon._ask_for_chain, self.daemon._take_chain = self._ask, self._take

    def knows(self, *peers: PeerId) -> None:
        for peer in peers:
            self.daemon._book.add(peer, ("/memory/somewhere",))

    async def sync(self) -> None:
        await soon(self.daemon._sync_chain(self.node, None))

    async def _ask(self, parts: None, peer: PeerId, first_step: int) -> tuple[PeerId, Any]:
        self.asked.append(peer)
        return peer, None if peer in self.mute else self.past[first_step:] if peer == HONEST else ()

    async def _take(self, node: Node, parts: None, peer: PeerId, certificates: tuple[Certificate, ...]) -> bool:
        wanted = node.handle(events.ChainReceived(peer, certificates), 0.0)
        return not any(isinstance(effect, effects.Refused) for effect in wanted)


@pytest.fixture
async def newcomer(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Newcomer]:
    """One whose founder has gone after eight steps."""
    monkeypatch.setattr(daemon_module, "BETWEEN_ROUNDS_SECONDS", 0.0)
    async with Swarm(tmp_path, 1) as swarm:
        swarm.start()
        await swarm.end()
        newcomer = Newcomer(swarm, tmp_path / "newcomer")
        newcomer.past = tuple(swarm.peers[0].certificates())
        newcomer.knows(swarm.peers[0].key.peer_id)
        newcomer.mute.add(swarm.peers[0].key.peer_id)
        yield newcomer
        await newcomer.place.transport.close()


async def test_strangers_that_know_nothing_do_not_hide_the_one_who_does(newcomer: Newcomer) -> None:
    newcomer.knows(*STRANGERS)
    await newcomer.sync()
    assert newcomer.node.chain.head.step == len(newcomer.past) == 8
    assert len(set(newcomer.asked[: len(STRANGERS)])) >= len(STRANGERS) - CHAIN_ASKED_AT_ONCE_MAX


async def test_nothing_to_know_is_believed_once_everybody_was_asked(newcomer: Newcomer) -> None:
    newcomer.knows(*STRANGERS[:-1])
    await newcomer.sync()
    assert newcomer.node.chain.head.step == 0
    assert sorted(newcomer.asked) == sorted({*STRANGERS[:-1], *newcomer.mute})  # each of them once


async def test_whoever_heard_something_goes_on_when_the_time_is_over(
    newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "FIRST_CONTACT_SECONDS_MAX", 0.0)
    newcomer.knows(*STRANGERS[:-1])
    await newcomer.sync()
    assert len(newcomer.asked) == CHAIN_ASKED_AT_ONCE_MAX
    newcomer.mute.update(STRANGERS)
    with pytest.raises(Unreachable, match="nobody of this swarm answers"):
        await newcomer.sync()


async def test_those_who_were_asked_in_vain_are_asked_again(newcomer: Newcomer) -> None:
    """They may just be starting."""
    newcomer.mute.update(STRANGERS)
    newcomer.knows(*STRANGERS)
    asked: dict[PeerId, bool] = {}
    for _ in range(3):
        assert not await newcomer.daemon._sync_chain_once(newcomer.node, None, asked)
    assert len(set(newcomer.asked)) == len(newcomer.asked) == len(STRANGERS) + 1
    newcomer.mute.clear()
    await newcomer.sync()
    assert newcomer.node.chain.head.step == 8


def test_members_are_asked_first_and_strangers_too() -> None:
    members = [key_of(number).peer_id for number in range(200, 220)]
    chance = random.Random(3).randbytes
    rounds = [daemon_module._draw([*members, *STRANGERS], set(members), chance) for _ in range(40)]
    assert all(len(set(drawn)) == len(drawn) == CHAIN_ASKED_AT_ONCE_MAX for drawn in rounds)
    assert all(set(drawn[:CHAIN_ASKED_MEMBERS_MAX]) <= set(members) for drawn in rounds)
    assert {peer for drawn in rounds for peer in drawn} == {*members, *STRANGERS}
    assert sorted(daemon_module._draw(members[:2], set(members), chance)) == sorted(members[:2])


async def test_the_directory_is_told_who_is_no_stranger(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(MemoryDirectory, "keep", lambda self, contacts: told.append(contacts))
    async with Swarm(tmp_path, 2) as swarm:
        swarm.start()
        await swarm.end()
        everybody = {peer.key.peer_id for peer in swarm.peers}
        assert [{*contacts(), contacts.__self__.me} for contacts in told] == [everybody, everybody]
