"""The rules are pure: one seed gives one history, in this process, in another one and under any hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from crowdsurf.protocol import events
from crowdsurf.protocol.cases import subject_of
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.messages import Accusation, Kind, Reason
from tests.protocol.swarm import FakePeer, Swarm

ROOT = Path(__file__).parents[2]


def trace(seed: int) -> str:
    """A digest over every effect of every peer, with its time, in a swarm with losses, audits, a crash, a false
    accusation and a newcomer."""
    swarm = Swarm(5, seed=seed, extra=1, steps=8, audit=AuditSection(rate=0.3))
    history = hashlib.sha256()

    def recorder(peer: FakePeer) -> None:
        carry_out = peer._carry_out

        def record(effect: object) -> None:
            history.update(f"{swarm.now!r} {peer.id.hex()} {effect!r}\n".encode())
            carry_out(effect)  # type: ignore[arg-type]

        peer._carry_out = record  # type: ignore[method-assign]

    for peer in swarm.list:
        recorder(peer)
    swarm.loses = lambda sender, receiver: swarm.random.random() < 0.1
    swarm.start()
    swarm.run(lambda: swarm.list[0].node.chain.head.step >= 3)
    say_falsely(swarm.list[0], swarm.list[2])
    swarm.kill(swarm.list[1])
    swarm.at(swarm.now + 3.0, swarm.list[1].restart)
    assert swarm.run_to_end(3000)
    assert swarm.violations == []
    assert any(peer.evidence for peer in swarm.list)
    return history.hexdigest()


def say_falsely(liar: FakePeer, victim: FakePeer) -> None:
    """A proof that proves nothing, told to everybody."""
    node = liar.node
    accusation = Accusation(victim.id, Reason.EQUIVOCATION, node.chain.head.step - 1, b"no proof")
    slot = Slot(node.chain.head.step, 0, Kind.ACCUSATION, subject_of(accusation))
    envelope = seal(liar.signer, node.chain.run_id, slot, accusation).envelope
    for peer in liar.swarm.list:
        if peer is not liar:
            peer.give(events.EnvelopeReceived(liar.id, envelope))


def trace_elsewhere(seed: int, hash_seed: str) -> str:
    code = f"from tests.protocol.test_purity import trace; print(trace({seed}))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_the_same_seed_gives_the_same_effects_everywhere() -> None:
    here = trace(7)
    assert trace(7) == here
    assert {trace_elsewhere(7, hash_seed) for hash_seed in ("0", "4711")} == {here}


def test_another_seed_gives_other_effects() -> None:
    assert trace(8) != trace(7)
