"""Whether a header follows from what its members signed, worked out again by hand and from the outside.

The idea: the facts of a header (who contributed, the aggregates, the nonces, the beacon, who came and went, the next
roster) are all functions of the commits its cut names and of the header before. This file computes them a second
time, in its own words, from the messages that hosts really sent; it borrows encodings and draws from the rules, but
none of their checks.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from crowdsurf.protocol import assignment, effects, limits
from crowdsurf.protocol.beacon import first_beacon, next_beacon, nonce_digest
from crowdsurf.protocol.cases import cut_objected_to, is_objection, proof_holds
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import (
    PROVEN,
    Accusation,
    Aggregate,
    Ban,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Projection,
    Reason,
    Reveal,
    Verdict,
    indexes_of,
)
from crowdsurf.protocol.projection import clipping_of
from crowdsurf.protocol.roster import (
    REST_DOUBLINGS_MAX,
    REST_FORGOTTEN_STEPS,
    REST_STEPS,
    STRIKE_FADES_STEPS,
    STRIKES_MAX,
    Member,
    Resting,
    Roster,
    quorum_of,
)
from crowdsurf.protocol.sim.checker import Checker, name_of_header
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.vouched import is_too_long, is_unbalanced, is_whole, radius_of

_STEPS_KEPT = 8
"""Messages of older steps are forgotten; nobody is that far behind and still signs."""


class Before(NamedTuple):
    """What a step starts from, as the checker knows it."""

    previous: bytes
    """Digest of the last header."""
    beacon: Digest
    roster: Roster
    validators: frozenset[bytes]
    """Who validates in it."""
    owed: tuple[tuple[int, bytes], ...] = ()
    """(step, member) of work that is still to be looked at, because its author kept its nonce back."""

    @property
    def members(self) -> tuple[Member, ...]:
        return self.roster.members


@dataclass(slots=True)
class Said:
    """What was signed in one step, by anybody: payloads by digest and sender."""

    commits: dict[tuple[bytes, bytes], Commit] = field(default_factory=dict)
    cuts: dict[bytes, Cut] = field(default_factory=dict)
    """Whoever proposed them."""
    aggregates: set[tuple[bytes, int, bytes, bytes]] = field(default_factory=set)
    """Cut, part, sender and digest."""
    inputs: set[tuple[bytes, int, bytes, bytes, bytes]] = field(default_factory=set)
    """The same, and who went in."""
    named: dict[tuple[bytes, int, bytes], set[bytes]] = field(default_factory=dict)
    """Who has named an aggregate when it opened its nonce, by cut, part and digest."""
    projections: dict[tuple[bytes, bytes], Projection] = field(default_factory=dict)
    """By payload digest and sender."""
    objected: set[tuple[bytes, bytes]] = field(default_factory=set)
    """Cut and aggregator of what members object to in the step itself."""
    beacons: dict[bytes, set[bytes]] = field(default_factory=dict)
    """What honest aggregators have drawn directions from, by cut."""

    def add(self, opened: Opened) -> None:
        """Keep a message if it is of a kind that headers follow from."""
        payload = opened.payload
        if isinstance(payload, Commit):
            self.commits[opened.digest, opened.sender] = payload
        elif isinstance(payload, Cut):
            self.cuts[opened.digest] = payload
        elif isinstance(payload, Aggregate):
            aggregate = (payload.cut, payload.part, opened.sender, payload.digest)
            self.aggregates.add(aggregate)
            self.inputs.add((*aggregate, payload.included))
        elif isinstance(payload, Reveal):
            for part, name in enumerate(payload.aggregates):
                self.named.setdefault((payload.cut, part, name), set()).add(opened.sender)
        elif isinstance(payload, Projection):
            self.projections[opened.digest, opened.sender] = payload

    def commits_in(self, cut: Cut, members: tuple[Member, ...]) -> dict[int, Commit]:
        """The commits a cut names, as far as the members they are said to be of signed them, by index."""
        found = {}
        for index, name in cut.commits:
            commit = self.commits.get((name, members[index].peer)) if index < len(members) else None
            if commit is not None:
                found[index] = commit
        return found


class HeaderFollows(Checker):
    """Every fact of a certified header follows from messages that its members really signed, and an honest
    aggregator starts from nothing else."""

    name = "header_follows"
    sees_effects = (
        effects.PersistCertificate,
        effects.PersistSigned,
        effects.SendEnvelope,
        effects.AggregatePart,
        effects.ProjectPart,
    )

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[int, Said] = {}
        self._before: dict[int, Before] = {}
        self._checked: dict[bytes, int] = {}
        self._asked: dict[tuple[int, bytes], int] = {}
        """The newest step named in requests to join and in goodbyes, by kind and peer."""
        self._ended: dict[bytes, int] = {}
        """The last step of whoever was a member and is none any more."""
        self._nodes: dict[int, object] = {}
        self._accusations: dict[bytes, list[Opened]] = {}
        """By each name that its case could have: with its sender, or of the bytes alone."""
        self._verdicts: dict[tuple[bytes, bytes], set[bytes]] = {}
        """Who found whom guilty, by case and guilty peer."""

    # --- collecting --------------------------------------------------------------------------------------

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """A restarted host may have signed something that it never came to send."""
        if self._nodes.get(host.number) is not host.node:
            self._nodes[host.number] = host.node
            for envelope in host.disk.recovered().signed:
                self._collect(host, envelope)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Collect what is signed; check what is certified and what is aggregated."""
        if isinstance(effect, effects.PersistSigned):
            self._collect(host, effect.envelope)
        elif isinstance(effect, effects.SendEnvelope):
            # An honest host has journaled it; a liar sends what it likes.
            if not host.honest and effect.envelope.sender == host.id:
                self._collect(host, effect.envelope)
        elif host.honest and isinstance(effect, effects.AggregatePart):
            self._check_inputs(host, effect)
        elif host.honest and isinstance(effect, effects.ProjectPart):
            self._said.setdefault(effect.step, Said()).beacons.setdefault(effect.cut, set()).add(effect.beacon)
        elif host.honest and isinstance(effect, effects.PersistCertificate):
            self._check(host, effect.certificate.header)

    def _collect(self, host: Host, envelope: Envelope) -> None:
        if envelope.kind in (Kind.JOIN, Kind.LEAVE):
            slot = (envelope.kind, envelope.sender)
            self._asked[slot] = max(envelope.step, self._asked.get(slot, -1))
        elif envelope.kind in (Kind.ACCUSATION, Kind.VERDICT):
            with contextlib.suppress(Refusal):
                self._collect_case(host.node._open(envelope))
        elif envelope.kind <= Kind.REVEAL or envelope.kind == Kind.PROJECTION:
            said = self._said.get(envelope.step)
            if said is None:
                said = self._said[envelope.step] = Said()
            try:
                said.add(host.node._open(envelope))  # opened once, for its receivers too
            except Refusal:
                return  # a liar's; nobody can use it either

    def _collect_case(self, opened: Opened) -> None:
        if isinstance(opened.payload, Accusation):
            if is_objection(opened):
                about = (cut_objected_to(opened.payload), opened.payload.accused)
                self._said.setdefault(opened.envelope.step, Said()).objected.add(about)
            for name in (opened.digest, digest("payload", opened.sender + opened.digest)):
                self._accusations.setdefault(name, []).append(opened)
        elif isinstance(opened.payload, Verdict):
            case = (opened.payload.case, opened.payload.guilty)
            self._verdicts.setdefault(case, set()).add(opened.sender)

    # --- what an aggregate starts from -------------------------------------------------------------------

    def _check_inputs(self, host: Host, effect: effects.AggregatePart) -> None:
        said, before = self._said.get(effect.step), self._before.get(effect.step)
        cut = said.cuts.get(effect.cut) if said is not None else None
        if said is None or cut is None or (before is None and effect.step):
            self.report(host, f"it aggregates part {effect.part} of step {effect.step} under a cut nobody proposed")
            return
        members = self._start(host, effect.step).members
        commits = said.commits_in(cut, members)
        indexes = [index for index, _ in effect.inputs]
        if indexes != sorted(set(indexes)):
            self.report(host, f"it aggregates part {effect.part} of step {effect.step} in another order than others do")
        if any(
            index not in commits or not commits[index].parts or commits[index].parts[effect.part] != name
            for index, name in effect.inputs
        ):
            self.report(host, f"it aggregates bytes in step {effect.step} that no commit of the cut names")
        if len(indexes) + effect.absent != sum(1 for commit in commits.values() if commit.parts):
            self.report(host, f"it aggregates part {effect.part} of step {effect.step} and forgets somebody")

    # --- what a header follows from ----------------------------------------------------------------------

    def _start(self, host: Host, step: int) -> Before:
        """What a step starts from. All headers before it were checked: honest hosts certify them in order."""
        if step == 0 and 0 not in self._before:
            chain = host.node.chain
            members = tuple(Member(peer, 0) for peer in sorted(chain.manifest.founders))
            first = first_beacon(chain.run_id)
            self._before[0] = Before(digest("genesis", chain.run_id), first, Roster(members), frozenset())
        return self._before[step]

    def _check(self, host: Host, header: Header) -> None:
        name = name_of_header(header)
        if name in self._checked:
            return
        self._checked[name] = header.step
        if header.step and header.step not in self._before:
            self.report(host, f"step {header.step} is certified before the one it builds on")
            return
        before, said = self._start(host, header.step), self._said.get(header.step, Said())
        cut = said.cuts.get(header.cut)
        if cut is None:
            self.report(host, f"nobody proposed the cut of step {header.step}")
            return
        commits = said.commits_in(cut, before.members)
        problems = _wrong_sources(header, before, cut, commits, said)
        problems |= self._wrong_members(host, header, before, commits)
        problems |= _wrong_proofs(header, before, cut, commits, said, radius_of(host.node.chain.manifest))
        for text, wrong in problems.items():
            if wrong:
                self.report(host, f"the header of step {header.step} {text}")
        if len(header.parts) != len(before.members) or len(header.nonces) != len(before.members):
            return  # reported above; nothing follows from it
        manifest = host.node.chain.manifest
        roster = _next_roster(header, before, manifest.missed_steps_max)
        validators, owed = _next_validators(header, before, roster, manifest.audit.rate)
        after = Before(name, Digest(header.beacon), roster, validators, owed)
        if header.next_roster != after.roster.digest:
            self.report(host, f"the header of step {header.step} leads to another roster than its facts do")
        self._before.setdefault(header.step + 1, after)
        stay = {member.peer for member in after.members}
        self._ended |= {member.peer: header.step for member in before.members if member.peer not in stay}
        for old in [step for step in self._said if step < header.step - _STEPS_KEPT]:
            del self._said[old]

    def _wrong_members(self, host: Host, header: Header, before: Before, commits: dict[int, Commit]) -> dict[str, bool]:
        manifest, members = host.node.chain.manifest, {member.peer for member in before.members}
        eligible = {peer for commit in commits.values() for peer in commit.joins} - members
        eligible -= {*before.roster.banned}
        eligible -= {resting.peer for resting in before.roster.resting if resting.until > header.step + 1}
        if manifest.admission != "open":
            eligible &= set(manifest.founders)
        joined = _named_by_most([commit.joins for commit in commits.values()], eligible)
        left = _named_by_most([commit.leaves for commit in commits.values()], members)
        return {
            "lets in others than most commits name": header.joined != joined[: manifest.peers_max - len(members)],
            "lets go others than most commits name": header.left != left[: len(members) - 1],
            "lets in somebody who did not ask since it was last a member": any(
                self._asked.get((Kind.JOIN, peer), -1) <= self._ended.get(peer, -1) for peer in header.joined
            ),
            "lets go somebody who never said goodbye": any(
                (Kind.LEAVE, peer) not in self._asked for peer in header.left
            ),
            "bans somebody without evidence": not _liars_decide(host, before)
            and any(not self._convicts(host, ban, before) for ban in header.bans),
        }

    def _convicts(self, host: Host, ban: Ban, before: Before) -> bool:
        """Whether what was said convicts a peer of just that: its own signatures, or more than half of the members."""
        node = host.node
        for opened in self._accusations.get(ban.case, []):
            said, is_anonymous = opened.payload, ban.case == opened.digest
            if not isinstance(said, Accusation) or said.step != ban.step:
                continue
            if said.reason in PROVEN:
                holds = proof_holds(said, node.chain.run_id, node._verify, clipping_of(node.chain.manifest))
                guilty = said.accused if holds else opened.sender
                reason = said.reason if holds else Reason.FALSE_ACCUSATION
                if (ban.peer, ban.reason) == (guilty, reason) and holds == is_anonymous:
                    return True
                continue
            reasons = {said.accused: said.reason, opened.sender: int(Reason.FALSE_ACCUSATION)}
            members = {member.peer for member in before.members}
            found = self._verdicts.get((ban.case, ban.peer), set()) & members
            if not is_anonymous and ban.reason == reasons.get(ban.peer) and 2 * len(found) > len(members):
                return True
        return False


