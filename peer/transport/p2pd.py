"""Streams over go-libp2p, through the p2pd that hivemind ships.

The idea: hivemind starts and stops p2pd and shares it with the DHT; the streams are ours. We speak p2pd's
control protocol (p2pd_control.py) and then move bytes between its unix socket and the caller's memory
(sockets.py), which hivemind's own stream readers would copy several times. p2pd authenticates peers and
encrypts; it has no limits of its own, so StreamTable carries them.

p2pd has no gate: a refused peer can connect again, and may hold that connection as long as it opens no stream of
ours (libp2p's own protocols answer it). Its streams are refused here, and each one it tries costs it the connection.

Two more things about p2pd to know: it binds its port with SO_REUSEPORT, so that a second one on the same port
starts without a word and the two share the connections (hence the probe before the start); and it outlives
a killed daemon by one to four seconds, still on that port (hence the patience).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from crowdsurf.peer.transport.base import (
    CONNECT_TIMEOUT_SECONDS,
    STREAMS_MAX,
    Handler,
    Stream,
    Transport,
)
from crowdsurf.peer.transport.frames import deadline
from crowdsurf.peer.transport.p2pd_control import P2pdRefused, Request, ask, call, read_message, usable_addresses
from crowdsurf.peer.transport.sockets import SocketStream
from crowdsurf.peer.transport.streams import StreamTable
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import PeerId, peer_text, public_key_of, short

_logger = logging.getLogger(__name__)
_DIRECTORY_PREFIX = "crowdsurf-p2pd-"
_PORT_PATIENCE_SECONDS = 8.0
_PORT_PROBE_SECONDS = 0.25
_CONTROL_TIMEOUT_SECONDS = 10.0
_ACCEPT_PAUSE_SECONDS = 0.1
_STOP_TIMEOUT_SECONDS = 5.0
_OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Starts p2pd in a process group of its own: a terminal's Ctrl-C goes to the whole group, and a peer that leaves in
order needs its p2pd for that."""


@dataclass(frozen=True, slots=True)
class P2pdOptions:
    """How to start p2pd. Addresses are multiaddresses; everything that talks to third parties is off by default."""

    identity_path: Path
    """A libp2p-encoded Ed25519 private key file."""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of the ones we listen on."""
    initial_peers: tuple[str, ...] = ()
    dht_mode: str = "server"
    """Mode of libp2p's own DHT, by which hivemind finds the addresses of a peer id: server, client or auto."""
    use_relay: bool = False
    map_port: bool = False
    """Ask the router to forward our port (UPnP)."""
    auto_nat: bool = False


