"""The roster: who is in the group at a step, who is kept out of it, and how a certified header turns it into the next.

The idea: membership is a pure function of certified headers. A header names who joined, who left and who is banned;
who did its work is visible in the header's contributors, nonces and parts; everything else follows. SPEC.md §7.
"""

from __future__ import annotations

import functools
from typing import Annotated

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import Header, PeerBytes, Step, indexes_of

MISSED_STEPS_PATIENCE = 2
"""Who missed so many certified steps in a row is no longer waited for. No more are counted of whoever is heard."""
STRIKES_MAX = 4
"""Strikes at which a member is left out for a while; half as many after every rest, one at least."""
STRIKE_FADES_STEPS = 16
"""In so many steps every member loses one strike."""
REST_STEPS = 8
"""How long a peer is left out the first time; every further time twice as long."""
REST_DOUBLINGS_MAX = 6
REST_FORGOTTEN_STEPS = 512
"""So long after a rest the next one is a first one again."""


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member of the roster."""

    peer: PeerBytes
    joined: Step
    """First step this member belongs to."""
    missed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Consecutive certified steps in which it did not do its part."""
    strikes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Promises it did not keep lately: aggregates that did not come, nonces it did not open, work it did not
    validate. They fade."""


class Resting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer that has too many strikes, or did not open its nonce, and is left out for a while, unharmed."""

    peer: PeerBytes
    until: Step
    """The first step it may be a member of again."""
    times: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How often it was left out lately."""


class Roster(msgspec.Struct, frozen=True, array_like=True, dict=True, forbid_unknown_fields=True):
    """Members sorted by peer id; a member's position is its index in every bitmap of the step."""

    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)]
    banned: Annotated[tuple[PeerBytes, ...], msgspec.Meta(max_length=limits.BANNED_MAX)] = ()
    """Out for good, in the order in which they were banned."""
    resting: Annotated[tuple[Resting, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)] = ()
    """Out for a while, sorted by peer id."""

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

    def kept_out(self, step: int) -> set[bytes]:
        """Peers that may not be members of a step: banned or resting ones."""
        return set(self.banned) | {rest.peer for rest in self.resting if rest.until > step}

    @functools.cached_property
    def outlaws(self) -> frozenset[bytes]:
        """The banned ones, for looking them up."""
        return frozenset(self.banned)

    def strikes_max(self, peer: bytes) -> int:
        """At how many strikes a peer is left out: who was lately is given less credit every time."""
        times = next((rest.times for rest in self.resting if rest.peer == peer), 0)
        return max(1, STRIKES_MAX >> times)

    @functools.cached_property
    def rests(self) -> frozenset[bytes]:
        """Those that were left out for a while lately, for looking them up."""
        return frozenset(rest.peer for rest in self.resting)


def founding_roster(founders: tuple[bytes, ...]) -> Roster:
    """The roster of step 0."""
    return Roster(tuple(Member(peer, 0) for peer in sorted(founders)))


def quorum_of(size: int, rule: str) -> int:
    """Signatures that make a certificate: more than half (`majority`) or more than two thirds of `size` members.

    Majority, not two thirds, by default: with two thirds, liars above one third stop the swarm by silence, and
    the method's model goes up to one half under synchrony (protocol.md §3).
    """
    return size * 2 // 3 + 1 if rule == "two_thirds" else size // 2 + 1


def enough_for_an_honest_one(size: int, quorum: int) -> int:
    """So many of `size` members that somebody honest is among them, as long as a quorum is honest."""
    return size - quorum + 1


def withheld(header: Header) -> frozenset[int]:
    """Members that are in the step and did not open their nonce. Whoever has seen the others' could choose between two
    beacons by keeping silent, so such a step is void (SPEC R-4.19)."""
    contributors = int.from_bytes(header.contributors, "little")
    return frozenset(index for index, nonce in enumerate(header.nonces) if contributors >> index & 1 and not nonce)


def blamed(header: Header) -> frozenset[int]:
    """Who has to leave for not having opened its nonce: nobody if half of the contributors did not, for then not peers
    but the network failed. Not half of the members: a liar that proposes could leave out so many that nobody is."""
    silent = withheld(header)
    return silent if 2 * len(silent) < len(indexes_of(header.contributors)) else frozenset()


