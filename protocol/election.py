"""How one header of a step comes to a quorum of votes, as one member sees it.

The idea: three rounds, each of which makes the next one safe. What a proposer has proposed is *shown* to all, so that
two headers of one view come to light. Who finds the header correct, and the only one, *prepares* it: a quorum of
prepares holds an honest member's, and no other header of that view can get one. Only what a quorum has prepared is
*voted* for; these prepares prove to the members of later views what may be certified already. SPEC R-4.22 to R-4.29,
R-4.41.
"""

from __future__ import annotations

from collections.abc import Callable

from crowdsurf.protocol.asking import Asking
from crowdsurf.protocol.ballot import Ballot
from crowdsurf.protocol.deadlines import Timing
from crowdsurf.protocol.effects import Effect, PersistLock, Refused, SendEnvelope
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.grace import Grace
from crowdsurf.protocol.holdings import Holdings
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Echo, Envelope, Header, Kind, Payload, Prepare, Vote, header_digest
from crowdsurf.protocol.roster import withheld
from crowdsurf.protocol.sightings import Sightings

Say = Callable[[Kind, int, bytes, Payload], object]
"""Sign and send a message of a kind, in a view, about a subject, unless the slot is filled."""
Tell = Callable[[Effect], None]
ProposerOf = Callable[[int], PeerId]

_TOLD_OF_OVERLOOKED = 2
"""Proposers of so many later views are told of work that a header leaves out: should the next one be gone or lie, the
one after it has it too. To tell everybody would cost a message for every pair of members and piece."""
_WORK = (Kind.COMMIT, Kind.AGGREGATE, Kind.PROJECTION, Kind.REVEAL)
"""What work consists of, among all that its author said."""


