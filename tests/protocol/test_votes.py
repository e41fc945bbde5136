"""When a member votes and when it does not: one step machine, driven by hand to the moment of signing.

The member under test is not in the cut, so that nothing but its judgement is in play.
"""

from __future__ import annotations

from collections.abc import Callable

from crowdsurf.protocol import assignment, effects
from crowdsurf.protocol.deadlines import timing_of
from crowdsurf.protocol.envelope import Opened
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.messages import Echo, Header, Kind, Prepare, ViewChange, Vote, header_digest
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import ELEMENTS, name
from tests.protocol.test_outcome import consistent

ORDER = assignment.proposers(CompleteStep(4).head.beacon, CompleteStep(4).head.roster, 0)
FIRST, SECOND, THIRD, ME = ORDER
STEP = CompleteStep(4, contributors=[FIRST, SECOND, THIRD])


REVEAL_OF_SECOND = next(o for o in STEP.transcript.own(STEP.peers[SECOND]) if o.envelope.kind == Kind.REVEAL)


class Voter:
    """A step machine that has heard everything of the step but what is left out, and stands before an outcome."""

    def __init__(
        self, without: tuple[Opened, ...] = (), lost_blobs: tuple[int, ...] = (), signed: tuple[Opened, ...] = ()
    ) -> None:
        """`signed`: what it had signed before a restart."""
        self.machine = StepMachine(
            STEP.facts, STEP.signers[ME], STEP.run_id, ELEMENTS, timing_of(STEP.manifest), now=0.0
        )
        self.machine.start(list(signed), [], None, 0.0)
        for part in set(range(4)) - set(lost_blobs):
            self.machine.on_blob(name("aggregate", part), 0.0)
        for index in (FIRST, SECOND, THIRD):
            for opened in STEP.transcript.own(STEP.peers[index]):
                if opened.envelope.kind != Kind.PROPOSAL and opened not in without:
                    self.machine.on_message(opened, 0.0)
        self.machine.on_message(STEP.say(FIRST, Kind.PROPOSAL, STEP.cut), 0.0)
        self.now = 0.0
        self.drain()

    def phase(self) -> Phase:
        return self.machine.phase

    def drain(self) -> list[effects.Effect]:
        done, self.machine.effects = self.machine.effects, []
        return done

    def hear(self, opened: Opened, now: float = 0.0) -> list[effects.Effect]:
        self.machine.on_message(opened, now)
        return self.drain()

    def propose(
        self, header: Header, view: int = 0, now: float = 0.0, shown_by: tuple[int, ...] = (FIRST, SECOND, THIRD)
    ) -> list[effects.Effect]:
        """The view's proposer proposes this outcome, some show that they have seen it, and two prepare it."""
        outcome = STEP.say(ORDER[view], Kind.OUTCOME, header, view)
        wanted = self.hear(outcome, now)
        echo = Echo(outcome.digest, outcome.envelope.signature)
        for index in shown_by:
            wanted += self.hear(STEP.say(index, Kind.ECHO, echo, view), now)
        return wanted + self.prepare(header, view, now)

    def prepare(
        self, header: Header, view: int, now: float = 0.0, by: tuple[int, ...] = (SECOND, THIRD)
    ) -> list[effects.Effect]:
        """Some prepare this header in a view."""
        wanted: list[effects.Effect] = []
        for index in by:
            wanted += self.hear(STEP.say(index, Kind.PREPARE, Prepare(header_digest(header)), view), now)
        return wanted

    def wait(self, until: Callable[[], bool]) -> list[effects.Effect]:
        """Let time pass, from one deadline to the next, until a condition holds; at most a hundred of them."""
        for _ in range(100):
            if until():
                break
            self.now = max(self.now, self.machine.next_deadline() or 0.0)
            self.machine.advance(self.now)
        return self.drain()

    def ask_for_view(self, view: int, lock: Header | None = None) -> list[effects.Effect]:
        """Two others give up on the view before, one of them locked on a header that three have prepared."""
        wanted = self.prepare(lock, 0, by=(FIRST, SECOND, THIRD)) if lock is not None else []
        wanted += self.hear(STEP.say(SECOND, Kind.VIEW_CHANGE, ViewChange(lock, 0), view))
        return wanted + self.hear(STEP.say(THIRD, Kind.VIEW_CHANGE, ViewChange(None, 0), view))


