"""What the rules want computed, done by the worker, answered as events.

The idea: one method per compute effect, each a task of the driver. Results are only ever digests and numbers; the
vectors stay in the blob store. A worker that dies costs this peer the step: a new one is started, the newest
state on disk is loaded, and the rules catch up from there by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.compute.client import Committed, ComputeClient, WorkerInfo
from crowdsurf.peer.compute.errors import NoUsableRows, StateForgotten, WorkCancelled, WorkerDied, WorkFailed
from crowdsurf.peer.compute.segments import Segment, SegmentPool
from crowdsurf.peer.links import Post
from crowdsurf.peer.state_store import StateStore
from crowdsurf.protocol import effects, events
from crowdsurf.protocol.assignment import ELEMENT_BYTES, aggregation_seed, part_ranges, projection_seed
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, finding_digest
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.projection import clipping_of, lines_to_publish
from crowdsurf.protocol.tolerance import COMPARED_STEPS, relative_bound

if TYPE_CHECKING:
    from crowdsurf.peer.rehearsal import LiveBody

CHECKPOINT_STEPS = 10
"""A whole state is saved every so many steps; the updates since are kept too, so this only trades disk writes
against the time a newcomer needs to catch up."""
DEATHS_MAX = 5
"""A worker that dies this often without finishing anything in between will not be started again."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Evaluation:
    """Newest figures of the model on data it was not trained on."""

    step: int = -1
    test_loss: float | None = None
    test_accuracy: float | None = None


