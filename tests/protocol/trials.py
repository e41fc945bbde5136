"""Simulated swarms in which liars were banned, and what their judges kept: material for tests of evidence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import msgspec

from crowdsurf.protocol import wire
from crowdsurf.protocol.chain import Chain, Head, following_roster, vote_message
from crowdsurf.protocol.envelope import Signer, Verify
from crowdsurf.protocol.evidence import Evidence, pack_evidence
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection, Manifest, run_id_of
from crowdsurf.protocol.messages import Ban, Certificate, Header
from crowdsurf.protocol.sim.keys import Registry
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest, signers

PEERS, STEPS = 6, 20
ATTACKS = {
    "sign_flip": 2,
    "lazy_validator": 3,
    "equivocate": 1,
    "false_accusation": 4,
    "wrong_aggregate": 5,
    "wrong_projection": 6,
}
"""Attacks, and what their bans are for."""


@dataclass(frozen=True)
class Trial:
    """One swarm of six with two liars, both banned."""

    manifest: Manifest
    registry: Registry
    signers: dict[PeerId, Signer]
    """All keys there are."""
    honest: frozenset[PeerId]
    certificates: tuple[Certificate, ...]
    kept: tuple[Evidence, ...]
    """By one honest peer."""
    kept_by_others: tuple[Evidence, ...]

    @property
    def past(self) -> list[bytes]:
        """The certificates as a journal has them."""
        return [wire.pack(certificate) for certificate in self.certificates]

    @functools.cached_property
    def heads(self) -> list[Head]:
        """What each step started from."""
        chain, heads = Chain(self.manifest), []
        for certificate in self.certificates:
            heads.append(chain.head)
            chain.extend(certificate, self.registry.verify)
        return heads

    def banning(self, step: int, *bans: Ban) -> Header:
        """The header of a step as it would be with these bans and no other change of the roster."""
        header = msgspec.structs.replace(self.certificates[step].header, bans=bans, left=(), joined=())
        following = following_roster(self.heads[step], header, self.manifest.missed_steps_max)
        return msgspec.structs.replace(header, next_roster=following.digest)

    def vote(self, header: Header, voter: PeerId) -> tuple[int, int, bytes]:
        """A member's vote for a header, in view 0."""
        message = vote_message(run_id_of(self.manifest), header, 0, voter)
        return self.heads[header.step].roster.indexes[voter], 0, self.signers[voter].sign(message)

    def file(self, evidence: Evidence) -> bytes:
        """An evidence file."""
        return pack_evidence(run_id_of(self.manifest), evidence, self.past)


@functools.cache
def trial(attack: str, seed: int = 1) -> Trial:
    """Always the same one."""
    return _held(attack, seed, signers(seed, PEERS))


def trial_with_keys(attack: str, keys: Sequence[Signer], verify: Verify) -> Trial:
    """The same with real keys, for those that check with nothing else. `keys`: as many as a simulation can use."""
    with (
        mock.patch("crowdsurf.protocol.sim.simulation.signers", lambda _seed, count: list(keys[:count])),
        mock.patch.object(Registry, "verify", lambda _, *question: verify(*question)),
    ):
        return _held(attack, 1, keys)


def _held(attack: str, seed: int, keys: Sequence[Signer]) -> Trial:
    plan = Plan(peers=PEERS, byzantine=2, attack=attack, seed=seed, attack_from=3)
    manifest = msgspec.structs.replace(plain_manifest(plan, STEPS), audit=AuditSection(rate=0.3))
    simulation = Simulation(plan, manifest, NamesCompute())
    report = simulation.run()
    first, *others = report.honest
    assert len(first.evidence) == 2, "the attack was meant to be seen through"
    return Trial(
        manifest,
        simulation.registry,
        {signer.peer_id: signer for signer in keys[:PEERS]},
        frozenset(host.id for host in report.honest),
        tuple(first.disk.certificates),
        tuple(first.evidence),
        tuple(evidence for host in others for evidence in host.evidence),
    )
