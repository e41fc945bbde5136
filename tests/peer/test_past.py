"""What a chain says about its peers: who came, went, was struck, and why."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from crowdsurf.peer.past import Note, Past, past_of
from crowdsurf.protocol.chain import following_roster
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection, Manifest
from crowdsurf.protocol.messages import Header, bitmap_of
from crowdsurf.protocol.outcome import build_header
from crowdsurf.protocol.roster import STRIKE_FADES_STEPS, STRIKES_MAX
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import FakeSigner, verify_mac
from tests.protocol.trials import trial

MISSED_MAX = 2
Change = Callable[[CompleteStep], None]


def play(*changes: Change | None, count: int = 4, **options: object) -> tuple[Past, CompleteStep]:
    """The past of so many steps, in each of which something may go wrong; and the first step."""
    options = {"missed_steps_max": MISSED_MAX} | options
    first = CompleteStep(count, **options)
    past = Past(first.manifest)
    for change in changes:
        step = CompleteStep(count, head=past.head, **options)
        header = step.header
        if change is not None:
            change(step)
            header = build_header(step.facts, step.transcript, step.blobs, step.cut_name, step.cut)
        past.add(step.certificate(header=header), verify_mac)
    return past, first


def without_aggregate_of(member: int) -> Change:
    def change(step: CompleteStep) -> None:
        mine = [part for part in range(len(step.peers)) if step.aggregator(part) == member]
        for part in mine:
            aggregate = step.transcript.aggregate(step.cut_name, part, step.peers[member])
            assert aggregate is not None
            step.blobs.discard(aggregate.digest)

    return change


def without_nonce_of(member: int) -> Change:
    return lambda step: step.transcript.reveals.pop(step.peers[member]) and None


def test_founders_became_members_and_nothing_else_happened() -> None:
    past, step = play(None, None)
    assert past.notes.keys() == set(step.peers)
    assert all(list(notes) == [Note(0, "joined")] for notes in past.notes.values())


def test_an_aggregate_that_did_not_come_is_a_strike() -> None:
    past, step = play(None, without_aggregate_of(2))
    assert list(past.notes[step.peers[2]])[1:] == [Note(1, "no_aggregate")]
    assert past.head.roster.members[2].strikes == 1
    assert [len(past.notes[peer]) for peer in step.peers] == [1, 1, 2, 1]


def test_a_nonce_that_was_not_opened_is_a_strike_and_a_rest() -> None:
    past, step = play(None, without_nonce_of(1))
    assert list(past.notes[step.peers[1]])[1:] == [Note(1, "no_nonce"), Note(1, "rests")]
    assert step.peers[1] not in past.head.roster.indexes


def test_a_validator_that_could_not_recompute_gets_a_strike() -> None:
    options = {"missed_steps_max": MISSED_MAX, "audit": AuditSection(rate=0.25)}
    past, step = play(None, **options)
    (validator,) = past.head.validators
    second = CompleteStep(4, head=past.head, **options)
    header = msgspec.structs.replace(second.header, excused=bitmap_of([validator], 4))
    following = following_roster(past.head, header, MISSED_MAX)
    header = msgspec.structs.replace(header, next_roster=following.digest)
    past.add(second.certificate(header=header), verify_mac)
    assert list(past.notes[step.peers[validator]])[1:] == [Note(1, "no_finding")]


def test_too_many_strikes_are_a_rest() -> None:
    assert STRIKES_MAX < STRIKE_FADES_STEPS
    # Who fails in every step misses every step too; so it is let off in between.
    bad, good = without_aggregate_of(0), None
    past, step = play(*([bad, good] * STRIKES_MAX)[:-1])
    whats = [note.what for note in past.notes[step.peers[0]]]
    assert whats == ["joined", *["no_aggregate"] * STRIKES_MAX, "rests"]


def test_bans_are_noted_with_their_votes() -> None:
    case = trial("sign_flip")
    past = past_of(case.certificates, case.manifest, case.registry.verify)
    assert past.bans.keys() == {PeerId(evidence.ban.peer) for evidence in case.kept}
    for evidence in case.kept:
        known = past.bans[PeerId(evidence.ban.peer)]
        assert known.ban == evidence.ban
        assert known.step == evidence.certificate.header.step
        assert known.votes > known.members / 2
        assert past.notes[PeerId(evidence.ban.peer)][-1] == Note(known.step, "banned")


def test_who_misses_too_much_is_dropped_and_may_come_back() -> None:
    past, step = play()
    absent = step.peers[3]
    for _ in range(MISSED_MAX + 1):
        part = CompleteStep(4, contributors=[0, 1, 2], head=past.head, missed_steps_max=MISSED_MAX)
        past.add(part.certificate(range(3)), verify_mac)
    assert past.notes[absent][-1] == Note(MISSED_MAX, "dropped")
    assert not [note for note in past.notes[absent] if note.what == "no_aggregate"]


def test_who_leaves_and_who_joins_is_noted() -> None:
    past, step = play()
    newcomer = FakeSigner(9).peer_id
    leaver = step.peers[0]
    everybody = range(4)
    moving = CompleteStep(
        4,
        head=past.head,
        missed_steps_max=MISSED_MAX,
        joins=dict.fromkeys(everybody, (newcomer,)),
        leaves=dict.fromkeys(everybody, (leaver,)),
    )
    past.add(moving.certificate(), verify_mac)
    assert list(past.notes[newcomer]) == [Note(0, "joined")]
    assert list(past.notes[leaver])[1:] == [Note(0, "left")]


def test_a_forged_step_is_refused_and_notes_nothing() -> None:
    past, step = play()
    certificate = step.certificate()
    header: Header = msgspec.structs.replace(certificate.header, left=(step.peers[0],))
    with pytest.raises(Refusal):
        past.add(msgspec.structs.replace(certificate, header=header), verify_mac)
    assert past.head.step == 0
    manifest: Manifest = step.manifest
    with pytest.raises(Refusal):
        past_of([certificate, certificate], manifest, verify_mac)
