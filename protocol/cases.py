"""What can be held against a peer, who may say so, and what decides it: pure functions of signed bytes.

The idea: a case is an accusation and what it is about. Class A is decided by the bytes it carries (two signatures
under one slot); class B by doing the accused's work again. Either way somebody is guilty: the accused, or who
accused it falsely. Nothing here depends on who was first, on a clock, or on anybody's word. SPEC §6.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from crowdsurf.protocol import assignment, limits, wire
from crowdsurf.protocol.chain import Audit, Head
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, Verify, open_envelope, signed_bytes
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import (
    Accusation,
    Aggregate,
    Commit,
    DigestBytes,
    Envelope,
    Header,
    Kind,
    MemberIndex,
    Projection,
    Reason,
    SignatureBytes,
    Step,
    View,
    indexes_of,
    payload_digest,
)
from crowdsurf.protocol.projection import Clipping, projection_problem, wrong_line
from crowdsurf.protocol.roster import Roster, withheld
from crowdsurf.protocol.scrutiny import has_all_lines, line_about, lines_of
from crowdsurf.protocol.tolerance import Gap, as_it_should_be, gap_between, sketches_apart, wrong_length

CASE_KINDS = frozenset((int(Kind.ACCUSATION), int(Kind.VERDICT)))
"""What is said about cases; it outlives the step it is said in. A second one in a slot is refused and no more: no
honest decision rests on which of the two was heard."""


class Record(NamedTuple):
    """What a member remembers of a certified step it took part in."""

    head: Head
    """What the step started from."""
    header: Header
    audits: tuple[Audit, ...]
    """Who validates what was done in it."""
    commits: dict[PeerId, Opened]
    """The commits of the cut."""
    projections: tuple[Opened, ...] = ()
    """What vouched for the aggregates that count."""
    named: frozenset[tuple[int, bytes]] | None = None
    """Parts of the cut and their aggregates, of which somebody honest had heard before the beacon; None to whom only
    the chain is known."""
    here: frozenset[bytes] | None = None
    """Those of these aggregates whose bytes this member had when the step was over; None as above."""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two payloads signed for one slot. A signature covers its payload's digest, so the payloads need not be shown."""

    step: Step
    view: View
    kind: Annotated[int, msgspec.Meta(ge=0, le=255)]
    subject: Annotated[bytes, msgspec.Meta(max_length=64)]
    first: tuple[DigestBytes, SignatureBytes]
    """Payload digest and signature; the smaller digest comes first."""
    second: tuple[DigestBytes, SignatureBytes]


def proof_of(pair: Equivocation) -> bytes:
    """The same two envelopes give the same proof, whichever was heard first."""
    signed = sorted((payload_digest(envelope.payload), envelope.signature) for envelope in pair)
    slot = pair.first
    return wire.pack(Proof(slot.step, slot.view, slot.kind, slot.subject, signed[0], signed[1]))


class Question(NamedTuple):
    """What a class B accusation is about, worked out from what is certified."""

    audit: Audit
    """The work to be done again, and who asks for it."""
    member: int = 0
    projection: Projection | None = None
    """For a wrong projection: whose line in it is said to be wrong."""


