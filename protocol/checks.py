"""What a single message of a step must satisfy, given what everyone knows about the step.

The idea: one function per kind, each raising a named refusal, none changing anything; whether a message is
*timely* or *useful* is the step machine's question. SPEC.md §4.
"""

from __future__ import annotations

import math

from crowdsurf.protocol import wire
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import part_subject
from crowdsurf.protocol.envelope import Opened, Slot, Verify, signed_bytes
from crowdsurf.protocol.errors import Code, Refusal, Unreadable
from crowdsurf.protocol.ids import DIGEST_BYTES, PeerId
from crowdsurf.protocol.messages import (
    Aggregate,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Prepare,
    Projection,
    Reveal,
    ViewChange,
    header_digest,
    is_bitmap_of,
    payload_digest,
)
from crowdsurf.protocol.outcome import StepFacts
from crowdsurf.protocol.roster import Roster
from crowdsurf.protocol.scrutiny import has_all_lines
from crowdsurf.protocol.transcript import Transcript

_VIEWLESS = frozenset(
    int(kind)
    for kind in (
        *(Kind.COMMIT, Kind.AGGREGATE, Kind.REVEAL, Kind.PROJECTION),
        *(Kind.JOIN, Kind.LEAVE, Kind.ACCUSATION, Kind.VERDICT),
    )
)
LAST_WORDS = frozenset((int(Kind.ECHO), int(Kind.PREPARE), int(Kind.VOTE)))
"""What is still on its way when a step is over."""
_WITH_SUBJECT = frozenset(int(kind) for kind in (Kind.AGGREGATE, Kind.PROJECTION, Kind.ACCUSATION, Kind.VERDICT))


def check_slot_form(envelope: Envelope) -> None:
    """A kind has one shape of slot, so that nobody can fill many. Raises Refusal(MALFORMED)."""
    kind = envelope.kind
    if envelope.view != 0 and kind in _VIEWLESS:
        raise Refusal(Code.MALFORMED, f"{Kind(kind).name.lower()} does not belong to a view")
    if envelope.subject and kind not in _WITH_SUBJECT:
        raise Refusal(Code.MALFORMED, f"{Kind(kind).name.lower()} has no subject")
    if envelope.view == 0 and kind == Kind.VIEW_CHANGE:
        raise Refusal(Code.MALFORMED, "nobody changes to the first view")


def check_message(facts: StepFacts, transcript: Transcript, opened: Opened, proposer: PeerId) -> None:
    """What holds for any message of this step; `proposer` is that of the message's view. Raises Refusal."""
    payload, view = opened.payload, opened.envelope.view
    if isinstance(payload, Commit):
        check_commit(facts, opened.sender, payload)
    elif isinstance(payload, Cut):
        check_proposer(opened.sender, view, proposer)
        check_cut(facts, payload)
    elif isinstance(payload, Aggregate):
        check_aggregate(facts, transcript, opened, payload)
    elif isinstance(payload, Reveal):
        check_reveal(facts, transcript, opened.sender, payload)
    elif isinstance(payload, Projection):
        check_projection(facts, transcript, opened, payload)
    elif isinstance(payload, Header):
        check_proposer(opened.sender, view, proposer)
        if payload.step != facts.head.step:
            raise Refusal(Code.BAD_OUTCOME, "an outcome for another step")


def check_commit(facts: StepFacts, sender: PeerId, commit: Commit) -> None:
    """R-4.8: same chain, same state, one part per member or, from a validator, a finding; named peers sorted.
    Raises Refusal."""
    if commit.previous != facts.head.previous:
        raise Refusal(Code.WRONG_CHAIN, "the commit builds on another header")
    if commit.state != facts.state:
        raise Refusal(Code.BAD_COMMIT, "the commit starts from another state")
    validates = facts.head.audit_of(sender) is not None
    expected, findings = (0, (0, DIGEST_BYTES)) if validates else (len(facts.peers), (0,))
    if len(commit.parts) != expected or len(commit.finding) not in findings:
        raise Refusal(Code.BAD_COMMIT, f"{len(commit.parts)} parts and a finding of {len(commit.finding)} bytes")
    if len(commit.norms) != (expected if facts.clipping is not None else 0):
        raise Refusal(Code.BAD_COMMIT, f"{len(commit.norms)} lengths of parts")
    if not all(norm >= 0.0 for norm in commit.norms):
        raise Refusal(Code.BAD_COMMIT, "a length of a part is no length")
    if not 0.0 <= commit.transfer_seconds < math.inf:
        raise Refusal(Code.BAD_COMMIT, "it waits for no length of time")
    if commit.heard and not is_bitmap_of(commit.heard, len(facts.peers)):
        raise Refusal(Code.BAD_COMMIT, "it has heard others than members")
    for names in (commit.joins, commit.leaves):
        if list(names) != sorted(set(names)):
            raise Refusal(Code.BAD_COMMIT, "named peers must be sorted and distinct")


