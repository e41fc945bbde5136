"""Test vectors: what another implementation must reproduce bit by bit, in `tests/vectors/*.json`.

The idea: every file has one maker here. The test compares what the rules say today with what is stored; a change of
any digest, draw or encoding shows up as a difference in a file that other people rely on. Signatures here are real
Ed25519. `CROWDSURF_WRITE_VECTORS=1 pytest tests/protocol/test_vectors.py` writes the files anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crowdsurf.protocol import assignment, beacon, wire
from crowdsurf.protocol.cases import imbalance_of, objection_to, proof_of, subject_of
from crowdsurf.protocol.chain import Chain, Head, genesis, vote_message
from crowdsurf.protocol.envelope import Equivocation, Slot, decode_envelope, open_envelope, seal, signed_bytes
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.events import AggregatesChecked
from crowdsurf.protocol.ids import (
    Digest,
    PeerId,
    digest,
    finding_digest,
    peer_id_from_public_key,
    peer_text,
    public_key_of,
)
from crowdsurf.protocol.manifest import (
    DeadlineSection,
    Manifest,
    OptimizerSection,
    TaskSection,
    decode_manifest,
    encode_manifest,
    run_id_of,
)
from crowdsurf.protocol.messages import (
    PAYLOAD_TYPES,
    Accusation,
    Aggregate,
    Ban,
    Certificate,
    Commit,
    Cut,
    Header,
    Join,
    Kind,
    Leave,
    Payload,
    Projection,
    Reason,
    Reveal,
    Verdict,
    ViewChange,
    Vote,
    payload_digest,
)
from crowdsurf.protocol.outcome import StepFacts, build_header, opened_beacon
from crowdsurf.protocol.projection import Line, clipping_of
from crowdsurf.protocol.roster import Member, Roster
from crowdsurf.protocol.scrutiny import Scrutiny
from crowdsurf.protocol.transcript import Transcript

FOLDER = Path(__file__).parents[1] / "vectors"
Cases = list[dict[str, Any]]


class Key:
    """An Ed25519 key made from a number, as a signer for the rules."""

    def __init__(self, number: int) -> None:
        self.seed = number.to_bytes(32, "big")
        self._key = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def peer_id(self) -> PeerId:
        return peer_id_from_public_key(self.public)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def nonce(self, label: bytes) -> bytes:
        return digest("test nonce", self.seed + label)


def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
    """Plain Ed25519."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer)).verify(signature, message)
    except InvalidSignature:
        return False
    return True


KEYS = [Key(number) for number in range(1, 5)]
A, B = Digest(bytes(range(32))), Digest(bytes(range(32, 64)))
MANIFEST = Manifest(
    name="vectors",
    organizer=KEYS[0].peer_id,
    founders=tuple(key.peer_id for key in KEYS),
    task=TaskSection(name="digits", parameters={"width": 64, "rate": 0.5, "shuffle": True, "model": "mlp"}),
    optimizer=OptimizerSection(name="sgd", learning_rate=0.1),
    deadlines=DeadlineSection(delivery_seconds=0.5),
    seed=7,
    steps=100,
)
RUN_ID = run_id_of(MANIFEST)


def contexts() -> Cases:
    """Derive-key contexts of every kind of thing that is digested."""
    names = ["blob", "payload", "envelope", "manifest", "genesis", "first beacon", "beacon", "nonce", "roster"]
    names += ["state", "finding", "aggregation seed"]
    draws = ["draw proposers", "draw aggregators", "draw work", "draw audits"]
    return [
        {"context": context, "data": data.hex(), "digest": digest(context, data).hex()}
        for context in names + draws
        for data in (b"", A)
    ]


def peer_ids() -> Cases:
    """Public keys and the peer ids made of them."""
    return [{"public_key": k.public.hex(), "peer_id": k.peer_id.hex(), "text": peer_text(k.peer_id)} for k in KEYS]


def header(*bans: Ban) -> Header:
    return Header(3, A, B, A, B, b"\x05", (A, b"", B, A), (A, b"", B, b""), B, (KEYS[3].peer_id,), (), A, b"\x04", bans)


