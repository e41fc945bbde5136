"""What liars may try against justice itself: floods, accusations nobody can judge, and slips of those that restart."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from crowdsurf.protocol import effects, events, limits
from crowdsurf.protocol.assignment import proposers
from crowdsurf.protocol.cases import Proof, objection_to, proof_holds, subject_of
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Cut, Envelope, Kind, Reason, Reveal, Verdict, Vote, indexes_of
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.wire import pack
from tests.protocol.court import assert_just, opened, others_of, run_until_drawn, say, watchful_swarm, working_swarm
from tests.protocol.swarm import FakePeer, FakeSigner, Swarm, name, verify_mac


@pytest.mark.parametrize("seed", [0, 1])
def test_liars_that_propose_drop_nobody_honest(seed: int) -> None:
    """They name themselves and as few others as they may. Whoever is left out would have missed the step, propose last
    in the next one, and soon be out; then liars would be a quorum, and could ban whom they like."""
    swarm = Swarm(5, seed=seed, steps=30, audit=AuditSection(rate=0.0625))
    liars = random.Random(seed).sample(swarm.list, 2)
    for liar in liars:
        name_few_others(liar, {peer.id for peer in liars})
    swarm.start()
    assert swarm.run_to_end(3000)
    headers = [certificate.header for certificate in swarm.list[0].journal_certificates]
    assert any(len(indexes_of(header.contributors)) == 3 for header in headers)
    for peer in swarm.list:
        assert len(peer.node.chain.head.roster) == 5
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def name_few_others(liar: FakePeer, liars: set[PeerId], is_silent: bool = False) -> None:
    """As proposer of a step a liar makes a cut of its own kind and just enough others; and names nobody else's
    aggregate if `is_silent`."""
    give, known = liar.give, list[StepMachine]()

    def changed(event: events.Event) -> None:
        machine = liar.node.machine
        if machine is not None and machine not in known:
            known.append(machine)
            machine.holdings.whole_cut = lambda: few(machine)  # type: ignore[method-assign]
            if is_silent:
                machine.holdings.reveal = silent(machine)  # type: ignore[method-assign]
        give(event)

    def silent(machine: StepMachine) -> Callable[[Digest, bytes], Reveal]:
        honest = machine.holdings.reveal

        def reveal(name: Digest, nonce: bytes) -> Reveal:
            said, cut = honest(name, nonce), machine.transcript.cut(name)
            duties = machine.facts.duties(cut) if cut is not None else ()
            named = (one if by in liars else b"" for one, by in zip(said.aggregates, duties, strict=False))
            return msgspec.structs.replace(said, aggregates=tuple(named))

        return reveal

    def few(machine: StepMachine) -> Cut:
        said, peers = machine.transcript.commits, machine.facts.peers
        order = sorted((peers[i] not in liars, i) for i in range(len(peers)) if peers[i] in said)
        chosen = sorted(index for _, index in order[: machine.facts.quorum])
        return Cut(machine.facts.head.previous, tuple((index, said[peers[index]].digest) for index in chosen))

    liar.give = changed  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", [0, 1])
def test_liars_that_propose_send_nobody_honest_to_rest(seed: int) -> None:
    """Nor do they name an aggregate of anybody else when they open their nonces: among few contributors nobody honest
    can have its part count, and strikes for that would make liars the majority in some ten steps."""
    swarm = Swarm(5, seed=seed, steps=30, audit=AuditSection(rate=0.0625))
    liars = random.Random(seed).sample(swarm.list, 2)
    for liar in liars:
        name_few_others(liar, {peer.id for peer in liars}, is_silent=True)
    swarm.start()
    assert swarm.run_to_end(3000)
    headers = [certificate.header for certificate in swarm.list[0].journal_certificates]
    assert any(not all(header.parts) for header in headers)
    for peer in swarm.list:
        assert len(peer.node.chain.head.roster) == 5
    assert_just(swarm, reason=Reason.EQUIVOCATION)


@pytest.mark.parametrize("step", [4, 10**6])
def test_an_accusation_about_what_has_not_happened_yet_stops_nobody(step: int) -> None:
    """No header can carry such a ban, so a proposer that tried would never be voted for."""
    swarm = working_swarm()
    liar, victim = swarm.list[:2]
    say(swarm, liar, Accusation(victim.id, Reason.EQUIVOCATION, step, b"no proof"), others_of(swarm, liar))
    assert all(peer.refused[-1].code is Code.EXPIRED for peer in others_of(swarm, liar))
    assert swarm.run_to_end()
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def test_a_flood_of_false_proofs_convicts_once_and_fills_nothing() -> None:
    """Everybody hears other ones, more than there is room for; the proposer's is taken because its header names it."""
    swarm = working_swarm()
    liar, victim = swarm.list[:2]
    honest = others_of(swarm, liar)
    for number in range(limits.EVIDENCE_MAX + 10):
        for peer in honest:
            proof = pack([number, peer.id])
            say(swarm, liar, Accusation(victim.id, Reason.EQUIVOCATION, 3, proof), [peer])
    assert all(len(peer.node.auditor.tribunal._cases) == 1 for peer in honest)
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.FALSE_ACCUSATION)
    assert {ban.step for story in victim.stories for ban in story.banned} == {3}


