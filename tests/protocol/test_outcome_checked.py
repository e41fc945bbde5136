"""Which aggregates count where they are checked: every way in which one does not, for a proposer and for a voter."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crowdsurf.protocol.cases import objection_to, subject_of
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.events import AggregatesChecked
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Aggregate, Header, Kind, Projection, Reveal
from crowdsurf.protocol.outcome import (
    Missing,
    build_header,
    counting,
    examine,
    heard_aggregates,
    objections,
    opened_beacon,
    overlooked,
    work_of,
)
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.scrutiny import INSISTING, Scrutiny
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.swarm import RIGHT, name

STEP = CompleteStep(4, audit=AuditSection(rate=0.25))
NAMES = tuple(name("aggregate", part) for part in range(4))
AGGREGATOR = STEP.peers[STEP.aggregator(0)]
OBJECTOR = (STEP.aggregator(0) + 1) % 4
ALL = (True, True, True, True)
FIRST_VOID = (False, True, True, True)


def said(kind: Kind, part: int | None = None) -> list[Opened]:
    """Messages of a kind, of one part if that is given."""
    found = STEP.transcript.of_kind(kind)
    return [one for one in found if part is None or one.envelope.subject == STEP.subject(part)]


SHOWN = said(Kind.PROJECTION, 0)[0]


def heard(*more: Opened, without: list[Opened] | None = None) -> Transcript:
    """Everything that was said but for these messages, then some more."""
    transcript = Transcript()
    for peer in STEP.peers:
        for opened in STEP.transcript.own(peer):
            if opened not in (without or []):
                transcript.add(opened)
    for opened in more:
        transcript.add(opened)
    return transcript


def shown(**changes: Any) -> Opened:
    """Another projection of part 0."""
    return STEP.say(STEP.aggregator(0), Kind.PROJECTION, STEP.projection(0, **changes), 0, STEP.subject(0))


def looked_at(own: Line | None = None, norm: float = 1.0) -> Scrutiny:
    scrutiny = STEP.look_at(NAMES, norm=norm) if own is None else STEP.look_at(NAMES, own, norm)
    assert scrutiny is not None
    return scrutiny


def built(transcript: Transcript, scrutiny: Scrutiny, blobs: set[bytes] | None = None) -> Header:
    return build_header(
        STEP.facts, transcript, STEP.blobs if blobs is None else blobs, STEP.cut_name, STEP.cut, scrutiny=scrutiny
    )


def judge(transcript: Transcript, header: Header = STEP.header, scrutiny: Scrutiny | None = None) -> Missing:
    return examine(STEP.facts, transcript, STEP.blobs, header, scrutiny=scrutiny or looked_at())


def void_first() -> Header:
    """The header without part 0, as somebody builds it that lacks the projection."""
    return built(heard(without=[SHOWN]), looked_at())


def assert_does_not_count(transcript: Transcript, scrutiny: Scrutiny | None = None) -> None:
    """A proposer leaves part 0 void, and a voter does not miss it."""
    mine = scrutiny or looked_at()
    counted = counting(STEP.facts, transcript, STEP.blobs, STEP.cut_name, STEP.cut, [0], mine, INSISTING)
    assert counted == [(b"", b"")]
    header = built(transcript, mine)
    assert tuple(map(bool, header.parts)) == tuple(map(bool, header.projections)) == FIRST_VOID
    assert judge(transcript, header, mine).nothing
    assert overlooked(STEP.facts, transcript, STEP.blobs, header, mine) == []


def test_every_part_of_an_undisturbed_step_counts_with_what_vouches_for_it() -> None:
    assert tuple(map(bool, STEP.header.parts)) == ALL
    assert STEP.header.projections == tuple(said(Kind.PROJECTION, part)[0].digest for part in range(4))
    assert judge(STEP.transcript).nothing
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, STEP.header, looked_at()) == []


def test_a_part_without_projection_does_not_count() -> None:
    transcript = heard(without=[SHOWN])
    assert_does_not_count(transcript)
    assert judge(transcript) == Missing((SHOWN.digest,), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"lines": ((0.5, 0.0, 0.0, 1.0), *((0.0, 0.0, 0.0, 1.0),) * 3)},
        {"norm": 5.0},
        {"aggregate": name("another")},
        {"absent": 1, "lines": ((0.0, 0.0, 0.0, 1.0),) * 5},
    ],
    ids=["unbalanced", "too long", "another aggregate", "nobody is absent"],
)
def test_a_part_whose_projection_proves_nothing_does_not_count(changes: dict[str, Any]) -> None:
    bad = shown(**changes)
    transcript, scrutiny = heard(bad, without=[SHOWN]), looked_at()
    true = Line(RIGHT.projections, changes.get("norm", 1.0))  # what it says of its length is so
    scrutiny.on_checked(AggregatesChecked(0, NAMES, STEP.header.beacon, (RIGHT,) * 4, (true, *(RIGHT,) * 3)))
    assert_does_not_count(transcript, scrutiny)
    header = msgspec.structs.replace(STEP.header, projections=(bad.digest, *STEP.header.projections[1:]))
    why = refused(lambda: judge(transcript, header, scrutiny), Code.BAD_OUTCOME)
    assert "nothing vouches for the aggregate of part 0" in why


FEWER = shown(included=b"\7", absent=1, lines=((0.0, 0.0, 0.0, 1.0),) * 4)
"""A projection that is right if the aggregate includes three of the four."""


def of_fewer() -> Opened:
    """The same aggregate, said to include three of the four."""
    aggregate = Aggregate(STEP.cut_name, 0, NAMES[0], b"\7")
    return STEP.say(STEP.aggregator(0), Kind.AGGREGATE, aggregate, 0, STEP.subject(0))


def test_a_part_whose_projection_includes_others_does_not_count_and_the_aggregate_is_asked_for() -> None:
    """Its author may have signed another one, with the same bytes, for others."""
    transcript = heard(FEWER, without=[SHOWN])
    assert_does_not_count(transcript)
    header = msgspec.structs.replace(STEP.header, projections=(FEWER.digest, *STEP.header.projections[1:]))
    assert judge(transcript, header) == Missing((NAMES[0],), ())
    named = STEP.transcript.find(NAMES[0])
    assert set(said(Kind.AGGREGATE, 0)) <= set(named)


@pytest.mark.parametrize("order", [1, -1])
def test_of_an_aggregate_that_is_said_to_include_some_and_others_neither_counts(order: int) -> None:
    """Else who it includes could be chosen when the beacon is known. It is shown why; what others voted for stays."""
    both = [said(Kind.AGGREGATE, 0)[0], of_fewer()][::order]
    transcript = heard(both[0], without=said(Kind.AGGREGATE, 0))
    transcript.add_conflicting(FEWER)
    assert objections(STEP.facts, transcript, STEP.cut_name) == []
    assert transcript.add_conflicting(both[1])
    assert not transcript.add_conflicting(both[1])
    assert transcript.find(NAMES[0]) == both
    assert_does_not_count(transcript)
    assert objections(STEP.facts, transcript, STEP.cut_name) == both
    for projection in (SHOWN, FEWER):
        header = msgspec.structs.replace(STEP.header, projections=(projection.digest, *STEP.header.projections[1:]))
        refused(lambda header=header: judge(transcript, header), Code.LOCKED)  # type: ignore[misc]
        assert examine(STEP.facts, transcript, STEP.blobs, header, scrutiny=looked_at(), is_bound=True).nothing
        grounds = transcript.grounds(header, STEP.peers, STEP.facts.duties(STEP.cut))
        assert {*both, projection} <= set(grounds)


def test_a_projection_of_somebody_else_vouches_for_nothing() -> None:
    stranger = STEP.say(OBJECTOR, Kind.PROJECTION, SHOWN.payload, 0, STEP.subject(0))
    assert stranger.digest == SHOWN.digest
    transcript = heard(stranger, without=[SHOWN])
    assert_does_not_count(transcript)
    assert judge(transcript).messages == (SHOWN.digest,)


def test_what_somebody_else_signs_too_takes_nothing_away() -> None:
    """Anybody can sign the bytes of another's commit or projection, before or after it."""
    for kind in (Kind.COMMIT, Kind.PROJECTION):
        copies = [STEP.say(OBJECTOR, kind, one.payload, 5, one.envelope.subject) for one in said(kind)]
        assert judge(heard(*copies)).nothing
        originals = said(kind)
        assert judge(heard(*copies, *originals, without=originals)).nothing


