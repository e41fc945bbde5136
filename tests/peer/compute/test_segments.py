"""Shared segments: sizes, reuse, sharing by descriptor, and the errors of a full world."""

from __future__ import annotations

import errno
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.compute import segments
from crowdsurf.peer.compute.segments import SEGMENT_BYTES_MIN, Segment, SegmentPool, size_class
from crowdsurf.protocol.errors import MisuseError, WorldError


def test_two_mappings_of_a_segment_see_the_same_bytes() -> None:
    segment = Segment(5000)
    other = mmap.mmap(segment.descriptor, segment.capacity)
    segment.view[:5] = b"hello"
    assert other[:5] == b"hello"
    assert len(segment.view) == 5000
    other.close()
    segment.close()


def test_pages_are_reserved_when_the_segment_is_made() -> None:
    segment = Segment(1 << 20)
    assert os.fstat(segment.descriptor).st_blocks * 512 >= 1 << 20
    segment.close()


def test_no_room_is_one_sentence_and_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def full(descriptor: int, offset: int, length: int) -> None:
        opened.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorldError, match="cannot reserve 4096 bytes of shared memory: No space left"):
        Segment(4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_a_segment_may_be_closed_while_a_view_is_held() -> None:
    segment = Segment(16)
    view = segment.view
    segment.close()
    segment.close()
    view[0] = 1
    assert view[0] == 1


@pytest.mark.parametrize("nbytes", [0, -1])
def test_sizes_below_one_are_misuse(nbytes: int) -> None:
    with pytest.raises(MisuseError):
        Segment(nbytes)
    with pytest.raises(MisuseError):
        SegmentPool(1 << 20).take(nbytes)


@given(st.integers(min_value=1, max_value=1 << 40))
def test_size_classes_are_stable_and_waste_at_most_an_eighth(nbytes: int) -> None:
    capacity = size_class(nbytes)
    assert capacity >= nbytes
    assert capacity <= max(SEGMENT_BYTES_MIN, nbytes * 9 // 8 + 1)
    assert size_class(capacity) == capacity


def test_the_pool_reuses_segments_of_a_size_class() -> None:
    pool = SegmentPool(idle_bytes_max=10 << 20)
    first = pool.take(1_000_000)
    pool.release(first)
    second = pool.take(1_000_100)
    assert second is first
    assert len(second.view) == 1_000_100
    assert pool.take(1_000_000) is not first
    pool.close()


def test_the_pool_keeps_at_most_its_bound_and_drops_the_oldest() -> None:
    pool = SegmentPool(idle_bytes_max=2 * SEGMENT_BYTES_MIN)
    taken = [pool.take(1) for _ in range(3)]
    for segment in taken:
        pool.release(segment)
    assert [segment.closed for segment in taken] == [True, False, False]
    assert pool.idle_bytes == 2 * SEGMENT_BYTES_MIN
    pool.close()
    assert all(segment.closed for segment in taken)


def test_releasing_twice_is_misuse() -> None:
    pool = SegmentPool(idle_bytes_max=1 << 20)
    segment = pool.take(1)
    pool.release(segment)
    with pytest.raises(MisuseError):
        pool.release(segment)
    pool.close()


def test_without_memfd_an_unlinked_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    segment = segments.Segment(4096)
    segment.view[:2] = b"ok"
    assert bytes(segment.view[:2]) == b"ok"
    assert os.fstat(segment.descriptor).st_nlink == 0
    segment.close()