def projection() -> Projection:
    """Of an aggregate that two members went in to; the lines do not add up."""
    return Projection(A, 1, B, b"\x05", 1.25, ((0.5, -0.25, 0.0, 1.0), (0.5, 0.25, 0.0, 2.0)))


def accusations() -> list[Accusation]:
    """A commit signed twice and lines that do not add up, with their proofs, a wrong gradient, and a line that is not
    so."""
    slot = Slot(3, 0, Kind.COMMIT, b"")
    pair = Equivocation(*(seal(KEYS[1], RUN_ID, slot, Reveal(A, nonce)).envelope for nonce in (A, B)))
    shown = seal(KEYS[1], RUN_ID, Slot(3, 0, Kind.PROJECTION, A + b"\x00\x01"), projection())
    return [
        Accusation(KEYS[1].peer_id, Reason.EQUIVOCATION, 3, proof_of(pair)),
        Accusation(KEYS[2].peer_id, Reason.WRONG_GRADIENT, 2),
        imbalance_of(shown),
        objection_to(shown, 2),
    ]


def payloads() -> list[tuple[Kind, Payload]]:
    commit = Commit(A, B, (A, B), A, 2.302585, 32, (KEYS[2].peer_id,), ())
    return [
        (Kind.COMMIT, commit),
        (Kind.PROPOSAL, Cut(A, ((0, A), (2, B)))),
        (Kind.AGGREGATE, Aggregate(A, 1, B, b"\x05")),
        (Kind.REVEAL, Reveal(A, B)),
        (Kind.REVEAL, Reveal(A, B, (B, b""))),
        (Kind.PROJECTION, projection()),
        (Kind.OUTCOME, header()),
        (Kind.VOTE, Vote(A)),
        (Kind.VIEW_CHANGE, ViewChange(None, 0)),
        (Kind.VIEW_CHANGE, ViewChange(header(), 2)),
        (Kind.JOIN, Join()),
        (Kind.LEAVE, Leave()),
        (Kind.COMMIT, Commit(A, B, (A, B), A, 2.302585, 32, norms=(1.5, 0.0))),
        (Kind.COMMIT, Commit(A, B, (), A, 0.0, 0, finding=B)),
        (Kind.OUTCOME, header(Ban(KEYS[1].peer_id, Reason.EQUIVOCATION, 2, A))),
        (Kind.OUTCOME, msgspec.structs.replace(header(), projections=(B, b"", A, A))),
        *((Kind.ACCUSATION, accusation) for accusation in accusations()),
        (Kind.VERDICT, Verdict(A, KEYS[2].peer_id)),
    ]


def subject(payload: Payload) -> bytes:
    """The subject of a payload's slot."""
    if isinstance(payload, Aggregate | Projection):
        return A + b"\x00\x01"
    if isinstance(payload, Accusation):
        return subject_of(payload)
    return payload.case if isinstance(payload, Verdict) else b""


def encodings() -> Cases:
    """Canonical bytes and name of a payload of every kind; floats and bytes stand in `fields` as text."""
    return [
        {
            "kind": int(kind),
            "fields": json.loads(json.dumps(msgspec.to_builtins(payload, builtin_types=(bytes,)), default=bytes.hex)),
            "bytes": wire.pack(payload).hex(),
            "payload_digest": payload_digest(wire.pack(payload)).hex(),
        }
        for kind, payload in payloads()
    ]


REFUSED = {
    "array16 for one element": b"\xdc\x00\x01\xc4\x20" + A,
    "text for bytes": b"\x91\xd9\x20" + b"a" * 32,
    "bin16 for 32 bytes": b"\x91\xc5\x00\x20" + A,
    "31 bytes": b"\x91\xc4\x1f" + A[:31],
    "a second field": b"\x92\xc4\x20" + A + b"\xc0",
    "no field": b"\x90",
    "trailing byte": b"\x91\xc4\x20" + A + b"\x00",
    "cut short": b"\x91\xc4\x20" + A[:30],
    "nothing": b"",
}