def objection() -> Opened:
    accusation = objection_to(SHOWN, OBJECTOR)
    return STEP.say(OBJECTOR, Kind.ACCUSATION, accusation, 0, subject_of(accusation))


def test_an_objection_voids_what_it_is_about() -> None:
    """Whether it is right is found out later. The header still names the projection: its author has done its part."""
    transcript = heard(objection())
    header = built(transcript, looked_at())
    assert tuple(map(bool, header.parts)) == FIRST_VOID
    assert header.projections == STEP.header.projections
    assert judge(transcript, header).nothing
    assert overlooked(STEP.facts, transcript, STEP.blobs, header, looked_at()) == []
    refused(lambda: judge(transcript), Code.LOCKED)


def test_nobody_votes_for_an_excuse_before_it_has_seen_the_reason() -> None:
    """An aggregator that failed would have a proposer excuse it."""
    header = built(heard(objection()), looked_at())
    assert "not void because of an objection" in refused(lambda: judge(STEP.transcript, header), Code.LOCKED)
    assert examine(STEP.facts, STEP.transcript, STEP.blobs, header, scrutiny=looked_at(), is_bound=True).nothing
    assert judge(heard(objection(), without=[SHOWN]), header) == Missing((SHOWN.digest,), ())
    few = heard(objection(), *naming({0}), without=said(Kind.REVEAL))
    assert judge(few, header).messages[0] == STEP.cut_name
    (message,) = said(Kind.AGGREGATE, 0)
    lacking = examine(
        STEP.facts, heard(objection(), without=[message]), STEP.blobs - {NAMES[0]}, header, scrutiny=looked_at()
    )
    assert lacking == Missing((NAMES[0],), ((0, NAMES[0]),))
    unbalanced = shown(norm=5.0)
    other = msgspec.structs.replace(header, projections=(unbalanced.digest, *header.projections[1:]))
    refused(lambda: judge(heard(objection(), unbalanced, without=[SHOWN]), other), Code.LOCKED)


