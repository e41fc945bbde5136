"""What peers say to each other: frozen structures that are valid once they exist.

The idea: ten signed kinds make a step, two more change the roster, two accuse and judge, and two unsigned packets
help a peer that lacks something. Every field is bounded here, so later code never asks "how long can this be?";
rules that need the roster or the step live where those are known (`step.py`, `chain.py`, `tribunal.py`). SPEC.md §2.

Of the numbers of `Kind`, those from 21 on are free.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.ids import DIGEST_BYTES, PEER_ID_BYTES, SIGNATURE_BYTES, Digest, digest

DigestBytes = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
OptionalDigest = Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES)]
PeerBytes = Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Step = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
View = Annotated[int, msgspec.Meta(ge=0, lt=limits.VIEWS_MAX)]
MemberIndex = Annotated[int, msgspec.Meta(ge=0, lt=limits.ROSTER_PEERS_MAX)]
Bitmap = Annotated[bytes, msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX // 8)]
PeerList = Annotated[tuple[PeerBytes, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)]
LINE_FLOATS = 4
"""Numbers in a line of a projection: three directions and a length (`projection.PROJECTIONS` + 1)."""
NamedPeers = Annotated[tuple[PeerBytes, ...], msgspec.Meta(max_length=limits.JOINS_PER_COMMIT_MAX)]


class Kind(enum.IntEnum):
    """Kinds of signed messages; with step, view and subject the kind makes the slot that is signed once."""

    COMMIT = 1
    PROPOSAL = 2
    AGGREGATE = 3
    REVEAL = 4
    OUTCOME = 5
    VOTE = 6
    VIEW_CHANGE = 7
    JOIN = 8
    LEAVE = 9
    PROJECTION = 16
    ACCUSATION = 17
    VERDICT = 18
    ECHO = 19
    PREPARE = 20


class Reason(enum.IntEnum):
    """What a peer can be banned for. Class A convicts by the offender's own signatures, class B by a recomputation
    that a quorum signs (SPEC §6)."""

    EQUIVOCATION = 1
    """Class A: signed two payloads for one slot."""
    WRONG_GRADIENT = 2
    """Class B: its committed parts are not those of its work unit."""
    WRONG_FINDING = 3
    """Class B: as validator it committed to something it did not recompute."""
    FALSE_ACCUSATION = 4
    """Accused somebody of what turned out not to be so."""
    WRONG_AGGREGATE = 5
    """Class A: the projections it published for its aggregate do not add up to nothing."""
    WRONG_PROJECTION = 6
    """Class B: what it published about a contributor's part is not so."""


REASONS = frozenset(int(reason) for reason in Reason)
PROVEN = frozenset((int(Reason.EQUIVOCATION), int(Reason.WRONG_AGGREGATE)))
"""Reasons of class A: an accusation carries the proof."""


def reason_name(reason: int) -> str:
    """The name of a reason for a ban, as JSON answers and sentences have it."""
    return Reason(reason).name.lower()


class Commit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contributor binds itself to its work before it sees anybody else's (BTARD, message 1): to its gradient, or, if
    it validates in this step, to what it found when it recomputed another's of the step before."""

    previous: DigestBytes
    """Digest of the header this step builds on."""
    state: DigestBytes
    """Digest of the state the gradient was computed from."""
    parts: Annotated[tuple[DigestBytes, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)]
    """Blob digest of every part of the gradient, one part per roster member; none from a validator."""
    nonce_digest: DigestBytes
    """Digest of the random nonce revealed later for the beacon."""
    loss: float
    """Mean training loss of the work unit, in nats; shown to people, decides nothing."""
    samples: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    """Samples in the work unit; shown to people, decides nothing."""
    joins: NamedPeers = ()
    """Peers whose join request this contributor has seen, sorted."""
    leaves: NamedPeers = ()
    """Members whose leave message this contributor has seen, sorted."""
    finding: OptionalDigest = b""
    """Of a validator: digest over its own peer id and the gradient it recomputed. Nothing its target has published
    tells it, so who has not recomputed cannot agree. Empty if it could not, which costs a strike."""
    norms: Annotated[tuple[float, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)] = ()
    """Length of every part of the gradient, where projections are checked: how long an aggregate may be."""
    heard: Bitmap = b""
    """Members that have said anything since the step before began; empty if this contributor does not know. A
    proposer alone cannot make them absent."""
    transfer_seconds: float = 0.0
    """How long this contributor would wait for a transfer, seconds. What is named in a cut has a say in how long its
    members wait (SPEC R-4.30)."""


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The list of commits that make up a step. It names neither view nor proposer, so that the next proposer
    can propose the same cut and everything exchanged for it stays good."""

    previous: DigestBytes
    commits: Annotated[
        tuple[tuple[MemberIndex, DigestBytes], ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)
    ]
    """(member index, payload digest of its commit), by rising index."""


class Aggregate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An aggregator binds itself to the aggregate of one part."""

    cut: DigestBytes
    part: MemberIndex
    digest: DigestBytes
    """Blob digest of the aggregate."""
    included: Bitmap
    """Members whose part went in."""


