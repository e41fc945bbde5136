"""Traps: what liars say so that an honest member accuses falsely, works for nothing, or has no room for what is true.

The idea: nothing in here is signed by anybody honest but what the product's own nodes sign; what a trap would have done
is written in the test's docstring.
"""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from crowdsurf.protocol import effects, events, limits
from crowdsurf.protocol.auditor import Auditor
from crowdsurf.protocol.cases import objection_to, subject_of
from crowdsurf.protocol.chain import Chain, Head
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, open_envelope, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Ban, Commit, Kind, Reason, Reveal
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, refused
from tests.protocol.court import ODD, assert_just, compute_otherwise, watchful_swarm
from tests.protocol.docket import Docket
from tests.protocol.swarm import RIGHT, FakePeer, name, verify_mac

ANOTHER = name("another aggregate")
LINE_ABOUT_ANOTHER = Line((0.4, 0.0, 0.0), 1.3)


class Trapped:
    """A step of five. A validator has heard another aggregate of a liar's part than all others: the liar and the
    validator's target have named it in the reveals that they showed it."""

    def __init__(self) -> None:
        self.step = step = CompleteStep(5, audit=AuditSection(rate=0.0625))
        chain = Chain(step.manifest)
        certificate = step.certificate()
        chain.extend(certificate, verify_mac)
        self.head: Head = chain.head
        (self.audit,) = self.head.audits
        self.validator, self.target = (step.peers.index(one) for one in (self.audit.validator, self.audit.target))
        self.part = next(part for part in range(5) if step.aggregator(part) not in (self.validator, self.target))
        self.liar = step.aggregator(self.part)
        self.auditor = Auditor(step.signers[self.validator], step.run_id, verify_mac, step.manifest, lambda: 0.0)
        held = {*step.header.parts, ANOTHER} - {step.header.parts[self.part]}
        self.auditor.on_certified(step.head, certificate, self.head, self.heard(), held)
        self.auditor.take_effects()

    def heard(self) -> Transcript:
        step, heard = self.step, Transcript()
        told = [*step.transcript.commits.values(), step.say(0, Kind.PROPOSAL, step.cut)]
        for part in range(5):
            said = step.aggregate(part)
            if part == self.part:
                other = msgspec.structs.replace(said.payload, digest=ANOTHER)  # type: ignore[type-var]
                said = step.say(self.liar, Kind.AGGREGATE, other, subject=step.subject(part))
            told.append(said)
        for member in range(5):
            names = list(step.header.parts)
            if member in (self.validator, self.target, self.liar):
                names[self.part] = ANOTHER
            told.append(step.say(member, Kind.REVEAL, Reveal(step.cut_name, name("nonce", member), tuple(names))))
        told += [self.projection(part) for part in range(5)]
        for one in told:
            heard.add(one)
        return heard

    def projection(self, part: int, **changes: object) -> Opened:
        said = self.step.projection(part, **changes)
        return self.step.say(self.step.aggregator(part), Kind.PROJECTION, said, 0, self.step.subject(part))

    def answer(self, effect: effects.RecomputeWork) -> events.WorkRecomputed:
        """What the validator's worker finds: lines about the aggregates that it was asked about."""
        commit = self.step.transcript.commits[effect.finder if effect.finder != self.me else self.audit.target].payload
        assert isinstance(commit, Commit)
        asked = effect.aggregates
        lines = tuple((LINE_ABOUT_ANOTHER if one == ANOTHER else RIGHT) if one else None for one in asked)
        finding = name("finding", effect.finder)
        return events.WorkRecomputed(
            effect.step, effect.seed, effect.finder, commit.parts, finding, commit.norms, lines, (), asked
        )

    @property
    def me(self) -> PeerId:
        return self.audit.validator

    def ask(self, said: Opened) -> list[Accusation]:
        """The target asks about its line; whom the validator accuses then."""
        asked = objection_to(said, self.target)
        slot = Slot(self.head.step, 0, Kind.ACCUSATION, subject_of(asked))
        accuser = self.step.signers[self.target]
        self.auditor.on_message(accuser.peer_id, seal(accuser, self.step.run_id, slot, asked), self.head, None)
        wanted = self.auditor.take_effects()
        for effect in wanted:
            if isinstance(effect, effects.RecomputeWork):
                self.auditor.on_recomputed(self.answer(effect), self.head)
        said_now = [*wanted, *self.auditor.take_effects()]
        sent = [effect.envelope for effect in said_now if isinstance(effect, effects.SendEnvelope)]
        opened = [open_envelope(envelope, self.step.run_id, verify_mac).payload for envelope in sent]
        return [payload for payload in opened if isinstance(payload, Accusation)]


def test_what_is_so_of_another_aggregate_is_held_against_nobody() -> None:
    """The validator would have accused the aggregator of a line about the certified aggregate, which is right, and
    would have been banned for it."""
    trapped = Trapped()
    accused = trapped.ask(trapped.projection(trapped.part, aggregate=ANOTHER))
    assert {one.reason for one in accused} <= {Reason.EQUIVOCATION}


