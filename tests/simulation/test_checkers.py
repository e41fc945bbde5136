"""Every checker by itself: a small false history that it must report, and the true one that it must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from crowdsurf.protocol import effects, events, limits, transcript
from crowdsurf.protocol.envelope import Equivocation, Slot, seal
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import (
    Ban,
    Header,
    Join,
    Kind,
    Leave,
    Prepare,
    Reason,
    Reveal,
    ViewChange,
    Vote,
    header_digest,
)
from crowdsurf.protocol.roster import Roster
from crowdsurf.protocol.sim import checkers, header_follows, justice
from crowdsurf.protocol.sim.checkers import Checker, Violation
from crowdsurf.protocol.sim.disk import Disk
from crowdsurf.protocol.sim.host import WENT, Host
from crowdsurf.protocol.sim.simulation import Simulation
from tests.simulation.liars import signed
from tests.simulation.runs import Setting, simulation
from tests.simulation.told import STEPS, A, B, fake_certificate, texts

replace = msgspec.structs.replace


class Recorder(checkers.Checker):
    """Keeps what a checker would be told, and the hosts' part in it."""

    name = "recorder"
    sees_events = True
    sees_effects = (effects.PersistCertificate, effects.PersistLock, effects.PersistSigned, effects.SendEnvelope)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Host, effects.Effect]] = []

    def on_effect(self, host: Host, effect: effects.Effect) -> None:
        self.seen.append((host, effect))


@pytest.fixture(scope="module")
def history() -> tuple[Simulation, Recorder]:
    """A short run without faults, and what it did. Its hosts are at the end of the run."""
    made = simulation(Setting(peers=3, steps=STEPS), 2)
    recorder = Recorder()
    made.world.watch(recorder)
    assert made.run().violations == []
    return made, recorder


def certificates(history: tuple[Simulation, Recorder]) -> Iterator[tuple[Host, effects.PersistCertificate]]:
    for host, effect in history[1].seen:
        if isinstance(effect, effects.PersistCertificate):
            yield host, effect


def with_header(effect: effects.PersistCertificate, **changed: Any) -> effects.PersistCertificate:
    certificate = effect.certificate
    return effects.PersistCertificate(replace(certificate, header=replace(certificate.header, **changed)))


def test_a_violation_reads_well_and_only_the_first_ones_are_kept(running: Simulation) -> None:
    checker = checkers.SameState()
    for _ in range(100):
        checker.report(running.hosts[1], "it went wrong")
    assert len(checker.violations) == Checker.VIOLATIONS_MAX
    assert str(checker.violations[0]) == f"same_state: t={running.timeline.now:.3f} peer 1: it went wrong"


def test_same_state(history: tuple[Simulation, Recorder]) -> None:
    one, other = history[0].hosts[:2]
    checker = checkers.SameState()
    checker.on_state(one, 3, A)
    checker.on_state(other, 3, A)
    checker.on_state(other, 4, B)
    assert checker.violations == []
    checker.on_state(other, 3, B)
    assert texts(checker) == ["its state before step 3 is another than that of others"]


def test_same_state_looks_at_headers(history: tuple[Simulation, Recorder]) -> None:
    host, effect = next(certificates(history))
    header = effect.certificate.header
    checker = checkers.SameState()
    checker.on_state(host, header.step, Digest(header.state))
    checker.on_effect(host, effect)
    assert checker.violations == []
    checker.on_effect(host, with_header(effect, state=A))
    assert len(checker.violations) == 1


def test_one_outcome(history: tuple[Simulation, Recorder]) -> None:
    checker = checkers.OneOutcome()
    for host, effect in certificates(history):
        checker.on_effect(host, effect)
    assert checker.violations == []
    host, effect = next(certificates(history))
    checker.on_effect(host, with_header(effect, beacon=A))
    assert texts(checker) == ["a second outcome of step 0 is certified"]


def fake_host(**fields: Any) -> Any:
    """A host of which only what a checker asks for is there."""
    world = SimpleNamespace(timeline=SimpleNamespace(now=1.0), hosts={}, network=SimpleNamespace())
    plain = {"honest": True, "number": 0, "world": world, "node": SimpleNamespace(), "step": 0, "alive": True}
    return SimpleNamespace(**(plain | fields))