class Duties:
    """Carries out compute effects."""

    def __init__(
        self,
        client: ComputeClient,
        info: WorkerInfo,
        manifest: Manifest,
        blobs: BlobStore,
        store: StateStore,
        pool: SegmentPool,
        post: Post,
        evaluate_steps: int,
    ) -> None:
        """`evaluate_steps` evaluates the model every so many steps (and at both ends); 0 never does."""
        self._client = client
        self._info = info
        self._manifest = manifest
        self._blobs = blobs
        self._store = store
        self._pool = pool
        self._post = post
        self._evaluate_steps = evaluate_steps
        self._clipping = clipping_of(manifest)
        self._is_exact = relative_bound(manifest) is None
        self._cancellations = 0
        self._deaths = 0
        self._restarting = asyncio.Lock()
        self._recomputing = asyncio.Lock()
        self._generation = 0
        self.usable: Callable[[int, Digest], bool] = lambda step, digest: True
        """Whether a state on disk, before a step and with a digest, agrees with what is certified."""
        self.liar: LiveBody | None = None
        """What decides about the results of a peer that misbehaves on purpose."""
        self.evaluation = Evaluation()
        self.initial_evaluation: Evaluation | None = None

    # --- effects -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Work that was asked for so far is not needed any more."""
        self._cancellations += 1
        self._client.cancel_work()

    def work(self, effect: effects.ComputeWork) -> Coroutine[Any, Any, None]:
        """Compute the work unit of a step, unless it is cancelled before the worker is free."""
        return self._work(effect, self._cancellations)

    async def _work(self, effect: effects.ComputeWork, cancellations: int) -> None:
        if self._restarting.locked() or cancellations != self._cancellations:
            return
        generation = self._generation
        try:
            segment = self._blobs.gradient(effect.step, effect.parts)
            with self._blobs.using(segment):
                ranges = part_ranges(self._info.vector_elements, effect.parts)
                if self.liar is None:
                    result = await self._client.work(effect.seed, ranges, segment)
                else:
                    result = await self.liar.work(effect, ranges, segment)
        except WorkCancelled:
            return
        except WorkFailed as error:
            log.warning("step %d goes on without this peer: %s", effect.step, error)
            await self._post(events.WorkFailed(effect.step, str(error)))
            return
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        if generation != self._generation:
            return  # from the initial state of a new worker
        self._deaths = 0
        self._blobs.add_own_parts(effect.step, result.part_digests)
        done = events.WorkDone(effect.step, result.part_digests, result.loss, result.samples, result.norms)
        await self._post(done)

    async def recompute(self, effect: effects.RecomputeWork) -> None:
        """Compute another peer's work unit of a past step, for an audit or a case.

        One after the other: the worker is one, and whoever waits for it needs no whole gradient meanwhile. So memory
        does not grow with the cases that somebody opens.
        """
        async with self._recomputing:
            event = await self._recomputed(effect)
        await self._post(event)

    async def _recomputed(self, effect: effects.RecomputeWork) -> events.Event:
        """What came of it."""
        failed = events.RecomputeFailed(effect.step, effect.seed, effect.finder)
        if self._restarting.locked():
            return failed
        generation = self._generation
        segment, committed = self._pool.take(self._info.vector_elements * ELEMENT_BYTES), None
        try:
            committed = self._committed(effect)
            found = await self._client.recompute(
                effect.state,
                effect.seed,
                part_ranges(self._info.vector_elements, effect.parts),
                segment,
                effect.finder,
                effect.aggregates if self._clipping is not None else (),
                self._clipping.radius if self._clipping is not None else math.inf,
                effect.beacon,
                committed,
            )
            finding = found.finding if self.liar is None else self.liar.finding(effect, found.finding)
            return events.WorkRecomputed(
                effect.step,
                effect.seed,
                effect.finder,
                found.part_digests,
                finding,
                found.norms,
                found.lines,
                found.compared,
                effect.aggregates,
            )
        except StateForgotten as error:
            log.info("a work unit of step %d cannot be checked here: %s", effect.step, error)
        except WorkFailed:
            if self._is_exact:
                # Nobody can have committed to such a gradient: it equals nothing.
                nothing = finding_digest(effect.finder, b"")
                return events.WorkRecomputed(effect.step, effect.seed, effect.finder, (), nothing)
        except WorkerDied as error:
            await self.recover(generation, str(error))
        finally:
            self._pool.release(segment)
            if committed is not None:
                self._pool.release(committed.gradient)
        return failed

    def _committed(self, effect: effects.RecomputeWork) -> Committed | None:
        """What the work is to be compared with, as far as it is here."""
        if not effect.committed:
            return None
        segment, is_there = self._blobs.gather(effect.committed)
        return Committed(segment, effect.committed, is_there)

    async def finding(self, effect: effects.ComputeFinding) -> None:
        """What a validator of our own gradient must have found. Whoever attacks has nothing to compare."""
        segment = self._blobs.own_gradient(effect.step)
        if segment is None or self.liar is not None or self._restarting.locked():
            return
        generation = self._generation
        try:
            with self._blobs.using(segment):
                nbytes = self._info.vector_elements * ELEMENT_BYTES
                found = await self._client.finding(segment, nbytes, effect.finder)
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        await self._post(events.FindingKnown(effect.step, effect.finder, found))

    async def aggregate(self, effect: effects.AggregatePart) -> None:
        """Apply the manifest's rule to the inputs of one part."""
        if self._restarting.locked():
            return
        generation = self._generation
        rule = self._manifest.rule
        try:
            inputs = self._blobs.fitting(effect.step, effect.part, effect.inputs)
            if not inputs:
                raise NoUsableRows("no input has the size of the part")
            segment, rows = self._blobs.rows(effect.step, effect.part, inputs)
            place = self._blobs.aggregate_place(effect.step, effect.part)
            elements, output = place.nbytes // ELEMENT_BYTES, place.memory.segment
            with self._blobs.using(segment), self._blobs.using(output):
                result = await self._client.aggregate(
                    rule.name,
                    rule.parameters,
                    segment,
                    rows,
                    elements,
                    output,
                    place.offset,
                    aggregation_seed(effect.cut, effect.part),
                    effect.absent + len(effect.inputs) - len(inputs),
                )
                digest = result.digest
                if self.liar is not None:
                    digest = await self.liar.distort(effect, place, digest)
        except KeyError:
            return  # the step was certified without this aggregate, and its memory is gone
        except NoUsableRows:
            log.warning("part %d of step %d stays void: no contribution was finite", effect.part, effect.step)
            return
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        self._blobs.add_aggregate(effect.step, digest, place)
        excluded = set(result.excluded_rows)
        included = tuple(member for row, (member, _) in enumerate(inputs) if row not in excluded)
        done = events.PartAggregated(effect.step, effect.cut, effect.part, digest, included)
        await self._post(done)

    async def project(self, effect: effects.ProjectPart) -> None:
        """Work out what there is to say about an aggregate of ours; nothing where its memory is gone."""
        if self._restarting.locked() or self._clipping is None:
            return
        generation = self._generation
        try:
            segment, rows = self._blobs.rows(effect.step, effect.part, effect.inputs)
            place = self._blobs.place_of(effect.aggregate)
            elements, output = place.nbytes // ELEMENT_BYTES, place.memory.segment
            seed = projection_seed(effect.beacon, effect.part)
            with self._blobs.using(segment), self._blobs.using(output):
                radius = self._clipping.radius
                found = await self._client.project(segment, rows, elements, output, place.offset, radius, seed)
        except KeyError:
            return  # the step is over, and its memory is gone
        except WorkFailed as error:
            log.warning("part %d of step %d counts for nothing: %s", effect.part, effect.step, error)
            return
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        name, cut = effect.aggregate, effect.cut
        lines = lines_to_publish(found.lines, found.nothing, effect.absent)
        done = events.PartProjected(effect.step, cut, effect.part, name, found.nothing.norm, lines, effect.absent)
        said = done if self.liar is None else self.liar.projected(effect, done)
        if said is not None:
            await self._post(said)

    async def check_aggregates(self, effect: effects.CheckAggregates) -> None:
        """Work out what others must say about our own gradient, and keep what they aggregated for later cases."""
        if self._restarting.locked() or self._clipping is None:
            return
        generation = self._generation
        try:
            segment, there = self._blobs.aggregates(effect.step, effect.aggregates)
        except KeyError:
            return  # the step is over, and its memory is gone
        gradient = self._blobs.own_gradient(effect.step)
        try:
            with self._blobs.using(segment), self._blobs.using(gradient or segment):
                ranges = part_ranges(self._info.vector_elements, len(there))
                radius, beacon = self._clipping.radius, effect.beacon
                found = await self._client.check(effect.step, there, ranges, radius, beacon, segment, gradient)
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        checked = events.AggregatesChecked(effect.step, there, effect.beacon, found.lines, found.nothings)
        await self._post(checked if self.liar is None else self.liar.checked(checked))

    async def apply(self, effect: effects.ApplyUpdate) -> None:
        """Apply a certified step to the state, and keep its update on disk."""
        if self._restarting.locked():
            return  # there is no state to apply it to; the rules ask again when there is one
        generation = self._generation
        try:
            segment, void = self._blobs.averaged_gradient(effect.step, effect.parts)
        except KeyError:
            # Applied before, until a worker died: the memory is in use again. Going back makes the rules fetch anew.
            await self.recover(generation, f"the update of step {effect.step} is not in memory any more")
            return
        try:
            with self._blobs.using(segment):
                # Both end before the memory is let go, also when one of them fails.
                applied, saved = await asyncio.gather(
                    self._client.apply(segment, void, part_ranges(self._info.vector_elements, len(effect.parts))),
                    self._save_update(effect.step, effect.parts, segment),
                    return_exceptions=True,
                )
            if isinstance(saved, BaseException):
                raise saved
            if isinstance(applied, BaseException):
                raise applied
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return
        if generation != self._generation:
            return  # the state is gone, or this was that of a new worker
        self._blobs.retire(effect.step, 0 if self._is_exact else COMPARED_STEPS)
        next_step = effect.step + 1
        await self._checkpoint_and_evaluate(next_step, applied)
        if generation == self._generation:
            await self._post(events.StateReady(next_step, applied))

    async def save_update(self, step: int, parts: tuple[bytes, ...]) -> None:
        """Keep what a step would change, before this peer votes for it. Raises WorldError.

        If a whole swarm crashed after a vote and nobody had kept the outcome, all would know that the step is
        decided and nobody could ever apply it.
        """
        try:
            segment, _ = self._blobs.averaged_gradient(step, parts)
        except KeyError:
            return  # said again after a restart: it is on disk, or with others
        with self._blobs.using(segment):
            await self._save_update(step, parts, segment)

    def saves_after(self, step: int) -> bool:
        """Whether the state after a step is saved as a whole."""
        return (step + 1) % CHECKPOINT_STEPS == 0

    # --- states ------------------------------------------------------------------------------------------

    async def load_newest(self) -> events.StateReady:
        """Load the newest state of our own, or the initial one. Raises WorldError, WorkerDied."""
        for step in reversed(self._store.state_steps()):
            segment = self._pool.take(self._info.state_bytes)
            try:
                nbytes = await asyncio.to_thread(self._store.read_state, step, segment.view)
                if nbytes == self._info.state_bytes:
                    digest = await self._client.load_state(segment, nbytes)
                    if self.usable(step, digest):
                        return events.StateReady(step, digest)
            finally:
                self._pool.release(segment)
            log.warning("the state before step %d on disk is not the certified one and is dropped", step)
            self._store.drop_state(step)
        digest = await self._client.load_initial()
        if self._evaluate_steps:
            await self._evaluate(0)
        return events.StateReady(0, digest)

    async def load_fetched(self, step: int, segment: Segment) -> Digest | None:
        """Load a state that came from a peer and was checked; keep it on disk too. None if the worker died of it."""
        if self._restarting.locked():
            return None
        generation = self._generation
        try:
            digest = await self._client.load_state(segment, self._info.state_bytes)
        except WorkerDied as error:
            await self.recover(generation, str(error))
            return None
        if generation != self._generation:
            return None
        await asyncio.to_thread(self._store.save_state, step, segment.view[: self._info.state_bytes])
        return digest

    async def save_last(self, step: int, digest: Digest) -> None:
        """Keep the state before `step`, at the end of a run or when leaving. Raises WorldError for a full disk."""
        try:
            if step not in self._store.state_steps():
                await self._checkpoint(step, digest)
            if self._evaluate_steps and self.evaluation.step != step:
                await self._evaluate(step)
        except WorkerDied as error:
            log.warning("the last state is not saved, the kept ones and the updates are: %s", error)

    async def recover(self, generation: int, reason: str) -> None:
        """Start a new worker after one died and go back to the newest state on disk. Raises WorldError if it keeps
        dying."""
        async with self._restarting:
            if generation != self._generation:
                return  # somebody else has done it
            self._generation += 1
            self._deaths += 1
            if self._deaths > DEATHS_MAX:
                raise WorldError(f"the compute worker died {self._deaths} times in a row; the last time: {reason}")
            log.warning("the compute worker died (%s); starting a new one", reason)
            await self._post(events.StateLost())
            try:
                await self._client.restart()
                ready = await self.load_newest()
            except (WorkerDied, MisuseError) as error:
                raise WorldError(f"the compute worker cannot be started again: {error}") from error
            await self._post(ready)

    # --- helpers -----------------------------------------------------------------------------------------

    async def _save_update(self, step: int, parts: tuple[bytes, ...], segment: Segment) -> None:
        if not self._store.has_update(step, parts):
            await asyncio.to_thread(self._store.save_update, step, parts, segment.view)

    async def _checkpoint_and_evaluate(self, step: int, digest: Digest) -> None:
        try:
            if self.saves_after(step - 1):
                await self._checkpoint(step, digest)
            if self._evaluate_steps and step % self._evaluate_steps == 0:
                await self._evaluate(step)
        except WorkerDied:
            pass  # the next command finds the worker dead and starts a new one

    async def _checkpoint(self, step: int, digest: Digest) -> None:
        segment = self._pool.take(self._info.state_bytes)
        try:
            nbytes, saved = await self._client.save_state(segment)
            if saved == digest:  # else a new worker has taken over, with another state
                await asyncio.to_thread(self._store.save_state, step, segment.view[:nbytes])
        finally:
            self._pool.release(segment)

    async def _evaluate(self, step: int) -> None:
        figures = await self._client.evaluate()
        self.evaluation = Evaluation(step, figures.get("test_loss"), figures.get("test_accuracy"))
        if step == 0:
            self.initial_evaluation = self.evaluation
