"""From a cut to a header, and from a header back to what a voter must hold before signing it.

The idea: the proposer builds a header from what it holds, a voter examines it against what *it* holds, and
both use the same functions, so they can only differ where their knowledge does. An examination answers with
what is missing (to be asked for) or with a refusal. SPEC R-4.20 to R-4.24.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from crowdsurf.protocol import assignment, limits
from crowdsurf.protocol.beacon import next_beacon, nonce_digest
from crowdsurf.protocol.chain import Head, check_header, following_roster
from crowdsurf.protocol.effects import StepCertified
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import (
    Aggregate,
    Ban,
    Certificate,
    Commit,
    Cut,
    Header,
    Projection,
    Reveal,
    bitmap_of,
    indexes_of,
)
from crowdsurf.protocol.projection import Clipping, clipping_of
from crowdsurf.protocol.roster import admitted, enough_for_an_honest_one, quorum_of, withheld
from crowdsurf.protocol.scrutiny import ACCEPTING, FOLLOWING, INCLUDING, INSISTING, Scrutiny
from crowdsurf.protocol.transcript import Transcript

_NOBODY: Mapping[bytes, Ban] = {}


class CutFacts(NamedTuple):
    """What follows from a cut."""

    cut: Cut
    duties: tuple[PeerId, ...]
    """Who aggregates each part."""
    contributors: int
    """The members in the cut, as the number their bitmap spells."""
    working: int
    """Those of them whose gradients go in: all but the validators."""


@dataclass(frozen=True)
class StepFacts:
    """What everyone knows when a step begins."""

    manifest: Manifest
    head: Head
    state: Digest
    """State digest before the step."""

    _cuts: dict[int, CutFacts] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Worked out once for each cut, because every aggregate that is heard asks; by the cut's address, which stays its
    own as long as the entry keeps it alive."""

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return self.head.roster.peers

    @functools.cached_property
    def quorum(self) -> int:
        """Members whose votes make a certificate, and without whose commits there is no cut."""
        return quorum_of(len(self.peers), self.manifest.quorum)

    @property
    def enough_for_an_honest_one(self) -> int:
        """So many members that somebody honest is among them, as long as a quorum is honest."""
        return enough_for_an_honest_one(len(self.peers), self.quorum)

    @functools.cached_property
    def clipping(self) -> Clipping | None:
        """How aggregates are checked; None if they are not."""
        return clipping_of(self.manifest)

    def of_cut(self, cut: Cut) -> CutFacts:
        """What follows from a cut of this step."""
        found = self._cuts.get(id(cut))
        if found is None:
            contributors = tuple(index for index, _ in cut.commits)
            indexes = assignment.aggregators(self.head.beacon, contributors, len(self.peers))
            duties = tuple(self.peers[index] for index in indexes)
            bits = sum(1 << index for index in contributors)
            idle = sum(1 << index for index in self.head.validators)
            found = self._cuts[id(cut)] = CutFacts(cut, duties, bits, bits & ~idle)
        return found

    def may_include(self, cut: Cut, aggregate: Aggregate) -> bool:
        """Whether an aggregate is made of parts of those that have one in the cut, and of somebody's. When it was heard
        the cut may not have been known yet."""
        included = int.from_bytes(aggregate.included, "little")
        return bool(included) and not included & ~self.of_cut(cut).working

    def duties(self, cut: Cut) -> tuple[PeerId, ...]:
        """Who aggregates each part under a cut."""
        return self.of_cut(cut).duties


class Missing(NamedTuple):
    """What a voter lacks to judge a header."""

    messages: tuple[Digest, ...]
    """Payload digests (or blob digests of aggregates) to ask for with a Want."""
    blobs: tuple[tuple[int, Digest], ...]
    """(part, blob digest) of aggregates to fetch."""
    unchecked: tuple[tuple[int, Digest], ...] = ()
    """(part, blob digest) of aggregates that are held and have to be looked at."""

    @property
    def nothing(self) -> bool:
        return not self.messages and not self.blobs and not self.unchecked