def votes(wanted: list[effects.Effect]) -> list[tuple[int, bytes]]:
    """(view, header) of every vote that is signed."""
    signed = [effect.envelope for effect in wanted if isinstance(effect, effects.PersistSigned)]
    return [(envelope.view, envelope.payload[3:]) for envelope in signed if envelope.kind == Kind.VOTE]


def codes(wanted: list[effects.Effect]) -> list[Code]:
    return [effect.code for effect in wanted if isinstance(effect, effects.Refused)]


def without_nonce(index: int) -> Header:
    nonces = tuple(b"" if i == index else nonce for i, nonce in enumerate(STEP.header.nonces))
    return consistent(STEP, nonces=nonces, parts=(b"",) * len(STEP.peers))


def void(part: int) -> Header:
    return consistent(STEP, parts=tuple(b"" if p == part else d for p, d in enumerate(STEP.header.parts)))


GOOD = STEP.header
NAME = header_digest(GOOD)


def test_a_complete_and_correct_header_gets_one_vote_and_the_lock_is_durable_first() -> None:
    voter = Voter()
    assert voter.phase() is Phase.SIGN
    wanted = voter.propose(GOOD)
    assert votes(wanted) == [(0, NAME)]
    said = next(e for e in wanted if isinstance(e, effects.PersistSigned) and e.envelope.kind == Kind.VOTE)
    sent = next(e for e in wanted if isinstance(e, effects.SendEnvelope) and e.envelope.kind == Kind.VOTE)
    lock = next(e for e in wanted if isinstance(e, effects.PersistLock))
    assert wanted.index(lock) < wanted.index(said) < wanted.index(sent)
    assert [envelope.kind for envelope in lock.grounds].count(Kind.PREPARE) == 3
    assert (voter.machine.ballot.lock, voter.machine.ballot.lock_view) == (GOOD, 0)
    voter.machine.advance(0.1)
    assert [effect for effect in voter.drain() if isinstance(effect, effects.PersistLock)] == []


def test_nobody_votes_before_a_quorum_has_prepared() -> None:
    voter = Voter()
    outcome = STEP.say(FIRST, Kind.OUTCOME, GOOD)
    voter.hear(outcome)
    for index in (SECOND, THIRD):
        said = voter.hear(STEP.say(index, Kind.ECHO, Echo(NAME, outcome.envelope.signature)))
    assert [e.envelope.kind for e in said if isinstance(e, effects.PersistSigned)] == [Kind.PREPARE]
    assert votes(voter.prepare(GOOD, 0, by=(SECOND,))) == []
    assert votes(voter.prepare(GOOD, 0, by=(THIRD,))) == [(0, NAME)]


def test_if_not_everybody_shows_the_header_two_deliveries_are_waited_for_another_one() -> None:
    """In that time an honest member that has seen another one is heard, whatever the proposer sends to whom."""
    voter = Voter()
    assert votes(voter.propose(GOOD, shown_by=(SECOND,))) == []
    assert votes(voter.wait(lambda: voter.machine.ballot.voted_view == 0)) == [(0, NAME)]
    assert voter.now == 2 * STEP.manifest.deadlines.delivery_seconds


def test_who_was_awaited_in_vain_is_waited_for_where_headers_are_shown() -> None:
    """Two halves that liars have made tired of each other would else have two headers of one view certified."""
    voter = Voter()
    echoes = voter.machine._timing.echoes
    for _ in range(2):
        echoes.waited_in_vain({STEP.peers[THIRD]}, 3)
    assert echoes.spent() == {STEP.peers[THIRD]}
    assert votes(voter.propose(GOOD, shown_by=(SECOND,))) == []
    voter.wait(lambda: voter.machine.ballot.voted_view == 0)
    assert voter.now == 2 * STEP.manifest.deadlines.delivery_seconds


