"""States and updates on disk: what a restarted peer starts from and what newcomers and stragglers are served.

The idea: now and then a whole state is saved as it was before some step, and every certified step since the
older kept one is saved as its averaged gradient. A state plus the updates after it is any later state, so
neither a crash of this peer nor one of the whole swarm loses a certified step. Files are named by step, written
beside and renamed, and checked by digest when they are used, never believed.

An update that is no longer needed is not removed but written over by a later one: its pages are in memory already,
and fresh ones cost several times the copy. The disk never holds more than it does just before old updates go.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from io import FileIO, RawIOBase
from pathlib import Path

from crowdsurf.peer.files import fsync_folder
from crowdsurf.protocol.assignment import ELEMENT_BYTES, part_ranges
from crowdsurf.protocol.errors import Refusal, WorldError
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Envelope
from crowdsurf.protocol.recovery import GROUNDS_BYTES_MAX, pack_grounds, unpack_grounds

CHECKPOINTS_KEPT = 2
"""Whole states kept: the newest, and the one before it for whoever is being served."""
WRITE_BYTES = 16 * 1024 * 1024
"""Bytes given to one write call."""


class StateStore:
    """The `states` and `updates` folders of a peer's home. Methods block on the disk: call them in a thread."""

    def __init__(self, folder: Path, elements: int) -> None:
        self._states = folder / "states"
        self._updates = folder / "updates"
        self._grounds = folder / "updates" / "newest.grounds"
        self._elements = elements
        self._located: dict[Digest, tuple[int, int, int]] = {}
        self._located_steps: dict[int, tuple[bytes, ...]] = {}
        self._spare: list[Path] = []
        try:
            for path in (self._states, self._updates):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                for leftover in path.glob("*.part"):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise WorldError(f"cannot keep states in {folder}: {error.strerror or error}") from error

    # --- states ------------------------------------------------------------------------------------------

    def save_state(self, step: int, data: memoryview) -> None:
        """Keep the state before `step`; older ones go. Raises WorldError."""
        self._write(self._states / f"{step}.state", data, durable=True, spare=[])
        for old in self.state_steps()[:-CHECKPOINTS_KEPT]:
            (self._states / f"{old}.state").unlink(missing_ok=True)
        self._prune_updates()

    def drop_state(self, step: int) -> None:
        """Remove a kept state that turned out to be wrong."""
        self.state_path(step).unlink(missing_ok=True)

    def state_steps(self) -> list[int]:
        """Steps whose state before is kept, rising."""
        return _steps_in(self._states, ".state")

    def state_path(self, step: int) -> Path:
        """The file of a kept state."""
        return self._states / f"{step}.state"

    def read_state(self, step: int, into: memoryview) -> int:
        """Read a kept state; its size in bytes. Raises WorldError if it does not fit or cannot be read."""
        path = self.state_path(step)
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size > len(into):
                    raise WorldError(f"{path} is larger than a state of this run; remove it and start again")
                position = 0
                while position < size:
                    count = file.readinto(into[position:size])
                    if not count:
                        break
                    position += count
                return position
        except OSError as error:
            raise WorldError(f"cannot read {path}: {error.strerror}") from error

    # --- the grounds of the newest vote ------------------------------------------------------------------

    def save_grounds(self, grounds: tuple[Envelope, ...]) -> None:
        """Keep what the header we are about to vote for follows from. Raises WorldError."""
        self._write(self._grounds, memoryview(pack_grounds(grounds)), durable=False, spare=[])

    def grounds(self) -> list[Envelope]:
        """What was kept last; nothing if it cannot be read, which costs nothing but help for others."""
        try:
            with self._grounds.open("rb") as file:
                return unpack_grounds(file.read(GROUNDS_BYTES_MAX))
        except (OSError, Refusal):
            return []

    # --- updates -----------------------------------------------------------------------------------------

    def save_update(self, step: int, parts: tuple[bytes, ...], data: memoryview) -> None:
        """Keep the averaged gradient of a step. Raises WorldError."""
        self._write(self._updates / f"{step}.update", data, durable=False, spare=self._spare)
        self.locate(step, parts)

    def locate(self, step: int, parts: tuple[bytes, ...]) -> None:
        """Remember which bytes of a step's update should have which digest, if there is one. What was kept before a
        vote may be another outcome than the certified one: whoever reads a part checks it."""
        if not (self._updates / f"{step}.update").exists():
            return
        self._forget(step)
        self._located_steps[step] = parts
        for digest, (start, stop) in zip(parts, part_ranges(self._elements, len(parts)), strict=True):
            if digest:
                self._located[Digest(digest)] = (step, start * ELEMENT_BYTES, (stop - start) * ELEMENT_BYTES)

    def is_located(self, step: int) -> bool:
        """Whether it is known what the update of a step that is kept was saved as."""
        return step in self._located_steps

    def has_update(self, step: int, parts: tuple[bytes, ...]) -> bool:
        """Whether the update of a step that is kept was saved as, or is taken for, these parts."""
        return self._located_steps.get(step) == parts

    def has_part(self, digest: Digest) -> int | None:
        """Size in bytes of an aggregated part that is kept; None if it is not."""
        found = self._located.get(digest)
        return found[2] if found is not None else None

    def read_part(self, digest: Digest, into: memoryview) -> bool:
        """Read a kept aggregated part, as the disk has it; the caller checks its digest. False if it is not there."""
        found = self._located.get(digest)
        if found is None:
            return False
        step, offset, nbytes = found
        try:
            with (self._updates / f"{step}.update").open("rb", buffering=0) as file:
                file.seek(offset)
                complete = file.readinto(into[:nbytes]) == nbytes
            # Still located: so the file was not given to another update while it was read.
            return complete and self._located.get(digest) == found
        except OSError:
            return False

    def _prune_updates(self) -> None:
        # Until there are as many states as are kept, the initial one, which everybody has, counts as the oldest.
        steps = self.state_steps()
        oldest = steps[0] if len(steps) >= CHECKPOINTS_KEPT else 0
        for step in _steps_in(self._updates, ".update"):
            if step < oldest:
                self._forget(step)
                spare = self._updates / f"{step}.spare.part"
                os.replace(self._updates / f"{step}.update", spare)
                self._spare.append(spare)

    def _forget(self, step: int) -> None:
        for digest in self._located_steps.pop(step, ()):
            if self._located.get(Digest(digest), (None,))[0] == step:
                del self._located[Digest(digest)]

    def _write(self, path: Path, data: memoryview, durable: bool, spare: list[Path]) -> None:
        """Write a whole file, over one of the spare files if there is one. Raises WorldError."""
        temporary = path.with_suffix(path.suffix + ".part")
        try:
            with _unused_file(spare, temporary) as file:
                os.chmod(temporary, 0o600)
                _write_all(file, data)
                file.truncate()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                fsync_folder(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WorldError(
                    f"the disk is full: {path.name} needs {len(data)} bytes in {path.parent}; free some space and "
                    "start the peer again, nothing is lost"
                ) from error
            raise WorldError(f"cannot write {path}: {error.strerror}") from error


def _unused_file(spare: list[Path], path: Path) -> FileIO:
    """A file at `path` to write: a spare one that nobody reads any more if there is one, else a new one. Readers
    hold a shared lock (`offline.Kept`), so what they opened stays what it was."""
    while spare:
        candidate = spare.pop()
        with contextlib.suppress(OSError):
            file = FileIO(candidate, "r+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(candidate, path)
                return file
            except OSError:
                file.close()
        candidate.unlink(missing_ok=True)
    return FileIO(path, "w")


def _write_all(file: RawIOBase, data: memoryview) -> None:
    """Write everything: one call may take only a part, above all when the disk is nearly full."""
    position = 0
    while position < len(data):
        position += file.write(data[position : position + WRITE_BYTES]) or 0


def _steps_in(folder: Path, suffix: str) -> list[int]:
    names = (path.name.removesuffix(suffix) for path in folder.iterdir() if path.name.endswith(suffix))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())
