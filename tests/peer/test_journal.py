"""The journal keeps what it promised through kills, torn writes, flipped bits, a full disk and a second process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.peer import journal as journal_module
from crowdsurf.peer.journal import JOURNAL_FILE, PREALLOCATED_BYTES, Journal, read_journal
from crowdsurf.peer.journal_format import BATCH_BYTES_MAX, PAYLOAD_BYTES_MAX
from crowdsurf.protocol.errors import MisuseError, WorldError

Records = list[tuple[int, bytes]]


def write(folder: Path, *batches: Records) -> None:
    """Append each batch with one sync, then close."""
    journal, recovered = Journal.open(folder)
    list(recovered)
    for batch in batches:
        for record_type, payload in batch:
            journal.append(record_type, payload)
        journal.sync()
    journal.close()


def reopen(folder: Path) -> tuple[Records, int]:
    """What recovery finds, and how many bytes it cut off."""
    journal, recovered = Journal.open(folder)
    records, dropped_bytes = list(recovered), journal.dropped_bytes
    journal.close()
    return records, dropped_bytes


FIRST: Records = [(1, b"vote"), (2, b""), (255, b"\0" * 40)]
SECOND: Records = [(3, b"certificate" * 9), (1, b"vote again")]
THIRD: Records = [(7, b"last")]


def test_records_come_back_in_order_and_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "peer"
    write(folder, FIRST, SECOND)
    write(folder, THIRD)
    assert reopen(folder) == (FIRST + SECOND + THIRD, 0)
    assert list(read_journal(folder)) == FIRST + SECOND + THIRD
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_nothing_is_on_disk_before_sync_and_a_live_folder_can_be_read(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    journal.append(1, b"one")
    assert list(read_journal(tmp_path)) == []
    journal.sync()
    journal.append(2, b"two")
    assert list(read_journal(tmp_path)) == [(1, b"one")]
    journal.close()
    assert list(read_journal(tmp_path)) == [(1, b"one"), (2, b"two")]


def test_recovered_records_stay_readable_while_new_ones_are_appended(tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    journal, recovered = Journal.open(tmp_path)
    journal.append(9, b"new")
    journal.sync()
    assert list(recovered) == FIRST
    journal.close()
    assert reopen(tmp_path)[0] == [*FIRST, (9, b"new")]


def test_closed_journal_gives_back_space_and_refuses_work(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    journal.append(1, b"x")
    journal.sync()
    assert (tmp_path / JOURNAL_FILE).stat().st_size >= PREALLOCATED_BYTES
    journal.close()
    journal.close()
    assert (tmp_path / JOURNAL_FILE).stat().st_size < 100
    with pytest.raises(WorldError, match="closed"):
        journal.append(1, b"x")
    with pytest.raises(WorldError, match="closed"):
        journal.sync()


def test_bounds(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    for record_type, payload in ((0, b""), (256, b""), (1, bytes(PAYLOAD_BYTES_MAX + 1))):
        with pytest.raises(MisuseError, match="journal record"):
            journal.append(record_type, payload)
    largest = bytes(PAYLOAD_BYTES_MAX)
    for _ in range(BATCH_BYTES_MAX // PAYLOAD_BYTES_MAX - 1):
        journal.append(1, largest)
    waiting = journal.pending_bytes
    assert BATCH_BYTES_MAX - 2 * PAYLOAD_BYTES_MAX < waiting <= BATCH_BYTES_MAX
    with pytest.raises(MisuseError, match="sync before"):
        journal.append(1, largest)
    assert journal.pending_bytes == waiting
    journal.sync()
    assert journal.pending_bytes == 0
    journal.append(1, largest)
    journal.close()
    assert sum(1 for _ in read_journal(tmp_path)) == BATCH_BYTES_MAX // PAYLOAD_BYTES_MAX


def test_second_opener_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    with pytest.raises(MisuseError, match="already running"):
        Journal.open(tmp_path)
    program = f"""
        from pathlib import Path
        from crowdsurf.peer.journal import Journal
        from crowdsurf.protocol.errors import MisuseError
        try:
            Journal.open(Path({str(tmp_path)!r}))
        except MisuseError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "already running" in done.stdout
    journal.close()
    assert reopen(tmp_path) == ([], 0)


