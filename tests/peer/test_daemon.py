"""Whole peers over the memory transport: they agree, survive each other's ends and their own, and forget nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer import daemon as daemon_module
from crowdsurf.peer import fetch as fetch_module
from crowdsurf.peer import first_contact as first_contact_module
from crowdsurf.peer import journal as journal_module
from crowdsurf.peer.control_socket import ask
from crowdsurf.peer.daemon import Daemon, fetch_manifest
from crowdsurf.peer.discovery import AddressBook
from crowdsurf.peer.driver import Driver
from crowdsurf.peer.journal import JOURNAL_FILE
from crowdsurf.peer.packets import FETCH_STREAM, FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream
from crowdsurf.peer.transport.memory import MemoryNetwork
from crowdsurf.protocol import wire
from crowdsurf.protocol.errors import MisuseError, RefusedBySwarm, Unreachable, WorldError
from crowdsurf.protocol.ids import PeerId, digest
from crowdsurf.protocol.manifest import TaskSection, encode_manifest, run_id_of
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.step_table import Phase
from tests.peer.shell import STATE_BYTES, FakeCompute, Peer, Swarm, key_of, manifest_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")

DIGITS = TaskSection(name="digits", parameters={"model": "mlp", "hidden": 8})


def agree(outcomes: list[Any], steps: int = 8) -> None:
    """Everybody has seen the same run."""
    assert {outcome.certified_steps for outcome in outcomes} == {steps}
    assert len({outcome.state_digest for outcome in outcomes}) == 1
    assert None not in {outcome.state_digest for outcome in outcomes}


def honest(*peers: Peer) -> None:
    """Nobody signed a slot twice, and all journals tell one story without gaps."""
    stories = []
    for peer in peers:
        assert peer.slots_signed_twice() == []
        certificates = peer.certificates()
        assert [one.header.step for one in certificates] == list(range(len(certificates)))
        stories.append([wire.pack(one.header) for one in certificates])
    longest = max(stories, key=len)
    assert all(story == longest[: len(story)] for story in stories)


# --- a run and its ends ------------------------------------------------------------------------------------


async def test_four_peers_certify_every_step_and_agree(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 4) as swarm:
        swarm.peers[0].evaluate_steps = 4
        swarm.start()
        outcomes = await swarm.end()
    agree(outcomes)
    honest(*swarm.peers)
    assert [len(peer.certificates()) for peer in swarm.peers] == [8] * 4
    assert outcomes[0].initial_test_loss is not None
    assert outcomes[0].test_loss is not None
    assert outcomes[0].steps_here == 8
    assert outcomes[0].as_json()["reason"] == "all 8 steps of the run are certified"
    assert all(len(peer.daemon.metrics.refused) == 0 for peer in swarm.peers)
    headers = [one.header for one in swarm.peers[0].certificates()]
    assert all(name for header in headers for name in (*header.parts, *header.projections))
    assert {len(header.projections) for header in headers} == {4}


async def test_two_that_have_answered_each_other_after_the_end_do_not_wait_for_each_other(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The links that the answers have opened would tell each of them that the other is still at it."""
    monkeypatch.setattr(daemon_module, "STRAGGLER_SECONDS_MAX", 3600.0)
    serve_after_the_end = Driver.serve_after_the_end
    answered = set()

    async def answer_first(driver: Driver, seconds: float) -> None:
        links = driver._parts.links
        if links.transport.peer_id not in answered:
            answered.add(links.transport.peer_id)
            for peer in swarm.peers:
                if peer.key.peer_id != links.transport.peer_id:
                    links.send(peer.key.peer_id, FrameKind.CERTIFICATE, wire.pack(peer.certificates()[-1]))
        await serve_after_the_end(driver, seconds)

    monkeypatch.setattr(Driver, "serve_after_the_end", answer_first)
    async with Swarm(tmp_path, 2) as swarm:
        swarm.start()
        agree(await swarm.end())
    assert len(answered) == 2


async def test_one_peer_alone_is_a_swarm(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 1) as swarm:
        swarm.start()
        agree(await swarm.end())


