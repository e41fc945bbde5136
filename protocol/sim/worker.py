"""The compute worker of a simulated peer: what it is asked to do, how long that takes, what it remembers.

The idea: as in the live peer it is something of its own that may die. Then the work under way never comes back, and
what it remembered of past steps is gone; blobs are the peer's, not the worker's. What an adversary computes wrong, it
computes wrong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from crowdsurf.protocol import assignment, effects, events, limits
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.projection import Line, lines_to_publish
from crowdsurf.protocol.sim.gathering import Gathering
from crowdsurf.protocol.tolerance import relative_bound

if TYPE_CHECKING:
    from crowdsurf.protocol.sim.host import Host

APPLY_SECONDS = 0.01
"""Whatever is done with vectors that are there, and needs no gradient."""


class OwnWork(NamedTuple):
    """The newest own work unit."""

    step: int
    state: Digest
    seed: Digest
    parts: tuple[Digest, ...]
    """As they were sent."""


class Worker:
    """Computes for one host and answers with events."""

    def __init__(self, host: Host) -> None:
        self.own: OwnWork | None = None
        self._host = host
        self._life = 0
        self._task = 0
        """The newest work unit; the answer of an older one is dropped."""
        self._states: list[Digest] = []
        """The state it holds and those before it, newest last."""
        self._aggregates: dict[int, set[bytes]] = {}
        """By step."""

    def die(self) -> None:
        """All it knew and all it was doing is gone."""
        self._life += 1
        self.own = None
        self._states, self._aggregates = [], {}

    def hold_state(self, digest: Digest) -> None:
        """This is the state from now on."""
        self._states = [*self._states[-limits.PAST_STATES :], digest]

    def do(self, effect: effects.Effect) -> None:
        """Do what an effect asks for, if it is the worker's to do."""
        action = ACTIONS.get(type(effect))
        if action is not None:
            action(self, effect)

    def later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        """Do something unless the host or its worker dies before."""
        self._host.later(seconds, self._if_still, self._life, action, *arguments)

    def _if_still(self, life: int, action: Callable[..., object], *arguments: object) -> None:
        if life == self._life:
            action(*arguments)

    # --- work units --------------------------------------------------------------------------------------

    def _work_seconds(self) -> float:
        return self._host.world.work_seconds * self._host.speed * (0.9 + 0.2 * self._host.world.chance.random())

    def _work(self, effect: effects.ComputeWork) -> None:
        faults, chance = self._host.world.network.faults, self._host.world.chance
        task = self._task = self._task + 1
        seconds = self._work_seconds()
        if faults.straggle and chance.random() < faults.straggle:
            seconds *= faults.straggle_factor
        fails = bool(faults.work_failure) and chance.random() < faults.work_failure
        self.later(seconds, self._worked, task, effect, fails)

    def _worked(self, task: int, effect: effects.ComputeWork, fails: bool) -> None:
        host = self._host
        if task != self._task:
            return
        if fails:
            host.give(events.WorkFailed(effect.step, "a simulated failure"))
            return
        forgery = host.adversary.forgery(host, effect) if host.adversary is not None else None
        if forgery is None:
            work = host.world.machine(host.number).work(host.state, effect.seed, effect.parts)
        else:
            work = host.world.compute.forge(forgery)
        self.own = OwnWork(effect.step, host.state, effect.seed, work.parts)
        for part in work.parts:
            host.hold(part)
        host.give(events.WorkDone(effect.step, work.parts, work.loss, work.samples, work.norms))

    def _cancel(self, effect: effects.CancelWork) -> None:
        self._task += 1

    def _recompute(self, effect: effects.RecomputeWork) -> None:
        """Another peer's work unit."""
        if effect.committed:
            Gathering(self._host, effect, lambda *found: self.later(self._work_seconds(), self._recomputed, *found))
        else:
            self.later(self._work_seconds(), self._recomputed, effect)

    def _recomputed(self, effect: effects.RecomputeWork, committed: tuple[bytes, ...] = ()) -> None:
        """`committed`: the names of what it is to be compared with, as far as that is here."""
        host, step, seed, finder = self._host, effect.step, effect.seed, effect.finder
        if effect.state not in self._states:
            host.give(events.RecomputeFailed(step, seed, finder))
            return
        machine = host.world.machine(host.number)
        work = machine.work(effect.state, seed, effect.parts)
        finding = machine.finding(effect.state, seed, effect.parts, finder)
        compared = machine.compare(effect.state, seed, effect.parts, committed) if committed else ()
        if host.adversary is not None and finder == host.id:
            finding = host.adversary.finding(host, effect, finding)
        lines = self._lines_about(committed or work.parts, effect)
        asked = effect.aggregates
        host.give(events.WorkRecomputed(step, seed, finder, work.parts, finding, work.norms, lines, compared, asked))

    def _lines_about(self, rows: tuple[bytes, ...], effect: effects.RecomputeWork) -> tuple[Line | None, ...]:
        """What those who aggregated this work must have said about it, as far as their aggregates are remembered."""
        known = self._aggregates.get(effect.step, set())
        return tuple(
            self._line(part, Digest(rows[part]), Digest(name), effect.beacon) if name in known and rows[part] else None
            for part, name in enumerate(effect.aggregates)
        )

    def _line(self, part: int, row: Digest, aggregate: Digest, beacon: bytes) -> Line | None:
        _, lines = self._host.world.compute.project((row,), aggregate, assignment.projection_seed(beacon, part))
        return lines[0] if lines else None

    def _find(self, effect: effects.ComputeFinding) -> None:
        """Over the own gradient, which is still in memory unless the worker died since."""
        host, own = self._host, self.own
        if own is not None and own.step == effect.step and host.adversary is None:
            finding = host.world.machine(host.number).finding(own.state, own.seed, len(own.parts), effect.finder)
            self.later(APPLY_SECONDS, host.give, events.FindingKnown(effect.step, effect.finder, finding))

    # --- aggregates --------------------------------------------------------------------------------------

    def _aggregate(self, effect: effects.AggregatePart) -> None:
        faults, chance = self._host.world.network.faults, self._host.world.chance
        if not (faults.aggregate_failure and chance.random() < faults.aggregate_failure):
            self.later(APPLY_SECONDS, self._aggregated, effect)

    def _aggregated(self, effect: effects.AggregatePart) -> None:
        host = self._host
        found = host.world.compute.aggregate(effect.inputs, effect.cut, effect.part, effect.absent)
        if found is None:
            return  # nothing finite to aggregate: the part stays void
        digest, included = found
        wrong = host.adversary.distortion(host, effect) if host.adversary is not None else None
        if wrong is not None:
            digest = host.world.compute.distort(digest, wrong.strength, wrong.salt)
        host.hold(digest)
        host.give(events.PartAggregated(effect.step, effect.cut, effect.part, digest, included))

    def _project(self, effect: effects.ProjectPart) -> None:
        self.later(APPLY_SECONDS, self._projected, effect)

    def _projected(self, effect: effects.ProjectPart) -> None:
        host, rows = self._host, tuple(name for _, name in effect.inputs)
        seed = assignment.projection_seed(effect.beacon, effect.part)
        nothing, lines = host.world.compute.project(rows, effect.aggregate, seed)
        if nothing is None or not lines:
            return  # a liar's numbers: nothing can be said about them
        lines = lines_to_publish(lines, nothing, effect.absent)
        cut, part, name = effect.cut, effect.part, effect.aggregate
        event = events.PartProjected(effect.step, cut, part, name, nothing.norm, lines, effect.absent)
        said = host.adversary.projected(host, effect, event) if host.adversary is not None else event
        if isinstance(said, events.PartProjected):
            host.give(said)
            return
        for action in said:
            host.carry_out(action)

    def _check(self, effect: effects.CheckAggregates) -> None:
        self.later(APPLY_SECONDS, self._checked, effect)

    def _checked(self, effect: effects.CheckAggregates) -> None:
        """Lengths of aggregates, and what they make of the own gradient; they are kept for cases about this step."""
        host = self._host
        held = tuple(name if name and host.holds(name) else b"" for name in effect.aggregates)
        self._aggregates.setdefault(effect.step, set()).update(name for name in held if name)
        newest = max(self._aggregates)
        kept = limits.PAST_AGGREGATES + (relative_bound(host.node.manifest) is not None)
        self._aggregates = {step: names for step, names in self._aggregates.items() if step > newest - kept}
        nothings: list[Line | None] = []
        lines: list[Line | None] = []
        own = self.own if self.own is not None and self.own.step == effect.step else None
        for part, name in enumerate(held):
            rows = (own.parts[part],) if own is not None and name else ()
            seed = assignment.projection_seed(effect.beacon, part)
            nothing, found = host.world.compute.project(rows, Digest(name), seed) if name else (None, ())
            nothings.append(nothing)
            lines.append(found[0] if found else None)
        about_own = tuple(lines) if own is not None else ()
        event = events.AggregatesChecked(effect.step, held, effect.beacon, about_own, tuple(nothings))
        host.give(host.adversary.checked(host, event) if host.adversary is not None else event)

    # --- the state ---------------------------------------------------------------------------------------

    def _apply(self, effect: effects.ApplyUpdate) -> None:
        host = self._host
        if effect.step != host.state_step:
            return
        if not host.holds_all(effect.parts):
            host.lose_worker()  # as the live peer: back to a state on disk, and the rules fetch anew
            return
        host.disk.save_update(effect.step, effect.parts)
        self.later(APPLY_SECONDS, self._applied, effect)

    def _applied(self, effect: effects.ApplyUpdate) -> None:
        host = self._host
        host.take_update(effect.step, host.world.compute.apply(host.state, effect.parts))


ACTIONS: dict[type, Callable[[Worker, Any], None]] = {
    effects.ComputeWork: Worker._work,
    effects.CancelWork: Worker._cancel,
    effects.RecomputeWork: Worker._recompute,
    effects.ComputeFinding: Worker._find,
    effects.AggregatePart: Worker._aggregate,
    effects.ProjectPart: Worker._project,
    effects.CheckAggregates: Worker._check,
    effects.ApplyUpdate: Worker._apply,
}
