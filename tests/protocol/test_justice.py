"""Whole nodes with audits: every kind of cheat ends in a ban, and nobody honest is ever banned.

The idea: what the simulator tries with many seeds and peers, these tests show one rule at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.cases import case_name, proof_holds
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Ban, Commit, Join, Kind, Payload, Reason, Verdict, Vote
from crowdsurf.protocol.recheck import recheck
from crowdsurf.protocol.roster import REST_STEPS, quorum_of
from tests.protocol.court import (
    BANNED,
    assert_just,
    bans_of,
    forge,
    idle,
    opened,
    others_of,
    proposer_of,
    run_until_drawn,
    say,
    watchful_swarm,
    working_swarm,
)
from tests.protocol.swarm import FakePeer, Swarm, name, verify_mac

# --- cheats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_forged_gradient_is_found_and_banned(seed: int) -> None:
    swarm = watchful_swarm(5, seed)
    forge(swarm.list[seed], from_step=3)
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, swarm.list[seed], reason=Reason.WRONG_GRADIENT)


def test_two_of_five_that_forge_and_protect_each_other_are_banned_both() -> None:
    swarm = watchful_swarm(5, steps=120)
    cheats = swarm.list[:2]
    for peer in cheats:
        forge(peer)
        peer.before_effect = lambda effect: not says_something_against(effect, {cheat.id for cheat in cheats})
    swarm.start()
    assert swarm.run_to_end(6000)
    assert_just(swarm, *cheats, reason=Reason.WRONG_GRADIENT)


def says_something_against(effect: effects.Effect, protected: set[PeerId]) -> bool:
    if not isinstance(effect, effects.SendEnvelope | effects.PersistSigned) or effect.envelope.sender not in protected:
        return False
    payload = opened(effect.envelope).payload
    named = payload.accused if isinstance(payload, Accusation) else getattr(payload, "guilty", None)
    return named in protected


@pytest.mark.parametrize("seed", range(3))
def test_a_lazy_validator_is_found_and_banned(seed: int) -> None:
    swarm = watchful_swarm(5, seed)
    idle(swarm.list[seed])
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, swarm.list[seed], reason=Reason.WRONG_FINDING)


def test_a_finding_that_is_known_late_is_compared_all_the_same() -> None:
    """The target's worker is busy until the step in which the finding was filed is over."""
    swarm = watchful_swarm(5, 0)
    idle(swarm.list[0])
    for peer in swarm.list[1:]:
        later = peer._later

        def slowly(seconds: float, event: events.Event, later: Callable[..., None] = later) -> None:
            later(seconds + 0.5 * isinstance(event, events.FindingKnown), event)

        peer._later = slowly  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, swarm.list[0], reason=Reason.WRONG_FINDING)


def test_a_copied_finding_convicts_too() -> None:
    """What one validator found is of no use to another one: its own name goes into it."""
    swarm = watchful_swarm(5, 1)
    cheat = swarm.list[1]
    compute = cheat._compute

    def copy(effect: effects.Effect) -> None:
        if isinstance(effect, effects.RecomputeWork) and effect.finder == cheat.id:
            parts = tuple(name("gradient", effect.state, effect.seed, part) for part in range(effect.parts))
            finding = name("finding", effect.state, effect.seed, swarm.list[0].id)
            cheat._later(0.01, events.WorkRecomputed(effect.step, effect.seed, cheat.id, parts, finding))
        else:
            compute(effect)

    cheat._compute = copy  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, cheat, reason=Reason.WRONG_FINDING)


def test_a_validator_that_accuses_its_target_falsely_is_banned() -> None:
    swarm = watchful_swarm(5, steps=12)
    validator, target, step = run_until_drawn(swarm, "validator")
    say(swarm, validator, Accusation(target.id, Reason.WRONG_GRADIENT, step), others_of(swarm, validator))
    assert swarm.run_to_end()
    assert_just(swarm, validator, reason=Reason.FALSE_ACCUSATION)


def test_a_target_that_accuses_its_validator_falsely_is_banned() -> None:
    swarm = watchful_swarm(5, steps=12)
    validator, target, step = run_until_drawn(swarm, "target")
    say(swarm, target, Accusation(validator.id, Reason.WRONG_FINDING, step + 1), others_of(swarm, target))
    assert swarm.run_to_end()
    assert_just(swarm, target, reason=Reason.FALSE_ACCUSATION)