def build_header(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    cut_name: Digest,
    cut: Cut,
    convictions: Mapping[bytes, Ban] = _NOBODY,
    scrutiny: Scrutiny | None = None,
) -> Header:
    """The header of a cut from what is held: parts without aggregate are void, nonces not revealed are empty; if one
    is, everything is void. Who is convicted is banned. With a `scrutiny` only those parts count with which nothing is
    wrong."""
    size = len(facts.peers)
    contributors = [index for index, _ in cut.commits]
    commits = transcript.commits_in(cut, facts.peers)
    nonces = tuple(_opened_nonce(facts, transcript, commits, index) for index in range(size))
    head, is_void = facts.head, not all(nonces[index] for index in contributors)
    counted: list[tuple[bytes, bytes]] = [(b"", b"")] * size
    if not is_void:
        counted = counting(facts, transcript, blobs, cut_name, cut, range(size), scrutiny, INCLUDING)
    joined, left = membership_changes(facts, transcript, cut)
    header = Header(
        step=head.step,
        previous=head.previous,
        roster=head.roster.digest,
        state=facts.state,
        cut=cut_name,
        contributors=bitmap_of(contributors, size),
        parts=tuple(aggregate for aggregate, _ in counted),
        nonces=nonces,
        beacon=next_beacon(head.beacon, () if is_void else nonces),
        joined=joined,
        left=left,
        next_roster=b"",
        excused=bitmap_of(excused(commits), size),
        heard=bitmap_of(heard(commits), size),
        bans=_bans(convictions, facts.peers, joined),
        projections=tuple(projection for _, projection in counted) if scrutiny is not None else (),
    )
    following = following_roster(head, header, facts.manifest.missed_steps_max)
    return msgspec.structs.replace(header, next_roster=following.digest)


def counting(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    cut_name: Digest,
    cut: Cut,
    parts: Iterable[int],
    scrutiny: Scrutiny | None,
    times: float,
) -> list[tuple[bytes, bytes]]:
    """For each of these parts its aggregate, and the projection that vouches for it, as far as this member is content
    with them, if claims are off by no more than so many times what honest computations can differ by; both empty if it
    is not, the projection alone if nothing is wrong but that somebody objects (SPEC R-4.20, R-5.4, R-5.5)."""
    duties, nothing = facts.duties(cut), (b"", b"")
    if scrutiny is None:
        names = [transcript.aggregates_said(cut_name, part, duties[part]) for part in parts]
        return [next(((name, b"") for name in said if name in blobs), nothing) for said in names]
    beacon, commits = opened_beacon(facts, transcript, cut), transcript.commits_in(cut, facts.peers)
    enough, found = facts.enough_for_an_honest_one, []
    for part in parts:
        found.append(nothing)
        aggregator, name = duties[part], transcript.named_aggregate(cut_name, part, enough)
        aggregate = transcript.aggregate_with(cut_name, part, aggregator, name) if name is not None else None
        if beacon is None or aggregate is None or aggregate.digest not in blobs:
            continue
        if not facts.may_include(cut, aggregate) or _is_ambiguous(
            transcript, cut_name, part, aggregator, aggregate.digest
        ):
            continue
        objected = is_objected(facts, transcript, cut_name, cut, aggregator)
        is_known = scrutiny.is_known(part, aggregate.digest, beacon)
        # Of a liar that signed several, any that is right will do; all that know the same choose the same.
        for shown in sorted(transcript.projections_said(cut_name, part, aggregator), key=lambda said: said.digest):
            if scrutiny.is_unproven(shown, aggregate, commits):
                continue
            if objected or (is_known and not scrutiny.is_false(shown, beacon, times)):
                found[-1] = (b"" if objected else aggregate.digest, shown.digest)
                break
    return found


