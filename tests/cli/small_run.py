"""A small finished run of two peers, made for real (memory transport), for tests of what is done with a past."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.config import load_config
from crowdsurf.peer.daemon import Daemon, Outcome
from crowdsurf.peer.invite import encode_invite
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import KEY_FILE, MemorySwarm, run_folder, save_manifest
from crowdsurf.protocol.effects import StepCertified
from crowdsurf.protocol.ids import Digest, peer_text
from crowdsurf.protocol.manifest import Manifest, run_id_of

CONFIG = """
name: small
task: {name: digits, parameters: {model: mlp, hidden: 8}}
work: {micro_batches: BATCHES, micro_batch_samples: 8}
optimizer: {name: sgd, learning_rate: 0.05}
steps: STEPS
"""
"""A config that trains in no time."""

STEPS = 12
"""More than one checkpoint interval, so that states and updates are both kept."""


@dataclass(frozen=True)
class SmallRun:
    """What the run left behind."""

    root: Path
    homes: tuple[Path, ...]
    keys: tuple[PeerKey, ...]
    manifest: Manifest
    outcomes: tuple[Outcome, ...]

    def folder(self, number: int = 0) -> Path:
        """Run folder of one of the peers."""
        return run_folder(self.homes[number], run_id_of(self.manifest))

    def invite(self) -> str:
        """An invite to it; nobody is at its address."""
        key = self.keys[0]
        address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_text(key.peer_id)}"
        return encode_invite(run_id_of(self.manifest), (address,), key.peer_id, key.sign)


def write_config(folder: Path, steps: int = STEPS, micro_batches: int = 1) -> Path:
    """The small config as a file."""
    path = folder / "small.yaml"
    text = CONFIG.replace("STEPS", str(steps)).replace("BATCHES", str(micro_batches))
    path.write_text(text, encoding="utf-8")
    return path


def make_small_run(root: Path, peers: int = 2, steps: int = STEPS, cut_at: int | None = None) -> SmallRun:
    """Train it; `cut_at` ends all peers in the middle of things once that step is certified."""
    return asyncio.run(_train(root, peers, steps, cut_at))


async def _train(root: Path, peers: int, steps: int, cut_at: int | None) -> SmallRun:
    homes = tuple(root / f"peer-{number}" for number in range(peers))
    keys = tuple(PeerKey.load_or_create(home / KEY_FILE) for home in homes)
    founders = [key.peer_id for key in keys]
    draft = load_config(write_config(root, steps))
    client = ComputeClient()
    try:
        info = await client.start(draft.build(founders[0], founders, Digest(b"")), "cpu")
    finally:
        await client.close()
    manifest = draft.build(founders[0], founders, info.dataset_digest)
    swarm = MemorySwarm()
    for home in homes:
        save_manifest(run_folder(home, run_id_of(manifest)), manifest)
    daemons = [Daemon(manifest, swarm.place(manifest, home, key)) for home, key in zip(homes, keys, strict=True)]
    lives = [asyncio.create_task(daemon.run()) for daemon in daemons]

    def cut(story: StepCertified) -> None:
        if story.step == cut_at:
            for life in lives:
                life.cancel()

    daemons[0].on_step = cut
    ends = await asyncio.gather(*lives, return_exceptions=True)
    outcomes = tuple(end for end in ends if isinstance(end, Outcome))
    assert len(outcomes) == (peers if cut_at is None else 0), ends
    return SmallRun(root, homes, keys, manifest, outcomes)