def test_a_proof_that_proves_nothing_convicts_its_sender() -> None:
    swarm = working_swarm()
    liar, victim = swarm.list[:2]
    say(swarm, liar, Accusation(victim.id, Reason.EQUIVOCATION, 3, b"not a proof"), others_of(swarm, liar))
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)


def test_who_signs_two_commits_is_banned_and_the_step_goes_on() -> None:
    swarm = watchful_swarm(4, steps=8)
    liar = swarm.list[0]
    send = swarm.deliver

    def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if sender is liar and isinstance(event, events.EnvelopeReceived) and event.envelope.kind == Kind.COMMIT:
            commit = opened(event.envelope).payload
            if to == swarm.list[1].id and isinstance(commit, Commit):
                other = msgspec.structs.replace(commit, loss=9.0)
                slot = Slot(event.envelope.step, 0, Kind.COMMIT, b"")
                send(
                    sender,
                    to,
                    events.EnvelopeReceived(liar.id, seal(liar.signer, event.envelope.run_id, slot, other).envelope),
                )
                return
        send(sender, to, event)

    swarm.deliver = deliver  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.EQUIVOCATION)
    assert len(swarm.list[1].stories) == 8


# --- the innocent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 12))])
def test_nobody_honest_is_banned_when_messages_are_lost_and_late(seed: int) -> None:
    swarm = watchful_swarm(5, seed, steps=25)
    swarm.loses = lambda sender, receiver: swarm.random.random() < 0.15
    swarm.delay = lambda: swarm.random.expovariate(10)
    swarm.start()
    assert swarm.run_to_end(6000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)


@pytest.mark.parametrize("seed", range(8))
def test_nobody_honest_is_banned_when_peers_restart(seed: int) -> None:
    """What they computed and found was in memory; what they signed is not forgotten."""
    swarm = watchful_swarm(5, seed, steps=15)
    swarm.start()
    for number, peer in enumerate(swarm.list):
        moment = 1.0 + number * 0.7 + swarm.random.random()
        swarm.at(moment, lambda peer=peer: swarm.kill(peer) if not peer.finished else None)  # type: ignore[misc]
        swarm.at(moment + swarm.random.random() * 0.5, lambda peer=peer: None if peer.alive else peer.restart())  # type: ignore[misc]
    swarm.run(lambda: swarm.now > 8.0)
    assert swarm.run_to_end(3000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def test_a_validator_that_can_not_do_the_work_again_is_excused() -> None:
    """It is in the step, gets a strike, and nobody accuses it."""
    swarm = watchful_swarm(5, steps=12)
    for peer in swarm.list:
        fail_to_recompute(peer, 5)
    swarm.start()
    assert swarm.run_to_end()
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    headers = [certificate.header for certificate in swarm.list[0].journal_certificates]
    assert [int.from_bytes(header.excused, "little").bit_count() for header in headers] == [0] * 6 + [1] + [0] * 5
    assert all(len(story.contributors) == 5 for story in swarm.list[0].stories)
    assert sum(member.strikes for member in swarm.list[0].node.chain.head.roster.members) == 1


def fail_to_recompute(peer: FakePeer, step: int) -> None:
    compute = peer._compute

    def fail(effect: effects.Effect) -> None:
        if isinstance(effect, effects.RecomputeWork) and effect.step == step:
            peer._later(0.1, events.RecomputeFailed(effect.step, effect.seed, effect.finder))
        else:
            compute(effect)

    peer._compute = fail  # type: ignore[method-assign]


def test_a_forger_that_leaves_after_its_step_is_found_all_the_same() -> None:
    """Its work is still looked at, and the ban keeps it from coming back."""
    swarm = watchful_swarm(5, steps=60)
    forger = swarm.list[0]
    forge(forger)
    swarm.start()
    drawn = swarm.list[1].node
    assert swarm.run(lambda: any(audit.target == forger.id for audit in drawn.chain.head.audits))
    swarm.kill(forger)
    assert swarm.run_to_end(3000)
    assert bans_of(swarm.list[1]) == [(forger.id, Reason.WRONG_GRADIENT)]


def test_without_audits_nobody_validates_and_a_forger_stays() -> None:
    swarm = Swarm(4, steps=20, audit=AuditSection(rate=0.0))
    forge(swarm.list[0])
    swarm.start()
    assert swarm.run_to_end()
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    assert not any(peer.evidence for peer in swarm.list)


# --- withheld nonces -----------------------------------------------------------------------------------------


def keep_nonce(peer: FakePeer, *steps: int) -> None:
    """It never shows its nonce in these steps."""

    def before(effect: effects.Effect) -> bool:
        hidden = isinstance(effect, effects.SendEnvelope | effects.PersistSigned)
        if not hidden or effect.envelope.kind != Kind.REVEAL:  # type: ignore[union-attr]
            return True
        return effect.envelope.sender != peer.id or effect.envelope.step not in steps  # type: ignore[union-attr]

    peer.before_effect = before


def test_a_withheld_nonce_voids_the_step_and_the_withholder_is_out_for_a_while() -> None:
    swarm = watchful_swarm(4, steps=30)
    silent = swarm.list[2]
    keep_nonce(silent, 4)
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    stories = swarm.list[0].stories
    assert [story.step for story in stories if story.is_void] == [4]
    assert stories[4].void_parts == 4
    for peer in swarm.list:
        assert peer.states[5] == name("state", peer.states[4], (b"",) * 4)  # nobody applied anything
    out = [story.step for story in stories if silent.id not in story.roster]
    assert out[0] == 4
    assert len(out) >= REST_STEPS
    assert silent.id in stories[-1].contributors


def test_the_step_after_a_void_one_is_another_draw_without_the_withholder() -> None:
    swarm = working_swarm(4, step=4)
    proposer = proposer_of(swarm)
    silent = next(peer for peer in swarm.list if peer is not proposer)
    keep_nonce(silent, 4)
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 5)
    head, journal = swarm.list[0].node.chain.head, swarm.list[0].journal_certificates
    assert silent.id not in head.roster.indexes
    assert head.audits == ()
    assert head.beacon not in {certificate.header.beacon for certificate in journal[:4]}
    withheld = [bool(nonce) for nonce in journal[4].header.nonces]
    assert withheld.count(False) == 1


