"""Shared memory between the daemon and its worker: anonymous files, reserved, mapped and reused.

The idea: vectors are too large to copy through a pipe, so both processes map the same anonymous file
(`memfd_create`, or an unlinked temporary file). It has no name, so nothing is left behind however the
processes end. All pages are reserved when it is made: a full disk is then an error here and not a SIGBUS in
the middle of a step. Fresh pages cost ten times a copy into warm ones, so a pool hands used segments out again.

This module never imports torch: the daemon uses it.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile

from crowdsurf.protocol.errors import MisuseError, WorldError

SEGMENT_BYTES_MIN = 64 * 1024
"""Smallest segment; smaller requests share this size class."""

_identifiers = itertools.count(1)


class Segment:
    """One piece of shared memory, at least `nbytes` long; its content is arbitrary until written.

    `identifier` is unique in this process: the worker knows the segment by it.
    """

    def __init__(self, nbytes: int, capacity: int | None = None) -> None:
        """Reserve and map. Raises MisuseError for a size below one, WorldError when there is no room."""
        if nbytes < 1:
            raise MisuseError(f"a segment has at least one byte, not {nbytes}")
        self.identifier = next(_identifiers)
        self.nbytes = nbytes
        self.capacity = max(nbytes, capacity or 0)
        self.closed = False
        try:
            self._descriptor = _anonymous_file(self.capacity)
        except OSError as error:
            raise WorldError(f"cannot reserve {self.capacity} bytes of shared memory: {error.strerror}") from error
        try:
            self._map = mmap.mmap(self._descriptor, self.capacity)
        except OSError as error:
            os.close(self._descriptor)
            raise WorldError(f"cannot map {self.capacity} bytes of shared memory: {error.strerror}") from error

    @property
    def descriptor(self) -> int:
        """File descriptor to send to the worker."""
        return self._descriptor

    @property
    def view(self) -> memoryview:
        """Writable bytes, `nbytes` long."""
        return memoryview(self._map)[: self.nbytes]

    def close(self) -> None:
        """Give the memory back once nobody holds a view of it any more; closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        os.close(self._descriptor)
        with contextlib.suppress(BufferError):  # somebody still holds a view; the mapping goes with the last one
            self._map.close()


def _anonymous_file(nbytes: int) -> int:
    """A nameless file of `nbytes` whose pages are reserved. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("crowdsurf", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, nbytes)
        else:
            os.ftruncate(descriptor, nbytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def size_class(nbytes: int) -> int:
    """The capacity used for a request: at most one eighth above it, so that requests of like size share segments."""
    nbytes = max(nbytes, SEGMENT_BYTES_MIN)
    step = 1 << max(0, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


class SegmentPool:
    """Hands out segments and keeps released ones warm, at most `idle_bytes_max` of them (oldest go first)."""

    def __init__(self, idle_bytes_max: int) -> None:
        self._idle_bytes_max = idle_bytes_max
        self._idle: list[Segment] = []

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for reuse."""
        return sum(segment.capacity for segment in self._idle)

    def take(self, nbytes: int) -> Segment:
        """A segment of `nbytes`, with arbitrary content. Raises MisuseError or WorldError as `Segment` does."""
        capacity = size_class(nbytes)
        for index in range(len(self._idle) - 1, -1, -1):  # the latest released is the warmest
            if self._idle[index].capacity == capacity and nbytes > 0:
                segment = self._idle.pop(index)
                segment.nbytes = nbytes
                return segment
        return Segment(nbytes, capacity)

    def release(self, segment: Segment) -> None:
        """Take a segment back. The caller promises that no view of it is used any more. Raises MisuseError
        when it was released before."""
        if segment.closed or any(segment is other for other in self._idle):
            raise MisuseError("this segment has been released already")
        self._idle.append(segment)
        while self._idle and self.idle_bytes > self._idle_bytes_max:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Give all idle memory back."""
        while self._idle:
            self._idle.pop().close()
