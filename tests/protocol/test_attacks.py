"""Attacks that once broke the protocol: each of these tests plays one that honest members now stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import pytest

from crowdsurf.protocol import assignment, checks, effects, events, limits, wire
from crowdsurf.protocol.auditor import what_was_vouched_for
from crowdsurf.protocol.cases import Record, objection_to, question_of
from crowdsurf.protocol.chain import following_roster
from crowdsurf.protocol.deadlines import timing_of
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.events import AggregatesChecked, EnvelopeReceived, WorkDone
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import (
    Accusation,
    Aggregate,
    Commit,
    Cut,
    Echo,
    Envelope,
    Header,
    Kind,
    Payload,
    Prepare,
    Projection,
    Reason,
    Reveal,
    Vote,
    bitmap_of,
    header_digest,
    indexes_of,
    payload_digest,
)
from crowdsurf.protocol.outcome import build_header, examine
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.scrutiny import Scrutiny
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.tolerance import ACCUSING
from crowdsurf.protocol.transcript import Transcript
from tests.protocol.builders import CompleteStep, digest_of, refused
from tests.protocol.court import EVEN, ODD, assert_just, misproject, others_of, proposer_of, watchful_swarm
from tests.protocol.swarm import ELEMENTS, RIGHT, FakePeer, Swarm, name, verify_mac
from tests.protocol.test_votes import GOOD, NAME, Voter, votes

CHECKED = CompleteStep(4, audit=AuditSection(rate=0.25))
"""A step whose aggregates are checked."""


def on_the_way(swarm: Swarm, change: Callable[[FakePeer, PeerId, Envelope], list[Envelope]]) -> None:
    """Messages become others before they are delivered, or several, or none."""
    deliver = swarm.deliver

    def changed(sender: FakePeer, to: PeerId, event: events.Event) -> None:
        if isinstance(event, EnvelopeReceived):
            for envelope in change(sender, to, event.envelope):
                deliver(sender, to, EnvelopeReceived(event.source, envelope))
        else:
            deliver(sender, to, event)

    swarm.deliver = changed  # type: ignore[method-assign]


def signed_anew(peer: FakePeer, said: Envelope, payload: Payload) -> Envelope:
    """Something else in the slot of a message."""
    slot = Slot(said.step, said.view, said.kind, said.subject)
    return seal(peer.signer, Digest(said.run_id), slot, payload).envelope


# --- commits -------------------------------------------------------------------------------------------------


def test_a_second_commit_that_nobody_could_have_made_is_not_kept() -> None:
    """Its author proposes it, too: who worked with its parts would find none."""
    swarm = watchful_swarm(7, steps=4)
    swarm.start()
    assert swarm.run(lambda: all(peer.node.machine for peer in swarm.list))
    liar = proposer_of(swarm)
    names: dict[bytes, bytes] = {}

    def say_both(sender: FakePeer, to: PeerId, said: Envelope) -> list[Envelope]:
        if sender is not liar or said.sender != liar.id or said.step:
            return [said]
        if said.kind == Kind.COMMIT:
            commit = wire.unpack(said.payload, Commit, limits.ENVELOPE_BYTES_MAX)
            bad = signed_anew(liar, said, msgspec.structs.replace(commit, parts=commit.parts[:1], norms=()))
            names[payload_digest(said.payload)] = payload_digest(bad.payload)
            return [said, bad]
        if said.kind == Kind.PROPOSAL:
            cut = wire.unpack(said.payload, Cut, limits.ENVELOPE_BYTES_MAX)
            commits = tuple((index, names.get(digest, digest)) for index, digest in cut.commits)
            return [signed_anew(liar, said, msgspec.structs.replace(cut, commits=commits))]
        return [said]

    on_the_way(swarm, say_both)
    assert swarm.run_to_end()
    assert_just(swarm, liar, reason=Reason.EQUIVOCATION)


# --- aggregates and projections ------------------------------------------------------------------------------


def test_two_parts_with_one_aggregate_have_lines_of_their_own() -> None:
    """Who names the aggregate of an honest one as its own would make that one's line look false, or its own true."""
    assert CHECKED.facts.clipping is not None
    scrutiny, same, beacon = Scrutiny(CHECKED.facts.clipping, 0), name("aggregate", 0), Digest(CHECKED.header.beacon)
    both = (same, same, b"", b"")
    other = Line((0.5, 0.0, 0.0), 1.0)
    scrutiny.to_check(0, both, beacon)
    scrutiny.on_checked(AggregatesChecked(0, both, beacon, (RIGHT, other, None, None), (RIGHT,) * 4))
    honest = CHECKED.projection(0)
    assert not scrutiny.contradicts(honest, beacon, ACCUSING)
    assert scrutiny.contradicts(msgspec.structs.replace(honest, part=1), beacon, ACCUSING)
    assert not scrutiny.contradicts(msgspec.structs.replace(honest, part=1), name("another beacon"), ACCUSING)