def enough_to_be_named(size: int) -> int:
    """Contributors to a step of so many members among whom the honest ones can name an aggregate without the others: in
    a smaller cut liars, one of which has made it, can let every aggregate of somebody honest count for nothing."""
    return 2 * ((size - 1) // 2) + 1


def next_roster(roster: Roster, header: Header, aggregators: tuple[int, ...], missed_steps_max: int) -> Roster:
    """The roster after a certified header (SPEC R-7.2); `aggregators`: the member index for each part."""
    silent, at_fault = withheld(header), blamed(header)
    failed = set() if silent else {index for part, index in enumerate(aggregators) if _is_failure(header, part)}
    contributors = set(indexes_of(header.contributors))
    if len(contributors) < enough_to_be_named(len(roster)) or header.bans:
        failed = set()  # who is banned may have proposed two cuts: those that acted on the other one could do nothing
    present = contributors - failed - silent
    excused, heard = set(indexes_of(header.excused)), set(indexes_of(header.heard)) - contributors
    if 2 * len(failed) >= len(contributors):
        failed = heard = set()  # not peers failed but the network: no strikes, and a step that all others have missed
    fades = (header.step + 1) % STRIKE_FADES_STEPS == 0
    members = []
    for index, member in enumerate(roster.members):
        strikes = max(0, member.strikes - fades) + (index in failed or index in at_fault or index in excused)
        # Whom a contributor has heard lately, but not the proposer of this cut, is not absent: liars that propose could
        # make everybody honest drop out. It is only not waited for.
        stays = index in heard and member.missed >= min(MISSED_STEPS_PATIENCE, missed_steps_max)
        missed = 0 if index in present else member.missed + (not stays)
        members.append(Member(member.peer, member.joined, missed, strikes))
    gone = {*header.left, *(ban.peer for ban in header.bans)}
    rests = {member.peer for member in members if member.strikes >= roster.strikes_max(member.peer)}
    rests = (rests | {roster.members[index].peer for index in at_fault}) - gone
    out = gone | rests | {member.peer for member in members if member.missed > missed_steps_max}
    stay = [member for member in members if member.peer not in out]
    if not stay:
        # A step that fails for everybody is nobody's fault, and a roster without members could never go on.
        rests = set()
        stay = [member for member in members if member.peer not in gone]
        stay = stay or [member for member in members if member.peer in header.left]
    stay += [Member(peer, header.step + 1) for peer in header.joined]
    banned = (*roster.banned, *(ban.peer for ban in header.bans))[-limits.BANNED_MAX :]
    return Roster(tuple(sorted(stay, key=lambda m: m.peer)), banned, _resting(roster, rests, header.step + 1))


def _is_failure(header: Header, part: int) -> bool:
    """Whether a part is void for want of something that its aggregator owes. Whoever has published all of it, and is
    objected to, has done its part: one of the two is banned, and liars could otherwise have everybody honest rest."""
    return not header.parts[part] and not (header.projections and header.projections[part])


def _resting(roster: Roster, rests: set[bytes], step: int) -> tuple[Resting, ...]:
    """Who is left out from a step on, and who was lately."""
    known = {rest.peer: rest for rest in roster.resting if rest.until + REST_FORGOTTEN_STEPS > step}
    for peer in rests:
        times = known[peer].times + 1 if peer in known else 1
        known[peer] = Resting(peer, step + (REST_STEPS << min(times - 1, REST_DOUBLINGS_MAX)), times)
    latest = sorted(known.values(), key=lambda rest: (rest.until, rest.peer))[-limits.ROSTER_PEERS_MAX :]
    return tuple(sorted(latest, key=lambda rest: rest.peer))


def admitted(named_in_commits: list[tuple[bytes, ...]], eligible: set[bytes], room: int) -> tuple[bytes, ...]:
    """Peers named by more than half of the step's commits, sorted, at most `room` of them (SPEC R-7.1)."""
    counts: dict[bytes, int] = {}
    for names in named_in_commits:
        for peer in set(names) & eligible:
            counts[peer] = counts.get(peer, 0) + 1
    chosen = sorted(peer for peer, count in counts.items() if 2 * count > len(named_in_commits))
    return tuple(chosen[: max(0, room)])
