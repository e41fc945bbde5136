"""Swarms of different machines: nobody honest is accused of computing a little differently, cheats are banned all the
same, and what cannot be seen is held against nobody."""

from __future__ import annotations

from typing import ClassVar

import pytest

from crowdsurf.protocol import effects, limits, wire
from crowdsurf.protocol.messages import Accusation, Ban, Kind, Reason
from crowdsurf.protocol.sim.adversaries import GradientAttack
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.simulation import Plan, Report, Simulation
from tests.simulation.mixed import BOUND, WRONG, Mixed, mixed_swarm

pytestmark = pytest.mark.slow

PEERS, LIARS, START, STEPS = 9, 4, 3, 45
BANNED_FOR = {
    "sign_flip": {Reason.WRONG_GRADIENT},
    "lazy_validator": {Reason.WRONG_FINDING},
    "false_accusation": {Reason.FALSE_ACCUSATION},
    "wrong_projection": {Reason.WRONG_PROJECTION},
    "colluding_aggregate": {Reason.WRONG_PROJECTION},
}


class Accusations(Observer):
    """Why honest peers accuse others."""

    sees_effects: ClassVar[tuple[type, ...]] = (effects.PersistSigned,)

    def __init__(self) -> None:
        self.reasons: set[Reason] = set()

    def on_effect(self, host: Host, effect: effects.Effect) -> None:
        if host.honest and isinstance(effect, effects.PersistSigned) and effect.envelope.kind == Kind.ACCUSATION:
            said = wire.unpack(effect.envelope.payload, Accusation, limits.ENVELOPE_BYTES_MAX)
            self.reasons.add(Reason(said.reason))


def swarm(attack: str = "none", wrong: float = WRONG, steps: int = STEPS, faults: Faults | None = None) -> Simulation:
    byzantine = LIARS if attack != "none" else 0
    plan = Plan(peers=PEERS, byzantine=byzantine, attack=attack, attack_from=START, faults=faults or Faults())
    return mixed_swarm(plan, steps, wrong)


def bans_of(report: Report) -> list[Ban]:
    longest = max(report.honest, key=lambda host: host.step)
    return [ban for certificate in longest.disk.certificates for ban in certificate.header.bans]


def liars_of(report: Report) -> set[bytes]:
    return {host.id for host in report.hosts if not host.honest}


@pytest.mark.parametrize("faults", [Faults(), Faults(message_loss=0.02, crash_rate=2.0)], ids=["calm", "rough"])
def test_honest_machines_that_differ_are_accused_of_nothing(faults: Faults) -> None:
    made, heard = swarm(faults=faults, steps=20), Accusations()
    made.world.watch(heard)
    report = made.run()
    assert report.violations == []
    assert report.certified_steps == 20
    assert heard.reasons == set()
    assert bans_of(report) == []


@pytest.mark.parametrize(
    "attack", [pytest.param(attack, marks=() if attack == "sign_flip" else pytest.mark.slow) for attack in BANNED_FOR]
)
def test_cheats_are_banned_as_where_all_machines_are_alike(attack: str) -> None:
    report = swarm(attack).run()
    assert report.violations == []
    assert {ban.peer for ban in bans_of(report)} == liars_of(report)
    assert {ban.reason for ban in bans_of(report)} == BANNED_FOR[attack]


class SilentForger(GradientAttack):
    """Forges, and shows nobody any bytes, its own or those of its kind."""

    def serves(self, host: object) -> bool:
        return False


@pytest.mark.slow
def test_keeping_bytes_back_helps_nobody_whose_work_honest_aggregators_have_seen() -> None:
    made = swarm("sign_flip")
    for host in made.hosts:
        if host.adversary is not None:
            host.adversary = SilentForger(host.adversary.mind)
    report = made.run()
    assert report.violations == []
    assert {ban.peer for ban in bans_of(report)} == liars_of(report)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["sign_flip", "false_accusation"])
def test_where_nobody_shows_bytes_what_judges_have_aggregated_themselves_still_convicts(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "show_committed", lambda *_: None)
    report = swarm(attack).run()
    assert {ban.peer for ban in bans_of(report)} <= liars_of(report)
    assert any(ban.reason == Reason.WRONG_GRADIENT for ban in bans_of(report)) == (attack == "sign_flip")


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["sign_flip", "false_accusation", "lazy_validator"])
def test_without_any_bytes_nobody_is_banned_for_them(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs no bytes is found: a finding, and what proves itself."""
    monkeypatch.setattr(Mixed, "compare", lambda self, state, seed, parts, committed: (None,) * parts)
    bans = bans_of(report := swarm(attack, steps=25).run())
    assert {ban.peer for ban in bans} <= liars_of(report)
    assert not any(ban.reason == Reason.WRONG_GRADIENT for ban in bans)
    assert bool(bans) == (attack != "sign_flip")


@pytest.mark.parametrize("distance", [0.5 * BOUND, 1.5 * BOUND])
def test_between_the_bound_and_what_is_accused_nobody_is_punished(distance: float) -> None:
    made, heard = swarm("sign_flip", wrong=distance, steps=20), Accusations()
    made.world.watch(heard)
    report = made.run()
    assert heard.reasons == set()
    assert bans_of(report) == []


def test_just_beyond_it_whoever_is_accused_is_convicted_and_not_its_accuser() -> None:
    report = swarm("sign_flip", wrong=2.2 * BOUND).run()
    assert {ban.peer for ban in bans_of(report)} == liars_of(report)
    assert {ban.reason for ban in bans_of(report)} == {Reason.WRONG_GRADIENT}
