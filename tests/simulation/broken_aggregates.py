"""Defects in how aggregates are looked at, and in what becomes of whoever lies about them."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from crowdsurf.protocol import auditor, cases, scrutiny, tribunal
from crowdsurf.protocol.accepted_cut import AcceptedCut
from crowdsurf.protocol.auditor import Auditor
from crowdsurf.protocol.effects import AggregatePart
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Reason
from crowdsurf.protocol.scrutiny import Scrutiny
from crowdsurf.protocol.sim.adversaries import (
    ColludingAggregate,
    LateAggregate,
    SplitObjection,
    TwoFaces,
    WithholdPart,
    WrongAggregate,
    WrongProjection,
)
from crowdsurf.protocol.transcript import Transcript
from tests.simulation import liars_about_aggregates as liars
from tests.simulation.defect import Patch, defect, nothing

# --- what counts ---------------------------------------------------------------------------------------------


@defect("header_follows", liar=WrongAggregate)
def does_not_add_up_lines(patch: Patch) -> None:
    """Lines may add up to anything."""
    for module in (scrutiny, auditor, cases):
        patch.setattr(module, "projection_problem", lambda *_: None)


@defect("header_follows", (4, 7, 8), liar=LateAggregate)
def counts_late_aggregates(patch: Patch) -> None:
    """An aggregate counts whenever it was signed."""
    honest = Transcript.witnesses

    def witnesses(self: Transcript, cut: bytes, part: int) -> dict[bytes, set[PeerId]]:
        found = dict(honest(self, cut, part))
        said = [opened.payload for key, opened in self.aggregates.items() if key[:2] == (cut, part)]
        everybody = {peer for peer, _ in self._slots}
        return found | {one.digest: everybody for one in said}  # type: ignore[union-attr]

    patch.setattr(Transcript, "witnesses", witnesses)


@defect("header_follows", liar=liars.GoesFar)
def aggregates_may_be_long(patch: Patch) -> None:
    """An aggregate is not compared with the lengths of what went in."""
    patch.setattr(scrutiny, "is_too_long", lambda *_: False)


@defect("outspoken", liar=liars.ClaimsToBeNear)
def believes_the_length(patch: Patch) -> None:
    """What an aggregator says about the length of its aggregate is not compared with the bytes."""
    patch.setattr(scrutiny, "wrong_norm", lambda *_: False)


@defect("header_follows", liar=liars.ForgetsOthers)
def believes_that_nobody_is_absent(patch: Patch) -> None:
    """How many did not go in is not compared with the cut."""
    patch.setattr(scrutiny, "absent_from", lambda *_: 0)


@defect("header_follows", liar=WithholdPart)
def forgets_the_absent(patch: Patch) -> None:
    """An aggregator does not count what is missing as nothing."""
    honest = AcceptedCut.to_aggregate

    def to_aggregate(self: AcceptedCut, gone: set[PeerId]) -> list[AggregatePart]:
        return [dataclasses.replace(effect, absent=0) for effect in honest(self, gone)]

    patch.setattr(AcceptedCut, "to_aggregate", to_aggregate)


@defect("outspoken", liar=liars.LiesAboutNothing)
def believes_lines_about_nothing(patch: Patch) -> None:
    """The line about a row of zeros is not compared with the bytes."""
    honest = Scrutiny.misdescribes

    def misdescribes(self: Scrutiny, said: Any, beacon: bytes, times: float) -> bool:
        present = msgspec.structs.replace(said.payload, absent=0)
        return honest(self, said._replace(payload=present), beacon, times)

    patch.setattr(Scrutiny, "misdescribes", misdescribes)


@defect("outspoken", liar=WrongProjection)
def believes_lines(patch: Patch) -> None:
    """A contributor does not compare the line about its part with its part."""
    patch.setattr(Scrutiny, "contradicts", lambda *_: False)


@defect("progress", liar=TwoFaces)
def judges_one_projection_of_several(patch: Patch) -> None:
    """Of an aggregator that has signed several projections only the first one heard is looked at."""
    honest = Transcript.projections_said

    def projections_said(self: Transcript, *which: Any) -> Any:
        return honest(self, *which)[:1]

    patch.setattr(Transcript, "projections_said", projections_said)


@defect("progress", (0, 4, 7), liar=SplitObjection)
def keeps_objections_to_itself(patch: Patch) -> None:
    """Who refuses a header because of an objection, or proposes one with a part less, does not show the objection."""
    patch.setattr(Transcript, "objections", lambda *_: [])


# --- who is accused, and who is guilty -----------------------------------------------------------------------


@defect("outspoken", liar=ColludingAggregate, steps=16)
def validates_gradients_only(patch: Patch) -> None:
    """A validator does not look at what aggregators have said about the work it does again."""
    patch.setattr(Auditor, "_compare_lines", nothing)


@defect("outspoken", (0, 2, 3), liar=liars.ClaimsToBeLong, steps=16)
def believes_committed_lengths(patch: Patch) -> None:
    """A validator does not compare lengths."""
    patch.setattr(auditor, "is_as_recomputed", lambda commit, found, *_: commit.parts == found.parts)


@defect("no_honest_ban", liar=WrongProjection)
def acquits_aggregators(patch: Patch) -> None:
    """A verdict finds every line right."""
    patch.setattr(cases, "_line_holds", lambda *_: True)


@defect("no_honest_ban", liar=liars.ObjectsToTheTruth)
def convicts_aggregators(patch: Patch) -> None:
    """A verdict finds every line wrong that somebody objects to."""
    patch.setattr(cases, "_line_holds", lambda *_: False)


@defect("no_honest_ban evidence_holds", liar=liars.DeniesBalance)
def believes_any_imbalance(patch: Patch) -> None:
    """Lines that are said not to add up are not added up."""
    patch.setattr(cases, "_imbalance_holds", lambda *_: True)


@defect("evidence_holds", (0, 1, 2), liar=liars.ObjectsForAnother)
def hears_any_objection(patch: Patch) -> None:
    """Anybody may object to what is said about somebody else."""
    honest = cases.question_of

    def question(accusation: Any, accuser: Any, record: Any, run_id: Any, verify: Any) -> Any:
        if accusation.reason == Reason.WRONG_PROJECTION:
            member, _ = cases.particular_of(accusation, run_id, verify)
            accuser = record.head.roster.peers[member]
        return honest(accusation, accuser, record, run_id, verify)

    patch.setattr(tribunal, "question_of", question)
