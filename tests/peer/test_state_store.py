"""States and updates on disk: pruned, whole or absent, and never believed."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from crowdsurf.peer.offline import Kept
from crowdsurf.peer.state_store import CHECKPOINTS_KEPT, StateStore
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import WorldError
from crowdsurf.protocol.ids import Digest, blob_digest
from crowdsurf.protocol.messages import Kind, Vote
from tests.peer.shell import key_of

ELEMENTS = 10
UPDATE = bytes(range(40))
STATE = b"state" * 20


def names(update: bytes) -> tuple[bytes, ...]:
    """Digests of its three parts of 3, 3 and 4 elements."""
    return tuple(blob_digest(piece) for piece in (update[:12], update[12:24], update[24:]))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path, ELEMENTS)


def test_a_state_comes_back_and_is_for_our_user_only(store: StateStore) -> None:
    store.save_state(10, memoryview(STATE))
    into = bytearray(len(STATE) + 7)
    assert store.read_state(10, memoryview(into)) == len(STATE)
    assert into[: len(STATE)] == STATE
    assert stat.S_IMODE(store.state_path(10).stat().st_mode) == 0o600


def test_old_states_go_and_so_do_updates_that_no_kept_state_needs(store: StateStore, tmp_path: Path) -> None:
    for step in range(35):
        update = step.to_bytes(40, "big")
        store.save_update(step, names(update), memoryview(update))
        if (step + 1) % 10 == 0:
            store.save_state(step + 1, memoryview(STATE))
    assert store.state_steps() == [20, 30]
    assert len(store.state_steps()) == CHECKPOINTS_KEPT
    kept = [name for name in files(tmp_path / "updates") if name.endswith(".update")]
    assert kept == sorted(f"{step}.update" for step in range(20, 35))
    # Files that are written over later; never more than updates between two states.
    assert len(files(tmp_path / "updates")) - len(kept) <= 10
    assert len(store._located_steps) == 15
    assert len(store._located) <= 45


def test_with_fewer_states_than_are_kept_every_update_is_needed(store: StateStore, tmp_path: Path) -> None:
    """A straggler of a short run needs them all: the last state is in no header."""
    for step in range(9):
        store.save_update(step, names(UPDATE), memoryview(UPDATE))
    store.save_state(9, memoryview(STATE))
    assert len(files(tmp_path / "updates")) == 9


def test_parts_are_found_by_digest_also_after_a_restart(store: StateStore, tmp_path: Path) -> None:
    parts = (names(UPDATE)[0], b"", names(UPDATE)[2])
    store.save_update(4, parts, memoryview(UPDATE))
    again = StateStore(tmp_path, ELEMENTS)
    assert again.has_part(Digest(parts[2])) is None
    again.locate(4, parts)
    again.locate(5, parts)  # not kept: nothing to find
    for known in (store, again):
        into = bytearray(16)
        assert known.has_part(Digest(parts[2])) == 16
        assert known.read_part(Digest(parts[2]), memoryview(into))
        assert into == UPDATE[24:]
        assert known.has_part(Digest(names(UPDATE)[1])) is None
        assert not known.read_part(Digest(names(UPDATE)[1]), memoryview(into))


def test_a_part_that_is_gone_or_cut_short_is_not_there(store: StateStore, tmp_path: Path) -> None:
    store.save_update(4, names(UPDATE), memoryview(UPDATE))
    path = tmp_path / "updates" / "4.update"
    path.write_bytes(UPDATE[:30])
    assert not store.read_part(Digest(names(UPDATE)[2]), memoryview(bytearray(16)))
    path.unlink()
    assert not store.read_part(Digest(names(UPDATE)[0]), memoryview(bytearray(12)))


def test_a_digest_in_two_updates_survives_the_older_one(store: StateStore) -> None:
    for step in (3, 12):
        store.save_update(step, names(UPDATE), memoryview(UPDATE))
    store.save_state(10, memoryview(STATE))
    assert store.has_part(Digest(names(UPDATE)[0])) == 12
    assert store.read_part(Digest(names(UPDATE)[0]), memoryview(bytearray(12)))


def test_another_outcome_of_a_step_replaces_the_first(store: StateStore) -> None:
    """A peer keeps what it votes for, and may vote again in a later view."""
    other = bytes(40)
    store.save_update(3, names(UPDATE), memoryview(UPDATE))
    assert store.has_update(3, names(UPDATE))
    store.save_update(3, names(other), memoryview(other))
    assert not store.has_update(3, names(UPDATE))
    assert store.has_update(3, names(other))
    assert store.has_part(Digest(names(UPDATE)[0])) is None
    assert store.has_part(Digest(names(other)[0])) == 12


def test_what_a_crash_left_half_written_is_swept_and_strange_names_are_ignored(tmp_path: Path) -> None:
    StateStore(tmp_path, ELEMENTS).save_state(10, memoryview(STATE))
    (tmp_path / "states" / "20.state.part").write_bytes(b"torn")
    (tmp_path / "updates" / "7.update.part").write_bytes(b"torn")
    for strange in ("x.state", "-1.state", "².state"):
        (tmp_path / "states" / strange).write_bytes(b"?")
    store = StateStore(tmp_path, ELEMENTS)
    assert store.state_steps() == [10]
    assert not list(tmp_path.rglob("*.part"))


def test_a_state_of_another_size_or_none_is_an_error_in_words(store: StateStore) -> None:
    store.save_state(10, memoryview(STATE))
    with pytest.raises(WorldError, match="larger than a state of this run"):
        store.read_state(10, memoryview(bytearray(5)))
    store.drop_state(10)
    store.drop_state(10)
    assert store.state_steps() == []
    with pytest.raises(WorldError, match="cannot read"):
        store.read_state(10, memoryview(bytearray(5)))


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "the disk is full.*nothing is lost"), (errno.EIO, "cannot write")]
)
def test_a_disk_that_fails_leaves_what_was_there(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    store.save_state(10, memoryview(STATE))

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WorldError, match=words):
        store.save_state(20, memoryview(b"other" * 20))
    assert files(tmp_path) == ["10.state"]
    assert store.read_state(10, memoryview(bytearray(len(STATE)))) == len(STATE)


def test_a_write_that_takes_only_a_part_is_continued(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Grudging(FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(data[:7])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, mode, buffering: Grudging(path, "wb"))
        store.save_state(10, memoryview(STATE))
    assert (tmp_path / "states" / "10.state").read_bytes() == STATE


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "states").write_bytes(b"a file is in the way")
    with pytest.raises(WorldError, match="cannot keep states"):
        StateStore(tmp_path, ELEMENTS)


def test_an_update_is_written_over_one_that_is_no_longer_needed(store: StateStore, tmp_path: Path) -> None:
    long, short = bytes(40), bytes(range(20))
    for step in range(30):
        store.save_update(step, names(long), memoryview(long))
        if (step + 1) % 10 == 0:
            store.save_state(step + 1, memoryview(STATE))
    files_before = len(files(tmp_path / "updates"))
    store.save_update(30, names(long), memoryview(short))
    assert (tmp_path / "updates" / "30.update").read_bytes() == short
    assert len(files(tmp_path / "updates")) == files_before


def test_a_file_that_somebody_reads_is_not_written_over(store: StateStore, tmp_path: Path) -> None:
    update = bytes(40)
    for step in range(20):
        store.save_update(step, names(update), memoryview(update))
    store.save_state(10, memoryview(STATE))
    store.save_state(19, memoryview(STATE))
    with Kept(tmp_path) as kept:
        for step in range(20, 40):
            store.save_update(step, names(update), memoryview(bytes([step]) * 40))
            store.save_state(step, memoryview(STATE))
        assert len(kept.updates) == 10
        assert all(file.read() == update for file in kept.updates.values())


def test_the_grounds_of_the_newest_vote_come_back_and_damage_costs_nothing(store: StateStore, tmp_path: Path) -> None:
    assert store.grounds() == []
    said = [seal(key_of(0), bytes(32), Slot(step, 0, Kind.VOTE, b""), Vote(bytes(32))).envelope for step in range(3)]
    store.save_grounds(tuple(said[:1]))
    store.save_grounds(tuple(said))
    assert StateStore(tmp_path, ELEMENTS).grounds() == said
    kept = tmp_path / "updates" / "newest.grounds"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert store.grounds() == []
