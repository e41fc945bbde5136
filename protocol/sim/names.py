"""Compute without numbers: a vector is the name of how it was made.

The idea: the rules only ever see digests, so for everything but learning a digest is enough. A gradient is named
after (state, seed, part), an aggregate after its inputs, a state after what was applied to what; two peers that
did different things therefore differ for ever, and a step costs microseconds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.projection import PROJECTIONS, Line
from crowdsurf.protocol.sim.compute import Forgery, Work
from crowdsurf.protocol.tolerance import Compared


def name_of(*fields: object) -> Digest:
    """The digest of some digests, numbers and texts."""
    state = hashlib.blake2b(digest_size=32)
    for field in fields:
        data = field if isinstance(field, bytes) else repr(field).encode()
        state.update(len(data).to_bytes(4, "little") + data)
    return Digest(state.digest())


MOVED_MAX = 4096
"""Wrong aggregates that are remembered: those of hundreds of steps."""


class NamesCompute:
    """Implements `Compute` with names; every work unit has loss 1 and 32 samples, every vector length 1.

    A right aggregate lies just where its inputs do: all their lines say nothing. About a wrong one they say something
    that does not add up to nothing, and it is as long as it was moved far, if that was farther than 1."""

    elements = 1_000_000

    def __init__(self) -> None:
        self._moved: OrderedDict[Digest, float] = OrderedDict()
        """Lengths of wrong aggregates, newest last."""

    def initial_state(self) -> Digest:
        return name_of("initial state")

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        unit = name_of("gradient", state, seed)
        return Work(tuple(name_of(unit, part) for part in range(parts)), 1.0, 32, (1.0,) * parts)

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        return name_of("finding", state, seed, finder)

    def compare(
        self, state: Digest, seed: Digest, parts: int, committed: tuple[bytes, ...]
    ) -> tuple[Compared | None, ...]:
        right = self.work(state, seed, parts).parts
        pairs = zip(right, committed, strict=True)
        return tuple(Compared(0.0 if name == own else 1.0, 1.0) if name else None for own, name in pairs)

    def forge(self, forgery: Forgery) -> Work:
        unit = name_of("forged", forgery.attack, forgery.state, forgery.seed, forgery.salt)
        return Work(tuple(name_of(unit, part) for part in range(forgery.parts)), 1.0, 32, (1.0,) * forgery.parts)

    def aggregate(
        self, inputs: tuple[tuple[int, Digest], ...], cut: Digest, part: int, absent: int = 0
    ) -> tuple[Digest, tuple[int, ...]] | None:
        members = tuple(member for member, _ in inputs)
        return name_of("aggregate", members, absent, *(digest for _, digest in inputs)), members

    def distort(self, aggregate: Digest, strength: float, salt: Digest) -> Digest:
        moved = name_of("distorted", aggregate, salt)
        self._moved[moved] = max(1.0, strength)
        if len(self._moved) > MOVED_MAX:
            self._moved.popitem(last=False)
        return moved

    def project(
        self, rows: tuple[Digest, ...], aggregate: Digest, seed: Digest
    ) -> tuple[Line | None, tuple[Line, ...]]:
        norm, right = self._moved.get(aggregate), Line((0.0,) * PROJECTIONS, 1.0)
        if norm is None:
            return right, (right,) * len(rows)
        nothing = Line(_line_about(b"", aggregate, seed).projections, norm)
        return nothing, tuple(_line_about(row, aggregate, seed) for row in rows)

    def apply(self, state: Digest, parts: tuple[bytes, ...]) -> Digest:
        return name_of("state", state, *parts)

    def evaluate(self, state: Digest) -> Mapping[str, float]:
        return {"test_loss": 1.0}


def _line_about(row: bytes, aggregate: Digest, seed: Digest) -> Line:
    """Numbers between a quarter and three quarters, of the radius that rules have by default."""
    drawn = name_of("line", row, aggregate, seed)
    return Line(tuple(0.25 + byte / 510 for byte in drawn[:PROJECTIONS]), 1.0)
