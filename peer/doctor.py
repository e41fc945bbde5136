"""What a volunteer's machine must be able to do, tried before a swarm depends on it; and the bound for a mixed one.

The idea: every check does the thing itself in the small (writes a file, opens a port, computes a work unit twice in two
processes) and comes back with what was found and, if it is not good enough, with what to do.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdsurf.peer.compute.client import ComputeClient, WorkerInfo
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.config import NodeConfig, load_config
from crowdsurf.peer.files import write_whole
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import MANIFEST_FILE, home_of, load_manifest
from crowdsurf.peer.organize import tcp_address
from crowdsurf.peer.runs import the_run
from crowdsurf.protocol.assignment import ELEMENT_BYTES
from crowdsurf.protocol.errors import CrowdsurfError, MisuseError
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.manifest import Manifest

PROBE_FILE = "doctor.probe"
STATES_KEPT = 16
"""Room on the disk, in states of the model: two whole ones, the updates since, and the journal."""
IDLE_BYTES_MAX = 1 << 28
SEED = digest("seed calibration", b"doctor")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried; every field is documented in the README."""

    name: str
    ok: bool
    found: str
    fix: str | None = None
    """What to do, where it is not good enough."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def manifest_of(preset_or_run: str) -> Manifest:
    """The manifest that a preset or a config file would make, or that of a run: its folder, or a home with one run.
    Raises MisuseError, WorldError."""
    path = Path(preset_or_run).expanduser()
    if path.is_dir():
        return load_manifest(path if (path / MANIFEST_FILE).exists() else the_run(path))
    somebody = PeerKey.generate().peer_id
    return load_config(preset_or_run).build(somebody, (somebody,), Digest(b""))


async def examine(config: NodeConfig, manifest: Manifest) -> list[Check]:
    """Try everything that a peer with these settings needs for such a run."""
    checks = [_check_ports(config.listen)]
    try:
        first, names = await _compute(config, manifest)
    except CrowdsurfError as error:
        fix = "choose another --device, or install what the task needs"
        return [*checks, Check("device", False, str(error), fix)]
    again = (await _compute(config, manifest))[1]
    checks.append(Check("device", True, f"{first.device} computes a model of {first.vector_elements:,} parameters"))
    checks.append(_check_determinism(names == again))
    disk = await asyncio.to_thread(_check_disk, home_of(config), STATES_KEPT * first.state_bytes)
    return [disk, *checks]


def _check_determinism(is_alike: bool) -> Check:
    if is_alike:
        return Check("determinism", True, "two processes compute the same work unit bit by bit")
    fix = "only runs with audit.comparison tolerance are for this machine, if any"
    return Check("determinism", False, "the same work unit came out differently in two processes", fix)


async def _compute(config: NodeConfig, manifest: Manifest) -> tuple[WorkerInfo, tuple[Digest, ...]]:
    """One work unit in a process of its own: what the worker says about the run, and the digest of the gradient."""
    client, pool = ComputeClient(config.threads), SegmentPool(IDLE_BYTES_MAX)
    try:
        info = await client.start(manifest, config.device)
        await client.load_initial()
        gradient = pool.take(info.vector_elements * ELEMENT_BYTES)
        work = await client.work(SEED, [(0, info.vector_elements)], gradient)
        return info, work.part_digests
    finally:
        await client.close()
        pool.close()


def _check_disk(home: Path, needed_bytes: int) -> Check:
    probe = home / PROBE_FILE
    try:
        write_whole(probe, b"crowdsurf", replace=True)
        probe.unlink()
        free = shutil.disk_usage(home).free
    except OSError as error:
        fix = "choose a folder of yours with --home"
        return Check("disk", False, f"cannot write to {home}: {error.strerror or error}", fix)
    enough = free >= needed_bytes
    found = f"{home} has {free // 10**6:,} MB free, such a run takes {max(1, needed_bytes // 10**6):,} MB"
    return Check("disk", enough, found, None if enough else "free some space, or choose another --home")


def _check_ports(listen: Sequence[str]) -> Check:
    taken = []
    for text in listen:
        try:
            family, host, port = tcp_address(text)
            kind = socket.AF_INET6 if family in ("ip6", "dns6") else socket.AF_INET
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.bind((host, port))
        except MisuseError as error:
            taken.append(str(error))
        except OSError as error:
            taken.append(f"{text}: {error.strerror or error}")
    if taken:
        return Check("ports", False, "; ".join(taken), "stop what listens there, or choose another --listen")
    return Check("ports", True, f"can listen at {', '.join(listen)}")
