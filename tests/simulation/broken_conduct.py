"""Defects in what peers do: signing, voting, keeping bounds, getting on."""

from __future__ import annotations

import types
from typing import Any

import msgspec

from crowdsurf.protocol import catchup, chain, holdings, limits, node, outcome, transcript
from crowdsurf.protocol.accepted_cut import AcceptedCut
from crowdsurf.protocol.asking import Asking
from crowdsurf.protocol.ballot import Ballot
from crowdsurf.protocol.catchup import CatchUp
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.effects import Effect, PersistLock, PersistSigned, SendEnvelope
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, open_envelope, seal
from crowdsurf.protocol.membership import Membership
from crowdsurf.protocol.messages import Kind
from crowdsurf.protocol.node import Node, Recovered
from crowdsurf.protocol.proposals import Proposals
from crowdsurf.protocol.recovery import recover as recover_really
from crowdsurf.protocol.sim import disk, keys
from crowdsurf.protocol.sim.disk import Disk
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.lying_proposers import WithholdCut
from crowdsurf.protocol.sim.whispering import ShowToSome
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase, Trigger
from crowdsurf.protocol.transcript import Transcript
from tests.simulation import liars
from tests.simulation.defect import (
    CRASHY,
    CUT,
    LOSSY,
    NEWCOMERS,
    ROUGH,
    Patch,
    defect,
    nothing,
)

replace = msgspec.structs.replace


# --- signing once, and remembering it ------------------------------------------------------------------------


@defect("durable_first")
def sends_before_it_syncs(patch: Patch) -> None:
    """The journal is written after the messages have gone."""
    honest, persist = Host._carry_out, Host._persist

    def carry_out(self: Host, wanted: list[Effect]) -> None:
        honest(self, wanted)
        persist(self, wanted)

    patch.setattr(Host, "_persist", nothing)
    patch.setattr(Host, "_carry_out", carry_out)


@defect("durable_first")
def syncs_nothing(patch: Patch) -> None:
    """A write is taken for durable before it is."""
    patch.setattr(Disk, "sync", nothing)


@defect("durable_first")
def does_not_journal_locks(patch: Patch) -> None:
    """The vote is journaled, the header it is for is not."""
    _drop_effects(patch, PersistLock)


@defect("durable_first")
def does_not_journal_messages(patch: Patch) -> None:
    """What is signed is not journaled."""
    _drop_effects(patch, PersistSigned)


def _drop_effects(patch: Patch, kind: type) -> None:
    honest = Node.handle

    def handle(self: Node, event: Any, now: float) -> list[Effect]:
        return [effect for effect in honest(self, event, now) if not isinstance(effect, kind)]

    patch.setattr(Node, "handle", handle)


@defect("signed_once", (0, 1, 3), faults=Faults(crash_rate=6.0, restart_seconds_max=2.0, join_rate=10.0))
def forgets_what_it_signed(patch: Patch) -> None:
    """After a restart slots are filled anew."""
    _recover_without(patch, "signed")


def _recover_without(patch: Patch, what: str) -> None:
    honest = recover_really

    def recover(records: Any) -> Recovered:
        found = honest(records)
        setattr(found, what, [])
        return found

    patch.setattr(disk, "recover", recover)


@defect("signed_once", (1, 5, 7), faults=Faults(worker_death_rate=6.0, join_rate=10.0))
def a_dead_worker_makes_it_forget(patch: Patch) -> None:
    """A step that is begun again begins without what was signed in it."""
    patch.setattr(Node, "_remember_signed", nothing)


@defect("signed_once", faults=LOSSY)
def signs_anew_to_say_it_again(patch: Patch) -> None:
    """A commit that is repeated is made again, with what is known by then."""
    honest = StepMachine._resend

    def resend(self: StepMachine, now: float) -> None:
        honest(self, now)
        commit = self.transcript.commit_of(self.me)
        if commit is not None:
            slot = Slot(self.facts.head.step, 0, Kind.COMMIT, b"")
            voice = self._voice
            opened = seal(voice._signer, voice._run_id, slot, replace(commit, samples=commit.samples + 1))
            self.effects += [PersistSigned(opened.envelope), SendEnvelope(self._asking.others(), opened.envelope)]

    patch.setattr(StepMachine, "_resend", resend)


