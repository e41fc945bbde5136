"""A judge with as many cases as liars can open."""

from __future__ import annotations

from crowdsurf.protocol import limits
from crowdsurf.protocol.assignment import work_seed
from crowdsurf.protocol.auditor import what_was_vouched_for
from crowdsurf.protocol.cases import Record, objection_to, subject_of
from crowdsurf.protocol.chain import Audit
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.envelope import Opened, Slot, seal
from crowdsurf.protocol.events import WorkRecomputed
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Commit, Kind
from crowdsurf.protocol.roster import enough_for_an_honest_one
from crowdsurf.protocol.tribunal import Tribunal
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import name, verify_mac


class Docket:
    """Thirty-one members; fifteen of them say of each other's projections what nobody can judge, and accuse all they
    can."""

    def __init__(self, here: frozenset[bytes] | None = None) -> None:
        """`here`: of which aggregates the judge has the bytes; None if that is not known."""
        self.step = CompleteStep(31, audit=AuditSection(rate=0.25))
        step, facts = self.step, self.step.facts
        enough = enough_for_an_honest_one(31, 16)
        shown, named = what_was_vouched_for(step.head, step.header, step.cut, step.transcript, enough)
        seed = work_seed(step.head.beacon, step.peers[0])
        self.audit = Audit(step.peers[30], step.peers[0], 0, seed, 31, facts.state)
        commits = step.transcript.named_by(step.cut, step.peers)
        self.court = Tribunal(step.run_id, verify_mac, facts.clipping)
        self.court.remember(Record(step.head, step.header, (self.audit,), commits, shown, named, here))
        self.part_of = {step.aggregator(part): part for part in range(31)}
        self.computed = [effect for accuser in range(15) for effect in self.fill(accuser)]

    def fill(self, accuser: int) -> list[RecomputeWork]:
        """One says as much as it can, of each of the others one thing, then another one."""
        found: list[RecomputeWork] = []
        turns = [(accused, norm) for norm in (1.0, 2.0) for accused in range(15) if accused != accuser]
        for accused, norm in turns[: limits.CASES_PER_ACCUSER_MAX]:
            found += self.accuse(accuser, objection_to(self.shown(accused, norm=norm), accuser))
        return found

    def shown(self, accused: int, **changes: object) -> Opened:
        """A projection that a member has signed about its part."""
        part = self.part_of[accused]
        projection = self.step.projection(part, **changes)
        return self.step.say(accused, Kind.PROJECTION, projection, 0, self.step.subject(part))

    def answer(self, effect: RecomputeWork) -> WorkRecomputed:
        """The work as it should have been; of the aggregates nobody has the bytes."""
        commit = self.step.transcript.commits[effect.finder].payload
        assert isinstance(commit, Commit)
        return WorkRecomputed(effect.step, effect.seed, effect.finder, commit.parts, name("finding"), commit.norms)

    def accuse(self, accuser: int, accusation: Accusation) -> list[RecomputeWork]:
        self.court.accuse(self.says(accuser, accusation), self.step.head.roster)
        return self.court.to_judge()

    def says(self, accuser: int, accusation: Accusation, step: int = 1) -> Opened:
        """In the next step: in the step itself it is an objection."""
        slot = Slot(step, 0, Kind.ACCUSATION, subject_of(accusation))
        return seal(self.step.signers[accuser], self.step.run_id, slot, accusation)
