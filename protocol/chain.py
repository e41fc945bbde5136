"""The chain of certified steps: what a certificate must satisfy, and what follows from it.

The idea: `Chain` is the whole memory the rules need of the past: the next step's number, the digest of the
last header, the roster and the beacon. `extend` is the only way forward, the same for a live member, a late
joiner and `crowdsurf verify`. SPEC.md §3.
"""

from __future__ import annotations

from typing import NamedTuple

from crowdsurf.protocol import assignment, limits, wire
from crowdsurf.protocol.beacon import first_beacon, next_beacon
from crowdsurf.protocol.envelope import Slot, Verify, signed_bytes
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.manifest import Manifest, run_id_of
from crowdsurf.protocol.messages import (
    REASONS,
    Ban,
    Certificate,
    Header,
    Kind,
    Vote,
    header_digest,
    indexes_of,
    is_bitmap_of,
    payload_digest,
)
from crowdsurf.protocol.projection import clipping_of
from crowdsurf.protocol.roster import Roster, founding_roster, next_roster, quorum_of, withheld


class Audit(NamedTuple):
    """One validator and the work unit it recomputes."""

    validator: PeerId
    target: PeerId
    step: int
    """The step the work was done in."""
    seed: Digest
    parts: int
    """Into how many parts it was cut."""
    state: Digest
    """The state it was done at."""


class Owed(NamedTuple):
    """Work in a void step by somebody that did not open its nonce. It saw what the beacon would have been, and may
    have dodged an audit: its work is looked at by several as soon as there is a beacon it could not foresee."""

    target: PeerId
    step: int
    seed: Digest
    parts: int
    state: Digest


class Head(NamedTuple):
    """Everything the next step starts from."""

    step: int
    """Number of the next step; also the count of certified steps."""
    previous: Digest
    """Digest of the last header (of the run id before step 0)."""
    roster: Roster
    beacon: Digest
    audits: tuple[Audit, ...] = ()
    """Who validates whom in the next step, drawn from the last one's beacon: work done in it, and work that is owed."""
    aggregates: tuple[bytes, ...] = ()
    """Where they are checked: those of the last step, by part."""
    owed: tuple[Owed, ...] = ()

    def audit_of(self, validator: PeerId) -> Audit | None:
        """What a member validates in the next step, instead of working itself."""
        return next((audit for audit in self.audits if audit.validator == validator), None)

    @property
    def validators(self) -> frozenset[int]:
        """Member indexes of those that validate in the next step."""
        return frozenset(self.roster.indexes[audit.validator] for audit in self.audits)


def genesis(manifest: Manifest) -> Head:
    """The head before step 0."""
    run_id = run_id_of(manifest)
    return Head(0, digest("genesis", run_id), founding_roster(manifest.founders), first_beacon(run_id))


def following_roster(head: Head, header: Header, missed_steps_max: int) -> Roster:
    """The roster a header leads to."""
    contributors = tuple(indexes_of(header.contributors))
    duties = assignment.aggregators(head.beacon, contributors, len(head.roster))
    return next_roster(head.roster, header, duties, missed_steps_max)


