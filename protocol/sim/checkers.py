"""Checkers: what must hold in every simulation, whatever fails and whoever lies; always on.

The idea: a checker watches the hosts from outside, keeps its own small record of what it has seen, and reports a
violation with its name. It trusts nothing the checked code says about itself: a header is worked out again from
the messages that were really signed, evidence is taken apart again from its bytes. Tests break the rules on
purpose, one by one, to show that each checker fires (tests/simulation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from crowdsurf.protocol import effects, events, limits, wire
from crowdsurf.protocol.auditor import Auditor
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import is_objection
from crowdsurf.protocol.chain import vote_message
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Aggregate, Header, Kind, Prepare, Reveal, Vote
from crowdsurf.protocol.roster import quorum_of, withheld
from crowdsurf.protocol.sim.checker import Checker, Violation, claimed_lock, name_of_header
from crowdsurf.protocol.sim.header_follows import HeaderFollows
from crowdsurf.protocol.sim.host import MEMORY_STEPS, Host
from crowdsurf.protocol.sim.justice import EvidenceHolds, NoHonestBan, NoHonestBlame, NoHonestRest, Patient
from crowdsurf.protocol.sim.outspoken import Outspoken
from crowdsurf.protocol.sim.vouched import radius_of
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.transcript import _MESSAGES_OF_A_KIND_MAX as MESSAGES_OF_A_KIND_MAX

_STEPS_KEPT = 64
"""Records of older steps are forgotten; nobody is that far behind and still votes."""

__all__ = ["Checker", "Violation", "all_checkers"]


class SameState(Checker):
    """All honest peers hold the same state before a step, and it is the one its header names."""

    name = "same_state"
    sees_effects = (effects.PersistCertificate,)

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[int, Digest] = {}

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """Compare with what others had."""
        if host.honest and self._states.setdefault(step, digest) != digest:
            self.report(host, f"its state before step {step} is another than that of others")

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare with the certified header."""
        if host.honest and isinstance(effect, effects.PersistCertificate):
            header = effect.certificate.header
            if self._states.setdefault(header.step, Digest(header.state)) != header.state:
                self.report(host, f"the header of step {header.step} names another state than peers hold")


class OneOutcome(Checker):
    """No fork: two honest peers never certify different headers for one step."""

    name = "one_outcome"
    sees_effects = (effects.PersistCertificate,)

    def __init__(self) -> None:
        super().__init__()
        self._headers: dict[int, Header] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare a certified header with what others certified."""
        if host.honest and isinstance(effect, effects.PersistCertificate):
            header = effect.certificate.header
            if self._headers.setdefault(header.step, header) != header:
                self.report(host, f"a second outcome of step {header.step} is certified")


class NothingLost(Checker):
    """A certified step stays certified: an honest peer's chain grows by one, and a restarted one starts with no less
    than what its disk had made durable, in which no step is missing."""

    name = "nothing_lost"
    sees_effects = (effects.PersistCertificate, effects.PersistLock)

    def __init__(self) -> None:
        super().__init__()
        self._heads: dict[int, tuple[object, int]] = {}
        self._durable: dict[int, int] = {}
        """Certified steps that each host has relied on as durable."""

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """A host that starts again holds a state first: compare its chain with what was durable."""
        known = self._heads.get(host.number)
        if not host.honest or (known is not None and known[0] is host.node):
            return
        durable = max(self._durable.get(host.number, 0), len(host.disk.certificates))
        if host.step < durable:
            self.report(host, f"it starts in step {host.step} although {durable} steps were durable")
        self._heads[host.number] = host.node, host.step - 1

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare the step that is certified with the one before; note what is relied on."""
        if not host.honest:
            return
        if not isinstance(effect, effects.PersistCertificate):
            self._durable[host.number] = max(self._durable.get(host.number, 0), len(host.disk.certificates))
            return
        step, certificates = effect.certificate.header.step, host.disk.certificates
        node, last = self._heads.get(host.number, (host.node, step - 1))
        if node is host.node and step != last + 1:
            self.report(host, f"step {step} is certified after step {last}")
        if certificates and certificates[-1].header.step != len(certificates) - 1:
            self.report(host, "a step is missing on its disk")
        self._heads[host.number] = host.node, step


