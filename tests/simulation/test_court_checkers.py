"""The checkers of bans, each by itself: evidence that is spoiled, bans and rests of the wrong ones, impatient votes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from crowdsurf.protocol import effects, limits
from crowdsurf.protocol.envelope import Slot, slot_of
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import Accusation, Ban, Certificate, Header, Kind, Reason, Reveal
from crowdsurf.protocol.roster import Resting
from crowdsurf.protocol.sim import checkers, justice
from crowdsurf.protocol.sim.adversaries import Adversary, GradientAttack
from crowdsurf.protocol.sim.checkers import Checker
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.simulation import Simulation
from tests.simulation import liars
from tests.simulation.liars import parsed, signed
from tests.simulation.runs import Setting, simulation
from tests.simulation.told import A, fake_certificate, texts

replace = msgspec.structs.replace

Spoil = Callable[[Evidence, Host], Evidence]


def voters(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, certificate=replace(evidence.certificate, votes=evidence.certificate.votes[:2]))


def another_ban(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, ban=replace(evidence.ban, case=A))


def no_verdicts(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, verdicts=evidence.verdicts[:2])


def one_judge(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, verdicts=evidence.verdicts[:1] * 5)


def forged_verdict(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, verdicts=(replace(evidence.verdicts[0], signature=bytes(64)), *evidence.verdicts[1:]))


def no_commit(evidence: Evidence, host: Host) -> Evidence:
    return replace(evidence, exhibits=())


def another_accuser(evidence: Evidence, host: Host) -> Evidence:
    bystander = next(
        other for other in host.world.hosts.values() if other.id not in (evidence.accusation.sender, evidence.ban.peer)
    )
    return replace(evidence, accusation=signed(bystander, slot_of(evidence.accusation), parsed(evidence.accusation)))


def another_step(evidence: Evidence, host: Host) -> Evidence:
    accusation = replace(cast(Accusation, parsed(evidence.accusation)), step=0)
    accuser = host.world.hosts[PeerId(evidence.accusation.sender)]
    return replace(evidence, accusation=signed(accuser, slot_of(evidence.accusation), accusation))


def another_proof(evidence: Evidence, host: Host) -> Evidence:
    accusation = replace(cast(Accusation, parsed(evidence.accusation)), proof=b"trust me")
    accuser = host.world.hosts[PeerId(evidence.accusation.sender)]
    return replace(evidence, accusation=signed(accuser, slot_of(evidence.accusation), accusation))


def judged(liar: type[Adversary], spoils: tuple[Spoil, ...]) -> list[list[str]]:
    """A run in which somebody is banned: what the checker says of its evidence when it is true, and spoiled."""
    made = simulation(Setting(peers=5, steps=24, liar=liar), 1)
    true = checkers.EvidenceHolds(made.registry.verify)
    false = [checkers.EvidenceHolds(made.registry.verify) for _ in spoils]

    class Look(Checker):
        name = "look"
        sees_effects = checkers.EvidenceHolds.sees_effects

        def on_effect(self, host: Host, effect: effects.Effect) -> None:
            true.on_effect(host, effect)
            for checker, spoil in zip(false, spoils, strict=True):
                if isinstance(effect, effects.PersistEvidence) and not checker.violations:
                    checker.on_effect(host, effects.PersistEvidence(spoil(effect.evidence, host)))
                else:
                    checker.on_effect(host, effect)

    made.world.watch(Look())
    assert made.run().violations == []
    assert made.hosts[0].evidence
    return [texts(true), *(texts(checker) for checker in false)]


def test_evidence_of_a_recomputation_holds() -> None:
    spoils = voters, another_ban, no_verdicts, one_judge, forged_verdict, no_commit, another_accuser, another_step
    true, *false = judged(GradientAttack, spoils)
    assert true == []
    wrong = [found[0].split("convinces nobody: ")[1] for found in false]
    assert wrong == [
        "no quorum has signed it",
        "no quorum has signed it",
        "2 of 5 members found so",
        "1 of 5 members found so",
        wrong[4],
        "what the accused committed to is not shown",
        "the accuser was not drawn",
        "the accusation is about something else",
    ]
    assert "signature" in wrong[4]


def test_evidence_of_a_proof_holds() -> None:
    true, false = judged(liars.SaysTwoThings, (another_proof,))
    assert true == []
    assert "the proof convicts somebody else" in false[0]


def banning(step: int, *bans: Ban) -> Any:
    header = SimpleNamespace(step=step, bans=bans)
    return effects.PersistCertificate(cast(Certificate, SimpleNamespace(header=header)))


def test_no_honest_ban(running: Simulation) -> None:
    checker, (host, liar, victim) = checkers.NoHonestBan(), running.hosts
    liar.adversary = cast(Any, object())
    checker.on_effect(host, banning(3, Ban(liar.id, Reason.EQUIVOCATION, 3, A)))
    assert checker.violations == []
    checker.on_effect(host, banning(4, Ban(victim.id, Reason.WRONG_GRADIENT, 3, A)))
    assert texts(checker) == ["honest peer 2 is banned for wrong_gradient in step 3"]


@pytest.mark.parametrize("faults", [Faults(), Faults(message_loss=0.1), Faults(latency_seconds_max=0.4)])
def test_no_honest_rest(running: Simulation, faults: Faults) -> None:
    """Only where nothing else explains why somebody was late."""
    checker, (host, liar, victim) = checkers.NoHonestRest(), running.hosts
    liar.adversary = cast(Any, object())
    running.network.faults = faults
    for step, resting in enumerate((liar, victim), start=host.step + 1):
        head = host.node.chain.head
        host.node.chain.head = head._replace(step=step, roster=replace(head.roster, resting=(Resting(resting.id, 9),)))
        checker.on_effect(host, fake_certificate(step))
    assert len(checker.violations) == (1 if faults == Faults() else 0)


def test_no_honest_rest_sees_who_lost_its_place(running: Simulation) -> None:
    checker, (host, leaver, victim) = checkers.NoHonestRest(), running.hosts
    leaver.leaving = True
    members = host.node.chain.head.roster.members
    for step, here in enumerate((members, [one for one in members if one.peer == host.id]), start=host.step + 1):
        head = host.node.chain.head
        host.node.chain.head = head._replace(step=step, roster=replace(head.roster, members=tuple(here)))
        checker.on_effect(host, fake_certificate(step))
    assert texts(checker) == [f"honest peer {victim.number} is left out from step {host.step} on"]


def test_nothing_is_said_about_rests_if_it_was_rough_before_anything_was_certified(running: Simulation) -> None:
    checker, (host, _, victim) = checkers.NoHonestRest(), running.hosts
    running.network.faults = Faults(crash_rate=1.0)
    checker.on_effect(host, effects.ComputeWork(0, A, 3))
    running.network.faults = Faults()
    head = host.node.chain.head
    host.node.chain.head = head._replace(step=1, roster=replace(head.roster, resting=(Resting(victim.id, 9),)))
    checker.on_effect(host, fake_certificate(1))
    assert checker.violations == []


def voiding(host: Host, silent: Host) -> effects.PersistLock:
    """A vote of a host for a void step, in which one nonce is missing."""
    indexes = host.node.chain.head.roster.indexes
    nonces = tuple(b"" if peer == silent.id else A for peer in indexes)
    header = SimpleNamespace(step=host.step, nonces=nonces, contributors=b"\x07")
    return effects.PersistLock(cast(Header, header), 0)


@pytest.mark.parametrize(
    ("shown", "waited", "expected"), [(True, 1.5, 0), (True, 1.0, 1), (False, 12.0, 1), (False, 14.0, 0)]
)
def test_patient(
    running: Simulation, monkeypatch: pytest.MonkeyPatch, shown: bool, waited: float, expected: int
) -> None:
    """With deliveries of 0.5 seconds and transfers of 5 the longest wait is 14 seconds."""
    monkeypatch.setattr(justice, "name_of_header", lambda header: A)
    checker, (host, silent, other) = checkers.Patient(), running.hosts
    reveal = signed(other, Slot(host.step, 0, Kind.REVEAL, b""), Reveal(A, A))
    checker.on_effect(host, effects.ComputeWork(host.step, A, 3))
    if shown:
        checker.on_effect(host, effects.SendEnvelope((silent.id,), reveal))
    running.timeline.now += waited
    checker.on_effect(host, voiding(host, silent))
    assert len(checker.violations) == expected


def test_saying_what_one_opened_is_not_showing_it_again(running: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(justice, "name_of_header", lambda header: A)
    checker, (host, silent, _) = checkers.Patient(), running.hosts
    reveal = signed(host, Slot(host.step, 0, Kind.REVEAL, b""), Reveal(A, A))
    checker.on_effect(host, effects.ComputeWork(host.step, A, 3))
    checker.on_effect(host, effects.SendEnvelope((silent.id,), reveal))
    running.timeline.now += 2.0
    checker.on_effect(host, voiding(host, silent))
    assert len(checker.violations) == 1


@pytest.mark.parametrize("what", ["cases", "proofs", "of one accuser", "objections", "verdicts", "records"])
def test_bounded_queues_looks_into_the_court(running: Simulation, what: str) -> None:
    host, checker = running.hosts[0], checkers.BoundedQueues()
    tribunal = host.node.auditor.tribunal
    checker.on_state(host, 0, A)
    assert checker.violations == []

    def case(question: object, verdicts: int = 0, accuser: object = host.id, said_in: int = 1) -> Any:
        payload = Accusation(host.id, Reason.WRONG_PROJECTION, 0)
        opened, said = SimpleNamespace(payload=payload, envelope=SimpleNamespace(step=said_in)), range(verdicts)
        return SimpleNamespace(accuser=accuser, question=question, verdicts=dict.fromkeys(said), opened=opened)

    in_headers = limits.BANS_PER_HEADER_MAX
    if what == "cases":
        numbers = range(limits.CASES_MAX + in_headers + 1)
        tribunal._cases = {number.to_bytes(2, "big"): case(1, accuser=number) for number in numbers}
    elif what == "proofs":
        tribunal._cases = {number.to_bytes(2, "big"): case(None) for number in range(limits.ROSTER_PEERS_MAX + 1)}
    elif what == "of one accuser":
        tribunal._cases = {bytes([number]): case(1) for number in range(limits.CASES_PER_ACCUSER_MAX + in_headers + 1)}
    elif what == "objections":
        numbers = range(limits.OBJECTIONS_PER_ACCUSER_MAX + 1)
        tribunal._cases = {number.to_bytes(2, "big"): case(1, said_in=0) for number in numbers}
    elif what == "verdicts":
        tribunal._cases = {A: case(None, limits.ROSTER_PEERS_MAX + 1)}
    else:
        tribunal._records.update(dict.fromkeys(range(limits.CASE_STEPS + 2), cast(Any, None)))
    checker.on_state(host, 0, A)
    assert len(checker.violations) == 1