def refused_encodings() -> Cases:
    """Byte strings that are no vote, and the code each is refused with."""
    cases = []
    for why, data in REFUSED.items():
        with pytest.raises(Refusal) as caught:
            wire.unpack(data, Vote, 100)
        cases.append({"why": why, "bytes": data.hex(), "code": caught.value.code.value})
    return cases


def signed() -> Cases:
    """What is signed for a message of every kind, the Ed25519 signature, and the whole envelope."""
    cases = []
    for number, (kind, payload) in enumerate(payloads()):
        key = KEYS[number % 4]
        view = 2 if kind is Kind.VIEW_CHANGE else 0
        slot = Slot(3, view, kind, subject(payload))
        opened = seal(key, RUN_ID, slot, payload)
        message = signed_bytes(1, RUN_ID, slot, opened.digest, key.peer_id)
        cases.append(
            {
                "private_key": key.seed.hex(),
                "run_id": RUN_ID.hex(),
                "slot": [slot.step, slot.view, int(slot.kind), slot.subject.hex()],
                "payload": opened.envelope.payload.hex(),
                "signed_bytes": message.hex(),
                "signature": opened.envelope.signature.hex(),
                "envelope": wire.pack(opened.envelope).hex(),
            }
        )
    return cases


def beacons() -> Cases:
    """The first beacon, the next one, and draws from it."""
    following = [(A, B), (B, A), (A, b""), ()]
    return [
        {"first_beacon": beacon.first_beacon(RUN_ID).hex(), "run_id": RUN_ID.hex()},
        {"nonce": A.hex(), "nonce_digest": beacon.nonce_digest(A).hex()},
        *(
            {"previous": A.hex(), "nonces": [n.hex() for n in ns], "next_beacon": beacon.next_beacon(A, ns).hex()}
            for ns in following
        ),
        {"beacon": A.hex(), "label": "work", "subject": B.hex(), "derived": beacon.derive(A, "work", B).hex()},
        *(
            {"beacon": A.hex(), "label": "test", "count": count, "shuffle": beacon.shuffle(A, "test", count)}
            for count in (0, 1, 2, 5, 16, 256)
        ),
    ]


def assignments() -> Cases:
    """Proposers, aggregators, audits, seeds and ranges that follow from a beacon."""
    peers = sorted(key.peer_id for key in KEYS)
    missed = [0, 2, 0, 1]
    roster = Roster(tuple(Member(peer, 0, count) for peer, count in zip(peers, missed, strict=True)))
    return [
        {"beacon": A.hex(), "missed": missed, "proposers": assignment.proposers(A, roster, 0)},
        *(
            {
                "beacon": A.hex(),
                "contributors": list(members),
                "parts": parts,
                "aggregators": list(assignment.aggregators(A, members, parts)),
            }
            for members, parts in (((0,), 1), ((0, 1, 2, 3), 4), ((0, 2, 3), 4), ((1, 4, 5, 9), 10))
        ),
        *(
            {"members": members, "rate": rate, "validators": assignment.validators_of(members, rate)}
            for members, rate in ((1, 0.5), (2, 0.0625), (16, 0.0), (16, 0.0625), (40, 0.0625), (7, 0.5))
        ),
        *(
            {
                "beacon": A.hex(),
                "pool": [peer.hex() for peer in peers],
                "members": [peer.hex() for peer in members],
                "idle": [peer.hex() for peer in idle],
                "count": count,
                "audits": [
                    [one.hex(), other.hex()]
                    for one, other in assignment.audits(A, peers, set(members), set(idle), count)
                ],
            }
            for members, idle, count in (
                (peers, [], 1),
                (peers, [], 2),
                (peers, peers[:1], 2),
                (peers, peers[1:], 2),
                (peers[:1], [], 2),
            )
        ),
        *(
            {"beacon": A.hex(), "part": part, "projection_seed": assignment.projection_seed(A, part).hex()}
            for part in (0, 255)
        ),
        {"finder": peers[0].hex(), "gradient": (A + B).hex(), "finding": finding_digest(peers[0], A + B).hex()},
        *({"beacon": A.hex(), "peer": p.hex(), "work_seed": assignment.work_seed(A, p).hex()} for p in peers),
        *(
            {"elements": elements, "parts": parts, "ranges": [list(r) for r in assignment.part_ranges(elements, parts)]}
            for elements, parts in ((10, 3), (7, 7), (1000, 6))
        ),
    ]


