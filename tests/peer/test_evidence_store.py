"""Evidence on disk: whole or not there at all, for our user only, and believed by nobody who reads it back."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

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
    assert store.save(case.kept[0]) == path
    assert path.read_bytes() == b"kept"


def test_without_the_steps_before_the_ban_the_past_is_left_out(tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case, with_evidence=False, steps=2)
    assert read_evidence(store_of(folder, case).save(case.kept[0])).past == ()
    (folder / JOURNAL_FILE).unlink()
    with pytest.raises(WorldError, match="journal"):
        store_of(folder, case).save(case.kept[1])


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path, case, with_evidence=False)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldError, match="the disk is full"):
        store_of(folder, case).save(case.kept[0])
    assert list((folder / "evidence").iterdir()) == []
    assert store_of(folder, case).peers() == []


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