def test_strangers_are_not_accused_because_bans_of_them_would_push_out_old_ones() -> None:
    swarm = working_swarm()
    liar = swarm.list[0]
    stranger = FakeSigner(77)
    run_id = liar.node.chain.run_id
    signed = [seal(stranger, run_id, Slot(3, 0, Kind.VOTE, b""), Vote(name(text))) for text in ("one", "two")]
    pairs = sorted((one.digest, one.envelope.signature) for one in signed)
    proof = pack(Proof(3, 0, Kind.VOTE, b"", pairs[0], pairs[1]))
    accusation = Accusation(stranger.peer_id, Reason.EQUIVOCATION, 3, proof)
    assert proof_holds(accusation, run_id, verify_mac)
    say(swarm, liar, accusation, others_of(swarm, liar))
    assert all(peer.refused[-1].code is Code.BAD_ACCUSATION for peer in others_of(swarm, liar))
    assert swarm.run_to_end()
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def test_one_dispute_is_one_case_however_it_is_spelled() -> None:
    """Else a false accuser could show everybody another spelling, and no case would get enough verdicts."""
    swarm = watchful_swarm(5, steps=12)
    validator, target, step = run_until_drawn(swarm, "validator")
    for number, peer in enumerate(others_of(swarm, validator)):
        for spelling in range(5):
            proof = pack([number, spelling])
            say(swarm, validator, Accusation(target.id, Reason.WRONG_GRADIENT, step, proof), [peer])
            assert peer.refused[-1].code is Code.BAD_ACCUSATION
    say(swarm, validator, Accusation(target.id, Reason.WRONG_GRADIENT, step), others_of(swarm, validator))
    assert swarm.run_to_end()
    assert_just(swarm, validator, reason=Reason.FALSE_ACCUSATION)


def is_verdict(effect: effects.Effect) -> bool:
    return isinstance(effect, effects.SendEnvelope) and effect.envelope.kind == Kind.VERDICT


def test_two_that_accuse_falsely_with_the_same_bytes_are_banned_both() -> None:
    """A validator and its target say the same of an honest aggregator, and judge nobody. Whom one hears first differs,
    and decides nothing."""
    swarm = watchful_swarm(7, steps=14)
    validator, target, step = run_until_drawn(swarm, "validator")
    liars = (validator, target)
    for liar in liars:
        liar.before_effect = lambda effect: not is_verdict(effect)
    record = validator.node.auditor.tribunal.record(step)
    assert record is not None
    shown = next(one for one in record.projections if one.sender not in (validator.id, target.id))
    accusation = objection_to(shown, record.head.roster.indexes[target.id])
    for number, peer in enumerate(peer for peer in swarm.list if peer not in liars):
        for liar in liars if number % 2 else liars[::-1]:
            say(swarm, liar, accusation, [peer])
    assert swarm.run_to_end()
    assert_just(swarm, *liars, reason=Reason.FALSE_ACCUSATION)


def test_a_verdict_that_comes_back_after_a_restart_is_no_surprise() -> None:
    swarm = watchful_swarm(5, steps=12)
    validator, target, step = run_until_drawn(swarm, "validator")
    judge = next(peer for peer in swarm.list if peer not in (validator, target))
    helper = next(peer for peer in swarm.list if peer not in (validator, target, judge))
    say(swarm, validator, Accusation(target.id, Reason.WRONG_GRADIENT, step), others_of(swarm, validator))

    def mine(peer: FakePeer) -> list[Envelope]:
        return [e for e in peer.journal_signed if e.kind == Kind.VERDICT and e.sender == judge.id]

    assert swarm.run(lambda: bool(mine(judge)))
    swarm.kill(judge, noticed=False)
    judge.restart()
    case = opened(mine(judge)[0]).payload
    assert isinstance(case, Verdict)
    for envelope in helper.node.auditor.messages(case.case) + mine(judge):
        judge.give(events.EnvelopeReceived(helper.id, envelope))
    assert swarm.run_to_end()
    assert_just(swarm, validator, reason=Reason.FALSE_ACCUSATION)


