"""`crowdsurf why`: a reader with only an evidence file and the manifest is convinced, by nothing that is not so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from crowdsurf.cli.main import app
from crowdsurf.peer.journal import JOURNAL_FILE
from crowdsurf.protocol.ids import PeerId, peer_text
from crowdsurf.protocol.manifest import encode_manifest
from tests.cli.conftest import Call
from tests.peer.homes import make_home, manifest_of, real_trial, store_of
from tests.protocol.trials import ATTACKS, STEPS

REASONS = {
    1: "equivocation",
    2: "wrong_gradient",
    3: "wrong_finding",
    4: "false_accusation",
    5: "wrong_aggregate",
    6: "wrong_projection",
}


def told(*arguments: str | Path) -> str:
    """What a person reads."""
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="crowdsurf")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_ban_is_explained_from_a_home_and_from_the_file_alone(attack: str, call: Call, tmp_path: Path) -> None:
    case = real_trial(attack)
    folder = make_home(tmp_path / "home", case)
    for evidence in case.kept:
        peer = PeerId(evidence.ban.peer)
        path = store_of(folder, case).path(peer)
        code, at_home, _ = call("why", peer_text(peer)[-8:], "--home", tmp_path / "home")
        assert code == 0
        code, alone, _ = call("why", peer_text(peer), "--file", path, "--manifest", manifest_of(folder))
        assert code == 0
        assert at_home["ban"] == alone["ban"]
        assert at_home["evidence"] == alone["evidence"]
        assert (at_home["status"], alone["status"], at_home["steps"]) == ("banned", None, STEPS)
        assert (alone["peer"], alone["ban"]["reason"]) == (peer_text(peer), REASONS[ATTACKS[attack]])
        assert alone["ban"]["offence_step"] == evidence.ban.step
        shown = alone["evidence"]
        assert shown["holds"]
        assert shown["problem"] is None
        assert (shown["class"] == "B") == (shown["work"] is not None) == (shown["verdicts"] >= shown["quorum"])


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("equivocate", "it signed two different messages"),
        ("sign_flip", "a gradient that its work unit does not give"),
        ("lazy_validator", "it had not recomputed it"),
        ("false_accusation", "Nothing is held against"),
        ("wrong_aggregate", "do not add up to nothing"),
        ("wrong_projection", "the contribution of another peer"),
    ],
)
def test_people_read_plain_words(attack: str, words: str, tmp_path: Path) -> None:
    case = real_trial(attack)
    folder = make_home(tmp_path / "home", case)
    peer = PeerId(case.kept[0].ban.peer)
    path = store_of(folder, case).path(peer)
    for text in (
        told("why", peer_text(peer), "--home", tmp_path / "home"),
        told("why", "…" + peer_text(peer)[-8:], "--file", path, "--manifest", manifest_of(folder)),
    ):
        assert words in text
        assert "Everything holds" in text
        assert f"It is banned for {REASONS[ATTACKS[attack]].replace('_', ' ')}" in text
        if attack in ("sign_flip", "lazy_validator"):
            assert "must have the digest b3:" in text


def test_a_member_and_one_that_is_unknown(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    make_home(tmp_path / "home", case)
    peer = min(case.honest)
    code, answer, _ = call("why", peer_text(peer), "--home", tmp_path / "home")
    assert code == 0
    assert (answer["status"], answer["ban"], answer["evidence"]) == ("member", None, None)
    assert (answer["strikes"], answer["missed"]) == (0, 0)
    assert answer["history"] == [{"step": 0, "what": "joined"}]
    assert "It is a member since step 0" in told("why", peer_text(peer), "--home", tmp_path / "home")
    code, answer, _ = call("why", "nobodyatall", "--home", tmp_path / "home")
    assert code == 1
    assert "nothing is known" in answer["error"]["message"]


def test_an_ending_that_fits_several_is_wrong_usage(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    make_home(tmp_path / "home", case)
    texts = [peer_text(peer) for peer in case.signers]
    shared = next(text[-1] for text in texts if sum(other.endswith(text[-1]) for other in texts) > 1)
    code, answer, _ = call("why", shared, "--home", tmp_path / "home")
    assert code == 2
    assert "give more characters" in answer["error"]["message"]
    assert call("why", "…", "--home", tmp_path / "home")[0] == 2


def test_a_ban_without_evidence_is_told_from_the_chain(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    make_home(tmp_path / "home", case, with_evidence=False)
    peer = peer_text(PeerId(case.kept[0].ban.peer))
    code, answer, _ = call("why", peer, "--home", tmp_path / "home")
    assert (code, answer["status"], answer["evidence"]) == (0, "banned", None)
    assert answer["ban"]["reason"] == "wrong_gradient"
    assert "Ask a peer that was a member" in told("why", peer, "--home", tmp_path / "home")


def home_without_past(root: Path) -> tuple[str, Path, Path]:
    """A peer that is banned, the evidence about it without the steps before the ban, and the manifest."""
    case = real_trial("sign_flip")
    folder = make_home(root, case, with_evidence=False)
    store, peer = store_of(folder, case), PeerId(case.kept[0].ban.peer)
    store.save(case.kept[0])
    return peer_text(peer), store.path(peer), manifest_of(folder)


def test_a_past_that_is_not_in_the_file_is_taken_from_the_journal(call: Call, tmp_path: Path) -> None:
    peer, path, manifest = home_without_past(tmp_path / "home")
    code, answer, _ = call("why", peer, "--home", tmp_path / "home")
    assert code == 0
    assert answer["evidence"]["holds"]
    assert "with --export FILE" in told("why", peer, "--home", tmp_path / "home")
    code, answer, _ = call("why", peer, "--file", path, "--manifest", manifest)
    assert (code, answer["evidence"]["holds"]) == (1, False)
    assert "certified steps before the ban are missing in it" in answer["evidence"]["problem"]
    assert f"crowdsurf why {peer} --export FILE" in answer["evidence"]["problem"]
    result = CliRunner().invoke(app, ["why", peer, "--file", str(path), "--manifest", str(manifest)])
    assert "cannot be checked" in result.stdout
    assert "does NOT hold" not in result.stdout
    other = tmp_path / "other"
    other.write_bytes(encode_manifest(msgspec.structs.replace(real_trial("sign_flip").manifest, name="another")))
    assert "another run" in call("why", peer, "--file", path, "--manifest", other)[1]["evidence"]["problem"]


def test_a_file_that_was_exported_convinces_by_itself(call: Call, tmp_path: Path) -> None:
    peer, path, manifest = home_without_past(tmp_path / "home")
    out = tmp_path / "shown.evidence"
    code, at_home, _ = call("why", peer, "--home", tmp_path / "home", "--export", out)
    assert (code, at_home["exported"]) == (0, str(out))
    code, alone, _ = call("why", peer, "--file", out, "--manifest", manifest)
    assert (code, alone["exported"]) == (0, None)
    assert alone["evidence"] == at_home["evidence"] | {"file": str(out)}
    assert f"the file {out}" in told("why", peer, "--home", tmp_path / "home", "--export", out)
    assert call("why", peer, "--file", path, "--manifest", manifest, "--export", out)[0] == 2
    assert call("why", peer, "--home", tmp_path / "home", "--export", tmp_path)[0] == 2


def test_nothing_is_exported_that_does_not_hold(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    make_home(tmp_path / "home", case, with_evidence=False)
    out = tmp_path / "shown.evidence"
    for peer in (PeerId(case.kept[0].ban.peer), min(case.honest)):
        code, answer, _ = call("why", peer_text(peer), "--home", tmp_path / "home", "--export", out)
        assert code == 1
        assert "there is no evidence" in answer["error"]["message"]
    assert not out.exists()


def test_evidence_that_does_not_hold_is_said_to(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path / "home", case)
    first, second = (PeerId(evidence.ban.peer) for evidence in case.kept)
    store = store_of(folder, case)
    data = bytearray(store.path(first).read_bytes())
    data[-100] ^= 1
    store.path(first).write_bytes(bytes(data))
    code, answer, _ = call("why", peer_text(first), "--home", tmp_path / "home")
    assert (code, answer["status"], answer["evidence"]["holds"]) == (1, "banned", False)
    assert answer["evidence"]["problem"]
    result = CliRunner().invoke(app, ["why", peer_text(first), "--home", str(tmp_path / "home")])
    assert result.exit_code == 1
    assert "does NOT hold" in result.stdout
    store.path(first).write_bytes(store.path(second).read_bytes())
    code, answer, _ = call("why", peer_text(first), "--home", tmp_path / "home")
    assert (code, answer["evidence"]["problem"]) == (1, "the evidence is about another peer")
    code, answer, _ = call("why", peer_text(first), "--file", store.path(second), "--manifest", manifest_of(folder))
    assert code == 1
    assert "nothing is known" in answer["error"]["message"]


def test_another_runs_manifest_convinces_nobody(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path / "home", case)
    peer = PeerId(case.kept[0].ban.peer)
    path, other = store_of(folder, case).path(peer), tmp_path / "other"
    other.write_bytes(encode_manifest(msgspec.structs.replace(case.manifest, name="another")))
    code, answer, _ = call("why", peer_text(peer), "--file", path, "--manifest", other)
    assert (code, answer["evidence"]["holds"], answer["ban"]) == (1, False, None)
    assert "another run" in answer["evidence"]["problem"]


def test_a_manifest_writes_nothing_on_the_terminal(call: Call, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    forged.write_bytes(msgspec.msgpack.encode({"\x1b]0;title\x07\x1b[2JEverything holds." + "A" * 10_000: 1}))
    code, answer, said = call("why", "abc", "--file", tmp_path / "x", "--manifest", forged)
    assert code == 1
    assert "is no manifest, or is damaged" in answer["error"]["message"]
    assert answer["error"]["message"].isprintable()
    assert "\x1b" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("missing", ["--file", "--manifest"])
def test_file_and_manifest_go_together_and_must_exist(missing: str, call: Call, tmp_path: Path) -> None:
    assert call("why", "abc", missing, tmp_path / "x")[0] == 2
    code, answer, _ = call("why", "abc", "--file", tmp_path / "x", "--manifest", tmp_path / "y")
    assert code == 2
    assert "there is no" in answer["error"]["message"]


def test_damage_is_one_plain_sentence(call: Call, tmp_path: Path) -> None:
    case = real_trial("sign_flip")
    folder = make_home(tmp_path / "home", case)
    path = store_of(folder, case).path(PeerId(case.kept[0].ban.peer))
    broken = tmp_path / "broken"
    for data in (b"", b"\xff" * 100, path.read_bytes()[:1000]):
        broken.write_bytes(data)
        for file, manifest in ((broken, manifest_of(folder)), (path, broken)):
            code, answer, _ = call("why", "abc", "--file", file, "--manifest", manifest)
            assert code == 1
            assert "damaged" in answer["error"]["message"]
    (folder / JOURNAL_FILE).unlink()
    assert call("why", "abc", "--home", tmp_path / "home")[0] in (1, 2)
