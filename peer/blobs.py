"""Where tensor bytes live while a step runs: shared memory, found by digest.

The idea: the rules speak of digests only; this is the one place that knows which bytes a digest means and into
which memory expected bytes must go. A contributor's part goes straight into the inbox row of the part it belongs
to, an aggregate straight into its place in the averaged gradient, so nothing is copied between the socket and
the aggregation. Bytes that nobody expects have no place here at all.

Memory is lent, not given: `lend` keeps a segment from being reused while a slow peer still reads from it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crowdsurf.peer.compute.segments import Segment, SegmentPool
from crowdsurf.protocol.assignment import ELEMENT_BYTES, part_ranges
from crowdsurf.protocol.effects import ExpectAggregate, ExpectPart
from crowdsurf.protocol.ids import Digest, PeerId


@dataclass(slots=True, eq=False)
class _Memory:
    """A segment and who still uses it."""

    segment: Segment
    users: int = 0
    retired: bool = False
    is_secret: bool = False
    """Gradients of a step that is over: whoever has to recompute one shall not get it from us."""


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of a segment."""

    memory: _Memory
    offset: int
    nbytes: int

    @property
    def view(self) -> memoryview:
        return self.memory.segment.view[self.offset : self.offset + self.nbytes]


@dataclass(slots=True)
class _StepMemory:
    """Everything one step needs."""

    parts: int
    gradient: _Memory | None = None
    has_gradient: bool = False
    """Whether the work unit in it is complete."""
    aggregate: _Memory | None = None
    inboxes: dict[int, _Memory] = field(default_factory=dict)
    beside: list[_Memory] = field(default_factory=list)
    """For what has no room in the above: see `_claim`."""
    claims: dict[int, object] = field(default_factory=dict)
    """By part, for which aggregate its place in the averaged gradient is."""
    rows: dict[tuple[int, int], Digest] = field(default_factory=dict)
    """By part and member, for which bytes that row of the inbox is."""
    held: set[Digest] = field(default_factory=set)

    def all(self) -> list[_Memory]:
        """Every segment of the step."""
        found = (self.gradient, self.aggregate, *self.inboxes.values(), *self.beside)
        return [memory for memory in found if memory is not None]


