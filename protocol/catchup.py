"""From any certified past to the present: what a peer that is behind must ask for.

The idea: a live member that has just seen a certificate, a straggler three steps behind and a newcomer with a
checkpoint all do the same thing: for each certified step they have not applied, get the aggregated parts by
digest and apply them. Only when nobody serves those any more is a whole state fetched. SPEC.md §7.
"""

from __future__ import annotations

from collections import OrderedDict

from crowdsurf.protocol.assignment import part_bytes
from crowdsurf.protocol.effects import ApplyUpdate, Effect, ExpectAggregate, FetchBlob, RequestState
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Certificate

RECENT_CERTIFICATES = 64
"""Certified steps kept in memory: what a straggler or a newcomer with a checkpoint still has to apply."""


class CatchUp:
    """The state this peer holds, and the certified steps between it and the present."""

    def __init__(self, elements: int) -> None:
        self._elements = elements
        self.step: int | None = None
        """The held state is the one before this step; None while there is none."""
        self.digest = Digest(b"")
        self._certificates: OrderedDict[int, Certificate] = OrderedDict()
        self._held: set[bytes] = set()
        self._asked_step: int | None = None
        self._waiting = False
        self._times_asked = 0
        """For a state."""

    def remember(self, certificate: Certificate) -> None:
        """Keep a certificate for applying it and for helping others."""
        self._certificates[certificate.header.step] = certificate
        while len(self._certificates) > RECENT_CERTIFICATES:
            self._certificates.popitem(last=False)

    def certificate(self, step: int) -> Certificate | None:
        """A recent certificate."""
        return self._certificates.get(step)

    def since(self, first_step: int) -> tuple[Certificate, ...]:
        """Recent certificates from `first_step` on, without gaps; empty if `first_step` is older than memory."""
        found = []
        while (certificate := self._certificates.get(first_step)) is not None:
            found.append(certificate)
            first_step += 1
        return tuple(found)

    def accept_state(self, step: int, digest: Digest, fetched: bool, head_step: int) -> bool:
        """Take a state as ours. A fetched one must be certified: some header names it as the state before."""
        certificate = self._certificates.get(step)
        contradicted = certificate is not None and certificate.header.state != digest
        unproven = fetched and certificate is None
        self._waiting, self._asked_step = False, None
        if contradicted or unproven or step > head_step:
            return False
        # Bytes are held for a step, and go with it, also if those of the next step are the same.
        self.step, self.digest, self._held = step, digest, set()
        return True

    def lose_state(self) -> None:
        """The compute side has no state any more. What was held for steps applied before may be gone too: asking
        again for what is still there costs nothing."""
        self.step, self._waiting, self._asked_step = None, False, None
        self._held = set()

    def hold(self, digests: set[bytes]) -> None:
        """These blobs are held (from the step that was just certified)."""
        self._held = digests

    def on_blob(self, digest: bytes) -> None:
        """One more blob is held."""
        self._held.add(digest)

    def state_failed(self) -> None:
        """Nobody served a state; ask again at the next occasion, for the missing parts first."""
        self._waiting, self._asked_step = False, None

    def advance(self, head_step: int, candidates: tuple[PeerId, ...]) -> list[Effect]:
        """What to do next to reach `head_step`; empty when there, or while an answer is awaited."""
        if self._waiting or self.step is None or self.step >= head_step:
            return []
        certificate = self._certificates.get(self.step)
        if certificate is None or certificate.header.state != self.digest:
            # Too far behind, or our state is not the certified one: only a certified state helps.
            return self.ask_for_state(candidates)
        parts = certificate.header.parts
        lacking = {part: name for part, name in enumerate(parts) if name and name not in self._held}
        if not lacking:
            self._waiting = True
            return [ApplyUpdate(self.step, parts)]
        if self._asked_step == self.step:
            return []
        self._asked_step = self.step
        effects: list[Effect] = []
        for part, name in lacking.items():
            size = part_bytes(self._elements, len(parts), part)
            effects.append(ExpectAggregate(self.step, part, len(parts), Digest(name), size))
            effects.append(FetchBlob(_beginning_with(part, candidates), Digest(name)))
        return effects

    def blob_failed(self, digest: bytes, candidates: tuple[PeerId, ...]) -> list[Effect]:
        """Nobody has a part of the step to apply: fetch a whole state instead."""
        certificate = self._certificates.get(self.step) if self.step is not None else None
        if self._waiting or certificate is None or digest not in certificate.header.parts or digest in self._held:
            return []
        return self.ask_for_state(candidates)

    def ask_for_state(self, candidates: tuple[PeerId, ...]) -> list[Effect]:
        """Fetch a certified state, once at a time, and from somebody else first every time: what the first one has may
        be certified and yet so old that nobody holds the steps after it any more."""
        if self._waiting:
            return []
        self._waiting = True
        self._times_asked += 1
        return [RequestState(_beginning_with(self._times_asked - 1, candidates))]


def _beginning_with(turn: int, candidates: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """All of them, another one first for every part and every time: else one member would feed everybody who is behind,
    and be late itself for it, or keep them where they are with answers that are no help."""
    first = turn % max(1, len(candidates))
    return candidates[first:] + candidates[:first]