GHOSTS = [100, 101]
"""Nobody has these indexes, so nobody can say that a line about them is not so."""


def haunted_step() -> tuple[CompleteStep, Aggregate, Transcript]:
    """Part 0 includes ghosts, which was heard before the cut."""
    step = CompleteStep(4, audit=AuditSection(rate=0.25))
    included = bitmap_of([0, 1, 2, 3, *GHOSTS], 256)
    aggregate = Aggregate(step.cut_name, 0, name("aggregate", 0), included)
    lines = ((*RIGHT.projections, 1.0),) * len(indexes_of(included))
    shown = step.projection(0, included=included, lines=lines)
    heard, author = Transcript(), step.aggregator(0)
    said = step.say(author, Kind.AGGREGATE, aggregate, 0, step.subject(0))
    checks.check_message(step.facts, heard, said, step.peers[0])
    heard.add(said)
    for kind in (Kind.COMMIT, Kind.PROPOSAL, Kind.AGGREGATE, Kind.REVEAL, Kind.PROJECTION):
        for one in step.transcript.of_kind(kind):
            if not (isinstance(one.payload, Aggregate | Projection) and one.payload.part == 0):
                heard.add(one)
    heard.add(step.say(author, Kind.PROJECTION, shown, 0, step.subject(0)))
    return step, aggregate, heard


def test_lines_about_ghosts_balance_nothing() -> None:
    step, _, heard = haunted_step()
    header = build_header(step.facts, heard, step.blobs, step.cut_name, step.cut, scrutiny=step.scrutiny)
    assert [bool(part) for part in header.parts] == [False, True, True, True]


def test_nobody_votes_for_an_aggregate_of_ghosts() -> None:
    step, _, heard = haunted_step()
    shown = heard.projection(step.cut_name, 0, step.peers[step.aggregator(0)])
    assert shown is not None
    header = msgspec.structs.replace(step.header, projections=(shown.digest, *step.header.projections[1:]))
    why = refused(lambda: examine(step.facts, heard, step.blobs, header, scrutiny=step.scrutiny), Code.BAD_OUTCOME)
    assert "nothing vouches for the aggregate of part 0" in why


# --- reveals -------------------------------------------------------------------------------------------------


class Waiting:
    """A contributor that has committed, and waits for parts under a cut of all four if it has accepted it."""

    def __init__(self, accepts: bool, hears_other: bool = True) -> None:
        step = CompleteStep(4)
        order = assignment.proposers(step.head.beacon, step.head.roster, 0)
        self.step, self.order, self.me = step, order, order[3]
        self.machine = StepMachine(
            step.facts, step.signers[self.me], step.run_id, ELEMENTS, timing_of(step.manifest), now=0.0
        )
        self.machine.start([], [], None, 0.0)
        parts = tuple(name("mine", part) for part in range(4))
        self.machine.on_work_done(WorkDone(0, parts, 1.0, 32), 0.0)
        for index in order[:3]:
            self.machine.on_message(step.transcript.commits[step.peers[index]], 0.0)
        commits = {index: self.machine.transcript.commits[step.peers[index]].digest for index in range(4)}
        self.cut = Cut(step.head.previous, tuple(commits.items()))
        self.other = Cut(step.head.previous, tuple(item for item in commits.items() if item[0] != order[0]))
        if accepts:
            self.machine.on_message(step.say(order[0], Kind.PROPOSAL, self.cut), 0.0)
        if hears_other:
            self.machine.on_message(step.say(order[1], Kind.PROPOSAL, self.other, 1), 0.0)

    def hear_nonces(self, cut: bytes) -> list[bytes]:
        """So many open theirs under this cut that somebody honest is among them; the cuts that it opens its own for."""
        for index in self.order[:2]:
            self.machine.on_message(self.step.say(index, Kind.REVEAL, Reveal(cut, name("nonce", index))), 0.0)
        return self.opened()

    def opened(self) -> list[bytes]:
        """The cuts that it has opened its nonce for."""
        said = [one.payload for one in self.machine.transcript.own(self.step.peers[self.me])]
        return [one.cut for one in said if isinstance(one, Reveal)]