class QuorumSigned(Checker):
    """Every certificate an honest peer follows carries the valid votes of more than half of the step's members."""

    name = "quorum_signed"
    sees_effects = (effects.PersistCertificate,)

    def __init__(self, verify: Callable[[PeerId, bytes, bytes], bool]) -> None:
        super().__init__()
        self._verify = verify
        self._valid: dict[tuple[bytes, PeerId, int, bytes], bool] = {}
        self._members: dict[int, tuple[PeerId, ...]] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Count the votes that hold."""
        if not host.honest or not isinstance(effect, effects.PersistCertificate):
            return
        header, chain = effect.certificate.header, host.node.chain
        if header.step == 0:
            self._members.setdefault(0, tuple(sorted(PeerId(peer) for peer in chain.manifest.founders)))
        if host.step == header.step + 1:
            self._members.setdefault(host.step, chain.head.roster.peers)
        members, name = self._members.get(header.step, ()), name_of_header(header)
        voters = {
            members[index]
            for index, view, signature in effect.certificate.votes
            if index < len(members) and self._holds(chain.run_id, header, name, members[index], view, signature)
        }
        if 2 * len(voters) <= len(members) or not members:
            self.report(host, f"step {header.step} is certified by {len(voters)} of {len(members)} members")

    def _holds(self, run_id: bytes, header: Header, name: bytes, peer: PeerId, view: int, signature: bytes) -> bool:
        vote = (name, peer, view, signature)
        known = self._valid.get(vote)
        if known is None:
            if len(self._valid) >= 10_000:
                self._valid.clear()
            known = self._valid[vote] = self._verify(peer, vote_message(run_id, header, view, peer), signature)
        return known


class BytesHeld(Checker):
    """An honest peer votes for nothing, applies nothing and aggregates nothing whose bytes it does not hold: a step
    that is certified without its bytes could never be applied by anybody."""

    name = "bytes_held"
    sees_effects = (effects.PersistLock, effects.ApplyUpdate, effects.AggregatePart)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look for the bytes."""
        if not host.honest:
            return
        if isinstance(effect, effects.PersistLock):
            # By now its disk keeps the update: only what is in memory proves that it was ever here.
            if _not_in_memory(host, effect.header.parts):
                self.report(host, f"it votes in step {effect.header.step} for bytes it does not hold")
        elif isinstance(effect, effects.ApplyUpdate):
            # Bytes of older steps may be gone from memory again; then the shell has to fetch them anew.
            recent = effect.step >= host.step - MEMORY_STEPS
            if recent and any(not host.disk.has_part(name) for name in _not_in_memory(host, effect.parts)):
                self.report(host, f"it applies bytes of step {effect.step} that it does not hold")
        elif isinstance(effect, effects.AggregatePart):
            lacking = _not_in_memory(host, tuple(name for _, name in effect.inputs))
            if any(not host.disk.has_part(name) for name in lacking):
                self.report(host, f"it aggregates bytes in step {effect.step} that it does not hold")


def _not_in_memory(host: Host, names: tuple[bytes, ...]) -> set[bytes]:
    lacking = set(names) - {b""}
    for blobs in host._blobs.values():
        lacking = lacking.difference(blobs)
    return lacking


class SignedOnce(Checker):
    """An honest peer never signs two different messages for one slot, crashes and restarts included."""

    name = "signed_once"
    sees_effects = (effects.SendEnvelope,)

    def __init__(self) -> None:
        super().__init__()
        self._slots: dict[tuple[object, ...], bytes] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare what is sent with what was sent before for the same slot."""
        if not host.honest or not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender != host.id:
            return
        envelope = effect.envelope
        slot = (host.number, envelope.step, envelope.view, envelope.kind, envelope.subject)
        if self._slots.setdefault(slot, envelope.payload) != envelope.payload:
            self.report(
                host, f"it signed {Kind(envelope.kind).name.lower()} of step {envelope.step} twice, differently"
            )
        if len(self._slots) > 200_000:
            oldest = sorted(slot[1] for slot in self._slots)[len(self._slots) // 2]  # type: ignore[type-var]
            self._slots = {slot: data for slot, data in self._slots.items() if slot[1] > oldest}  # type: ignore[operator]


class DurableFirst(Checker):
    """What an honest peer signs is on its disk before it is sent, and so is the header it votes for."""

    name = "durable_first"
    sees_effects = (effects.SendEnvelope,)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Ask the disk."""
        if not host.honest or not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender != host.id:
            return
        envelope, disk = effect.envelope, host.disk
        if envelope.step < len(disk.certificates):
            return
        kind = Kind(envelope.kind)
        kept = (kept.envelope.signature for kept in reversed(disk._durable) if isinstance(kept, effects.PersistSigned))
        if envelope.signature not in kept:
            self.report(host, f"it sent {kind.name.lower()} of step {envelope.step} before it was durable")
        if kind is Kind.VOTE:
            vote = wire.unpack(envelope.payload, Vote, limits.ENVELOPE_BYTES_MAX)
            locks = (kept for kept in disk._durable if isinstance(kept, effects.PersistLock))
            if not any(name_of_header(lock.header) == vote.header for lock in locks):
                self.report(host, f"it voted in step {envelope.step} before its lock was durable")


