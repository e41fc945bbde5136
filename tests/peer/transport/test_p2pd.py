"""The libp2p transport keeps the transport's promises over loopback, and p2pd is started and stopped cleanly."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hivemind.p2p import P2P

from crowdsurf.peer.transport import p2pd
from crowdsurf.peer.transport.base import Transport
from crowdsurf.peer.transport.p2pd import P2pdOptions, P2pdTransport
from crowdsurf.peer.transport.p2pd_control import usable_addresses
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import peer_text
from crowdsurf.protocol.limits import ADDRESSES_PER_PEER_MAX
from tests.peer.transport.conformance import (
    PATIENCE_SECONDS,
    PROTOCOL,
    BannedMeanwhile,
    Inbound,
    Pair,
    TransportConformance,
    close_all,
    echo,
    joined,
    peer_of,
    receive,
    use,
    write_identity,
)

pytestmark = pytest.mark.network


async def start(tmp_path: Path, seed: int, **options: Any) -> P2pdTransport:
    return await P2pdTransport.create(P2pdOptions(write_identity(tmp_path / f"{seed}.key", seed), **options))


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    first, second = await asyncio.gather(start(tmp_path, 1), start(tmp_path, 2))
    await first.connect(second.peer_id, await second.addresses())
    yield first, second
    await close_all([first, second])


class TestP2pd(TransportConformance):
    on_every_loop = True

    async def kill(self, transport: Transport) -> None:
        assert isinstance(transport, P2pdTransport)
        transport.p2p._child.kill()
        await transport.p2p._child.wait()

    async def test_disconnect_drops_the_connection(self, pair: Pair) -> None:
        """As often as p2pd's own DHT, which knows nothing of refusals, dials again."""
        first, second = p2pds(pair)
        assert await connections(first, 1)
        assert await connections(second, 1)

        async def disconnect() -> None:
            await first.disconnect(second.peer_id)

        assert await drops(first, disconnect)
        assert await drops(second, disconnect)
        await first.disconnect(second.peer_id)  # without a connection it is nothing

    async def test_a_refused_peer_that_comes_back_loses_its_connection_again(self, pair: Pair) -> None:
        first, second = p2pds(pair)
        inbound = Inbound()
        await first.serve(PROTOCOL, inbound)
        first.refuse({second.peer_id})

        async def come_back() -> None:
            await second.connect(first.peer_id, await first.addresses())
            with pytest.raises(WorldError):
                await use(await second.open(first.peer_id, PROTOCOL, PATIENCE_SECONDS))

        for _ in range(3):
            assert await drops(first, come_back)
        assert inbound.streams.empty()

    async def test_a_refused_peer_keeps_its_connection_while_a_stream_to_it_is_spared(self, pair: Pair) -> None:
        first, second = p2pds(pair)
        inbound = Inbound()
        await first.serve("/crowdsurf/other/1", inbound)
        near, far = await joined(pair)
        first.refuse({second.peer_id})
        first.abort(second.peer_id, [near])
        with pytest.raises(WorldError):
            await use(await second.open(first.peer_id, "/crowdsurf/other/1", PATIENCE_SECONDS))
        await near.send(b"last words")
        assert await receive(far, 10) == b"last words"

        async def disconnect() -> None:
            await first.disconnect(second.peer_id)

        assert await drops(first, disconnect)

    async def test_who_is_banned_while_it_is_dialled_is_dropped(self, pair: Pair) -> None:
        first, second = p2pds(pair)
        addresses = await second.addresses()

        async def dial() -> None:
            first.refuse(BannedMeanwhile())
            with pytest.raises(WorldError, match="refused"):
                await first.connect(second.peer_id, addresses)

        assert await drops(first, dial)

    async def test_the_loop_is_the_one_asked_for(self, request: pytest.FixtureRequest) -> None:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop) == ("uvloop" in request.node.name)


def p2pds(pair: Pair) -> tuple[P2pdTransport, P2pdTransport]:
    first, second = pair
    assert isinstance(first, P2pdTransport)
    assert isinstance(second, P2pdTransport)
    return first, second


async def connections(transport: P2pdTransport, number: int) -> bool:
    """Wait until p2pd has so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(await transport.p2p.list_peers()) != number:
            pass  # each question is a way to p2pd and back
    return True


async def drops(transport: P2pdTransport, act: Callable[[], Awaitable[None]]) -> bool:
    """Act until p2pd has no connection right after it: p2pd's own DHT, which knows nothing of refusals, dials within
    milliseconds whom it has just lost."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await act()
        while await transport.p2p.list_peers():
            await act()
    return True


def socket_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"crowdsurf-p2pd-{os.getpid()}-*"))


async def test_sockets_are_private_and_go_away(tmp_path: Path) -> None:
    before = socket_folders()
    transport = await start(tmp_path, 1)
    (folder,) = socket_folders() - before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name.split("-")[0] for path in folder.iterdir()} >= {"p2pd", "in.sock"}
    await transport.close()
    assert socket_folders() == before
    assert transport.p2p._child.returncode is not None


async def test_the_identity_is_the_key_on_disk(tmp_path: Path) -> None:
    transport = await start(tmp_path, 3)
    assert transport.peer_id == peer_of(3)
    await transport.close()