class Election:
    """One member's side of one step's votes."""

    def __init__(
        self,
        holdings: Holdings,
        ballot: Ballot,
        proposer_of: ProposerOf,
        asking: Asking,
        timing: Timing,
        grace: Grace,
        say: Say,
        tell: Tell,
    ) -> None:
        self._holdings = holdings
        self._transcript = holdings.transcript
        self._ballot = ballot
        self._proposer_of = proposer_of
        self._asking = asking
        self._grace = grace
        self._sightings = Sightings(timing.echoes, 2 * timing.delivery_seconds)
        self._say, self._tell = say, tell
        # A header that lacks nothing but to be the only one; it is not worked through again for every echo.
        self._found_good = b""

    def next_deadline(self) -> float | None:
        """When a header of this view may be thought to be the only one, unless something else decides."""
        return self._sightings.next_deadline(self._ballot.view)

    def recall(self, opened: Opened) -> None:
        """This was signed before a restart."""
        if opened.envelope.kind == Kind.ECHO:
            self._sightings.forget(opened.envelope.view)

    def on_echo(self, opened: Opened, echo: Echo, now: float) -> None:
        """Another member shows a header; a second one of its view convicts the proposer. Whoever saw another one first
        may have forgotten in a restart what was shown to it: it is shown again."""
        view = opened.envelope.view
        self._sightings.see(view, echo, opened.sender)
        known = self._transcript.outcome(self._proposer_of(view), view)
        if known is not None and known.digest != echo.outcome:
            self._ask(opened.sender, Digest(echo.outcome), now)
        mine = self._transcript.said(self._holdings.me, opened.slot)
        if mine is not None and isinstance(mine.payload, Echo) and mine.payload.outcome != echo.outcome:
            self._tell(SendEnvelope((opened.sender,), mine.envelope))

    def show(self, now: float) -> None:
        """Show everybody which header of this view was seen first here."""
        view = self._ballot.view
        proposer = self._proposer_of(view)
        opened = self._transcript.outcome(proposer, view)
        if opened is not None:
            self._sightings.see(view, Echo(opened.digest, opened.envelope.signature), proposer)
        first = self._sightings.show(view, now)
        if first is not None and proposer != self._holdings.me:
            self._say(Kind.ECHO, view, b"", first)

    def pull(self, now: float) -> None:
        """Ask others for the header that they show, if the proposer has not sent it."""
        view = self._ballot.view
        name, peers = self._sightings.shown(view)
        if name is not None and self._transcript.outcome(self._proposer_of(view), view) is None:
            self._ask(min(peers), name, now)

    def consider(self, is_patient: bool, awaited: set[PeerId], now: float) -> None:
        """Prepare the view's outcome once it is complete and correct and nothing forbids it; vote for it once a quorum
        has.

        `is_patient`: whether what it lacks will not come any more. `awaited`: the other members that are waited for.
        """
        view = self._ballot.view
        proposer = self._proposer_of(view)
        opened = self._transcript.outcome(proposer, view)
        if opened is None or not isinstance(opened.payload, Header):
            return
        header, required = opened.payload, self._ballot.strongest_lock()
        has_prepared = self._ballot.prepared == (view, opened.digest)
        may_prepare = self._ballot.prepared[0] < view and (is_patient or all(header.parts))
        if not may_prepare and not self._ballot.may_vote(view, opened.digest):
            return
        is_bound = required is not None and header_digest(required) == opened.digest
        is_only = self._ballot.knows_locks and self._sightings.is_alone(view, opened.digest, awaited)
        if required is None and not has_prepared and not is_only and self._found_good == opened.digest:
            return
        try:
            missing = self._holdings.examine(header, is_bound or has_prepared)
        except Refusal as refusal:
            if self._refuse_once(opened, refusal) and refusal.code is Code.LOCKED:
                for said in self._holdings.objections(Digest(header.cut)):
                    self._tell(SendEnvelope(self._following(view), said.envelope))
            return
        if not missing.nothing:
            for effect in self._asking.for_missing(missing, proposer, now) + self._holdings.to_check(missing, header):
                self._tell(effect)
            return
        if not has_prepared and (is_bound or self._is_free(opened, header, required, is_only, now)):
            self._say(Kind.PREPARE, view, b"", Prepare(opened.digest))
        if self._ballot.may_vote(view, opened.digest):
            self._vote(header, view)

    def _is_free(self, opened: Opened, header: Header, required: Header | None, is_only: bool, now: float) -> bool:
        """Whether nothing forbids to prepare a header that nobody is locked on."""
        if required is not None:
            self._refuse_once(opened, Refusal(Code.LOCKED, "another header may be certified already"))
            return False
        if self._forward_overlooked(opened, header) or not self._may_void(header, now):
            return False
        self._found_good = opened.digest
        return is_only

    def _vote(self, header: Header, view: int) -> None:
        """Lock, then vote. Should the new lock never reach the disk, the old one's grounds are still there."""
        grounds = [*self.lock_grounds(), *self._grounds(header, view)]
        self._ballot.lock_on(header, view)
        self._tell(PersistLock(header, view, tuple(dict.fromkeys(grounds))))
        self._say(Kind.VOTE, view, b"", Vote(header_digest(header)))

    def lock_grounds(self) -> list[Envelope]:
        """What this member's lock follows from, and what makes others believe in it."""
        return self._grounds(self._ballot.lock, self._ballot.lock_view)

    def _grounds(self, header: Header | None, view: int) -> list[Envelope]:
        return [*self._holdings.grounds(header), *self._ballot.prepares_of(header, view)]

    def _forward_overlooked(self, opened: Opened, header: Header) -> bool:
        """Refuse a header that drops work this member holds, and show that work to those who propose next (SPEC
        R-4.24)."""
        dropped = self._holdings.left_out(header)
        if dropped and self._refuse_once(opened, Refusal(Code.LOCKED, "it leaves out work that is here")):
            told = self._following(opened.envelope.view)
            for peer in dropped:
                first = [said for said in self._transcript.own(peer) if said.envelope.kind in _WORK]
                # Of a liar that signed several, what counts here may not be what was heard first.
                for said in dict.fromkeys([*first, *self._holdings.work_of(peer, header)]):
                    self._tell(SendEnvelope(told, said.envelope))
        return bool(dropped)

    def _following(self, view: int) -> tuple[PeerId, ...]:
        """Who proposes next."""
        following = {self._proposer_of(later) for later in range(view + 1, view + 1 + _TOLD_OF_OVERLOOKED)}
        return tuple(peer for peer in self._asking.others() if peer in following)

    def _may_void(self, header: Header, now: float) -> bool:
        """Whether those whose nonce a header lacks had their chance (SPEC R-4.19)."""
        silent = tuple(self._holdings.facts.peers[index] for index in withheld(header))
        if silent and not self._grace.has_begun and self._holdings.enough_reveals():
            self._grace.begin(now)
            for opened in self._transcript.of_kind(Kind.REVEAL):
                others = tuple(peer for peer in silent if peer != self._holdings.me)
                self._tell(SendEnvelope(others, opened.envelope))
        return not silent or self._grace.is_over(now)

    def _ask(self, peer: PeerId, name: Digest, now: float) -> None:
        for effect in self._asking.for_messages(peer, [name], now):
            self._tell(effect)

    def _refuse_once(self, opened: Opened, refusal: Refusal) -> bool:
        if not self._asking.first_time(opened.digest):
            return False
        self._tell(Refused(opened.sender, refusal.code, refusal.detail))
        return True