class Particular(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an accusation of a wrong projection is about."""

    member: MemberIndex
    """Whose line is wrong."""
    projection: Envelope
    """The message it is in: signed by the accused, so everybody judges the same one whatever else it has signed."""


def objection_to(said: Opened, member: int) -> Accusation:
    """The accusation that what a projection says about a member (or about the aggregate) is not so."""
    proof = wire.pack(Particular(member, said.envelope))
    return Accusation(said.sender, Reason.WRONG_PROJECTION, said.envelope.step, proof)


def imbalance_of(said: Opened) -> Accusation:
    """The accusation that a projection does not add up."""
    return Accusation(said.sender, Reason.WRONG_AGGREGATE, said.envelope.step, wire.pack(said.envelope))


def particular_of(accusation: Accusation, run_id: Digest, verify: Verify) -> tuple[int, Projection]:
    """The member and the projection that an accusation of a wrong projection is about.

    Raises Refusal(BAD_ACCUSATION) if it holds no projection that the accused has signed in the step it names."""
    try:
        particular = wire.unpack(accusation.proof, Particular, limits.PROOF_BYTES_MAX)
    except Refusal as refusal:
        raise Refusal(Code.BAD_ACCUSATION, "it does not say what is wrong") from refusal
    projection = _signed_projection(particular.projection, accusation, run_id, verify)
    if projection is None:
        raise Refusal(Code.BAD_ACCUSATION, "the accused has not signed this")
    return particular.member, projection


def _signed_projection(envelope: Envelope, accusation: Accusation, run_id: Digest, verify: Verify) -> Projection | None:
    """The projection in an envelope, if the accused has signed it in the step in question."""
    if envelope.sender != accusation.accused or envelope.step != accusation.step:
        return None
    try:
        payload = open_envelope(envelope, run_id, verify).payload
    except Refusal:
        return None
    if not isinstance(payload, Projection) or envelope.subject != part_subject(payload):
        return None
    return payload if has_all_lines(payload) else None


def part_subject(payload: Aggregate | Projection) -> bytes:
    """The slot of what an aggregator says about a part: the cut, and the part in two bytes."""
    return payload.cut + payload.part.to_bytes(2, "big")


def proof_holds(accusation: Accusation, run_id: Digest, verify: Verify, clipping: Clipping | None = None) -> bool:
    """Whether the proof in an accusation of class A convicts the accused. `clipping`: how the run checks aggregates."""
    if accusation.reason == Reason.WRONG_AGGREGATE:
        return clipping is not None and _imbalance_holds(accusation, run_id, verify, clipping)
    return _equivocation_holds(accusation, run_id, verify)


def _imbalance_holds(accusation: Accusation, run_id: Digest, verify: Verify, clipping: Clipping) -> bool:
    try:
        envelope = wire.unpack(accusation.proof, Envelope, limits.PROOF_BYTES_MAX)
    except Refusal:
        return False
    projection = _signed_projection(envelope, accusation, run_id, verify)
    if projection is None:
        return False
    return projection_problem(lines_of(projection), projection.norm, clipping) is not None


def _equivocation_holds(accusation: Accusation, run_id: Digest, verify: Verify) -> bool:
    try:
        proof = wire.unpack(accusation.proof, Proof, limits.PROOF_BYTES_MAX)
    except Refusal:
        return False
    accused, slot = PeerId(accusation.accused), Slot(proof.step, proof.view, proof.kind, proof.subject)
    if proof.first[0] >= proof.second[0] or proof.step != accusation.step or proof.kind in CASE_KINDS:
        return False
    return all(
        verify(accused, signed_bytes(limits.PROTOCOL_VERSION, run_id, slot, name, accused), signature)
        for name, signature in (proof.first, proof.second)
    )


def subject_of(accusation: Accusation) -> bytes:
    """What makes two accusations the same slot: nobody says twice that a peer did something in a step."""
    return accusation.reason.to_bytes(1, "big") + accusation.step.to_bytes(8, "big") + accusation.accused


def case_name(opened: Opened, proven: bool) -> Digest:
    """The name of a case. A proof that holds convicts the accused whoever shows it. All else may turn against its
    sender, so its name holds the sender: nobody can hide behind another one that has said the same."""
    return opened.digest if proven else digest("payload", opened.sender + opened.digest)


def is_objection(opened: Opened) -> bool:
    """Whether an accusation is about an aggregate of the step it is said in, so that it matters for its outcome."""
    said, step = opened.payload, opened.envelope.step
    return isinstance(said, Accusation) and said.reason == Reason.WRONG_PROJECTION and said.step == step


def check_objection(opened: Opened, roster: Roster, run_id: Digest, verify: Verify) -> None:
    """An objection holds together: what it says is about its author's own line, in a message the accused has signed. So
    whoever makes a part void is answerable for it. Raises Refusal."""
    accusation = opened.payload
    if not isinstance(accusation, Accusation) or opened.envelope.subject != subject_of(accusation):
        raise Refusal(Code.MALFORMED, "the slot of an accusation names reason, step and accused")
    member, projection = particular_of(accusation, run_id, verify)
    if roster.indexes.get(opened.sender) != member or member not in indexes_of(projection.included):
        raise Refusal(Code.BAD_ACCUSATION, "only the member itself can object to a line while the step is under way")


def projection_in(accusation: Accusation) -> Envelope | None:
    """The projection that an accusation is about, signed or not; None if it is about none."""
    try:
        return wire.unpack(accusation.proof, Particular, limits.PROOF_BYTES_MAX).projection
    except Refusal:
        return None


def cut_objected_to(accusation: Accusation) -> bytes:
    """The cut that an objection is about; empty if it is about none."""
    envelope = projection_in(accusation)
    try:
        return wire.unpack(envelope.payload, Projection, limits.PROOF_BYTES_MAX).cut if envelope is not None else b""
    except Refusal:
        return b""


def question_of(accusation: Accusation, accuser: PeerId, record: Record, run_id: Digest, verify: Verify) -> Question:
    """What a class B accusation is about; the record is that of the step it names.

    Raises Refusal(BAD_ACCUSATION) if the accuser had no part in it: nobody else has anything to say."""
    if accusation.reason == Reason.WRONG_PROJECTION:
        return _projection_in_question(accusation, accuser, record, run_id, verify)
    gradient = accusation.reason == Reason.WRONG_GRADIENT
    for audit in record.audits if gradient else record.head.audits:
        pair = (audit.validator, audit.target) if gradient else (audit.target, audit.validator)
        if pair == (accuser, accusation.accused):
            return Question(audit)
    raise Refusal(Code.BAD_ACCUSATION, "the accuser had nothing to do with this work")


def _projection_in_question(
    accusation: Accusation, accuser: PeerId, record: Record, run_id: Digest, verify: Verify
) -> Question:
    """Only the member itself knows its line, and whoever validates its work. The directions are drawn from the beacon
    of the certified step, so nothing can be said about another cut, or a void step."""
    member, projection = particular_of(accusation, run_id, verify)
    if projection.cut != record.header.cut or withheld(record.header):
        raise Refusal(Code.BAD_ACCUSATION, "nothing came of the cut that this projection is about")
    header, head = record.header, record.head
    duties = assignment.aggregators(head.beacon, tuple(indexes_of(header.contributors)), len(head.roster))
    if projection.part >= len(duties) or head.roster.peers[duties[projection.part]] != accusation.accused:
        raise Refusal(Code.BAD_ACCUSATION, "this part was not the accused's to aggregate")
    if record.named is not None and (projection.part, projection.aggregate) not in record.named:
        raise Refusal(Code.BAD_ACCUSATION, "nobody honest has heard of this aggregate")
    if member not in indexes_of(projection.included) or member >= len(record.head.roster):
        raise Refusal(Code.BAD_ACCUSATION, "the projection says nothing about this member")
    peer = record.head.roster.peers[member]
    if accuser != peer and all((audit.validator, audit.target) != (accuser, peer) for audit in record.audits):
        raise Refusal(Code.BAD_ACCUSATION, "the accuser cannot know this line")
    seed = assignment.work_seed(head.beacon, peer)
    audit = Audit(accuser, peer, header.step, seed, len(head.roster), Digest(header.state))
    return Question(audit, member, projection)


def guilty_of(
    accusation: Accusation,
    accuser: PeerId,
    record: Record,
    found: WorkRecomputed,
    question: Question | None = None,
    clipping: Clipping | None = None,
    bound: float | None = None,
) -> PeerId | None:
    """Who is guilty, given the work as it should have been; None if that cannot be told here: what the accused signed
    is not known, the aggregate in question is not remembered, or bytes are missing. `bound`: how far honest machines
    may differ, None if not at all."""
    accused = PeerId(accusation.accused)
    said = record.commits.get(accused)
    if question is not None and question.projection is not None:
        is_exact = bound is None
        right = None if clipping is None else _line_holds(question, record, found, clipping, is_exact)
    elif said is None or not isinstance(said.payload, Commit):
        return None
    elif accusation.reason == Reason.WRONG_GRADIENT:
        exact = is_as_recomputed(said.payload, found)
        right = exact if bound is None else exact or as_it_should_be(gap_to(said.payload, found), bound)
    else:
        right = not said.payload.finding or is_finding(said.payload.finding, found.finding, bound)
    return None if right is None else accuser if right else accused


def is_as_recomputed(commit: Commit, found: WorkRecomputed, times: float = 1.0) -> bool:
    """Whether a commit is that of its work unit: the very bytes, and their lengths but for the order of additions, off
    by no more than so many `times` LENGTH_ERROR."""
    lengths = zip(commit.norms, found.norms, strict=False)
    return commit.parts == found.parts and not any(wrong_length(said, true, times) for said, true in lengths)


def gap_to(commit: Commit, found: WorkRecomputed, times: float = 1.0) -> Gap:
    """How far a commit is from its work unit, as far as its bytes were seen; `times` as above."""
    return gap_between(commit.parts, commit.norms, found.parts, found.norms, found.compared, times)


def is_finding(said: bytes, own: bytes, bound: float | None) -> bool:
    """Whether a validator has found what its target's work gives: the very bytes, or such as are no farther apart."""
    return said == own if bound is None else sketches_apart(said, own) <= bound


def _line_holds(
    question: Question, record: Record, found: WorkRecomputed, clipping: Clipping, is_exact: bool
) -> bool | None:
    """Whether a line is what its member's work gives. Who committed to something else has nothing to complain about;
    where machines differ it is about what was committed to, whatever the work."""
    projection, said = question.projection, record.commits.get(question.audit.target)
    commit = said.payload if said is not None else None
    if projection is None or not isinstance(commit, Commit) or projection.part >= len(commit.parts):
        return None
    part = projection.part
    if is_exact and (part >= len(found.parts) or commit.parts[part] != found.parts[part]):
        return True
    own, claimed = found.line_about(part, projection.aggregate), line_about(projection, question.member)
    return None if own is None or claimed is None else not wrong_line(claimed, own, clipping)
