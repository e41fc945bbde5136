"""The home of an honest peer that saw two liars banned, with real keys; a running peer would have written the same."""

from __future__ import annotations

import functools
from pathlib import Path

from crowdsurf.peer.evidence_store import EvidenceStore
from crowdsurf.peer.journal import Journal
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.peer.launch import MANIFEST_FILE, run_folder, save_manifest
from crowdsurf.protocol.manifest import run_id_of
from crowdsurf.protocol.recovery import RecordType
from tests.protocol.trials import PEERS, Trial, trial_with_keys

KEYS_NEEDED = PEERS + 16
"""Of the members, and of those a simulation could let in."""


@functools.cache
def real_trial(attack: str) -> Trial:
    """Always the same one."""
    keys = [PeerKey(bytes([number + 1]) * 32) for number in range(KEYS_NEEDED)]
    return trial_with_keys(attack, keys, verify)


def make_home(root: Path, case: Trial, with_evidence: bool = True, steps: int | None = None) -> Path:
    """Write a home; its run folder. `steps`: how many certified steps its journal has, all by default."""
    folder = run_folder(root, run_id_of(case.manifest))
    save_manifest(folder, case.manifest)
    journal, _ = Journal.open(folder)
    for data in case.past[:steps]:
        journal.append(RecordType.SIGNED, b"something between the certificates")
        journal.append(RecordType.CERTIFICATE, data)
    journal.close()
    if with_evidence:
        for evidence in case.kept:
            store_of(folder, case).save(evidence)
            store_of(folder, case).add_past(evidence)
    return folder


def store_of(folder: Path, case: Trial) -> EvidenceStore:
    """The evidence in a run folder."""
    return EvidenceStore(folder, run_id_of(case.manifest))


def manifest_of(folder: Path) -> Path:
    """The manifest in a run folder."""
    return folder / MANIFEST_FILE
