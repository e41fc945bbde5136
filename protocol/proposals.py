"""Which proposed cut a member acts on, and how it comes by the commits that the cut names.

The idea: a proposer may show its cut to some, or show it late, or keep back commits that it names; whoever does not
act on the cut that others act on misses all that follows, and would lose its place for it. So whoever accepts a cut
shows it to everybody, and has its commits for whoever asks. SPEC R-4.12.
"""

from __future__ import annotations

from collections.abc import Callable

from crowdsurf.protocol.asking import Asking
from crowdsurf.protocol.ballot import Ballot
from crowdsurf.protocol.effects import Effect, SendEnvelope
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.holdings import Holdings
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Cut, Kind


class Proposals:
    """The cuts proposed in one step, as one member sees them."""

    def __init__(
        self, holdings: Holdings, ballot: Ballot, proposer_of: Callable[[int], PeerId], asking: Asking
    ) -> None:
        self._transcript, self._peers = holdings.transcript, holdings.facts.peers
        self._ballot = ballot
        self._proposer_of = proposer_of
        self._asking = asking
        self._shown_by: dict[Digest, set[PeerId]] = {}
        """Members other than their authors that have shown cuts."""

    def proposed(self, is_first: bool) -> Opened | None:
        """The cut of this view's proposer, if it was heard. While this member's view is not open others are in the one
        before: then, if it is the first one that it would act on, the cut of that view, too. To have given up a moment
        before others must cost nobody its place."""
        ballot = self._ballot
        views = [ballot.view] if ballot.is_open or not is_first else [ballot.view, ballot.open_view]
        found = (self._transcript.proposal(self._proposer_of(view), view) for view in views)
        return next((opened for opened in found if opened is not None), None)

    def acceptable(self, proposal: Opened | None) -> tuple[Digest, Cut] | None:
        """A cut if all its commits are held."""
        if proposal is None or not isinstance(proposal.payload, Cut) or self._missing(proposal.payload):
            return None
        return proposal.digest, proposal.payload

    def to_ask(self, proposal: Opened | None) -> list[Effect]:
        """Ask the proposer for the commits that its cut names and that are not here, and who has shown the cut before
        it was this view's."""
        if proposal is None or not isinstance(proposal.payload, Cut):
            return []
        name, missing = proposal.digest, self._missing(proposal.payload)
        effects = self._asking.for_messages(proposal.sender, missing, None)
        for source in sorted(self._shown_by.get(name, ())) if missing else ():
            effects += self._asking.of_who_shows(source, name, missing, None)
        return effects

    def to_ask_of(self, source: PeerId, shown: Opened, is_first: bool, now: float) -> list[Effect]:
        """Ask a member that shows somebody else's cut, and so has all its commits: the proposer may have kept some from
        this one."""
        if not isinstance(shown.payload, Cut) or source == shown.sender:
            return []
        if source in self._peers:
            self._shown_by.setdefault(shown.digest, set()).add(source)
        if self.proposed(is_first) is not shown:
            return []
        return self._asking.of_who_shows(source, shown.digest, self._missing(shown.payload), now)

    def to_show(self, name: Digest) -> list[Effect]:
        """Show everybody a cut that was accepted, as its proposer has signed it; in every view, because that of a later
        one may propose the same cut to some alone."""
        others = self._asking.others()
        said = (opened for opened in self._transcript.find(name) if opened.envelope.kind == Kind.PROPOSAL)
        return [SendEnvelope(others, opened.envelope) for opened in said if opened.sender in others]

    def _missing(self, cut: Cut) -> list[Digest]:
        return self._transcript.missing_commits(cut, self._peers)
