"""Signatures of a simulation: a keyed digest in place of Ed25519, thirty times cheaper and just as hard to forge.

The idea: every peer has a secret drawn from the simulation's seed, its signature is the message's digest under
that secret, and whoever verifies asks the registry, which alone knows all secrets. An adversary is given
signers, never the registry, so it can sign for itself and its colluders and for nobody else.
"""

from __future__ import annotations

import hashlib

from crowdsurf.protocol.envelope import Opened, Opener, Signer, open_envelope
from crowdsurf.protocol.ids import PeerId, peer_id_from_public_key
from crowdsurf.protocol.messages import Envelope

_MEMORY_MAX = 1 << 16
"""Remembered answers; a step of 64 peers needs about 400."""


class SimulatedSigner(Signer):
    """The key of one simulated peer."""

    def __init__(self, seed: int, number: int) -> None:
        self._secret = hashlib.blake2b(f"secret {seed} {number}".encode(), digest_size=32).digest()
        self._peer_id = peer_id_from_public_key(hashlib.blake2b(self._secret, digest_size=32).digest())

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        """64 bytes that nobody without this key can make."""
        return hashlib.blake2b(message, key=self._secret, digest_size=64).digest()

    def nonce(self, label: bytes) -> bytes:
        """32 secret bytes for a label."""
        return hashlib.blake2b(label, key=self._secret, digest_size=32, person=b"nonce").digest()


class Registry:
    """All keys of a simulation; `verify` is what nodes are given."""

    def __init__(self) -> None:
        self._signers: dict[PeerId, SimulatedSigner] = {}
        self._known: dict[tuple[PeerId, bytes, bytes], bool] = {}
        self._opened: dict[int, tuple[Envelope, Opened]] = {}

    def add(self, signer: SimulatedSigner) -> None:
        """Make a peer's signatures verifiable."""
        self._signers[signer.peer_id] = signer

    def opener(self, run_id: bytes) -> Opener:
        """Opens each envelope once for all its receivers, who are handed the very same object."""

        def open_once(envelope: Envelope) -> Opened:
            known = self._opened.get(id(envelope))
            if known is None:
                if len(self._opened) >= _MEMORY_MAX:
                    self._opened.clear()
                known = self._opened[id(envelope)] = envelope, open_envelope(envelope, run_id, self.verify)
            return known[1]

        return open_once

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether a signature is the peer's. The answer never changes, so it is worked out once for all peers."""
        question = (peer, message, signature)
        answer = self._known.get(question)
        if answer is None:
            signer = self._signers.get(peer)
            answer = signer is not None and signer.sign(message) == signature
            if len(self._known) >= _MEMORY_MAX:
                self._known.clear()
            self._known[question] = answer
        return answer