def heard_aggregates(facts: StepFacts, transcript: Transcript, cut_name: Digest) -> tuple[bytes, ...]:
    """The aggregates of a cut that this member has heard of, by part; empty for others."""
    cut = transcript.cut(cut_name)
    duties = facts.duties(cut) if cut is not None else ()
    said = [transcript.aggregate(cut_name, part, peer) for part, peer in enumerate(duties)]
    names = tuple(one.digest if one is not None else b"" for one in said)
    return names or (b"",) * len(facts.peers)


def is_objected(facts: StepFacts, transcript: Transcript, name: bytes, cut: Cut, aggregator: PeerId) -> bool:
    """Whether a contributor has said that what this aggregator published about it is false (SPEC R-5.5)."""
    contributors = {facts.peers[index] for index, _ in cut.commits}
    return bool(contributors & transcript.objectors(name, aggregator))


def is_disputed(facts: StepFacts, transcript: Transcript, name: bytes, cut: Cut, part: int, aggregate: bytes) -> bool:
    """Whether something speaks against a part that only those know who have heard it: an objection, or that its
    aggregator has signed of one aggregate that it includes some, and others (SPEC R-5.4)."""
    aggregator = facts.duties(cut)[part]
    is_ambiguous = _is_ambiguous(transcript, name, part, aggregator, aggregate)
    return is_ambiguous or is_objected(facts, transcript, name, cut, aggregator)


def _is_ambiguous(transcript: Transcript, name: bytes, part: int, aggregator: PeerId, aggregate: bytes) -> bool:
    return len(transcript.messages_with(name, part, aggregator, aggregate)) > 1


def objections(facts: StepFacts, transcript: Transcript, name: Digest) -> list[Opened]:
    """The messages that show why parts of a cut are disputed here: one objection to each aggregator, two aggregates
    that are the same bytes, and reveals of those that have named several aggregates of a part."""
    found, cut, enough = transcript.objections(name), transcript.cut(name), facts.enough_for_an_honest_one
    for part, aggregator in enumerate(facts.duties(cut) if cut is not None else ()):
        named = {one: by for one, by in transcript.witnesses(name, part).items() if len(by) >= enough}
        for aggregate in named:
            said = transcript.messages_with(name, part, aggregator, aggregate)
            found += said if len(said) > 1 else ()
        if len(named) > 1:
            several = set.intersection(*named.values())
            found += [reveal for reveal in transcript.reveals_of(name) if reveal.sender in several]
    return list(dict.fromkeys(found))


def opened_beacon(facts: StepFacts, transcript: Transcript, cut: Cut) -> Digest | None:
    """The beacon of the step once all its nonces are open."""
    commits = transcript.commits_in(cut, facts.peers)
    nonces = tuple(_opened_nonce(facts, transcript, commits, index) for index in range(len(facts.peers)))
    is_open = all(nonces[index] for index, _ in cut.commits)
    return next_beacon(facts.head.beacon, nonces) if is_open else None


def _bans(convictions: Mapping[bytes, Ban], members: tuple[PeerId, ...], joined: tuple[bytes, ...]) -> tuple[Ban, ...]:
    """One ban for every convicted peer, by rising peer id, as many as fit. Who just joins is banned by a later header,
    and somebody stays."""
    chosen = {ban.peer: ban for _, ban in sorted(convictions.items(), reverse=True) if ban.peer not in joined}
    if not set(members) - set(chosen):
        return ()
    return tuple(chosen[peer] for peer in sorted(chosen))[: limits.BANS_PER_HEADER_MAX]


def _opened_nonce(facts: StepFacts, transcript: Transcript, commits: Mapping[int, Commit], member: int) -> bytes:
    """The nonce by which a member opens the commit that the cut names; empty if it did not. A member that signed two
    commits may have opened the other one, and this one for somebody else, who shows it: which reveal was heard first
    does not matter."""
    commit = commits.get(member)
    said = transcript.opening(facts.peers[member], commit.nonce_digest) if commit is not None else None
    return said.payload.nonce if said is not None and isinstance(said.payload, Reveal) else b""