def following_audits(head: Head, header: Header, roster: Roster, rate: float) -> tuple[Audit, ...]:
    """Who validates whom in the step after a header. Drawn among all that were in the step; validators must still be
    members, whose work is looked at need not: nobody escapes by leaving. Of a void step nothing counts, so nothing is
    validated (SPEC R-4.37)."""
    if withheld(header) or not rate:
        return ()
    banned = {ban.peer for ban in header.bans}
    pool = [head.roster.peers[index] for index in indexes_of(header.contributors)]
    pool = [peer for peer in pool if peer not in banned]
    idle, count = {audit.validator for audit in head.audits}, assignment.validators_of(len(roster), rate)
    pairs = assignment.audits(Digest(header.beacon), pool, set(roster.peers), idle, count)
    parts, state = len(head.roster), Digest(header.state)
    audits = [
        Audit(validator, target, header.step, assignment.work_seed(head.beacon, target), parts, state)
        for validator, target in pairs
    ]
    free = [peer for peer in pool if peer in roster.indexes and peer not in {audit.validator for audit in audits}]
    owed = [one for one in head.owed if one.target not in banned]
    drawn = assignment.several_each(Digest(header.beacon), free, len(owed), len(roster) // 2 - len(audits))
    looked_at = zip(owed, drawn, strict=False)
    audits += [Audit(validator, *one) for one, validators in looked_at for validator in validators]
    return tuple(audits)


def owed_after(head: Head, header: Header, audits: tuple[Audit, ...] = ()) -> tuple[Owed, ...]:
    """Work that still has to be looked at after a header that draws these audits (SPEC R-4.40): that of all who kept
    silent, whether they are blamed for it or not. Validators have done none."""
    silent, idle = withheld(header), {audit.validator for audit in head.audits}
    looked_at = {(audit.target, audit.step) for audit in audits}
    peers = [head.roster.peers[index] for index in sorted(silent)]
    parts, state = len(head.roster), Digest(header.state)
    new = [
        Owed(peer, header.step, assignment.work_seed(head.beacon, peer), parts, state)
        for peer in peers
        if peer not in idle
    ]
    banned = {ban.peer for ban in header.bans}
    kept = (one for one in head.owed if (one.target, one.step) not in looked_at and one.target not in banned)
    return (*(one for one in kept if header.step < one.step + limits.OWED_STEPS), *new)


def beacon_after(previous: bytes, header: Header) -> Digest:
    """The beacon of a step: nobody's nonce counts if it is void."""
    return next_beacon(previous, () if withheld(header) else header.nonces)


def check_header(head: Head, header: Header, manifest: Manifest) -> Roster:
    """Check everything about a header that follows from the chain alone; return the next roster.

    Raises Refusal(BAD_OUTCOME). What needs the step's messages (the cut, the aggregates, who was named by the
    commits) is checked by those who vote, in `step.py`.
    """
    size = len(head.roster)
    contributors = indexes_of(header.contributors)
    members = set(head.roster.peers)
    problems = {
        "the step number": header.step != head.step,
        "the previous header": header.previous != head.previous,
        "the roster": header.roster != head.roster.digest,
        "the number of parts": len(header.parts) != size,
        "the number of nonces": len(header.nonces) != size,
        "a digest's length": any(
            len(item) not in (0, 32) for item in header.parts + header.nonces + header.projections
        ),
        "the projections": not _projections_ok(header, manifest),
        "the contributors": not _contributors_ok(contributors, header, manifest, size),
        "the nonces": any(nonce and index not in contributors for index, nonce in enumerate(header.nonces)),
        "the beacon": header.beacon != beacon_after(head.beacon, header),
        "who joined": not _sorted_distinct(header.joined)
        or bool((members | head.roster.kept_out(head.step + 1)) & set(header.joined)),
        "who left": not _sorted_distinct(header.left) or not set(header.left) <= members,
        "who is excused": not _excused_ok(head, header),
        "who was heard": not is_bitmap_of(header.heard, size),
        "who is banned": not _bans_ok(head.roster, header),
        "the parts of a void step": any(header.parts) and bool(withheld(header)),
    }
    wrong = [name for name, failed in problems.items() if failed]
    if wrong:
        raise Refusal(Code.BAD_OUTCOME, f"the header of step {header.step} has the wrong {' and '.join(wrong)}")
    roster = following_roster(head, header, manifest.missed_steps_max)
    if roster.digest != header.next_roster or len(roster) > limits.ROSTER_PEERS_MAX:
        raise Refusal(Code.BAD_OUTCOME, f"the header of step {header.step} has the wrong next roster")
    return roster


def _contributors_ok(contributors: list[int], header: Header, manifest: Manifest, size: int) -> bool:
    enough = len(contributors) >= max(1, quorum_of(size, manifest.quorum))
    return enough and is_bitmap_of(header.contributors, size)


def _projections_ok(header: Header, manifest: Manifest) -> bool:
    """One for every part that counts, where aggregates are checked, and maybe one for a part that is void because
    somebody objects; else nothing, as in a void step."""
    if clipping_of(manifest) is None:
        return not header.projections
    if len(header.projections) != len(header.parts) or (any(header.projections) and withheld(header)):
        return False
    return all(shown or not name for name, shown in zip(header.parts, header.projections, strict=True))


def _excused_ok(head: Head, header: Header) -> bool:
    """Validators in the step, no others."""
    idle = sum(1 << index for index in head.validators) & int.from_bytes(header.contributors, "little")
    others = int.from_bytes(header.excused, "little") & ~idle
    return is_bitmap_of(header.excused, len(head.roster)) and not others


def _bans_ok(roster: Roster, header: Header) -> bool:
    """Known reasons, nobody twice, nobody who joins in the same breath, and somebody is left."""
    banned = tuple(ban.peer for ban in header.bans)
    known = all(ban.reason in REASONS and ban.step <= header.step for ban in header.bans)
    new = not set(banned) & (roster.outlaws | set(header.joined))
    return known and new and _sorted_distinct(banned) and bool(set(roster.peers) - set(banned))


def _sorted_distinct(peers: tuple[bytes, ...]) -> bool:
    return list(peers) == sorted(set(peers))


def vote_message(run_id: bytes, header: Header, view: int, peer: bytes) -> bytes:
    """The bytes a member's vote for a header in a view signs."""
    name = payload_digest(wire.pack(Vote(header_digest(header))))
    return signed_bytes(limits.PROTOCOL_VERSION, run_id, Slot(header.step, view, Kind.VOTE, b""), name, peer)


class Chain:
    """A verified chain of certified steps, advanced one certificate at a time."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.run_id = run_id_of(manifest)
        self.head = genesis(manifest)
        self.bans: list[tuple[int, Ban]] = []
        """Who was banned, and by the header of which step; the newest `BANNED_MAX`."""

    def check(self, certificate: Certificate, verify: Verify) -> Head:
        """The head after this certificate. Raises Refusal (STALE, FUTURE, BAD_OUTCOME, BAD_CERTIFICATE)."""
        header, head = certificate.header, self.head
        if header.step < head.step:
            raise Refusal(Code.STALE, f"step {header.step} is certified already")
        if header.step > head.step:
            raise Refusal(Code.FUTURE, f"the next step is {head.step}, not {header.step}")
        roster = check_header(head, header, self.manifest)
        self._check_votes(certificate, verify)
        audits = following_audits(head, header, roster, self.manifest.audit.rate)
        checked = header.parts if header.projections else ()
        owed = owed_after(head, header, audits) if self.manifest.audit.rate else ()
        return Head(head.step + 1, header_digest(header), roster, Digest(header.beacon), audits, checked, owed)

    def extend(self, certificate: Certificate, verify: Verify) -> None:
        """Append a certificate. Raises Refusal as `check` does; the chain is unchanged then."""
        self.head = self.check(certificate, verify)
        self.bans += [(certificate.header.step, ban) for ban in certificate.header.bans]
        del self.bans[: -limits.BANNED_MAX]

    def _check_votes(self, certificate: Certificate, verify: Verify) -> None:
        header, roster = certificate.header, self.head.roster
        indexes = [index for index, _, _ in certificate.votes]
        if indexes != sorted(set(indexes)) or indexes[-1] >= len(roster):
            raise Refusal(Code.BAD_CERTIFICATE, "votes must come from distinct members, by rising index")
        needed = quorum_of(len(roster), self.manifest.quorum)
        if len(indexes) < needed:
            raise Refusal(Code.BAD_CERTIFICATE, f"{len(indexes)} votes where {needed} are needed")
        for index, view, signature in certificate.votes:
            peer = roster.peers[index]
            if not verify(peer, vote_message(self.run_id, header, view, peer), signature):
                raise Refusal(Code.BAD_CERTIFICATE, f"the vote of member {index} is not signed by it")
