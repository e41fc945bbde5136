"""Views, locks and votes of one step: how one header gets a quorum although proposers come and go.

The idea is the oldest one there is: who votes for a header is locked on it and says so when it asks for the
next view; a new proposer needs a quorum of such requests, so it meets at least one peer that knows any header
that may already be certified, and must propose that one again. Every member also judges by the locks it has
seen itself, which under synchrony covers a quorum that contains liars. SPEC R-4.25 to R-4.29.
"""

from __future__ import annotations

from typing import NamedTuple

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Certificate, Envelope, Header, ViewChange, header_digest
from crowdsurf.protocol.roster import enough_for_an_honest_one

_HEADERS_PER_VOTER_MAX = 8
"""Different headers of one step a member's votes are kept for."""


class _Request(NamedTuple):
    """A member's latest request for a view."""

    view: int
    change: ViewChange
    name: bytes
    """Digest of the header it is locked on, if there is one."""


class Ballot:
    """The vote-related state of one member for one step."""

    def __init__(self, peers: tuple[PeerId, ...], quorum: int) -> None:
        self._indexes = {peer: index for index, peer in enumerate(peers)}
        self._quorum = quorum
        self.view = 0
        self.lock: Header | None = None
        self.lock_view = 0
        self.voted_view = -1
        """Highest view this member has voted in."""
        self.prepared: tuple[int, bytes] = (-1, b"")
        """The newest view this member has prepared a header in, and which."""
        self._prepares: dict[tuple[int, bytes], dict[PeerId, Envelope]] = {}
        self._proven: set[tuple[int, bytes]] = set()
        """Headers that a quorum has prepared in a view, as somebody else has shown."""
        self.open_view = 0
        """The latest view that this member knows a quorum to have asked for."""
        self.locks_heard_at: float | None = None
        """In a view that is open: when this member will have heard what all honest ones are locked on; None if it
        has."""
        self._requests: dict[PeerId, _Request] = {}
        self._votes: dict[bytes, dict[int, tuple[int, bytes]]] = {}

    def lock_on(self, header: Header, view: int) -> None:
        """Remember the header this member votes for."""
        self.lock, self.lock_view, self.voted_view = header, view, view

    def request(self, peer: PeerId, view: int, change: ViewChange) -> None:
        """A member asks for `view`; only its latest request counts. What it shows for its lock was checked before."""
        name = header_digest(change.lock) if change.lock is not None else b""
        if name and change.proof:
            self._proven.add((change.lock_view, name))
        if peer not in self._requests or view > self._requests[peer].view:
            self._requests[peer] = _Request(view, change, name)

    @property
    def somebody_gave_up(self) -> bool:
        """Whether any member has asked for a later view."""
        return bool(self._requests)

    @property
    def somebody_voted(self) -> bool:
        """Whether there is any vote, for whatever header."""
        return bool(self._votes)

    def requests_for(self, view: int) -> int:
        """Members that asked for this view or a later one."""
        return sum(1 for asked in self._requests.values() if asked.view >= view)

    def may_propose(self) -> bool:
        """Whether this view's proposer may speak: at once in view 0, later with a quorum of requests."""
        return self.view == 0 or self.requests_for(self.view) >= self._quorum

    def open(self, now: float, lock_seconds: float) -> bool:
        """Open the view if a quorum has asked for it, and say whether that is news. Its wait begins then: whoever asked
        first would otherwise be ahead of the others for ever, and one view ahead is enough to miss every proposal.

        `lock_seconds`: how long until all honest members are in the view, and what they are locked on is heard.
        """
        if self.locks_heard_at is not None and now >= self.locks_heard_at:
            self.locks_heard_at = None
        if self.is_open or not self.may_propose():
            return False
        self.open_view, self.locks_heard_at = self.view, now + lock_seconds
        return True

    @property
    def is_open(self) -> bool:
        """Whether this member knows that a quorum has asked for its view."""
        return self.open_view >= self.view

    @property
    def knows_locks(self) -> bool:
        """Whether a header that nobody known is locked on may be voted for in this view."""
        return self.is_open and self.locks_heard_at is None

    def view_to_join(self) -> int | None:
        """A later view asked for by so many that at least one of them is honest, if there is one."""
        needed = enough_for_an_honest_one(len(self._indexes), self._quorum)
        views = sorted((asked.view for asked in self._requests.values()), reverse=True)
        return views[needed - 1] if len(views) >= needed and views[needed - 1] > self.view else None

    def prepare(self, peer: PeerId, view: int, name: bytes, envelope: Envelope) -> None:
        """A member has prepared the header with this digest in a view."""
        self._prepares.setdefault((view, name), {})[peer] = envelope

    def is_prepared(self, view: int, name: bytes) -> bool:
        """Whether a quorum has prepared this header in this view. No other header of the view can be: an honest member
        is in every quorum, and all honest ones see the same header first where one of them prepares."""
        return len(self._prepares.get((view, name), ())) >= self._quorum

    def may_vote(self, view: int, name: bytes) -> bool:
        """Whether this member has prepared this header in this view, and a quorum has."""
        return self.prepared == (view, name) and self.is_prepared(view, name)

    def prepares_of(self, header: Header | None, view: int) -> list[Envelope]:
        """The prepares of a header in a view that were heard, by rising member."""
        found = self._prepares.get((view, header_digest(header)), {}) if header is not None else {}
        return [found[peer] for peer in sorted(found)]

    def change_of_view(self) -> ViewChange:
        """What this member says when it asks for a view: its lock, and by what others know that it may have one. All in
        one message, so that nobody hears of the one without the other, in whatever order things come. After a restart
        the proof may be lost; then nothing is shown."""
        prepares = self.prepares_of(self.lock, self.lock_view)[: self._quorum]
        proof = tuple((self._indexes[PeerId(said.sender)], said.signature) for said in prepares)
        return ViewChange(self.lock, self.lock_view, proof if len(proof) == self._quorum else ())

    def strongest_lock(self) -> Header | None:
        """The header that must be proposed again: the lock of the highest view this member knows of.

        Its own lock counts as it is; somebody else's only if a quorum is known to have prepared it in that view: a liar
        could name any other, and displace what honest members voted for.
        """
        locks = [(self.lock_view, self.lock)] if self.lock is not None else []
        locks += [
            (asked.change.lock_view, asked.change.lock)
            for asked in self._requests.values()
            if asked.change.lock is not None and self._may_be_locked(asked.change.lock_view, asked.name)
        ]
        if not locks:
            return None
        highest = max(view for view, _ in locks)
        # Two locks of one view need more liars than there may be; any fixed choice between them will do.
        return min((header for view, header in locks if view == highest), key=header_digest)

    def _may_be_locked(self, view: int, name: bytes) -> bool:
        """Whether somebody may have voted for a header in a view, as far as is known."""
        return (view, name) in self._proven or self.is_prepared(view, name)

    def vote(self, peer: PeerId, view: int, name: bytes, signature: bytes) -> None:
        """Record a member's vote for the header with this digest."""
        index = self._indexes[peer]
        cast = sum(1 for voters in self._votes.values() if index in voters)
        voters = self._votes.setdefault(name, {})
        if index in voters or cast < _HEADERS_PER_VOTER_MAX:
            voters[index] = (view, signature)

    def voters(self, name: bytes) -> set[int]:
        """Member indexes that voted for the header with this digest."""
        return set(self._votes.get(name, ()))

    def elected(self) -> Digest | None:
        """The digest of a header that has a quorum of votes."""
        for name, voters in self._votes.items():
            if len(voters) >= self._quorum:
                return Digest(name)
        return None

    def certificate(self, header: Header) -> Certificate:
        """The certificate of an elected header."""
        voters = self._votes[header_digest(header)]
        return Certificate(header, tuple((index, *voters[index]) for index in sorted(voters)))
