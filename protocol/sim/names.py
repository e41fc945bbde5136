"""Compute without numbers: a vector is the name of how it was made.

The idea: the rules only ever see digests, so for everything but learning a digest is enough. A gradient is named
after (state, seed, part), an aggregate after its inputs, a state after what was applied to what; two peers that
did different things therefore differ for ever, and a step costs microseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.sim.compute import Forgery, Work


def name_of(*fields: object) -> Digest:
    """The digest of some digests, numbers and texts."""
    state = hashlib.blake2b(digest_size=32)
    for field in fields:
        data = field if isinstance(field, bytes) else repr(field).encode()
        state.update(len(data).to_bytes(4, "little") + data)
    return Digest(state.digest())


class NamesCompute:
    """Implements `Compute` with names; every work unit has loss 1 and 32 samples."""

    elements = 1_000_000

    def initial_state(self) -> Digest:
        return name_of("initial state")

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        unit = name_of("gradient", state, seed)
        return Work(tuple(name_of(unit, part) for part in range(parts)), 1.0, 32)

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        return name_of("finding", state, seed, finder)

    def forge(self, forgery: Forgery) -> Work:
        unit = name_of("forged", forgery.attack, forgery.state, forgery.seed, forgery.salt)
        return Work(tuple(name_of(unit, part) for part in range(forgery.parts)), 1.0, 32)

    def aggregate(
        self, inputs: tuple[tuple[int, Digest], ...], cut: Digest, part: int
    ) -> tuple[Digest, tuple[int, ...]] | None:
        members = tuple(member for member, _ in inputs)
        return name_of("aggregate", members, *(digest for _, digest in inputs)), members

    def distort(self, aggregate: Digest, strength: float, salt: Digest) -> Digest:
        return name_of("distorted", aggregate, salt)

    def apply(self, state: Digest, parts: tuple[bytes, ...]) -> Digest:
        return name_of("state", state, *parts)

    def evaluate(self, state: Digest) -> Mapping[str, float]:
        return {"test_loss": 1.0}
