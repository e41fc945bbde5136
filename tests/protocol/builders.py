"""One step made by hand: what its members say when all goes well, for tests of single rules.

The idea: `CompleteStep` holds every message of an undisturbed step, its cut and its header, so that a test changes
exactly one thing and sees exactly one refusal. Signatures are the keyed digests of `swarm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
import pytest

from crowdsurf.protocol import wire
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.chain import Head, genesis, vote_message
from crowdsurf.protocol.envelope import Opened, Slot, seal
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.events import AggregatesChecked
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import Manifest, run_id_of
from crowdsurf.protocol.messages import (
    Aggregate,
    Certificate,
    Commit,
    Cut,
    Header,
    Kind,
    Payload,
    Projection,
    Reveal,
    bitmap_of,
    indexes_of,
    payload_digest,
)
from crowdsurf.protocol.outcome import StepFacts, build_header, opened_beacon
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.scrutiny import Scrutiny, absent_from
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.swarm import RIGHT, FakeSigner, manifest_for, name


def digest_of(payload: msgspec.Struct) -> Digest:
    """The payload digest of a structure."""
    return payload_digest(wire.pack(payload))


def refused(action: Callable[[], object], code: Code) -> str:
    """Run something that must be refused with this code; the detail."""
    with pytest.raises(Refusal) as caught:
        action()
    assert caught.value.code is code, caught.value
    return caught.value.detail


def certificate_of(manifest: Manifest, header: Header, voters: Iterable[tuple[int, FakeSigner]]) -> Certificate:
    """A certificate with real votes of these members, in view 0."""
    run_id = run_id_of(manifest)
    votes = tuple(
        (index, 0, signer.sign(vote_message(run_id, header, 0, signer.peer_id))) for index, signer in sorted(voters)
    )
    return Certificate(header, votes)


class CompleteStep:
    """Step `head.step` of a swarm of `count` peers in which `contributors` took part and nothing went wrong."""

    def __init__(
        self,
        count: int = 4,
        contributors: Iterable[int] | None = None,
        head: Head | None = None,
        joins: Mapping[int, tuple[bytes, ...]] | None = None,
        leaves: Mapping[int, tuple[bytes, ...]] | None = None,
        **changes: object,
    ) -> None:
        signers = [FakeSigner(number) for number in range(count)]
        self.manifest = manifest_for(signers, **changes)
        self.run_id = run_id_of(self.manifest)
        self.head = genesis(self.manifest) if head is None else head
        by_peer = {signer.peer_id: signer for signer in signers}
        self.signers = [by_peer[peer] for peer in self.head.roster.peers]
        """By member index."""
        size = len(self.peers)
        self.facts = StepFacts(self.manifest, self.head, name("state", self.head.step))
        self.contributors = list(range(size)) if contributors is None else sorted(contributors)
        self.transcript = Transcript()
        self.blobs: set[bytes] = set()
        for index in self.contributors:
            self.add(self.say(index, Kind.COMMIT, self.commit(index, joins or {}, leaves or {})))
        self.cut = Cut(self.head.previous, tuple((i, self.commit_name(i)) for i in self.contributors))
        self.cut_name = digest_of(self.cut)
        self.add(self.say(0, Kind.PROPOSAL, self.cut))
        for part in range(size):
            self.add(self.aggregate(part))
            self.blobs.add(name("aggregate", part))
        named = tuple(name("aggregate", part) for part in range(size)) if self.facts.clipping is not None else ()
        for index in self.contributors:
            self.add(self.say(index, Kind.REVEAL, Reveal(self.cut_name, name("nonce", index), named)))
        self.scrutiny = self.look_at(named)
        for part in range(len(named)):
            self.add(self.say(self.aggregator(part), Kind.PROJECTION, self.projection(part), 0, self.subject(part)))
        self.header = build_header(*self.held(), self.cut_name, self.cut, scrutiny=self.scrutiny)

    def held(self) -> tuple[StepFacts, Transcript, set[bytes]]:
        """What judging a header takes first."""
        return self.facts, self.transcript, self.blobs

    def look_at(
        self, aggregates: tuple[bytes, ...], own: Line = RIGHT, norm: float = 1.0, me: int = 0
    ) -> Scrutiny | None:
        """What a member makes of these aggregates, where they are checked."""
        if self.facts.clipping is None:
            return None
        scrutiny, count = Scrutiny(self.facts.clipping, me), len(aggregates)
        beacon = opened_beacon(self.facts, self.transcript, self.cut) or name("beacon")
        nothings = (Line(RIGHT.projections, norm),) * count
        scrutiny.to_check(self.head.step, aggregates, beacon)
        scrutiny.on_checked(AggregatesChecked(self.head.step, aggregates, beacon, (own,) * count, nothings))
        return scrutiny

    def projection(self, part: int, /, **changes: object) -> Projection:
        """What the aggregator of a part publishes about it."""
        said = self.transcript.aggregate(self.cut_name, part, self.peers[self.aggregator(part)])
        assert said is not None
        absent = absent_from(said.included, self.transcript.commits_in(self.cut, self.peers))
        lines = ((*RIGHT.projections, RIGHT.norm),) * (len(indexes_of(said.included)) + (absent > 0))
        shown = Projection(self.cut_name, part, said.digest, said.included, 1.0, lines, absent)
        return msgspec.structs.replace(shown, **changes)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return self.head.roster.peers

    def commit(
        self, index: int, joins: Mapping[int, tuple[bytes, ...]], leaves: Mapping[int, tuple[bytes, ...]]
    ) -> Commit:
        validates = index in self.head.validators
        parts = tuple(name("part", index, part) for part in range(0 if validates else len(self.peers)))
        return Commit(
            previous=self.head.previous,
            state=self.facts.state,
            parts=parts,
            nonce_digest=nonce_digest(name("nonce", index)),
            loss=1.5,
            samples=32,
            joins=joins.get(index, ()),
            leaves=leaves.get(index, ()),
            finding=name("finding", index) if validates else b"",
            norms=(1.0,) * len(parts) if self.facts.clipping is not None else (),
        )

    def commit_name(self, index: int) -> Digest:
        return self.transcript.commits[self.peers[index]].digest

    def aggregator(self, part: int) -> int:
        return self.peers.index(self.facts.duties(self.cut)[part])

    def aggregate(self, part: int) -> Opened:
        working = [index for index in self.contributors if index not in self.head.validators]
        included = bitmap_of(working, len(self.peers))
        payload = Aggregate(self.cut_name, part, name("aggregate", part), included)
        return self.say(self.aggregator(part), Kind.AGGREGATE, payload, subject=self.subject(part))

    def subject(self, part: int) -> bytes:
        return self.cut_name + part.to_bytes(2, "big")

    def say(self, index: int, kind: Kind, payload: Payload, view: int = 0, subject: bytes = b"") -> Opened:
        """A message signed by a member, not recorded."""
        return seal(self.signers[index], self.run_id, Slot(self.head.step, view, kind, subject), payload)

    def add(self, opened: Opened) -> Opened:
        assert self.transcript.check_slot(opened) is None
        self.transcript.add(opened)
        return opened

    def certificate(self, voters: Iterable[int] | None = None, header: Header | None = None) -> Certificate:
        """The header with the votes of these members (all of them by default)."""
        chosen = range(len(self.peers)) if voters is None else voters
        return certificate_of(
            self.manifest, self.header if header is None else header, [(i, self.signers[i]) for i in chosen]
        )
