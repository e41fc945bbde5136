"""A newcomer learns the certified past from whoever has it, however many strangers say that there is none."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crowdsurf.dht.memory import MemoryDirectory
from crowdsurf.peer import first_contact as first_contact_module
from crowdsurf.peer.clock import SystemClock
from crowdsurf.peer.first_contact import CHAIN_ASKED_AT_ONCE_MAX, CHAIN_ASKED_MEMBERS_MAX, FirstContact, draw
from crowdsurf.peer.keys import verify
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.errors import Refusal, Unreachable, WorldError
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.node import Node
from tests.peer.shell import ELEMENTS, FakeCompute, Swarm, key_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")

STRANGERS = sorted(key_of(number).peer_id for number in range(100, 140))
HONEST = STRANGERS[-1]
"""The one that sorts last; all others say that there is nothing to know."""


@dataclass
class Answer:
    """What the test lets a peer hand over; see `first_contact.Reader`."""

    certificates: deque[Certificate]
    may_be_more: bool = False
    gate: asyncio.Event | None = None
    """Nothing comes before this."""
    end: asyncio.Event | None = None
    """The end does not come before this."""

    async def next(self) -> Certificate | None:
        if self.gate is not None:
            await self.gate.wait()
        if self.end is not None and not self.certificates:
            await self.end.wait()
        return self.certificates.popleft() if self.certificates else None


class Newcomer:
    """One that looks for the swarm among strangers; what they answer is said here."""

    def __init__(self, swarm: Swarm) -> None:
        self.node = Node(swarm.manifest, key_of(99), verify, ELEMENTS)
        self.known: list[PeerId] = []
        self.past: tuple[Certificate, ...] = ()
        self.per_answer = 64
        self.mute: set[PeerId] = set()
        self.gates: dict[PeerId, asyncio.Event] = {}
        self.ends: dict[PeerId, asyncio.Event] = {}
        self.others: dict[PeerId, Callable[[int], Sequence[Certificate]]] = {HONEST: lambda step: self.past[step:]}
        """What they have from a step on; everybody else says that there is nothing."""
        self.asked: list[PeerId] = []
        self.answers: dict[PeerId, Answer] = {}
        self.kept: list[int] = []
        self.refused: list[PeerId] = []
        self.contact = FirstContact(
            self.node,
            lambda: self.known,
            self.read,
            self.take,
            lambda peer, refusal: self.refused.append(peer),
            SystemClock(),
            random.Random(7).randbytes,
        )

    def knows(self, *peers: PeerId) -> None:
        self.known += peers

    async def sync(self, patience_seconds: float = 30.0) -> None:
        await soon(self.contact.run(patience_seconds))

    @contextlib.asynccontextmanager
    async def read(self, peer: PeerId, first_step: int) -> AsyncIterator[Answer]:
        self.asked.append(peer)
        if peer in self.mute:
            raise WorldError("it does not answer")
        found = self.others.get(peer, lambda step: ())(first_step)
        page = deque(found[: self.per_answer])
        answer = Answer(page, len(page) == self.per_answer, self.gates.get(peer), self.ends.get(peer))
        self.answers[peer] = answer
        yield answer

    async def take(self, peer: PeerId, certificate: Certificate) -> Refusal | None:
        wanted = self.node.handle(events.ChainReceived(peer, (certificate,)), 0.0)
        refused = (effect for effect in wanted if isinstance(effect, effects.Refused))
        refusal = next((Refusal(effect.code, effect.detail) for effect in refused), None)
        self.kept += [certificate.header.step] if refusal is None else []
        return refusal


@pytest.fixture
async def newcomer(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Newcomer]:
    """One whose founder has gone after eight steps."""
    monkeypatch.setattr(first_contact_module, "BETWEEN_ROUNDS_SECONDS", 0.0)
    async with Swarm(tmp_path, 1) as swarm:
        swarm.start()
        await swarm.end()
        newcomer = Newcomer(swarm)
        newcomer.past = tuple(swarm.peers[0].certificates())
        newcomer.knows(swarm.peers[0].key.peer_id)
        newcomer.mute.add(swarm.peers[0].key.peer_id)
        yield newcomer


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


async def test_whoever_heard_something_goes_on_when_the_time_is_over(newcomer: Newcomer) -> None:
    newcomer.knows(*STRANGERS[:-1])
    await newcomer.sync(0.0)
    assert len(newcomer.asked) == CHAIN_ASKED_AT_ONCE_MAX
    newcomer.mute.update(STRANGERS)
    with pytest.raises(Unreachable, match="nobody of this swarm answers"):
        await newcomer.sync(0.0)


@pytest.mark.parametrize("seed", range(4))
async def test_an_old_beginning_of_the_chain_is_not_taken_for_all_of_it(newcomer: Newcomer, seed: int) -> None:
    newcomer.contact._chance = random.Random(seed).randbytes
    newcomer.knows(*STRANGERS)
    for stranger in STRANGERS[:-1]:
        newcomer.others[stranger] = lambda step: newcomer.past[step:1]
    await newcomer.sync()
    assert newcomer.node.chain.head.step == 8


async def test_a_member_that_has_no_more_is_believed(newcomer: Newcomer) -> None:
    """The only one there is, so an honest one; nobody else need be asked."""
    newcomer.mute.clear()
    founder = newcomer.known[0]
    newcomer.others[founder] = lambda step: newcomer.past[step:]
    newcomer.mute.update(STRANGERS)
    newcomer.knows(*STRANGERS)
    assert await newcomer.contact.round()
    assert newcomer.node.chain.head.step == 8
    assert len(set(newcomer.asked)) == CHAIN_ASKED_AT_ONCE_MAX


async def test_a_swarm_that_goes_on_meanwhile_is_asked_once(newcomer: Newcomer) -> None:
    """What a member has said stays true when another one knows of the next step, which came after it."""
    newcomer.mute.clear()
    founder = newcomer.known[0]
    newcomer.others[founder] = lambda step: newcomer.past[step:7]
    newcomer.gates[HONEST] = asyncio.Event()
    newcomer.knows(HONEST)
    asking = asyncio.create_task(newcomer.contact.round())
    await until(lambda: newcomer.node.chain.head.step == 7)
    newcomer.knows(*STRANGERS)
    newcomer.gates[HONEST].set()
    assert await soon(asking)
    assert newcomer.node.chain.head.step == 8


async def test_those_who_were_asked_in_vain_are_asked_again(newcomer: Newcomer) -> None:
    """They may just be starting."""
    newcomer.mute.update(STRANGERS)
    newcomer.knows(*STRANGERS)
    for _ in range(3):
        assert not await newcomer.contact.round()
    assert len(set(newcomer.asked)) == len(newcomer.asked) == len(STRANGERS) + 1
    newcomer.mute.clear()
    await newcomer.sync()
    assert newcomer.node.chain.head.step == 8


async def test_a_slow_stranger_does_not_set_the_pace(newcomer: Newcomer) -> None:
    """It hands over the true chain, so there is nothing to refuse; it is waited for once all others were heard."""
    slow = STRANGERS[0]
    newcomer.knows(HONEST, slow)
    newcomer.per_answer = 2
    newcomer.others[slow] = newcomer.others[HONEST]
    newcomer.gates[slow] = asyncio.Event()
    syncing = asyncio.ensure_future(newcomer.sync())
    await until(lambda: newcomer.asked.count(HONEST) == 5)
    assert newcomer.node.chain.head.step == 8
    assert newcomer.asked.count(slow) == 1
    assert not syncing.done()
    newcomer.gates[slow].set()
    await soon(syncing)
    assert newcomer.asked.count(slow) == 2  # it says that it has more, and is heard from where the chain ends by now
    assert newcomer.kept == list(range(8))


async def test_the_slow_one_is_heard_before_it_is_believed_that_the_chain_ends(newcomer: Newcomer) -> None:
    newcomer.knows(HONEST, *STRANGERS[:3])
    for number, stranger in enumerate(STRANGERS[:3]):
        newcomer.others[stranger] = lambda step, end=2 * number: newcomer.past[step:end]  # type: ignore[misc]
    newcomer.gates[HONEST] = asyncio.Event()
    syncing = asyncio.ensure_future(newcomer.sync())
    await until(lambda: newcomer.node.chain.head.step == 4)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not syncing.done()
    newcomer.gates[HONEST].set()
    await soon(syncing)
    assert newcomer.node.chain.head.step == 8


def forged(certificate: Certificate) -> Certificate:
    return msgspec.structs.replace(certificate, votes=((0, 0, bytes(64)),))


async def test_an_answer_is_read_to_its_first_bad_certificate_and_its_author_not_asked_again(
    newcomer: Newcomer,
) -> None:
    liars = STRANGERS[:3]
    newcomer.knows(*liars)
    for liar in liars:
        newcomer.others[liar] = lambda step: [*newcomer.past[:2], *map(forged, newcomer.past[2:])][step:]
    newcomer.others[HONEST] = lambda step: ()
    for _ in range(4):  # two certificates were good, and nobody has said that there are no more
        assert not await newcomer.contact.round()
    assert sorted(newcomer.refused) == sorted(liars)
    assert [newcomer.asked.count(liar) for liar in liars] == [1, 1, 1]
    assert [len(newcomer.answers[liar].certificates) for liar in liars] == [5, 5, 5]
    assert newcomer.kept == [0, 1]
    newcomer.others[HONEST] = lambda step: newcomer.past[step:]
    newcomer.knows(HONEST)
    await newcomer.sync()
    assert newcomer.kept == list(range(8))


@pytest.mark.parametrize("beginning", [-1, 1])
async def test_another_step_than_the_one_asked_for_is_refused(newcomer: Newcomer, beginning: int) -> None:
    """What is known already is not checked: an answer of it could go on for ever."""
    liar = STRANGERS[0]
    newcomer.knows(HONEST)
    await newcomer.contact.round()
    newcomer.others[liar] = lambda step: newcomer.past[step + beginning :] or newcomer.past
    newcomer.knows(liar)
    newcomer.per_answer = 1
    await newcomer.contact.round()
    assert newcomer.refused == [liar]


async def test_nothing_is_kept_after_a_certificate_that_could_not_be(newcomer: Newcomer) -> None:
    """Else the journal would have a gap, and its peer could never start again."""
    other, take = STRANGERS[0], newcomer.contact._take
    newcomer.knows(HONEST, other)
    newcomer.others[other] = newcomer.others[HONEST]
    newcomer.per_answer = 3
    newcomer.ends[other] = asyncio.Event()

    async def full(peer: PeerId, certificate: Certificate) -> Refusal | None:
        refusal = await take(peer, certificate)
        if certificate.header.step == 3:
            newcomer.ends[other].set()  # it goes on from step 4
            await until(lambda: newcomer.asked.count(other) == 2)
            raise WorldError("the disk is full")
        return refusal

    newcomer.contact._take = full
    with pytest.raises(WorldError, match="the disk is full"):
        await newcomer.sync()
    assert newcomer.kept == [0, 1, 2, 3]


async def test_others_have_their_turn_between_two_certificates(newcomer: Newcomer) -> None:
    turns: list[int] = []

    async def other_work() -> None:
        while True:
            turns.append(len(newcomer.kept))
            await asyncio.sleep(0)

    newcomer.knows(HONEST)
    working = asyncio.create_task(other_work())
    await newcomer.sync()
    working.cancel()
    assert set(turns) >= set(range(8))


@pytest.mark.slow
async def test_our_own_disk_is_not_mistaken_for_a_slow_peer(
    newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything broken off between the rules and the journal."""
    monkeypatch.setattr(first_contact_module, "CHAIN_ANSWER_SECONDS_MAX", 1.0)
    take = newcomer.contact._take

    async def slow_disk(peer: PeerId, certificate: Certificate) -> Refusal | None:
        taken = await take(peer, certificate)
        if certificate.header.step == 2:
            written = asyncio.Event()
            asyncio.get_running_loop().call_later(1.2, written.set)
            await written.wait()
        return taken

    newcomer.contact._take = slow_disk
    newcomer.knows(HONEST)
    await newcomer.sync()
    assert newcomer.kept == list(range(8))
    assert newcomer.asked.count(HONEST) == 1


def test_members_are_asked_first_and_strangers_too() -> None:
    members = [key_of(number).peer_id for number in range(200, 220)]
    chance = random.Random(3).randbytes
    rounds = [draw([*members, *STRANGERS], set(members), chance) for _ in range(40)]
    assert all(len(set(drawn)) == len(drawn) == CHAIN_ASKED_AT_ONCE_MAX for drawn in rounds)
    assert all(set(drawn[:CHAIN_ASKED_MEMBERS_MAX]) <= set(members) for drawn in rounds)
    assert {peer for drawn in rounds for peer in drawn} == {*members, *STRANGERS}
    assert sorted(draw(members[:2], set(members), chance)) == sorted(members[:2])


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
