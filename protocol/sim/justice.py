"""Checkers of bans: nobody honest is blamed, banned or left out, and what convicts somebody convinces anybody.

The idea: who is honest is known here and nowhere else, so innocence is looked up; guilt is taken apart again from the
bytes of the evidence, without any of the rules' own functions but those that decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from crowdsurf.protocol import effects, limits, wire
from crowdsurf.protocol.cases import Particular, Proof
from crowdsurf.protocol.chain import Head, genesis, vote_message
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import (
    Equivocation,
    Opened,
    Slot,
    decode_envelope,
    is_equivocation,
    open_envelope,
    signed_bytes,
)
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import Digest, PeerId, digest
from crowdsurf.protocol.messages import (
    PROVEN,
    Accusation,
    Ban,
    Certificate,
    Commit,
    Envelope,
    Header,
    Kind,
    Projection,
    Reason,
    Verdict,
    indexes_of,
    reason_name,
)
from crowdsurf.protocol.roster import Roster, withheld
from crowdsurf.protocol.sim.checker import Checker, claimed_lock, name_of_header
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.vouched import is_unbalanced, is_whole, radius_of

EVIDENCE_BYTES_MAX = 1 << 20
"""A certificate, and a verdict of every member."""
_STEPS_KEPT = 64


class NoHonestBan(Checker):
    """No honest peer is ever banned, whatever fails and whoever lies."""

    name = "no_honest_ban"
    sees_effects = (effects.PersistCertificate,)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Who is banned?"""
        if host.honest and isinstance(effect, effects.PersistCertificate):
            for ban in effect.certificate.header.bans:
                banned = host.world.hosts.get(PeerId(ban.peer))
                if banned is not None and banned.honest:
                    reason = reason_name(ban.reason)
                    self.report(host, f"honest peer {banned.number} is banned for {reason} in step {ban.step}")


class NoHonestRest(Checker):
    """As long as nothing fails but liars, no honest peer is left out for a while or loses its place, whatever they
    withhold from it."""

    name = "no_honest_rest"
    sees_effects = (effects.PersistCertificate, effects.ComputeWork)

    def __init__(self) -> None:
        super().__init__()
        self._was_rough = False
        self._seen = 0
        self._here: set[PeerId] = set()
        """The members, when it last looked."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Who is left out of the roster that follows?"""
        faults = host.world.network.faults
        self._was_rough |= faults != faults.calm()  # also where nothing is certified while it is
        if not isinstance(effect, effects.PersistCertificate) or self._was_rough:
            return
        if not host.honest or host.step <= self._seen:
            return
        deadlines = host.node.manifest.deadlines
        if faults.latency_seconds_max * (1 + faults.jitter) > deadlines.delivery_seconds / 2:
            return  # slower than what the run was told to expect
        self._seen = host.step
        roster = host.node.chain.head.roster
        gone, self._here = self._here - {*roster.peers}, {*roster.peers}
        for peer in sorted(gone | {PeerId(rest.peer) for rest in roster.resting}):
            missing = host.world.hosts.get(peer)
            if missing is not None and missing.honest and not missing.leaving:
                self.report(host, f"honest peer {missing.number} is left out from step {host.step} on")


