"""Making a run: from a config to a folder that holds everything its organizer needs, and an invite.

The idea: first everything is checked that can be wrong (config, task and rule by starting the compute worker on them,
addresses, the folder), then everything is written. The folder is the organizer's, and at the same time the home of
the organizer's own peer, which is a founder, so that a run has a first member as soon as that peer is started.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdsurf.peer.compute.client import ComputeClient, WorkerInfo
from crowdsurf.peer.config import ConfigDraft, load_config
from crowdsurf.peer.discovery import peer_of_address
from crowdsurf.peer.files import write_whole
from crowdsurf.peer.invite import encode_invite
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import KEY_FILE, MANIFEST_FILE, run_folder, save_manifest
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_from_text, peer_text
from crowdsurf.protocol.manifest import Manifest, encode_manifest, run_id_of

ORGANIZER_KEY_FILE = "organizer.key"
INVITE_FILE = "invite.txt"
NODE_CONFIG_FILE = "node.yaml"

_TCP_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/\s]+)/tcp/([0-9]{1,5})(/p2p/[^/\s]+)?")


@dataclass(frozen=True, slots=True)
class Created:
    """A run that exists now; every field is documented in the README."""

    run: str
    name: str
    task: str
    folder: str
    """The organizer's folder and the home of the organizer's first peer."""
    invite: str
    organizer: str
    founders: tuple[str, ...]
    peer: str
    """The organizer's first peer."""
    addresses: tuple[str, ...]
    """What the invite says where to find the run."""
    only_this_machine: bool
    """All of these addresses work on this machine only."""
    parameters: int
    """Size of the model."""
    task_description: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reach:
    """How the organizer's peer listens and what others dial; multiaddresses without a peer id."""

    listen: tuple[str, ...]
    announce: tuple[str, ...]
    invite: tuple[str, ...]


async def create_run(
    config: str,
    out: Path | None = None,
    addresses: Sequence[str] = (),
    listen: Sequence[str] = (),
    founders: Sequence[str] = (),
    steps: int | None = None,
    tolerance: float | None = None,
) -> Created:
    """Make a run from a config file or preset, in `out` (default: `swarm-NAME` here); `steps` replaces the config's,
    and a `tolerance` how recomputed work is compared.

    Raises MisuseError (all mistakes of a config at once) and WorldError; nothing is written then.
    """
    draft = load_config(config)
    others = _other_founders(founders)
    reach = plan_reach(addresses, listen)
    overrides: dict[str, object] = {"steps": steps}
    if tolerance is not None:
        overrides |= {"audit.comparison": "tolerance", "audit.relative_l2_max": tolerance}
    somebody = PeerKey.generate().peer_id
    sketch = draft.build(somebody, (somebody, *others), Digest(b""), **overrides)
    folder = (out if out is not None else Path(f"swarm-{sketch.name}")).expanduser().absolute()
    _check_is_free(folder)
    info = await _try_out(sketch)
    return _write(folder, draft, others, reach, info, overrides)


def plan_reach(addresses: Sequence[str], listen: Sequence[str]) -> Reach:
    """Where to listen and what to invite to, from what the organizer said. Raises MisuseError.

    Said nothing: a free port of this machine only. Only public addresses: their ports on every interface. Only
    where to listen: the same addresses are in the invite, so they must be ones that others can dial.
    """
    public = [tcp_address(address) for address in addresses]
    if not listen:
        if not public:
            listen = (f"/ip4/127.0.0.1/tcp/{_free_port('127.0.0.1')}",)
        else:
            wide = [("/ip6/::" if family in ("ip6", "dns6") else "/ip4/0.0.0.0", port) for family, _, port in public]
            listen = tuple(dict.fromkeys(f"{interface}/tcp/{port}" for interface, port in wide))
    fixed = tuple(_with_port(*tcp_address(address)) for address in listen)
    if public:
        return Reach(fixed, tuple(addresses), tuple(addresses))
    for family, host, _ in map(tcp_address, fixed):
        if family in ("ip4", "ip6") and ipaddress.ip_address(host).is_unspecified:
            raise MisuseError(
                f"/{family}/{host} listens everywhere but does not say where others find it; "
                "add --address /ip4/YOUR-PUBLIC-IP/tcp/PORT"
            )
    return Reach(fixed, (), fixed)


