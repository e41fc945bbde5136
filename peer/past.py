"""What the certified steps say about each peer: when it came and went, its strikes, its ban.

The idea: strikes, rests and bans are facts of the chain, so a journal answers "why is this peer not here?" for every
peer of the run, without asking anybody. The steps are replayed as `crowdsurf verify` does, and what happened to whom is
noted on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from crowdsurf.peer.journal import read_journal
from crowdsurf.peer.keys import verify
from crowdsurf.protocol.chain import Chain, Head
from crowdsurf.protocol.envelope import Verify
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import Ban, Certificate, Header, indexes_of
from crowdsurf.protocol.recovery import certificates_of
from crowdsurf.protocol.roster import STRIKE_FADES_STEPS, Roster, withheld

NOTES_KEPT = 32
"""Of each peer, the newest ones."""


class Note(NamedTuple):
    """Something that a certified step did to a peer."""

    step: int
    what: str
    """`joined`, `left`, `dropped` (missed too many steps), `rests`, `banned`, or a strike for what did not come:
    `no_aggregate`, `no_nonce`, `no_finding`."""


class Banned(NamedTuple):
    """A ban, as the chain alone knows it."""

    ban: Ban
    step: int
    """The step whose header bans it."""
    votes: int
    members: int


class Past:
    """What a chain says about its peers."""

    def __init__(self, manifest: Manifest) -> None:
        self._chain = Chain(manifest)
        self.bans: dict[PeerId, Banned] = {}
        self.notes: dict[PeerId, deque[Note]] = {}
        """Everybody who ever was a member, or was banned, and what is known about it, oldest first."""
        for founder in manifest.founders:
            self._note(founder, 0, "joined")

    @property
    def head(self) -> Head:
        """What the next step starts from."""
        return self._chain.head

    def add(self, certificate: Certificate, verify: Verify) -> None:
        """Check the next certified step and note what it does. Raises Refusal as `Chain.extend` does."""
        before, header = self._chain.head, certificate.header
        self._chain.extend(certificate, verify)
        for peer in header.joined:
            self._note(peer, header.step, "joined")
        after = self._chain.head.roster
        for changes in (_strikes(before.roster, header, after), _gone(before.roster, header, after)):
            for peer, what in changes.items():
                self._note(peer, header.step, what)
        for ban in header.bans:
            self._note(ban.peer, header.step, "banned")
            self.bans[PeerId(ban.peer)] = Banned(ban, header.step, len(certificate.votes), len(before.roster))

    def _note(self, peer: bytes, step: int, what: str) -> None:
        self.notes.setdefault(PeerId(peer), deque(maxlen=NOTES_KEPT)).append(Note(step, what))


def read_past(folder: Path, manifest: Manifest) -> Past:
    """Replay the journal in a run folder. Raises WorldError, or Refusal for a certified step that is not valid."""
    return past_of(certificates_of(read_journal(folder)), manifest, verify)


def past_of(certificates: Iterable[Certificate], manifest: Manifest, verify: Verify) -> Past:
    """Replay certified steps from step 0 on. Raises Refusal for one that is not valid."""
    past = Past(manifest)
    for certificate in certificates:
        past.add(certificate, verify)
    return past


def _strikes(before: Roster, header: Header, after: Roster) -> dict[PeerId, str]:
    """Who got a strike in a step, and for what. Whoever has to rest got its last one just then."""
    fades = (header.step + 1) % STRIKE_FADES_STEPS == 0
    left = {rest.peer for rest in after.resting if rest.until > header.step + 1}
    silent, excused, struck = withheld(header), indexes_of(header.excused), {}
    for index, member in enumerate(before.members):
        peer = PeerId(member.peer)
        place = after.indexes.get(peer)
        strikes = after.members[place].strikes if place is not None else 0
        if strikes > max(0, member.strikes - fades) or (place is None and peer in left):
            struck[peer] = "no_nonce" if index in silent else "no_finding" if index in excused else "no_aggregate"
    return struck


def _gone(before: Roster, header: Header, after: Roster) -> dict[PeerId, str]:
    """Who is no member any more, and how that came; bans are noted apart."""
    banned = {ban.peer for ban in header.bans}
    resting = {rest.peer for rest in after.resting if rest.until > header.step + 1}
    return {
        peer: "left" if peer in header.left else "rests" if peer in resting else "dropped"
        for peer in before.peers
        if peer not in after.indexes and peer not in banned
    }
