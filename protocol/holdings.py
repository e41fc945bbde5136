"""What one member holds of a step, and what it makes of headers with it.

The idea: a header is built from what is held and judged by what is held, so both ask one object that knows it: the
messages heard, the bytes that are here, the bans whose evidence is known, and what was worked out about aggregates.
"""

from __future__ import annotations

import math

from crowdsurf.protocol import limits
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.events import WorkDone, WorkRecomputed
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Ban, Commit, Cut, Envelope, Header, Reveal, bitmap_of
from crowdsurf.protocol.outcome import (
    Missing,
    StepFacts,
    build_header,
    examine,
    heard_aggregates,
    objections,
    overlooked,
    work_of,
)
from crowdsurf.protocol.scrutiny import Scrutiny
from crowdsurf.protocol.transcript import Transcript


class Holdings:
    """One member's knowledge of one step."""

    def __init__(self, facts: StepFacts, me: PeerId) -> None:
        self.facts = facts
        self.me = me
        self.transcript = Transcript()
        self.blobs: set[bytes] = set()
        """Digests of the bytes that are here."""
        self.convictions: dict[bytes, Ban] = {}
        """Bans this member knows the evidence for, by case."""
        self.joins: set[PeerId] = set()
        self.leaves: set[PeerId] = set()
        """Who has asked to join, or to leave."""
        self.heard_lately: set[PeerId] = set()
        """Who has said anything since the step before began."""
        clipping = facts.clipping
        self.scrutiny = Scrutiny(clipping, facts.peers.index(me)) if clipping is not None else None
        """What it makes of aggregates; None where they are not checked."""

    def commit(self, nonce: bytes, work: WorkDone | WorkRecomputed | None, transfer_seconds: float) -> Commit:
        """What this member commits to: its own work, what it found as validator, or that it could not; and how long it
        would wait for a transfer."""
        done = work if isinstance(work, WorkDone) else WorkDone(0, (), 0.0, 0)
        # What is not finite has no length; an honest gradient is.
        norms = tuple(math.inf if math.isnan(norm) else norm for norm in done.norms)
        return Commit(
            previous=self.facts.head.previous,
            state=self.facts.state,
            parts=done.parts,
            nonce_digest=nonce_digest(nonce),
            loss=done.loss,
            samples=done.samples,
            joins=tuple(sorted(self.joins))[: limits.JOINS_PER_COMMIT_MAX],
            leaves=tuple(sorted(self.leaves))[: limits.JOINS_PER_COMMIT_MAX],
            finding=work.finding if isinstance(work, WorkRecomputed) else b"",
            norms=norms if self.scrutiny is not None else (),
            heard=self._heard_lately(),
            transfer_seconds=transfer_seconds,
        )

    def _heard_lately(self) -> bytes:
        peers = self.facts.peers
        return bitmap_of([index for index, peer in enumerate(peers) if peer in self.heard_lately], len(peers))

    def whole_cut(self) -> Cut:
        """A cut of every commit that is here."""
        said, peers = self.transcript.commits, self.facts.peers
        named = tuple((index, said[peer].digest) for index, peer in enumerate(peers) if peer in said)
        return Cut(self.facts.head.previous, named)

    def transfers_named(self, cut: Cut) -> list[float]:
        """How long those in a cut would wait for a transfer, seconds."""
        return [commit.transfer_seconds for commit in self.transcript.commits_in(cut, self.facts.peers).values()]

    def header_of(self, name: Digest, cut: Cut) -> Header:
        """The outcome of a cut, as this member proposes it."""
        return build_header(self.facts, self.transcript, self.blobs, name, cut, self.convictions, self.scrutiny)

    def examine(self, header: Header, is_bound: bool = False) -> Missing:
        """What is missing to vote for a header. Raises Refusal (see `outcome.examine`)."""
        return examine(self.facts, self.transcript, self.blobs, header, self.convictions, self.scrutiny, is_bound)

    def to_check(self, missing: Missing, header: Header) -> list[Effect]:
        """What is to be worked out about the aggregates of a header."""
        if not missing.unchecked or self.scrutiny is None:
            return []
        names = dict(missing.unchecked)
        unchecked = [names.get(part, b"") for part in range(len(self.facts.peers))]
        return self.scrutiny.to_check(self.facts.head.step, unchecked, Digest(header.beacon))

    def left_out(self, header: Header) -> list[PeerId]:
        """Whose work is here and not in a header."""
        return [peer for peer, _ in overlooked(self.facts, self.transcript, self.blobs, header, self.scrutiny)]

    def work_of(self, peer: PeerId, header: Header) -> list[Opened]:
        """What a member whose work is here and not in a header has said for it; see `outcome.work_of`."""
        return work_of(self.facts, self.transcript, self.blobs, header, peer, self.scrutiny)

    def objections(self, cut: Digest) -> list[Opened]:
        """Why parts of a cut that may count for others do not count here."""
        return objections(self.facts, self.transcript, cut)

    def grounds(self, header: Header | None) -> tuple[Envelope, ...]:
        """What a header of this step follows from, to be kept with the vote for it."""
        cut = self.transcript.cut(header.cut) if header is not None else None
        if header is None or cut is None:
            return ()
        return tuple(
            opened.envelope for opened in self.transcript.grounds(header, self.facts.peers, self.facts.duties(cut))
        )

    def reveal(self, cut: Digest, nonce: bytes) -> Reveal:
        """What this member says when it opens its nonce."""
        heard = heard_aggregates(self.facts, self.transcript, cut) if self.scrutiny is not None else ()
        return Reveal(cut, nonce, heard)

    def enough_reveals(self) -> bool:
        """Whether an honest member is among those that have opened their nonce."""
        return len(self.transcript.reveals) >= self.facts.enough_for_an_honest_one
