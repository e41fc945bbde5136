"""What a node wants done: the outputs of `Node.handle`, carried out by the shell in order.

Order matters in one place: a `Persist` effect must be durable before any later effect of the same list is
carried out, because it records what the later ones send (SPEC R-2.6).
"""

from __future__ import annotations

from dataclasses import dataclass

from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Ban, Certificate, Envelope, Header


@dataclass(frozen=True, slots=True)
class PersistSigned:
    """Journal a message of ours, durably, before it is sent."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class PersistLock:
    """Journal the header we are about to vote for and its view, durably, before the vote is sent. Keep what it
    changes and its grounds too, whole or not at all; the newest lock's are enough."""

    header: Header
    view: int
    grounds: tuple[Envelope, ...] = ()
    """The messages the header follows from: its cut, the commits in it, the aggregates it names. Whoever is to vote
    for it after everybody was restarted has to see them (SPEC R-2.7)."""


@dataclass(frozen=True, slots=True)
class PersistCertificate:
    """Journal a certified step."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class SendEnvelope:
    """Send a signed message (ours or forwarded) to some peers."""

    to: tuple[PeerId, ...]
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class SendCertificates:
    """Send certified steps to some peers."""

    to: tuple[PeerId, ...]
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class SendWant:
    """Ask a peer to forward signed messages we lack."""

    to: PeerId
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class RequestChain:
    """Fetch certificates from `first_step` on from a peer; answered by ChainReceived or ChainFailed."""

    peer: PeerId
    first_step: int


@dataclass(frozen=True, slots=True)
class RequestState:
    """Fetch a whole certified state from one of the peers; answered by StateReady when it is loaded."""

    candidates: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class ExpectPart:
    """Accept the blob of a contributor's part into the inbox of a part we aggregate."""

    step: int
    part: int
    parts: int
    """Into how many parts the vector is cut in this step."""
    member: int
    digest: Digest
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class ExpectAggregate:
    """Accept the blob of an aggregated part."""

    step: int
    part: int
    parts: int
    digest: Digest
    blob_bytes: int
    author: PeerId | None = None
    """Who has signed it, and so pushes it; None where anybody is asked for it."""


@dataclass(frozen=True, slots=True)
class SendBlob:
    """Push a blob of a step we hold to some peers."""

    to: tuple[PeerId, ...]
    step: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Pull an expected blob from the first candidate that has it."""

    candidates: tuple[PeerId, ...]
    digest: Digest


@dataclass(frozen=True, slots=True)
class ComputeWork:
    """Compute the work unit of a step: gradient at the current state for `seed`, cut into `parts` parts."""

    step: int
    seed: Digest
    parts: int


@dataclass(frozen=True, slots=True)
class RecomputeWork:
    """Compute another peer's work unit of a past step: the gradient at `state`, the one before it, for its `seed`."""

    step: int
    seed: Digest
    parts: int
    state: Digest
    finder: PeerId
    """Whose finding over it is wanted."""
    aggregates: tuple[bytes, ...] = ()
    """Aggregates of that step whose lines about this work are wanted, by part; empty where none is."""
    beacon: bytes = b""
    """The beacon that the directions of those lines are drawn from."""
    committed: tuple[bytes, ...] = ()
    """What the work is to be compared with, where machines may differ: the blob digest of every part that was committed
    to, empty for one that is not wanted. Then the lines are about these bytes."""
    holders: tuple[PeerId, ...] = ()
    """Whom to ask for them, by part; nobody for what is here or not at all."""
    patience_seconds: float = 0.0
    """How long they may take; what has not come then is done without."""


@dataclass(frozen=True, slots=True)
class ComputeFinding:
    """Work out what a validator of this peer's own gradient of a past step must have found."""

    step: int
    finder: PeerId


@dataclass(frozen=True, slots=True)
class CancelWork:
    """The step goes on without this peer's work unit."""

    step: int


@dataclass(frozen=True, slots=True)
class AggregatePart:
    """Apply the manifest's rule to these parts: (member index, blob digest), by rising index. As many rows of zeros as
    parts are `absent`, or not finite, go in behind them."""

    step: int
    cut: Digest
    part: int
    inputs: tuple[tuple[int, Digest], ...]
    absent: int


@dataclass(frozen=True, slots=True)
class ProjectPart:
    """Work out the lines of an aggregate of ours, one for each of its inputs: (member index, blob digest), and one
    about a row of zeros if any part is absent."""

    step: int
    cut: Digest
    part: int
    aggregate: Digest
    inputs: tuple[tuple[int, Digest], ...]
    absent: int
    beacon: Digest
    """The directions are drawn from it (`assignment.projection_seed`)."""


@dataclass(frozen=True, slots=True)
class CheckAggregates:
    """Work out what lines about this peer's own gradient of a step must say, and keep these aggregates for later cases:
    a blob digest per part, empty for one that is not held."""

    step: int
    aggregates: tuple[bytes, ...]
    beacon: Digest


@dataclass(frozen=True, slots=True)
class ApplyUpdate:
    """Apply a certified step to the state: one blob digest per part, empty for a void part. Answered by
    StateReady(step + 1)."""

    step: int
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PersistEvidence:
    """Keep what convicted a peer, for people and for anyone who asks (`crowdsurf why`)."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Refused:
    """Something a peer sent was refused; for logs, metrics and scores."""

    peer: PeerId
    code: Code
    detail: str
    costs_stream: bool = False
    """Whether `peer` handed over what no correct peer hands over, whoever signed it (SPEC R-2.14)."""


@dataclass(frozen=True, slots=True)
class StepCertified:
    """For people: a step is certified. Losses are those the contributors committed to, by member index."""

    step: int
    contributors: tuple[PeerId, ...]
    void_parts: int
    view: int
    mean_loss: float | None
    joined: tuple[PeerId, ...]
    left: tuple[PeerId, ...]
    roster: tuple[PeerId, ...]
    banned: tuple[Ban, ...] = ()
    is_void: bool = False
    """A nonce was withheld: nothing of the step counts, and the next one does it again."""


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """The peers to stay connected to are now these (members and, for members, candidates)."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over for this peer, in order: its last step is certified, or it has left the roster, or was banned."""

    reason: str
    banned: bool = False


Effect = (
    PersistSigned
    | PersistLock
    | PersistCertificate
    | SendEnvelope
    | SendCertificates
    | SendWant
    | RequestChain
    | RequestState
    | ExpectPart
    | ExpectAggregate
    | SendBlob
    | FetchBlob
    | ComputeWork
    | RecomputeWork
    | ComputeFinding
    | CancelWork
    | AggregatePart
    | ProjectPart
    | CheckAggregates
    | ApplyUpdate
    | PersistEvidence
    | Refused
    | StepCertified
    | RosterChanged
    | Finished
)