def test_a_restarted_peer_does_not_accuse_twice_in_one_slot() -> None:
    """With another proof of the same it would sign its slot twice, and be banned for that."""
    swarm = working_swarm(steps=8)
    liar, honest = swarm.list[:2]
    run_id = liar.node.chain.run_id

    def hear(*texts: str) -> None:
        for text in texts:
            envelope = seal(liar.signer, run_id, Slot(3, 5, Kind.VOTE, b""), Vote(name(text))).envelope
            honest.give(events.EnvelopeReceived(liar.id, envelope))

    hear("one", "two")
    swarm.kill(honest, noticed=False)
    honest.restart()
    hear("three", "four")
    said = [envelope for envelope in honest.journal_signed if envelope.kind == Kind.ACCUSATION]
    assert len({envelope.payload for envelope in said}) == 1
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.EQUIVOCATION)


def test_old_cases_are_not_opened_and_a_bystander_has_nothing_to_say() -> None:
    swarm = working_swarm(count=5, step=12, steps=14)
    head = swarm.list[0].node.chain.head
    drawn = {peer for audit in head.audits for peer in audit[:2]}
    bystander = next(peer for peer in swarm.list if peer.id not in drawn)
    victim = next(peer for peer in swarm.list if peer is not bystander)
    listener = next(peer for peer in swarm.list if peer not in (bystander, victim))
    for about, said_in, code in (
        (3, 12, Code.EXPIRED),
        (11, 12, Code.BAD_ACCUSATION),
        (11, 3, Code.EXPIRED),
        (11, 21, Code.EXPIRED),
    ):
        accusation = Accusation(victim.id, Reason.WRONG_GRADIENT, about)
        say(swarm, bystander, accusation, [listener], step=said_in)
        assert listener.refused[-1].code is code
    assert not listener.node.auditor.has_cases
    assert swarm.run_to_end()
    assert_just(swarm, reason=Reason.EQUIVOCATION)


def test_a_cut_that_strangers_show_again_and_again_is_answered_to_none_of_them() -> None:
    """Members that show it are asked for what is missing, each once in a while."""
    swarm = Swarm(5, steps=6)
    head = swarm.list[0].node.chain.head
    order = [swarm.peers[head.roster.peers[index]] for index in proposers(head.beacon, head.roster, 0)]
    liar, victim, member = order[:3]
    victim.begin()
    cut = Cut(head.previous, tuple((index, name("no commit", index)) for index in range(5)))
    shown = seal(liar.signer, victim.node.chain.run_id, Slot(0, 0, Kind.PROPOSAL, b""), cut).envelope

    def asked(source: PeerId) -> list[PeerId]:
        wanted = victim.node.handle(events.EnvelopeReceived(source, shown), 1.0)
        return [effect.to for effect in wanted if isinstance(effect, effects.SendWant)]

    assert asked(liar.id) == [liar.id]
    strangers = [FakeSigner(number).peer_id for number in range(100, 110)]
    assert [asked(stranger) for stranger in strangers] == [[]] * 10
    assert [asked(member.id) for _ in range(3)] == [[member.id], [], []]


@pytest.mark.parametrize("is_told_before", [False, True])
def test_who_is_shown_a_second_cut_tells_everybody_whatever_it_knows_of_its_author(is_told_before: bool) -> None:
    """It insists on a ban for it: were it silent because it has heard a false proof from that one before, which nobody
    else has heard, nobody else could propose that ban."""
    swarm = Swarm(5, steps=6, audit=AuditSection(rate=0.0625))
    head = swarm.list[0].node.chain.head
    order = [swarm.peers[head.roster.peers[index]] for index in proposers(head.beacon, head.roster, 0)]
    liar, victim = order[:2]
    swarm.start()
    machine = victim.node.machine
    assert machine is not None
    assert swarm.run(lambda: machine.accepted is not None)
    run_id = victim.node.chain.run_id
    if is_told_before:
        false = Accusation(order[2].id, Reason.EQUIVOCATION, 0, b"not a proof")
        slot = Slot(0, 0, Kind.ACCUSATION, subject_of(false))
        victim.give(events.EnvelopeReceived(liar.id, seal(liar.signer, run_id, slot, false).envelope))
        assert victim.node.auditor.tribunal.is_proven(liar.id)
    assert machine.accepted is not None
    cut = machine.accepted.cut
    second = seal(liar.signer, run_id, Slot(0, 0, Kind.PROPOSAL, b""), Cut(cut.previous, cut.commits[1:])).envelope
    wanted = victim.node.handle(events.EnvelopeReceived(liar.id, second), swarm.now)
    said = [effect.envelope for effect in wanted if isinstance(effect, effects.SendEnvelope)]
    assert [envelope.sender for envelope in said if envelope.kind == Kind.ACCUSATION] == [victim.id]
