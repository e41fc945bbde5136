"""Bad messages into a running swarm: each is refused with its own code, and nothing at all is lost.

The idea: a scene stops a healthy swarm at one moment of step 3, hands one peer one bad message, checks the code it is
refused with, and lets the swarm go on: every later step must still have all contributors and no void part. Bad
messages that need a member's key are signed with that member's real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from crowdsurf.protocol import effects, events, wire
from crowdsurf.protocol.envelope import Opened, Slot, is_equivocation, seal, signed_bytes
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.messages import (
    Aggregate,
    Commit,
    Cut,
    Echo,
    Envelope,
    Header,
    Join,
    Kind,
    Leave,
    Payload,
    Reason,
    Reveal,
    ViewChange,
    Vote,
    payload_digest,
)
from crowdsurf.protocol.outcome import build_header
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase
from tests.protocol.swarm import FakePeer, FakeSigner, Swarm, name, verify_mac

STEP = 3
STEPS = 6


@dataclass
class Scene:
    """A swarm of four stopped in step 3, seen by one of them that is not the proposer."""

    swarm: Swarm
    victim: FakePeer

    @property
    def machine(self) -> StepMachine:
        machine = self.victim.node.machine
        assert machine is not None
        return machine

    @property
    def proposer(self) -> PeerId:
        return self.machine.proposer(0)

    @property
    def bystander(self) -> PeerId:
        """A member that is neither the victim nor the proposer."""
        return next(peer for peer in self.machine.facts.peers if peer not in (self.victim.id, self.proposer))

    def signed(
        self, sender: PeerId, kind: Kind, payload: Payload, view: int = 0, subject: bytes = b"", step: int = STEP
    ) -> Envelope:
        signer = self.swarm.peers[sender].signer
        return seal(signer, self.victim.node.chain.run_id, Slot(step, view, kind, subject), payload).envelope

    def said(self, sender: PeerId, kind: Kind) -> Opened:
        """What the victim has heard a member say."""
        return next(opened for opened in self.machine.transcript.own(sender) if opened.envelope.kind == kind)

    def give(self, envelope: Envelope, source: PeerId | None = None) -> list[Code]:
        """Codes the victim refuses it with."""
        before = len(self.victim.refused)
        self.victim.give(events.EnvelopeReceived(PeerId(envelope.sender) if source is None else source, envelope))
        return [refused.code for refused in self.victim.refused[before:]]

    def finish_unharmed(self) -> None:
        assert self.swarm.run_to_end()
        assert self.swarm.violations == []
        assert len({peer.states[STEPS] for peer in self.swarm.list}) == 1
        for story in self.victim.stories:
            assert (story.void_parts, len(story.contributors), story.banned) == (0, 4, ())

    def finish_without(self, guilty: PeerId) -> None:
        """Somebody signed a slot twice: it is banned, in the step itself or the next, and the others go on."""
        assert self.swarm.run_to_end()
        assert self.swarm.violations == []
        others = [peer for peer in self.swarm.list if peer.id != guilty]
        assert len({peer.states[STEPS] for peer in others}) == 1
        bans = [(story.step, ban.peer, ban.reason) for story in self.victim.stories for ban in story.banned]
        assert bans in ([(STEP, guilty, Reason.EQUIVOCATION)], [(STEP + 1, guilty, Reason.EQUIVOCATION)])
        assert self.swarm.peers[guilty].finished == "this peer is banned from the run"
        assert len(self.victim.stories[-1].contributors) == 3


def scene(wanted: Callable[[StepMachine], bool]) -> Scene:
    swarm = Swarm(4, steps=STEPS)
    swarm.start()
    swarm.run(lambda: all(peer.node.chain.head.step == STEP and peer.node.machine for peer in swarm.list))
    machine = swarm.list[0].node.machine
    assert machine is not None
    victim = next(peer for peer in swarm.list if peer.id != machine.proposer(0))
    result = Scene(swarm, victim)
    assert swarm.run(lambda: victim.node.machine is not None and wanted(victim.node.machine))
    assert victim.node.chain.head.step == STEP
    return result


def working(machine: StepMachine) -> bool:
    return machine.phase is Phase.WORK


def heard_all_commits(machine: StepMachine) -> bool:
    return len(machine.transcript.commits) == 4


def revealing(machine: StepMachine) -> bool:
    return machine.phase is Phase.REVEAL


Make = Callable[[Scene], Envelope]


def a_commit(at: Scene, sender: PeerId, **changes: object) -> Commit:
    facts = at.machine.facts
    good = Commit(
        *(facts.head.previous, facts.state, tuple(name("bad part", part) for part in range(4)), name("nonce"), 0.0, 1)
    )
    return msgspec.structs.replace(good, **changes)


def odd_commit(kind: Kind = Kind.COMMIT, view: int = 0, subject: bytes = b"", **changes: object) -> Make:
    return lambda at: at.signed(at.bystander, kind, a_commit(at, at.bystander, **changes), view, subject)


def tampered(**changes: object) -> Make:
    return lambda at: msgspec.structs.replace(odd_commit()(at), **changes)


def signed_garbage(at: Scene) -> Envelope:
    signer, payload = at.swarm.peers[at.bystander].signer, b"\xc1 garbage"
    run_id = at.victim.node.chain.run_id
    message = signed_bytes(1, run_id, Slot(STEP, 0, Kind.COMMIT, b""), payload_digest(payload), signer.peer_id)
    return Envelope(1, run_id, STEP, 0, Kind.COMMIT, b"", payload, signer.peer_id, signer.sign(message))


def from_a_stranger(at: Scene) -> Envelope:
    run_id = at.victim.node.chain.run_id
    return seal(FakeSigner(99), run_id, Slot(STEP, 0, Kind.COMMIT, b""), a_commit(at, at.bystander)).envelope


def short_cut(at: Scene) -> Envelope:
    commits = tuple((index, name(index)) for index in range(2))
    return at.signed(at.proposer, Kind.PROPOSAL, Cut(at.machine.facts.head.previous, commits))


def cut_of_another_chain(at: Scene) -> Envelope:
    commits = tuple((index, name(index)) for index in range(4))
    return at.signed(at.proposer, Kind.PROPOSAL, Cut(name("other"), commits))


def cut_of_a_bystander(at: Scene) -> Envelope:
    commits = tuple((index, name(index)) for index in range(4))
    return at.signed(at.bystander, Kind.PROPOSAL, Cut(at.machine.facts.head.previous, commits))


EARLY: dict[str, tuple[Make, Code]] = {
    "signed garbage": (signed_garbage, Code.MALFORMED),
    "garbage": (tampered(payload=b"\xc1 garbage"), Code.BAD_SIGNATURE),
    "another run": (tampered(run_id=name("other run")), Code.WRONG_RUN),
    "another version": (tampered(version=2), Code.WRONG_VERSION),
    "an unknown kind": (tampered(kind=31), Code.UNKNOWN_KIND),
    "a forged signature": (tampered(signature=bytes(64)), Code.BAD_SIGNATURE),
    "replayed as another kind": (tampered(kind=int(Kind.REVEAL)), Code.BAD_SIGNATURE),
    "replayed into another view": (tampered(view=1), Code.BAD_SIGNATURE),
    "a stranger's": (from_a_stranger, Code.NOT_MEMBER),
    "from the future": (lambda at: at.signed(at.bystander, Kind.VOTE, Vote(name("x")), step=STEP + 2), Code.FUTURE),
    "a commit in a view": (odd_commit(view=1), Code.MALFORMED),
    "a commit with a subject": (odd_commit(subject=b"s"), Code.MALFORMED),
    "a change to the first view": (
        lambda at: at.signed(at.bystander, Kind.VIEW_CHANGE, ViewChange(None, 0)),
        Code.MALFORMED,
    ),
    "a commit to another chain": (odd_commit(previous=name("other")), Code.WRONG_CHAIN),
    "a commit to another state": (odd_commit(state=name("other")), Code.BAD_COMMIT),
    "a commit of too few parts": (odd_commit(parts=(name("x"),)), Code.BAD_COMMIT),
    "a cut of too few": (short_cut, Code.BAD_PROPOSAL),
    "a cut of another chain": (cut_of_another_chain, Code.WRONG_CHAIN),
    "a cut of the wrong proposer": (cut_of_a_bystander, Code.WRONG_PROPOSER),
    "a nonce without commit": (
        lambda at: at.signed(at.bystander, Kind.REVEAL, Reveal(name("cut"), name("n"))),
        Code.FUTURE,
    ),
    "an old request to join": (lambda at: join_at(at, 200), Code.EXPIRED),
    "a member's request to join": (lambda at: at.signed(at.bystander, Kind.JOIN, Join()), Code.DUPLICATE),
}


def join_at(at: Scene, step: int) -> Envelope:
    return seal(FakeSigner(99), at.victim.node.chain.run_id, Slot(step, 0, Kind.JOIN, b""), Join()).envelope


@pytest.mark.parametrize("case", EARLY)
def test_bad_before_anything_was_said(case: str) -> None:
    make, code = EARLY[case]
    at = scene(working)
    # A duplicate is refused without a word: correct peers repeat themselves.
    assert at.give(make(at)) == ([] if code is Code.DUPLICATE else [code])
    at.finish_unharmed()


def bad_aggregate(at: Scene) -> Envelope:
    accepted = at.machine.accepted
    assert accepted is not None
    part = next(part for part, peer in enumerate(accepted.duties) if peer != at.bystander)
    payload = Aggregate(accepted.name, part, name("lie"), b"\x0f")
    return at.signed(at.bystander, Kind.AGGREGATE, payload, 0, accepted.name + part.to_bytes(2, "big"))


def bad_reveal(at: Scene) -> Envelope:
    return at.signed(at.bystander, Kind.REVEAL, Reveal(name("cut"), name("another nonce")))


def outcome(at: Scene, sender: PeerId, **changes: object) -> Envelope:
    machine = at.machine
    assert machine.accepted is not None
    known = {digest for digest in at.victim.blobs if digest in machine.holdings.blobs}
    header = build_header(machine.facts, machine.transcript, known, machine.accepted.name, machine.accepted.cut)
    return at.signed(sender, Kind.OUTCOME, msgspec.structs.replace(header, **changes))


LATER: dict[str, tuple[Callable[[StepMachine], bool], Make, Code]] = {
    "a second commit": (heard_all_commits, odd_commit(), Code.EQUIVOCATION),
    "somebody else's part": (revealing, bad_aggregate, Code.BAD_AGGREGATE),
    "a nonce not committed to": (heard_all_commits, bad_reveal, Code.BAD_REVEAL),
    "an outcome of the wrong proposer": (revealing, lambda at: outcome(at, at.bystander), Code.WRONG_PROPOSER),
    "an outcome of another step": (revealing, lambda at: outcome(at, at.proposer, step=9), Code.BAD_OUTCOME),
    "an outcome of another roster": (
        revealing,
        lambda at: outcome(at, at.proposer, roster=name("other")),
        Code.BAD_OUTCOME,
    ),
}


SIGNED_TWICE = {"a second commit", "an outcome of another roster"}
"""What its sender says otherwise under the same slot: that is proof. (An outcome of another step is not kept.)"""


@pytest.mark.parametrize("case", LATER)
def test_bad_after_the_commits(case: str) -> None:
    wanted, make, code = LATER[case]
    at = scene(wanted)
    envelope = make(at)
    assert code in at.give(envelope) or wait_for(at, code)
    if case in SIGNED_TWICE:
        at.finish_without(PeerId(envelope.sender))
    else:
        at.finish_unharmed()


def wait_for(at: Scene, code: Code) -> bool:
    """A header is judged when the victim is ready to sign."""
    return at.swarm.run(lambda: code in [refused.code for refused in at.victim.refused])


def test_a_message_of_an_earlier_step_is_stale() -> None:
    at = scene(working)
    old = at.victim.node.catch_up.certificate(STEP - 1)
    assert old is not None
    late = at.signed(at.bystander, Kind.PROPOSAL, Cut(name("x"), ((0, name("y")),)), step=STEP - 1)
    assert at.give(late) == [Code.STALE]
    at.finish_unharmed()


def test_every_message_of_a_run_replayed_into_a_later_step_is_stale() -> None:
    swarm = Swarm(4, steps=STEPS)
    heard: list[Envelope] = []
    victim = swarm.list[0]
    deliver = swarm.deliver

    def record(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if isinstance(event, events.EnvelopeReceived) and to == victim.id:
            heard.append(event.envelope)
        deliver(sender, to, event)

    swarm.deliver = record  # type: ignore[method-assign]
    swarm.start()
    swarm.run(lambda: victim.node.chain.head.step == STEP and victim.node.machine is not None)
    replayed = [envelope for envelope in heard if envelope.step < STEP]
    assert len(replayed) > 30
    before = len(victim.refused)
    for envelope in replayed:
        for step in (envelope.step, STEP):
            moved = msgspec.structs.replace(envelope, step=step)
            victim.give(events.EnvelopeReceived(PeerId(envelope.sender), moved))
    codes = {refused.code for refused in victim.refused[before:]}
    assert codes == {Code.STALE, Code.BAD_SIGNATURE}
    Scene(swarm, victim).finish_unharmed()


def test_the_same_message_twice_changes_nothing_and_is_not_even_worth_a_word() -> None:
    at = scene(heard_all_commits)
    for opened in at.machine.transcript.own(at.bystander):
        event = events.EnvelopeReceived(at.bystander, opened.envelope)
        before = at.machine.phase, at.machine.ballot.view
        assert at.victim.node.handle(event, at.swarm.now) == []
        assert before == (at.machine.phase, at.machine.ballot.view)
    at.finish_unharmed()


def test_own_messages_that_come_back_are_duplicates_and_forged_ones_refused() -> None:
    at = scene(heard_all_commits)
    mine = at.said(at.victim.id, Kind.COMMIT).envelope
    assert at.give(mine, source=at.bystander) == []
    forged = msgspec.structs.replace(mine, payload=wire.pack(a_commit(at, at.victim.id)))
    assert at.give(forged, source=at.bystander) == [Code.BAD_SIGNATURE]
    at.finish_unharmed()


def test_equivocation_bans_and_the_commit_of_the_cut_is_still_found() -> None:
    """The victim hears the lie first; the cut names the other commit, which is asked for and used."""
    at = scene(working)
    lie = at.signed(at.bystander, Kind.COMMIT, a_commit(at, at.bystander))
    assert at.give(lie) == []
    at.swarm.run(lambda: bool(at.victim.node.evidence))
    (proof,) = at.victim.node.evidence[:1]
    assert is_equivocation(proof, at.victim.node.chain.run_id, verify_mac)
    at.finish_without(at.bystander)
    assert (at.victim.stories[STEP].void_parts, len(at.victim.stories[STEP].contributors)) == (0, 4)


def costs(scene_: Scene, event: events.Event) -> list[tuple[PeerId, Code, bool]]:
    wanted = scene_.victim.node.handle(event, scene_.swarm.now)
    refused = [effect for effect in wanted if isinstance(effect, effects.Refused)]
    return [(effect.peer, effect.code, effect.costs_stream) for effect in refused]


def test_what_does_not_open_is_the_fault_of_whoever_hands_it_over() -> None:
    here = scene(heard_all_commits)
    source, author = here.bystander, here.proposer
    good = here.signed(author, Kind.VOTE, Vote(name("a header")))
    for bad, code in (
        (msgspec.structs.replace(good, signature=bytes(64)), Code.BAD_SIGNATURE),
        (msgspec.structs.replace(good, run_id=bytes(32)), Code.WRONG_RUN),
        (msgspec.structs.replace(good, kind=99), Code.UNKNOWN_KIND),
        (msgspec.structs.replace(good, version=9), Code.WRONG_VERSION),
        (here.signed(author, Kind.VOTE, Vote(name("a header")), subject=b"a subject"), Code.MALFORMED),
        (here.signed(author, Kind.JOIN, Join(), subject=b"a subject"), Code.MALFORMED),
    ):
        assert costs(here, events.EnvelopeReceived(source, bad)) == [(source, code, True)]
    certificate = here.victim.node.catch_up.since(STEP - 1)[0]
    header = msgspec.structs.replace(certificate.header, step=STEP)
    forged = msgspec.structs.replace(certificate, header=header)
    ((peer, _, costs_stream),) = costs(here, events.CertificateReceived(source, forged))
    assert (peer, costs_stream) == (source, True)
    here.finish_unharmed()


def test_what_a_liar_signed_is_not_the_fault_of_whoever_hands_it_on() -> None:
    """An honest member may have heard the other of two, and hand on what convicts its author."""
    here = scene(heard_all_commits)
    liar, source = here.proposer, here.bystander
    payload = here.said(liar, Kind.COMMIT).payload
    assert isinstance(payload, Commit)
    second = here.signed(liar, Kind.COMMIT, msgspec.structs.replace(payload, loss=9.0))
    assert costs(here, events.EnvelopeReceived(source, second)) == [(source, Code.EQUIVOCATION, False)]
    stale = here.signed(liar, Kind.VOTE, Vote(name("a header")), step=STEP - 2)
    assert costs(here, events.EnvelopeReceived(source, stale)) == [(source, Code.STALE, False)]
    early = here.signed(liar, Kind.VOTE, Vote(name("a header")), step=STEP + 9)
    assert costs(here, events.EnvelopeReceived(source, early)) == [(source, Code.FUTURE, False)]


def test_an_echo_must_show_what_the_proposer_has_signed() -> None:
    """Else a liar could make others think that there are two headers, and no step would end in this view."""
    at = scene(working)
    echo = Echo(name("no such header"), bytes(64))
    assert at.give(at.signed(at.bystander, Kind.ECHO, echo)) == [Code.BAD_SIGNATURE]
    at.finish_unharmed()


def test_forwarded_messages_of_a_step_not_begun_are_not_kept() -> None:
    at = scene(working)
    envelope = at.signed(at.bystander, Kind.VOTE, Vote(name("x")), view=9, step=STEP + 1)
    assert at.give(envelope, source=at.proposer) == [Code.FUTURE]
    assert at.give(envelope) == []
    at.finish_unharmed()


def test_a_goodbye_signed_by_somebody_else_makes_nobody_leave() -> None:
    at = scene(working)
    leave = at.signed(at.bystander, Kind.LEAVE, Leave())
    stolen = msgspec.structs.replace(leave, sender=at.proposer)
    assert at.give(stolen) == [Code.BAD_SIGNATURE]
    join = at.signed(at.bystander, Kind.JOIN, Join())
    assert at.give(msgspec.structs.replace(join, kind=int(Kind.LEAVE))) == [Code.BAD_SIGNATURE]
    at.finish_unharmed()


def test_bad_certificates_are_refused_and_the_chain_stays() -> None:
    at = scene(working)
    last = at.victim.journal_certificates[-1]
    node = at.victim.node
    future = msgspec.structs.replace(last, header=msgspec.structs.replace(last.header, step=STEP + 5))
    forged = msgspec.structs.replace(last, header=msgspec.structs.replace(last.header, step=STEP))
    for certificate, codes in ((last, []), (future, [Code.FUTURE]), (forged, [Code.BAD_OUTCOME])):
        wanted = node.handle(events.CertificateReceived(at.bystander, certificate), at.swarm.now)
        assert [effect.code for effect in wanted if isinstance(effect, effects.Refused)] == codes
        assert node.chain.head.step == STEP
    at.finish_unharmed()


def test_a_header_is_no_cut_and_a_cut_no_header() -> None:
    """A payload of the wrong kind, signed by the right proposer."""
    at = scene(revealing)
    header = outcome(at, at.proposer)
    odd = at.signed(at.proposer, Kind.OUTCOME, Cut(name("x"), ((0, name("y")),)))
    assert at.give(odd) == [Code.MALFORMED]
    twisted = at.signed(at.proposer, Kind.PROPOSAL, wire.unpack(header.payload, Header, 1 << 16), view=1)
    assert at.give(twisted) == [Code.MALFORMED]
    at.finish_unharmed()