class StaysLocked(Checker):
    """An honest peer that voted for a header votes for another one only if that one was voted for in no earlier view:
    the first one may be certified already, somewhere, without its knowing."""

    name = "stays_locked"
    sees_effects = (effects.PersistLock, effects.SendEnvelope)

    def __init__(self) -> None:
        super().__init__()
        self._step = 0
        self._own: dict[tuple[int, int], tuple[bytes, int]] = {}
        """The header of the newest vote, and its view, by host and step."""
        self._known: dict[int, dict[bytes, int]] = {}
        """The newest view that somebody voted for a header in, or said so, by step and header."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note who says to be locked on what, and compare a vote with the one before."""
        if isinstance(effect, effects.SendEnvelope):
            lock = claimed_lock(host, effect.envelope)
            if lock is not None:
                self._note(lock[0].step, name_of_header(lock[0]), lock[1])
        elif isinstance(effect, effects.PersistLock):
            name, step = name_of_header(effect.header), effect.header.step
            before, view = self._own.get((host.number, step), (name, -1))
            if host.honest and before != name and self._known.get(step, {}).get(name, -1) < view:
                self.report(host, f"it votes for another header of step {step} than the one it was locked on")
            self._own[host.number, step] = name, effect.view
            self._note(step, name, effect.view)

    def _note(self, step: int, name: bytes, view: int) -> None:
        known = self._known.setdefault(step, {})
        known[name] = max(view, known.get(name, -1))
        if step > self._step:
            self._step = step
            self._own = {slot: vote for slot, vote in self._own.items() if slot[1] >= step - _STEPS_KEPT}
            self._known = {old: views for old, views in self._known.items() if old >= step - _STEPS_KEPT}