def tcp_address(address: str) -> tuple[str, str, int]:
    """Address family, host and port of a TCP multiaddress. Raises MisuseError."""
    found = _TCP_ADDRESS.fullmatch(address)
    problem = "" if found else "it must look like /ip4/203.0.113.7/tcp/31337"
    if found:
        family, host, port, peer = found.groups()
        if int(port) > 65535:
            problem = "a port is at most 65535"
        elif family in ("ip4", "ip6"):
            version = ipaddress.IPv4Address if family == "ip4" else ipaddress.IPv6Address
            try:
                version(host)
            except ValueError as error:
                problem = str(error)
        if peer:
            peer_of_address(address)
        if not problem:
            return family, host, int(port)
    raise MisuseError(f"the address {address!r} cannot be used: {problem}")


def _with_port(family: str, host: str, port: int) -> str:
    """The address, with a free port instead of port 0: an invite needs a port that is known and stays."""
    return f"/{family}/{host}/tcp/{port or _free_port(host)}"


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise WorldError(f"cannot listen on {host}: {error.strerror or error}") from error


def _other_founders(texts: Sequence[str]) -> tuple[PeerId, ...]:
    try:
        return tuple(peer_from_text(text) for text in texts)
    except Refusal as refusal:
        raise MisuseError(f"a founder is given by its peer id, such as 12D3KooW…: {refusal.detail}") from refusal


def _check_is_free(folder: Path) -> None:
    """A run that exists is never overwritten. Raises MisuseError."""
    names = (MANIFEST_FILE, INVITE_FILE, NODE_CONFIG_FILE, ORGANIZER_KEY_FILE)
    taken = [name for name in names if (folder / name).exists()]
    taken += [f"runs/{path.parent.name}" for path in folder.glob(f"runs/*/{MANIFEST_FILE}")]
    if taken:
        raise MisuseError(f"{folder} holds a run already ({taken[0]}); choose another folder with --out")
    if folder.exists() and not folder.is_dir():
        raise MisuseError(f"{folder} is no folder; choose another one with --out")


async def _try_out(sketch: Manifest) -> WorkerInfo:
    """Start the compute worker on the manifest: only it knows task, rule and data. Raises MisuseError, WorldError."""
    client = ComputeClient()
    try:
        return await client.start(sketch, "cpu")
    finally:
        await client.close()


def _write(
    folder: Path,
    draft: ConfigDraft,
    others: tuple[PeerId, ...],
    reach: Reach,
    info: WorkerInfo,
    overrides: Mapping[str, object],
) -> Created:
    organizer = PeerKey.load_or_create(folder / ORGANIZER_KEY_FILE)
    first = PeerKey.load_or_create(folder / KEY_FILE)
    founders = tuple(dict.fromkeys((first.peer_id, *others)))
    manifest = draft.build(organizer.peer_id, founders, info.dataset_digest, **overrides)
    run_id, me = run_id_of(manifest), peer_text(first.peer_id)
    addresses = tuple(text if "/p2p/" in text else f"{text}/p2p/{me}" for text in reach.invite)
    invite = encode_invite(run_id, addresses, organizer.peer_id, organizer.sign)
    save_manifest(run_folder(folder, run_id), manifest)
    try:
        write_whole(folder / NODE_CONFIG_FILE, _node_config(reach).encode(), replace=False)
        write_whole(folder / INVITE_FILE, f"{invite}\n".encode(), replace=False)
        write_whole(folder / MANIFEST_FILE, encode_manifest(manifest), replace=False)
    except OSError as error:
        raise WorldError(f"cannot write to {folder}: {error.strerror or error}") from error
    return Created(
        run=digest_text(run_id),
        name=manifest.name,
        task=manifest.task.name,
        folder=str(folder),
        invite=invite,
        organizer=peer_text(organizer.peer_id),
        founders=tuple(map(peer_text, founders)),
        peer=me,
        addresses=addresses,
        only_this_machine=all(_is_loopback(address) for address in reach.invite),
        parameters=info.vector_elements,
        task_description=info.task_description,
    )


def _node_config(reach: Reach) -> str:
    """YAML for the organizer's first peer, with every value quoted."""
    lines = ["# How the organizer's own peer listens; it must stay as the invite says."]
    for name, values in (("listen", reach.listen), ("announce", reach.announce)):
        if values:
            lines += [f"{name}:", *(f'  - "{value}"' for value in values)]
    return "\n".join(lines) + "\n"


def _is_loopback(address: str) -> bool:
    family, host, _ = tcp_address(address)
    return host == "localhost" if family.startswith("dns") else ipaddress.ip_address(host).is_loopback
