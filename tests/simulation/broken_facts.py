"""Defects in what peers believe: states, certificates, headers and what these follow from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from crowdsurf.protocol import chain, checks, events, holdings, outcome, roster
from crowdsurf.protocol.accepted_cut import AcceptedCut, Input
from crowdsurf.protocol.catchup import CatchUp
from crowdsurf.protocol.chain import Chain, beacon_after, check_header, following_roster
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.membership import Membership
from crowdsurf.protocol.messages import Commit
from crowdsurf.protocol.node import Recovered
from crowdsurf.protocol.sim.disk import Disk
from crowdsurf.protocol.sim.faults import Faults
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.worker import Worker
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase, Trigger
from tests.simulation import liars
from tests.simulation.defect import (
    COMERS_AND_GOERS,
    CRASHY,
    LOSSY,
    Patch,
    defect,
    nothing,
)
from tests.simulation.liars_at_court import WithholdsFromOne

replace = msgspec.structs.replace


# --- states and the chain ------------------------------------------------------------------------------------


@defect("same_state", (15, 17, 20), faults=Faults(join_rate=3.0), liar=liars.ServesAFalseState, peers=2, steps=40)
def takes_any_state(patch: Patch) -> None:
    """A fetched state is not compared with its certificate."""

    def accept_state(self: CatchUp, step: int, digest: Any, fetched: bool, head_step: int) -> bool:
        self._waiting, self._asked_step = False, None
        self.step, self.digest = step, digest
        return True

    def take_state(self: Host, token: int, step: int, digest: Any, source: Any) -> None:
        if self.alive and token == self._asking_state and self.node.catch_up.certificate(step) is not None:
            self._asking_state += 1
            self._hold_state(step, digest)
            self.give(events.StateReady(step, digest, source))

    patch.setattr(CatchUp, "accept_state", accept_state)
    patch.setattr(Host, "take_state", take_state)


@defect("same_state")
def applies_an_update_twice(patch: Patch) -> None:
    """One peer applies one update two times."""
    honest = Worker._applied

    def applied(self: Worker, effect: Any) -> None:
        host = self._host
        if host.number == 1 and effect.step == 3:
            host.state = host.world.compute.apply(host.state, effect.parts)
        honest(self, effect)

    patch.setattr(Worker, "_applied", applied)


@defect("bytes_held", faults=LOSSY)
def applies_what_it_lacks(patch: Patch) -> None:
    """An update is applied without waiting for its bytes."""
    honest = CatchUp.advance

    def advance(self: CatchUp, head_step: int, candidates: Any) -> list[Effect]:
        held = self._certificates.get(self.step) if self.step is not None else None
        self._held = self._held | set(held.header.parts) if held is not None else self._held
        return honest(self, head_step, candidates)

    patch.setattr(CatchUp, "advance", advance)


@defect("nothing_lost", (0, 1, 3), faults=CRASHY)
def forgets_the_newest_step(patch: Patch) -> None:
    """The last certified step is dropped at a restart."""
    honest = Disk.recovered

    def recovered(self: Disk) -> Recovered:
        found = honest(self)
        known = {certificate.header.step: certificate for certificate in found.certificates}  # it is certified again
        return dataclasses.replace(found, certificates=list(known.values())[:-1])

    patch.setattr(Disk, "recovered", recovered)


@defect("nothing_lost", (0, 1, 4), faults=CRASHY)
def journals_no_certificates(patch: Patch) -> None:
    """What a crash leaves of the journal starts anew."""
    honest = Disk.crash

    def crash(self: Disk, chance: Any) -> None:
        honest(self, chance)
        self.certificates.clear()

    patch.setattr(Disk, "crash", crash)


@defect("quorum_signed", liar=liars.CertifiesAlone)
def believes_certificates(patch: Patch) -> None:
    """The votes of a certificate are not checked."""
    patch.setattr(Chain, "_check_votes", nothing)


@defect("header_follows", liar=liars.DropsAMember)
def believes_the_next_roster(patch: Patch) -> None:
    """A header may lead to any roster."""
    check_repaired(patch, lambda head, header, manifest: _consistent(head, header, manifest.missed_steps_max))


@defect("header_follows", liar=liars.ChoosesTheBeacon)
def believes_the_beacon(patch: Patch) -> None:
    """A header may name any beacon."""
    check_repaired(patch, lambda head, header, _: replace(header, beacon=beacon_after(head.beacon, header)))


@defect("header_follows", (6, 9, 10), faults=CRASHY)
def nobody_ever_missed_a_step(patch: Patch) -> None:
    """A member that was there once is not counted as missing again."""

    def next_roster(old: Any, header: Any, duties: Any, missed_steps_max: int) -> roster.Roster:
        new = roster.next_roster(old, header, duties, missed_steps_max)
        return replace(new, members=tuple(replace(member, missed=0) for member in new.members))

    patch.setattr(chain, "next_roster", next_roster)


def check_repaired(patch: Patch, repair: Callable[..., Any]) -> None:
    """Leave one of the checks of a header out: check the header with that field put right."""

    def check(head: Any, header: Any, manifest: Any) -> Any:
        return check_header(head, repair(head, header, manifest), manifest)

    patch.setattr(chain, "check_header", check)
    patch.setattr(outcome, "check_header", check)


def _consistent(head: Any, header: Any, missed_steps_max: int) -> Any:
    return replace(header, next_roster=following_roster(head, header, missed_steps_max).digest)


# --- what a header follows from ------------------------------------------------------------------------------


@defect("header_follows bytes_held", liar=liars.InventsAnAggregate)
def votes_without_examining(patch: Patch) -> None:
    """A member votes for whatever is proposed."""
    patch.setattr(holdings, "examine", lambda *_: outcome.Missing((), ()))


@defect("bytes_held", liar=WithholdsFromOne)
def votes_without_bytes(patch: Patch) -> None:
    """A member votes for a header whose bytes it does not hold."""
    honest = outcome._missing_proofs

    def missing(*arguments: Any) -> outcome.Missing:
        return honest(*arguments)._replace(blobs=())

    patch.setattr(outcome, "_missing_proofs", missing)
    patch.setattr(StepMachine, "_trigger", _impatient(StepMachine._trigger))


def _impatient(trigger: Callable[..., Any]) -> Callable[..., Any]:
    """Does not wait for aggregates, so that headers are proposed before all have come."""

    def hurried(self: StepMachine, now: float) -> Any:
        if self.phase is Phase.AGGREGATE and len(self.transcript.aggregates) == len(self.facts.peers):
            return Trigger.AGGREGATES_IN
        return trigger(self, now)

    return hurried


@defect("header_follows", liar=liars.SendsAway)
def believes_who_left(patch: Patch) -> None:
    """Whoever the header says has left has left."""
    _examine_repaired(patch, ("joined", "left"))


@defect("header_follows", liar=liars.LetsIn)
def believes_who_joined(patch: Patch) -> None:
    """Whoever the header says has joined has joined."""
    _examine_repaired(patch, ("joined", "left"))


@defect("header_follows", liar=liars.NamesFewerContributors)
def believes_the_contributors(patch: Patch) -> None:
    """The contributors of a header are not compared with its cut."""
    _examine_repaired(patch, ("contributors", "nonces"))
    patch.setattr(holdings, "overlooked", lambda *arguments: [])


def _examine_repaired(patch: Patch, fields: tuple[str, ...]) -> None:
    """Leave a check of the examination out: examine the header with these fields put right."""
    honest = outcome.examine

    def examine(facts: Any, said: Any, blobs: Any, header: Any, *others: Any) -> outcome.Missing:
        cut = said.cut(header.cut)
        if cut is None or said.missing_commits(cut, facts.peers):
            return honest(facts, said, blobs, header, *others)
        right = outcome.build_header(facts, said, blobs, header.cut, cut, *others[:2])
        repaired = replace(header, **{name: getattr(right, name) for name in fields})
        repaired = replace(repaired, beacon=beacon_after(facts.head.beacon, repaired))
        repaired = _consistent(facts.head, repaired, facts.manifest.missed_steps_max)
        return honest(facts, said, blobs, repaired, *others)

    patch.setattr(holdings, "examine", examine)


@defect("header_follows", liar=liars.ChangesItsNonce)
def takes_any_nonce(patch: Patch) -> None:
    """A nonce is not compared with the one committed to."""
    patch.setattr(checks, "check_reveal", nothing)
    patch.setattr(outcome, "_check_nonces", nothing)

    def first_nonce(facts: Any, said: Any, _: Any, index: int) -> bytes:
        reveals = said.reveals.get(facts.peers[index], {}).values()
        return next((one.payload.nonce for one in reveals), b"")

    patch.setattr(outcome, "_opened_nonce", first_nonce)


@defect("header_follows", liar=liars.StartsElsewhere)
def takes_work_on_another_state(patch: Patch) -> None:
    """A commit's state is not compared with our own."""
    honest = checks.check_commit

    def check(facts: Any, sender: Any, commit: Commit) -> None:
        honest(facts, sender, replace(commit, state=facts.state))

    patch.setattr(checks, "check_commit", check)