def test_of_many_requests_of_a_member_the_latest_is_handed_on() -> None:
    """It says all that counts; each may be as large as a message, and everybody hands them on."""
    voter = Voter()
    for view in range(2, 40):
        voter.hear(STEP.say(FIRST, Kind.VIEW_CHANGE, ViewChange(None, 0), view))
    wanted = voter.hear(STEP.say(SECOND, Kind.VIEW_CHANGE, ViewChange(None, 0), 3))
    handed_on = [
        (effect.envelope.sender, effect.envelope.view)
        for effect in wanted
        if isinstance(effect, effects.SendEnvelope) and effect.to == (STEP.peers[THIRD],)
    ]
    assert sorted(handed_on) == sorted([(STEP.peers[FIRST], 39), (STEP.peers[SECOND], 3), (STEP.peers[ME], 3)])


def test_of_two_headers_of_one_view_neither_is_prepared_and_the_other_is_asked_for() -> None:
    voter = Voter()
    other = STEP.say(FIRST, Kind.OUTCOME, void(1))
    shown = Echo(other.digest, other.envelope.signature)
    voter.hear(STEP.say(THIRD, Kind.ECHO, shown))
    assert votes(voter.propose(GOOD, shown_by=(SECOND,))) == []
    wanted = voter.wait(lambda: voter.machine.ballot.view > 0)
    assert voter.machine.ballot.prepared == (-1, b"")
    assert votes(wanted) == []
    late = Voter()
    late.propose(GOOD, shown_by=(SECOND,))
    assert effects.SendWant(STEP.peers[THIRD], (other.digest,)) in late.hear(STEP.say(THIRD, Kind.ECHO, shown))


def test_whoever_shows_another_header_is_shown_this_members_once_more() -> None:
    """It may have restarted and forgotten; then it would find its header to be the only one."""
    voter = Voter()
    outcome = STEP.say(FIRST, Kind.OUTCOME, GOOD)
    (echo,) = [e.envelope for e in voter.hear(outcome) if isinstance(e, effects.PersistSigned)]
    assert echo.kind == Kind.ECHO
    other = STEP.say(FIRST, Kind.OUTCOME, void(1))
    same = voter.hear(STEP.say(SECOND, Kind.ECHO, Echo(NAME, outcome.envelope.signature)))
    assert not any(isinstance(e, effects.SendEnvelope) and e.envelope == echo for e in same)
    answer = voter.hear(STEP.say(THIRD, Kind.ECHO, Echo(other.digest, other.envelope.signature)))
    assert effects.SendEnvelope((STEP.peers[THIRD],), echo) in answer


def test_after_a_restart_no_header_of_a_view_is_prepared_that_was_shown_before() -> None:
    """What others have shown is forgotten: another header of the view may have been among it."""
    outcome = STEP.say(FIRST, Kind.OUTCOME, GOOD)
    voter = Voter(signed=(STEP.say(ME, Kind.ECHO, Echo(NAME, outcome.envelope.signature)),))
    assert votes(voter.propose(GOOD)) == []
    voter.wait(lambda: voter.machine.ballot.view > 0)
    assert voter.machine.ballot.prepared == (-1, b"")


def test_a_member_that_asked_for_a_view_before_a_restart_is_in_it_after() -> None:
    """Others have gone on without it in the view before, and count on its not coming back."""
    voter = Voter(signed=(STEP.say(ME, Kind.VIEW_CHANGE, ViewChange(None, 0), 1),))
    assert voter.machine.ballot.view == 1
    assert votes(voter.propose(GOOD)) == []
    voter.ask_for_view(1)
    voter.propose(GOOD, view=1)
    assert votes(voter.wait(lambda: voter.machine.ballot.knows_locks)) == [(1, NAME)]


