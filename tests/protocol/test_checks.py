"""What one message of a step must satisfy: each check refuses with its own code."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest

from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.checks import (
    check_aggregate,
    check_commit,
    check_cut,
    check_lock,
    check_projection,
    check_proposer,
    check_reveal,
    check_slot_form,
)
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Aggregate,
    Cut,
    Kind,
    Prepare,
    Projection,
    Reveal,
    ViewChange,
    bitmap_of,
    header_digest,
)
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import name, verify_mac

STEP = CompleteStep(4)
COMMIT = STEP.commit(0, {}, {})
PAIR = (STEP.peers[0], STEP.peers[1])


def test_good_messages_pass() -> None:
    check_commit(STEP.facts, STEP.peers[0], COMMIT)
    check_cut(STEP.facts, STEP.cut)
    check_proposer(STEP.peers[0], 0, STEP.peers[0])
    check_reveal(STEP.facts, STEP.transcript, STEP.peers[1], Reveal(STEP.cut_name, name("nonce", 1)))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"previous": name("other")}, Code.WRONG_CHAIN),
        ({"state": name("other")}, Code.BAD_COMMIT),
        ({"parts": COMMIT.parts[:3]}, Code.BAD_COMMIT),
        ({"parts": (*COMMIT.parts, bytes(32))}, Code.BAD_COMMIT),
        ({"joins": tuple(reversed(PAIR))}, Code.BAD_COMMIT),
        ({"leaves": (PAIR[0], PAIR[0])}, Code.BAD_COMMIT),
        ({"heard": b"\x10"}, Code.BAD_COMMIT),
        ({"heard": b"\x01\x00"}, Code.BAD_COMMIT),
        ({"transfer_seconds": -1.0}, Code.BAD_COMMIT),
        ({"transfer_seconds": float("nan")}, Code.BAD_COMMIT),
        ({"transfer_seconds": float("inf")}, Code.BAD_COMMIT),
    ],
)
def test_bad_commits(changes: dict[str, Any], code: Code) -> None:
    refused(lambda: check_commit(STEP.facts, STEP.peers[0], msgspec.structs.replace(COMMIT, **changes)), code)


def test_a_validators_commit_has_a_finding_and_no_parts_and_nobody_elses_has_one() -> None:
    first = CompleteStep(4, audit=AuditSection(rate=0.25))
    chain = Chain(first.manifest)
    chain.extend(first.certificate(), verify_mac)
    step = CompleteStep(4, head=chain.head, audit=AuditSection(rate=0.25))
    (validator,) = step.head.validators
    other = (validator + 1) % 4
    finding, work = step.commit(validator, {}, {}), step.commit(other, {}, {})
    check_commit(step.facts, step.peers[validator], finding)
    check_commit(step.facts, step.peers[other], work)
    for sender, commit in ((validator, work), (other, finding)):
        refused(partial(check_commit, step.facts, step.peers[sender], commit), Code.BAD_COMMIT)
    check_commit(step.facts, step.peers[validator], msgspec.structs.replace(finding, finding=b""))
    half = msgspec.structs.replace(finding, finding=finding.finding[:16])
    refused(lambda: check_commit(step.facts, step.peers[validator], half), Code.BAD_COMMIT)


def test_an_aggregate_that_includes_a_validator_is_refused() -> None:
    first = CompleteStep(4, audit=AuditSection(rate=0.25))
    chain = Chain(first.manifest)
    chain.extend(first.certificate(), verify_mac)
    step = CompleteStep(4, head=chain.head, audit=AuditSection(rate=0.25))
    good = step.aggregate(0)
    assert isinstance(good.payload, Aggregate)
    check_aggregate(step.facts, step.transcript, good, good.payload)
    everybody = msgspec.structs.replace(good.payload, included=bitmap_of(list(range(4)), 4))
    refused(lambda: check_aggregate(step.facts, step.transcript, good, everybody), Code.BAD_AGGREGATE)


def test_only_the_views_proposer_proposes() -> None:
    refused(lambda: check_proposer(STEP.peers[1], 3, STEP.peers[0]), Code.WRONG_PROPOSER)


@pytest.mark.parametrize(
    ("commits", "code"),
    [
        (STEP.cut.commits[:2], Code.BAD_PROPOSAL),
        (tuple(reversed(STEP.cut.commits)), Code.BAD_PROPOSAL),
        ((*STEP.cut.commits[:3], STEP.cut.commits[2]), Code.BAD_PROPOSAL),
        ((*STEP.cut.commits[:3], (4, bytes(32))), Code.BAD_PROPOSAL),
    ],
)
def test_bad_cuts(commits: Any, code: Code) -> None:
    refused(lambda: check_cut(STEP.facts, Cut(STEP.head.previous, commits)), code)


HEADER = header_digest(STEP.header)


def proof(*members: int, view: int = 0, header: bytes = HEADER) -> tuple[tuple[int, bytes], ...]:
    """Prepares of these members, as a request for a view shows them."""
    said = [STEP.say(member, Kind.PREPARE, Prepare(header), view) for member in members]
    return tuple((member, opened.envelope.signature) for member, opened in zip(members, said, strict=True))


def test_what_is_shown_for_a_lock_is_a_quorum_of_prepares() -> None:
    def check(change: ViewChange) -> None:
        said = STEP.say(0, Kind.VIEW_CHANGE, change, 2)
        check_lock(said, STEP.head.roster, 3, verify_mac)

    check(ViewChange(None, 0))
    check(ViewChange(STEP.header, 0))
    check(ViewChange(STEP.header, 0, proof(0, 1, 3)))
    check(ViewChange(STEP.header, 1, proof(1, 2, 3, view=1)))
    another_step = msgspec.structs.replace(STEP.header, step=1)
    for change in (
        ViewChange(STEP.header, 0, proof(0, 1)),
        ViewChange(STEP.header, 0, proof(0, 1, 2, 3)),
        ViewChange(STEP.header, 0, proof(0, 3, 1)),
        ViewChange(STEP.header, 0, proof(0, 1, 1)),
        ViewChange(STEP.header, 0, (*proof(0, 1), (4, bytes(64)))),
        ViewChange(STEP.header, 0, proof(0, 1, 2, view=1)),
        ViewChange(STEP.header, 0, proof(0, 1, 2, header=name("another header"))),
        ViewChange(STEP.header, 0, (*proof(0, 1), (2, proof(3)[0][1]))),
        ViewChange(STEP.header, 2, proof(0, 1, 2, view=2)),
        ViewChange(None, 0, proof(0, 1, 2)),
        ViewChange(another_step, 0, proof(0, 1, 2, header=header_digest(another_step))),
    ):
        refused(partial(check, change), Code.BAD_CERTIFICATE)


def test_a_cut_of_another_chain() -> None:
    refused(lambda: check_cut(STEP.facts, Cut(name("other"), STEP.cut.commits)), Code.WRONG_CHAIN)


def aggregate(sender: int, subject: bytes, **changes: Any) -> None:
    good = Aggregate(STEP.cut_name, 1, name("aggregate", 1), bitmap_of({0, 1, 2, 3}, 4))
    payload = msgspec.structs.replace(good, **changes)
    check_aggregate(STEP.facts, STEP.transcript, STEP.say(sender, Kind.AGGREGATE, payload, 0, subject), payload)


def test_bad_aggregates() -> None:
    mine, other = STEP.aggregator(1), (STEP.aggregator(1) + 1) % 4
    aggregate(mine, STEP.subject(1))
    for sender, subject, changes in (
        (mine, STEP.subject(2), {}),
        (mine, b"", {}),
        (mine, STEP.subject(1), {"part": 2}),
        (mine, STEP.subject(1), {"cut": name("other")}),
        (mine, STEP.cut_name + b"\0\4", {"part": 4}),
        (other, STEP.subject(1), {}),
        (mine, STEP.subject(1), {"included": b""}),
        (mine, STEP.subject(1), {"included": b"\x1f"}),
    ):
        refused(partial(aggregate, sender, subject, **changes), Code.BAD_AGGREGATE)


def test_an_aggregate_of_a_cut_not_heard_yet_waits() -> None:
    payload = Aggregate(STEP.cut_name, 1, name("aggregate", 1), b"\1")
    opened = STEP.say(0, Kind.AGGREGATE, payload, 0, STEP.subject(1))
    check_aggregate(STEP.facts, Transcript(), opened, payload)


def test_bad_reveals() -> None:
    wrong = Reveal(STEP.cut_name, name("nonce", 2))
    refused(lambda: check_reveal(STEP.facts, STEP.transcript, STEP.peers[1], wrong), Code.BAD_REVEAL)
    refused(lambda: check_reveal(STEP.facts, Transcript(), STEP.peers[2], wrong), Code.FUTURE)


# --- where aggregates are checked ----------------------------------------------------------------------------

CHECKED = CompleteStep(4, audit=AuditSection(rate=0.25))


@pytest.mark.parametrize("norms", [(), (1.0,) * 3, (1.0,) * 5, (-1.0, *(1.0,) * 3)])
def test_a_commit_says_how_long_every_part_is(norms: tuple[float, ...]) -> None:
    good = CHECKED.commit(0, {}, {})
    check_commit(CHECKED.facts, CHECKED.peers[0], good)
    bad = msgspec.structs.replace(good, norms=norms)
    refused(lambda: check_commit(CHECKED.facts, CHECKED.peers[0], bad), Code.BAD_COMMIT)
    nan = msgspec.structs.replace(good, norms=(float("nan"), *(1.0,) * 3))
    refused(lambda: check_commit(CHECKED.facts, CHECKED.peers[0], nan), Code.BAD_COMMIT)


def test_where_nothing_is_checked_no_lengths_and_no_aggregates_are_named() -> None:
    with_norms = msgspec.structs.replace(COMMIT, norms=(1.0,) * 4)
    refused(lambda: check_commit(STEP.facts, STEP.peers[0], with_norms), Code.BAD_COMMIT)
    named = Reveal(STEP.cut_name, name("nonce", 1), (b"",) * 4)
    refused(lambda: check_reveal(STEP.facts, STEP.transcript, STEP.peers[1], named), Code.BAD_REVEAL)


@pytest.mark.parametrize("named", [(), (b"",) * 3, (b"",) * 5])
def test_a_reveal_says_of_every_part_what_was_heard(named: tuple[bytes, ...]) -> None:
    facts, transcript = CHECKED.facts, CHECKED.transcript
    check_reveal(facts, transcript, CHECKED.peers[1], Reveal(CHECKED.cut_name, name("nonce", 1), (b"",) * 4))
    bad = Reveal(CHECKED.cut_name, name("nonce", 1), named)
    refused(lambda: check_reveal(facts, transcript, CHECKED.peers[1], bad), Code.BAD_REVEAL)


def project(step: CompleteStep, sender: int, subject: bytes, transcript: Transcript, **changes: Any) -> None:
    payload = msgspec.structs.replace(CHECKED.projection(1), **changes)
    opened = step.say(sender, Kind.PROJECTION, payload, 0, subject)
    assert isinstance(opened.payload, Projection)
    check_slot_form(opened.envelope)
    check_projection(step.facts, transcript, opened, payload)


def test_bad_projections() -> None:
    mine, other = CHECKED.aggregator(1), (CHECKED.aggregator(1) + 1) % 4
    good = partial(project, CHECKED, mine, CHECKED.subject(1), CHECKED.transcript)
    good()
    good(lines=((9.0, 9.0, 9.0, -1.0),) * 4)  # whatever they say: lines that do not add up are proof
    for step, sender, subject, changes in (
        (CHECKED, mine, CHECKED.subject(2), {}),
        (CHECKED, mine, CHECKED.subject(1), {"part": 2}),
        (CHECKED, mine, CHECKED.subject(1), {"cut": name("other")}),
        (CHECKED, mine, CHECKED.cut_name + b"\0\4", {"part": 4}),
        (CHECKED, mine, CHECKED.subject(1), {"included": b"\7"}),
        (CHECKED, mine, CHECKED.subject(1), {"lines": CHECKED.projection(1).lines[:3]}),
        (CHECKED, other, CHECKED.subject(1), {}),
        (STEP, mine, CHECKED.subject(1), {}),
    ):
        refused(partial(project, step, sender, subject, step.transcript, **changes), Code.BAD_PROJECTION)


def test_a_projection_of_a_cut_not_heard_yet_waits() -> None:
    project(CHECKED, (CHECKED.aggregator(1) + 1) % 4, CHECKED.subject(1), Transcript())
