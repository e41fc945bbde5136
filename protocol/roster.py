"""The roster: who is in the group at a step, and how a certified header turns it into the next one.

The idea: membership is a pure function of certified headers. A header names who joined and who left; who did
its work is visible in the header's contributors, nonces and parts; everything else follows. SPEC.md §7.
"""

from __future__ import annotations

import functools
from typing import Annotated

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import Header, PeerBytes, Step, indexes_of


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member of the roster."""

    peer: PeerBytes
    joined: Step
    """First step this member belongs to."""
    missed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Consecutive certified steps in which it did not do its part."""


class Roster(msgspec.Struct, frozen=True, array_like=True, dict=True, forbid_unknown_fields=True):
    """Members sorted by peer id; a member's position is its index in every bitmap of the step."""

    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)]

    def __len__(self) -> int:
        return len(self.members)

    @functools.cached_property
    def digest(self) -> Digest:
        """Digest of the canonical bytes; headers carry it."""
        return digest("roster", wire.pack(self))

    @functools.cached_property
    def peers(self) -> tuple[PeerId, ...]:
        """Peer ids by index."""
        return tuple(PeerId(member.peer) for member in self.members)

    @functools.cached_property
    def indexes(self) -> dict[PeerId, int]:
        """Index of every peer."""
        return {peer: index for index, peer in enumerate(self.peers)}


def founding_roster(founders: tuple[bytes, ...]) -> Roster:
    """The roster of step 0."""
    return Roster(tuple(Member(peer, 0) for peer in sorted(founders)))


def quorum_of(size: int, rule: str) -> int:
    """Signatures that make a certificate: more than half (`majority`) or more than two thirds of `size` members.

    Majority, not two thirds, by default: with two thirds, liars above one third stop the swarm by silence, and
    the method's model goes up to one half under synchrony (protocol.md §3).
    """
    return size * 2 // 3 + 1 if rule == "two_thirds" else size // 2 + 1


def next_roster(roster: Roster, header: Header, aggregators: tuple[int, ...], missed_steps_max: int) -> Roster:
    """The roster after a certified header (SPEC R-7.2).

    A member did its part if it contributed, revealed its nonce and left none of its parts void; otherwise its
    count of missed steps rises, and above `missed_steps_max` it drops out, unharmed. `aggregators` gives the
    member index that aggregated each part.
    """
    contributors = set(indexes_of(header.contributors))
    failed = {index for part, index in enumerate(aggregators) if not header.parts[part]}
    gone = set(header.left)
    members = []
    for index, member in enumerate(roster.members):
        present = index in contributors and index not in failed and bool(header.nonces[index])
        missed = 0 if present else member.missed + 1
        if member.peer not in gone:
            members.append(Member(member.peer, member.joined, missed))
    # A step that fails for everybody is nobody's fault, and a roster without members could never go on.
    members = [member for member in members if member.missed <= missed_steps_max] or members
    members += [Member(peer, header.step + 1) for peer in header.joined]
    return Roster(tuple(sorted(members, key=lambda member: member.peer)))


def admitted(named_in_commits: list[tuple[bytes, ...]], eligible: set[bytes], room: int) -> tuple[bytes, ...]:
    """Peers named by more than half of the step's commits, sorted, at most `room` of them (SPEC R-7.1)."""
    counts: dict[bytes, int] = {}
    for names in named_in_commits:
        for peer in set(names) & eligible:
            counts[peer] = counts.get(peer, 0) + 1
    chosen = sorted(peer for peer, count in counts.items() if 2 * count > len(named_in_commits))
    return tuple(chosen[: max(0, room)])