def test_who_has_signed_two_projections_of_a_part_is_convicted_by_the_dispute_about_one() -> None:
    trapped = Trapped()
    (accusation,) = trapped.ask(trapped.projection(trapped.part, norm=2.0))
    assert (accusation.accused, accusation.reason) == (trapped.step.peers[trapped.liar], Reason.EQUIVOCATION)
    case = next(iter(trapped.auditor.convictions(trapped.head)))
    ban = Ban(trapped.step.peers[trapped.liar], Reason.EQUIVOCATION, 0, case)
    assert trapped.auditor.convictions(trapped.head) == {case: ban}


def test_two_disputes_about_two_projections_of_a_part_convict_who_signed_them() -> None:
    """Friends would have filled each other's share of cases with things that nobody can judge, for ever."""
    docket = Docket()
    step, court = docket.step, docket.court
    shown = [docket.shown(20, norm=norm) for norm in (3.0, 4.0)]
    court.remember(court.record(0)._replace(projections=()))  # type: ignore[union-attr]
    first, second = (
        docket.says(accuser, objection_to(said, accuser)) for accuser, said in zip((21, 22), shown, strict=True)
    )
    court.accuse(first, step.head.roster)
    assert court.contradiction(first) is None
    court.accuse(second, step.head.roster)
    assert court.contradiction(second) == Equivocation(shown[1].envelope, shown[0].envelope)


def test_an_objection_has_room_whatever_else_its_author_has_said() -> None:
    """It has made a part void; with its author's share of cases full nobody would have answered for that."""
    docket = Docket()
    step, roster = docket.step, docket.step.head.roster
    for accused in (20, 21):
        objection = objection_to(docket.shown(accused), 0)
        refused(partial(docket.court.accuse, docket.says(0, objection), roster), Code.QUEUE_FULL)
        docket.court.accuse(docket.says(0, objection, step=0), roster)
        assert docket.court.said_by(step.peers[0])[-1].step == 0


def test_against_one_aggregator_there_is_room_for_one_objection_unless_a_header_rests_on_another() -> None:
    docket = Docket()
    roster = docket.step.head.roster
    first, second = (docket.says(0, objection_to(docket.shown(20, norm=norm), 0), step=0) for norm in (1.0, 2.0))
    docket.court.accuse(first, roster)
    refused(lambda: docket.court.accuse(second, roster), Code.QUEUE_FULL)
    docket.court.accuse(second, roster, lambda name: True)


def test_only_the_member_itself_objects_in_the_step_itself() -> None:
    docket = Docket()
    objection = objection_to(docket.shown(20), 0)
    early = docket.says(30, objection, step=0)  # it validates that work, but knows so a step later
    refused(partial(docket.court.accuse, early, docket.step.head.roster), Code.BAD_ACCUSATION)
    docket.court.accuse(docket.says(30, objection), docket.step.head.roster)


def test_nobody_works_for_what_it_could_not_judge() -> None:
    """Fifteen liars would have had everybody do 15 work units again, for a word each."""
    assert Docket(here=frozenset()).computed == []
    step = CompleteStep(31, audit=AuditSection(rate=0.25))
    assert len(Docket(here=frozenset(step.header.parts)).computed) == 15


@pytest.mark.parametrize("age", [limits.PAST_AGGREGATES - 1, limits.PAST_AGGREGATES])
def test_nobody_works_for_what_its_worker_has_forgotten(age: int) -> None:
    docket = Docket()
    docket.court.forget(age, docket.step.head.roster)
    wanted = docket.accuse(21, objection_to(docket.shown(20), 21))
    own = [effect for effect in wanted if effect.finder == docket.step.peers[21]]
    assert len(own) == (age < limits.PAST_AGGREGATES)


def test_whatever_comes_drop_by_drop_work_is_done_again_twice_in_a_step() -> None:
    docket = Docket()
    validator, computed = docket.step.peers[30], []
    for accused in range(15, 25):
        wanted = docket.accuse(30, objection_to(docket.shown(accused), 0))
        while wanted:
            computed += wanted
            wanted = docket.court.to_judge_next(docket.answer(wanted[0]))
    assert len(computed) == limits.TIMES_COMPUTED_MAX
    docket.court.forget(1, docket.step.head.roster)
    (rest,) = [effect for effect in docket.court.to_judge_again() if effect.finder == validator]
    assert sum(map(bool, rest.aggregates)) == 8


def test_whoever_objects_to_everybody_is_banned_though_its_share_of_cases_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All parts of honest members would have been void for ever, and nobody blamed."""
    monkeypatch.setattr(limits, "CASES_PER_ACCUSER_MAX", 0)  # as if it had filled its share of cases
    swarm = watchful_swarm(5, steps=12)
    liar = swarm.list[0]
    objects_to_everybody(liar, from_step=3)
    swarm.start()
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)
    void = [story.void_parts for story in swarm.list[1].stories]
    assert sum(map(bool, void)) <= 2


def objects_to_everybody(liar: FakePeer, from_step: int) -> None:
    """It says of all aggregates that they do not hold its part."""

    def change(effect: effects.Effect) -> events.Event | None:
        if not isinstance(effect, effects.CheckAggregates) or effect.step < from_step:
            return None
        parts = len(effect.aggregates)
        return events.AggregatesChecked(effect.step, effect.aggregates, effect.beacon, (ODD,) * parts, (RIGHT,) * parts)

    compute_otherwise(liar, change)
