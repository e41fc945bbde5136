"""Checking a past: what is genuine passes, and every kind of forgery is found and named by its step."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from crowdsurf.peer.export import export_model
from crowdsurf.peer.journal import JOURNAL_FILE, Journal, read_journal
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.offline import verify_path
from crowdsurf.protocol import wire
from crowdsurf.protocol.chain import Chain, vote_message
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.recovery import RecordType, certificates_of
from tests.cli.small_run import STEPS, SmallRun, make_small_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Not to be changed by a test; see `copy`."""
    return make_small_run(tmp_path_factory.mktemp("small-run"))


@pytest.fixture
def copy(trained: SmallRun, tmp_path: Path) -> Path:
    """The demo-like folder of both peers, free to be damaged."""
    return Path(shutil.copytree(trained.root, tmp_path / "copy"))


def folder_of(copy: Path, trained: SmallRun, number: int = 0) -> Path:
    return copy / trained.folder(number).relative_to(trained.root)


def rewrite(folder: Path, certificates: Iterable[Certificate]) -> None:
    """A journal with these certificates and sound checksums."""
    found = list(certificates)
    (folder / JOURNAL_FILE).unlink()
    journal, _ = Journal.open(folder)
    for certificate in found:
        journal.append(RecordType.CERTIFICATE, wire.pack(certificate))
    journal.close()


def certificates(folder: Path) -> list[Certificate]:
    return list(certificates_of(read_journal(folder)))


def test_the_genuine_past_is_valid(trained: SmallRun) -> None:
    checked = verify_path(trained.root)
    assert checked.valid
    assert (checked.steps, checked.journals) == (STEPS, 2)


def test_a_shorter_journal_of_a_killed_peer_agrees(trained: SmallRun, copy: Path) -> None:
    folder = folder_of(copy, trained, 1)
    rewrite(folder, certificates(folder)[:5])
    assert verify_path(copy).valid
    assert verify_path(folder).steps == 5


def test_a_changed_header_is_found(trained: SmallRun, copy: Path) -> None:
    folder = folder_of(copy, trained)
    past = certificates(folder)
    past[7] = Certificate(msgspec.structs.replace(past[7].header, state=bytes(32)), past[7].votes)
    rewrite(folder, past)
    checked = verify_path(folder)
    assert (checked.valid, checked.first_invalid, checked.steps) == (False, 7, 7)
    assert "signed" in (checked.reason or "")


def test_a_step_left_out_is_found(trained: SmallRun, copy: Path) -> None:
    folder = folder_of(copy, trained)
    past = certificates(folder)
    rewrite(folder, past[:3] + past[4:])
    assert verify_path(folder).first_invalid == 3


def test_two_pasts_that_are_each_valid_but_differ_are_found(trained: SmallRun, copy: Path) -> None:
    folder = folder_of(copy, trained, 1)
    past = certificates(folder)
    rewrite(folder, [*past[:-1], signed_anew(trained, past)])
    shutil.rmtree(folder / "states")
    shutil.rmtree(folder / "updates")
    assert verify_path(folder).valid
    checked = verify_path(copy)
    assert (checked.valid, checked.first_invalid) == (False, STEPS - 1)
    assert "peer-" in (checked.reason or "")


def signed_anew(trained: SmallRun, past: list[Certificate]) -> Certificate:
    """Another last step that all members have signed: what two dishonest members could do."""
    chain = Chain(trained.manifest)
    for certificate in past[:-1]:
        chain.extend(certificate, lambda *_: True)
    header = msgspec.structs.replace(past[-1].header, cut=bytes(32))
    keys: dict[bytes, PeerKey] = {key.peer_id: key for key in trained.keys}
    votes = tuple(
        (index, 0, keys[peer].sign(vote_message(chain.run_id, header, 0, peer)))
        for index, peer in enumerate(chain.head.roster.peers)
    )
    return Certificate(header, votes)


@pytest.mark.parametrize("kind", ["states", "updates"])
def test_a_changed_file_is_found_by_its_step(kind: str, trained: SmallRun, copy: Path) -> None:
    folder = folder_of(copy, trained)
    path = min((folder / kind).glob(f"*.{kind[:-1]}"), key=lambda path: int(path.stem))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    checked = verify_path(folder)
    assert (checked.valid, checked.first_invalid) == (False, int(path.stem))


def test_a_file_cut_short_is_found(trained: SmallRun, copy: Path) -> None:
    path = min((folder_of(copy, trained) / "updates").glob("*.update"), key=lambda path: int(path.stem))
    path.write_bytes(b"")
    assert verify_path(copy).first_invalid == int(path.stem)


def test_a_damaged_journal_is_a_sentence_and_stays_as_it_is(trained: SmallRun, copy: Path) -> None:
    path = folder_of(copy, trained) / JOURNAL_FILE
    damage(path)
    before = path.read_bytes()
    with pytest.raises(WorldError, match="damaged at byte"):
        verify_path(copy)
    assert path.read_bytes() == before


def damage(path: Path) -> None:
    """Flip a bit in the first third, where later records prove that it was whole once."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def test_a_folder_without_runs_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no run"):
        verify_path(tmp_path)


def test_export_rebuilds_from_the_initial_model_while_there_is_no_state(tmp_path: Path) -> None:
    killed = make_small_run(tmp_path, peers=1, cut_at=6)
    assert not list((killed.folder() / "states").iterdir())
    exported = asyncio.run(export_model(killed.folder(), tmp_path / "m.safetensors"))
    assert exported.checked
    assert exported.step >= 5


def test_export_rebuilds_a_very_short_run_from_its_beginning(tmp_path: Path) -> None:
    short = make_small_run(tmp_path, peers=1, steps=4)
    exported = asyncio.run(export_model(short.folder(), tmp_path / "m.safetensors"))
    assert (exported.step, exported.checked) == (4, True)
    assert exported.state_digest == short.outcomes[0].state_digest


def test_export_never_uses_what_no_certificate_vouches_for(trained: SmallRun, copy: Path, tmp_path: Path) -> None:
    folder = folder_of(copy, trained)
    last = max((folder / "states").iterdir(), key=lambda path: int(path.stem))
    last.write_bytes(bytes(last.stat().st_size))
    exported = asyncio.run(export_model(folder, tmp_path / "m.safetensors"))
    assert (exported.state_digest, exported.checked) == (trained.outcomes[0].state_digest, True)


def test_export_says_what_is_missing(trained: SmallRun, copy: Path, tmp_path: Path) -> None:
    folder = folder_of(copy, trained)
    newest = max((folder / "updates").glob("*.update"), key=lambda path: int(path.stem))
    newest.write_bytes(bytes(newest.stat().st_size))
    with pytest.raises(WorldError, match=f"step {newest.stem} is damaged"):
        asyncio.run(export_model(folder, tmp_path / "m.safetensors"))
    shutil.rmtree(folder / "states")
    shutil.rmtree(folder / "updates")
    with pytest.raises(WorldError, match="no certified state"):
        asyncio.run(export_model(folder, tmp_path / "m.safetensors"))
    assert not (tmp_path / "m.safetensors").exists()