@defect("header_follows", liar=liars.SaysTwoThings)
def takes_a_part_nobody_committed(patch: Patch) -> None:
    """An aggregator takes the parts of the commit it heard first, whichever one the cut names."""

    def inputs(self: AcceptedCut, facts: Any) -> list[Any]:
        said = self._transcript
        commits = {index: said.commit_of(facts.peers[index]) for index, _ in self.cut.commits}
        return [
            Input(part, index, facts.peers[index], Digest(commit.parts[part]))
            for part, aggregator in enumerate(self.duties)
            if aggregator == self._me
            for index, commit in commits.items()
            if commit is not None and commit.parts
        ]

    patch.setattr(AcceptedCut, "_my_inputs", inputs)


@defect("header_follows")
def aggregates_in_order_of_arrival(patch: Patch) -> None:
    """Floating-point sums depend on the order, which every peer must know."""
    honest = AcceptedCut._my_inputs

    def inputs(self: AcceptedCut, facts: Any) -> list[Any]:
        arrived = [peer for peer, _ in self._transcript.commits.items()]
        return sorted(honest(self, facts), key=lambda item: arrived.index(item.peer))

    patch.setattr(AcceptedCut, "_my_inputs", inputs)


@defect("header_follows", (0, 1, 3), faults=Faults(join_rate=10.0, message_loss=0.3), peers=2)
def admits_by_half(patch: Patch) -> None:
    """Half of the commits are enough to let somebody in."""

    def admitted(named: list[tuple[bytes, ...]], eligible: set[bytes], room: int) -> tuple[bytes, ...]:
        chosen = sorted(peer for peer in eligible if 2 * sum(peer in names for names in named) >= len(named))
        return tuple(chosen[: max(0, room)])

    patch.setattr(outcome, "admitted", admitted)


@defect("header_follows", (0, 2, 3), faults=COMERS_AND_GOERS, liar=liars.BringsBack, steps=40)
def joins_can_be_replayed(patch: Patch) -> None:
    """A request to join stays good after its sender has left."""
    honest = Membership.on_join

    def on_join(self: Membership, peer: Any, step_asked: int, head: Any) -> None:
        self._left.pop(peer, None)
        honest(self, peer, step_asked, head)

    patch.setattr(Membership, "on_join", on_join)