def test_an_accepted_cut_is_shown_in_every_view() -> None:
    """The proposer of a later view may propose to some alone what others have acted on in the one before."""
    voter = Voter()
    voter.ask_for_view(1)
    again = STEP.say(SECOND, Kind.PROPOSAL, STEP.cut, 1)
    said = voter.hear(again)
    shown = [
        effect for effect in said if isinstance(effect, effects.SendEnvelope) and effect.envelope == again.envelope
    ]
    assert [len(effect.to) for effect in shown] == [3]


def test_a_header_that_others_show_is_asked_for_if_the_proposer_does_not_send_it() -> None:
    voter = Voter()
    outcome = STEP.say(FIRST, Kind.OUTCOME, GOOD)
    echo = Echo(outcome.digest, outcome.envelope.signature)
    said = voter.hear(STEP.say(SECOND, Kind.ECHO, echo))
    assert [e.envelope.kind for e in said if isinstance(e, effects.PersistSigned)] == [Kind.ECHO]
    said = voter.wait(lambda: voter.now >= 2.0)
    assert effects.SendWant(STEP.peers[SECOND], (outcome.digest,)) in said


def test_nobody_votes_for_bytes_it_does_not_hold() -> None:
    voter = Voter(lost_blobs=(2,))
    wanted = voter.propose(GOOD)
    assert votes(wanted) == []
    assert any(isinstance(e, effects.FetchBlob) and e.digest == name("aggregate", 2) for e in wanted)
    voter.machine.on_blob(name("aggregate", 2), 0.1)
    assert votes(voter.drain()) == [(0, NAME)]


def test_messages_that_are_missing_are_asked_for_and_then_it_votes() -> None:
    lacking = STEP.aggregate(1)
    voter = Voter(without=(lacking,))
    wanted = voter.propose(GOOD)
    assert effects.SendWant(STEP.peers[FIRST], (name("aggregate", 1),)) in wanted
    assert votes(voter.hear(lacking)) == [(0, NAME)]


def test_a_header_that_overlooks_a_nonce_is_refused_and_the_nonce_shown_to_the_next_proposers() -> None:
    voter = Voter()
    wanted = voter.propose(without_nonce(SECOND))
    assert (votes(wanted), codes(wanted)) == ([], [Code.LOCKED])
    sent = [e for e in wanted if isinstance(e, effects.SendEnvelope) and e.envelope.sender == STEP.peers[SECOND]]
    assert {e.envelope.kind for e in sent} == {Kind.COMMIT, Kind.AGGREGATE, Kind.REVEAL}
    assert REVEAL_OF_SECOND.envelope in [e.envelope for e in sent]
    assert all(set(e.to) == {STEP.peers[SECOND], STEP.peers[THIRD]} for e in sent)
    assert voter.machine.ballot.lock is None


def test_a_header_that_overlooks_an_aggregate_is_refused() -> None:
    wanted = Voter().propose(void(1))
    assert (votes(wanted), codes(wanted)) == ([], [Code.LOCKED])


def test_a_step_is_voided_for_a_nonce_nobody_showed_after_its_owner_had_a_last_chance() -> None:
    voter = Voter(without=(REVEAL_OF_SECOND,))
    assert voter.phase() is Phase.REVEAL
    assert votes(voter.propose(without_nonce(SECOND))) == []
    wanted = voter.wait(lambda: voter.phase() is Phase.SIGN)
    shown = [
        e.envelope.sender
        for e in wanted
        if isinstance(e, effects.SendEnvelope) and e.to == (STEP.peers[SECOND],) and e.envelope.kind == Kind.REVEAL
    ]
    assert sorted(shown) == sorted((STEP.peers[FIRST], STEP.peers[THIRD]))
    assert votes(wanted) == []
    began = voter.now
    wanted = voter.wait(lambda: voter.machine.ballot.voted_view == 0)
    assert votes(wanted) == [(0, header_digest(without_nonce(SECOND)))]
    assert voter.now == began + 3 * STEP.manifest.deadlines.delivery_seconds


