"""Evidence on disk: whole or not there at all, for our user only, and believed by nobody who reads it back."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from crowdsurf.peer import evidence_store
from crowdsurf.peer.evidence_store import read_evidence
from crowdsurf.peer.journal import JOURNAL_FILE
from crowdsurf.peer.keys import verify
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.evidence import FILE_BYTES_MAX
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.recheck import recheck_file
from tests.peer.homes import make_home, real_trial, store_of


def test_a_file_for_every_banned_peer_convinces_by_itself(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case)
    store = store_of(folder, case)
    assert store.peers() == sorted(PeerId(evidence.ban.peer) for evidence in case.kept)
    for evidence in case.kept:
        path = store.path(PeerId(evidence.ban.peer))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert recheck_file(read_evidence(path), case.manifest, verify).ban == evidence.ban
    assert stat.S_IMODE((folder / "evidence").stat().st_mode) == 0o700


def test_what_is_there_stays(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    store = store_of(make_home(tmp_path, case), case)
    path = store.path(PeerId(case.kept[0].ban.peer))
    path.write_bytes(b"kept")
    assert not store.save(case.kept[0])
    assert path.read_bytes() == b"kept"


def test_what_convicts_is_kept_before_the_past_is_added(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    store = store_of(make_home(tmp_path, case, with_evidence=False), case)
    evidence = case.kept[0]
    assert store.save(evidence)
    file = read_evidence(store.path(PeerId(evidence.ban.peer)))
    assert (file.evidence, file.lacks_past) == (evidence, True)
    assert store.add_past(evidence)
    file = read_evidence(store.path(PeerId(evidence.ban.peer)))
    assert (file.evidence, file.past_steps) == (evidence, evidence.certificate.header.step)


def test_without_the_steps_before_the_ban_the_past_is_left_out(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case, with_evidence=False, steps=2)
    store, peer = store_of(folder, case), PeerId(case.kept[0].ban.peer)
    store.save(case.kept[0])
    assert not store.add_past(case.kept[0])
    assert read_evidence(store.path(peer)).past == ()
    with pytest.raises(WorldError, match="are not all in the journal"):
        store.export(peer, tmp_path / "out")
    (folder / JOURNAL_FILE).unlink()
    store.save(case.kept[1])
    with pytest.raises(WorldError, match="journal"):
        store_of(folder, case).add_past(case.kept[1])
    assert read_evidence(store.path(PeerId(case.kept[1].ban.peer))).evidence == case.kept[1]


def test_beyond_the_folders_bound_files_hold_the_evidence_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case)
    first, second = (store_of(folder, case).path(PeerId(evidence.ban.peer)) for evidence in case.kept)
    bound = first.stat().st_size + second.stat().st_size - 1
    first.unlink()
    second.unlink()
    monkeypatch.setattr(evidence_store, "FOLDER_BYTES_MAX", bound)
    store = store_of(folder, case)
    assert [(store.save(evidence), store.add_past(evidence)) for evidence in case.kept] == [(True, True), (True, False)]
    assert recheck_file(read_evidence(first), case.manifest, verify).ban == case.kept[0].ban
    assert read_evidence(second).lacks_past
    assert first.stat().st_size + second.stat().st_size <= bound

    def unreadable(folder: Path) -> None:
        raise AssertionError("nobody reads the journal for nothing")

    monkeypatch.setattr(evidence_store, "read_journal", unreadable)
    assert not store.add_past(case.kept[1])
    monkeypatch.undo()
    for evidence in case.kept:  # one with its past, one without
        out = store.export(PeerId(evidence.ban.peer), tmp_path / "out")
        assert recheck_file(read_evidence(out), case.manifest, verify).ban == evidence.ban
    for target in (tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(MisuseError, match="cannot be written"):
            store.export(PeerId(case.kept[0].ban.peer), target)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case, with_evidence=False)
    store = store_of(folder, case)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldError, match="the disk is full"):
        store.save(case.kept[0])
    assert list((folder / "evidence").iterdir()) == []
    assert store.peers() == []
    monkeypatch.undo()
    store.save(case.kept[0])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldError, match="the disk is full"):
        store.add_past(case.kept[0])
    assert [read_evidence(path).evidence for path in (folder / "evidence").iterdir()] == [case.kept[0]]


def test_other_files_in_the_folder_are_nobodys_evidence(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case)
    (folder / "evidence" / "notes.evidence").write_text("mine")
    assert len(store_of(folder, case).peers()) == 2


def test_reading_is_bounded_and_plain_about_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no evidence file"):
        read_evidence(tmp_path / "none")
    with pytest.raises(MisuseError, match="there is no evidence file"):
        read_evidence(tmp_path)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"something else")
    with pytest.raises(WorldError, match="is no evidence, or is damaged"):
        read_evidence(garbage)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(16 * FILE_BYTES_MAX)
    with pytest.raises(WorldError, match=f"at most {FILE_BYTES_MAX}"):
        read_evidence(huge)
