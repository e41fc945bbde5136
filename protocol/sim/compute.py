"""What the peers of a simulation compute: the work behind the effects, injected, so that this package stays pure.

The idea: everything is named by its digest and kept once for the whole swarm, whoever computed it, and what one
peer has computed is not computed again for the next one. That is no shortcut around the rules: a peer can only
use a name that it has computed or received, and who holds which bytes is the network's business (`network.py`).
Two implementations: `names.py` here, where a vector is nothing but a name (for protocol faults, 10,000 steps a
minute), and `crowdsurf.peer.compute.shared`, which trains a real model with the code of the live worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.tolerance import Compared


class Work(NamedTuple):
    """A work unit's result."""

    parts: tuple[Digest, ...]
    """The gradient cut into parts, a digest each."""
    loss: float
    samples: int
    norms: tuple[float, ...] = ()
    """Length of every part."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """A wrong gradient, described: what an attacker wants to send instead of its work.

    Work seeds are public, so an attacker knows the gradient of every honest peer before it chooses its own: the
    omniscient attacker of the literature is the real one here.
    """

    attack: str
    """A name of `GRADIENT_ATTACKS`."""
    strength: float
    """Scales the attack; what it means is the attack's to say (`peer/compute/attacks/`)."""
    state: Digest
    """The state before the step (for delayed_gradient: the one of some steps ago)."""
    seed: Digest
    """The attacker's own work seed for that state."""
    parts: int
    honest_seeds: tuple[Digest, ...]
    """Work seeds of the honest members, by member index."""
    byzantine: int
    """How many attackers send this step."""
    previous: tuple[bytes, ...]
    """Aggregated parts of the last certified step (digests, empty for a void part; empty tuple if none)."""
    salt: Digest
    """All chance of the attack; colluders share it where they must send alike."""


class Distortion(NamedTuple):
    """A wrong aggregate, described."""

    strength: float
    """How far away, in norms of the right one."""
    salt: Digest
    """Which way."""


class Compute(Protocol):
    """Work units, aggregates and optimizer steps by name. Deterministic: a pure function of the names given."""

    @property
    def elements(self) -> int:
        """Length of the gradient."""
        ...

    def initial_state(self) -> Digest:
        """The state before the first step."""
        ...

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        """The honest work unit of `seed` at `state`. The state is one of the newest few."""
        ...

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        """What a validator commits to when it has recomputed that work unit. The state is one of the newest few."""
        ...

    def compare(
        self, state: Digest, seed: Digest, parts: int, committed: tuple[bytes, ...]
    ) -> tuple[Compared | None, ...]:
        """How far parts of these names are from the work unit of `seed` at `state`; None where there is no name. The
        state is one of the newest few."""
        ...

    def forge(self, forgery: Forgery) -> Work:
        """A dishonest one; its loss and samples are those of the honest unit. May hold non-finite numbers."""
        ...

    def aggregate(
        self, inputs: tuple[tuple[int, Digest], ...], cut: Digest, part: int, absent: int = 0
    ) -> tuple[Digest, tuple[int, ...]] | None:
        """The rule's result over (member, part digest), with zeros for as many as are `absent`, and the members that
        went in; None if no row is finite."""
        ...

    def distort(self, aggregate: Digest, strength: float, salt: Digest) -> Digest:
        """A wrong aggregate: another vector of the same length, `strength` times the aggregate's norm away."""
        ...

    def project(
        self, rows: tuple[Digest, ...], aggregate: Digest, seed: Digest
    ) -> tuple[Line | None, tuple[Line, ...]]:
        """About an aggregate of a recent step, on directions drawn from `seed` (`assignment.projection_seed`): the line
        about a row of zeros, whose norm is its length, None if that is not finite; and a line for each row (a part of a
        gradient, its digest), no line at all if a number is not finite."""
        ...

    def apply(self, state: Digest, parts: tuple[bytes, ...]) -> Digest:
        """The state after an outer optimizer step on the aggregated parts (empty: void)."""
        ...

    def evaluate(self, state: Digest) -> Mapping[str, float]:
        """`test_loss` and, for tasks that have one, `test_accuracy`."""
        ...


GRADIENT_ATTACKS = (
    "sign_flip",
    "random_direction",
    "label_flip",
    "delayed_gradient",
    "ipm",
    "alie",
    "mimic",
    "min_max",
    "min_sum",
    "rop",
    "scaled_noise",
    "zero",
    "nan",
    "inf",
    "huge",
)
"""Attacks on what a peer computes; those on what it sends are in `adversaries.py`."""
