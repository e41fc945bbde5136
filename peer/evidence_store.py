"""Evidence on disk: one file for every banned peer, to be shown to anybody.

The idea: `evidence/` in the run folder holds what this peer saw convict others. A file is written once and whole, with
the certified steps before the ban taken from the journal, so it convinces a stranger who has nothing else but the
run's manifest. Nothing in it is secret, and nothing read back is believed: `protocol/recheck.py` checks it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from crowdsurf.peer.files import write_whole
from crowdsurf.peer.journal import read_journal
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.evidence import FILE_BYTES_MAX, Evidence, EvidenceFile, pack_evidence, unpack_evidence
from crowdsurf.protocol.ids import Digest, PeerId, peer_from_text, peer_text
from crowdsurf.protocol.recovery import RecordType

SUFFIX = ".evidence"


class EvidenceStore:
    """The `evidence` folder of a run folder. Methods block on the disk: call them in a thread."""

    def __init__(self, folder: Path, run_id: Digest) -> None:
        """`folder` is the run folder, with the journal."""
        self._run_folder = folder
        self._run_id = run_id

    def save(self, evidence: Evidence) -> Path:
        """Keep what convicted a peer; its file. The journal must have been synced since the ban was certified.

        What is there already stays: a peer is banned once. Raises WorldError; nothing is left behind then.
        """
        path = self.path(PeerId(evidence.ban.peer))
        if path.exists():
            return path
        data = pack_evidence(self._run_id, evidence, _certificates(self._run_folder))
        try:
            write_whole(path, data, replace=False)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WorldError(f"the disk is full: {path.name} needs {len(data)} bytes in {path.parent}") from error
            raise WorldError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def path(self, peer: PeerId) -> Path:
        """The file about a peer, if there is one."""
        return self._run_folder / "evidence" / f"{peer_text(peer)}{SUFFIX}"

    def peers(self) -> list[PeerId]:
        """The peers there are files about, sorted."""
        found = []
        for path in (self._run_folder / "evidence").glob(f"*{SUFFIX}"):
            with contextlib.suppress(Refusal):  # somebody else's file
                found.append(peer_from_text(path.name.removesuffix(SUFFIX)))
        return sorted(found)


def read_evidence(path: Path) -> EvidenceFile:
    """A file from anybody; only its form is checked. Raises MisuseError if there is none, WorldError if it cannot be
    read or is no evidence."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MisuseError(f"there is no evidence file {path}") from error
    except OSError as error:
        raise WorldError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return unpack_evidence(data)
    except Refusal as refusal:
        raise WorldError(f"{path} is no evidence, or is damaged ({refusal.detail}); ask for another copy") from refusal


def _certificates(folder: Path) -> Iterator[bytes]:
    """The packed certificates in a journal, oldest first."""
    return (payload for kind, payload in read_journal(folder) if kind == RecordType.CERTIFICATE)
