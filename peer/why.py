"""Why a peer is not trusted, or not here: what can be found out from a home, or from an evidence file alone.

The idea: there are two sources, and both prove themselves. The journal's certified steps say what was decided about a
peer (`past.py`); an evidence file says what the decision rests on (`protocol/recheck.py`). Both are checked anew every
time somebody asks, with no network and no trust in whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crowdsurf.peer.evidence_store import EvidenceStore, read_evidence
from crowdsurf.peer.journal import read_journal
from crowdsurf.peer.keys import verify
from crowdsurf.peer.launch import load_manifest
from crowdsurf.peer.past import Banned, Note, Past, read_past
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import Code, MisuseError, Refusal, WorldError
from crowdsurf.protocol.evidence import EvidenceFile
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_text
from crowdsurf.protocol.manifest import Manifest, decode_manifest, run_id_of
from crowdsurf.protocol.messages import reason_name
from crowdsurf.protocol.recheck import Judgement, recheck, recheck_file
from crowdsurf.protocol.recovery import certificates_of
from crowdsurf.protocol.roster import Member, Resting

NAMED_MAX = 8
"""Peers listed when an ending fits several."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the certified steps in a home say about a peer."""

    steps: int
    """Certified steps there are."""
    member: Member | None
    resting: Resting | None
    banned: Banned | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Why:
    """What was found out about a peer."""

    peer: PeerId
    manifest: Manifest
    standing: Standing | None = None
    """None if there is only an evidence file."""
    file: Path | None = None
    """The evidence, if there is any."""
    judgement: Judgement | None = None
    """What checking the evidence has shown, if it holds."""
    problem: str | None = None
    """Why the evidence does not hold, if it does not."""
    lacks_past: bool = False
    """Whether the evidence file has no steps before the ban in it, so that nobody else can check it."""
    exported: Path | None = None
    """A file that has them, if one was asked for."""

    def as_json(self) -> dict[str, Any]:
        """Plain values; every field is documented in the README."""
        return {
            "peer": peer_text(self.peer),
            "run": digest_text(run_id_of(self.manifest)),
            "name": self.manifest.name,
            **_standing_as_json(self.standing),
            "ban": self._ban(),
            "evidence": None if self.file is None else self._evidence(self.file),
            "exported": None if self.exported is None else str(self.exported),
        }

    def _ban(self) -> dict[str, Any] | None:
        known = self.standing.banned if self.standing is not None else None
        if self.judgement is not None:
            found = self.judgement
            known = Banned(found.ban, found.banned_in, found.votes, found.members)
        if known is None:
            return None
        return {
            "step": known.step,
            "reason": reason_name(known.ban.reason),
            "offence_step": known.ban.step,
            "votes": known.votes,
            "members": known.members,
        }

    def _evidence(self, file: Path) -> dict[str, Any]:
        found = self.judgement
        plain: dict[str, Any] = {"file": str(file), "holds": found is not None, "problem": self.problem}
        if found is None:
            return plain
        plain |= {
            "class": "A" if found.audit is None else "B",
            "accuser": peer_text(found.accuser),
            "accused": peer_text(found.accused),
            "accused_in_step": found.said_in,
            "verdicts": found.verdicts,
            "verdicts_against": found.verdicts_against,
            "quorum": found.quorum,
            "steps_checked": found.steps,
            "signatures_checked": found.signatures,
            "work": None,
        }
        if found.audit is not None:
            plain["work"] = {
                "step": found.audit.step,
                "state": digest_text(found.audit.state),
                "seed": digest_text(found.audit.seed),
                "worker": peer_text(found.audit.target),
                "validator": peer_text(found.audit.validator),
                "parts": found.audit.parts,
                "committed": [] if found.commit is None else [digest_text(Digest(part)) for part in found.commit.parts],
                "finding": _finding(found),
            }
        return plain


def why_at_home(folder: Path, ending: str) -> Why:
    """What a run folder knows about a peer, given by its id or the end of it.

    Raises MisuseError if several peers end so, WorldError if nothing is known about any, Refusal for a journal that is
    not valid."""
    manifest = load_manifest(folder)
    past, store = read_past(folder, manifest), EvidenceStore(folder, run_id_of(manifest))
    peer = _meant(ending, {*past.notes, *store.peers()}, f"the {past.head.step} certified steps in {folder}")
    standing = _standing(past, peer)
    path = store.path(peer)
    if not path.exists():
        return Why(peer, manifest, standing)
    try:
        file = read_evidence(path)
        if not file.lacks_past:
            return _checked(Why(peer, manifest, standing, path), file)
        # There was no room for the past in the file; here it is.
        found = recheck(file.evidence, certificates_of(read_journal(folder)), manifest, verify)
        return _of_the_peer(Why(peer, manifest, standing, path, found, lacks_past=True))
    except (Refusal, WorldError) as error:
        return Why(peer, manifest, standing, path, problem=_text(error))