def check_lock(opened: Opened, roster: Roster, quorum: int, verify: Verify) -> None:
    """R-4.26: what is shown for a lock are prepares of a quorum, in the view it is said to be of; nothing may be shown.
    Nobody honest hands on anything else. Raises Unreadable(BAD_CERTIFICATE)."""
    change, envelope = opened.payload, opened.envelope
    if not isinstance(change, ViewChange) or not change.proof:
        return
    indexes = [index for index, _ in change.proof]
    if change.lock is None or change.lock_view >= envelope.view or change.lock.step != envelope.step:
        raise Unreadable(Code.BAD_CERTIFICATE, "prepares are shown for a header of this step and of an earlier view")
    if indexes != sorted(set(indexes)) or indexes[-1] >= len(roster) or len(indexes) != quorum:
        raise Unreadable(Code.BAD_CERTIFICATE, f"{quorum} prepares of distinct members are needed, by rising index")
    slot = Slot(envelope.step, change.lock_view, Kind.PREPARE, b"")
    name = payload_digest(wire.pack(Prepare(header_digest(change.lock))))
    for index, signature in change.proof:
        peer = roster.peers[index]
        if not verify(peer, signed_bytes(envelope.version, envelope.run_id, slot, name, peer), signature):
            raise Unreadable(Code.BAD_CERTIFICATE, f"the prepare of member {index} is not signed by it")


def check_proposer(sender: PeerId, view: int, proposer: PeerId) -> None:
    """R-4.9: only the view's proposer proposes. Raises Refusal."""
    if sender != proposer:
        raise Refusal(Code.WRONG_PROPOSER, f"view {view} is not this member's to propose in")


def check_cut(facts: StepFacts, cut: Cut) -> None:
    """R-4.10: the cut belongs here and has commits of a quorum of distinct members. Raises Refusal."""
    indexes = [index for index, _ in cut.commits]
    if cut.previous != facts.head.previous:
        raise Refusal(Code.WRONG_CHAIN, "the cut builds on another header")
    if indexes != sorted(set(indexes)) or indexes[-1] >= len(facts.peers):
        raise Refusal(Code.BAD_PROPOSAL, "commits must come from distinct members, by rising index")
    if len(indexes) < facts.quorum:
        raise Refusal(Code.BAD_PROPOSAL, f"{len(indexes)} commits where {facts.quorum} are needed")


def check_aggregate(facts: StepFacts, transcript: Transcript, opened: Opened, aggregate: Aggregate) -> None:
    """R-4.14: the part is the sender's to aggregate and includes only members of the cut. Raises Refusal.

    A cut that was not heard yet cannot be checked against; whoever uses the aggregate asks again by sender.
    """
    if opened.envelope.subject != part_subject(aggregate):
        raise Refusal(Code.BAD_AGGREGATE, "the slot does not name the cut and the part")
    if aggregate.part >= len(facts.peers):
        raise Refusal(Code.BAD_AGGREGATE, f"there is no part {aggregate.part}")
    cut = transcript.cut(aggregate.cut)
    if cut is None:
        return
    known = facts.of_cut(cut)
    if known.duties[aggregate.part] != opened.sender:
        raise Refusal(Code.BAD_AGGREGATE, f"part {aggregate.part} is not this member's to aggregate")
    included = int.from_bytes(aggregate.included, "little")
    if not included or included & ~known.working:
        raise Refusal(Code.BAD_AGGREGATE, "it includes parts of members that have none in the cut")


def check_reveal(facts: StepFacts, transcript: Transcript, sender: PeerId, reveal: Reveal) -> None:
    """R-4.18: the nonce is the one the sender committed to. Raises Refusal."""
    if transcript.commit_of(sender) is None:
        raise Refusal(Code.FUTURE, "a nonce without a commit")
    if not transcript.opens_commit(sender, nonce_digest(reveal.nonce)):
        raise Refusal(Code.BAD_REVEAL, "the nonce is not the one committed to")
    if len(reveal.aggregates) != (len(facts.peers) if facts.clipping is not None else 0):
        raise Refusal(Code.BAD_REVEAL, "it does not say which aggregates were signed before it")


def check_projection(facts: StepFacts, transcript: Transcript, opened: Opened, projection: Projection) -> None:
    """R-5.3: about a part that is the sender's to aggregate, with a line for everybody that went in, and one for the
    absent. Raises Refusal.

    Whether the lines add up is not asked here: lines that do not are proof, and have to be kept."""
    if facts.clipping is None:
        raise Refusal(Code.BAD_PROJECTION, "aggregates of this run are not checked")
    if opened.envelope.subject != part_subject(projection) or projection.part >= len(facts.peers):
        raise Refusal(Code.BAD_PROJECTION, "the slot does not name the cut and a part")
    if not has_all_lines(projection):
        raise Refusal(Code.BAD_PROJECTION, "there must be a line for everybody that went in, and one for the absent")
    cut = transcript.cut(projection.cut)
    if cut is not None and facts.duties(cut)[projection.part] != opened.sender:
        raise Refusal(Code.BAD_PROJECTION, f"part {projection.part} is not this member's to aggregate")