def durable(count: int) -> Any:
    return SimpleNamespace(certificates=[fake_certificate(step).certificate for step in range(count)])


def test_nothing_lost_wants_one_step_after_the_other() -> None:
    checker, host = checkers.NothingLost(), fake_host(disk=durable(0))
    checker.on_state(host, 0, A)
    for step in (0, 1, 2):
        checker.on_effect(host, fake_certificate(step))
    assert checker.violations == []
    checker.on_effect(host, fake_certificate(4))
    assert texts(checker) == ["step 4 is certified after step 2"]


def test_nothing_lost_compares_a_restart_with_the_disk() -> None:
    checker, host = checkers.NothingLost(), fake_host(disk=durable(3), step=3)
    checker.on_state(host, 3, A)
    assert checker.violations == []
    host.node, host.step = SimpleNamespace(), 2
    checker.on_state(host, 2, A)
    assert texts(checker) == ["it starts in step 2 although 3 steps were durable"]


def test_nothing_lost_remembers_what_the_disk_had() -> None:
    checker, host = checkers.NothingLost(), fake_host(disk=durable(3), step=3)
    checker.on_state(host, 3, A)
    checker.on_effect(host, effects.PersistLock(cast(Any, None), 0))
    host.node, host.disk, host.step = SimpleNamespace(), durable(2), 2
    checker.on_state(host, 2, A)
    assert len(checker.violations) == 1


def test_nothing_lost_sees_a_gap_on_disk() -> None:
    disk = durable(3)
    del disk.certificates[1]
    checker = checkers.NothingLost()
    checker.on_effect(fake_host(disk=disk), fake_certificate(3))
    assert texts(checker) == ["a step is missing on its disk"]


def test_quorum_signed(history: tuple[Simulation, Recorder]) -> None:
    made = history[0]
    checker = checkers.QuorumSigned(made.registry.verify)
    host, effect = next(certificates(history))
    checker.on_effect(host, effect)
    assert checker.violations == []
    votes = effect.certificate.votes
    forged = tuple((index, view, bytes(64)) for index, view, _ in votes)
    for false in (votes[:1], forged, (votes[0], votes[0], votes[0]), ((200, 0, bytes(64)),)):
        checker.on_effect(host, effects.PersistCertificate(replace(effect.certificate, votes=false)))
    checker.on_effect(host, with_header(effect, beacon=A))
    assert [text[:24] for text in texts(checker)] == ["step 0 is certified by 1"] * 1 + ["step 0 is certified by 0"] + [
        "step 0 is certified by 1"
    ] + ["step 0 is certified by 0"] * 2


def test_bytes_held(history: tuple[Simulation, Recorder]) -> None:
    header = replace(next(certificates(history))[1].certificate.header, parts=(A, b"", B))
    host = fake_host(_blobs={0: {A}, 1: {B}}, disk=Disk(), step=1)
    checker = checkers.BytesHeld()
    true: list[effects.Effect] = [
        effects.PersistLock(header, 0),
        effects.ApplyUpdate(0, (A, b"", B)),
        effects.AggregatePart(0, A, 0, ((0, A), (1, B)), 0),
    ]
    for effect in true:
        checker.on_effect(host, effect)
    assert checker.violations == []
    host._blobs = {0: {A}}
    for effect in true:
        checker.on_effect(host, effect)
    assert len(checker.violations) == 3


def test_signed_once(running: Simulation) -> None:
    host, checker = running.hosts[0], checkers.SignedOnce()
    slot = Slot(1, 0, Kind.REVEAL, b"")
    first, second = (signed(host, slot, Reveal(A, nonce)) for nonce in (A, B))
    other_slot = signed(host, slot._replace(step=2), Reveal(A, B))
    for envelope in (first, first, other_slot):
        checker.on_effect(host, effects.SendEnvelope((), envelope))
    checker.on_effect(running.hosts[1], effects.SendEnvelope((), second))  # forwarded: not its own
    assert checker.violations == []
    checker.on_effect(host, effects.SendEnvelope((), second))
    assert texts(checker) == ["it signed reveal of step 1 twice, differently"]