@defect("no_honest_blame evidence_holds", (0, 1, 4), faults=CRASHY)
def confuses_slots(patch: Patch) -> None:
    """Two messages of one kind are taken for two messages of one slot."""
    honest = Transcript.check_slot

    def check_slot(self: Transcript, opened: Opened) -> Equivocation | None:
        for (sender, slot), known in self._slots.items():
            same = sender == opened.sender and slot.kind == opened.envelope.kind == Kind.AGGREGATE
            if same and known.digest != opened.digest:
                return Equivocation(known.envelope, opened.envelope)
        return honest(self, opened)

    patch.setattr(Transcript, "check_slot", check_slot)


@defect("evidence_holds", liar=liars.SaysTwoThings)
def keeps_half_the_evidence(patch: Patch) -> None:
    """Evidence holds the second message twice."""
    patch.setattr(transcript, "Equivocation", lambda first, second: Equivocation(second, second))


@defect("no_honest_blame evidence_holds", liar=liars.Forges)
def does_not_verify(patch: Patch) -> None:
    """Signatures are not checked."""
    patch.setattr(keys, "open_envelope", lambda envelope, run_id, _: open_envelope(envelope, run_id, lambda *_: True))


# --- votes, locks and views ----------------------------------------------------------------------------------


@defect("quorum_signed one_outcome", (1, 3, 5), faults=CUT, peers=2)
def half_is_a_quorum(patch: Patch) -> None:
    """A quorum is one vote short."""
    for module in (chain, outcome):
        patch.setattr(module, "quorum_of", lambda size, rule: max(1, size // 2))


@defect("quorum_signed", faults=ROUGH)
def counts_its_own_vote_twice(patch: Patch) -> None:
    """One's own vote is counted when it is cast and when it is heard."""

    def elected(self: Ballot) -> Any:
        for name, voters in self._votes.items():
            if len(voters) + 1 >= self._quorum:
                return name
        return None

    patch.setattr(Ballot, "elected", elected)
    patch.setattr(Chain, "_check_votes", nothing)


@defect("stays_locked", (10, 43, 50), faults=ROUGH)
def never_locks(patch: Patch) -> None:
    """A vote binds nobody in later views."""

    def lock_on(self: Ballot, header: Any, view: int) -> None:
        self.voted_view = view

    patch.setattr(Ballot, "lock_on", lock_on)


@defect("stays_locked", (70, 77, 122), faults=ROUGH)
def ignores_locks(patch: Patch) -> None:
    """A new proposer starts afresh, and everybody votes for what it says."""
    patch.setattr(Ballot, "strongest_lock", lambda self: None)


@defect("nothing_dropped", (2, 3, 7), liar=liars.VoidsWork)
def lets_a_proposer_void_work(patch: Patch) -> None:
    """A voter does not look for what a header leaves out."""
    patch.setattr(holdings, "overlooked", lambda *arguments: [])


@defect("progress", (0, 2, 3), faults=LOSSY, liar=liars.ClaimsALock)
def believes_any_lock(patch: Patch) -> None:
    """Whoever says to be locked on a header binds everybody, also when nobody has prepared it."""
    patch.setattr(Ballot, "is_prepared", lambda self, view, name: True)


# --- bounds --------------------------------------------------------------------------------------------------


@defect("bounded_queues", liar=liars.FloodsTheNextStep)
def keeps_all_that_is_early(patch: Patch) -> None:
    """Messages of the next step are kept without end."""
    _without_limit(patch, node, "BUFFERED_MESSAGES_PER_PEER")


@defect("bounded_queues", (2, 4, 6), liar=liars.RepeatsItself, steps=6)
def keeps_all_evidence(patch: Patch) -> None:
    """Proofs against one liar are kept without end."""
    _without_limit(patch, node, "EVIDENCE_MAX")


@defect("bounded_queues", (0, 1, 2), liar=liars.FloodsTheStep, steps=2)
def keeps_all_that_is_said(patch: Patch) -> None:
    """A member may say as much as it likes in a step."""
    patch.setattr(transcript, "_MESSAGES_OF_A_KIND_MAX", 1 << 20)


@defect("bounded_queues", peers=2, steps=70)
def keeps_all_certificates(patch: Patch) -> None:
    """The whole chain stays in memory."""
    patch.setattr(catchup, "RECENT_CERTIFICATES", 1 << 20)


def _without_limit(patch: Patch, module: types.ModuleType, name: str) -> None:
    patch.setattr(module, "limits", types.SimpleNamespace(**{**vars(limits), name: 1 << 20}))


# --- getting on ----------------------------------------------------------------------------------------------


@defect("progress", (4, 10, 11), faults=LOSSY, peers=2)
def says_everything_once(patch: Patch) -> None:
    """What got lost is not said again."""

    def resend(self: StepMachine, now: float) -> None:
        self._resend_at = now + 1e6

    patch.setattr(StepMachine, "_resend", resend)


@defect("progress", faults=ROUGH)
def never_asks_for_the_chain(patch: Patch) -> None:
    """A peer that fell behind does not ask what it missed."""
    patch.setattr(Node, "_ask_for_chain", nothing)
    patch.setattr(Asking, "for_chain", lambda self: [])
    patch.setattr(Node, "_help", nothing)


@defect("admitted", faults=NEWCOMERS, peers=3, steps=40)
def forgets_who_wants_to_join(patch: Patch) -> None:
    """Requests to join are lost."""
    patch.setattr(Membership, "joins", lambda self, head: set())


@defect("progress", (0, 4, 14), faults=CRASHY)
def never_changes_the_view(patch: Patch) -> None:
    """A proposer that is gone is waited for."""
    honest = StepMachine._trigger

    def trigger(self: StepMachine, now: float) -> Any:
        found = honest(self, now)
        if found is Trigger.VIEW_CHANGED:
            self._deadline = now + 1.0
            return None
        return found

    patch.setattr(StepMachine, "_trigger", trigger)
    patch.setattr(Ballot, "view_to_join", lambda self: None)


@defect("progress", (1, 2, 3), faults=Faults(join_rate=2.0, message_loss=0.3), peers=2, steps=40)
def asks_for_a_state_once(patch: Patch) -> None:
    """Nobody had the state, and it is not asked for again."""
    patch.setattr(CatchUp, "state_failed", nothing)


@defect("progress", faults=Faults(join_rate=2.0, message_loss=0.3), peers=2, steps=40)
def gives_up_on_bytes(patch: Patch) -> None:
    """Nobody had the bytes of an update, and no state is asked for instead."""
    patch.setattr(CatchUp, "blob_failed", lambda self, digest, candidates: [])


@defect("progress", (1, 2, 4), faults=LOSSY)
def answers_no_wants(patch: Patch) -> None:
    """Nobody shows a message to whoever lacks it."""
    patch.setattr(Node, "_on_want", nothing)
    patch.setattr(Transcript, "own", lambda self, peer: [])


@defect("awake", faults=LOSSY)
def spins(patch: Patch) -> None:
    """A deadline that has passed stays the next one."""
    honest = StepMachine.next_deadline

    def next_deadline(self: StepMachine) -> float | None:
        return self._began if self.phase is Phase.SIGN else honest(self)

    patch.setattr(StepMachine, "next_deadline", next_deadline)


@defect("no_honest_rest", peers=9, steps=30, liar=WithholdCut, liars=4)
def keeps_the_cut_to_itself(patch: Patch) -> None:
    """A cut that was accepted is not shown to those that its proposer has left out."""
    patch.setattr(Proposals, "to_show", lambda self, name: [])


@defect("no_honest_rest", (9, 11, 12), peers=9, steps=30, liar=WithholdCut, liars=4)
def has_done_with_a_cut_too_soon(patch: Patch) -> None:
    """Whoever has asked for the next view takes no cut of this one, although the next is not open."""

    def proposed(self: Proposals, is_first: bool) -> Opened | None:
        view = self._ballot.view
        return self._transcript.proposal(self._proposer_of(view), view)

    patch.setattr(Proposals, "proposed", proposed)


@defect("no_honest_rest", peers=7, steps=40, liar=ShowToSome, liars=3)
def keeps_the_nonces_to_itself(patch: Patch) -> None:
    """Who was not shown the nonces that others opened is not told them, and owes projections all the same."""
    patch.setattr(AcceptedCut, "_tell_the_beacon", lambda self, now: [])