class Reveal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contributor opens its nonce, once it holds the aggregates of the cut or has given up on them."""

    cut: DigestBytes
    nonce: DigestBytes
    aggregates: Annotated[tuple[OptionalDigest, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)] = ()
    """Where projections are checked: the digest of every aggregate signed so far, empty for one not heard of. An
    aggregate that nobody can have heard of before the nonces were open may be made to suit them."""


class Projection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an aggregator says about its aggregate once the beacon is known (BTARD, message 7; there every contributor
    says it about itself). `projection.py` has what it must satisfy."""

    cut: DigestBytes
    part: MemberIndex
    aggregate: DigestBytes
    """Blob digest of the aggregate it is about."""
    included: Bitmap
    """Members whose part went in, as the aggregate says."""
    norm: float
    """Length of the aggregate."""
    lines: Annotated[
        tuple[Annotated[tuple[float, ...], msgspec.Meta(min_length=LINE_FLOATS, max_length=LINE_FLOATS)], ...],
        msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX),
    ]
    """For every member that went in, by rising index: the projections of its clipped difference, and the length of the
    difference before clipping. One more about a row of zeros, the last one, if somebody is absent."""
    absent: MemberIndex = 0
    """How many have committed to work that did not go in. For each of them the rule was given a row of zeros."""