def test_who_forges_and_keeps_its_nonce_when_it_is_about_to_be_looked_at_is_banned_all_the_same() -> None:
    """What it has done in the void step is looked at by several, drawn from a beacon that it could not foresee."""
    swarm = working_swarm(7, step=4, steps=12)
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 5)
    head = swarm.list[0].node.chain.head  # nobody has begun with the step
    proposer = proposer_of(swarm)
    workers = [peer for peer in swarm.list if head.roster.indexes[peer.id] not in head.validators]
    cheat = next(peer for peer in workers if peer is not proposer)
    keep_nonce(cheat, 5)
    forge(cheat, from_step=5)
    assert swarm.run_to_end(3000)
    watcher = next(peer for peer in swarm.list if peer is not cheat)
    assert [story.step for story in watcher.stories if story.is_void] == [5]
    (banned_in,) = [story.step for story in watcher.stories if story.banned]
    assert bans_of(watcher) == [(cheat.id, Reason.WRONG_GRADIENT)]
    assert banned_in <= 5 + 4
    kept = [evidence for peer in swarm.list for evidence in peer.evidence]
    assert kept
    for evidence in kept:
        found = recheck(evidence, watcher.journal_certificates, swarm.manifest, verify_mac)
        assert (found.ban.peer, found.audit is not None) == (cheat.id, True)