@pytest.mark.parametrize("what", ["garbage", "another cut"])
def test_who_waits_opens_its_nonce_for_its_own_cut_whatever_liars_name(what: str) -> None:
    """A nonce is opened once: for a cut that comes to nothing its owner would count as silent."""
    member = Waiting(accepts=True)
    named = name("no such cut") if what == "garbage" else digest_of(member.other)
    assert member.hear_nonces(named) == [digest_of(member.cut)]


def test_nobody_opens_its_nonce_for_a_cut_that_it_has_not_heard_of() -> None:
    assert Waiting(accepts=False).hear_nonces(name("no such cut")) == []
    known = Waiting(accepts=False)
    assert known.hear_nonces(digest_of(known.other)) == [digest_of(known.other)]


def test_who_was_shown_another_cut_than_the_others_asks_for_theirs_and_opens_its_nonce() -> None:
    """A proposer that signs two cuts names in one of them a commit that it shows to the others alone: whoever cannot
    accept the one never heard of the other, said nothing, and lost its place for it."""
    member = Waiting(accepts=False, hears_other=False)
    step, proposer = member.step, member.order[0]
    ghost = dict(member.cut.commits) | {member.order[1]: name("shown to others")}
    member.machine.on_message(step.say(proposer, Kind.PROPOSAL, Cut(member.cut.previous, tuple(ghost.items()))), 0.0)
    assert member.hear_nonces(digest_of(member.cut)) == []
    wanted = {effect for effect in member.machine.effects if isinstance(effect, effects.SendWant)}
    assert wanted >= {effects.SendWant(step.peers[index], (digest_of(member.cut),)) for index in member.order[:2]}
    member.machine.keep_conflicting(step.say(proposer, Kind.PROPOSAL, member.cut), 0.1)
    assert member.opened() == [digest_of(member.cut)]


def test_however_many_cuts_a_liar_names_it_is_asked_for_one() -> None:
    member = Waiting(accepts=False, hears_other=False)
    member.hear_nonces(name("no such cut"))
    liar = member.order[0]
    for number in range(50):
        said = Reveal(name("no such cut", number), name("nonce", liar))
        member.machine.keep_conflicting(member.step.say(liar, Kind.REVEAL, said), 1.0 + number)
    wanted = [effect for effect in member.machine.effects if isinstance(effect, effects.SendWant)]
    assert {digest for effect in wanted for digest in effect.digests} == {name("no such cut")}


def test_what_two_sign_with_the_same_bytes_both_have_named() -> None:
    """Whoever has heard fewer witnesses than others could never believe what they have voted for."""
    heard, named = Transcript(), name("aggregate", 0)
    for index, nonce in ((0, "first"), (1, "second")):
        heard.add(CHECKED.say(index, Kind.REVEAL, Reveal(CHECKED.cut_name, name(nonce), (b"",) * 4)))
    copied = Reveal(CHECKED.cut_name, name("copied"), (named, b"", b"", b""))
    for index in (0, 1):
        heard.add_conflicting(CHECKED.say(index, Kind.REVEAL, copied))
    assert heard.witnesses(CHECKED.cut_name, 0) == {named: {CHECKED.peers[0], CHECKED.peers[1]}}


# --- locks ---------------------------------------------------------------------------------------------------