def _liars_decide(host: Host, before: Before) -> bool:
    """Whether faults have cost so many honest members their place that liars are a quorum of those that are left: they
    certify what they like then, and whom they ban they know themselves why."""
    liars = {other.id for other in host.world.hosts.values() if not other.honest}
    members = {member.peer for member in before.members}
    return len(members & liars) >= quorum_of(len(members), host.node.manifest.quorum)


def _named_by_most(lists: list[tuple[bytes, ...]], eligible: set[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(peer for peer in eligible if 2 * sum(peer in names for names in lists) > len(lists)))


def _wrong_sources(header: Header, before: Before, cut: Cut, commits: dict[int, Commit], said: Said) -> dict[str, bool]:
    """What in a header is not what its sources say."""
    indexes = [index for index, _ in cut.commits]
    void = any(index < len(header.nonces) and not header.nonces[index] for index in indexes)
    duties = assignment.aggregators(before.beacon, tuple(indexes), len(before.members))
    peers = [member.peer for member in before.members]
    return {
        "builds on another header than the last one": header.previous != before.previous,
        "names another roster than the last one led to": header.roster != before.roster.digest,
        "names other contributors than its cut": indexes_of(header.contributors) != indexes,
        "has contributors of less than a quorum": 2 * len(indexes) <= len(peers),
        "counts a commit that nobody signed": set(commits) != set(indexes),
        "starts from another state than a commit": any(c.state != header.state for c in commits.values()),
        "has an aggregate that its aggregator did not sign": len(header.parts) != len(peers)
        or any(
            name and (header.cut, part, peers[duties[part]], name) not in said.aggregates
            for part, name in enumerate(header.parts)
        ),
        # Not that a reveal was sent: a proposer may open its own nonce in the header it proposes.
        "has a nonce that nobody committed to": len(header.nonces) != len(peers)
        or any(
            nonce and (index not in commits or nonce_digest(nonce) != commits[index].nonce_digest)
            for index, nonce in enumerate(header.nonces)
        ),
        "counts work of a step that somebody could choose the beacon of": any(header.parts) and void,
        "counts work of a validator, or none of somebody else": any(
            bool(commit.parts) == (peers[index] in before.validators) or (commit.parts and commit.finding)
            for index, commit in commits.items()
        ),
        "excuses others than validators without a finding": indexes_of(header.excused)
        != [index for index, commit in commits.items() if not commit.parts and not commit.finding],
        "says that others were heard than those that its contributors have heard": set(indexes_of(header.heard))
        != {index for commit in commits.values() for index in indexes_of(commit.heard)},
        "has a beacon of its own": header.beacon != next_beacon(before.beacon, () if void else header.nonces),
    }


def _wrong_proofs(
    header: Header, before: Before, cut: Cut, commits: dict[int, Commit], said: Said, radius: float | None
) -> dict[str, bool]:
    """What in a header nobody vouches for, or not well enough."""
    size = len(before.members)
    if radius is None:
        return {"names projections that nobody has asked for": bool(header.projections)}
    if len(header.projections) != size or len(header.parts) != size:
        return {"does not say what vouches for each part": True}
    found = dict.fromkeys(
        (
            "counts an aggregate that too few had heard of when nonces were opened",
            "counts an aggregate that its aggregator does not vouch for",
            "counts an aggregate whose lines do not add up",
            "counts an aggregate that is too long",
            "counts an aggregate that says nothing about somebody whose work did not go in",
            "counts aggregates that were looked at from directions known before",
            "excuses an aggregator that nobody objects to",
        ),
        False,
    )
    late, unproven, unbalanced, too_long, absent, known, excuses = found
    found[known] = any(header.parts) and bool(said.beacons.get(header.cut, set()) - {header.beacon})
    duties = assignment.aggregators(before.beacon, tuple(index for index, _ in cut.commits), size)
    peers = [member.peer for member in before.members]
    for part, (name, proof) in enumerate(zip(header.parts, header.projections, strict=True)):
        aggregator = peers[duties[part]]
        if not name and not proof:
            continue
        shown = said.projections.get((proof, aggregator))
        if not name:
            found[excuses] |= (header.cut, aggregator) not in said.objected
            name = shown.aggregate if shown is not None else name
        witnesses = said.named.get((header.cut, part, name), set())
        found[late] |= 2 * len(witnesses & set(peers)) < size
        about = (header.cut, part, aggregator, name, shown.included) if shown is not None else None
        if (
            shown is None
            or about not in said.inputs
            or (shown.cut, shown.part, shown.aggregate) != (header.cut, part, name)
        ):
            found[unproven] = True
            continue
        norms = {index: commit.norms[part] for index, commit in commits.items() if part < len(commit.norms)}
        included = set(indexes_of(shown.included))
        found[unproven] |= not is_whole(shown) or not included <= set(norms)
        found[absent] |= shown.absent != len(set(norms) - included)
        found[unbalanced] |= is_unbalanced(shown, radius)
        found[too_long] |= is_too_long(shown.norm, list(norms.values()), radius)
    return found


def _next_roster(header: Header, before: Before, missed_steps_max: int) -> Roster:
    """SPEC R-7.2 in other words."""
    old, contributors, after = before.members, indexes_of(header.contributors), header.step + 1
    banned = [ban.peer for ban in header.bans]
    silent = {index for index in contributors if not header.nonces[index]}
    guilty = silent if len(silent) < len(contributors) / 2 else set()
    duties = assignment.aggregators(before.beacon, tuple(contributors), len(old))
    done = [any(names) for names in zip_longest(header.parts, header.projections, fillvalue=b"")]
    lazy = set() if silent else {index for part, index in enumerate(duties) if not done[part]}
    if banned or len(contributors) < len(old) - 1 + len(old) % 2:
        lazy = set()  # they may have acted on a liar's other cut; or liars could have kept them from being named
    is_lame = 2 * len(lazy) >= len(contributors)
    counted = []
    for index, member in enumerate(old):
        strikes = member.strikes - 1 if after % STRIKE_FADES_STEPS == 0 and member.strikes else member.strikes
        idle = index not in contributors or index in lazy or index in silent
        blamed = (index in lazy and not is_lame) or index in guilty
        strikes += 1 if blamed or index in indexes_of(header.excused) else 0
        is_heard = not is_lame and index not in contributors and index in indexes_of(header.heard)
        is_absent = not is_heard or member.missed < min(2, missed_steps_max)
        counted.append(Member(member.peer, member.joined, member.missed + is_absent if idle else 0, strikes))
    gone = {*header.left, *banned}
    times = {rest.peer: rest.times for rest in before.roster.resting}
    tired = {old[index].peer for index in guilty}
    tired |= {m.peer for m in counted if m.strikes >= max(STRIKES_MAX // 2 ** times.get(m.peer, 0), 1)}
    missing = {member.peer for member in counted if member.missed > missed_steps_max}
    stay = [member for member in counted if member.peer not in gone | tired | missing]
    rests = {rest.peer: rest for rest in before.roster.resting if after < rest.until + REST_FORGOTTEN_STEPS}
    if stay:
        for peer in tired - gone:
            again = 1 + (rests[peer].times if peer in rests else 0)
            rests[peer] = Resting(peer, after + REST_STEPS * 2 ** min(again - 1, REST_DOUBLINGS_MAX), again)
    else:
        stay = [member for member in counted if member.peer not in gone]
        stay = stay or [member for member in counted if member.peer not in banned]
    new = [Member(peer, after) for peer in header.joined]
    return Roster(
        tuple(sorted([*stay, *new], key=lambda member: member.peer)),
        (*before.roster.banned, *banned),
        tuple(rests[peer] for peer in sorted(rests)),
    )


def _next_validators(
    header: Header, before: Before, roster: Roster, rate: float
) -> tuple[frozenset[bytes], tuple[tuple[int, bytes], ...]]:
    """SPEC R-4.37 and R-4.40 in other words: who of those in the step is drawn, if its beacon was nobody's to choose;
    and what is still to be looked at after that."""
    there = [before.members[index].peer for index in indexes_of(header.contributors)]
    silent = [index for index in indexes_of(header.contributors) if not header.nonces[index]]
    banned = {ban.peer for ban in header.bans}
    owed = [one for one in before.owed if one[1] not in banned] if rate else []
    first: list[bytes] = []
    more: list[list[PeerId]] = [[] for _ in owed]
    if not silent:
        members, drawn = {PeerId(member.peer) for member in roster.members}, Digest(header.beacon)
        pool = [PeerId(peer) for peer in there if peer not in banned]
        count = min(max(1, round(rate * len(members))), len(members) // 2) if rate else 0
        idle = {PeerId(peer) for peer in before.validators}
        first = [pair[0] for pair in assignment.audits(drawn, pool, members, idle, count)]
        free = [peer for peer in pool if peer in members and peer not in first] if rate else []
        more = assignment.several_each(drawn, free, len(owed), len(members) // 2 - len(first))
    left = [one for one, group in zip(owed, more, strict=True) if not group]
    left = [one for one in left if header.step - one[0] < limits.OWED_STEPS]
    if rate:
        hidden = [before.members[index].peer for index in silent]
        left += [(header.step, peer) for peer in hidden if peer not in before.validators]
    return frozenset((*first, *(peer for group in more for peer in group))), tuple(left)