def test_durable_first(running: Simulation) -> None:
    host, checker = running.hosts[0], checkers.DurableFirst()
    step = host.step
    mine = next(e.envelope for e in host.disk._durable if isinstance(e, effects.PersistSigned))
    checker.on_effect(host, effects.SendEnvelope((), mine))
    assert checker.violations == []
    checker.on_effect(host, effects.SendEnvelope((), signed(host, Slot(step, 0, Kind.REVEAL, b""), Reveal(A, A))))
    assert texts(checker) == [f"it sent reveal of step {step} before it was durable"]


def test_durable_first_wants_the_lock_before_the_vote(
    history: tuple[Simulation, Recorder], running: Simulation
) -> None:
    host, checker = running.hosts[0], checkers.DurableFirst()
    header = replace(next(certificates(history))[1].certificate.header, step=host.step)
    vote = signed(host, Slot(host.step, 0, Kind.VOTE, b""), Vote(header_digest(header)))
    host.disk.append(effects.PersistSigned(vote))
    host.disk.sync()
    checker.on_effect(host, effects.SendEnvelope((), vote))
    assert texts(checker) == [f"it voted in step {host.step} before its lock was durable"]
    host.disk.append(effects.PersistLock(header, 0))
    host.disk.sync()
    checker.on_effect(host, effects.SendEnvelope((), vote))
    assert len(checker.violations) == 1


@pytest.fixture
def headers(history: tuple[Simulation, Recorder]) -> tuple[Header, Header]:
    header = next(certificates(history))[1].certificate.header
    return header, replace(header, beacon=A)


def test_stays_locked(headers: tuple[Header, Header], running: Simulation) -> None:
    checker, (one, other) = checkers.StaysLocked(), running.hosts[:2]
    checker.on_effect(one, effects.PersistLock(headers[0], 0))
    checker.on_effect(one, effects.PersistLock(headers[0], 2))
    checker.on_effect(other, effects.PersistLock(headers[1], 1))
    assert checker.violations == []
    checker.on_effect(one, effects.PersistLock(headers[1], 3))
    assert len(checker.violations) == 1


def test_a_lock_of_a_later_view_may_replace_ones_own(headers: tuple[Header, Header], running: Simulation) -> None:
    checker, (one, other) = checkers.StaysLocked(), running.hosts[:2]
    checker.on_effect(one, effects.PersistLock(headers[0], 0))
    claim = signed(other, Slot(0, 2, Kind.VIEW_CHANGE, b""), ViewChange(headers[1], 1))
    checker.on_effect(other, effects.SendEnvelope((), claim))
    checker.on_effect(one, effects.PersistLock(headers[1], 2))
    assert checker.violations == []