def test_torn_last_write_is_cut_off_and_reported_at_every_length(tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    path = tmp_path / JOURNAL_FILE
    durable = len(path.read_bytes())
    write(tmp_path, SECOND)
    whole = path.read_bytes()
    for length in range(durable, len(whole)):
        path.write_bytes(whole[:length])
        records, dropped_bytes = reopen(tmp_path)
        assert records in (FIRST, FIRST + SECOND[:1])
        assert (dropped_bytes > 0) == (length not in (durable, durable + 17 + len(SECOND[0][1])))
        assert reopen(tmp_path) == (records, 0)


def test_hole_in_the_unsynced_batch_is_a_torn_write(tmp_path: Path) -> None:
    """After a power loss a later page of the batch may be there and an earlier one not."""
    write(tmp_path, FIRST)
    path = tmp_path / JOURNAL_FILE
    durable = path.stat().st_size
    write(tmp_path, SECOND)
    data = bytearray(path.read_bytes())
    data[durable : durable + 20] = bytes(20)
    path.write_bytes(data)
    records, dropped_bytes = reopen(tmp_path)
    assert records == FIRST
    assert dropped_bytes == len(data) - durable


def test_damage_in_durable_records_stops_the_peer_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, FIRST, SECOND)
    path = tmp_path / JOURNAL_FILE
    data = bytearray(path.read_bytes())
    data[32 + 9 + 1] ^= 0x20
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(WorldError, match="damaged at byte 32, before whole records") as caught:
            Journal.open(tmp_path)
        assert str(path) in str(caught.value)
        with pytest.raises(WorldError, match="damaged at byte 32"):
            list(read_journal(tmp_path))
        assert path.read_bytes() == bytes(data)


def test_records_cannot_be_moved_or_transplanted(tmp_path: Path) -> None:
    write(tmp_path / "a", [(1, b"aa")], [(1, b"bb")], [(1, b"cc")])
    write(tmp_path / "b", [(1, b"AA")], [(1, b"BB")], [(1, b"CC")])
    path = tmp_path / "a" / JOURNAL_FILE
    own, other = path.read_bytes(), (tmp_path / "b" / JOURNAL_FILE).read_bytes()
    one = 17 + 2
    first, second = slice(32, 32 + one), slice(32 + one, 32 + 2 * one)
    for forged in (
        own[:32] + own[second] + own[first] + own[second.stop :],
        own[: second.start] + other[second] + own[second.stop :],
        own[: first.stop] + own[second.stop :],
    ):
        path.write_bytes(forged)
        # The first record at most; whatever follows is out of place.
        assert recovered_or_refused(tmp_path / "a") in ([(1, b"aa")], None)


def recovered_or_refused(folder: Path) -> Records | None:
    """What recovery finds; None if it refuses."""
    try:
        return reopen(folder)[0]
    except WorldError:
        return None