def test_a_nonce_that_is_opened_in_the_last_chance_saves_the_step() -> None:
    voter = Voter(without=(REVEAL_OF_SECOND,))
    voter.propose(without_nonce(SECOND))
    voter.wait(lambda: voter.phase() is Phase.SIGN)
    assert codes(voter.hear(REVEAL_OF_SECOND, voter.now + 0.5)) == [Code.LOCKED]
    voter.now += 1.0
    assert votes(voter.wait(lambda: voter.machine.ballot.view == 1)) == []


def test_a_header_with_void_parts_waits_until_this_member_has_waited_itself() -> None:
    voter = Voter(without=(STEP.aggregate(1),), lost_blobs=(1,))
    assert voter.phase() is Phase.AGGREGATE
    assert votes(voter.propose(void(1))) == []
    moment = 0.0
    while voter.phase() is not Phase.SIGN:
        moment = voter.machine.next_deadline() or 0.0
        voter.machine.advance(moment)
    assert moment > 1.0
    assert votes(voter.drain()) == [(0, header_digest(void(1)))]


def test_a_member_that_voted_votes_for_no_other_header_in_a_later_view() -> None:
    """Both headers are complete and correct, and only one of them may be certified."""
    voter = Voter(without=(REVEAL_OF_SECOND,))
    voter.propose(without_nonce(SECOND))
    assert len(votes(voter.wait(lambda: voter.machine.ballot.voted_view == 0))) == 1
    voter.hear(REVEAL_OF_SECOND)
    asked = voter.ask_for_view(1)
    change = next(e.envelope for e in asked if isinstance(e, effects.PersistSigned))
    assert (change.kind, change.view) == (Kind.VIEW_CHANGE, 1)
    wanted = voter.propose(GOOD, view=1)
    assert (votes(wanted), codes(wanted)) == ([], [Code.LOCKED])
    voter.ask_for_view(2)
    assert votes(voter.propose(without_nonce(SECOND), view=2)) == [(2, header_digest(without_nonce(SECOND)))]


def test_a_lock_that_others_report_is_required_even_if_it_overlooks_work() -> None:
    """Agreement comes before completeness: it may be certified already."""
    voter = Voter()
    voter.ask_for_view(1, lock=without_nonce(SECOND))
    assert codes(voter.propose(GOOD, view=1)) == [Code.LOCKED]
    voter.ask_for_view(2)
    again = Voter()
    again.ask_for_view(1, lock=without_nonce(SECOND))
    assert votes(again.propose(without_nonce(SECOND), view=1)) == [(1, header_digest(without_nonce(SECOND)))]


def test_a_lock_that_no_quorum_has_prepared_requires_nothing() -> None:
    """A liar may name any header, also a correct one."""
    voter = Voter()
    voter.hear(STEP.say(FIRST, Kind.VIEW_CHANGE, ViewChange(without_nonce(SECOND), 0), 1))
    voter.prepare(without_nonce(SECOND), 0, by=(FIRST, SECOND))
    voter.ask_for_view(1)
    assert votes(voter.propose(GOOD, view=1)) == []
    assert votes(voter.wait(lambda: voter.machine.ballot.knows_locks)) == [(1, NAME)]


def test_nobody_votes_for_another_header_before_it_must_have_heard_of_locks() -> None:
    """Two liars that propose first and second once had two headers certified: some voted before they heard what others
    were locked on."""
    voter = Voter()
    voter.ask_for_view(1)
    assert votes(voter.propose(GOOD, view=1)) == []
    lock = ViewChange(without_nonce(SECOND), 0)
    voter.prepare(without_nonce(SECOND), 0, 0.9, by=(FIRST, SECOND, THIRD))
    said = voter.hear(STEP.say(FIRST, Kind.VIEW_CHANGE, lock, 1), 0.9)
    assert Code.LOCKED in codes(said)
    assert votes(said + voter.wait(lambda: voter.machine.ballot.knows_locks)) == []