class BlobStore:
    """Bytes by digest, and places for the bytes that are expected."""

    def __init__(self, elements: int, pool: SegmentPool) -> None:
        self._elements = elements
        self._pool = pool
        self._steps: dict[int, _StepMemory] = {}
        self._held: dict[Digest, list[tuple[int, Place]]] = {}
        """Every place of the same bytes, and the step whose memory it is in. There may be many: a layer that has died
        has the same gradient in every step, and of one contributor the aggregate is its gradient."""
        self._expected: dict[Digest, list[tuple[int, Place]]] = {}
        self._receiving: dict[Digest, tuple[PeerId | None, Callable[[], None]]] = {}
        """Who is sending bytes straight into their place, and how to stop it."""
        self._received_beside: set[tuple[Digest, PeerId | None]] = set()
        """What is received into memory of its own meanwhile: see `receiving_beside`."""
        self._authors: dict[Digest, set[PeerId]] = {}
        """Of expected bytes, who is known to push them."""
        self._closed = False
        self._oldest_step = 0
        self._changed = asyncio.Event()

    # --- making places -----------------------------------------------------------------------------------

    def gradient(self, step: int, parts: int) -> Segment:
        """The segment the work unit of a step writes its gradient into."""
        memory = self._step(step, parts)
        if memory.gradient is None:
            memory.gradient = self._take(self._elements * ELEMENT_BYTES)
        memory.has_gradient = False
        return memory.gradient.segment

    def own_gradient(self, step: int) -> Segment | None:
        """The gradient this peer computed in a recent step; None if it has not, or not to the end."""
        memory = self._steps.get(step)
        if memory is None or memory.gradient is None or not memory.has_gradient:
            return None
        return memory.gradient.segment

    def keep_inputs_secret(self, step: int) -> None:
        """A step is over: its gradients, ours and those we aggregated, are lent to nobody any more, because from now on
        validators are drawn who must compute them again (SPEC R-6.6)."""
        memory = self._steps.get(step)
        for used in (memory.gradient, *memory.inboxes.values()) if memory is not None else ():
            if used is not None:
                used.is_secret = True

    def add_own_parts(self, step: int, digests: tuple[Digest, ...]) -> None:
        """The gradient of a step is written; its parts have these digests."""
        memory = self._steps.get(step)
        if memory is None or memory.gradient is None:
            return
        for digest, (start, stop) in zip(digests, part_ranges(self._elements, len(digests)), strict=True):
            place = Place(memory.gradient, start * ELEMENT_BYTES, (stop - start) * ELEMENT_BYTES)
            self._hold(step, digest, place)
        memory.has_gradient = True

    def disclose_inputs(self, step: int) -> None:
        """Whoever had to compute gradients of a step again has committed to what it found: they are lent again, to be
        compared with it (SPEC R-6.16)."""
        memory = self._steps.get(step)
        for used in (memory.gradient, *memory.inboxes.values()) if memory is not None else ():
            if used is not None:
                used.is_secret = False

    def expect_committed(self, step: int, parts: tuple[bytes, ...]) -> None:
        """Make places for what somebody has committed to in a step, as far as it is not held: a blob digest per part,
        empty for one that is not asked for."""
        for name, (start, stop) in zip(parts, part_ranges(self._elements, len(parts)), strict=True):
            nbytes = (stop - start) * ELEMENT_BYTES
            if name and not self.holds(Digest(name)) and self._is_new(step, Digest(name), nbytes):
                self._expect(step, Digest(name), self._beside(self._step(step, len(parts)), nbytes))

    def gather(self, parts: tuple[bytes, ...]) -> tuple[Segment, list[bool]]:
        """A gradient made of these parts, as far as they are held, and which of them are. The segment is the caller's,
        to be released to the pool."""
        segment, is_there = self._pool.take(self._elements * ELEMENT_BYTES), []
        for name, (start, stop) in zip(parts, part_ranges(self._elements, len(parts)), strict=True):
            place = self._find(Digest(name))
            is_there.append(place is not None and place.nbytes == (stop - start) * ELEMENT_BYTES)
            if place is not None and is_there[-1]:
                segment.view[start * ELEMENT_BYTES : stop * ELEMENT_BYTES] = place.view
        return segment, is_there

    def expect_part(self, effect: ExpectPart, author: PeerId | None = None) -> None:
        """Make an inbox row for a part of the contributor `author`. A member may have committed to two, one after the
        other: the second one lies beside, so that nothing is ever written over bytes that are checked."""
        step, digest, nbytes = effect.step, effect.digest, effect.blob_bytes
        memory = self._step(step, effect.parts)
        is_first = memory.rows.setdefault((effect.part, effect.member), digest) == digest
        if self._is_new(step, digest, nbytes):
            row = Place(self._inbox(memory, effect.part), effect.member * nbytes, nbytes)
            self._expect(step, digest, row if is_first else self._beside(memory, nbytes))
        self._note_author(digest, author)

    def expect_aggregate(self, effect: ExpectAggregate) -> None:
        """Make a place in the averaged gradient for an aggregated part."""
        step, digest = effect.step, effect.digest
        if self._is_new(step, digest, effect.blob_bytes):
            self._expect(step, digest, self._claim(self._step(step, effect.parts), effect.part, digest))
        self._note_author(digest, effect.author)

    # --- bytes coming in ---------------------------------------------------------------------------------

    async def wait_expected(self, step: int, digest: Digest, timeout_seconds: float) -> bool:
        """Wait until bytes with this digest are expected or held in a step, or it is over; False if nothing of that
        happens in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while not self._settled(step, digest):
                    await self._changed.wait()
        return self._settled(step, digest)

    def _settled(self, step: int, digest: Digest) -> bool:
        is_here = self._holds_in(step, digest) or step < self._oldest_step
        return is_here or any(known_step == step for known_step, _ in self._expected.get(digest, ()))

    def is_expected(self, digest: Digest) -> bool:
        """Whether there is a place for bytes with this digest."""
        return digest in self._expected

    def fits(self, digest: Digest, nbytes: int) -> bool:
        """Whether bytes with this digest may be so many: true as well of those that are not expected at all."""
        return digest not in self._expected or self._place(digest, nbytes) is not None

    @contextlib.contextmanager
    def receiving(
        self, digest: Digest, nbytes: int, interrupt: Callable[[], None], peer: PeerId | None = None
    ) -> Iterator[Place | None]:
        """The place to receive expected bytes into, for one receiver at a time; None if they are not wanted (now).

        `interrupt` is called when the bytes came another way: nothing may be written after it.
        """
        place = self._place(digest, nbytes)
        if place is None or digest in self._receiving:
            yield None
            return
        receiver = self._receiving[digest] = (peer, interrupt)
        try:
            with self._used(place.memory):
                yield place
        finally:
            if self._receiving.get(digest) is receiver:
                del self._receiving[digest]

    @contextlib.contextmanager
    def receiving_beside(self, digest: Digest, peer: PeerId) -> Iterator[bool]:
        """Whether bytes that another peer is sending may be received into memory of the receiver's own as well, to be
        `put`: else whoever begins to push somebody else's bytes, and stops, keeps the true ones away.

        Each of their authors may be received so once: a digest is public, and others may say that it is theirs. If no
        author is known, one peer may be.
        """
        authors = self._authors.get(digest)
        mark = digest, peer if authors else None
        sender = self._receiving[digest][0] if digest in self._receiving else None
        is_author = authors is None or peer in authors
        if digest not in self._expected or sender == peer or not is_author or mark in self._received_beside:
            yield False
            return
        self._received_beside.add(mark)
        try:
            yield True
        finally:
            self._received_beside.discard(mark)

    def arrived(self, digest: Digest, place: Place) -> bool:
        """The bytes in a place of `digest` are complete and have that digest; False if no longer expected there."""
        if all(known != place for _, known in self._expected.get(digest, ())):
            return False
        self._authors.pop(digest, None)
        for step, known in self._expected.pop(digest):
            if known.nbytes == place.nbytes:
                if known != place:
                    known.view[:] = place.view
                self._hold(step, digest, known)
        return True

    def put(self, digest: Digest, data: memoryview) -> bool:
        """Bytes that came another way, and have this digest, go to their place; False if no longer expected."""
        place = self._place(digest, len(data))
        if place is None:
            return False
        if digest in self._receiving:
            _, interrupt = self._receiving.pop(digest)
            interrupt()
        place.view[:] = data
        return self.arrived(digest, place)

    # --- bytes going out and into computation --------------------------------------------------------------

    @contextlib.contextmanager
    def lend(self, digest: Digest) -> Iterator[memoryview | None]:
        """Read-only use of held bytes; their memory is not reused meanwhile. None if they are not held."""
        shown = [place for _, place in self._held.get(digest, ()) if not place.memory.is_secret]
        if not shown:
            yield None
            return
        with self._used(shown[-1].memory):
            yield shown[-1].view

    def holds(self, digest: Digest) -> bool:
        """Whether bytes with this digest are here."""
        return digest in self._held

    def holds_for(self, step: int, digest: Digest) -> bool:
        """Whether they are here as bytes of a step that is not over."""
        return step >= self._oldest_step and self._holds_in(step, digest)

    def fitting(self, step: int, part: int, inputs: tuple[tuple[int, Digest], ...]) -> tuple[tuple[int, Digest], ...]:
        """Those inputs of a part that have its size: somebody may have committed to the digest of other bytes that are
        here. Raises KeyError for a step without memory, or for an input that is not held."""
        start, stop = part_ranges(self._elements, self._steps[step].parts)[part]
        nbytes = (stop - start) * ELEMENT_BYTES
        return tuple(item for item in inputs if self.place_of(item[1]).nbytes == nbytes)

    def rows(self, step: int, part: int, inputs: tuple[tuple[int, Digest], ...]) -> tuple[Segment, list[int]]:
        """The inbox segment of a part and the byte offset of each input's row, in order.

        Our own part (and bytes that two contributors share) is copied into its row; all others are there already. If a
        row is for other bytes, which may come in at any time, all are copied into memory of their own.
        """
        memory = self._steps[step]
        start, stop = part_ranges(self._elements, memory.parts)[part]
        nbytes = (stop - start) * ELEMENT_BYTES
        is_clear = all(memory.rows.setdefault((part, member), digest) == digest for member, digest in inputs)
        inbox = self._inbox(memory, part) if is_clear else self._take_beside(memory, memory.parts * nbytes)
        offsets = []
        for member, digest in inputs:
            place, offset = self.place_of(digest), member * nbytes
            if place.memory is not inbox or place.offset != offset:
                inbox.segment.view[offset : offset + nbytes] = place.view
            offsets.append(offset)
        return inbox.segment, offsets

    def aggregate_place(self, step: int, part: int) -> Place:
        """Where our own aggregate of a part is to be written. Raises KeyError for a step without memory."""
        return self._claim(self._steps[step], part, object())

    def add_aggregate(self, step: int, digest: Digest, place: Place) -> None:
        """Our own aggregate of a part is written to its place and has this digest."""
        if step in self._steps:
            self._expect_no_more(step, {digest})
            self._hold(step, digest, place)

    def place_of(self, digest: Digest) -> Place:
        """Where held bytes are, of several places the latest. Raises KeyError if they are not held."""
        return self._held[digest][-1][1]

    def aggregates(self, step: int, parts: tuple[bytes, ...]) -> tuple[Segment, tuple[bytes, ...]]:
        """The aggregates of a step where an averaged gradient has them, and the names of those that are there: empty
        for one that is not held, or that has not the size of its part. Raises KeyError for a step without memory."""
        if step not in self._steps:
            raise KeyError(step)
        sizes = [(stop - start) * ELEMENT_BYTES for start, stop in part_ranges(self._elements, len(parts))]
        places = [self._find(Digest(name)) for name in parts]
        there = tuple(
            name if place is not None and place.nbytes == nbytes else b""
            for name, place, nbytes in zip(parts, places, sizes, strict=True)
        )
        return self.averaged_gradient(step, there)[0], there

    def averaged_gradient(self, step: int, parts: tuple[bytes, ...]) -> tuple[Segment, list[tuple[int, int]]]:
        """The averaged gradient these parts make, and the element ranges of void ones, where it holds anything.

        Void is also a part whose digest is that of bytes of another size, for everybody alike: a digest has one size.
        Raises KeyError if a part is not held.
        """
        memory = self._step(step, len(parts))
        places, void = [], []
        for name, (start, stop) in zip(parts, part_ranges(self._elements, len(parts)), strict=True):
            place = self.place_of(Digest(name)) if name else None
            if place is not None and place.nbytes == (stop - start) * ELEMENT_BYTES:
                places.append((place, start * ELEMENT_BYTES))
            else:
                void.append((start, stop))
        whole = self._aggregate(memory)
        if any(place.memory is not whole or place.offset != begin for place, begin in places):
            # What others claim there may be wanted yet, or just be coming in.
            whole = self._take_beside(memory, self._elements * ELEMENT_BYTES)
            for place, begin in places:
                whole.segment.view[begin : begin + place.nbytes] = place.view
        return whole.segment, void

    @contextlib.contextmanager
    def using(self, segment: Segment) -> Iterator[None]:
        """Keep a step's segment from being reused while the worker computes with it."""
        for memory in self._steps.values():
            for candidate in memory.all():
                if candidate.segment is segment:
                    with self._used(candidate):
                        yield
                    return
        yield

    def retire(self, before_step: int, kept_steps: int = 0) -> None:
        """Earlier steps are over; forget everything about them, but for so many of the last ones."""
        self._oldest_step = max(self._oldest_step, before_step)
        self._notify()
        for step in [step for step in self._steps if step < before_step - kept_steps]:
            memory = self._steps.pop(step)
            for digest in memory.held:
                self._held[digest] = [item for item in self._held[digest] if item[0] != step]
                if not self._held[digest]:
                    del self._held[digest]
            self._expect_no_more(step, set(self._expected))
            for used in memory.all():
                used.retired = True
                self._give_back(used)

    def close(self) -> None:
        """Forget everything. What a stream still uses goes with its end."""
        self._closed = True
        self.retire(2**62)
        self._pool.close()

    # --- helpers -----------------------------------------------------------------------------------------

    def _step(self, step: int, parts: int) -> _StepMemory:
        return self._steps.setdefault(step, _StepMemory(parts))

    def _inbox(self, memory: _StepMemory, part: int) -> _Memory:
        if part not in memory.inboxes:
            start, stop = part_ranges(self._elements, memory.parts)[part]
            memory.inboxes[part] = self._take(memory.parts * (stop - start) * ELEMENT_BYTES)
        return memory.inboxes[part]

    def _aggregate(self, memory: _StepMemory) -> _Memory:
        if memory.aggregate is None:
            memory.aggregate = self._take(self._elements * ELEMENT_BYTES)
        return memory.aggregate

    def _claim(self, memory: _StepMemory, part: int, claim: object) -> Place:
        """The place of an aggregate in the averaged gradient: of the first that claims it. Of one part there may be
        more, when a later view proposes another cut; those lie beside it, so that none overwrites another."""
        start, stop = part_ranges(self._elements, memory.parts)[part]
        begin, nbytes = start * ELEMENT_BYTES, (stop - start) * ELEMENT_BYTES
        if memory.claims.setdefault(part, claim) == claim:
            return Place(self._aggregate(memory), begin, nbytes)
        return self._beside(memory, nbytes)

    def _beside(self, memory: _StepMemory, nbytes: int) -> Place:
        return Place(self._take_beside(memory, nbytes), 0, nbytes)

    def _take_beside(self, memory: _StepMemory, nbytes: int) -> _Memory:
        memory.beside.append(self._take(nbytes))
        return memory.beside[-1]

    def _take(self, nbytes: int) -> _Memory:
        return _Memory(self._pool.take(nbytes))

    @contextlib.contextmanager
    def _used(self, memory: _Memory) -> Iterator[None]:
        memory.users += 1
        try:
            yield
        finally:
            memory.users -= 1
            self._give_back(memory)

    def _give_back(self, memory: _Memory) -> None:
        if not memory.retired or memory.users:
            return
        if self._closed:
            memory.segment.close()
        else:
            self._pool.release(memory.segment)

    def _is_new(self, step: int, digest: Digest, nbytes: int) -> bool:
        """Whether bytes need a place in a step. Of places of one size the first is enough. There may be another of
        another size, since anybody can say that a part of its own has the digest of somebody else's; only the true one
        can ever be filled."""
        known = ((known_step, place.nbytes) for known_step, place in self._expected.get(digest, ()))
        return not self._holds_in(step, digest) and (step, nbytes) not in known

    def _expect(self, step: int, digest: Digest, place: Place) -> None:
        self._expected.setdefault(digest, []).append((step, place))
        self._notify()

    def _expect_no_more(self, step: int, digests: set[Digest]) -> None:
        for digest in digests & set(self._expected):
            self._expected[digest] = [item for item in self._expected[digest] if item[0] != step]
            if not self._expected[digest]:
                del self._expected[digest]
                self._authors.pop(digest, None)

    def _note_author(self, digest: Digest, author: PeerId | None) -> None:
        if author is not None and digest in self._expected:
            self._authors.setdefault(digest, set()).add(author)

    def _place(self, digest: Digest, nbytes: int) -> Place | None:
        return next((place for _, place in self._expected.get(digest, ()) if place.nbytes == nbytes), None)

    def _find(self, digest: Digest) -> Place | None:
        return self.place_of(digest) if digest in self._held else None

    def _holds_in(self, step: int, digest: Digest) -> bool:
        return step in self._steps and digest in self._steps[step].held

    def _hold(self, step: int, digest: Digest, place: Place) -> None:
        self._held.setdefault(digest, []).append((step, place))
        self._steps[step].held.add(digest)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