def test_who_dodges_audits_in_cuts_of_a_bare_quorum_rests_and_its_work_is_owed() -> None:
    """Of five members two are not in the step. Nobody was to blame then, and whoever forged could dodge for ever."""
    swarm = working_swarm(5, step=4, steps=24)
    assert swarm.run(lambda: swarm.list[0].node.chain.head.step == 5)
    head = swarm.list[0].node.chain.head
    workers = [peer for peer in swarm.list if head.roster.indexes[peer.id] not in head.validators]
    cheat, *unheard = [peer for peer in workers if peer is not proposer_of(swarm)][:3]
    send, names = swarm.deliver, {peer.id for peer in unheard}

    def deliver(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        said = event.envelope if isinstance(event, events.EnvelopeReceived) else None
        if said is None or (said.kind, said.step) != (Kind.COMMIT, 5) or said.sender not in names:
            send(sender, to, event)

    swarm.deliver = deliver  # type: ignore[method-assign]
    keep_nonce(cheat, 5)
    forge(cheat, from_step=5)
    watcher = unheard[0]
    assert swarm.run(lambda: watcher.node.chain.head.step == 6)
    head = watcher.node.chain.head
    assert watcher.stories[5].is_void
    assert len(watcher.stories[5].contributors) == 3
    assert [rest.peer for rest in head.roster.resting] == [cheat.id]
    assert [(owed.target, owed.step) for owed in head.owed] == [(cheat.id, 5)]
    assert swarm.run_to_end(3000)
    assert bans_of(watcher) == [(cheat.id, Reason.WRONG_GRADIENT)]


def test_who_withholds_again_and_again_is_out_for_longer_and_longer() -> None:
    swarm = watchful_swarm(4, steps=60)
    silent = swarm.list[2]
    keep_nonce(silent, *range(4, 60))
    swarm.start()
    assert swarm.run_to_end(6000)
    void = [story.step for story in swarm.list[0].stories if story.is_void]
    assert len(void) >= 3
    gaps = [after - before for before, after in pairwise(void)]
    assert gaps == sorted(gaps)
    assert gaps[0] > REST_STEPS
    assert gaps[1] > 2 * REST_STEPS
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def test_an_honest_member_whose_parts_are_withheld_opens_its_nonce_with_the_others() -> None:
    """One member sends it no parts and no aggregates until long after everybody else is done with them. It gives those
    that may still come one delivery, because aggregates that nobody had heard of count for nothing."""
    swarm = watchful_swarm(5, steps=6)
    cheat, victim = swarm.list[0], swarm.list[1]
    deliver_blob = swarm.deliver_blob

    def withhold(sender: FakePeer, to: PeerId, digest: bytes, lossless: bool = False) -> None:
        if to != victim.id or sender is not cheat:
            return deliver_blob(sender, to, digest, lossless)  # type: ignore[arg-type]
        others = [peer for peer in swarm.list[2:] if digest in peer.blobs]
        if lossless and others:  # it was asked for, and whoever asks goes on to the next one
            deliver_blob(others[0], to, digest, lossless)  # type: ignore[arg-type]
        elif lossless:
            victim._later(0.1, events.BlobFailed(digest))

    swarm.deliver_blob = withhold  # type: ignore[method-assign]
    opened_at: dict[tuple[int, PeerId], float] = {}
    deliver = swarm.deliver

    def watch(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived) and event.envelope.kind == Kind.REVEAL:
            opened_at.setdefault((event.envelope.step, PeerId(event.envelope.sender)), swarm.now)
        deliver(sender, to, event)

    swarm.deliver = watch  # type: ignore[method-assign]
    swarm.start()
    assert swarm.run_to_end(3000)
    assert_just(swarm, reason=Reason.EQUIVOCATION)
    assert not any(story.is_void for story in swarm.list[2].stories)
    assert all(victim.id in story.roster for story in swarm.list[2].stories)
    for step in range(6):
        first = min(moment for (its, _), moment in opened_at.items() if its == step)
        assert opened_at[step, victim.id] < first + 0.5 + 0.2


# --- after the ban -------------------------------------------------------------------------------------------


def swarm_with_a_ban(steps: int = 12) -> tuple[Swarm, FakePeer]:
    """The first of four was banned in step 3 or 4 for a false proof; the others are at work in step 6."""
    swarm = working_swarm(steps=steps)
    liar, victim = swarm.list[:2]
    say(swarm, liar, Accusation(victim.id, Reason.EQUIVOCATION, 3, b"not a proof"), others_of(swarm, liar))
    honest = others_of(swarm, liar)
    assert swarm.run(lambda: all(peer.node.chain.head.step == 6 and peer.node.machine for peer in honest))
    return swarm, liar


def test_a_ban_survives_a_restart() -> None:
    swarm, liar = swarm_with_a_ban()
    for peer in others_of(swarm, liar):
        swarm.kill(peer)
        peer.restart()
        assert peer.node.chain.head.roster.banned == (liar.id,)
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)