class Patient(Checker):
    """Nobody votes to void a step before it has shown the silent ones what others opened and left them time to answer,
    or has waited as long as anybody may. A header that others are locked on it must take as it is."""

    name = "patient"
    sees_effects = (effects.ComputeWork, effects.RecomputeWork, effects.SendEnvelope, effects.PersistLock)
    CLOCK: ClassVar[float] = 0.9
    """Clocks may run faster than time; so much of a wait is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._step = 0
        self._began: dict[tuple[int, int], float] = {}
        """When a host began a step, by step and host."""
        self._shown: dict[tuple[int, int, PeerId], float] = {}
        """When it showed a peer nonces that others opened, or its own a second time."""
        self._opened: set[tuple[int, int]] = set()
        self._locked_on: dict[bytes, int] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note when waits begin; judge a vote for a void step."""
        now = host.world.timeline.now
        if isinstance(effect, effects.SendEnvelope):
            self._note(host, effect, now)
        elif isinstance(effect, effects.PersistLock):
            name, header = name_of_header(effect.header), effect.header
            if host.honest and withheld(header) and name not in self._locked_on:
                self._check(host, header, now)
            self._locked_on[name] = header.step
        elif isinstance(effect, effects.ComputeWork | effects.RecomputeWork):
            self._began.setdefault((host.step, host.number), now)
            self._forget(host.step)

    def _note(self, host: Host, effect: effects.SendEnvelope, now: float) -> None:
        envelope = effect.envelope
        lock = claimed_lock(host, envelope)
        if lock is not None:
            self._locked_on.setdefault(name_of_header(lock[0]), lock[0].step)
        if envelope.kind == Kind.REVEAL:
            first_time = envelope.sender == host.id and (envelope.step, host.number) not in self._opened
            if first_time:
                self._opened.add((envelope.step, host.number))
            for peer in effect.to if not first_time else ():
                self._shown.setdefault((envelope.step, host.number, peer), now)

    def _check(self, host: Host, header: Header, now: float) -> None:
        bounds, peers, step = host.node.manifest.deadlines, host.node.chain.head.roster.peers, header.step
        longest = 2 * bounds.transfer_seconds_max + 8 * bounds.delivery_seconds
        if host.step != step or now - self._began.get((step, host.number), now) >= self.CLOCK * longest:
            return
        for peer in (peers[index] for index in withheld(header)):
            shown = self._shown.get((step, host.number, peer), now)
            if peer != host.id and now - shown < 3 * self.CLOCK * bounds.delivery_seconds:
                self.report(host, f"it voids step {step} without patience for peer {host.world.hosts[peer].number}")

    def _forget(self, step: int) -> None:
        if step > self._step:
            self._step, oldest = step, step - _STEPS_KEPT
            self._began = {slot: at for slot, at in self._began.items() if slot[0] >= oldest}
            self._shown = {slot: at for slot, at in self._shown.items() if slot[0] >= oldest}
            self._opened = {slot for slot in self._opened if slot[0] >= oldest}
            self._locked_on = {name: at for name, at in self._locked_on.items() if at >= oldest}


