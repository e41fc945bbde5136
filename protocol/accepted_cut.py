"""An accepted cut: who contributes, who aggregates what, what is still lacking, and how long to wait for it.

The idea: once a cut is accepted everything else in the step is a question about it, so those questions live
together, as reads only. All waits are laid out from the moment of acceptance and stay valid when a later
proposer proposes the same cut, so a crash is waited for once. SPEC R-4.13 to R-4.16, R-4.32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from crowdsurf.protocol.assignment import part_bytes
from crowdsurf.protocol.effects import CancelWork, Effect, ExpectPart, SendBlob
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Cut
from crowdsurf.protocol.outcome import StepFacts
from crowdsurf.protocol.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Schedule:
    """Absolute deadlines of one accepted cut, in the node's seconds."""

    accepted: float
    pull: float
    """When parts that were not pushed are asked for."""
    parts: float
    aggregates: float
    reveals: float
    outcome: float


def lay_out(now: float, transfer_seconds: float, delivery_seconds: float) -> Schedule:
    """The waits of a cut accepted now. An aggregator may take the whole wait for parts before it starts, hence
    twice the transfer time for aggregates; each later phase adds one delivery."""
    aggregates = now + 2 * transfer_seconds
    return Schedule(
        accepted=now,
        pull=now + transfer_seconds / 2,
        parts=now + transfer_seconds,
        aggregates=aggregates,
        reveals=aggregates + delivery_seconds,
        outcome=aggregates + 5 * delivery_seconds,
    )


class Input(NamedTuple):
    """One contributor's part of a gradient, as an input of an aggregate."""

    part: int
    member: int
    peer: PeerId
    digest: Digest


class AcceptedCut:
    """A cut whose commits are all held, seen by one member."""

    def __init__(
        self, facts: StepFacts, transcript: Transcript, me: PeerId, name: Digest, cut: Cut, schedule: Schedule
    ) -> None:
        self.name = name
        self.cut = cut
        self.schedule = schedule
        self.duties = facts.duties(cut)
        """Who aggregates each part."""
        self.contributors = tuple(facts.peers[index] for index, _ in cut.commits)
        self.aggregating: set[int] = set()
        """Parts whose aggregation this member has started."""
        self._facts = facts
        self._me = me
        self._transcript = transcript
        self.inputs = self._my_inputs(facts)
        # What is still open, last first: what has come stays, so it is dropped from the end and not looked at again.
        self._open_inputs = self.inputs[::-1]
        self._open_parts = list(range(len(self.duties)))[::-1]
        self._open_reveals = list(self.contributors[::-1])

    def opening(self, blobs: set[bytes], elements: int) -> list[Effect]:
        """What a member does first: push its parts to their aggregators and expect those it aggregates; whoever is not
        in the cut stops working."""
        step, parts = self._facts.head.step, len(self.duties)
        mine = self._transcript.commit_of(self._me)
        effects: list[Effect] = []
        if self._me not in self.contributors:
            effects.append(CancelWork(step))
        elif mine is not None and mine.parts:
            for part, aggregator in enumerate(self.duties):
                if aggregator != self._me and mine.parts[part] in blobs:
                    effects.append(SendBlob((aggregator,), step, Digest(mine.parts[part])))
        for item in self.inputs:
            if item.digest not in blobs:
                size = part_bytes(elements, parts, item.part)
                effects.append(ExpectPart(step, item.part, parts, item.member, item.digest, size))
        return effects

    def _my_inputs(self, facts: StepFacts) -> list[Input]:
        """Every input of the parts this member aggregates, by part and member."""
        commits = self._transcript.commits_in(self.cut, facts.peers)  # a validator's has no parts
        return [
            Input(part, index, facts.peers[index], Digest(commit.parts[part]))
            for part, aggregator in enumerate(self.duties)
            if aggregator == self._me
            for index, commit in commits.items()
            if commit.parts
        ]

    # The three questions are asked after every message, and almost always the first answer is all that matters:
    # hence iterators.

    def parts_lacking(self, blobs: set[bytes], gone: set[PeerId]) -> Iterator[Input]:
        """Inputs of this member's own parts that are neither here nor given up."""
        items = self._open_inputs
        while items and items[-1].digest in blobs:
            items.pop()
        return (item for item in reversed(items) if item.digest not in blobs and item.peer not in gone)

    def aggregates_lacking(self, blobs: set[bytes], gone: set[PeerId]) -> Iterator[int]:
        """Parts whose aggregate is not held and may still come."""
        parts = self._open_parts
        while parts and self._is_held(parts[-1], blobs):
            parts.pop()
        for part in reversed(parts):
            if not self._is_held(part, blobs) and not self._is_hopeless(part, gone):
                yield part

    def _is_held(self, part: int, blobs: set[bytes]) -> bool:
        said = self._transcript.aggregate(self.name, part, self.duties[part])
        return said is not None and said.digest in blobs

    def _is_hopeless(self, part: int, gone: set[PeerId]) -> bool:
        """Whether nobody will ever say what its aggregate is: its aggregator is gone, or had nothing to aggregate."""
        aggregator = self.duties[part]
        idle = aggregator == self._me and part not in self.aggregating
        unsaid = self._transcript.aggregate(self.name, part, aggregator) is None
        return unsaid and (aggregator in gone or idle)

    def reveals_lacking(self, gone: set[PeerId]) -> Iterator[PeerId]:
        """Contributors whose nonce is not open and may still come."""
        peers, reveals = self._open_reveals, self._transcript.reveals
        while peers and peers[-1] in reveals:
            peers.pop()
        return (peer for peer in reversed(peers) if peer not in reveals and peer not in gone)
