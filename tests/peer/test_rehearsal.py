"""A peer that misbehaves on purpose does what the simulator's attackers do, and an honest one knows nothing of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from crowdsurf.peer.compute.client import WorkResult
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.demo import Demo, DemoOptions, check_options, failed
from crowdsurf.peer.journal import read_journal
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.peer.launch import KEY_FILE, load_manifest
from crowdsurf.peer.rehearsal import LiveBody, Rehearsal, parse_rehearsal
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest
from crowdsurf.protocol.messages import Certificate, indexes_of
from crowdsurf.protocol.recovery import certificates_of
from crowdsurf.protocol.roster import withheld
from crowdsurf.protocol.sim.adversaries import Mind
from crowdsurf.protocol.sim.compute import Forgery
from tests.peer.shell import FakeCompute, key_of, soon
from tests.peer.stand_ins import daemons_use, demos_use_fakes, no_command

pytestmark = pytest.mark.slow

A, B = key_of(0).peer_id, key_of(1).peer_id
PEERS, LIARS, STEPS = 5, 2, 4


# --- what a peer is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rehearsal", [Rehearsal("sign_flip"), Rehearsal("ipm", 0.1, 7, (A, B)), Rehearsal("slow", 1e-3, 0, (A,))]
)
def test_what_a_peer_is_told_survives_the_command_line(rehearsal: Rehearsal) -> None:
    said = dict(zip(*[iter(rehearsal.arguments())] * 2, strict=True))
    found = parse_rehearsal(said["--rehearse"], int(said["--rehearse-from"]), said.get("--colluders", ""))
    assert found == rehearsal
    assert rehearsal.attack in rehearsal.sentence()


@pytest.mark.parametrize(
    ("attack", "colluders", "words"),
    [
        ("sing_flip", "", "must be one of sign_flip, "),
        ("none", "", "must be one of"),
        ("sign_flip:much", "", "sign_flip:1000"),
        ("sign_flip:-1", "", "sign_flip:1000"),
        ("sign_flip:nan", "", "sign_flip:1000"),
        ("sign_flip", "somebody", "peer ids"),
    ],
)
def test_what_makes_no_sense_is_refused(attack: str, colluders: str, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        parse_rehearsal(attack, 0, colluders)


def test_an_honest_peer_never_loads_the_attacks() -> None:
    code = (
        "import sys, crowdsurf.peer.volunteer, crowdsurf.peer.demo, crowdsurf.cli.demo, crowdsurf.cli.join\n"
        "print([name for name in sys.modules if 'rehearsal' in name or 'forging' in name or 'adversar' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- whole swarms ------------------------------------------------------------------------------------------


class LyingCompute(FakeCompute):
    """Forges and distorts too: by adding to what is right."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        self.forgeries: list[Forgery] = []
        self.distortions = 0

    async def forge(
        self,
        forgery: Forgery,
        usual_strength: bool,
        seed: bytes,
        ranges: Sequence[tuple[int, int]],
        gradient: Segment,
        previous: tuple[Segment, Sequence[tuple[int, int]]] | None = None,
    ) -> WorkResult:
        self.forgeries.append(forgery)
        honest = await self.work(seed, ranges, gradient)
        numpy.frombuffer(gradient.view, numpy.float32)[:] += 1.0
        digests = tuple(blob_digest(gradient.view[4 * start : 4 * stop]) for start, stop in ranges)
        return WorkResult(digests, honest.norms, honest.loss, honest.samples)

    async def distort(self, segment: Segment, offset: int, elements: int, strength: float, salt: bytes) -> Digest:
        self.distortions += 1
        view = segment.view[offset : offset + 4 * elements]
        numpy.frombuffer(view, numpy.float32)[:] += strength
        return blob_digest(view)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[LyingCompute]:
    """The worker of every daemon, in the order in which they start."""
    demos_use_fakes(monkeypatch)
    return daemons_use(monkeypatch, LyingCompute)


QUICK_CONFIG = """
name: quick
task: {name: digits, parameters: {model: mlp, hidden: 8}}
work: {micro_batch_samples: 32}
optimizer: {name: sgd, learning_rate: 0.05}
rule: {name: mean}
deadlines:
  work_seconds_min: 0.3
  work_seconds_max: 3.0
  transfer_seconds_min: 0.3
  transfer_seconds_max: 3.0
  delivery_seconds: 0.3
steps: 4
"""
"""Liars make others wait as long as they may, which is half a minute where nobody has waited before."""


def options(folder: Path, **changes: Any) -> DemoOptions:
    config = folder / "quick.yaml"
    config.write_text(QUICK_CONFIG, encoding="utf-8")
    values: dict[str, Any] = {
        "folder": folder,
        "peers": PEERS,
        "byzantine": LIARS,
        "steps": STEPS,
        "transport": "memory",
    }
    return DemoOptions(**values | {"task": str(config), "attack": "sign_flip"} | changes)


def first_run(folder: Path) -> Path:
    """The run folder of the first peer, an honest one."""
    (run,) = (folder / "peer-0" / "runs").iterdir()
    return run


