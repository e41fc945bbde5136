"""The daemon: one peer, put together and run from its first byte on disk to its last.

The idea: this file is the wiring diagram. It opens what a peer is made of in the order in which things can fail
(key, journal, transport, manifest, worker, directory), hands it to the driver, and takes it apart again in the
opposite order whatever happened. No rule and no format lives here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdsurf.dht.base import Directory
from crowdsurf.peer import packets, status
from crowdsurf.peer.bans import Bans
from crowdsurf.peer.blobs import BlobStore
from crowdsurf.peer.bulk import Bulk
from crowdsurf.peer.clock import Clock, SystemClock
from crowdsurf.peer.compute.client import ComputeClient, WorkerInfo
from crowdsurf.peer.compute.segments import SegmentPool
from crowdsurf.peer.control_socket import ControlSocket
from crowdsurf.peer.discovery import AddressBook, Discovery
from crowdsurf.peer.driver import Driver, Parts
from crowdsurf.peer.duties import Duties
from crowdsurf.peer.evidence_keeper import EvidenceKeeper
from crowdsurf.peer.evidence_store import EvidenceStore
from crowdsurf.peer.fetch import ChainReader, Fetcher, FetchServer
from crowdsurf.peer.first_contact import FirstContact
from crowdsurf.peer.inbox import Inbox
from crowdsurf.peer.journal import Journal, read_journal
from crowdsurf.peer.keys import PeerKey, random_bytes, verify
from crowdsurf.peer.last_known import LastKnownPeers
from crowdsurf.peer.links import Links
from crowdsurf.peer.members import Members
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.state_store import StateStore
from crowdsurf.peer.transport.base import Transport
from crowdsurf.peer.unwelcome import Unwelcome
from crowdsurf.protocol import effects, events, wire
from crowdsurf.protocol.chain_answer import ChainAnswer
from crowdsurf.protocol.envelope import Verify
from crowdsurf.protocol.errors import Refusal, RefusedBySwarm, Unreachable, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_text, short
from crowdsurf.protocol.manifest import Manifest, run_id_of
from crowdsurf.protocol.messages import Certificate, reason_name
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.recovery import certificates_of, recover
from crowdsurf.protocol.tolerance import relative_bound

if TYPE_CHECKING:
    from crowdsurf.peer.rehearsal import Rehearsal

LINGER_SECONDS = 1.5
"""How long a peer that is done keeps answering: a straggler notices within a delivery bound and asks at once."""
STRAGGLER_SECONDS_MAX = 60.0
"""How much longer while others of the run are not done yet: when all who are have gone, nobody is left to tell them
how it ended. A peer whose worker is just starting anew takes some seconds."""
FIRST_CONTACT_SECONDS_MAX = 30.0
COMPANY_SECONDS = 1.0
"""How often a peer that is no member looks whether anybody is still there."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Place:
    """Everything a daemon is given: where it lives and how it reaches others."""

    folder: Path
    """Folder of this run in the peer's home."""
    key: PeerKey
    transport: Transport
    directory: Directory
    bootstrap: tuple[str, ...] = ()
    """Multiaddresses that end in a peer id."""
    device: str = "auto"
    threads: int = 1
    evaluate_steps: int = 0
    clock: Clock = field(default_factory=SystemClock)
    verify: Verify = verify
    random_bytes: Callable[[int], bytes] = random_bytes
    rehearsal: Rehearsal | None = None
    """What this peer is to do wrong, on purpose."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a peer's run ended."""

    peer: str
    reason: str
    certified_steps: int
    state_digest: str | None
    test_loss: float | None
    test_accuracy: float | None
    initial_test_loss: float | None
    initial_test_accuracy: float | None
    part_bytes_sent: int
    control_bytes_sent: int
    banned: list[dict[str, Any]]
    """Peers that were banned from the run so far."""
    steps_here: int
    """Steps certified while this peer ran."""
    seconds: float
    """From the first work unit to the last certificate."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Daemon:
    """One peer of one run. `run` does everything; the rest may be called meanwhile."""

    def __init__(self, manifest: Manifest, place: Place) -> None:
        self.manifest = manifest
        self.metrics = Metrics()
        self.on_step: Callable[[effects.StepCertified], None] = lambda story: None
        self._place = place
        self._inbox = Inbox()
        self._driver = Driver(self._inbox, place.clock)
        self._bans = Bans()
        self._book = AddressBook(self._bans)
        self._node: Node | None = None
        self._links: Links | None = None
        self._duties: Duties | None = None
        self._phase = "starting"
        self._steps_here = 0
        self._began = self._ended = 0.0
        self._losses: dict[int, float] = {}
        self._reading_journal = asyncio.Lock()

    # --- while it runs -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """A snapshot as JSON values; see README."""
        if self._node is None or self._duties is None or self._links is None:
            return {"peer": peer_text(self._place.key.peer_id), "phase": self._phase, "step": None, "member": False}
        found = status.snapshot(self._node, self.metrics, self._duties.evaluation, self._links.connected())
        found["train_loss"] = next(reversed(self._losses.values()), None)
        found["steps_per_second"] = round(self._steps_here / max(1e-9, self._ended - self._began), 3)
        return found

    def ask_to_leave(self) -> None:
        """Begin to leave in order."""
        self._inbox.offer(events.LeaveAsked())

    # --- the whole life ------------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Live. Raises MisuseError, WorldError, Unreachable or RefusedBySwarm, each one plain sentence."""
        place = self._place
        async with contextlib.AsyncExitStack() as stack:
            journal, records = Journal.open(place.folder)
            stack.callback(journal.close)
            if journal.dropped_bytes:
                log.info("the last write of the journal was torn; %d bytes were dropped", journal.dropped_bytes)
            control = ControlSocket(place.folder, self._answer)
            await control.start()
            stack.push_async_callback(control.close)
            recovered = recover(records)
            self._phase = "starting the compute worker"
            client, info = await stack.enter_async_context(_worker(self.manifest, place))
            node = Node(self.manifest, place.key, place.verify, info.vector_elements)
            try:
                node.restore(recovered)
            except Refusal as refusal:
                raise WorldError(
                    f"the journal in {place.folder} holds a step that is not valid ({refusal.detail}); "
                    "keep it for inspection and start with a new home folder"
                ) from refusal
            recovered.certificates = ()  # a long run has many; the rules keep the recent ones
            parts = await self._assemble(stack, node, journal, client, info)
            for header, _ in recovered.locks:
                parts.store.locate(header.step, header.parts)  # kept before the vote for it
            recovered.heard = await asyncio.to_thread(parts.store.grounds)
            await self._live(node, parts)
            await self._settle(parts, node)
            if self._driver.banned:
                raise RefusedBySwarm(_sentence(node))
            return self._outcome(node)

    async def _assemble(
        self, stack: contextlib.AsyncExitStack, node: Node, journal: Journal, client: ComputeClient, info: WorkerInfo
    ) -> Parts:
        """Everything around the node, started. Streams are served from here on."""
        place, run_id = self._place, run_id_of(self.manifest)
        pool = SegmentPool(idle_bytes_max=4 * info.vector_elements * 4 + info.state_bytes)
        blobs = BlobStore(info.vector_elements, pool)
        stack.callback(blobs.close)
        store = StateStore(place.folder, info.vector_elements)
        # The initial state is always at hand, so without a kept one the updates since step 0 are what is needed.
        for certificate in node.catch_up.since(next(iter(store.state_steps()), 0)):
            store.locate(certificate.header.step, certificate.header.parts)
        refuse = self._driver.refuse
        members = Members(node)
        unwelcome = Unwelcome(self._bans, members, place.clock)
        place.transport.refuse(unwelcome)
        place.transport.prefer(members)
        self._inbox.tell_apart(members)
        place.directory.refuse(self._bans)
        links = Links(place.transport, run_id, self._book.of, self._inbox.post, refuse, self.metrics, self._bans)
        links.turn_away, links.charge_strangers = unwelcome.turn_away, self._driver.charge_strangers
        patience = self.manifest.deadlines.transfer_seconds_max
        bulk = Bulk(place.transport, run_id, blobs, self._inbox.post, refuse, self.metrics, patience)
        bulk.post_from = self._inbox.post_from
        duties = Duties(client, info, self.manifest, blobs, store, pool, self._inbox.post, place.evaluate_steps)
        duties.usable = lambda step, digest: _fits_the_chain(node, step, digest)
        server = FetchServer(
            self.manifest, blobs, store, self._certificates, lambda: _certified_state(node, store), refuse, self.metrics
        )
        links.members = bulk.members = server.members = members
        self._node, self._links, self._duties = node, links, duties
        fetcher = Fetcher(place.transport)
        evidence = EvidenceKeeper(EvidenceStore(place.folder, run_id))
        stack.push_async_callback(evidence.close)
        keepers = (blobs, store, pool, duties, evidence)
        parts = Parts(node, journal, links, bulk, fetcher, *keepers, self.metrics, info.state_bytes)
        self._driver.bind(parts)
        self._driver.discloses_inputs = relative_bound(self.manifest) is not None
        if place.rehearsal is not None:
            self._misbehave(place.rehearsal, parts, client, server)
        stack.push_async_callback(links.close)
        links.ban(_banned(node))
        stack.push_async_callback(bulk.close)
        await place.transport.serve(packets.FETCH_STREAM, server.serve)
        await links.start()
        await bulk.start()
        return parts

    def _misbehave(self, rehearsal: Rehearsal, parts: Parts, client: ComputeClient, server: FetchServer) -> None:
        # Imported here: an honest peer has no use for it.
        from crowdsurf.peer.rehearsal import LiveBody

        later = self._driver.carry_out_later
        liar = LiveBody(rehearsal, self._place.key, parts.node, client, parts.blobs, later)
        self._driver.liar = parts.duties.liar = liar
        server.serves_blobs = liar.serves

    async def _live(self, node: Node, parts: Parts) -> None:
        place = self._place
        self._book.add_full(place.bootstrap)
        last_known = LastKnownPeers.open(place.folder / "peers")
        if last_known.warning:
            log.warning("%s", last_known.warning)
        last_known.doubt_steps_after(node.chain.head.step)
        for known in last_known.peers():
            if known.addresses and not self._book.of(PeerId(known.peer)):
                self._book.add(PeerId(known.peer), known.addresses)
        discovery = Discovery(
            place.directory, place.transport, place.key, node.chain.run_id, self._book, last_known, place.clock
        )
        discovery.step, discovery.members = lambda: node.chain.head.step, Members(node)
        self._book.contacts = node.contacts
        place.directory.keep(node.contacts)
        taking_part = asyncio.create_task(self._take_part(node, parts), name="taking part")
        searching = asyncio.create_task(discovery.run(), name="discovery")
        watching = asyncio.create_task(self._watch_for_company(node, parts), name="watch for company")
        tasks = (taking_part, searching, watching)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # all but the first end only by failing
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_part(self, node: Node, parts: Parts) -> None:
        self._phase = "looking for the swarm"
        place = self._place
        first_contact = FirstContact(
            node,
            self._book.peers,
            functools.partial(self._read_chain, parts.fetcher),
            functools.partial(self._take, node, parts),
            self._driver.refuse,
            place.clock,
            place.random_bytes,
        )
        await first_contact.run(FIRST_CONTACT_SECONDS_MAX)
        self._phase = "loading the state"
        await parts.links.keep(node.contacts())
        self._driver.on_step = self._on_step
        self._began = self._ended = self._place.clock.monotonic_seconds()
        self._inbox.reassess()  # the members are known only now
        await self._inbox.post(await parts.duties.load_newest())
        await self._driver.run()

    async def _watch_for_company(self, node: Node, parts: Parts) -> None:
        """A member waits for the others as long as it takes; whom the roster does not name waits for nobody.

        Raises Unreachable.
        """
        alone = 0
        while alone * COMPANY_SECONDS < FIRST_CONTACT_SECONDS_MAX:
            await asyncio.sleep(COMPANY_SECONDS)
            taking_part = self._began > 0.0 and not node.is_member
            alone = alone + 1 if taking_part and not parts.links.connected() else 0
        raise Unreachable("nobody of this swarm answers any more; it may have ended, or the network is down")

    @contextlib.asynccontextmanager
    async def _read_chain(self, fetcher: Fetcher, peer: PeerId, first_step: int) -> AsyncIterator[ChainReader]:
        """Ask a peer for certificates. Raises Refusal, WorldError."""
        await self._place.transport.connect(peer, self._book.of(peer))
        async with fetcher.reading_chain(peer, first_step) as reader:
            yield reader

    async def _take(self, node: Node, parts: Parts, peer: PeerId, certificate: Certificate) -> Refusal | None:
        """Hand a peer's certificate to the rules; why it is refused, if it is. Raises WorldError if the disk fails."""
        wanted = node.handle(events.ChainReceived(peer, (certificate,)), self._place.clock.monotonic_seconds())
        await self._driver.persist(wanted)
        parts.links.ban(_banned(node))
        refused = (effect for effect in wanted if isinstance(effect, effects.Refused))
        return next((Refusal(effect.code, effect.detail) for effect in refused), None)

    async def _settle(self, parts: Parts, node: Node) -> None:
        """After the end: save the model, answer stragglers for a moment, let queued messages go out."""
        self._phase = "finishing"
        if node.catch_up.step is not None:
            await asyncio.to_thread(parts.journal.sync)  # a state on disk must not be newer than the journal
            await parts.duties.save_last(node.catch_up.step, node.catch_up.digest)
        await parts.links.flush(1.0)
        await parts.links.keep(())  # by this the others see that we are done
        give_up_at = self._place.clock.monotonic_seconds() + STRAGGLER_SECONDS_MAX
        await self._driver.serve_after_the_end(LINGER_SECONDS)
        while self._stragglers(node, parts) and self._place.clock.monotonic_seconds() < give_up_at:
            await parts.links.keep(())  # those that answers opened: to whom they lead, we are a straggler meanwhile
            await self._driver.serve_after_the_end(0.2)
        await parts.links.flush(1.0)
        await parts.evidence.finish()

    def _stragglers(self, node: Node, parts: Parts) -> set[PeerId]:
        """Peers of a run that is over which are still at it."""
        if not self.manifest.steps or node.chain.head.step < self.manifest.steps:
            return set()
        return parts.links.listening_to() & {*node.contacts(), *(PeerId(peer) for peer in self.manifest.founders)}

    # --- helpers -------------------------------------------------------------------------------------------

    def _on_step(self, story: effects.StepCertified) -> None:
        self._steps_here += 1
        self._ended = self._place.clock.monotonic_seconds()
        # Contributors say what their loss was; not a number is nothing to show.
        if story.mean_loss is not None and math.isfinite(story.mean_loss):
            self._losses = {story.step: story.mean_loss}
        self.on_step(story)

    async def _certificates(self, first_step: int) -> Sequence[Certificate]:
        """Certified steps from one on, for one answer: from memory, or from the journal when they are older."""
        if self._node is None or first_step >= self._node.chain.head.step:
            return ()
        recent = self._node.catch_up.since(first_step)
        if recent:
            return recent
        async with self._reading_journal:
            return await asyncio.to_thread(_stored_certificates, self._place.folder, first_step)

    def _answer(self, command: str) -> dict[str, Any] | None:
        if command == "status":
            return self.status()
        if command == "leave":
            self.ask_to_leave()
            return {"leaving": True}
        return None

    def _outcome(self, node: Node) -> Outcome:
        duties = self._duties
        evaluation = duties.evaluation if duties is not None else None
        initial = duties.initial_evaluation if duties is not None else None
        return Outcome(
            peer=peer_text(node.me),
            reason=self._driver.finished,
            certified_steps=node.chain.head.step,
            state_digest=digest_text(node.catch_up.digest) if node.catch_up.step is not None else None,
            test_loss=evaluation.test_loss if evaluation is not None else None,
            test_accuracy=evaluation.test_accuracy if evaluation is not None else None,
            initial_test_loss=initial.test_loss if initial is not None else None,
            initial_test_accuracy=initial.test_accuracy if initial is not None else None,
            part_bytes_sent=self.metrics.part_bytes_sent,
            control_bytes_sent=self.metrics.control_bytes_sent,
            banned=status.banned(node.chain),
            steps_here=self._steps_here,
            seconds=self._ended - self._began,
        )