def membership_changes(
    facts: StepFacts, transcript: Transcript, cut: Cut
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Who joins and who leaves, a function of the cut's commits alone. All of them must be held."""
    held = list(transcript.commits_in(cut, facts.peers).values())
    members = set(facts.peers)
    newcomers = {peer for commit in held for peer in commit.joins if peer not in members}
    newcomers -= facts.head.roster.kept_out(facts.head.step + 1)
    if facts.manifest.admission != "open":
        newcomers &= set(facts.manifest.founders)
    room = facts.manifest.peers_max - len(members)
    joined = admitted([commit.joins for commit in held], newcomers, room)
    left = admitted([commit.leaves for commit in held], set(members), len(members) - 1)
    return joined, left


def excused(commits: Mapping[int, Commit]) -> list[int]:
    """Validators that filed no finding."""
    return [index for index, commit in commits.items() if not commit.parts and not commit.finding]


def heard(commits: Mapping[int, Commit]) -> set[int]:
    """Members that any of these contributors has heard in time in the step before."""
    return {index for commit in commits.values() for index in indexes_of(commit.heard)}


def examine(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    header: Header,
    convictions: Mapping[bytes, Ban] = _NOBODY,
    scrutiny: Scrutiny | None = None,
    is_bound: bool = False,
) -> Missing:
    """What is missing to vote for a header; `Missing.nothing` means it is complete and correct.

    `convictions` are the bans this member knows the evidence for, by case. `is_bound`: others may have voted for it,
    and it may be certified. Then it does not matter any more that a line about this member is false, or that somebody
    objects: others did not know when they voted, and who lied is banned all the same. Nor does it matter what a ban
    rests on: an honest one among the quorum that has prepared the header knew, and may have forgotten in a restart.
    Raises Refusal(BAD_OUTCOME) if the header contradicts the chain, its cut, a commit or an aggregator.
    """
    check_header(facts.head, header, facts.manifest)
    if header.state != facts.state:
        raise Refusal(Code.BAD_OUTCOME, "the header starts from another state")
    cut = transcript.cut(header.cut)
    if cut is None:
        return Missing((Digest(header.cut),), ())
    contributors = [index for index, _ in cut.commits]
    if contributors != indexes_of(header.contributors):
        raise Refusal(Code.BAD_OUTCOME, "the contributors are not those of the cut")
    lacking = transcript.missing_commits(cut, facts.peers)
    if lacking:
        return Missing(tuple(lacking), ())
    commits = transcript.commits_in(cut, facts.peers)
    _check_nonces(header, commits)
    if membership_changes(facts, transcript, cut) != (header.joined, header.left):
        raise Refusal(Code.BAD_OUTCOME, "who joined or left does not follow from the commits")
    if header.excused != bitmap_of(excused(commits), len(facts.peers)):
        raise Refusal(Code.BAD_OUTCOME, "who could not validate does not follow from the commits")
    if header.heard != bitmap_of(heard(commits), len(facts.peers)):
        raise Refusal(Code.BAD_OUTCOME, "who was heard lately does not follow from the commits")
    unproven = [Digest(ban.case) for ban in header.bans if convictions.get(ban.case) != ban]
    if unproven and not is_bound:
        return Missing(tuple(unproven), ())
    # A nonce that is opened in a header alone gives nobody the time to look at aggregates. And whoever does not learn
    # it before it refuses the header for something else leaves it out of its own, for ever.
    if (scrutiny is not None or not is_bound) and not _are_opened(facts, transcript, header, commits):
        return Missing((Digest(header.cut),), ())
    if scrutiny is not None:
        return _missing_proofs(facts, transcript, blobs, header, cut, scrutiny, is_bound)
    return _missing_aggregates(facts, transcript, blobs, header, cut)


def _check_nonces(header: Header, commits: Mapping[int, Commit]) -> None:
    for index, nonce in enumerate(header.nonces):
        commit = commits.get(index)
        if nonce and (commit is None or nonce_digest(nonce) != commit.nonce_digest):
            raise Refusal(Code.BAD_OUTCOME, f"the nonce of member {index} is not the one it committed to")


def _are_opened(facts: StepFacts, transcript: Transcript, header: Header, commits: Mapping[int, Commit]) -> bool:
    """Whether every nonce of a header was opened by a reveal that was heard here."""
    return all(_opened_nonce(facts, transcript, commits, index) for index, nonce in enumerate(header.nonces) if nonce)


def _missing_aggregates(
    facts: StepFacts, transcript: Transcript, blobs: set[bytes], header: Header, cut: Cut
) -> Missing:
    messages, lacking = [], []
    for part, aggregator in enumerate(facts.duties(cut)):
        name = header.parts[part]
        if not name:
            continue
        if transcript.aggregate_with(header.cut, part, aggregator, name) is None:
            messages.append(Digest(name))  # it may have signed another one for us
        if name not in blobs:
            lacking.append((part, Digest(name)))
    return Missing(tuple(messages), tuple(lacking))


def _missing_proofs(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    header: Header,
    cut: Cut,
    scrutiny: Scrutiny,
    is_bound: bool,
) -> Missing:
    """As `_missing_aggregates`, where aggregates are checked: what is lacking to be content with every part that
    counts. Raises Refusal for a part that must not count."""
    messages: list[Digest] = []
    lacking: list[tuple[int, Digest]] = []
    unchecked = []
    commits, enough = transcript.commits_in(cut, facts.peers), facts.enough_for_an_honest_one
    for part, aggregator in enumerate(facts.duties(cut)):
        name = header.parts[part]
        if not name:
            if header.projections[part] and not is_bound:
                lacked = _missing_objected(facts, transcript, blobs, header, cut, scrutiny, part)
                messages.extend(lacked.messages)
                lacking.extend(lacked.blobs)
            continue
        if len(transcript.witnesses(header.cut, part).get(name, ())) < enough:
            messages.append(Digest(header.cut))  # others may have heard more reveals: they come with it
            continue
        shown = transcript.projection_with(header.projections[part], aggregator)
        included = shown.payload.included if shown is not None and isinstance(shown.payload, Projection) else None
        aggregate = transcript.aggregate_with(header.cut, part, aggregator, name, included)
        if aggregate is None:  # or there may be another one with the same bytes, for others
            messages.append(Digest(name))
        if shown is None:
            messages.append(Digest(header.projections[part]))
        if name not in blobs:
            lacking.append((part, Digest(name)))
        elif not scrutiny.is_known(part, name, header.beacon):
            unchecked.append((part, Digest(name)))
        if aggregate is None or shown is None:
            continue
        unproven = scrutiny.is_unproven(shown, aggregate, commits) or not facts.may_include(cut, aggregate)
        if unproven:
            raise Refusal(Code.BAD_OUTCOME, f"nothing vouches for the aggregate of part {part}")
        if is_bound:
            false = scrutiny.misdescribes(shown, header.beacon, FOLLOWING)
        else:
            disputed = is_disputed(facts, transcript, header.cut, cut, part, name)
            false = disputed or scrutiny.is_false(shown, header.beacon, ACCEPTING)
        if false:
            raise Refusal(Code.LOCKED, f"what is said about the aggregate of part {part} is not so")
    return Missing(tuple(dict.fromkeys(messages)), tuple(lacking), tuple(unchecked))


def _missing_objected(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    header: Header,
    cut: Cut,
    scrutiny: Scrutiny,
    part: int,
) -> Missing:
    """What is lacking to see that a void part would count if nobody objected. Raises Refusal if it would not, or if
    nobody does: then its aggregator is to blame."""
    aggregator = facts.duties(cut)[part]
    shown = transcript.projection_with(header.projections[part], aggregator)
    if shown is None or not isinstance(shown.payload, Projection):
        return Missing((Digest(header.projections[part]),), ())
    name = Digest(shown.payload.aggregate)
    if len(transcript.witnesses(header.cut, part).get(name, ())) < facts.enough_for_an_honest_one:
        return Missing((Digest(header.cut),), ())
    lacks_message = transcript.aggregate_with(header.cut, part, aggregator, name) is None
    if lacks_message or name not in blobs:
        return Missing((name,) if lacks_message else (), () if name in blobs else ((part, name),))
    own = counting(facts, transcript, blobs, Digest(header.cut), cut, [part], scrutiny, ACCEPTING)[0]
    if own[0] or not own[1]:
        raise Refusal(Code.LOCKED, f"part {part} is not void because of an objection")
    return Missing((), ())


def work_of(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    header: Header,
    peer: PeerId,
    scrutiny: Scrutiny | None = None,
) -> list[Opened]:
    """What a member has said for the cut of a header as far as it counts here: of several messages for one slot those
    that this member insists on, whichever it heard first."""
    cut = transcript.cut(header.cut)
    commit = transcript.named_by(cut, facts.peers).get(peer) if cut is not None else None
    if cut is None or commit is None or not isinstance(commit.payload, Commit):
        return []
    reveal = transcript.opening(peer, commit.payload.nonce_digest)
    found = [commit] if reveal is None else [commit, reveal]
    parts = [part for part, aggregator in enumerate(facts.duties(cut)) if aggregator == peer]
    held = counting(facts, transcript, blobs, Digest(header.cut), cut, parts, scrutiny, INSISTING)
    for part, (aggregate, projection) in zip(parts, held, strict=True):
        shown = transcript.projection_with(projection, peer)
        if shown is not None and isinstance(shown.payload, Projection):
            found.append(shown)
            aggregate = aggregate or shown.payload.aggregate
        found += transcript.messages_with(header.cut, part, peer, aggregate)
    return found


def overlooked(
    facts: StepFacts,
    transcript: Transcript,
    blobs: set[bytes],
    header: Header,
    scrutiny: Scrutiny | None = None,
) -> list[tuple[PeerId, str]]:
    """Work the header leaves out although this voter holds it: (whose, what), empty when nothing was dropped.

    A voter that holds an aggregate or a nonce does not sign a header without it, so a proposer alone cannot
    void somebody's work; it forwards what it holds instead (SPEC R-4.24). The same for the ban of somebody that has
    signed two cuts of one view, or of anybody: with a ban a step blames nobody who acted on the other cut (R-7.2).
    """
    cut = transcript.cut(header.cut)
    if cut is None:
        return []
    void = [] if withheld(header) else [part for part, name in enumerate(header.parts) if not name]
    held = counting(facts, transcript, blobs, Digest(header.cut), cut, void, scrutiny, INSISTING) if void else []
    duties = facts.duties(cut)
    dropped = [] if header.bans else [(peer, "two cuts") for peer in sorted(transcript.proposed_twice)]
    for part, (name, shown) in zip(void, held, strict=True):
        if name or (shown and not header.projections[part] and scrutiny is not None):
            dropped.append((duties[part], "aggregate" if name else "projection"))
    commits = transcript.commits_in(cut, facts.peers)
    for index in commits:
        if not header.nonces[index] and _opened_nonce(facts, transcript, commits, index):
            dropped.append((facts.peers[index], "reveal"))
    return dropped


def story_of(
    certificate: Certificate,
    peers: tuple[PeerId, ...],
    view: int,
    roster: tuple[PeerId, ...],
    transcript: Transcript | None,
) -> StepCertified:
    """What people are told about a certified step; `peers` were its members, `roster` are those of the next."""
    header = certificate.header
    contributors = tuple(peers[index] for index in indexes_of(header.contributors))
    commits = [transcript.commit_of(peer) for peer in contributors] if transcript is not None else []
    losses = [commit.loss for commit in commits if commit is not None]
    return StepCertified(
        step=header.step,
        contributors=contributors,
        void_parts=sum(1 for name in header.parts if not name),
        view=view,
        mean_loss=sum(losses) / len(losses) if losses else None,
        joined=tuple(PeerId(peer) for peer in header.joined),
        left=tuple(PeerId(peer) for peer in header.left),
        roster=roster,
        banned=header.bans,
        is_void=bool(withheld(header)),
    )