def certificates(folder: Path) -> list[Certificate]:
    """What the first peer holds certified."""
    return list(certificates_of(read_journal(first_run(folder))))


def worked(folder: Path) -> dict[PeerId, list[int]]:
    """In which certified steps every peer contributed work of its own, and not what it found as validator."""
    chain = Chain(load_manifest(first_run(folder)))
    steps: dict[PeerId, list[int]] = {peer: [] for peer in chain.head.roster.peers}
    for certificate in certificates(folder):
        head, header = chain.head, certificate.header
        for index in set(indexes_of(header.contributors)) - head.validators:
            steps[head.roster.peers[index]].append(header.step)
        chain.extend(certificate, verify)
    return steps


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("attack", "strength"),
    [
        *[("sign_flip", None), ("rop", None), ("delayed_gradient", None)],
        *[("colluding_aggregate", None), ("withhold_part", 1.0), ("equivocate", None)],
        *[("replay", None), ("garbage", None), ("slow", 0.05), ("false_accusation", None)],
        *[("withhold_cut", None), ("split_views", None), ("late_part", None), ("show_to_some", None)],
    ],
)
async def test_honest_peers_agree_whatever_the_others_do(
    tmp_path: Path, workers: list[LyingCompute], attack: str, strength: float | None
) -> None:
    """From the second step on: in the first one nobody knows yet how long to wait for whom."""
    plan = options(tmp_path, attack=attack, strength=strength, attack_from=1)
    answer = await soon(Demo(plan, no_command).run())
    assert failed(answer) is None
    assert (answer["peers"], answer["byzantine"], answer["attack"]) == (PEERS, LIARS, attack)
    assert answer["honest_banned"] == 0
    assert all(row["byzantine"] for row in answer["banned"])
    assert len(answer["state_digests"]) == PEERS - LIARS


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("attack", "steps", "reason"),
    [
        ("sign_flip", 60, "wrong_gradient"),
        ("lazy_validator", 60, "wrong_finding"),
        ("equivocate", 20, "equivocation"),
        ("false_accusation", 60, "false_accusation"),
        ("two_faces", 20, "equivocation"),
        ("split_objection", 20, "false_accusation"),
    ],
)
async def test_whoever_cheats_is_banned_and_nobody_else(
    tmp_path: Path, workers: list[LyingCompute], attack: str, steps: int, reason: str
) -> None:
    """Two liars among five are drawn within 60 steps but for one run in thousands; who signs twice is seen by one of
    three honest members in most steps."""
    answer = await soon(Demo(options(tmp_path, attack=attack, attack_from=1, steps=steps), no_command).run())
    assert failed(answer) is None
    assert answer["honest_banned"] == 0
    assert {row["reason"] for row in answer["banned"]} == {reason}
    assert len(answer["banned"]) == LIARS
    homes = (tmp_path / f"peer-{number}" for number in range(PEERS - LIARS))
    assert all(list(home.glob("runs/*/evidence/*")) for home in homes)


@pytest.mark.usefixtures("tidy")
async def test_liars_forge_from_the_step_they_are_told_and_know_each_other(
    tmp_path: Path, workers: list[LyingCompute]
) -> None:
    answer = await soon(Demo(options(tmp_path, attack="rop", attack_from=2, strength=5.0), no_command).run())
    assert failed(answer) is None
    assert all(not worker.forgeries and not worker.distortions for worker in workers[: PEERS - LIARS])
    honest = tuple(answer["state_digests"])
    steps = worked(tmp_path)
    for number, liar in list(enumerate(workers))[PEERS - LIARS :]:
        key = PeerKey.load_or_create(tmp_path / f"peer-{number}" / KEY_FILE)
        assert sum(step >= 2 for step in steps[key.peer_id]) <= len(liar.forgeries) <= STEPS - 2
        for forgery in liar.forgeries:
            assert (forgery.attack, forgery.strength, forgery.byzantine) == ("rop", 5.0, LIARS)
            assert len(forgery.honest_seeds) == len(honest)
    # One may have validated in both steps; not both of them.
    assert any(liar.forgeries for liar in workers[PEERS - LIARS :])
    # They agree on their chance in every step; they need not forge in the same ones, because validators forge nothing.
    shared = {Mind("rop", 5.0).salt(step) for step in range(STEPS)}
    assert all(forgery.salt in shared for liar in workers[PEERS - LIARS :] for forgery in liar.forgeries)


@pytest.mark.usefixtures("tidy")
async def test_wrong_aggregates_come_from_liars_only(tmp_path: Path, workers: list[LyingCompute]) -> None:
    answer = await soon(Demo(options(tmp_path, attack="wrong_aggregate"), no_command).run())
    assert failed(answer) is None
    assert [worker.distortions > 0 for worker in workers] == [False] * (PEERS - LIARS) + [True] * LIARS