class EvidenceChecker(Checker):
    """Base: looks at every piece of evidence an honest peer holds, once."""

    sees_effects: ClassVar[tuple[type, ...]] = (effects.PersistCertificate, effects.Refused)

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[object, int]] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look for new evidence."""
        if not host.honest:
            return
        node, seen = self._seen.get(host.number, (None, 0))
        for pair in host.node.evidence[seen if node is host.node else 0 :]:
            self.check(host, pair)
        self._seen[host.number] = (host.node, len(host.node.evidence))

    def check(self, host: Host, pair: Equivocation) -> None:
        """Judge one piece."""
        raise NotImplementedError


class NoHonestBlame(EvidenceChecker):
    """No honest peer is ever proven guilty: what other peers hold as evidence never names one."""

    name = "no_honest_blame"

    def check(self, host: Host, pair: Equivocation) -> None:
        """Who is accused?"""
        accused = host.world.hosts.get(PeerId(pair.first.sender))
        if accused is not None and accused.honest:
            self.report(host, f"it holds evidence against honest peer {accused.number}")


class EvidenceHolds(EvidenceChecker):
    """Whatever a peer holds as evidence convinces anybody who has its bytes and the run's id; that of a ban for work
    that was recomputed, anybody who has the roster of the header that bans, too, and knows who was drawn."""

    name = "evidence_holds"
    sees_effects = (*EvidenceChecker.sees_effects, effects.PersistEvidence)

    def __init__(self, verify: Callable[[PeerId, bytes, bytes], bool]) -> None:
        super().__init__()
        self._verify = verify
        self._radius: float | None = None
        """Of the run's rule, once anything was certified."""
        self._heads: dict[int, Head] = {}
        """What steps started from: who the members were, and who was drawn to validate whom."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note who was drawn and who the members are; judge what is kept about a ban."""
        super().on_effect(host, effect)
        if not host.honest:
            return
        if isinstance(effect, effects.PersistCertificate):
            if not self._heads:
                self._heads[0] = genesis(host.node.manifest)
                self._radius = radius_of(host.node.manifest)
            if host.step not in self._heads:
                self._heads[host.step] = host.node.chain.head
                self._heads.pop(host.step - _STEPS_KEPT, None)
        elif isinstance(effect, effects.PersistEvidence):
            self._check_ban(host, effect.evidence)

    def check(self, host: Host, pair: Equivocation) -> None:
        """Take it apart again, from its bytes."""
        try:
            copy = Equivocation(decode_envelope(wire.pack(pair.first)), decode_envelope(wire.pack(pair.second)))
            convinces = is_equivocation(copy, host.node.chain.run_id, self._verify)
        except Refusal:
            convinces = False
        if not convinces:
            self.report(host, "its evidence proves nothing")

    def _check_ban(self, host: Host, evidence: Evidence) -> None:
        try:
            copy = wire.unpack(wire.pack(evidence), Evidence, EVIDENCE_BYTES_MAX)
            head = self._heads.get(copy.certificate.header.step)
            problem = self._problem(copy, host.node.chain.run_id, head.roster) if head is not None else ""
            problem = problem or self._problem_of_exhibits(host, copy)
        except Refusal as refusal:
            problem = str(refusal)
        if problem:
            self.report(host, f"its evidence for a ban of step {evidence.ban.step} convinces nobody: {problem}")

    def _problem(self, evidence: Evidence, run_id: Digest, roster: Roster) -> str:
        """What is wrong with it; empty if nothing is. Raises Refusal for a message that nobody signed."""
        ban, opened = evidence.ban, open_envelope(evidence.accusation, run_id, self._verify)
        accusation = opened.payload
        if ban not in evidence.certificate.header.bans or not self._is_certified(evidence.certificate, run_id, roster):
            return "no quorum has signed it"
        if not isinstance(accusation, Accusation) or accusation.step != ban.step:
            return "the accusation is about something else"
        if accusation.reason in PROVEN:
            return self._problem_of_proof(ban, opened, accusation, run_id)
        return self._problem_of_verdicts(evidence, opened, accusation, run_id, roster)

    def _is_certified(self, certificate: Certificate, run_id: Digest, roster: Roster) -> bool:
        header, peers = certificate.header, roster.peers
        voters = {
            index
            for index, view, signature in certificate.votes
            if index < len(peers)
            and self._verify(peers[index], vote_message(run_id, header, view, peers[index]), signature)
        }
        return 2 * len(voters) > len(peers)

    def _problem_of_proof(self, ban: Ban, opened: Opened, accusation: Accusation, run_id: Digest) -> str:
        accused = PeerId(accusation.accused)
        proves = self._proves if accusation.reason == Reason.EQUIVOCATION else self._proves_imbalance
        if proves(accusation, accused, run_id):
            right = (accused, accusation.reason, opened.digest)
        else:
            right = (opened.sender, Reason.FALSE_ACCUSATION, digest("payload", opened.sender + opened.digest))
        return "" if (ban.peer, ban.reason, ban.case) == right else "the proof convicts somebody else"

    def _proves(self, accusation: Accusation, accused: PeerId, run_id: Digest) -> bool:
        """Whether the accused has signed two payloads for one slot of a step's messages."""
        try:
            proof = wire.unpack(accusation.proof, Proof, limits.PROOF_BYTES_MAX)
        except Refusal:
            return False
        if proof.kind in (Kind.ACCUSATION, Kind.VERDICT):
            return False
        slot = Slot(proof.step, proof.view, proof.kind, proof.subject)
        signed = [
            self._verify(accused, signed_bytes(limits.PROTOCOL_VERSION, run_id, slot, Digest(name), accused), signature)
            for name, signature in (proof.first, proof.second)
        ]
        return all(signed) and proof.first[0] != proof.second[0] and proof.step == accusation.step

    def _proves_imbalance(self, accusation: Accusation, accused: PeerId, run_id: Digest) -> bool:
        """Whether the accused has signed, in that step, lines that do not add up."""
        try:
            said = self._signed_projection(decode_envelope(accusation.proof), accusation, accused, run_id)
        except Refusal:
            return False
        return said is not None and self._radius is not None and is_unbalanced(said, self._radius)

    def _signed_projection(
        self, envelope: Envelope, accusation: Accusation, accused: PeerId, run_id: Digest
    ) -> Projection | None:
        """The projection in a message that the accused has signed in that step. Raises Refusal."""
        shown = open_envelope(envelope, run_id, self._verify)
        is_its_own = shown.sender == accused and envelope.step == accusation.step
        if not is_its_own or not isinstance(shown.payload, Projection):
            return None
        return shown.payload if is_whole(shown.payload) else None

    def _problem_of_verdicts(
        self, evidence: Evidence, opened: Opened, accusation: Accusation, run_id: Digest, roster: Roster
    ) -> str:
        ban, accused = evidence.ban, PeerId(accusation.accused)
        if accusation.reason == Reason.WRONG_PROJECTION:
            problem = self._problem_of_objection(opened.sender, accusation, accused, run_id)
        else:
            problem = self._problem_of_audit(opened.sender, accusation, accused)
        if problem:
            return problem
        right = {accused: accusation.reason, opened.sender: int(Reason.FALSE_ACCUSATION)}
        name = digest("payload", opened.sender + opened.digest)  # another accuser's word is another case
        if ban.case != name or right.get(PeerId(ban.peer)) != ban.reason:
            return "the accusation is not the one that led to it"
        agree = set()
        for envelope in evidence.verdicts:
            verdict = open_envelope(envelope, run_id, self._verify)
            if verdict.payload == Verdict(ban.case, ban.peer) and verdict.sender in roster.indexes:
                agree.add(verdict.sender)
        if 2 * len(agree) <= len(roster):
            return f"{len(agree)} of {len(roster)} members found so"
        return ""

    def _problem_of_exhibits(self, host: Host, evidence: Evidence) -> str:
        """Whoever has heard what the accused committed to shows it; others have the verdicts alone."""
        run_id = host.node.chain.run_id
        accusation = open_envelope(evidence.accusation, run_id, self._verify).payload
        if not isinstance(accusation, Accusation) or accusation.reason in (*PROVEN, Reason.WRONG_PROJECTION):
            return ""  # it holds what the accused has said
        record, accused = host.node.auditor.tribunal.record(accusation.step), PeerId(accusation.accused)
        if record is None or accused not in record.commits:
            return ""
        exhibits = [open_envelope(envelope, run_id, self._verify) for envelope in evidence.exhibits]
        shown = [one for one in exhibits if isinstance(one.payload, Commit) and one.sender == accused]
        is_shown = any(one.envelope.step == accusation.step for one in shown)
        return "" if is_shown else "what the accused committed to is not shown"

    def _problem_of_audit(self, accuser: PeerId, accusation: Accusation, accused: PeerId) -> str:
        if accusation.reason == Reason.WRONG_GRADIENT:
            return "" if self._was_drawn(accuser, accused, accusation.step) else "the accuser was not drawn"
        head = self._heads.get(accusation.step)
        drawn = head is None or (accused, accuser) in [(audit.validator, audit.target) for audit in head.audits]
        return "" if drawn else "the accuser was not drawn"

    def _was_drawn(self, validator: PeerId, target: PeerId, step: int) -> bool:
        """Whether somebody was drawn to look at the work of a step, in the next one or later; yes if nobody knows."""
        heads = [self._heads[later] for later in range(step + 1, step + limits.CASE_STEPS + 1) if later in self._heads]
        audits = {(audit.validator, audit.target, audit.step) for head in heads for audit in head.audits}
        return step + 1 not in self._heads or (validator, target, step) in audits

    def _problem_of_objection(self, accuser: PeerId, accusation: Accusation, accused: PeerId, run_id: Digest) -> str:
        """The accuser must be who the lie is about, or its validator."""
        particular = wire.unpack(accusation.proof, Particular, limits.PROOF_BYTES_MAX)
        said = self._signed_projection(particular.projection, accusation, accused, run_id)
        if said is None or particular.member not in indexes_of(said.included):
            return "the accused has not said anything about this member"
        head = self._heads.get(accusation.step)
        if head is None:
            return ""
        peer = head.roster.peers[particular.member]
        is_its_own = accuser == peer or self._was_drawn(accuser, peer, accusation.step)
        return "" if is_its_own else "it is not the accuser's work"
