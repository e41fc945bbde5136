"""Simulated signatures: cheap, the same everywhere, and out of reach for whoever lacks the key."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import public_key_of
from crowdsurf.protocol.messages import Kind, Leave
from crowdsurf.protocol.sim import keys
from crowdsurf.protocol.sim.keys import Registry, SimulatedSigner

RUN = bytes(32)
ONE, OTHER = SimulatedSigner(7, 0), SimulatedSigner(7, 1)


def registry() -> Registry:
    made = Registry()
    made.add(ONE)
    made.add(OTHER)
    return made


def test_keys_follow_from_seed_and_number() -> None:
    assert SimulatedSigner(7, 0).peer_id == ONE.peer_id
    assert len({ONE.peer_id, OTHER.peer_id, SimulatedSigner(8, 0).peer_id}) == 3
    assert len(public_key_of(ONE.peer_id)) == 32
    assert ONE.sign(b"x") == SimulatedSigner(7, 0).sign(b"x")
    assert len(ONE.sign(b"x")) == 64


def test_nonces_are_secret_and_repeatable() -> None:
    assert ONE.nonce(b"step 1") == ONE.nonce(b"step 1")
    assert len({ONE.nonce(b"step 1"), ONE.nonce(b"step 2"), OTHER.nonce(b"step 1"), ONE.sign(b"step 1")[:32]}) == 4


@given(st.binary(max_size=64), st.binary(min_size=64, max_size=64))
def test_only_the_signer_can_sign(message: bytes, guess: bytes) -> None:
    known = registry()
    signature = ONE.sign(message)
    assert known.verify(ONE.peer_id, message, signature)
    assert not known.verify(OTHER.peer_id, message, signature)
    assert not known.verify(ONE.peer_id, message + b"!", signature)
    assert not known.verify(ONE.peer_id, message, OTHER.sign(message))
    assert not known.verify(ONE.peer_id, message, guess)


def test_nobody_knows_a_stranger() -> None:
    stranger = SimulatedSigner(9, 9)
    assert not registry().verify(stranger.peer_id, b"x", stranger.sign(b"x"))


def test_an_answer_is_the_same_after_the_memory_was_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MEMORY_MAX", 2)
    known = registry()
    for number in range(10):
        message = bytes([number])
        assert known.verify(ONE.peer_id, message, ONE.sign(message))
        assert not known.verify(OTHER.peer_id, message, ONE.sign(message))
        assert len(known._known) <= 2
    assert known.verify(ONE.peer_id, b"\0", ONE.sign(b"\0"))


def test_one_envelope_is_opened_once_and_a_forged_one_never() -> None:
    known = registry()
    open_once = known.opener(RUN)
    envelope = seal(ONE, RUN, Slot(3, 0, Kind.LEAVE, b""), Leave()).envelope
    assert open_once(envelope) is open_once(envelope)
    assert open_once(envelope).sender == ONE.peer_id
    forged = msgspec.structs.replace(envelope, sender=OTHER.peer_id)
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            open_once(forged)
        assert refused.value.code is Code.BAD_SIGNATURE