async def test_a_missing_identity_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no identity file"):
        await P2pdTransport.create(P2pdOptions(tmp_path / "none.key"))
    assert os.listdir(tmp_path) == []


async def test_a_key_that_is_not_ed25519_is_our_mistake(tmp_path: Path) -> None:
    P2P.generate_identity(str(tmp_path / "rsa.key"))
    with pytest.raises(MisuseError, match="no Ed25519 key"):
        await P2pdTransport.create(P2pdOptions(tmp_path / "rsa.key"))


async def test_a_stranger_whose_key_is_not_ed25519_gets_nothing(tmp_path: Path) -> None:
    transport = await start(tmp_path, 1)
    inbound = Inbound()
    await transport.serve(PROTOCOL, inbound)
    P2P.generate_identity(str(tmp_path / "rsa.key"))
    stranger = await P2P.create(
        initial_peers=await transport.addresses(),
        identity_path=str(tmp_path / "rsa.key"),
        check_if_identity_free=False,
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
    )
    try:
        _, reader, writer = await stranger.call_binary_stream_handler(transport.p2p.peer_id, PROTOCOL)
        assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
        writer.close()
    finally:
        await stranger.shutdown()
    assert inbound.streams.empty()
    await transport.close()


async def test_a_wrong_listen_address_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="listen address"):
        await start(tmp_path, 1, listen=("127.0.0.1:80",))


async def test_a_port_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # p2pd itself would share the port with another p2pd without a word, so the occupant is one.
    monkeypatch.setattr(p2pd, "_PORT_PATIENCE_SECONDS", 0.5)
    occupant = await start(tmp_path, 1)
    port = (await occupant.addresses())[0].split("/")[4]
    with pytest.raises(WorldError, match=f"port {port} is already in use"):
        await start(tmp_path, 2, listen=(f"/ip4/127.0.0.1/tcp/{port}",))
    await occupant.close()
    heir = await start(tmp_path, 2, listen=(f"/ip4/127.0.0.1/tcp/{port}",))
    assert (await heir.addresses())[0].split("/")[4] == port
    await heir.close()


async def test_a_port_that_gets_free_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, True]
    monkeypatch.setattr(p2pd, "_port_is_free", lambda family, host, port: answers.pop(0))
    await p2pd._wait_for_ports(["/ip4/127.0.0.1/tcp/31330"])
    assert answers == []


async def test_an_unreachable_bootstrap_is_one_sentence(tmp_path: Path) -> None:
    before = socket_folders()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections
        address = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{peer_text(peer_of(9))}"
        with pytest.raises(WorldError, match="no bootstrap peer answers"):
            await start(tmp_path, 1, initial_peers=(address,))
    assert socket_folders() == before


async def test_an_unreachable_peer_is_one_sentence(pair: Pair) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"
        with pytest.raises(WorldError, match="cannot be reached") as error:
            await pair[0].connect(peer_of(9), [address], 5.0)
    assert "\n" not in str(error.value)


async def test_another_identity_at_the_address_is_not_taken(pair: Pair) -> None:
    addresses = [text.split("/p2p/")[0] for text in await pair[1].addresses()]
    with pytest.raises(WorldError, match="cannot be reached"):
        await pair[0].connect(peer_of(9), addresses, 5.0)


async def test_one_good_address_among_bad_ones_is_enough(tmp_path: Path) -> None:
    first, second = await start(tmp_path, 1), await start(tmp_path, 2)
    await second.serve(PROTOCOL, echo)
    bad = ["", "garbage", "/ip4/999.0.0.1/tcp/1", "/" + "x" * 100_000, "/ip4/127.0.0.1/tcp/1/p2p/zz"]
    await first.connect(second.peer_id, bad + await second.addresses())
    await use(await first.open(second.peer_id, PROTOCOL, PATIENCE_SECONDS))
    await close_all([first, second])


def test_addresses_of_strangers_are_bounded() -> None:
    peer = peer_of(1)
    good = [f"/ip4/10.0.0.1/tcp/{port}/p2p/{peer_text(peer)}" for port in range(1, 1000)]
    assert len(usable_addresses(peer, good)) == ADDRESSES_PER_PEER_MAX
    assert usable_addresses(peer, ["/ip4/1.2.3.4/tcp/5"]) == usable_addresses(
        peer, [f"/ip4/1.2.3.4/tcp/5/p2p/{peer_text(peer)}"]
    )


async def test_a_dead_p2pd_is_one_sentence(pair: Pair) -> None:
    first = pair[0]
    assert isinstance(first, P2pdTransport)
    first.p2p._child.kill()
    await first.p2p._child.wait()
    with pytest.raises(WorldError, match="p2pd, the network process of this peer, does not answer"):
        await first.open(pair[1].peer_id, PROTOCOL, 5.0)


def test_leftover_socket_folders_of_the_dead_are_swept() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = Path(tempfile.mkdtemp(prefix=f"crowdsurf-p2pd-{child.pid}-"))
    alive = Path(tempfile.mkdtemp(prefix=f"crowdsurf-p2pd-{os.getpid()}-"))
    p2pd._sweep_leftovers()
    assert not dead.exists()
    assert alive.exists()
    alive.rmdir()


async def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transport = await start(tmp_path, 1)
    with pytest.raises(WorldError):
        await transport.open(peer_of(9), PROTOCOL, 5.0)
    await transport.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