class P2pdTransport(Transport):
    """Streams through one p2pd of our own; made by `P2pdTransport.create`."""

    def __init__(self, p2p: P2P, directory: Path) -> None:
        self.p2p = p2p
        """hivemind's handle on p2pd, for the DHT to share."""
        self.peer_id = PeerId(p2p.peer_id.to_bytes())
        self._directory = directory
        self._control_path = p2p.daemon_listen_maddr["unix"]
        self._listener_path = str(directory / "in.sock")
        self._table = StreamTable()
        self._greetings: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(self._listener_path)
        self._listener.listen(128)
        self._accepting = asyncio.create_task(self._accept(), name="p2pd accept")

    @classmethod
    async def create(cls, options: P2pdOptions) -> P2pdTransport:
        """Start p2pd. Raises MisuseError for a bad option and WorldError if it cannot start.

        A port that is taken is waited for a few seconds: our own leftover may still hold it.
        """
        if not options.identity_path.is_file():
            raise MisuseError(f"there is no identity file at {options.identity_path}; create one first")
        _sweep_leftovers()
        await _wait_for_ports(options.listen)
        directory = Path(tempfile.mkdtemp(prefix=f"{_DIRECTORY_PREFIX}{os.getpid()}-"))
        p2p: P2P | None = None
        started = False
        try:
            p2p = await _start_p2pd(options, directory)
            if not _is_ed25519(p2p.peer_id.to_bytes()):
                raise MisuseError(f"{options.identity_path} holds no Ed25519 key; create a new identity")
            transport = cls(p2p, directory)
            started = True
            return transport
        finally:
            if not started:
                if p2p is not None:
                    await _stop_p2pd(p2p)
                shutil.rmtree(directory, ignore_errors=True)

    async def addresses(self) -> list[str]:
        async with deadline(_CONTROL_TIMEOUT_SECONDS, "p2pd"):
            response = await call(self._control_path, Request(type=Request.IDENTIFY))
        return [f"{Multiaddr(address)}/p2p/{peer_text(self.peer_id)}" for address in response.identify.addrs]

    async def connect(
        self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> None:
        self._table.require_welcome(peer)
        usable = usable_addresses(peer, addresses)
        request = Request(
            type=Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(peer=peer, addrs=usable, timeout=_whole_seconds(timeout_seconds)),
        )
        try:
            async with deadline(timeout_seconds, f"a connection to peer {short(peer)}"):
                await call(self._control_path, request)
        except P2pdRefused as error:
            raise WorldError(f"peer {short(peer)} cannot be reached: {error.reason}") from error
        await self._drop_if_refused(peer)
        self._table.require_welcome(peer)

    async def open(self, peer: PeerId, protocol: str, timeout_seconds: float) -> Stream:
        self._table.require_welcome(peer)
        request = Request(
            type=Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=peer, proto=[protocol], timeout=_whole_seconds(timeout_seconds)),
        )
        try:
            async with deadline(timeout_seconds, f"a stream to peer {short(peer)}"):
                response, connection = await ask(self._control_path, request)
        except P2pdRefused as error:
            raise WorldError(f"no stream {protocol} to peer {short(peer)}: {error.reason}") from error
        stream = SocketStream(connection, PeerId(response.streamInfo.peer), protocol, self._table.remove)
        if stream.peer != peer:
            stream.abort()
            raise WorldError(f"p2pd opened a stream to {short(stream.peer)} instead of {short(peer)}")
        self._table.add(stream)
        if self._table.refuses(peer):
            stream.abort()
            await self._drop_if_refused(peer)
            self._table.require_welcome(peer)
        return stream

    async def serve(self, protocol: str, handler: Handler) -> None:
        self._table.register(protocol, handler)
        address = Multiaddr(f"/unix{self._listener_path}").to_bytes()
        request = Request(
            type=Request.STREAM_HANDLER,
            streamHandler=p2pd_pb2.StreamHandlerRequest(addr=address, proto=[protocol], balanced=False),
        )
        async with deadline(_CONTROL_TIMEOUT_SECONDS, "p2pd"):
            await call(self._control_path, request)

    def refuse(self, peers: Container[PeerId]) -> None:
        self._table.refuse(peers)

    def prefer(self, peers: Container[PeerId]) -> None:
        self._table.prefer(peers)

    def abort(self, peer: PeerId, spared: Collection[Stream] = ()) -> None:
        self._table.abort_all(peer, spared)

    async def disconnect(self, peer: PeerId) -> None:
        self._table.abort_all(peer)
        request = Request(type=Request.DISCONNECT, disconnect=p2pd_pb2.DisconnectRequest(peer=peer))
        async with deadline(_CONTROL_TIMEOUT_SECONDS, "p2pd"):
            await call(self._control_path, request)

    async def _drop_if_refused(self, peer: PeerId) -> None:
        """Drop the connection of a peer that has come back, unless a stream that was spared is still under way."""
        if self._table.refuses(peer) and not self._table.has_open(peer):
            await self.disconnect(peer)

    async def close(self) -> None:
        greetings = [self._accepting, *self._greetings]
        for task in greetings:
            task.cancel()
        await asyncio.gather(*greetings, return_exceptions=True)
        self._listener.close()
        await self._table.close()
        await _stop_p2pd(self.p2p)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                _logger.warning("no inbound stream can be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)  # out of file descriptors: let some be freed
                continue
            if len(self._greetings) >= STREAMS_MAX:
                connection.close()
                continue
            task = asyncio.create_task(self._greet(connection), name="p2pd inbound stream")
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket) -> None:
        """Learn from p2pd whose stream this is, then hand it over; not a byte of the peer is read here."""
        connection.setblocking(False)
        handed_over = False
        try:
            async with deadline(_CONTROL_TIMEOUT_SECONDS, "p2pd to say whose stream it opened"):
                info = p2pd_pb2.StreamInfo.FromString(await read_message(connection))
            if not _is_ed25519(info.peer):
                return  # libp2p knows other keys, this project does not
            stream = SocketStream(connection, PeerId(info.peer), info.proto, self._table.remove)
            handed_over = True
            self._table.add(stream)
            if not self._table.accept(stream):
                await self._drop_if_refused(stream.peer)
        except (OSError, WorldError) as error:
            _logger.debug("p2pd dropped an inbound stream: %s", error)
        finally:
            if not handed_over:
                connection.close()


