"""Who asks to come in and who says goodbye, between their message and the header that makes it so.

The idea: requests are only remembered here, bounded and with an age; what counts is how many commits name a
peer, and that is decided by `roster.admitted` from the commits of the step. SPEC.md §7. Probation joins here.
"""

from __future__ import annotations

from collections import OrderedDict

from crowdsurf.protocol import limits
from crowdsurf.protocol.chain import Head
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.roster import Roster


class Membership:
    """Pending join and leave requests, as far as this peer has seen them."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._joins: OrderedDict[PeerId, int] = OrderedDict()
        self._leaves: dict[PeerId, int] = {}
        self._left: dict[PeerId, int] = {}

    def on_join(self, peer: PeerId, step: int, head: Head) -> None:
        """Remember a join request made at `step`. Raises Refusal."""
        self._check_age(step, head)
        if peer in head.roster.indexes:
            raise Refusal(Code.DUPLICATE, "it is a member already")
        if peer in head.roster.kept_out(head.step + 1):
            raise Refusal(Code.BANNED, "it is banned, or left out for a while")
        if self._manifest.admission != "open" and peer not in self._manifest.founders:
            raise Refusal(Code.NOT_MEMBER, "only founders are admitted to this run")
        if step <= self._left.get(peer, -1):
            raise Refusal(Code.EXPIRED, "the request is older than the end of its sender's membership")
        self._joins.pop(peer, None)
        self._joins[peer] = step
        while len(self._joins) > limits.CANDIDATES_MAX:
            self._joins.popitem(last=False)

    def on_leave(self, peer: PeerId, step: int, head: Head) -> None:
        """Remember a goodbye said at `step`; from a candidate it withdraws the request to join. Raises Refusal."""
        self._check_age(step, head)
        if peer not in head.roster.indexes:
            if self._joins.get(peer, step + 1) > step:
                raise Refusal(Code.NOT_MEMBER, "it is not a member")
            del self._joins[peer]
            if len(self._left) < limits.ROSTER_PEERS_MAX:
                self._left[peer] = step
            return
        if step < head.roster.members[head.roster.indexes[peer]].joined:
            raise Refusal(Code.EXPIRED, "the goodbye is older than the membership")
        self._leaves[peer] = step

    def on_head(self, before: Roster, head: Head) -> None:
        """A step was certified: forget what happened and what is too old. Whoever is out of the roster since then
        must ask anew, or anybody could bring it back by replaying how it once asked."""
        members = set(head.roster.peers)
        for peer in set(before.peers) - members:
            self._leaves.pop(peer, None)
            self._left[peer] = head.step - 1
        oldest = head.step - limits.JOIN_WINDOW_STEPS
        self._left = {peer: step for peer, step in self._left.items() if step >= oldest}
        self._joins = OrderedDict(
            (peer, step)
            for peer, step in self._joins.items()
            if peer not in members and peer not in head.roster.outlaws and step >= oldest
        )

    def joins(self, head: Head) -> set[PeerId]:
        """Peers our next commit names as newcomers."""
        return set(self._joins) - set(head.roster.peers) - head.roster.kept_out(head.step + 1)

    def leaves(self, head: Head) -> set[PeerId]:
        """Members our next commit names as leaving."""
        return set(self._leaves) & set(head.roster.peers)

    def candidates(self) -> set[PeerId]:
        """Everyone whose join request is pending."""
        return set(self._joins)

    def is_candidate(self, peer: PeerId) -> bool:
        """Whether its join request is pending."""
        return peer in self._joins

    def departed(self, peer: PeerId) -> bool:
        """Whether it was a member until lately, and perhaps does not know that it is none any more."""
        return peer in self._left

    def _check_age(self, step: int, head: Head) -> None:
        if abs(head.step - step) > limits.JOIN_WINDOW_STEPS:
            raise Refusal(Code.EXPIRED, f"the request names step {step}, we are at {head.step}")
