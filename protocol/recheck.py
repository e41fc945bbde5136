"""Checking a ban again: from the manifest and an evidence file alone, with the code that led to the ban.

The idea: nothing here decides anything of its own. The chain is replayed from the founders to the ban (`Chain`), so
who was a member and who validated whom is proven; then a fresh tribunal hears what was said and must come to the very
ban that the header names. Cheap checks come first, and the work is bounded by the size of what is given: two
signatures of a proof, one of each message, and those of the certificates up to the ban. SPEC §6.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import Record, question_of
from crowdsurf.protocol.chain import Audit, Chain, Head, genesis
from crowdsurf.protocol.envelope import Opened, Slot, Verify, open_envelope
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.evidence import Evidence, EvidenceFile
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest, run_id_of
from crowdsurf.protocol.messages import (
    PROVEN,
    Accusation,
    Ban,
    Certificate,
    Commit,
    Envelope,
    Kind,
    Payload,
    Verdict,
    indexes_of,
)
from crowdsurf.protocol.projection import clipping_of
from crowdsurf.protocol.roster import quorum_of
from crowdsurf.protocol.tribunal import Tribunal


class Judgement(NamedTuple):
    """What checking a ban again has shown. There is one only if everything holds."""

    ban: Ban
    banned_in: int
    """The step whose header bans it."""
    accuser: PeerId
    accused: PeerId
    charge: int
    """What the accuser said it did, a `Reason`."""
    said_in: int
    """The step in which the accuser said so."""
    audit: Audit | None
    """Class B: the audit that entitled the accuser, and the work in question; None if the proof decides (class A)."""
    commit: Commit | None
    """Class B: what the accused had committed to, if that is shown."""
    members: int
    """Of the roster that banned it."""
    quorum: int
    """Signatures needed of it."""
    votes: int
    """Signatures under the header that bans it."""
    verdicts: int
    """Members that did the work again and found the banned peer guilty."""
    verdicts_against: int
    """Members that found the other one guilty."""
    steps: int
    """Certified steps that were replayed."""
    signatures: int
    """Signatures that were checked."""


class _Counting:
    """Counts what is verified."""

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self.count = 0

    def __call__(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        self.count += 1
        return self._verify(peer, message, signature)


def recheck_file(file: EvidenceFile, manifest: Manifest, verify: Verify) -> Judgement:
    """Check a ban again that anybody may have sent. Raises Refusal as `recheck` does, WRONG_RUN for a file of another
    run, BAD_CERTIFICATE for one that does not hold all of the past."""
    if file.run_id != run_id_of(manifest):
        raise Refusal(Code.WRONG_RUN, "the evidence belongs to another run than the manifest")
    if file.past_steps != file.evidence.certificate.header.step:
        raise Refusal(Code.BAD_CERTIFICATE, "the file does not hold every certified step from the first to the ban")
    return recheck(file.evidence, file.certificates(), manifest, verify)


def recheck(evidence: Evidence, past: Iterable[Certificate], manifest: Manifest, verify: Verify) -> Judgement:
    """Check a ban again. `past`: the certificates from step 0 on; it is read up to the ban.

    Raises Refusal: WRONG_RUN or WRONG_VERSION (replayed), BAD_SIGNATURE (forged), DUPLICATE (two verdicts of one
    member), BAD_COMMIT, BAD_ACCUSATION (it contradicts itself, or does not convict), and what `Chain.extend` raises.
    """
    run_id, counting = run_id_of(manifest), _Counting(verify)
    _check_form(evidence, run_id)
    said = _open(evidence.accusation, run_id, counting, Accusation)
    verdicts = [_open(envelope, run_id, counting, Verdict) for envelope in evidence.verdicts]
    commits = [_open(envelope, run_id, counting, Commit) for envelope in evidence.exhibits]
    accusation = said.payload
    if not isinstance(accusation, Accusation) or accusation.step > evidence.certificate.header.step:
        raise Refusal(Code.BAD_ACCUSATION, "the accusation is about a step after the ban")
    tribunal = Tribunal(run_id, counting, clipping_of(manifest))
    proven = accusation.reason in PROVEN
    # The founding roster, because nobody in it is banned: the accusation was heard before the ban, maybe before others.
    if proven:
        tribunal.accuse(said, genesis(manifest).roster)
    before, record, steps = _replay(evidence, accusation.step, past, manifest, counting)
    if not proven:
        tribunal.remember(record)
        tribunal.accuse(said, genesis(manifest).roster)
    for verdict in verdicts:
        tribunal.judge(verdict)
    roster, quorum = before.roster, quorum_of(len(before.roster), manifest.quorum)
    found = [
        PeerId(v.payload.guilty) for v in verdicts if isinstance(v.payload, Verdict) and v.sender in roster.indexes
    ]
    agreed = found.count(PeerId(evidence.ban.peer))
    if evidence.ban not in tribunal.convictions(roster, quorum).values():
        few = f": {agreed} members say that it is guilty, {quorum} must" if not proven and agreed < quorum else ""
        raise Refusal(Code.BAD_ACCUSATION, f"what is shown does not convict the banned peer of this{few}")
    commit = _judged_commit(commits, accusation, record) if not proven else None
    return Judgement(
        ban=evidence.ban,
        banned_in=before.step,
        accuser=said.sender,
        accused=PeerId(accusation.accused),
        charge=accusation.reason,
        said_in=said.envelope.step,
        audit=None if proven else question_of(accusation, said.sender, record, run_id, counting).audit,
        commit=commit,
        members=len(roster),
        quorum=quorum,
        votes=len(evidence.certificate.votes),
        verdicts=agreed,
        verdicts_against=len(found) - agreed,
        steps=steps,
        signatures=counting.count,
    )


def _check_form(evidence: Evidence, run_id: bytes) -> None:
    """What costs next to nothing to see."""
    envelopes = (evidence.accusation, *evidence.verdicts, *evidence.exhibits)
    if any(envelope.run_id != run_id for envelope in envelopes):
        raise Refusal(Code.WRONG_RUN, "a message in the evidence belongs to another run")
    if evidence.ban not in evidence.certificate.header.bans:
        raise Refusal(Code.BAD_ACCUSATION, "the header in the evidence does not ban this peer for this")
    if len({envelope.sender for envelope in evidence.verdicts}) < len(evidence.verdicts):
        raise Refusal(Code.DUPLICATE, "a member has two verdicts in the evidence")
    proven = int.from_bytes(evidence.accusation.subject[:1], "big") in PROVEN
    if len(evidence.exhibits) > (0 if proven else 1) or (proven and evidence.verdicts):
        raise Refusal(Code.MALFORMED, "the evidence has more in it than belongs to it")


def _open(envelope: Envelope, run_id: bytes, verify: Verify, kind: type[Payload]) -> Opened:
    opened = open_envelope(envelope, run_id, verify)
    if not isinstance(opened.payload, kind):
        raise Refusal(Code.MALFORMED, f"a message in the evidence is no {kind.__name__.lower()}")
    return opened


def _replay(
    evidence: Evidence, step: int, past: Iterable[Certificate], manifest: Manifest, verify: Verify
) -> tuple[Head, Record, int]:
    """What the banning step started from, what is certified of the step in question, and how many steps that took."""
    chain, last = Chain(manifest), evidence.certificate
    before, record = chain.head, None
    earlier = itertools.takewhile(lambda certificate: certificate.header.step < last.header.step, past)
    for certificate in itertools.chain(earlier, (last,)):
        before = chain.head
        chain.extend(certificate, verify)
        if record is not None:
            owed = tuple(audit for audit in chain.head.audits if audit.step == step)
            record = record._replace(audits=(*record.audits, *owed))
        if before.step == step:
            record = Record(before, certificate.header, chain.head.audits, {})
    if record is None:
        raise Refusal(Code.BAD_ACCUSATION, "the accusation is about a step after the ban")
    return before, record, chain.head.step


def _judged_commit(commits: list[Opened], accusation: Accusation, record: Record) -> Commit | None:
    """What the accused had committed to, if it is shown. It signed this in the slot of its one commit of the step, on
    the certified past, and a nonce the header names opens it; another one would convict it of equivocation."""
    for opened in commits:
        commit, header = opened.payload, record.header
        index = record.head.roster.indexes.get(PeerId(accusation.accused))
        mine = opened.sender == accusation.accused and opened.slot == Slot(header.step, 0, Kind.COMMIT, b"")
        if not isinstance(commit, Commit) or not mine or index not in indexes_of(header.contributors):
            raise Refusal(Code.BAD_COMMIT, "the commit shown is not that of the accused in the step in question")
        nonce = header.nonces[index] if index is not None else b""
        if (commit.previous, commit.state) != (header.previous, header.state) or (
            nonce and nonce_digest(nonce) != commit.nonce_digest
        ):
            raise Refusal(Code.BAD_COMMIT, "the commit shown is not the one that the certified step names")
        return commit
    return None