def test_whoever_is_objected_to_and_has_done_its_part_must_be_excused() -> None:
    """A liar that proposes would have honest aggregators pay for the objections of its friends."""
    dropped = overlooked(STEP.facts, heard(objection()), STEP.blobs, void_first(), looked_at())
    assert dropped == [(AGGREGATOR, "projection")]
    unseen = heard(objection(), without=[SHOWN])
    assert overlooked(STEP.facts, unseen, STEP.blobs, void_first(), looked_at()) == []


def test_an_objection_of_somebody_outside_the_cut_voids_nothing() -> None:
    step = CompleteStep(4, contributors=[0, 1, 2], audit=AuditSection(rate=0.25))
    projection = next(iter(step.transcript.of_kind(Kind.PROJECTION)))
    accusation = objection_to(projection, 3)
    step.transcript.add(step.say(3, Kind.ACCUSATION, accusation, 0, subject_of(accusation)))
    header = build_header(*step.held(), step.cut_name, step.cut, scrutiny=step.scrutiny)
    assert tuple(map(bool, header.parts)) == ALL


@pytest.mark.parametrize(
    "scrutiny",
    [looked_at(own=Line((0.1, 0.0, 0.0), 1.0)), looked_at(own=Line((0.0, 0.0, 0.0), 1.1)), looked_at(norm=0.9)],
    ids=["my line", "my distance", "the length of the aggregate"],
)
def test_what_a_member_knows_to_be_false_does_not_count_for_it(scrutiny: Scrutiny) -> None:
    assert not any(built(STEP.transcript, scrutiny).parts)  # it is so of every part here
    why = refused(lambda: judge(STEP.transcript, scrutiny=scrutiny), Code.LOCKED)
    assert "is not so" in why
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, void_first(), scrutiny) == []