async def _start_p2pd(options: P2pdOptions, directory: Path) -> P2P:
    """p2pd with its sockets in `directory` (mode 0700, where hivemind would put them into the shared /tmp)."""
    if "HIVEMIND_LOGLEVEL" not in os.environ:
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)
    os.environ.setdefault("GOLOG_LOG_LEVEL", "error")

    class PrivateP2P(P2P):
        _UNIX_SOCKET_PREFIX = f"/unix{directory}/"

        @staticmethod
        def _make_process_args(*args: object, **options: object) -> list[str]:
            return [sys.executable, "-ISc", _OWN_GROUP, *P2P._make_process_args(*args, **options)]

    try:
        p2p = await PrivateP2P.create(
            initial_peers=list(options.initial_peers),
            host_maddrs=list(options.listen),
            announce_maddrs=list(options.announce) or None,
            identity_path=str(options.identity_path),
            check_if_identity_free=False,
            dht_mode=options.dht_mode,
            use_relay=options.use_relay,
            nat_port_map=options.map_port,
            auto_nat=options.auto_nat,
        )
    except P2PDaemonError as error:
        if "bootstrap" in str(error):
            raise WorldError(f"no bootstrap peer answers ({', '.join(options.initial_peers)})") from error
        raise WorldError(f"p2pd does not start: {error}") from error
    except ValueError as error:
        raise MisuseError(f"a network address is wrong: {error}") from error
    return p2p


async def _stop_p2pd(p2p: P2P) -> None:
    """Ask p2pd to end (SIGTERM) and make it if it does not."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_SECONDS):
            await p2p.shutdown()
    except TimeoutError:
        p2p._child.kill()
        await p2p._child.wait()


def _is_ed25519(peer: bytes) -> bool:
    try:
        public_key_of(PeerId(peer))
    except Refusal:
        return False
    return True


async def _wait_for_ports(listen: Sequence[str]) -> None:
    """Return once every TCP port of `listen` is free. Raises WorldError if one stays taken."""
    for text in listen:
        try:
            address = Multiaddr(text)
        except ValueError as error:
            raise MisuseError(f"the listen address {text!r} is wrong: {error}") from error
        parts = {protocol.name for protocol in address.protocols()}
        family = "ip6" if "ip6" in parts else "ip4"
        if "tcp" not in parts or family not in parts or address["tcp"] == "0":
            continue
        host, port = address[family], int(address["tcp"])
        for _ in range(int(_PORT_PATIENCE_SECONDS / _PORT_PROBE_SECONDS)):
            if _port_is_free(family, host, port):
                break
            await asyncio.sleep(_PORT_PROBE_SECONDS)
        else:
            raise WorldError(f"port {port} is already in use; stop the other process or choose another port")


def _port_is_free(family: str, host: str, port: int) -> bool:
    """Whether nobody listens there, not even with SO_REUSEPORT. Raises WorldError if we may not listen there."""
    with socket.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise WorldError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return True


def _sweep_leftovers() -> None:
    """Remove the socket folders of our own processes that are dead (SIGKILL leaves them behind)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*"):
        pid = folder.name.removeprefix(_DIRECTORY_PREFIX).split("-")[0]
        try:
            ours = folder.lstat().st_uid == os.getuid()
        except OSError:
            continue  # another process swept it first
        if ours and pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _whole_seconds(timeout_seconds: float) -> int:
    """p2pd takes whole seconds; our own deadline is the exact one."""
    return max(1, int(timeout_seconds + 0.999))