class BoundedQueues(Checker):
    """Nothing a peer can be made to hold grows beyond its bound."""

    name = "bounded_queues"
    sees_effects = (effects.PersistCertificate, effects.PersistLock)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look late in a step, and when it is certified: nobody holds more than then."""
        self._look(host)

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """Look before what was waiting for the next step is used."""
        self._look(host)

    def _look(self, host: Host) -> None:
        if not host.honest:
            return
        for what, size, most in self._sizes(host):
            if size > most:
                self.report(host, f"{size} {what}, at most {most} are allowed")

    def _sizes(self, host: Host) -> list[tuple[str, int, int]]:
        node = host.node
        early = [len(kept) for kept in node._early.values()]
        sizes = [
            ("peers that are ahead", len(node._early), limits.ROSTER_PEERS_MAX),
            ("messages ahead of time of one peer", max(early, default=0), limits.BUFFERED_MESSAGES_PER_PEER),
            ("pieces of evidence", len(node.evidence), limits.EVIDENCE_MAX),
            ("candidates", len(node.membership.candidates()), limits.CANDIDATES_MAX),
            ("certificates in memory", len(node.catch_up._certificates), 64),
        ]
        sizes += _court_sizes(node.auditor)
        if node.machine is not None:
            said = node.machine.transcript._said.values()
            sizes.append(("messages of one kind of one member", max(said, default=0), MESSAGES_OF_A_KIND_MAX))
        return sizes


def _court_sizes(auditor: Auditor) -> list[tuple[str, int, int]]:
    tribunal, in_headers = auditor.tribunal, limits.BANS_PER_HEADER_MAX
    cases = tribunal._cases.values()
    objections = Counter(case.accuser for case in cases if case.question is not None and is_objection(case.opened))
    disputes = Counter(case.accuser for case in cases if case.question is not None) - objections
    return [
        ("open cases", len(cases) - objections.total(), limits.CASES_MAX + in_headers),
        ("objections of one accuser", max(objections.values(), default=0), limits.OBJECTIONS_PER_ACCUSER_MAX),
        ("proofs", sum(case.question is None for case in cases), limits.ROSTER_PEERS_MAX),
        ("open cases of one accuser", max(disputes.values(), default=0), limits.CASES_PER_ACCUSER_MAX + in_headers),
        ("verdicts on one case", max((len(case.verdicts) for case in cases), default=0), limits.ROSTER_PEERS_MAX),
        ("steps remembered for cases", len(tribunal._records), limits.CASE_STEPS + 1),
        ("cases asked for", len(auditor._asked), limits.EVIDENCE_MAX),
    ]


class Progress(Checker):
    """After faults have stopped every honest peer gets on, unless honest ones are out for what failed and the others
    are no quorum any more, or everybody that it knows has left (SPEC, "Not guaranteed yet"); `finish` is asked once, at
    the end."""

    name = "progress"

    def finish(self, host: Host, done: bool) -> None:
        """Note whether a host got where it should."""
        if not done and not _faults_cost_the_quorum(host) and not _knows_nobody(host):
            state = "is waiting" if host.alive else "is dead"
            missing = host.node.machine.phase.name if host.node.machine is not None else "no step"
            self.report(host, f"it {state} in step {host.step} ({missing}), its state is that before {host.state_step}")


def _faults_cost_the_quorum(host: Host) -> bool:
    """Whether somebody honest is out, because it rests or has missed too many steps, and too few honest members of the
    newest roster are there without it."""
    there = [other for other in host.world.hosts.values() if other.honest and other.started and not other.finished]
    newest = max(there, key=lambda other: other.step)
    roster = newest.node.chain.head.roster
    members = sum(other.id in roster.indexes for other in there)
    return members < len(there) and members < quorum_of(len(roster), host.node.manifest.quorum)


def _knows_nobody(host: Host) -> bool:
    """Whether it is new, and all that it could ask have left."""
    known = (host.world.hosts.get(peer) for peer in host.node.chain.head.roster.peers)
    return host.step == 0 and all(other is None or bool(other.finished) for other in known)


class NothingDropped(Checker):
    """An honest peer prepares no header without work that it holds, so a proposer alone can void nobody's; only a
    header that others are locked on it must take as it is."""

    name = "nothing_dropped"
    sees_effects = (effects.PersistLock, effects.PersistSigned, effects.SendEnvelope)

    def __init__(self) -> None:
        super().__init__()
        self._locked_on: dict[bytes, int] = {}
        """Headers somebody is locked on, or says so, with their step."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare the header that is prepared with what its signer holds."""
        if isinstance(effect, effects.SendEnvelope):
            lock = claimed_lock(host, effect.envelope)
            if lock is not None:
                self._locked_on.setdefault(name_of_header(lock[0]), lock[0].step)
        elif isinstance(effect, effects.PersistLock):
            name, step = name_of_header(effect.header), effect.header.step
            self._locked_on = {old: at for old, at in self._locked_on.items() if at >= step - _STEPS_KEPT}
            self._locked_on[name] = step
        elif isinstance(effect, effects.PersistSigned) and host.honest and effect.envelope.kind == Kind.PREPARE:
            prepare = wire.unpack(effect.envelope.payload, Prepare, limits.ENVELOPE_BYTES_MAX)
            self._on_prepared(host, prepare.header, effect.envelope.step)

    def _on_prepared(self, host: Host, name: bytes, step: int) -> None:
        header = host.node.machine.transcript.header(name) if host.node.machine is not None else None
        if header is not None and name not in self._locked_on and self._drops(host, header):
            self.report(host, f"it prepares in step {step} a header without work that it holds")

    def _drops(self, host: Host, header: Header) -> bool:
        machine = host.node.machine
        cut = machine.transcript.cut(header.cut) if machine is not None else None
        if machine is None or machine.facts.head.step != header.step or cut is None:
            return False  # certified by the same event; nothing to compare with any more
        # Of a step in which a nonce is withheld nothing counts.
        for part, aggregator in enumerate(machine.facts.duties(cut)) if not withheld(header) else ():
            said = machine.transcript.aggregate(header.cut, part, aggregator)
            if header.parts[part] or said is None or said.digest not in machine.holdings.blobs:
                continue
            if radius_of(host.node.chain.manifest) is None or _is_vouched_for(host, machine, said, aggregator):
                return True
        commits = machine.transcript.commits_in(cut, machine.facts.peers)
        revealed = {index: machine.transcript.reveals.get(machine.facts.peers[index], {}) for index in commits}
        return any(
            isinstance(said.payload, Reveal) and nonce_digest(said.payload.nonce) == commits[index].nonce_digest
            for index, reveals in revealed.items()
            for said in reveals.values()
            if not header.nonces[index]
        )