@pytest.mark.usefixtures("tidy")
async def test_a_nonce_that_is_withheld_is_in_no_header(tmp_path: Path, workers: list[LyingCompute]) -> None:
    answer = await soon(Demo(options(tmp_path, attack="withhold_reveal", attack_from=1), no_command).run())
    assert failed(answer) is None
    headers = [certificate.header for certificate in certificates(tmp_path)]
    revealed = [sum(bool(nonce) for nonce in header.nonces) for header in headers]
    assert revealed[0] == PEERS
    assert revealed[1] < PEERS
    # A liar that is to propose shows its own nonce, so it may be left out later than the other one, or not at all.
    assert all(any(header.parts) != bool(withheld(header)) for header in headers)
    assert len(headers[-1].nonces) < PEERS


@pytest.mark.usefixtures("tidy")
async def test_the_peer_that_is_killed_is_an_honest_one(tmp_path: Path, workers: list[LyingCompute]) -> None:
    plan = options(tmp_path, peers=7, steps=12, kill_one_at=2)
    answer = await soon(Demo(plan, no_command).run())
    assert failed(answer) is None
    assert len(answer["killed"]) == 1
    assert len(answer["state_digests"]) == 7 - LIARS - 1


async def test_a_liar_that_fails_does_not_end_the_demo(tmp_path: Path, workers: list[LyingCompute]) -> None:
    outcome = "dict.fromkeys(('test_loss', 'test_accuracy', 'initial_test_loss', 'initial_test_accuracy')) | " + (
        "{'peer': sys.argv[1], 'certified_steps': 4, 'state_digest': 'abc', 'part_bytes_sent': 1, "
        "'control_bytes_sent': 1, 'steps_here': 4, 'banned': []}"
    )
    tell = f"import json, sys\nprint(json.dumps({outcome}))" + "\nassert '--rehearse' not in sys.argv"
    fail = "import sys\nassert '--rehearse' in sys.argv and '--colluders' in sys.argv\nsys.exit('I give up')"

    def command(invite: str, home: Path, evaluate_steps: int) -> Sequence[str]:
        lies = int(home.name.removeprefix("peer-")) >= PEERS - LIARS
        return [sys.executable, "-c", fail if lies else tell, home.name]

    demo = Demo(options(tmp_path, transport="p2pd"), command)
    phases: dict[int, str] = {}
    demo.on_view = lambda view: phases.update({peer.number: peer.status.get("phase", "") for peer in view.peers})
    answer = await soon(demo.run())
    assert failed(answer) is None
    assert all("I give up" in phases[number] for number in range(PEERS - LIARS, PEERS))


@pytest.mark.slow
async def test_a_real_liar_among_real_workers(tmp_path: Path) -> None:
    answer = await soon(Demo(options(tmp_path, peers=3, byzantine=1, attack="nan", steps=4), no_command).run())
    assert failed(answer) is None
    assert answer["test_loss"] < answer["initial_test_loss"]


# --- projections -------------------------------------------------------------------------------------------


class Adversary:
    """Says what it is told to say about an aggregate."""

    def __init__(self, answer: events.PartProjected | list[effects.Effect]) -> None:
        self.answer = answer

    def projected(self, host: Any, effect: Any, honest: Any) -> events.PartProjected | list[effects.Effect]:
        return self.answer


def body(answer: events.PartProjected | list[effects.Effect]) -> tuple[LiveBody, list[tuple[float, effects.Effect]]]:
    nothing: Any = None
    done: list[tuple[float, effects.Effect]] = []
    made = LiveBody(Rehearsal("sign_flip"), key_of(0), nothing, nothing, nothing, lambda *action: done.append(action))
    made._adversary = Adversary(answer)  # type: ignore[assignment]
    return made, done


def test_a_liar_says_something_else_about_its_aggregate_or_goes_round_its_node() -> None:
    name = Digest(bytes(32))
    effect = effects.ProjectPart(3, name, 0, name, (), 0, name)
    honest = events.PartProjected(3, name, 0, name, 1.0, (), 0)
    lie = events.PartProjected(3, name, 0, name, 2.0, (), 0)
    liar, done = body(lie)
    assert liar.projected(effect, honest) == lie
    assert done == []
    actions: list[effects.Effect] = [effects.CancelWork(3), effects.CancelWork(4)]
    liar, done = body(actions)
    assert liar.projected(effect, honest) is None
    assert done == [(0.0, action) for action in actions]


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"byzantine": 3}, "less than half"),
        ({"byzantine": -1}, "less than half"),
        ({"attack": "sing_flip"}, "must be one of sign_flip, "),
        ({"attack": "none"}, "must be one of"),
        ({"attack": None}, "--byzantine needs --attack"),
        ({"byzantine": 0}, "--attack needs --byzantine"),
        ({"byzantine": 0, "attack": None, "strength": 1.0}, "--strength needs --attack"),
        ({"byzantine": 0, "attack": None, "attack_from": 0}, "--attack-from needs --attack"),
        ({"strength": -1.0}, "--strength"),
        ({"strength": float("nan")}, "--strength"),
        ({"attack_from": -1}, "--attack-from"),
        ({"peers": 3, "byzantine": 1, "kill_one_at": 2, "attack": "zero"}, None),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], words: str | None) -> None:
    if words is None:
        check_options(options(tmp_path, **changes))
        return
    with pytest.raises(MisuseError, match=words) as caught:
        check_options(options(tmp_path, **changes))
    assert "\n" not in str(caught.value)