# --- the reveals fix the aggregates --------------------------------------------------------------------------


def naming(members: set[int], other: bytes = b"") -> list[Opened]:
    """Reveals of which those of these members alone name the aggregate of part 0, the others another one or none."""
    return [
        STEP.say(
            index,
            Kind.REVEAL,
            Reveal(STEP.cut_name, name("nonce", index), (NAMES[0] if index in members else other, *NAMES[1:])),
        )
        for index in range(4)
    ]


def test_an_aggregate_counts_only_if_somebody_honest_had_heard_of_it() -> None:
    assert STEP.facts.enough_for_an_honest_one == 2
    few, enough = (heard(*naming(members), without=said(Kind.REVEAL)) for members in ({1}, {1, 3}))
    assert_does_not_count(few)
    assert judge(few).messages == (STEP.cut_name,)  # others may have heard more
    assert built(enough, looked_at()).parts == STEP.header.parts
    assert judge(enough).nothing


def test_two_aggregates_that_enough_name_count_both_for_nothing() -> None:
    assert_does_not_count(heard(*naming({0, 1}, name("the other one")), without=said(Kind.REVEAL)))


def test_reveals_that_are_lacking_are_asked_for_with_the_cut() -> None:
    transcript = heard(without=said(Kind.REVEAL))
    assert judge(transcript).messages == (STEP.cut_name,)
    asked_for = STEP.transcript.find(STEP.cut_name)
    assert set(said(Kind.REVEAL)) <= set(asked_for)


def test_of_two_aggregates_that_were_signed_the_one_that_the_reveals_name_is_used() -> None:
    """Whichever was heard first: the other one is proof against its author, and nothing else."""
    first = said(Kind.AGGREGATE, 0)[0]
    other = STEP.say(
        STEP.aggregator(0),
        Kind.AGGREGATE,
        Aggregate(STEP.cut_name, 0, name("the other one"), STEP.projection(0).included),
        0,
        STEP.subject(0),
    )
    transcript = heard(other, without=[first])
    assert judge(transcript).messages == (NAMES[0],)
    assert_does_not_count(transcript)
    transcript.add_conflicting(first)
    assert heard_aggregates(STEP.facts, transcript, STEP.cut_name)[0] == name("the other one")
    assert built(transcript, looked_at()).parts[0] == NAMES[0]
    assert judge(transcript).nothing


def test_the_beacon_is_open_when_all_nonces_are() -> None:
    assert opened_beacon(STEP.facts, STEP.transcript, STEP.cut) == STEP.header.beacon
    assert opened_beacon(STEP.facts, heard(without=said(Kind.REVEAL)[:1]), STEP.cut) is None


# --- what is lacking -----------------------------------------------------------------------------------------


def test_an_aggregate_message_that_is_lacking_is_asked_for() -> None:
    transcript = heard(without=said(Kind.AGGREGATE, 0))
    assert_does_not_count(transcript)
    assert judge(transcript) == Missing((NAMES[0],), ())


def test_bytes_that_are_lacking_are_fetched() -> None:
    blobs = STEP.blobs - {NAMES[0]}
    assert tuple(map(bool, built(STEP.transcript, looked_at(), blobs).parts)) == FIRST_VOID
    missing = examine(STEP.facts, STEP.transcript, blobs, STEP.header, scrutiny=looked_at())
    assert missing == Missing((), ((0, NAMES[0]),))


def test_an_aggregate_that_was_not_looked_at_is() -> None:
    assert STEP.facts.clipping is not None
    blank = Scrutiny(STEP.facts.clipping, 0)
    assert not any(built(STEP.transcript, blank).parts)
    missing = judge(STEP.transcript, scrutiny=blank)
    assert missing == Missing((), (), tuple(enumerate(NAMES)))
    assert not missing.nothing