def export_evidence(why: Why, folder: Path, out: Path) -> Why:
    """Write the evidence of a run folder, with all steps before the ban, where anybody can be given it.

    Raises MisuseError if nothing can be written there, WorldError if there is no evidence that holds, or no room."""
    if why.judgement is None:
        raise WorldError(f"there is no evidence against …{peer_text(why.peer)[-8:]} in {folder} that holds")
    return replace(why, exported=EvidenceStore(folder, run_id_of(why.manifest)).export(why.peer, out))


def why_of_file(path: Path, manifest_path: Path, ending: str) -> Why:
    """What an evidence file proves about a peer, given the run's manifest and nothing else.

    Raises MisuseError if a file is missing, WorldError if it is unreadable or is about another peer."""
    manifest, file = read_manifest(manifest_path), read_evidence(path)
    peer = _meant(ending, {PeerId(file.evidence.ban.peer)}, str(path))
    return _checked(Why(peer, manifest, file=path), file)


def read_manifest(path: Path) -> Manifest:
    """A manifest file. Raises MisuseError if there is none, WorldError if it is unreadable or no manifest."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.MANIFEST_BYTES_MAX + 1)
        return decode_manifest(data)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MisuseError(f"there is no manifest {path}") from error
    except OSError as error:
        raise WorldError(f"cannot read {path}: {error.strerror or error}") from error
    except Refusal as refusal:
        raise WorldError(f"{path} is no manifest, or is damaged ({refusal.detail})") from refusal


def _checked(why: Why, file: EvidenceFile) -> Why:
    try:
        found = recheck_file(file, why.manifest, verify)
    except Refusal as refusal:
        if file.lacks_past and refusal.code is Code.BAD_CERTIFICATE:
            return replace(why, problem=_missing(why.peer, file), lacks_past=True)
        return replace(why, problem=_text(refusal))
    return _of_the_peer(replace(why, judgement=found))


def _missing(peer: PeerId, file: EvidenceFile) -> str:
    return (
        f"the {file.evidence.certificate.header.step} certified steps before the ban are missing in it; in the home of "
        f"a peer of this run, crowdsurf why {peer_text(peer)} --export FILE writes a file that has them"
    )


def _of_the_peer(why: Why) -> Why:
    """The same, unless its evidence is about somebody else: a file may have been given another name."""
    if why.judgement is not None and why.judgement.ban.peer != why.peer:
        return Why(why.peer, why.manifest, why.standing, why.file, problem="the evidence is about another peer")
    return why


def _meant(ending: str, known: Iterable[PeerId], where: str) -> PeerId:
    """The one peer with an id that ends so. Raises MisuseError for several, WorldError for none."""
    ending = ending.strip().removeprefix("…")
    if not ending:
        raise MisuseError("name a peer by its id or by the last characters of it")
    found = sorted(peer for peer in known if peer_text(peer).endswith(ending))
    if not found:
        raise WorldError(f"nothing is known of a peer that ends in {ending[-64:]} in {where}")
    if len(found) > 1:
        names = ", ".join(f"…{peer_text(peer)[-8:]}" for peer in found[:NAMED_MAX])
        raise MisuseError(f"{len(found)} peers end in {ending}: {names}; give more characters")
    return found[0]


def _standing(past: Past, peer: PeerId) -> Standing:
    head = past.head
    index = head.roster.indexes.get(peer)
    return Standing(
        steps=head.step,
        member=head.roster.members[index] if index is not None else None,
        resting=next((rest for rest in head.roster.resting if rest.peer == peer and rest.until > head.step), None),
        banned=past.bans.get(peer) if peer in head.roster.outlaws else None,
        notes=tuple(past.notes.get(peer, ())),
    )


def _standing_as_json(standing: Standing | None) -> dict[str, Any]:
    if standing is None:
        return {"steps": None, "status": None, "strikes": None, "missed": None, "resting_until": None, "history": []}
    member, resting = standing.member, standing.resting
    return {
        "steps": standing.steps,
        "status": status_of(standing),
        "strikes": member.strikes if member is not None else None,
        "missed": member.missed if member is not None else None,
        "resting_until": resting.until if resting is not None else None,
        "history": [note._asdict() for note in standing.notes],
    }


def status_of(standing: Standing) -> str:
    """`banned`, `member`, `resting` or `gone`."""
    if standing.banned is not None:
        return "banned"
    if standing.member is not None:
        return "member"
    return "resting" if standing.resting is not None else "gone"


def _text(error: Refusal | WorldError) -> str:
    return f"{error.detail} ({error.code.value})" if isinstance(error, Refusal) else str(error)


def _finding(found: Judgement) -> str | None:
    if found.commit is None or not found.commit.finding:
        return None
    return digest_text(Digest(found.commit.finding))