@pytest.fixture(scope="module")
def sound_file() -> tuple[bytes, list[Records]]:
    """The bytes of a journal of three batches, and every prefix of its records."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), FIRST, SECOND, THIRD)
        records = FIRST + SECOND + THIRD
        return (Path(folder) / JOURNAL_FILE).read_bytes(), [records[:count] for count in range(len(records) + 1)]


@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits_never_give_a_wrong_record(sound_file: tuple[bytes, list[Records]], data: st.DataObject) -> None:
    sound, prefixes = sound_file
    flips = data.draw(st.lists(st.integers(0, len(sound) * 8 - 1), min_size=1, max_size=3, unique=True))
    damaged = bytearray(sound)
    for bit in flips:
        damaged[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as name:
        check_damaged(Path(name), bytes(damaged), prefixes)


def test_a_flip_at_every_byte_is_detected(sound_file: tuple[bytes, list[Records]]) -> None:
    sound, prefixes = sound_file
    with tempfile.TemporaryDirectory() as name:
        for index in range(len(sound)):
            damaged = bytearray(sound)
            damaged[index] ^= 0x01
            records = check_damaged(Path(name), bytes(damaged), prefixes)
            # Only the last batch may be taken for a torn write: what a whole batch follows is never cut off.
            assert records is None or records[: len(FIRST + SECOND)] == FIRST + SECOND


def check_damaged(folder: Path, damaged: bytes, prefixes: list[Records]) -> Records | None:
    """Recovery either refuses (None), leaving the file alone, or gives a true prefix and says that it cut something."""
    (folder / JOURNAL_FILE).write_bytes(damaged)
    try:
        records, dropped_bytes = reopen(folder)
    except WorldError:
        assert (folder / JOURNAL_FILE).read_bytes() == damaged
        return None
    assert records in prefixes[:-1]
    assert dropped_bytes > 0
    return records


def test_kill_in_the_middle_keeps_everything_that_was_synced(tmp_path: Path) -> None:
    program = f"""
        import itertools, sys
        from pathlib import Path
        from crowdsurf.peer.journal import Journal
        journal, recovered = Journal.open(Path({str(tmp_path)!r}))
        start = sum(1 for _ in recovered)
        for number in itertools.count(start, 3):
            for value in range(number, number + 3):
                journal.append(1 + value % 255, str(value).encode() * (1 + value % 50))
            journal.sync()
            sys.stdout.write(f"{{number + 3}}\\n")
            sys.stdout.flush()
    """
    synced = 0
    for kill_after in (1, 40, 7):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(kill_after)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        records, _ = reopen(tmp_path)
        assert len(records) >= int(lines[-1]) > synced
        assert records == [(1 + value % 255, str(value).encode() * (1 + value % 50)) for value in range(len(records))]
        synced = len(records)


def test_full_disk_loses_nothing_that_was_durable(tmp_path: Path) -> None:
    """A file size limit stands for the full disk; the errors come from the kernel at the same calls."""
    program = f"""
        import resource
        from pathlib import Path
        from crowdsurf.peer.journal import Journal
        from crowdsurf.protocol.errors import WorldError
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        journal, _ = Journal.open(Path({str(tmp_path)!r}))
        synced = 0
        try:
            while True:
                journal.append(1, bytes([synced]) * 300_000)
                journal.sync()
                synced += 1
        except WorldError as error:
            print(synced, error)
        journal.append(2, b"small")
        journal.sync()
        journal.close()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    count, _, message = done.stdout.partition(" ")
    assert message.startswith("the disk is full: ")
    expected = [(1, bytes([number]) * 300_000) for number in range(int(count))]
    assert reopen(tmp_path) == ([*expected, (2, b"small")], 0)


def test_failing_disk_breaks_the_journal_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an input/output error nobody knows what the disk holds, so nothing may be signed on top of it."""
    journal, _ = Journal.open(tmp_path)
    journal.append(1, b"durable")
    journal.sync()

    def fail(file: int) -> None:
        raise OSError(5, os.strerror(5))

    journal.append(1, b"lost")
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_datasync", fail)
        with pytest.raises(WorldError, match="cannot be used: Input/output error"):
            journal.sync()
    with pytest.raises(WorldError, match="cannot be written any more"):
        journal.append(1, b"more")
    with pytest.raises(WorldError, match="cannot be written any more"):
        journal.sync()
    journal.close()
    assert reopen(tmp_path)[0] == [(1, b"durable")]


def test_a_file_system_without_preallocation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: int, offset: int, length: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write(tmp_path, FIRST, SECOND)
    assert reopen(tmp_path) == (FIRST + SECOND, 0)


def test_missing_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="No such file"):
        list(read_journal(tmp_path))
    (tmp_path / JOURNAL_FILE).write_bytes(b"something else entirely, and long enough for a header")
    with pytest.raises(WorldError, match="no journal of this version"):
        Journal.open(tmp_path)
    assert (tmp_path / JOURNAL_FILE).read_bytes().startswith(b"something else")