def test_a_member_that_gave_up_first_does_not_run_ahead_of_the_views() -> None:
    """Views take equally long once their waits are longest, so one view ahead would be one view ahead for ever."""
    voter = Voter()
    machine, moment = voter.machine, 0.0

    def let_time_pass(deadlines: int) -> None:
        nonlocal moment
        for _ in range(deadlines):
            moment = max(moment, machine.next_deadline() or 0.0)
            machine.advance(moment)

    let_time_pass(40)
    assert machine.ballot.view == 1
    voter.hear(STEP.say(SECOND, Kind.VIEW_CHANGE, ViewChange(None, 0), 1), moment)
    let_time_pass(40)
    assert machine.ballot.view == 1
    voter.hear(STEP.say(THIRD, Kind.VIEW_CHANGE, ViewChange(None, 0), 1), moment)
    assert votes(voter.propose(GOOD, view=1, now=moment + 0.9)) == []
    assert votes(voter.wait(lambda: machine.ballot.knows_locks)) == [(1, NAME)]
    let_time_pass(40)
    assert machine.ballot.view == 2


def test_an_outcome_of_a_view_that_is_over_gets_no_vote() -> None:
    voter = Voter()
    voter.ask_for_view(1)
    assert votes(voter.propose(GOOD, view=0)) == []


def test_a_quorum_of_votes_certifies_in_any_phase_and_the_header_is_asked_for() -> None:
    voter = Voter(lost_blobs=(0, 1, 2, 3))
    assert voter.phase() is Phase.AGGREGATE
    for index in (FIRST, SECOND):
        assert voter.hear(STEP.say(index, Kind.VOTE, Vote(NAME))) == []
    wanted = voter.hear(STEP.say(THIRD, Kind.VOTE, Vote(NAME)))
    asked = STEP.peers[min(FIRST, SECOND, THIRD)]
    assert wanted == [effects.SendWant(asked, (NAME,))]
    voter.propose(GOOD)
    assert voter.phase() is Phase.DONE
    assert voter.machine.certificate is not None
    assert [index for index, _, _ in voter.machine.certificate.votes] == sorted((FIRST, SECOND, THIRD))


def test_what_a_peer_said_itself_is_believed_from_its_journal_alone() -> None:
    """Grounds are kept before the journal is synced: a crash in between leaves messages that were never sent, and
    saying them now could be the second thing signed for a slot."""
    machine = StepMachine(STEP.facts, STEP.signers[FIRST], STEP.run_id, ELEMENTS, timing_of(STEP.manifest), now=0.0)
    others = STEP.transcript.own(STEP.peers[SECOND])
    machine.start([], [STEP.say(FIRST, Kind.PROPOSAL, STEP.cut), *others], None, 0.0)
    assert machine.transcript.own(STEP.peers[FIRST]) == []
    assert machine.transcript.own(STEP.peers[SECOND]) == others


def test_a_restarted_proposer_asks_others_for_what_its_own_cut_names() -> None:
    """Each time another one: who has said it may be gone, and so may be who is asked."""
    machine = StepMachine(STEP.facts, STEP.signers[FIRST], STEP.run_id, ELEMENTS, timing_of(STEP.manifest), now=0.0)
    machine.start([STEP.say(FIRST, Kind.PROPOSAL, STEP.cut)], [], None, 0.0)
    for _ in range(20):
        machine.advance(machine.next_deadline() or 0.0)
    wants = [effect for effect in machine.effects if isinstance(effect, effects.SendWant)]
    assert {want.digests for want in wants} == {tuple(digest for _, digest in STEP.cut.commits)}
    assert {want.to for want in wants} == {STEP.peers[index] for index in (SECOND, THIRD, ME)}