# --- overlooked work -----------------------------------------------------------------------------------------


def test_a_part_that_counts_for_a_voter_must_not_be_left_out() -> None:
    header = void_first()
    assert overlooked(STEP.facts, STEP.transcript, STEP.blobs, header, looked_at()) == [(AGGREGATOR, "aggregate")]


def test_a_header_names_a_projection_for_every_part_that_counts_and_for_no_other() -> None:
    for projections in ((), STEP.header.projections[:3], (b"", *STEP.header.projections[1:])):
        header = msgspec.structs.replace(STEP.header, projections=projections)
        assert "the projections" in refused(lambda header=header: judge(STEP.transcript, header), Code.BAD_OUTCOME)  # type: ignore[misc]
    plain = CompleteStep(4)
    assert plain.header.projections == ()
    header = msgspec.structs.replace(plain.header, projections=STEP.header.projections)
    why = refused(lambda: examine(*plain.held(), header), Code.BAD_OUTCOME)
    assert "the projections" in why


def test_what_a_header_follows_from_holds_reveals_and_projections() -> None:
    """Kept with a vote, so that restarted voters can show why the header is right."""
    duties = STEP.facts.duties(STEP.cut)
    grounds = STEP.transcript.grounds(STEP.header, STEP.peers, duties)
    assert {*said(Kind.REVEAL), *said(Kind.PROJECTION)} <= set(grounds)
    again = Transcript()
    for opened in grounds:
        again.add(opened)
    assert judge(again).nothing
    assert all(isinstance(one.payload, Projection) for one in said(Kind.PROJECTION))


def test_the_grounds_of_a_later_views_header_have_nonces_that_were_opened_for_another_cut() -> None:
    """A nonce is opened once. Were its reveal lost in restarts after its owner has gone, nobody could ever believe the
    header again."""
    heard, older = Transcript(), Reveal(name("the cut of view 0"), name("nonce", 1), (b"",) * 4)
    for index in STEP.contributors:
        heard.add(STEP.transcript.commits[STEP.peers[index]])
    heard.add(STEP.say(0, Kind.PROPOSAL, STEP.cut, 1))
    reveal = STEP.say(1, Kind.REVEAL, older)
    heard.add(reveal)
    nonces = (b"", name("nonce", 1), b"", b"")
    header = msgspec.structs.replace(STEP.header, parts=(b"",) * 4, projections=(b"",) * 4, nonces=nonces)
    assert reveal in heard.grounds(header, STEP.peers, STEP.facts.duties(STEP.cut))
    unused = msgspec.structs.replace(header, nonces=(b"",) * 4)
    assert reveal not in heard.grounds(unused, STEP.peers, STEP.facts.duties(STEP.cut))


def test_of_several_projections_any_one_that_is_right_will_do_whichever_was_heard_first() -> None:
    """One that adds up to nothing of use was heard first. A header may name any other, and all know the same one."""
    bad = shown(lines=((0.5, 0.0, 0.0, 1.0), *((0.0, 0.0, 0.0, 1.0),) * 3))
    good = [SHOWN, shown(lines=((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, -0.0, 1.0), *((0.0, 0.0, 0.0, 1.0),) * 2))]
    assert good[0].digest != good[1].digest
    first = min(good, key=lambda one: one.digest)
    for order in (good, good[::-1]):
        transcript = heard(bad, without=[SHOWN])
        for one in order:
            transcript.add_conflicting(one)
        header = built(transcript, looked_at())
        assert header.projections[0] == first.digest
        assert overlooked(STEP.facts, transcript, STEP.blobs, void_first(), looked_at()) == [(AGGREGATOR, "aggregate")]
        sent = work_of(STEP.facts, transcript, STEP.blobs, void_first(), AGGREGATOR, looked_at())
        assert first in sent
        assert bad not in sent
        for one in good:
            named = msgspec.structs.replace(header, projections=(one.digest, *header.projections[1:]))
            assert judge(transcript, named).nothing