def test_nothing_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepares of a run, each seen with everything that its signer holds, and once with a part or a nonce left out."""
    made = simulation(Setting(peers=3, steps=STEPS), 1)
    seen: list[Violation] = []
    checker = checkers.NothingDropped()

    class Look(Checker):
        name = "look"
        sees_effects = (effects.PersistSigned, effects.PersistLock)

        def on_effect(self, host: Host, effect: effects.Effect) -> None:
            checker.on_effect(host, effect)
            assert checker.violations == []
            machine = host.node.machine
            if isinstance(effect, effects.PersistLock) and machine is not None and not seen:
                header = effect.header
                for changes in ({"parts": (b"", *header.parts[1:])}, {"nonces": (b"",) * len(header.nonces)}):
                    with monkeypatch.context() as patch:
                        patch.setattr(machine.transcript, "header", lambda name: replace(header, **changes))  # noqa: B023
                        said = signed(host, Slot(header.step, 0, Kind.PREPARE, b""), Prepare(A))
                        checker.on_effect(host, effects.PersistSigned(said))
                seen.extend(checker.violations)
                checker.violations.clear()

    made.world.watch(Look())
    made.run()
    assert len(seen) == 2


def prepare(checker: Checker, host: Host, header: Header, patch: pytest.MonkeyPatch) -> None:
    machine = host.node.machine
    assert machine is not None
    patch.setattr(machine.transcript, "header", lambda name: header)
    said = signed(host, Slot(header.step, 2, Kind.PREPARE, b""), Prepare(header_digest(header)))
    checker.on_effect(host, effects.PersistSigned(said))


def test_a_header_others_are_locked_on_is_taken_as_it_is(
    running: Simulation, headers: tuple[Header, Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    checker, (one, other) = checkers.NothingDropped(), running.hosts[:2]
    monkey: Callable[..., bool] = lambda host, header: True  # noqa: E731
    checker._drops = monkey  # type: ignore[method-assign]
    claim = signed(other, Slot(0, 2, Kind.VIEW_CHANGE, b""), ViewChange(headers[0], 1))
    checker.on_effect(other, effects.SendEnvelope((), claim))
    prepare(checker, one, headers[0], monkeypatch)
    assert checker.violations == []
    prepare(checker, one, headers[1], monkeypatch)
    assert len(checker.violations) == 1


def story(step: int, roster: tuple[Any, ...]) -> effects.StepCertified:
    return effects.StepCertified(step, (), 0, 0, None, (), (), roster)


def test_admitted(running: Simulation) -> None:
    members = tuple(host.id for host in running.hosts)
    for lets_in, expected in ((members, 0), (members[1:], 1)):
        checker, (newcomer, other) = checkers.Admitted(), running.hosts[:2]
        checker.on_effect(newcomer, effects.SendEnvelope((), signed(newcomer, Slot(1, 0, Kind.JOIN, b""), Join())))
        for step in range(20):
            checker.on_effect(other, story(step, lets_in))
        assert len(checker.violations) == expected


def test_whoever_changes_its_mind_need_not_be_admitted(running: Simulation) -> None:
    checker, (newcomer, other) = checkers.Admitted(), running.hosts[:2]
    checker.on_effect(newcomer, effects.SendEnvelope((), signed(newcomer, Slot(1, 0, Kind.JOIN, b""), Join())))
    checker.on_effect(newcomer, effects.SendEnvelope((), signed(newcomer, Slot(1, 0, Kind.LEAVE, b""), Leave())))
    for step in range(20):
        checker.on_effect(other, story(step, (other.id,)))
    assert checker.violations == []


def evidence(host: Host, run_id: bytes, second: bytes = B, step: int = 2) -> Equivocation:
    slots = Slot(2, 0, Kind.REVEAL, b""), Slot(step, 0, Kind.REVEAL, b"")
    first, other = (seal(host.signer, run_id, slot, Reveal(A, n)) for slot, n in zip(slots, (A, second), strict=True))
    return Equivocation(first.envelope, other.envelope)


def show(checker: Checker, holder: Host, pair: Equivocation) -> None:
    holder.node.evidence.append(pair)
    checker.on_effect(holder, effects.Refused(holder.id, cast(Any, None), ""))


def test_no_honest_blame(running: Simulation) -> None:
    checker, (holder, liar, victim) = checkers.NoHonestBlame(), running.hosts
    liar.adversary = cast(Any, object())
    show(checker, holder, evidence(liar, holder.node.chain.run_id))
    assert checker.violations == []
    show(checker, holder, evidence(victim, holder.node.chain.run_id))
    assert texts(checker) == ["it holds evidence against honest peer 2"]


def test_evidence_holds(running: Simulation) -> None:
    checker, (holder, liar, _) = checkers.EvidenceHolds(running.registry.verify), running.hosts
    run_id = holder.node.chain.run_id
    true = evidence(liar, run_id)
    show(checker, holder, true)
    assert checker.violations == []
    forged = replace(true.second, signature=bytes(64))
    for false in (
        evidence(liar, run_id, second=A),
        evidence(liar, run_id, step=3),
        evidence(liar, bytes(32)),
        Equivocation(true.first, forged),
    ):
        show(checker, holder, false)
    assert texts(checker) == ["its evidence proves nothing"] * 4


@pytest.mark.parametrize("what", ["early", "peers", "evidence", "certificates", "said"])
def test_bounded_queues(running: Simulation, what: str) -> None:
    host, checker = running.hosts[0], checkers.BoundedQueues()
    node = host.node
    checker.on_effect(host, fake_certificate(0))
    assert checker.violations == []
    if what == "early":
        node._early[running.hosts[1].id] = cast(Any, [None] * (limits.BUFFERED_MESSAGES_PER_PEER + 1))
    elif what == "peers":
        node._early = {cast(Any, bytes([n // 256, n % 256])): [] for n in range(limits.ROSTER_PEERS_MAX + 1)}
    elif what == "evidence":
        node.evidence = cast(Any, [None] * (limits.EVIDENCE_MAX + 1))
    elif what == "certificates":
        node.catch_up._certificates.update(dict.fromkeys(range(65), cast(Any, None)))
    else:
        assert node.machine is not None
        node.machine.transcript._said[host.id, 1] = transcript._MESSAGES_OF_A_KIND_MAX + 1
    checker.on_state(host, 0, A)
    assert len(checker.violations) == 1


def test_progress(running: Simulation) -> None:
    checker = checkers.Progress()
    checker.finish(running.hosts[0], True)
    assert checker.violations == []
    checker.finish(running.hosts[0], False)
    running.hosts[1].node.machine = None
    checker.finish(running.hosts[1], False)
    assert len(checker.violations) == 2


@pytest.mark.parametrize("ending", ["", WENT])
def test_nobody_gets_on_where_faults_cost_the_quorum(running: Simulation, ending: str) -> None:
    """Of three members one lies and one is out: for a while, or because it has left."""
    checker, (one, liar, out) = checkers.Progress(), running.hosts
    liar.adversary = cast(Any, object())
    chain, out.finished = one.node.chain, ending
    members = tuple(member for member in chain.head.roster.members if member.peer != out.id)
    chain.head = chain.head._replace(roster=Roster(members, ()))
    checker.finish(one, False)
    assert len(checker.violations) == bool(ending)


@pytest.mark.parametrize("ending", ["", WENT])
def test_a_newcomer_gets_nowhere_when_all_that_it_knows_have_left(running: Simulation, ending: str) -> None:
    checker, (new, founder, _) = checkers.Progress(), running.hosts
    chain, founder.finished = new.node.chain, ending
    known = tuple(member for member in chain.head.roster.members if member.peer == founder.id)
    chain.head = chain.head._replace(roster=Roster(known, ()))
    checker.finish(new, False)
    assert len(checker.violations) == (not ending)


def test_awake_counts_the_calls_of_one_moment(running: Simulation) -> None:
    checker, host = checkers.Awake(), running.hosts[0]
    for _ in range(checker.TICKS_MAX):
        checker.on_event(host, events.Tick())
    assert checker.violations == []
    for _ in range(checker.TICKS_MAX):
        running.timeline.now += 0.001
        checker.on_event(host, events.Tick())
    assert checker.violations == []
    for _ in range(checker.TICKS_MAX):
        checker.on_event(host, events.Tick())
    assert len(checker.violations) == 1
    assert not host.alive


def test_awake_hears_of_deadlines_in_the_past(running: Simulation) -> None:
    checker, host = checkers.Awake(), running.hosts[0]
    checker.on_effect(host, fake_certificate(0))
    assert checker.violations == []
    host.late_deadlines = 2
    checker.on_effect(host, fake_certificate(1))
    assert texts(checker) == ["it wanted to be called in the past 2 times"]


# --- a header follows from what was signed -------------------------------------------------------------------


def follow(history: tuple[Simulation, Recorder], falsify: Callable[[Header], Header]) -> list[str]:
    """What the checker says to the history, with the header of step 1 changed for whoever certifies it first."""
    checker, false = header_follows.HeaderFollows(), False
    for host, effect in history[1].seen:
        if isinstance(effect, effects.PersistCertificate) and effect.certificate.header.step == 1 and not false:
            false = True
            changed = replace(effect.certificate, header=falsify(effect.certificate.header))
            checker.on_effect(host, effects.PersistCertificate(changed))
        else:
            checker.on_effect(host, effect)
    assert false
    return texts(checker)


def test_a_true_header_follows(history: tuple[Simulation, Recorder]) -> None:
    assert follow(history, lambda header: header) == []


FALSE_HEADERS: dict[str, Callable[[Header], Header]] = {
    "builds on another header": lambda h: replace(h, previous=A),
    "names another roster": lambda h: replace(h, roster=A),
    "nobody proposed the cut": lambda h: replace(h, cut=A),
    "starts from another state": lambda h: replace(h, state=A),
    "names other contributors": lambda h: replace(h, contributors=bytes([h.contributors[0] ^ 1])),
    "has an aggregate that": lambda h: replace(h, parts=(A, *h.parts[1:])),
    "has a nonce that": lambda h: replace(h, nonces=(A, *h.nonces[1:])),
    "has a beacon of its own": lambda h: replace(h, beacon=A),
    "lets in others": lambda h: replace(h, joined=(b"x" * 38,)),
    "lets in somebody who did not ask": lambda h: replace(h, joined=(b"x" * 38,)),
    "lets go others": lambda h: replace(h, left=(b"x" * 38,)),
    "lets go somebody who never": lambda h: replace(h, left=(b"x" * 38,)),
    "leads to another roster": lambda h: replace(h, next_roster=A),
}


@pytest.mark.parametrize("text", FALSE_HEADERS)
def test_a_false_header_does_not_follow(history: tuple[Simulation, Recorder], text: str) -> None:
    assert any(text in said for said in follow(history, FALSE_HEADERS[text]))


@pytest.mark.parametrize("liars", [0, 1, 2])
def test_a_ban_without_evidence_is_nobodys_fault_where_liars_decide(
    history: tuple[Simulation, Recorder], liars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults have cost honest members their place: two of three certify what they like."""
    honest = next(host for host, effect in certificates(history) if effect.certificate.header.step == 1)
    others = [host for host in history[0].hosts if host is not honest]
    for host in others[:liars]:
        monkeypatch.setattr(host, "adversary", object())
    ban = Ban(others[0].id, Reason.WRONG_GRADIENT, 0, A)
    said = follow(history, lambda header: replace(header, bans=(ban,)))
    assert any("bans somebody without evidence" in text for text in said) == (liars < 2)