@contextlib.asynccontextmanager
async def _worker(manifest: Manifest, place: Place) -> AsyncIterator[tuple[ComputeClient, WorkerInfo]]:
    client = ComputeClient(place.threads)
    try:
        yield client, await client.start(manifest, place.device)
    finally:
        await client.close()


def _banned(node: Node) -> list[PeerId]:
    """Who is kept out, as far as this peer knows."""
    return [PeerId(peer) for peer in node.chain.head.roster.banned]


def _sentence(node: Node) -> str:
    """What a banned peer is told."""
    step, ban = next((step, ban) for step, ban in reversed(node.chain.bans) if ban.peer == node.me)
    return (
        f"this peer was banned from the run in step {step} for {reason_name(ban.reason)} in step {ban.step}; "
        f"see the evidence with: crowdsurf why {short(node.me)}"
    )


def _stored_certificates(folder: Path, first_step: int) -> list[Certificate]:
    """Certified steps from the journal, as many as one answer holds. Blocks on the disk. Raises WorldError."""
    found, answer = list[Certificate](), ChainAnswer()
    try:
        for certificate in certificates_of(read_journal(folder)):
            if certificate.header.step < first_step:
                continue
            if not answer.takes(len(wire.pack(certificate))):
                break
            found.append(certificate)
    except Refusal as refusal:  # ours, not that of the peer that asked
        raise WorldError(f"the journal in {folder} holds a certificate that cannot be read") from refusal
    return found


