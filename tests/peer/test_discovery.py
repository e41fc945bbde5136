"""Where peers are: bounded, refreshed, and never in the way when a directory lies or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

import pytest

from crowdsurf.dht.base import Directory
from crowdsurf.dht.records import PeerRecord, check_record
from crowdsurf.peer import discovery as discovery_module
from crowdsurf.peer.bans import Bans
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.discovery import ANNOUNCE_SECONDS, BOOK_PEERS_MAX, AddressBook, Discovery, peer_of_address
from crowdsurf.peer.keys import verify
from crowdsurf.peer.last_known import PEERS_MAX, LastKnownPeers
from crowdsurf.peer.transport.memory import MemoryNetwork
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, peer_id_from_public_key, peer_text
from tests.peer.shell import key_of, soon

pytestmark = pytest.mark.usefixtures("tidy")

RUN = Digest(bytes(32))
ME, OTHER = key_of(0), key_of(1)


def stranger(number: int) -> PeerId:
    return peer_id_from_public_key(number.to_bytes(32, "big"))


def record_of(peer: PeerId, addresses: Sequence[str] = ("/ip4/1.2.3.4/tcp/5",), step: int = 0) -> PeerRecord:
    return PeerRecord(RUN, peer, tuple(addresses), step, 2e9, bytes(64))


class FakeDirectory(Directory):
    """Answers as told, and says when it was asked."""

    def __init__(self) -> None:
        self.records: list[PeerRecord] = []
        self.announced: list[bytes] = []
        self.fails: list[Exception] = []
        self.searched = asyncio.Semaphore(0)

    async def announce(self, record: bytes) -> None:
        if self.fails:
            raise self.fails[-1]
        self.announced.append(record)

    async def find(self, run_id: Digest) -> list[PeerRecord]:
        self.searched.release()
        if self.fails:
            raise self.fails.pop()
        return self.records

    def refuse(self, peers: Container[bytes]) -> None:
        """Nothing."""

    def keep(self, contacts: Callable[[], Iterable[bytes]]) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class Setup:
    """A discovery and everything around it."""

    def __init__(self, folder: Path) -> None:
        self.directory = FakeDirectory()
        self.transport = MemoryNetwork().join(ME.peer_id)
        self.bans = Bans()
        self.book = AddressBook(self.bans)
        self.known = LastKnownPeers.open(folder / "peers")
        self.clock = ManualClock()
        self.discovery = Discovery(self.directory, self.transport, ME, RUN, self.book, self.known, self.clock)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(discovery_module, "SEARCH_SECONDS_MIN", 0.0)
    monkeypatch.setattr(discovery_module, "SEARCH_SECONDS_MAX", 0.0)
    return Setup(tmp_path)


@pytest.mark.parametrize("address", ["", "/ip4/1.2.3.4/tcp/5", "/p2p/" + peer_text(ME.peer_id), "/ip4/1.2.3.4/p2p/Qm!"])
def test_an_address_without_a_peer_is_our_users_mistake(address: str) -> None:
    with pytest.raises(MisuseError, match="address"):
        peer_of_address(address)
    with pytest.raises(MisuseError):
        AddressBook().add_full([address])


def test_addresses_are_grouped_by_peer_and_newer_ones_replace_older_ones() -> None:
    book = AddressBook()
    first, second = (f"/ip4/{host}/tcp/1/p2p/{peer_text(OTHER.peer_id)}" for host in ("1.1.1.1", "2.2.2.2"))
    book.add_full([first, second])
    assert book.of(OTHER.peer_id) == (first, second)
    book.add(OTHER.peer_id, ["/new"])
    assert book.of(OTHER.peer_id) == ("/new",)
    assert book.of(ME.peer_id) == ()
    book.add(OTHER.peer_id, [f"/{number}" for number in range(1000)])
    assert len(book.of(OTHER.peer_id)) == limits.ADDRESSES_PER_PEER_MAX


def test_a_crowd_of_strangers_cannot_push_out_the_contacts() -> None:
    book = AddressBook()
    book.contacts = lambda: (OTHER.peer_id,)
    book.add(OTHER.peer_id, ["/contact"])
    for number in range(2 * BOOK_PEERS_MAX):
        book.add(stranger(number), ["/stranger"])
    assert len(book.peers()) == BOOK_PEERS_MAX
    assert book.of(OTHER.peer_id) == ("/contact",)
    assert book.of(stranger(0)) == ()
    newcomer = key_of(9).peer_id
    book.add(newcomer, ["/newcomer"])
    assert book.of(newcomer) == ("/newcomer",)


def test_a_banned_peer_has_no_address() -> None:
    bans = Bans()
    book = AddressBook(bans)
    book.add(OTHER.peer_id, ["/old"])
    bans.add([OTHER.peer_id])
    assert book.of(OTHER.peer_id) == ()
    assert book.peers() == []
    book.add_full([f"/ip4/1.1.1.1/tcp/1/p2p/{peer_text(OTHER.peer_id)}"])
    assert not book._addresses
    book.add(stranger(1), ["/stranger"])
    assert book.peers() == [stranger(1)]


async def test_a_banned_peer_is_forgotten_and_not_found_again(setup: Setup) -> None:
    setup.directory.records = [record_of(OTHER.peer_id), record_of(stranger(1))]
    await setup.discovery.search()
    assert {known.peer for known in setup.known.peers()} == {OTHER.peer_id, stranger(1)}
    setup.bans.add([OTHER.peer_id])
    await setup.discovery.search()
    assert setup.book.peers() == [stranger(1)]
    assert [known.peer for known in setup.known.peers()] == [stranger(1)]


async def test_a_record_is_signed_and_expires(setup: Setup) -> None:
    setup.discovery.step = lambda: 12
    await setup.discovery.announce()
    record = check_record(setup.directory.announced[0], RUN, setup.clock.wall_seconds(), verify)
    assert (record.peer, record.step) == (ME.peer_id, 12)
    assert record.addresses == tuple(await setup.transport.addresses())


async def test_what_is_found_goes_into_the_book_and_to_disk_but_not_we_ourselves(setup: Setup, tmp_path: Path) -> None:
    setup.directory.records = [record_of(ME.peer_id), record_of(OTHER.peer_id, step=2**40)]
    setup.discovery.step, setup.discovery.members = lambda: 5, {OTHER.peer_id}
    running = asyncio.create_task(setup.discovery.run())
    for _ in range(3):
        await soon(setup.directory.searched.acquire())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert setup.book.peers() == [OTHER.peer_id]
    assert [(known.peer, known.step) for known in LastKnownPeers.open(tmp_path / "peers").peers()] == [
        (OTHER.peer_id, 5)
    ]


async def test_a_crowd_of_strangers_that_claim_a_late_step_is_not_remembered_for_members(setup: Setup) -> None:
    setup.discovery.step, setup.discovery.members = lambda: 5000, {OTHER.peer_id}
    setup.directory.records = [record_of(OTHER.peer_id, step=5000)]
    setup.directory.records += [record_of(stranger(number), step=2**40) for number in range(2 * PEERS_MAX)]
    await setup.discovery.search()
    known = setup.known.peers()
    assert len(known) == PEERS_MAX
    assert [(one.peer, one.step) for one in known[:2]] == [(OTHER.peer_id, 5000), (known[1].peer, 0)]


async def test_the_list_of_known_peers_is_written_only_when_it_changed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(setup.known, "save", lambda: saved.append(len(setup.known.peers())))
    setup.directory.records = [record_of(OTHER.peer_id)]
    running = asyncio.create_task(setup.discovery.run())
    for _ in range(5):
        await soon(setup.directory.searched.acquire())
    setup.directory.records = [record_of(OTHER.peer_id), record_of(stranger(1))]
    for _ in range(5):
        await soon(setup.directory.searched.acquire())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert saved == [1, 2]


@pytest.mark.parametrize("error", [WorldError("nobody answers"), MisuseError("a newer record of this peer is known")])
async def test_a_directory_that_fails_is_asked_again_and_told_again(setup: Setup, error: Exception) -> None:
    setup.directory.fails = [error] * 4
    setup.directory.records = [record_of(OTHER.peer_id)]
    running = asyncio.create_task(setup.discovery.run())
    for _ in range(7):
        await soon(setup.directory.searched.acquire())
    assert not running.done()
    assert setup.book.peers() == [OTHER.peer_id]
    assert len(setup.directory.announced) == 1
    setup.clock.advance(ANNOUNCE_SECONDS)
    for _ in range(2):
        await soon(setup.directory.searched.acquire())
    assert len(setup.directory.announced) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_full_disk_does_not_end_the_search(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise WorldError("the disk is full")

    monkeypatch.setattr(setup.known, "save", fail)
    setup.directory.records = [record_of(OTHER.peer_id)]
    running = asyncio.create_task(setup.discovery.run())
    for _ in range(5):
        await soon(setup.directory.searched.acquire())
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_network_process_that_died_ends_it_with_a_sentence(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    async def dead() -> list[str]:
        failures.append(True)
        raise WorldError("p2pd, the network process of this peer, does not answer; restart")

    monkeypatch.setattr(setup.transport, "addresses", dead)
    with pytest.raises(WorldError, match="does not answer; restart"):
        await soon(setup.discovery.run())
    assert len(failures) >= discovery_module.TRANSPORT_FAILURES_MAX