def test_a_banned_peer_that_restarts_learns_it_from_its_own_journal() -> None:
    swarm, liar = swarm_with_a_ban()
    liar.finished = ""
    liar.restart()
    swarm.run(lambda: bool(liar.finished), swarm.now + 5.0)
    assert liar.finished == BANNED


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.VOTE, Kind.JOIN, Kind.ACCUSATION])
def test_messages_of_a_banned_peer_are_refused_whoever_hands_them_over(kind: Kind) -> None:
    swarm, liar = swarm_with_a_ban()
    victim, bystander = swarm.list[1], swarm.list[2]
    payloads: dict[Kind, Payload] = {
        Kind.COMMIT: Vote(name("x")),
        Kind.VOTE: Vote(name("x")),
        Kind.JOIN: Join(),
        Kind.ACCUSATION: Accusation(victim.id, Reason.EQUIVOCATION, 6, b"again"),
    }
    run_id = victim.node.chain.run_id
    envelope = seal(liar.signer, run_id, Slot(6, 0, kind, b""), payloads[kind]).envelope
    for source in (liar.id, bystander.id):
        before = len(victim.refused)
        victim.give(events.EnvelopeReceived(source, envelope))
        assert [refused.code for refused in victim.refused[before:]] == [Code.BANNED]
    mine = seal(bystander.signer, run_id, Slot(6, 0, Kind.JOIN, b""), Join()).envelope
    before = len(victim.refused)
    victim.give(events.EnvelopeReceived(liar.id, mine))
    assert [refused.code for refused in victim.refused[before:]] == [Code.BANNED]
    assert liar.id not in victim.node.contacts()
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)


def test_the_evidence_of_a_proof_is_the_proof() -> None:
    swarm = watchful_swarm(4, steps=8)
    swarm.start()
    assert swarm.run(lambda: all(peer.node.chain.head.step == 3 and peer.node.machine for peer in swarm.list))
    liar, victim = swarm.list[:2]
    node = victim.node
    for text in ("one", "two"):
        slot = Slot(3, 5, Kind.VOTE, b"")
        victim.give(
            events.EnvelopeReceived(liar.id, seal(liar.signer, node.chain.run_id, slot, Vote(name(text))).envelope)
        )
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.EQUIVOCATION)
    for peer in others_of(swarm, liar):
        (evidence,) = peer.evidence
        accusation = opened(evidence.accusation).payload
        assert isinstance(accusation, Accusation)
        assert evidence.ban in evidence.certificate.header.bans
        assert evidence.ban == Ban(liar.id, Reason.EQUIVOCATION, 3, opened(evidence.accusation).digest)
        assert proof_holds(accusation, node.chain.run_id, verify_mac)
        assert (evidence.verdicts, evidence.exhibits) == ((), ())


def test_the_evidence_of_a_recomputation_is_the_accusation_the_commit_and_a_quorum_of_verdicts() -> None:
    swarm = watchful_swarm(5)
    forge(swarm.list[0], from_step=3)
    swarm.start()
    assert swarm.run_to_end(3000)
    chain = Chain(swarm.manifest)
    for certificate in swarm.list[1].journal_certificates:
        if any(ban.peer == swarm.list[0].id for ban in certificate.header.bans):
            break
        chain.extend(certificate, verify_mac)
    before = chain.head
    evidence = next(item for peer in swarm.list[1:] for item in peer.evidence)
    (ban,) = certificate.header.bans
    assert (evidence.ban, evidence.certificate.header) == (ban, certificate.header)
    accusation = opened(evidence.accusation)
    assert case_name(accusation, False) == ban.case
    found = {opened(envelope).sender: opened(envelope).payload for envelope in evidence.verdicts}
    guilty = [peer for peer, payload in found.items() if payload == Verdict(ban.case, ban.peer)]
    assert len(guilty) >= quorum_of(len(before.roster), "majority")
    assert set(guilty) <= set(before.roster.peers)
    (exhibit,) = evidence.exhibits
    assert opened(exhibit).sender == ban.peer
    commit = opened(exhibit).payload
    assert isinstance(commit, Commit)
    assert exhibit.step == ban.step
    assert commit.parts == tuple(name("forged", ban.step, part) for part in range(5))