def test_who_gives_up_on_a_view_shows_what_its_lock_rests_on() -> None:
    """Others may have heard less, and could not believe in it: two that are locked apart would never agree."""
    voter = Voter()
    assert votes(voter.propose(GOOD)) == [(0, NAME)]
    shown = [effect.envelope for effect in voter.ask_for_view(1) if isinstance(effect, effects.SendEnvelope)]
    grounds = voter.machine.holdings.grounds(GOOD)
    assert len(grounds) >= 4
    assert set(grounds) <= set(shown)


def test_a_proposer_cannot_have_two_headers_of_one_view_certified() -> None:
    """Two liars of five propose one header to one honest member and another one to the two others, and vote for both.
    With each half they are a quorum."""
    swarm = Swarm(5, steps=6)
    head = swarm.list[0].node.chain.head
    order = [swarm.peers[head.roster.peers[index]] for index in assignment.proposers(head.beacon, head.roster, 0)]
    liars, (one, *others) = order[:2], order[2:]

    def also_say(envelope: Envelope, kinds: Iterable[Kind], header: Header) -> list[Envelope]:
        """What both liars have to say for a header, one of them as its proposer."""
        run_id, named = envelope.run_id, header_digest(header)
        said = [seal(liars[0].signer, run_id, Slot(0, 0, Kind.OUTCOME, b""), header).envelope]
        payloads: dict[Kind, Payload] = {
            Kind.ECHO: Echo(named, said[0].signature),
            Kind.PREPARE: Prepare(named),
            Kind.VOTE: Vote(named),
        }
        for kind in kinds:
            said += [seal(liar.signer, run_id, Slot(0, 0, kind, b""), payloads[kind]).envelope for liar in liars]
        return said

    def change(sender: FakePeer, to: PeerId, envelope: Envelope) -> list[Envelope]:
        if sender not in liars or envelope.step != 0 or swarm.peers[to] in liars:
            return [envelope]
        if envelope.kind in (Kind.ECHO, Kind.PREPARE, Kind.VOTE, Kind.VIEW_CHANGE):
            return []
        if envelope.kind == Kind.AGGREGATE and envelope.sender == liars[1].id:
            return [envelope] if swarm.peers[to] is one else []  # so that the others miss nothing in their header
        if envelope.kind != Kind.OUTCOME:
            return [envelope]
        header = wire.unpack(envelope.payload, Header, limits.ENVELOPE_BYTES_MAX)
        if swarm.peers[to] in others:
            machine = sender.node.machine
            assert machine is not None
            assert machine.accepted is not None
            lost = machine.accepted.duties.index(liars[1].id)
            header = msgspec.structs.replace(header, parts=(*header.parts[:lost], b"", *header.parts[lost + 1 :]))
            roster = following_roster(head, header, swarm.manifest.missed_steps_max)
            header = msgspec.structs.replace(header, next_roster=roster.digest)
        return also_say(envelope, (Kind.ECHO, Kind.PREPARE, Kind.VOTE), header)

    on_the_way(swarm, change)
    swarm.start()
    honest = [one, *others]
    assert swarm.run(lambda: all(peer.node.chain.head.step >= 2 for peer in honest), 200.0)
    assert swarm.violations == []
    assert len({peer.journal_certificates[0].header.cut for peer in honest}) == 1
    assert len({header_digest(peer.journal_certificates[0].header) for peer in honest}) == 1
    assert all(liars[0].id in peer.node.chain.head.roster.outlaws for peer in honest)