class Trouble(NamedTuple):
    """What goes wrong in a step, by member index."""

    absent: int | None = None
    lost_part: int | None = None
    silent: int | None = None
    banned: int | None = None
    is_excused: bool = False
    """Its validators find nothing."""


LINES = ((0.0, 0.0, 0.0, 0.5),) * 4


def content(step: int, aggregates: tuple[bytes, ...], opened: bytes) -> Scrutiny | None:
    """A validator that has nothing against these aggregates."""
    clipping = clipping_of(MANIFEST)
    if clipping is None:
        return None
    scrutiny = Scrutiny(clipping, 0)
    scrutiny.to_check(step, aggregates, Digest(opened))
    scrutiny.on_checked(AggregatesChecked(step, aggregates, opened, (), (Line((0.0,) * 3, 1.0),) * len(aggregates)))
    return scrutiny


def certified_step(head: Head, trouble: Trouble) -> Certificate:
    """A step as its members would have done it, certified by three of them."""
    by_peer = {key.peer_id: key for key in KEYS}
    size = len(head.roster)
    facts = StepFacts(MANIFEST, head, digest("state", bytes([head.step])))
    heard, members = Transcript(), [index for index in range(size) if index != trouble.absent]
    keys = [by_peer[peer] for peer in head.roster.peers]
    blobs: set[bytes] = set()
    for index in members:
        nonce = beacon.nonce_digest(keys[index].nonce(head.previous))
        parts = tuple(digest("test part", bytes([index, part])) for part in range(size))
        payload = Commit(head.previous, facts.state, parts, nonce, 1.0, 32, norms=(1.0,) * size)
        if index in head.validators:
            finding = b"" if trouble.is_excused else digest("test finding", bytes([index]))
            payload = Commit(head.previous, facts.state, (), nonce, 0.0, 0, finding=finding)
        heard.add(seal(keys[index], RUN_ID, Slot(head.step, 0, Kind.COMMIT, b""), payload))
    commits = tuple((index, heard.commits[head.roster.peers[index]].digest) for index in members)
    cut = Cut(head.previous, commits)
    name = payload_digest(wire.pack(cut))
    working = facts.of_cut(cut).working
    included, lines = working.to_bytes(1, "little"), LINES[: working.bit_count()]
    for part, aggregator in enumerate(facts.duties(cut)):
        blob = digest("test aggregate", bytes([head.step, part]))
        blobs |= {blob} if part != trouble.lost_part else set()
        slot = Slot(head.step, 0, Kind.AGGREGATE, name + part.to_bytes(2, "big"))
        heard.add(seal(by_peer[aggregator], RUN_ID, slot, Aggregate(name, part, blob, included)))
        slot = Slot(head.step, 0, Kind.PROJECTION, slot.subject)
        heard.add(seal(by_peer[aggregator], RUN_ID, slot, Projection(name, part, blob, included, 1.0, lines)))
    named = tuple(digest("test aggregate", bytes([head.step, part])) for part in range(size))
    for index in members:
        reveal = Reveal(name, keys[index].nonce(head.previous), named)
        if index != trouble.silent:
            heard.add(seal(keys[index], RUN_ID, Slot(head.step, 0, Kind.REVEAL, b""), reveal))
    convictions: dict[bytes, Ban] = {}
    if trouble.banned is not None:
        convictions[A] = Ban(head.roster.peers[trouble.banned], Reason.WRONG_GRADIENT, head.step - 1, A)
    outcome = build_header(
        facts, heard, blobs, name, cut, convictions, content(head.step, named, opened_beacon(facts, heard, cut) or A)
    )
    votes = [(i, i, keys[i].sign(vote_message(RUN_ID, outcome, i, keys[i].peer_id))) for i in members]
    return Certificate(outcome, tuple(votes[:3]))


