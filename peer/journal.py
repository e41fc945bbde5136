"""The peer's memory of what it signed: an append-only log that is durable before anything is sent.

The idea: a signature that left this machine must still be known after a crash, or an honest peer that
restarts signs a second time for the same slot and is banned. So records are appended in memory, `sync` writes
them as one batch and waits for the disk, and only then may the caller send.

The file's format is in journal_format.py. What a crash tore was never durable and is cut off at the next start;
damage to anything that was durable stops the peer until a human decides, and the file is left as it is. File
space is taken ahead in steps of 1 MiB, because `fdatasync` is faster when the file's size stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from crowdsurf.peer.files import write_whole
from crowdsurf.peer.journal_format import (
    BATCH_BYTES_MAX,
    FILE_HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    RECORD_BYTES_MIN,
    SALT_BYTES,
    Found,
    encode_batch,
    new_file_header,
    read_salt,
    record_at,
    scan,
)
from crowdsurf.peer.keys import random_bytes
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.recovery import Record

JOURNAL_FILE = "journal.log"
LOCK_FILE = "journal.lock"
PREALLOCATED_BYTES = 1024 * 1024

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT_PREALLOCATE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


class Journal:
    """An open journal; one per folder. `append` and `sync` may be called from different threads."""

    def __init__(self, folder: Path, lock: int, file: int, salt: bytes, end: int, dropped_bytes: int) -> None:
        """Use `Journal.open`."""
        self.path = folder / JOURNAL_FILE
        self.dropped_bytes = dropped_bytes
        """Bytes of a torn last write that were cut off when the journal was opened; none of them was relied on."""
        self._lock_descriptor = lock
        self._descriptor = file
        self._salt = salt
        self._end = end
        self._allocated = end
        self._can_preallocate = hasattr(os, "posix_fallocate")
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._pending_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._broken: str | None = None

    @staticmethod
    def open(folder: Path) -> tuple[Journal, Iterator[Record]]:
        """The journal in `folder` (made if there is none) and its records, oldest first, read as they are asked for.

        Raises MisuseError if another process has it open, WorldError if the disk fails or the file is damaged
        anywhere but in its last, never durable write; the file is then left as it is.
        """
        path = folder / JOURNAL_FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(folder)
            try:
                if not path.exists():
                    write_whole(path, new_file_header(random_bytes(SALT_BYTES)), replace=False)
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    salt, end, dropped_bytes = _recover(file, path)
                except BaseException:
                    os.close(file)
                    raise
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise _world_error(path, error) from error
        return Journal(folder, lock, file, salt, end, dropped_bytes), _read_until(path, end)

    @property
    def pending_bytes(self) -> int:
        """Bytes of records that wait for the next `sync`; `append` takes no more than BATCH_BYTES_MAX of them."""
        with self._pending_lock:
            return self._pending_bytes

    def append(self, record_type: int, payload: bytes) -> None:
        """Keep a record for the next `sync`; nothing reaches the disk before. Raises MisuseError on a record out
        of bounds or BATCH_BYTES_MAX waiting, WorldError once the journal is broken or closed."""
        self._check_usable()
        if not 1 <= record_type <= 255 or len(payload) > PAYLOAD_BYTES_MAX:
            raise MisuseError(f"a journal record has a type from 1 to 255 and at most {PAYLOAD_BYTES_MAX} bytes")
        record_bytes = RECORD_BYTES_MIN + len(payload)
        with self._pending_lock:
            if self._pending_bytes + record_bytes > BATCH_BYTES_MAX:
                raise MisuseError(f"{self._pending_bytes} bytes wait for the journal; sync before appending more")
            self._pending.append((record_type, bytes(payload)))
            self._pending_bytes += record_bytes

    def sync(self) -> None:
        """Make everything appended so far durable. Blocks on the disk: call it in a thread.

        Raises WorldError if that failed. Records appended since the last success are then gone, and what they
        say must not be sent. On a full disk the journal stays usable; after any other failure it is broken,
        because nobody knows what the disk still holds.
        """
        with self._sync_lock:
            self._check_usable()
            with self._pending_lock:
                pending, self._pending, self._pending_bytes = self._pending, [], 0
            if not pending:
                return
            batch = encode_batch(self._salt, self._end, pending)
            try:
                self._allocate(self._end + len(batch))
                _write_at(self._descriptor, batch, self._end)
                _datasync(self._descriptor)
            except OSError as error:
                self._undo(error)
                raise _world_error(self.path, error) from error
            self._end += len(batch)

    def close(self) -> None:
        """Sync, give back the space taken ahead and release the lock. Safe to call twice. Raises like `sync`."""
        with self._sync_lock:
            if self._descriptor < 0:
                return
        try:
            if self._broken is None:
                self.sync()
        finally:
            with self._sync_lock:
                self._release()

    def _release(self) -> None:
        file, self._descriptor = self._descriptor, -1
        lock, self._lock_descriptor = self._lock_descriptor, -1
        broken, self._broken = self._broken, self._broken or "the journal is closed"
        try:
            if broken is None:
                os.ftruncate(file, self._end)
        except OSError as error:
            raise _world_error(self.path, error) from error
        finally:
            os.close(file)
            os.close(lock)

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise WorldError(self._broken)

    def _allocate(self, needed: int) -> None:
        """Take file space up to `needed` and beyond, so that a full disk shows before a record is half written."""
        if needed <= self._allocated or not self._can_preallocate:
            return
        for target in (needed + PREALLOCATED_BYTES, needed):
            try:
                os.posix_fallocate(self._descriptor, self._end, target - self._end)
                self._allocated = target
                return
            except OSError as error:
                if error.errno in _CANNOT_PREALLOCATE:
                    self._can_preallocate = False
                    return
                # Nearly full: take just what this batch needs.
                if error.errno not in _DISK_FULL or target == needed:
                    raise

    def _undo(self, error: OSError) -> None:
        """Back to the last durable record. If even that fails, or the disk did not take what it was given, stop."""
        try:
            os.ftruncate(self._descriptor, self._end)
            _datasync(self._descriptor)
            self._allocated = self._end
        except OSError as second:
            self._broken = f"the journal {self.path} cannot be written any more: {second.strerror}"
        if error.errno not in _DISK_FULL:
            self._broken = f"the journal {self.path} cannot be written any more: {error.strerror}"


def read_journal(folder: Path) -> Iterator[Record]:
    """The records in a folder's journal, oldest first, without a lock: also while its peer writes.

    Ends at the last whole record. Raises WorldError if there is no journal or it is damaged before that.
    """
    path = folder / JOURNAL_FILE
    try:
        with path.open("rb", buffering=0) as file:
            for item in scan(file.fileno(), path):
                if isinstance(item, Found):
                    yield item.record_type, item.payload
    except OSError as error:
        raise _world_error(path, error) from error


def _recover(file: int, path: Path) -> tuple[bytes, int, int]:
    """Salt, end of the last valid record, bytes cut off behind it."""
    end, dropped_bytes = FILE_HEADER_BYTES, 0
    for item in scan(file, path):
        if isinstance(item, Found):
            end = item.end
        else:
            dropped_bytes = item.dropped_bytes
    os.ftruncate(file, end)
    # What a killed process wrote may still be in memory only; from here on the caller relies on it.
    _datasync(file)
    return read_salt(file, path), end, dropped_bytes


def _read_until(path: Path, end: int) -> Iterator[Record]:
    """The records before `end`, which `_recover` has seen."""
    try:
        with path.open("rb", buffering=0) as file:
            salt = read_salt(file.fileno(), path)
            offset = FILE_HEADER_BYTES
            while offset < end:
                found = record_at(file.fileno(), salt, offset)
                if found is None:
                    raise WorldError(f"the journal {path} changed while it was read, at byte {offset}; check the disk")
                yield found.record_type, found.payload
                offset = found.end
    except OSError as error:
        raise _world_error(path, error) from error


def _take_lock(folder: Path) -> int:
    """An exclusive lock that ends with this process. Raises MisuseError if another process has it."""
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise MisuseError(
            f"a peer is already running in {folder}; stop it first, as one identity must never run twice"
        ) from error
    return lock


def _write_at(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _datasync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)


def _world_error(path: Path, error: OSError) -> WorldError:
    if error.errno in _DISK_FULL:
        return WorldError(f"the disk is full: {path} cannot grow; free some space and start the peer again")
    return WorldError(f"the journal {path} cannot be used: {error.strerror or error}")