class Ban(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer is out for good. The evidence is outside of the chain; its name is here."""

    peer: PeerBytes
    reason: Annotated[int, msgspec.Meta(ge=1, le=255)]
    step: Step
    """The step it did it in."""
    case: DigestBytes
    """Name of the case that convicted it (`cases.case_name`)."""


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A step's outcome. With signatures of a quorum it is a certificate."""

    step: Step
    previous: DigestBytes
    roster: DigestBytes
    state: DigestBytes
    """State digest before the step."""
    cut: DigestBytes
    contributors: Bitmap
    parts: Annotated[tuple[OptionalDigest, ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)]
    """Blob digest of every aggregated part; empty = void (zero update)."""
    nonces: Annotated[tuple[OptionalDigest, ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)]
    """Revealed nonce of every member; empty = not a contributor or not revealed."""
    beacon: DigestBytes
    joined: PeerList
    left: PeerList
    next_roster: DigestBytes
    excused: Bitmap = b""
    """Validators that could not recompute what they were to."""
    bans: Annotated[tuple[Ban, ...], msgspec.Meta(max_length=limits.BANS_PER_HEADER_MAX)] = ()
    """Peers that are banned from the next step on, by rising peer id."""
    projections: Annotated[tuple[OptionalDigest, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)] = ()
    """Payload digest of the projection of every part that counts, where they are checked; else nothing at all."""
    heard: Bitmap = b""
    """Members that any commit of the cut says were heard lately."""


class Echo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member shows which header of a view it saw first."""

    outcome: DigestBytes
    """The header's digest."""
    signature: SignatureBytes
    """By which the view's proposer has proposed it."""


class Prepare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member finds a header correct, and the only one of its view. A quorum of these may be voted on."""

    header: DigestBytes


class Vote(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member signs a header: its digest. Quorum of these = certificate."""

    header: DigestBytes


class ViewChange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member gives up on a view and asks for the next one, naming the header it is locked on, if any, and the
    prepares of a quorum for it: (member index, signature) by rising index."""

    lock: Header | None
    lock_view: View
    proof: Annotated[
        tuple[tuple[MemberIndex, SignatureBytes], ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)
    ] = ()


class Join(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A newcomer asks to enter the roster. The envelope's step and signature say all there is to say."""


class Leave(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member says goodbye."""


class Accusation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer says that another one cheated, in one step, in one way. A false one is itself a reason for a ban."""

    accused: PeerBytes
    reason: Annotated[int, msgspec.Meta(ge=1, le=255)]
    step: Step
    """The step it was done in."""
    proof: Annotated[bytes, msgspec.Meta(max_length=limits.PROOF_BYTES_MAX)] = b""
    """Class A: what convicts by itself (`cases.Proof`, or the envelope of a projection); for a wrong projection, what
    it is about (`cases.Particular`); else empty."""


class Verdict(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member found when it recomputed what an accusation is about."""

    case: DigestBytes
    """Its name (`cases.case_name`)."""
    guilty: PeerBytes
    """The accused, or the accuser."""


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signed message. (step, view, kind, subject) is the sender's slot, signed at most once."""

    version: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    run_id: DigestBytes
    step: Step
    view: View
    kind: Annotated[int, msgspec.Meta(ge=0, le=255)]
    subject: Annotated[bytes, msgspec.Meta(max_length=64)]
    payload: Annotated[bytes, msgspec.Meta(max_length=limits.ENVELOPE_BYTES_MAX)]
    sender: PeerBytes
    signature: SignatureBytes


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A header and the votes of a quorum: (member index, view, signature) by rising index. Self-proving, so it
    travels unsigned."""

    header: Header
    votes: Annotated[
        tuple[tuple[MemberIndex, View, SignatureBytes], ...],
        msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX),
    ]


class Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Unsigned: please forward the signed messages with these payload digests."""

    digests: Annotated[tuple[DigestBytes, ...], msgspec.Meta(min_length=1, max_length=limits.WANTS_PER_MESSAGE_MAX)]


Payload = (
    Commit
    | Cut
    | Aggregate
    | Reveal
    | Projection
    | Header
    | Echo
    | Prepare
    | Vote
    | ViewChange
    | Join
    | Leave
    | Accusation
    | Verdict
)

PAYLOAD_TYPES: dict[Kind, type[Payload]] = {
    Kind.COMMIT: Commit,
    Kind.PROPOSAL: Cut,
    Kind.AGGREGATE: Aggregate,
    Kind.REVEAL: Reveal,
    Kind.PROJECTION: Projection,
    Kind.OUTCOME: Header,
    Kind.VOTE: Vote,
    Kind.VIEW_CHANGE: ViewChange,
    Kind.JOIN: Join,
    Kind.LEAVE: Leave,
    Kind.ACCUSATION: Accusation,
    Kind.VERDICT: Verdict,
    Kind.ECHO: Echo,
    Kind.PREPARE: Prepare,
}


def payload_digest(payload: bytes) -> Digest:
    """The digest that names a payload: a commit in a cut, a cut in a part's aggregate, a header in a vote."""
    return digest("payload", payload)


def header_digest(header: Header) -> Digest:
    """The name of a header; equals the payload digest of the message that proposes it."""
    return payload_digest(wire.pack(header))


def bitmap_of(indexes: set[int] | frozenset[int] | list[int], length: int) -> bytes:
    """`length` bits, least significant first; bit i is set for every i in `indexes`."""
    value = sum(1 << index for index in set(indexes))
    return value.to_bytes((length + 7) // 8, "little")


def is_bitmap_of(bitmap: bytes, length: int) -> bool:
    """Whether a bitmap is one that `bitmap_of` makes for this length."""
    return len(bitmap) == (length + 7) // 8 and not int.from_bytes(bitmap, "little") >> length


def indexes_of(bitmap: bytes) -> list[int]:
    """The set bits of a bitmap, rising."""
    value = int.from_bytes(bitmap, "little")
    return [index for index in range(value.bit_length()) if value >> index & 1]