def _is_vouched_for(host: Host, machine: StepMachine, said: Aggregate, aggregator: PeerId) -> bool:
    """Whether all that is needed for an aggregate to count is here. Only that of an honest peer is certain to."""
    known, by = machine.transcript, host.world.hosts[aggregator]
    witnesses = [reveal.payload for reveal in known.reveals_of(said.cut)]
    named = sum(isinstance(one, Reveal) and said.digest in one.aggregates for one in witnesses)
    scrutiny = machine.holdings.scrutiny
    beacon = machine.accepted.beacon() if machine.accepted is not None else None
    is_checked = scrutiny is not None and beacon is not None and scrutiny.is_known(said.part, said.digest, beacon)
    shown = known.projection(said.cut, said.part, aggregator) is not None and not known.objectors(said.cut, aggregator)
    return by.honest and is_checked and shown and 2 * named >= len(machine.facts.peers)


class Admitted(Checker):
    """Once faults have stopped, whoever asks to join a run that is open and has room is let in soon; whoever was left
    out for a while, soon after that."""

    name = "admitted"
    sees_effects = (effects.SendEnvelope, effects.StepCertified)
    STEPS_MAX: ClassVar[int] = 8
    """A request is repeated every other step, named in the next commits and granted by their header."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: dict[PeerId, tuple[Host, int]] = {}
        """Who asks, and the step the run was in when it first did so knowing where the run is."""
        self._newest = 0

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note who asks, who changes its mind, and who is let in."""
        if isinstance(effect, effects.StepCertified):
            if host.honest:
                self._newest = max(self._newest, effect.step + 1)
                self._look(effect, host.node.chain.head.roster.kept_out(effect.step + 1))
        elif isinstance(effect, effects.SendEnvelope) and effect.envelope.sender == host.id and host.honest:
            if effect.envelope.kind == Kind.JOIN:
                faults, manifest = host.world.network.faults, host.node.chain.manifest
                may_join = manifest.admission == "open" or host.id in manifest.founders
                if may_join and faults == faults.calm() and effect.envelope.step >= self._newest - 1:
                    self._asking.setdefault(host.id, (host, self._newest))
            elif effect.envelope.kind == Kind.LEAVE:
                self._asking.pop(host.id, None)

    def _look(self, story: effects.StepCertified, kept_out: set[bytes]) -> None:
        for peer, (host, step) in list(self._asking.items()):
            is_full = len(story.roster) >= host.node.chain.manifest.peers_max
            if peer in kept_out:
                step = story.step + 1
                self._asking[peer] = host, step
            if peer in story.roster or is_full or not host.alive:
                del self._asking[peer]
            elif story.step > step + self.STEPS_MAX:
                del self._asking[peer]
                self.report(host, f"it asked to join in step {step} and is not let in by step {story.step}")


class Awake(Checker):
    """After every event a node wants to be called later, not at once again: nobody spins. A host that does is stopped,
    because virtual time would stand still for ever."""

    name = "awake"
    sees_events = True
    sees_effects = (effects.PersistCertificate,)
    TICKS_MAX: ClassVar[int] = 50
    """Of one host at one moment; several deadlines may well fall together."""

    def __init__(self) -> None:
        super().__init__()
        self._ticks: dict[int, tuple[float, int]] = {}

    def on_event(self, host: Host, event: events.Event) -> None:
        """Count the calls of one moment."""
        if event.__class__ is not events.Tick:
            return
        now = host.world.timeline.now
        moment, ticks = self._ticks.get(host.number, (now, 0))
        ticks = ticks + 1 if moment == now else 1
        self._ticks[host.number] = now, ticks
        if ticks > self.TICKS_MAX:
            self.report(host, f"it wanted to be called {ticks} times at one moment")
            host.crash()

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Ask the host, which asks its node after every event."""
        if host.late_deadlines:
            self.report(host, f"it wanted to be called in the past {host.late_deadlines} times")
            host.late_deadlines = 0


def all_checkers(verify: Callable[[PeerId, bytes, bytes], bool]) -> list[Checker]:
    """One of each."""
    return [
        SameState(),
        OneOutcome(),
        NothingLost(),
        QuorumSigned(verify),
        BytesHeld(),
        SignedOnce(),
        DurableFirst(),
        StaysLocked(),
        NothingDropped(),
        Admitted(),
        NoHonestBan(),
        NoHonestRest(),
        Patient(),
        NoHonestBlame(),
        EvidenceHolds(verify),
        Outspoken(),
        BoundedQueues(),
        HeaderFollows(),
        Awake(),
        Progress(),
    ]