async def test_one_of_four_is_killed_and_the_others_finish(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 4) as swarm:
        swarm.start()
        await swarm.peers[3].certified(2)
        await swarm.peers[3].kill()
        agree(await swarm.end(*swarm.peers[:3]))
    honest(*swarm.peers)


@pytest.mark.slow
async def test_a_killed_peer_comes_back_catches_up_and_signs_nothing_twice(
    tmp_path: Path, fake_compute: list[FakeCompute]
) -> None:
    async with Swarm(tmp_path, 4, steps=14) as swarm:
        swarm.start()
        back = swarm.peers[2]
        await back.certified(2)
        await back.kill()
        seen = len(back.steps)
        await swarm.peers[0].certified(5)
        back.start()
        agree(await swarm.end(), 14)
        assert len(back.steps) > seen
    honest(*swarm.peers)
    names = {envelope.step for envelope in back.envelopes() if envelope.kind == Kind.COMMIT}
    assert max(names) == 13


@pytest.mark.slow
@pytest.mark.parametrize("last_step", [0, 9])
async def test_the_whole_swarm_is_killed_and_goes_on_where_it_was(
    tmp_path: Path, fake_compute: list[FakeCompute], last_step: int
) -> None:
    async with Swarm(tmp_path, 4, steps=13) as swarm:
        swarm.start()
        await swarm.peers[1].certified(last_step)
        await asyncio.gather(*(peer.kill() for peer in swarm.peers))
        before = {wire.pack(one.header) for peer in swarm.peers for one in peer.certificates()}
        swarm.start()
        agree(await swarm.end(), 13)
    honest(*swarm.peers)
    assert before <= {wire.pack(one.header) for one in swarm.peers[0].certificates()}


@pytest.mark.slow
async def test_the_whole_swarm_dies_again_and_again(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 3, steps=12) as swarm:
        for step in range(2, 12, 2):
            swarm.start()
            await swarm.peers[step % 3].certified(step)
            await asyncio.gather(*(peer.kill() for peer in swarm.peers))
        swarm.start()
        agree(await swarm.end(), 12)
    honest(*swarm.peers)


@pytest.mark.slow
async def test_a_newcomer_joins_late_and_contributes(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 3, extra=1, steps=40) as swarm:
        swarm.start()
        newcomer = swarm.peers[3]
        await swarm.peers[0].certified(12)
        newcomer.start()
        outcomes = await swarm.end(*swarm.peers)
    agree(outcomes, 40)
    honest(*swarm.peers)
    assert any(envelope.kind == Kind.COMMIT for envelope in newcomer.envelopes())
    assert sum(1 for one in newcomer.certificates() if newcomer.key.peer_id in one.header.joined) == 1
    last = newcomer.certificates()[-1].header
    assert last.contributors == b"\x0f"


async def test_a_peer_leaves_in_order(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 4, steps=30) as swarm:
        swarm.start()
        leaver = swarm.peers[1]
        await leaver.certified(2)
        answer = await asyncio.to_thread(ask, leaver.folder, "leave")
        assert answer == {"leaving": True}
        left = await leaver.end()
        assert left.reason == "this peer has left the roster"
        assert left.certified_steps < 30
        rest = [peer for peer in swarm.peers if peer is not leaver]
        agree(await swarm.end(*rest), 30)
    honest(*swarm.peers)
    assert any(leaver.key.peer_id in one.header.left for one in rest[0].certificates())


@pytest.mark.slow
async def test_status_is_answered_from_the_first_moment_to_the_last(
    tmp_path: Path, fake_compute: list[FakeCompute]
) -> None:
    async with Swarm(tmp_path, 2) as swarm:
        swarm.start()
        peer = swarm.peers[0]
        assert peer.daemon.status()["phase"] == "starting"
        await peer.certified(3)
        found = await asyncio.to_thread(ask, peer.folder, "status")
        assert found["member"]
        assert found["step"] >= 3
        assert found["train_loss"] is not None
        assert "error" in await asyncio.to_thread(ask, peer.folder, "dance")
        await swarm.end()
    with pytest.raises(WorldError, match="no peer answers"):
        ask(peer.folder, "status")


