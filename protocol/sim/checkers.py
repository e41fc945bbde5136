"""Checkers: what must hold in every simulation, whatever fails and whoever lies; always on.

The idea: a checker watches the hosts from outside, keeps its own small record of what it has seen, and reports a
violation with its name. It trusts nothing the checked code says about itself: a header is worked out again from
the messages that were really signed, evidence is taken apart again from its bytes. Tests break the rules on
purpose, one by one, to show that each checker fires (tests/simulation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from crowdsurf.protocol import effects, limits, wire
from crowdsurf.protocol.beacon import next_beacon, nonce_digest
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.envelope import Equivocation, decode_envelope, is_equivocation
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import (
    PAYLOAD_TYPES,
    Aggregate,
    Certificate,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Reveal,
    header_digest,
    indexes_of,
    payload_digest,
)
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.transcript import _MESSAGES_PER_MEMBER_MAX as MESSAGES_PER_MEMBER_MAX


class Violation(NamedTuple):
    """A promise that was broken."""

    checker: str
    time: float
    """Virtual seconds."""
    host: int
    text: str

    def __str__(self) -> str:
        return f"{self.checker}: t={self.time:.3f} peer {self.host}: {self.text}"


class Checker(Observer):
    """Base of all checkers."""

    name: ClassVar[str]
    VIOLATIONS_MAX: ClassVar[int] = 20
    """Kept of one kind; the first one is what matters."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def report(self, host: Host, text: str) -> None:
        """Note a violation."""
        if len(self.violations) < self.VIOLATIONS_MAX:
            self.violations.append(Violation(self.name, host.world.timeline.now, host.number, text))


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
    sees_effects = (effects.PersistCertificate,)

    def __init__(self) -> None:
        super().__init__()
        self._heads: dict[int, tuple[object, int]] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Compare the step that is certified with the one before."""
        if not host.honest or not isinstance(effect, effects.PersistCertificate):
            return
        step, durable = effect.certificate.header.step, len(host.disk.certificates)
        node, last = self._heads.get(host.number, (None, -1))
        if node is host.node and step != last + 1:
            self.report(host, f"step {step} is certified after step {last}")
        if node is not host.node and step < durable - 1:
            self.report(host, f"it certifies step {step} although its disk has {durable} steps")
        if durable and host.disk.certificates[-1].header.step != durable - 1:
            self.report(host, "a step is missing on its disk")
        self._heads[host.number] = (host.node, step)


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
    """What an honest peer signs is on its disk before it is sent."""

    name = "durable_first"
    sees_effects = (effects.SendEnvelope,)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Ask the disk."""
        if not host.honest or not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender != host.id:
            return
        envelope = effect.envelope
        if envelope.step >= len(host.disk.certificates) and envelope.signature not in host.disk.signed():
            self.report(
                host, f"it sent {Kind(envelope.kind).name.lower()} of step {envelope.step} before it was durable"
            )


class EvidenceChecker(Checker):
    """Base: looks at every piece of evidence an honest peer holds, once."""

    sees_effects = (effects.PersistCertificate, effects.Refused)

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
    """Whatever a peer holds as evidence convinces anybody who has its bytes and the run's id alone."""

    name = "evidence_holds"

    def __init__(self, verify: Callable[[PeerId, bytes, bytes], bool]) -> None:
        super().__init__()
        self._verify = verify

    def check(self, host: Host, pair: Equivocation) -> None:
        """Take it apart again, from its bytes."""
        try:
            copy = Equivocation(decode_envelope(wire.pack(pair.first)), decode_envelope(wire.pack(pair.second)))
            convinces = is_equivocation(copy, host.node.chain.run_id, self._verify)
        except Refusal:
            convinces = False
        if not convinces:
            self.report(host, "its evidence proves nothing")


