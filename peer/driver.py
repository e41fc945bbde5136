"""The driver: feeds events to the rules, carries out their effects in order, arms the next deadline.

The idea: this is the only loop of the daemon, and it decides nothing. Events come from everywhere through one
inbox, in which sources take turns (`turns.py`; whoever posts waits while its own queue is full); what was signed is
made durable before anything else of the same batch is carried out; everything slow runs in tasks the driver owns and
comes back as an event. Strangers are heard last and get a small share of the time, whatever they send.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.bulk import Bulk, check_digest
from crowdsurf.peer.candidates import Begun, Candidates
from crowdsurf.peer.clock import Clock
from crowdsurf.peer.compute.segments import Segment, SegmentPool
from crowdsurf.peer.duties import Duties
from crowdsurf.peer.evidence_keeper import EvidenceKeeper
from crowdsurf.peer.fetch import Fetcher
from crowdsurf.peer.inbox import Inbox
from crowdsurf.peer.journal import Journal
from crowdsurf.peer.links import Links
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.refusal_log import RefusalLog
from crowdsurf.peer.state_store import StateStore
from crowdsurf.peer.turns import Allowance, Batch
from crowdsurf.protocol import effects, events, wire
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import Code, Refusal, Severity, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, digest, short
from crowdsurf.protocol.messages import Want
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.recovery import RecordType, record_of

if TYPE_CHECKING:
    from crowdsurf.peer.rehearsal import LiveBody

STRANGERS_PER_BATCH = 4
"""Events of strangers handled in one batch, after those of everybody else: a millisecond of checking signatures."""
STRANGERS_SHARE = 0.1
"""Of the time: whatever strangers send, and however many they are, they are heard for no more of it than this."""
READING_SECONDS = 0.0003
"""What one event of a stranger costs besides, above all to read its frame from a socket; counted, not measured."""
FETCHES_AT_ONCE_MAX = 16
ASKED_AT_ONCE_MAX = 3
"""Peers asked at the same time for one and the same blob, or for the chain."""
STATES_AT_ONCE_MAX = 2
"""The same for a state, each of which needs memory for a whole one."""
JOURNAL_BYTES_PER_SYNC = 1024 * 1024
"""Appended records, of this call and earlier ones, that are made durable although nothing was signed: the journal takes
only so many at once, and a long past comes in many answers."""
HELD_UP_MAX = 4096
"""Effects that a peer which rehearses an attack holds up at the same time; more than these are carried out at once."""

log = logging.getLogger(__name__)


class Parts:
    """What the driver drives; see each class."""

    def __init__(
        self,
        node: Node,
        journal: Journal,
        links: Links,
        bulk: Bulk,
        fetcher: Fetcher,
        blobs: BlobStore,
        store: StateStore,
        pool: SegmentPool,
        duties: Duties,
        evidence: EvidenceKeeper,
        metrics: Metrics,
        state_bytes: int,
    ) -> None:
        self.node = node
        self.journal = journal
        self.links = links
        self.bulk = bulk
        self.fetcher = fetcher
        self.blobs = blobs
        self.store = store
        self.pool = pool
        self.duties = duties
        self.evidence = evidence
        self.metrics = metrics
        self.state_bytes = state_bytes


class Driver:
    """Runs one node."""

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        self._inbox = inbox
        self._clock = clock
        self._allowance = Allowance(STRANGERS_SHARE)
        self._refusals = {level: RefusalLog() for level in (logging.DEBUG, logging.WARNING)}
        self._fetching = asyncio.Semaphore(FETCHES_AT_ONCE_MAX)
        self._candidates = Candidates(clock)
        self.discloses_inputs = False
        """Whether gradients are shown to those who have to compare them with their own."""
        self.finished = ""
        self.banned = False
        self.on_step: Callable[[effects.StepCertified], None] = lambda story: None
        self.liar: LiveBody | None = None
        """What takes the place of the node's decisions in a peer that misbehaves on purpose."""
        self._held_up = 0

    def bind(self, parts: Parts) -> None:
        """Say what is driven; before anything else."""
        self._parts = parts

    async def run(self) -> str:
        """Drive until the run is over for this peer; why it is. Raises WorldError when the world ends it."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._loop(self._parts)
                self._cancel_all()
        except* _Over:
            pass
        except* WorldError as failed:
            raise failed.exceptions[0] from None
        return self.finished

    async def _loop(self, parts: Parts) -> None:
        node = parts.node
        handle = node.handle if self.liar is None else self.liar.handle
        while not self.finished:
            batch = await self._next_batch(node.next_deadline())
            now = self._clock.monotonic_seconds()
            wanted = [effect for event in batch.events for effect in handle(event, now)]
            with self._paid_by_strangers(batch):
                wanted_by_strangers = [effect for event in batch.of_strangers for effect in handle(event, now)]
            await self.persist(wanted + wanted_by_strangers)
            for effect in wanted:
                await self._carry_out(effect)
            with self._paid_by_strangers(batch):
                for effect in wanted_by_strangers:
                    await self._carry_out(effect)

    async def serve_after_the_end(self, seconds: float) -> None:
        """Keep answering stragglers for a while after the run is over."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    batch = await self._next_batch(None)
                    with self._paid_by_strangers(batch):
                        self._answer_stragglers([*batch.events, *batch.of_strangers])
        except TimeoutError:
            pass

    def _answer_stragglers(self, heard: list[events.Event]) -> None:
        for event in heard:
            for effect in self._parts.node.handle(event, self._clock.monotonic_seconds()):
                if isinstance(effect, effects.SendCertificates):
                    self._send_certificates(self._parts, effect)

    async def _next_batch(self, deadline: float | None) -> Batch:
        """What waits and may be heard now, or a tick when the deadline passes first. Ticks wait for no stranger."""
        await asyncio.sleep(0)  # whatever is on its way into the inbox comes before who has filled it
        while True:
            now = self._clock.monotonic_seconds()
            batch = self._inbox.take(STRANGERS_PER_BATCH if now >= self._allowance.free_at else 0)
            self.charge_strangers(len(batch.of_strangers) * READING_SECONDS)
            if deadline is not None and now >= deadline:
                return batch._replace(events=[*batch.events, events.Tick()])
            if batch.events or batch.of_strangers:
                return batch
            times = [deadline, self._allowance.free_at if self._inbox.strangers_wait else None]
            wake_at = min((time for time in times if time is not None), default=None)
            has_news = await self._inbox.wait(None if wake_at is None else max(0.0, wake_at - now))
            if not has_news and wake_at == deadline:
                return Batch([events.Tick()], [])

    @contextlib.contextmanager
    def _paid_by_strangers(self, batch: Batch) -> Iterator[None]:
        """Take the time that passes from the share of strangers, if there is one in the batch."""
        began = self._clock.monotonic_seconds()
        yield
        if batch.of_strangers:
            self.charge_strangers(self._clock.monotonic_seconds() - began)

    def charge_strangers(self, seconds: float) -> None:
        """Note that strangers have cost some time."""
        self._allowance.spend(seconds, self._clock.monotonic_seconds())

    async def persist(self, wanted: list[Effect]) -> None:
        """SPEC R-2.6: what is signed is durable before it is sent, and what is voted for is kept. Raises WorldError."""
        parts, must_be_durable = self._parts, False
        for effect in wanted:
            record = record_of(effect)
            if isinstance(effect, effects.PersistLock):
                await parts.duties.save_update(effect.header.step, effect.header.parts)
                await asyncio.to_thread(parts.store.save_grounds, effect.grounds)
            elif isinstance(effect, effects.PersistCertificate):
                header = effect.certificate.header
                if not parts.store.is_located(header.step):
                    parts.store.locate(header.step, header.parts)
            elif isinstance(effect, effects.ApplyUpdate):
                # A state on disk must not be newer than the journal.
                must_be_durable |= parts.duties.saves_after(effect.step)
            if record is not None:
                parts.journal.append(*record)
                must_be_durable |= record[0] is not RecordType.CERTIFICATE
            if parts.journal.pending_bytes >= JOURNAL_BYTES_PER_SYNC:
                await asyncio.to_thread(parts.journal.sync)
        if must_be_durable:
            await asyncio.to_thread(parts.journal.sync)

    async def _carry_out(self, effect: Effect) -> None:
        parts = self._parts
        match effect:
            case effects.SendEnvelope():
                data = wire.pack(effect.envelope)
                for peer in effect.to:
                    parts.links.send(peer, FrameKind.ENVELOPE, data)
            case effects.SendCertificates():
                self._send_certificates(parts, effect)
            case effects.SendWant():
                parts.links.send(effect.to, FrameKind.WANT, wire.pack(Want(effect.digests)))
            case effects.ExpectPart():
                parts.blobs.expect_part(effect, self._contributor(effect))
            case effects.ExpectAggregate():
                parts.blobs.expect_aggregate(effect)
            case effects.SendBlob():
                for peer in effect.to:
                    parts.bulk.push(peer, effect.step, effect.digest)
            case effects.FetchBlob():
                self._start(self._fetch_blob(effect))
            case effects.RequestChain():
                self._start(self._request_chain(effect))
            case effects.RequestState():
                self._start(self._request_state(effect))
            case effects.ComputeWork():
                self._start(parts.duties.work(effect))
            case effects.CancelWork():
                parts.duties.cancel()
            case effects.RecomputeWork():
                self._start(self._recompute(effect))
            case effects.ComputeFinding():
                self._start(parts.duties.finding(effect))
            case effects.AggregatePart():
                self._start(parts.duties.aggregate(effect))
            case effects.ProjectPart():
                self._start(parts.duties.project(effect))
            case effects.CheckAggregates():
                self._start(parts.duties.check_aggregates(effect))
            case effects.ApplyUpdate():
                self._start(parts.duties.apply(effect))
            case _:
                await self._tell(effect)

    def _contributor(self, effect: effects.ExpectPart) -> PeerId | None:
        """Whose part it is; None if its step is over."""
        head = self._parts.node.chain.head
        return PeerId(head.roster.peers[effect.member]) if head.step == effect.step else None

    async def _tell(self, effect: Effect) -> None:
        """Effects that are news for people, or for the connections."""
        if isinstance(effect, effects.Refused):
            refusal = Refusal(effect.code, effect.detail)
            self._note(effect.peer, refusal, logging.DEBUG if refusal.severity is Severity.IGNORE else logging.WARNING)
            if effect.costs_stream:
                self._inbox.drop(effect.peer)
                self._parts.links.cut_short(effect.peer)
        elif isinstance(effect, effects.StepCertified):
            self._parts.blobs.keep_inputs_secret(effect.step)
            if self.discloses_inputs:
                self._parts.blobs.disclose_inputs(effect.step - 1)
            self._parts.links.ban([PeerId(ban.peer) for ban in effect.banned])
            self._inbox.reassess()
            self.on_step(effect)
        elif isinstance(effect, effects.RosterChanged):
            await self._parts.links.keep(effect.peers)
            await self._parts.bulk.keep(set(effect.peers))
        elif isinstance(effect, effects.PersistEvidence):
            await self._keep_evidence(effect)
        elif isinstance(effect, effects.Finished):
            self.finished, self.banned = effect.reason, effect.banned

    async def _keep_evidence(self, effect: effects.PersistEvidence) -> None:
        """For people; a peer that has no room for it goes on without."""
        parts = self._parts
        await asyncio.to_thread(parts.journal.sync)  # it quotes the certified steps from there
        try:
            await parts.evidence.keep(effect.evidence)
        except WorldError as error:
            log.warning("the evidence against …%s is not kept: %s", short(PeerId(effect.evidence.ban.peer)), error)

    def _send_certificates(self, parts: Parts, effect: effects.SendCertificates) -> None:
        for certificate in effect.certificates:
            data = wire.pack(certificate)
            for peer in effect.to:
                parts.links.send(peer, FrameKind.CERTIFICATE, data)

    # --- asking others -----------------------------------------------------------------------------------

    async def _fetch_blob(self, effect: effects.FetchBlob) -> None:
        """From our own disk, else from the first candidate that has it."""
        blobs, name = self._parts.blobs, effect.digest

        async def try_blob(peer: PeerId, begun: Begun) -> bool | None:
            try:
                arrived = await self._parts.fetcher.blob(peer, name, blobs, begun)
            except Refusal as refusal:
                self.refuse(peer, refusal)
                arrived = False
            except WorldError:
                arrived = False
            return True if arrived or blobs.holds(name) else None

        async with self._fetching:
            arrived: bool | None = blobs.holds(name) or await self._read_from_disk(name)
            if not arrived:
                arrived = await self._candidates.ask(effect.candidates, try_blob, ASKED_AT_ONCE_MAX)
        await self._inbox.post(events.BlobArrived(name) if arrived else events.BlobFailed(name))

    async def _recompute(self, effect: effects.RecomputeWork) -> None:
        """Get what the work is to be compared with first, as far as it is handed over in time. Every holder has a task
        of its own: liars are in no hurry with what convicts them, and shall hold up nothing but that."""
        blobs, asked = self._parts.blobs, dict[PeerId, list[Digest]]()
        if effect.committed:
            blobs.expect_committed(effect.step, effect.committed)
        for name, holder in zip(effect.committed, effect.holders, strict=False):
            if name and not blobs.holds(Digest(name)):
                asked.setdefault(holder, []).append(Digest(name))
        async with asyncio.TaskGroup() as group:
            for holder, names in asked.items():
                group.create_task(self._get_committed(holder, names, effect.patience_seconds))
        await self._parts.duties.recompute(effect)

    async def _get_committed(self, holder: PeerId, names: list[Digest], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                for name in names:
                    await self._parts.fetcher.blob(holder, name, self._parts.blobs)
        except Refusal as refusal:
            self.refuse(holder, refusal)
        except (WorldError, TimeoutError):
            pass

    async def _read_from_disk(self, name: Digest) -> bool:
        store, blobs = self._parts.store, self._parts.blobs
        nbytes = store.has_part(name)
        if nbytes is None:
            return False
        data = memoryview(bytearray(nbytes))
        if not await asyncio.to_thread(store.read_part, name, data):
            return False
        return await check_digest(data, name) and blobs.put(name, data)

    async def _request_chain(self, effect: effects.RequestChain) -> None:
        """From the peer that says it is ahead; others are asked too if it does not answer, since it could say so time
        and again and be the only one that is asked."""

        async def try_chain(peer: PeerId, begun: Begun) -> events.ChainReceived | None:
            try:
                certificates = await self._parts.fetcher.chain(peer, effect.first_step)
            except Refusal as refusal:
                self.refuse(peer, refusal)
                return None
            except WorldError:
                return None
            return events.ChainReceived(peer, certificates) if certificates else None

        others = [peer for peer in self._parts.node.contacts() if peer != effect.peer]
        first = effect.first_step % max(1, len(others))  # not the same ones each time
        others = self._candidates.late_ones_last(others[first:] + others[:first])
        asked = (effect.peer, *others[: ASKED_AT_ONCE_MAX - 1])
        found = await self._candidates.ask(asked, try_chain, ASKED_AT_ONCE_MAX)
        await self._inbox.post(found or events.ChainFailed(effect.peer))

    async def _request_state(self, effect: effects.RequestState) -> None:
        parts = self._parts
        free = [parts.pool.take(parts.state_bytes)]
        taken = list(free)

        async def try_state(peer: PeerId, begun: Begun) -> tuple[PeerId, int, Segment] | None:
            if not free:
                try:
                    taken.append(parts.pool.take(parts.state_bytes))
                except WorldError as error:
                    log.warning("nobody else is asked for a state meanwhile: %s", error)
                    return None
                free.append(taken[-1])
            segment = free.pop()
            step = await self._try_state(peer, segment.view, begun)
            if step is None:
                free.append(segment)
                return None
            return peer, step, segment

        try:
            found = await self._candidates.ask(effect.candidates, try_state, STATES_AT_ONCE_MAX)
            if found is not None:
                peer, step, segment = found
                digest_ = await parts.duties.load_fetched(step, segment)
                if digest_ is not None:
                    await self._inbox.post(events.StateReady(step, digest_, peer))
                return
        finally:
            for segment in taken:
                parts.pool.release(segment)
        await asyncio.sleep(1.0)  # nobody has one yet: ask again, but not in a tight circle
        await self._inbox.post(events.StateFailed())

    async def _try_state(self, peer: PeerId, view: memoryview, begun: Begun) -> int | None:
        """Get a state that a certificate vouches for; the step it is before."""
        try:
            step = await self._parts.fetcher.state(peer, view, begun)
        except Refusal as refusal:
            self.refuse(peer, refusal)
            return None
        except WorldError:
            return None
        if step is None:
            return None
        head, certificate = self._parts.node.chain.head, self._parts.node.catch_up.certificate(step)
        if certificate is None:
            if step >= head.step:
                # It is ahead of us: with its certificates we shall know what to make of its state, next time.
                await self._request_chain(effects.RequestChain(peer, head.step))
            return None
        if certificate.header.state != await asyncio.to_thread(digest, "state", view):
            self.refuse(peer, Refusal(Code.WRONG_DIGEST, "the state it served is not the certified one"))
            return None
        return step

    def refuse(self, peer: PeerId, refusal: Refusal) -> None:
        """Count and log what a peer sent and nobody wanted."""
        self._note(peer, refusal, logging.WARNING)

    def _note(self, peer: PeerId, refusal: Refusal, level: int) -> None:
        """Count every refusal, and log as many as a log should hold."""
        self._parts.metrics.count_refusal(refusal.code.value)
        if not log.isEnabledFor(level):
            return
        left_out = self._refusals[level].admit(peer, refusal.code, self._clock.monotonic_seconds())
        if left_out is not None:
            log.log(level, "refused from …%s: %s (%s)%s", short(peer), refusal.code.value, refusal.detail, left_out)

    # --- tasks -------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(work)

    def carry_out_later(self, seconds: float, effect: Effect) -> None:
        """Carry out an effect after a while; for a peer that rehearses an attack."""
        self._held_up += 1
        self._start(self._carry_out_after(seconds if self._held_up <= HELD_UP_MAX else 0.0, effect))

    async def _carry_out_after(self, seconds: float, effect: Effect) -> None:
        await asyncio.sleep(seconds)
        self._held_up -= 1
        await self._carry_out(effect)

    def _cancel_all(self) -> None:
        self._group.create_task(_end())


class _Over(Exception):
    """Ends the driver's task group and everything in it."""


async def _end() -> None:
    raise _Over