@pytest.mark.parametrize("wrong", [Kind.COMMIT, Kind.AGGREGATE, Kind.PROPOSAL])
def test_a_header_does_not_follow_from_what_nobody_signed(history: tuple[Simulation, Recorder], wrong: Kind) -> None:
    """The history without the messages of one kind that one peer signed in step 1."""
    checker = header_follows.HeaderFollows()
    for host, effect in history[1].seen:
        envelope = getattr(effect, "envelope", None)
        if envelope is None or (envelope.kind, envelope.step) != (wrong, 1):
            checker.on_effect(host, effect)
    assert checker.violations


def test_inputs_of_an_aggregate_are_those_of_the_cut(history: tuple[Simulation, Recorder]) -> None:
    checker = header_follows.HeaderFollows()
    for host, effect in history[1].seen:
        checker.on_effect(host, effect)
    said, before = checker._said[1], checker._before[1]
    cut = next(certificate.header.cut for certificate in history[0].hosts[0].disk.certificates[1:2])
    commits = said.commits_in(cast(Any, said.cuts.get(cut)), before.members)
    right = tuple((index, Digest(commit.parts[0])) for index, commit in commits.items() if commit.parts)
    host = history[0].hosts[0]
    checker.on_effect(host, effects.AggregatePart(1, Digest(cut), 0, right, 0))
    checker.on_effect(host, effects.AggregatePart(1, Digest(cut), 0, right[1:], 1))
    assert checker.violations == []
    all_but_one, others = len(right) - 1, right[1:]
    for name, inputs, absent in (
        *((cut, right[::-1], 0), (cut, ((0, A), *others), 0), (cut, ((7, A),), all_but_one)),
        *((A, right, 0), (cut, others, 0), (cut, others, 2)),
    ):
        checker.on_effect(host, effects.AggregatePart(1, Digest(name), 0, inputs, absent))
    assert len(checker.violations) == 6


def test_every_checker_is_on() -> None:
    """Whoever writes a new one and forgets to list it is told here."""
    found = {type(checker) for checker in checkers.all_checkers(lambda *_: True)}
    classes = {thing for thing in vars(checkers).values() if isinstance(thing, type) and issubclass(thing, Checker)}
    assert classes - {Checker, justice.EvidenceChecker} == found
    assert len({checker.name for checker in checkers.all_checkers(lambda *_: True)}) == len(found)
