"""Real learning for a simulated swarm: one engine computes for all peers, and nothing twice.

The idea: work, aggregates and updates are pure functions of bytes, so they can be named by their digests and kept
once for the whole swarm, whoever asked first. The code and the digests are those of the live worker, so a simulated
run ends in the same bytes as a live one with the same seeds. Memory is bounded: gradients are forgotten when they
have not been used for long, states when newer ones came, and who asks for them after that gets a MisuseError.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch

from crowdsurf.peer.compute.attacks import find_attack
from crowdsurf.peer.compute.attacks.base import GradientAttack, View
from crowdsurf.peer.compute.comparing import compare_parts, sketch_of
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.errors import NoUsableRows
from crowdsurf.peer.compute.forging import distort
from crowdsurf.peer.compute.projections import NOTHING, project
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.rules.base import aggregate_rows, norm_of
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.protocol.assignment import aggregation_seed, part_ranges
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, PeerId, blob_digest, digest_text, finding_digest
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.projection import Line, clipping_of
from crowdsurf.protocol.sim.compute import Forgery, Work
from crowdsurf.protocol.tolerance import Compared, relative_bound

KEEP_STATES = 16
"""States kept by default: more than a step apart are only restarted peers and delayed gradients."""
VECTOR_BYTES_MAX = 256 * 1024**2
"""Gradients and aggregates kept by default: 900 gradients of a small language model, 30,000 of the digits net."""
RESULTS_MAX = 4096
"""Aggregates and updates whose names are remembered: hundreds of steps of a group of 16."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Aggregated = tuple[Digest, tuple[int, ...]] | None


class Recent(Generic[Key, Value]):
    """A mapping that forgets what was not used for longest once the weights add up to more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._items: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def __getitem__(self, key: Key) -> Value:
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: Key, value: Value, weight: int = 1) -> None:
        """Enter or replace; the newest entry is kept whatever its weight."""
        if key in self._items:
            self._total -= self._items.pop(key)[1]
        self._items[key] = (value, weight)
        self._total += weight
        while self._total > self._limit and len(self._items) > 1:
            self._total -= self._items.popitem(last=False)[1][1]


@dataclasses.dataclass(slots=True)
class KnownState:
    """A state's bytes, and what has been computed at it."""

    saved: bytearray
    works: dict[tuple[Digest, int], Work] = dataclasses.field(default_factory=dict)
    figures: dict[str, float] | None = None


