"""What can happen to a node: the inputs of `Node.handle`. Frozen values; behaviour never lives here."""

from __future__ import annotations

from dataclasses import dataclass

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Certificate, Envelope
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.tolerance import Compared


@dataclass(frozen=True, slots=True)
class StateReady:
    """The compute side holds the state before `step` (initial, loaded from disk, or fetched from a peer)."""

    step: int
    digest: Digest
    source: PeerId | None = None
    """The peer it was fetched from; None for a state of our own."""


@dataclass(frozen=True, slots=True)
class StateFailed:
    """`RequestState` found nobody that could serve a state."""


@dataclass(frozen=True, slots=True)
class StateLost:
    """The compute worker died and its state with it; a `StateReady` for some earlier step may follow."""


@dataclass(frozen=True, slots=True)
class EnvelopeReceived:
    """A signed message came in; `source` is the peer that handed it over, not always its sender."""

    source: PeerId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class CertificateReceived:
    """A certificate was pushed by a peer."""

    source: PeerId
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class WantReceived:
    """A peer asks for signed messages by payload digest."""

    source: PeerId
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class ChainReceived:
    """Answer to `RequestChain`: certificates in rising order, possibly none."""

    source: PeerId
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class ChainFailed:
    """`RequestChain` found nobody, or its peer broke off."""

    source: PeerId


@dataclass(frozen=True, slots=True)
class BlobArrived:
    """Bytes with this digest are held now; the shell has checked digest and length."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """`FetchBlob` asked every candidate in vain."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The work unit of `step` is computed; its parts are held as blobs."""

    step: int
    parts: tuple[Digest, ...]
    loss: float
    samples: int
    norms: tuple[float, ...] = ()
    """Length of every part."""


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work unit of `step` could not be computed; this peer is not in the step."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkRecomputed:
    """Another peer's work unit of a past step, as it should have been."""

    step: int
    seed: Digest
    finder: PeerId
    parts: tuple[Digest, ...]
    finding: Digest
    """What `finder` must commit to as its validator."""
    norms: tuple[float, ...] = ()
    """Length of every part."""
    lines: tuple[Line | None, ...] = ()
    """What the aggregators asked about must have said of this work, by part; None where nothing was asked, or the
    aggregate is not remembered, or it is about bytes that nobody has handed over."""
    compared: tuple[Compared | None, ...] = ()
    """How far what was committed to is from it, by part, where that was asked; None where nobody has handed over the
    bytes."""
    aggregates: tuple[bytes, ...] = ()
    """Which aggregates the lines are about, by part: those that were asked about."""

    def line_about(self, part: int, aggregate: bytes) -> Line | None:
        """What must have been said of this work by whoever published just this aggregate of a part; None if that is
        not known. What another aggregate of the part gives says nothing about it."""
        is_known = part < len(self.lines) and part < len(self.aggregates) and self.aggregates[part] == aggregate
        return self.lines[part] if is_known else None


@dataclass(frozen=True, slots=True)
class RecomputeFailed:
    """It cannot be recomputed here: the state before that step is not remembered, or it failed."""

    step: int
    seed: Digest
    finder: PeerId


@dataclass(frozen=True, slots=True)
class FindingKnown:
    """What the validator of this peer's own gradient of a step must have found."""

    step: int
    finder: PeerId
    finding: Digest


@dataclass(frozen=True, slots=True)
class PartAggregated:
    """The aggregate of a part is computed and held as a blob; `included` are the member indexes that went in."""

    step: int
    cut: Digest
    part: int
    digest: Digest
    included: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartProjected:
    """The lines of an aggregate of ours, one for each of its inputs and one about a row of zeros if any is absent, and
    its length."""

    step: int
    cut: Digest
    part: int
    aggregate: Digest
    norm: float
    lines: tuple[Line, ...]
    absent: int


@dataclass(frozen=True, slots=True)
class AggregatesChecked:
    """What the lines about this peer's own gradient must say, by part; None where no aggregate was given, nothing at
    all from a peer that has no gradient in the step."""

    step: int
    aggregates: tuple[bytes, ...]
    beacon: bytes
    """As they were asked about."""
    lines: tuple[Line | None, ...]
    nothings: tuple[Line | None, ...]
    """What the line about a row of zeros must say, by part; its norm is the length of the aggregate. None where no
    aggregate was given, and where it is not finite."""


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The connection to a peer broke. A hint for liveness, never a verdict."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A connection to a peer exists (again)."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """The user wants this peer to leave in order."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline that `Node.next_deadline` named has passed (or time simply went on)."""


Event = (
    StateReady
    | StateFailed
    | StateLost
    | EnvelopeReceived
    | CertificateReceived
    | WantReceived
    | ChainReceived
    | ChainFailed
    | BlobArrived
    | BlobFailed
    | WorkDone
    | WorkFailed
    | WorkRecomputed
    | RecomputeFailed
    | FindingKnown
    | PartAggregated
    | PartProjected
    | AggregatesChecked
    | PeerGone
    | PeerSeen
    | LeaveAsked
    | Tick
)