def _fits_the_chain(node: Node, step: int, digest: Digest) -> bool:
    """Whether a state on disk can be the one before `step`: not newer than what is certified, nor another one."""
    certificate = node.catch_up.certificate(step)
    return step <= node.chain.head.step and (certificate is None or certificate.header.state == digest)


def _certified_state(node: Node, store: StateStore) -> int | None:
    """The newest state on disk that a certificate vouches for."""
    steps = [step for step in store.state_steps() if node.catch_up.certificate(step) is not None]
    return max(steps, default=None)


async def fetch_manifest(transport: Transport, book: AddressBook, run_id: Digest) -> Manifest:
    """Get the manifest an invite names from whoever answers well first. Raises Unreachable, RefusedBySwarm."""
    problems = []
    refused: Refusal | None = None
    for peer in book.peers():
        try:
            await transport.connect(peer, book.of(peer))
            return await Fetcher(transport).manifest(peer, run_id)
        except Refusal as refusal:
            refused = refusal  # one peer that answers wrongly must not keep us from the others
        except WorldError as error:
            problems.append(str(error))
    if refused is not None:
        raise RefusedBySwarm(f"the swarm answered, but not with its manifest: {refused.detail}") from refused
    raise Unreachable(
        "none of the invite's addresses answers; check the network, and that the organizer's peer is running"
        + (f" ({problems[0]})" if problems else "")
    )