# --- the compute worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["work", "aggregate", "apply"])
@pytest.mark.parametrize("peers", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
async def test_a_worker_that_dies_costs_its_peer_a_step_at_most(
    tmp_path: Path, fake_compute: list[FakeCompute], command: str, peers: int
) -> None:
    async with Swarm(tmp_path, peers) as swarm:
        swarm.start()
        await until(lambda: len(fake_compute) == peers)
        calls = 0

        async def before(name: str) -> None:
            nonlocal calls
            calls += name == command
            if name == command and calls == 4:
                fake_compute[0].kill()

        fake_compute[0].before = before
        agree(await swarm.end())
    honest(*swarm.peers)
    assert fake_compute[0].starts == 2


@pytest.mark.slow
async def test_a_worker_that_dies_while_its_peer_catches_up(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    """What was applied once is remembered as held, but its memory is gone."""
    async with Swarm(tmp_path, 4, steps=60) as swarm:
        swarm.start()
        back = swarm.peers[3]
        await back.certified(3)
        await back.kill()
        await swarm.peers[0].certified(9)
        back.start()
        await until(lambda: len(fake_compute) == 5)
        applied = 0

        async def before(name: str) -> None:
            nonlocal applied
            applied += name == "apply"
            if name == "apply" and applied in (3, 7):
                fake_compute[4].kill()

        fake_compute[4].before = before
        agree(await swarm.end(), 60)
    honest(*swarm.peers)
    assert fake_compute[4].starts == 3


# --- the disk ----------------------------------------------------------------------------------------------


async def test_a_second_daemon_on_the_same_folder_is_refused(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 2) as swarm:
        swarm.start()
        peer = swarm.peers[0]
        await peer.certified(0)
        with pytest.raises(MisuseError, match="already running"):
            await Daemon(swarm.manifest, peer.place).run()
        assert (await asyncio.to_thread(ask, peer.folder, "status"))["step"] >= 1
        agree(await swarm.end())


async def test_a_damaged_journal_is_left_as_it_is(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path, 2) as swarm:
        swarm.start()
        agree(await swarm.end())
        path = swarm.peers[0].folder / JOURNAL_FILE
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 3] ^= 1
        path.write_bytes(damaged)
        swarm.peers[0].start()
        with pytest.raises(WorldError, match=r"is damaged.*nothing was changed"):
            await soon(swarm.peers[0].running)
        assert path.read_bytes() == damaged


@pytest.mark.slow
async def test_a_journal_of_another_run_is_not_continued(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    async with Swarm(tmp_path / "a", 1) as first, Swarm(tmp_path / "b", 1, seed=1) as second:
        first.start()
        second.start()
        await first.end()
        await second.end()
        (first.peers[0].folder / JOURNAL_FILE).write_bytes((second.peers[0].folder / JOURNAL_FILE).read_bytes())
        first.peers[0].start()
        with pytest.raises(WorldError, match="holds a step that is not valid"):
            await soon(first.peers[0].running)


@pytest.mark.slow
async def test_a_full_disk_ends_a_peer_in_words_and_nothing_is_lost(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Swarm(tmp_path, 3, steps=14) as swarm:
        swarm.start()
        unlucky = swarm.peers[2]
        await unlucky.certified(3)
        real, full = journal_module._write_at, [True]

        def write_at(file: int, data: bytes, offset: int) -> None:
            if (
                full[0]
                and JOURNAL_FILE in os.readlink(f"/proc/self/fd/{file}")
                and str(unlucky.folder) in os.readlink(f"/proc/self/fd/{file}")
            ):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file, data, offset)

        monkeypatch.setattr(journal_module, "_write_at", write_at)
        with pytest.raises(WorldError, match=r"the disk is full.*start the peer again"):
            await soon(unlucky.running)
        await unlucky.stop()
        full[0] = False
        unlucky.start()
        agree(await swarm.end(), 14)
    honest(*swarm.peers)


@pytest.mark.slow
async def test_states_that_do_not_fit_the_chain_are_not_used(tmp_path: Path, fake_compute: list[FakeCompute]) -> None:
    """A state may be saved before its certificate is, and a disk may rot."""
    async with Swarm(tmp_path, 3, steps=25) as swarm:
        swarm.start()
        peer = swarm.peers[0]
        await asyncio.gather(*(one.certified(12) for one in swarm.peers))
        await asyncio.gather(*(one.kill() for one in swarm.peers))
        for one in swarm.peers:
            (one.folder / "states" / "200.state").write_bytes(bytes(STATE_BYTES))
        (peer.folder / "states" / "10.state").write_bytes(bytes(STATE_BYTES))
        swarm.start()
        agree(await swarm.end(), 25)
        assert [name.name for name in (peer.folder / "states").glob("200*")] == []
    honest(*swarm.peers)


# --- the beginning -----------------------------------------------------------------------------------------


async def test_nobody_answers_a_newcomer(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "FIRST_CONTACT_SECONDS_MAX", 0.1)
    async with Swarm(tmp_path, 2, extra=1) as swarm:
        swarm.peers[2].start()
        with pytest.raises(Unreachable, match="nobody of this swarm answers"):
            await soon(swarm.peers[2].running)


@pytest.mark.slow
async def test_a_newcomer_whose_swarm_ends_before_it_is_admitted_says_so(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "FIRST_CONTACT_SECONDS_MAX", 0.1)
    monkeypatch.setattr(daemon_module, "COMPANY_SECONDS", 0.02)
    async with Swarm(tmp_path, 2, extra=1, steps=1000) as swarm:
        swarm.start()
        await swarm.peers[0].certified(2)
        await swarm.peers[1].kill()
        newcomer = swarm.peers[2]
        newcomer.start()
        await until(lambda: newcomer.daemon.status().get("waiting_for", "").startswith("the roster to admit it"))
        await swarm.peers[0].kill()
        with pytest.raises(Unreachable, match="nobody of this swarm answers any more"):
            await soon(newcomer.running)


@pytest.mark.slow
async def test_a_member_goes_on_even_if_nobody_answers(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "FIRST_CONTACT_SECONDS_MAX", 0.1)
    async with Swarm(tmp_path, 2, steps=12) as swarm:
        swarm.start()
        await swarm.peers[0].certified(2)
        await asyncio.gather(*(peer.kill() for peer in swarm.peers))
        swarm.peers[0].start()
        # Killed in any phase, it may be back in any phase.
        await until(lambda: swarm.peers[0].daemon.status()["phase"] in {phase.name.lower() for phase in Phase})
        swarm.peers[1].start()
        agree(await swarm.end(), 12)


class Liar:
    """A stranger in the directory that answers questions about the chain as it likes."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.key = key_of(number)
        self.place = swarm.network.place(swarm.manifest, swarm.folder / f"liar-{number}", self.key)
        self.asked = asyncio.Event()
        self.answer: tuple[FrameKind, bytes] | None = None

    async def start(self, known_to: Peer) -> None:
        await self.place.transport.serve(FETCH_STREAM, self.serve)
        known_to.daemon._book.add(self.key.peer_id, await self.place.transport.addresses())

    async def serve(self, stream: Stream) -> None:
        await frames.receive_frame(stream, 64)
        self.asked.set()
        if self.answer is None:
            await frames.receive_frame(stream, 64)
            return
        await frames.send_frame(stream, *self.answer)
        await frames.receive_frame(stream, 64)

    async def close(self) -> None:
        await self.place.transport.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", [None, (FrameKind.END, b""), (FrameKind.CERTIFICATE, b"\xc1")], ids=["nothing", "no steps", "garbage"]
)
async def test_strangers_that_lie_or_say_nothing_do_not_keep_a_newcomer_out(
    tmp_path: Path, fake_compute: list[FakeCompute], monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(first_contact_module, "CHAIN_ANSWER_SECONDS_MAX", 0.3)
    async with Swarm(tmp_path, 2, extra=1, steps=150) as swarm:
        swarm.start()
        await swarm.peers[0].certified(3)
        liars = [Liar(swarm, number) for number in range(20, 23)]
        newcomer = swarm.peers[2]
        newcomer.start()
        for liar in liars:
            liar.answer = answer
            await liar.start(newcomer)
        agree(await swarm.end(*swarm.peers), 150)
        assert any(liar.asked.is_set() for liar in liars)
        for liar in liars:
            await liar.close()
    honest(*swarm.peers)


async def test_a_manifest_is_taken_from_whoever_has_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "END_SECONDS", 0.01)
    network, manifest = MemoryNetwork(), manifest_of([key_of(0)])
    right, wrong = encode_manifest(manifest), encode_manifest(manifest_of([key_of(0)], name="another"))
    me, book = network.join(key_of(9).peer_id), AddressBook()

    async def serve_with(number: int, data: bytes) -> PeerId:
        transport = network.join(key_of(number).peer_id)

        async def serve(stream: Stream) -> None:
            await frames.receive_frame(stream, 64)
            await frames.send_frame(stream, FrameKind.MANIFEST, data)
            await frames.receive_frame(stream, 64)

        await transport.serve(FETCH_STREAM, serve)
        book.add(transport.peer_id, ["/memory"])
        return transport.peer_id

    with pytest.raises(Unreachable, match=r"none of the invite's addresses answers"):
        await fetch_manifest(me, book, run_id_of(manifest))
    book.add(key_of(8).peer_id, ["/gone"])
    first = await serve_with(1, wrong)
    with pytest.raises(RefusedBySwarm, match="not the one the invite names"):
        await soon(fetch_manifest(me, book, run_id_of(manifest)))
    peers = [first] + [await serve_with(number, right if number == 4 else b"\xc1") for number in (2, 3, 4, 5)]
    assert await soon(fetch_manifest(me, book, run_id_of(manifest))) == manifest
    for peer in peers:
        network.kill(peer)
    await until(lambda: len(asyncio.all_tasks()) == 1)


@pytest.mark.slow
async def test_what_a_peer_remembers_does_not_grow_with_the_run(
    tmp_path: Path, fake_compute: list[FakeCompute]
) -> None:
    async with Swarm(tmp_path, 2, steps=150) as swarm:
        swarm.start()
        agree(await swarm.end(), 150)
    parts = swarm.peers[0].daemon._driver._parts
    assert len(parts.blobs._steps) == 0
    assert len(parts.store._located_steps) <= 20
    assert len(parts.links._links) == 0
    assert len(parts.node.catch_up._certificates) <= 64
    assert list(parts.node._recovered.certificates) == []
    assert len(list((swarm.peers[0].folder / "updates").glob("*.update"))) <= 20


# --- with real workers -------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_real_workers_train_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    async with Swarm(tmp_path, 3, steps=10, task=DIGITS) as swarm:
        swarm.peers[0].evaluate_steps = 10
        swarm.start()
        await swarm.peers[1].certified(3)
        process = swarm.peers[1].daemon._driver._parts.duties._client.process_id
        assert process is not None
        os.kill(process, signal.SIGKILL)
        outcomes = await swarm.end()
    agree(outcomes, 10)
    honest(*swarm.peers)
    assert outcomes[0].test_loss is not None
    assert outcomes[0].initial_test_loss is not None
    assert outcomes[0].test_loss < outcomes[0].initial_test_loss


@pytest.mark.slow
async def test_real_workers_are_killed_with_their_peers_and_go_on(tmp_path: Path) -> None:
    async with Swarm(tmp_path, 2, steps=8, task=DIGITS) as swarm:
        swarm.start()
        await swarm.peers[0].certified(3)
        await asyncio.gather(*(peer.kill() for peer in swarm.peers))
        swarm.start()
        agree(await swarm.end(), 8)
    honest(*swarm.peers)


@pytest.mark.slow
async def test_other_data_than_the_run_needs_are_refused_in_words(tmp_path: Path) -> None:
    task = TaskSection(name="digits", parameters=DIGITS.parameters, dataset_digest=digest("dataset", b"other"))
    async with Swarm(tmp_path, 1, task=task) as swarm:
        swarm.start()
        with pytest.raises(MisuseError, match=r"the data of task 'digits' here have digest .* the run needs"):
            await soon(swarm.peers[0].running)