class BoundedQueues(Checker):
    """Nothing a peer can be made to hold grows beyond its bound."""

    name = "bounded_queues"
    sees_effects = (effects.PersistCertificate,)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look once a step, before it is over."""
        if not host.honest or not isinstance(effect, effects.PersistCertificate):
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
        if node.machine is not None:
            said = node.machine.transcript._per_member.values()
            sizes.append(("messages of one member", max(said, default=0), MESSAGES_PER_MEMBER_MAX))
        return sizes


class Progress(Checker):
    """After faults have stopped every honest peer gets on; `finish` is asked once, at the end."""

    name = "progress"

    def finish(self, host: Host, done: bool) -> None:
        """Note whether a host got where it should."""
        if not done:
            state = "is waiting" if host.alive else "is dead"
            missing = host.node.machine.phase.name if host.node.machine is not None else "no step"
            self.report(host, f"it {state} in step {host.step} ({missing}), its state is that before {host.state_step}")


class HeaderFollows(Checker):
    """Every fact of a certified header follows from messages that its members really signed, worked out again here."""

    name = "header_follows"
    sees_effects = (effects.PersistCertificate, effects.SendEnvelope)

    def __init__(self) -> None:
        super().__init__()
        self._step = -1
        self._said: dict[int, dict[bytes, tuple[PeerId, Envelope]]] = {}
        self._checked: set[bytes] = set()

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Collect what is signed; check what is certified."""
        if isinstance(effect, effects.SendEnvelope) and effect.envelope.sender == host.id:
            envelope = effect.envelope
            if envelope.kind in (Kind.COMMIT, Kind.PROPOSAL, Kind.AGGREGATE, Kind.REVEAL):
                said = self._said.setdefault(envelope.step, {})
                said.setdefault(payload_digest(envelope.payload) + host.id, (host.id, envelope))
        elif isinstance(effect, effects.PersistCertificate) and host.honest:
            name = header_digest(effect.certificate.header)
            if name not in self._checked:
                self._checked.add(name)
                self._check(host, effect.certificate)

    def _check(self, host: Host, certificate: Certificate) -> None:
        header = certificate.header
        members = self._members(host, header)
        said = [(peer, _open(envelope)) for peer, envelope in self._said.get(header.step, {}).values()]
        for old in [step for step in self._said if step < header.step - 8]:
            del self._said[old]
        if members is None:
            return
        cuts = [payload for _, payload in said if isinstance(payload, Cut) and _digest_of(payload) == header.cut]
        if not cuts:
            self.report(host, f"nobody proposed the cut of step {header.step}")
            return
        cut = cuts[0]
        commits: dict[int, Commit] = {}
        for index, name in cut.commits:
            for peer, payload in said:
                if isinstance(payload, Commit) and peer == members[index] and _digest_of(payload) == name:
                    commits[index] = payload
        self._compare(host, header, cut, commits, said, members)

    def _members(self, host: Host, header: Header) -> tuple[PeerId, ...] | None:
        """The roster of the header's step, as the host told after the step before."""
        if header.step == 0:
            return tuple(sorted(PeerId(peer) for peer in host.node.chain.manifest.founders))
        before = host.stories.get(header.step - 1)
        return before.roster if before is not None else None

    def _compare(
        self,
        host: Host,
        header: Header,
        cut: Cut,
        commits: dict[int, Commit],
        said: list[tuple[PeerId, object]],
        members: tuple[PeerId, ...],
    ) -> None:
        indexes = [index for index, _ in cut.commits]
        aggregates = {
            (payload.part, payload.digest)
            for _, payload in said
            if isinstance(payload, Aggregate) and payload.cut == header.cut
        }
        reveals = {(peer, payload.nonce) for peer, payload in said if isinstance(payload, Reveal)}
        previous = (
            host.disk.certificates[header.step - 1].header if 0 < header.step <= len(host.disk.certificates) else None
        )
        named = {peer for commit in commits.values() for peer in (*commit.joins, *commit.leaves)}
        problems = {
            "names other contributors than its cut": indexes_of(header.contributors) != indexes,
            "counts a commit that nobody signed": set(commits) != set(indexes),
            "starts from another state than a commit": any(c.state != header.state for c in commits.values()),
            "has an aggregate that nobody signed": any(
                name and (part, name) not in aggregates for part, name in enumerate(header.parts)
            ),
            "has a nonce that was not revealed or not committed to": any(
                nonce
                and (
                    (members[index], nonce) not in reveals
                    or index not in commits
                    or nonce_digest(nonce) != commits[index].nonce_digest
                )
                for index, nonce in enumerate(header.nonces)
            ),
            "has a beacon of its own": previous is not None
            and header.beacon != next_beacon(Digest(previous.beacon), header.nonces),
            "lets in or out somebody no commit names": not {*header.joined, *header.left} <= named,
        }
        for text, wrong in problems.items():
            if wrong:
                self.report(host, f"the header of step {header.step} {text}")


def _open(envelope: Envelope) -> object:
    try:
        return wire.unpack(envelope.payload, PAYLOAD_TYPES[Kind(envelope.kind)], limits.ENVELOPE_BYTES_MAX)
    except (Refusal, ValueError):
        return None


def _digest_of(payload: Commit | Cut) -> Digest:
    return payload_digest(wire.pack(payload))


class Awake(Checker):
    """After every event a node wants to be called later, not at once again: nobody spins."""

    name = "awake"
    sees_effects = (effects.PersistCertificate,)

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
        SignedOnce(),
        DurableFirst(),
        NoHonestBlame(),
        EvidenceHolds(verify),
        BoundedQueues(),
        HeaderFollows(),
        Awake(),
        Progress(),
    ]