# --- accusations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "state lost"])
def test_an_objector_that_begins_again_objects_to_nothing_else_in_the_same_slot(how: str) -> None:
    """The liar shows it another false projection then. It would sign its slot twice, and be banned for that."""
    swarm = watchful_swarm(5, steps=12)
    liar, victim = swarm.list[:2]
    misproject(liar, {victim.id: ODD, liar.id: EVEN}, range(3, 12))
    objected: list[tuple[int, float]] = []
    """Step and time of the first objection."""
    other: set[bytes] = set()

    def begin_again() -> None:
        if how == "restart":
            victim.restart()
        else:
            victim.give(events.StateLost())
            victim.begin(max(victim.states))

    def show_another(sender: FakePeer, to: PeerId, said: Envelope) -> list[Envelope]:
        if said.kind == Kind.ACCUSATION and said.sender == victim.id and not objected:
            objected.append((said.step, swarm.now))
            swarm.at(swarm.now + 0.05, begin_again)
        if not objected or said.step != objected[0][0]:
            return [said]
        if said.kind in (Kind.VOTE, Kind.OUTCOME):  # so that there is time for a second objection
            return [said] if swarm.now > objected[0][1] + 10.0 else []
        if said.kind == Kind.PROJECTION and said.sender == liar.id and to == victim.id:
            projection = wire.unpack(said.payload, Projection, limits.ENVELOPE_BYTES_MAX)
            lines = tuple((1.2 * first, *rest) for first, *rest in projection.lines)
            said = signed_anew(liar, said, msgspec.structs.replace(projection, lines=lines))
            other.add(said.payload)
        return [said]

    on_the_way(swarm, show_another)
    swarm.start()
    assert swarm.run(lambda: all(peer.finished for peer in others_of(swarm, liar)))
    assert other
    assert swarm.violations == []  # nobody honest has signed a slot twice
    assert {ban.peer for story in swarm.list[2].stories for ban in story.banned} == {liar.id}


def line_of(part: int, aggregate: bytes, author: int) -> Accusation:
    """What a member says of its own line in a projection that somebody signs when the step is over."""
    lines = ((*RIGHT.projections, 1.0),) * 4
    said = Projection(CHECKED.cut_name, part, aggregate, b"\x0f", 1.0, lines)
    subject = CHECKED.cut_name + part.to_bytes(2, "big")
    return objection_to(CHECKED.say(author, Kind.PROJECTION, said, 0, subject), 0)


def certified() -> Record:
    """The step as it is remembered; two members have named an aggregate of part 0 that never was."""
    heard = Transcript()
    for kind in (Kind.COMMIT, Kind.PROPOSAL, Kind.AGGREGATE, Kind.REVEAL, Kind.PROJECTION):
        for one in CHECKED.transcript.of_kind(kind):
            heard.add(one)
    for index in (0, 1):
        named = Reveal(CHECKED.cut_name, name("nonce", index), (name("never was"), b"", b"", b""))
        heard.add_conflicting(CHECKED.say(index, Kind.REVEAL, named))
    shown, known = what_was_vouched_for(CHECKED.head, CHECKED.header, CHECKED.cut, heard, enough=3)
    return Record(CHECKED.head, CHECKED.header, (), {}, shown, known)


@pytest.mark.parametrize(
    ("part", "aggregate", "author", "is_a_case"),
    [
        (0, name("aggregate", 0), CHECKED.aggregator(0), True),
        (0, name("unheard of"), CHECKED.aggregator(0), False),
        (0, name("never was"), CHECKED.aggregator(0), False),
        (0, name("aggregate", 2), CHECKED.aggregator(0), False),
        (0, name("aggregate", 0), CHECKED.aggregator(2), False),
        (4, name("aggregate", 0), CHECKED.aggregator(0), False),
    ],
    ids=["known", "unheard of", "named by liars alone", "another part's", "not the aggregator", "no such part"],
)
def test_what_nobody_can_judge_is_no_case(part: int, aggregate: bytes, author: int, is_a_case: bool) -> None:
    """Everybody would do the accuser's work again for nothing, and nobody would be guilty of it."""
    accusation = line_of(part, aggregate, author)

    def ask() -> object:
        return question_of(accusation, CHECKED.peers[0], certified(), CHECKED.run_id, verify_mac)

    if is_a_case:
        assert ask()
    else:
        refused(ask, Code.BAD_ACCUSATION)


# --- requests ------------------------------------------------------------------------------------------------


def test_what_is_asked_for_many_times_at_once_is_sent_once() -> None:
    """A request of one packet would be answered with thousands."""
    swarm = watchful_swarm(4, steps=2)
    swarm.start()
    node, member = swarm.list[0].node, swarm.list[1]
    assert swarm.run(lambda: node.machine is not None and len(node.machine.transcript.commits) == 4)
    assert node.machine is not None
    wanted = node.machine.transcript.commits[member.id].digest
    answers = node.handle(events.WantReceived(member.id, (wanted,) * limits.WANTS_PER_MESSAGE_MAX), swarm.now)
    assert len([effect for effect in answers if isinstance(effect, effects.SendEnvelope)]) == 1
