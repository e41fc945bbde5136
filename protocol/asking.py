"""What a member asks others for in a step: messages and bytes it lacks, each once per delivery bound.

The idea: a step machine looks at what it lacks after every message, so without a memory it would ask for a missing
commit dozens of times before the answer can be here. SPEC R-4.36.
"""

from __future__ import annotations

from collections.abc import Iterable

from crowdsurf.protocol.assignment import part_bytes
from crowdsurf.protocol.effects import Effect, ExpectAggregate, FetchBlob, RequestChain, SendWant
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.outcome import Missing, StepFacts


class Asking:
    """Names asked for in one step, and when."""

    def __init__(self, facts: StepFacts, me: PeerId, elements: int, began: float, delivery_seconds: float) -> None:
        """`elements`: length of the whole vector."""
        self._facts = facts
        self._me = me
        self._elements = elements
        self._began = began
        self._delivery_seconds = delivery_seconds
        self._asked: dict[bytes, float] = {}
        self._turn = 0

    def for_messages(self, peer: PeerId, digests: Iterable[Digest], now: float | None) -> list[Effect]:
        """Ask a peer for signed messages; if that is this member itself, which has forgotten them in a restart, another
        one every time. Without a time, as if at the beginning of the step."""
        fresh, others = tuple(name for name in digests if self._may_ask(name, now)), self.others()
        if not fresh or not others:
            return []
        if peer == self._me:
            self._turn += 1
            peer = others[self._turn % len(others)]
        return [SendWant(peer, fresh)]

    def several_for_message(self, peers: list[PeerId], digest: Digest, now: float) -> list[Effect]:
        """Ask so many peers for a signed message that somebody honest is among them: its author, who has signed another
        one too, would send that."""
        asked = peers[: self._facts.enough_for_an_honest_one] if self._may_ask(digest, now) else []
        return [SendWant(peer, (digest,)) for peer in asked]

    def of_who_shows(self, peer: PeerId, shown: Digest, digests: list[Digest], now: float | None) -> list[Effect]:
        """Ask a member for what somebody's message names that it has handed on, though others were asked, too: once per
        message and member, so that to hand it on again costs nobody anything; nobody else is asked."""
        if not digests or peer not in self.others() or not self._may_ask(shown + peer, now):
            return []
        return [SendWant(peer, tuple(digests))]

    def for_missing(self, missing: Missing, proposer: PeerId, now: float) -> list[Effect]:
        """Ask for what a header needs, of whoever proposed it first."""
        effects = self.for_messages(proposer, missing.messages, now)
        for part, name in missing.blobs:
            if self._may_ask(name, now):
                effects += [self.expectation(part, name), FetchBlob((proposer, *self.others(proposer)), name)]
        return effects

    def expectation(self, part: int, name: Digest, author: PeerId | None = None) -> ExpectAggregate:
        """Be ready for the bytes of an aggregate."""
        parts = len(self._facts.peers)
        size = part_bytes(self._elements, parts, part)
        return ExpectAggregate(self._facts.head.step, part, parts, name, size, author)

    def for_chain(self) -> list[Effect]:
        """Ask what is certified, another member every time: the rest may be further, and whoever knew that this one
        lags behind may have forgotten it in a restart."""
        others = self.others()
        self._turn += 1
        return [RequestChain(others[self._turn % len(others)], self._facts.head.step)] if others else []

    def others(self, besides: PeerId | None = None) -> tuple[PeerId, ...]:
        """All members but this one, and one more."""
        return tuple(peer for peer in self._facts.peers if peer not in (self._me, besides))

    def first_time(self, name: bytes) -> bool:
        """Whether this was never asked for, or complained about; then it is noted."""
        if name in self._asked:
            return False
        self._asked[name] = self._began
        return True

    def clear(self) -> None:
        """Everything may be asked for again."""
        self._asked.clear()

    def _may_ask(self, name: bytes, now: float | None) -> bool:
        moment = self._began if now is None else now
        last = self._asked.get(name)
        if last is not None and moment < last + self._delivery_seconds:
            return False
        self._asked[name] = moment
        return True