def certified_steps() -> list[Certificate]:
    """Five certified steps of the run above: one with everybody, one without member 1 and a part, one void because
    member 2 keeps its nonce to itself, one of those that are left, and one that bans member 0 and whose validator
    found nothing."""
    follower, certificates = Chain(MANIFEST), []
    last = Trouble(banned=0, is_excused=True)
    troubles = (Trouble(), Trouble(absent=1, lost_part=2), Trouble(silent=2), Trouble(), last)
    for trouble in troubles:
        certificates.append(certified_step(follower.head, trouble))
        follower.extend(certificates[-1], verify)
    return certificates


def chain() -> Cases:
    """A manifest, the head before step 0, and certificates with the heads they lead to."""
    follower = Chain(MANIFEST)
    cases: Cases = [{"manifest": encode_manifest(MANIFEST).hex(), "run_id": RUN_ID.hex(), "head": described(follower)}]
    for certificate in certified_steps():
        follower.extend(certificate, verify)
        cases.append({"certificate": wire.pack(certificate).hex(), "head": described(follower)})
    return cases


def described(follower: Chain) -> dict[str, Any]:
    head = follower.head
    return {
        "step": head.step,
        "previous": head.previous.hex(),
        "beacon": head.beacon.hex(),
        "roster": [[peer_text(PeerId(m.peer)), m.joined, m.missed, m.strikes] for m in head.roster.members],
        "banned": [peer_text(PeerId(peer)) for peer in head.roster.banned],
        "resting": [[peer_text(PeerId(rest.peer)), rest.until, rest.times] for rest in head.roster.resting],
        "roster_digest": head.roster.digest.hex(),
        "audits": [[peer_text(a.validator), peer_text(a.target), a.step, a.seed.hex(), a.parts] for a in head.audits],
    }


MAKERS: dict[str, Callable[[], Cases]] = {
    "digest_contexts.json": contexts,
    "peer_ids.json": peer_ids,
    "encodings.json": encodings,
    "refused_encodings.json": refused_encodings,
    "signed_messages.json": signed,
    "beacon.json": beacons,
    "assignments.json": assignments,
    "chain.json": chain,
}


def load(name: str) -> Cases:
    cases: Cases = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return cases


@pytest.mark.parametrize("name", MAKERS)
def test_the_rules_still_say_what_the_file_says(name: str) -> None:
    made = json.loads(json.dumps(MAKERS[name]()))
    path = FOLDER / name
    if os.environ.get("CROWDSURF_WRITE_VECTORS") == "1":
        path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    assert load(name) == made


def test_every_vector_file_is_consumed() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*MAKERS, "README.md"}


def test_the_stored_chain_verifies_from_its_bytes_alone() -> None:
    first, *steps = load("chain.json")
    follower = Chain(decode_manifest(bytes.fromhex(first["manifest"])))
    assert follower.run_id.hex() == first["run_id"]
    assert genesis(follower.manifest) == follower.head
    for case in steps:
        follower.extend(wire.unpack(bytes.fromhex(case["certificate"]), Certificate, 1 << 17), verify)
        assert described(follower) == case["head"]
    assert follower.head.step == 5
    assert (len(follower.head.roster), len(follower.head.roster.banned), len(follower.head.roster.resting)) == (2, 1, 1)
    assert [len(case["head"]["audits"]) for case in steps] == [1, 1, 0, 1, 1]


def test_stored_messages_open_and_stop_opening_when_a_bit_changes() -> None:
    for case in load("signed_messages.json"):
        envelope = decode_envelope(bytes.fromhex(case["envelope"]))
        opened = open_envelope(envelope, bytes.fromhex(case["run_id"]), verify)
        assert isinstance(opened.payload, PAYLOAD_TYPES[Kind(case["slot"][2])])
        broken = msgspec.structs.replace(envelope, step=envelope.step + 1)
        with pytest.raises(Refusal):
            open_envelope(broken, bytes.fromhex(case["run_id"]), verify)