class SharedCompute:
    """`crowdsurf.protocol.sim.compute.Compute` with a model that really learns, on the CPU with one thread."""

    def __init__(
        self, manifest: Manifest, keep_states: int = KEEP_STATES, vector_bytes_max: int = VECTOR_BYTES_MAX
    ) -> None:
        """`keep_states` newest states can be worked at (a gradient delayed by k steps needs k + 1 of them). Sets
        torch's threads of this process to one. Raises MisuseError for what is wrong with the manifest here."""
        torch.set_num_threads(1)
        self._engine = Engine(manifest, torch.device("cpu"))
        self._rule = parse_rule(manifest.rule.name, manifest.rule.parameters)
        clipping = clipping_of(manifest)
        self._radius = clipping.radius if clipping is not None else math.inf
        self._sketches = relative_bound(manifest) is not None
        self._keep_states = keep_states
        self._states: OrderedDict[Digest, KnownState] = OrderedDict()
        self._vectors: Recent[Digest, torch.Tensor] = Recent(vector_bytes_max)
        self._forged: Recent[Forgery, tuple[Digest, ...]] = Recent(RESULTS_MAX)
        self._aggregates: Recent[tuple[tuple[tuple[int, Digest], ...], Digest, int, int], Aggregated] = Recent(
            RESULTS_MAX
        )
        self._updates: Recent[tuple[Digest, tuple[bytes, ...]], Digest] = Recent(RESULTS_MAX)
        self._initial = self._current = self._engine.state.digest()
        self._remember(self._initial)

    @property
    def elements(self) -> int:
        """See `Compute.elements`."""
        return self._engine.elements

    @property
    def engine(self) -> Engine:
        """The engine, for its task; its state is that of whatever was computed last."""
        return self._engine

    def initial_state(self) -> Digest:
        """See `Compute.initial_state`."""
        return self._initial

    def work(self, state: Digest, seed: Digest, parts: int) -> Work:
        """See `Compute.work`. Raises WorkFailed when training has diverged, MisuseError for a forgotten state."""
        known = self._known(state)
        found = known.works.get((seed, parts))
        if found is None or not self._hold(found.parts):
            gradient, loss, samples = self._gradient(state, seed)
            names = self._keep(gradient, parts)
            found = known.works[seed, parts] = Work(names, loss, samples, self._norms(names))
        return found

    def finding(self, state: Digest, seed: Digest, parts: int, finder: PeerId) -> Digest:
        """See `Compute.finding`: what `finder` commits to when it computes `work(state, seed, parts)` again. Raises
        as `work` does."""
        gradient = self._join(self.work(state, seed, parts).parts)
        if self._sketches:
            return sketch_of(gradient, finder)
        return finding_digest(finder, gradient.view(torch.uint8).numpy().data)

    def compare(
        self, state: Digest, seed: Digest, parts: int, committed: tuple[bytes, ...]
    ) -> tuple[Compared | None, ...]:
        """See `Compute.compare`. Raises as `work` does, and MisuseError for a forgotten vector."""
        whole = self._join(self.work(state, seed, parts).parts)
        is_there = [bool(name) for name in committed]
        return tuple(compare_parts(whole, self._join(committed), part_ranges(self.elements, parts), is_there))

    def forge(self, forgery: Forgery) -> Work:
        """See `Compute.forge`. `strength` is what the attack's docstring says (`attacks.DEFAULT_STRENGTH`). Raises
        as `work` does, and MisuseError for an unknown attack."""
        attack = find_attack(forgery.attack)
        honest = self.work(forgery.state, forgery.seed, forgery.parts)
        # Attackers that send alike share the result: it does not depend on whose seed it was.
        key = dataclasses.replace(forgery, seed=Digest(b"")) if attack.alike else forgery
        if key not in self._forged or not self._hold(self._forged[key]):
            self._forged.put(key, self._keep(attack.row(self._view(attack, forgery, honest)), forgery.parts))
        names = self._forged[key]
        return Work(names, honest.loss, honest.samples, self._norms(names))

    def aggregate(self, inputs: tuple[tuple[int, Digest], ...], cut: Digest, part: int, absent: int = 0) -> Aggregated:
        """See `Compute.aggregate`. Raises MisuseError for a forgotten input."""
        key = (inputs, cut, part, absent)
        if key in self._aggregates:
            known = self._aggregates[key]
            if known is None or known[0] in self._vectors:
                return known
        rows = [self.vector(name) for _, name in inputs]
        out = torch.empty_like(rows[0])
        result: Aggregated = None
        try:
            excluded = aggregate_rows(self._rule, rows, out, aggregation_seed(cut, part), absent).excluded_rows
            included = tuple(member for row, (member, _) in enumerate(inputs) if row not in excluded)
            result = self._put(out), included
        except NoUsableRows:
            pass
        self._aggregates.put(key, result)
        return result

    def distort(self, aggregate: Digest, strength: float, salt: Digest) -> Digest:
        """See `Compute.distort`: a random direction drawn from the salt; from a zero aggregate, `strength` away."""
        wrong = self.vector(aggregate).clone()
        distort(wrong, strength, salt)
        return self._put(wrong)

    def project(
        self, rows: tuple[Digest, ...], aggregate: Digest, seed: Digest
    ) -> tuple[Line | None, tuple[Line, ...]]:
        """See `Compute.project`. Where aggregates are not checked, nothing counts as clipped. Raises MisuseError for a
        forgotten vector."""
        whole, vectors = self.vector(aggregate), [self.vector(name) for name in rows]
        nothing, *found = project([NOTHING, *vectors], whole, self._radius, seed)
        lines = [line for line in found if line is not None]
        return nothing, tuple(lines) if len(lines) == len(rows) else ()

    def apply(self, state: Digest, parts: tuple[bytes, ...]) -> Digest:
        """See `Compute.apply`. Raises MisuseError for a forgotten state or part."""
        key = (state, parts)
        if key not in self._updates:
            ranges = part_ranges(self.elements, len(parts))
            void = [where for name, where in zip(parts, ranges, strict=True) if not name]
            gradient = self._join(parts)
            self._go_to(state)
            self._current = self._engine.apply(gradient, void, ranges)
            self._remember(self._current)
            self._updates.put(key, self._current)
        return self._updates[key]

    def evaluate(self, state: Digest) -> Mapping[str, float]:
        """See `Compute.evaluate`. Raises MisuseError for a forgotten state."""
        known = self._known(state)
        if known.figures is None:
            self._go_to(state)
            known.figures = self._engine.evaluate()
        return known.figures

    def vector(self, name: Digest) -> torch.Tensor:
        """The part or aggregate of that name, float32 (k,), not to be changed. Raises MisuseError if forgotten."""
        if name not in self._vectors:
            raise MisuseError(f"vector {digest_text(name)} is unknown or was forgotten; raise vector_bytes_max")
        return self._vectors[name]

    def _gradient(self, state: Digest, seed: Digest, flip_labels: bool = False) -> tuple[torch.Tensor, float, int]:
        """A work unit: gradient float32 (elements,), mean loss, samples."""
        self._go_to(state)
        gradient = torch.empty(self.elements)
        loss, samples = self._engine.work(seed, gradient, lambda: False, flip_labels)
        return gradient, loss, samples

    def _view(self, attack: GradientAttack, forgery: Forgery, honest: Work) -> View:
        """What the attacker of this forgery sees; other peers' gradients are made when it looks at them."""

        def load_honest() -> torch.Tensor:
            seeds = forgery.honest_seeds or (forgery.seed,)  # nobody honest is left: it has its own work to look at
            works = [self.work(forgery.state, seed, forgery.parts) for seed in seeds]
            return torch.stack([self._join(work.parts) for work in works])

        def load_previous() -> torch.Tensor | None:
            if not forgery.previous:
                return None
            return torch.nan_to_num(self._join(forgery.previous), nan=0.0, posinf=0.0, neginf=0.0)

        own = self._join(honest.parts)
        if attack.flips_labels:
            own, _, _ = self._gradient(forgery.state, forgery.seed, flip_labels=True)
        salt = forgery.salt + forgery.seed if attack.own_chance else forgery.salt
        chance = seeded_generator(salt, f"attack {attack.name}")
        return View(own, forgery.byzantine, forgery.strength, chance, load_honest, load_previous)

    def _keep(self, vector: torch.Tensor, parts: int) -> tuple[Digest, ...]:
        """Keep a whole vector in parts; their digests."""
        return tuple(self._put(vector[start:stop]) for start, stop in part_ranges(self.elements, parts))

    def _put(self, vector: torch.Tensor) -> Digest:
        name = blob_digest(vector.view(torch.uint8).numpy().data)
        self._vectors.put(name, vector, vector.nbytes)
        return name

    def _norms(self, names: tuple[Digest, ...]) -> tuple[float, ...]:
        return tuple(norm_of(self.vector(name)) for name in names)

    def _hold(self, names: tuple[Digest, ...]) -> bool:
        return all(name in self._vectors for name in names)

    def _join(self, parts: tuple[bytes, ...]) -> torch.Tensor:
        """The whole vector that the parts make, float32 (elements,), zero in void ones."""
        whole = torch.zeros(self.elements)
        for name, (start, stop) in zip(parts, part_ranges(self.elements, len(parts)), strict=True):
            if name:
                whole[start:stop] = self.vector(Digest(name))
        return whole

    def _known(self, state: Digest) -> KnownState:
        if state not in self._states:
            newest = f"the newest {self._keep_states}"
            raise MisuseError(f"state {digest_text(state)} is not among {newest}; raise keep_states")
        return self._states[state]

    def _go_to(self, state: Digest) -> None:
        """Make the engine's state this one, unless it is already."""
        if self._current != state:
            self._engine.load_state(memoryview(self._known(state).saved))
            self._current = state

    def _remember(self, state: Digest) -> None:
        """Keep the engine's state; the oldest goes when there are too many."""
        if state not in self._states:
            saved = bytearray(self._engine.state.nbytes)
            self._engine.state.save(memoryview(saved))
            self._states[state] = KnownState(saved)
        self._states.move_to_end(state)
        while len(self._states) > self._keep_states:
            self._states.popitem(last=False)
