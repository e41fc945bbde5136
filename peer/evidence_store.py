"""Evidence on disk: one file for every banned peer, to be shown to anybody.

The idea: `evidence/` in the run folder holds what this peer saw convict others. A file is kept at once as what it is,
and then replaced by one with the certified steps before the ban, taken from the journal: that one convinces a stranger
who has nothing else but the run's manifest. Those steps are many and the same in every file, and identities to ban cost
nothing, so the folder has a bound; beyond it a file stays without them, and they are added when somebody asks. Nothing
in it is secret, and nothing read back is believed: `protocol/recheck.py` checks it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from crowdsurf.peer.files import checked_target, write_whole
from crowdsurf.peer.journal import read_journal
from crowdsurf.protocol import wire
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.evidence import FILE_BYTES_MAX, Evidence, EvidenceFile, pack_evidence, unpack_evidence
from crowdsurf.protocol.ids import Digest, PeerId, peer_from_text, peer_text
from crowdsurf.protocol.recovery import RecordType

SUFFIX = ".evidence"
FOLDER_BYTES_MAX = 256 * 1024 * 1024
"""All files together, as long as the past is added to any: four of the largest, hundreds of a run of a day."""


class EvidenceStore:
    """The `evidence` folder of a run folder. Methods block on the disk: call them in a thread."""

    def __init__(self, folder: Path, run_id: Digest) -> None:
        """`folder` is the run folder, with the journal."""
        self._run_folder = folder
        self._run_id = run_id
        self._is_full = False
        """Whether a past had no place: those of later bans are longer, so nobody reads the journal for them."""

    def save(self, evidence: Evidence) -> bool:
        """Keep what convicted a peer, durably and without the past; whether there was nothing about it before.

        What is there already stays: a peer is banned once. Raises WorldError; nothing is left behind then.
        """
        path = self.path(PeerId(evidence.ban.peer))
        return not path.exists() and _write(path, pack_evidence(self._run_id, evidence, ()), replace=False)

    def add_past(self, evidence: Evidence) -> bool:
        """Replace a file that `save` has written by one with the past; whether there was room for it.

        The journal must have been synced since the ban was certified. Raises WorldError; the file is then as it was.
        """
        if self._is_full:
            return False
        path, alone = self.path(PeerId(evidence.ban.peer)), pack_evidence(self._run_id, evidence, ())
        room = FOLDER_BYTES_MAX - self._bytes() + len(alone)
        data = self._with_past(evidence, min(room, FILE_BYTES_MAX))
        if data is None:
            self._is_full = True
            return False
        return _write(path, data, replace=True)

    def export(self, peer: PeerId, out: Path) -> Path:
        """Write a file about a peer that has the past in it; its absolute path.

        Raises MisuseError if nothing can be written there or there is no file about the peer, WorldError otherwise."""
        out, file = checked_target(out), read_evidence(self.path(peer))
        data = self._with_past(file.evidence, FILE_BYTES_MAX) if file.lacks_past else wire.pack(file)
        if data is None:
            steps = file.evidence.certificate.header.step
            raise WorldError(
                f"the {steps} certified steps before the ban are not all in the journal in {self._run_folder}, or do "
                f"not fit in a file of {FILE_BYTES_MAX // 2**20} MiB; show that folder instead"
            )
        _write(out, data, replace=True)
        return out

    def _with_past(self, evidence: Evidence, bytes_max: int) -> bytes | None:
        """A file's bytes with all steps before the ban; None if there is one missing, or no room."""
        data = pack_evidence(self._run_id, evidence, _certificates(self._run_folder), bytes_max)
        steps = evidence.certificate.header.step
        return None if steps and len(data) == len(pack_evidence(self._run_id, evidence, ())) else data

    def _bytes(self) -> int:
        """What is in the folder, whoever wrote it."""
        total = 0
        for path in (self._run_folder / "evidence").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

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


def _write(path: Path, data: bytes, *, replace: bool) -> bool:
    """Raises WorldError."""
    try:
        return write_whole(path, data, replace=replace)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorldError(f"the disk is full: {path.name} needs {len(data)} bytes in {path.parent}") from error
        raise WorldError(f"cannot write {path}: {error.strerror or error}") from error


def _certificates(folder: Path) -> Iterator[bytes]:
    """The packed certificates in a journal, oldest first."""
    return (payload for kind, payload in read_journal(folder) if kind == RecordType.CERTIFICATE)
