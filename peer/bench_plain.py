"""The baseline of `bench step`: the same all-reduce with nothing around it.

The idea: what a certified step is compared with must differ only in what certifies it. So this uses the same
transport and frames, the same shared memory, the same worker with the same rule and optimizer, and sends the same
bytes between the same peers. It has no message but the parts themselves: no commits, signatures, digests, journal,
certificates, deadlines or saved updates. That a phase is over is known from the data having arrived. It trusts
everybody and survives nothing; it exists to be measured.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence

from crowdsurf.peer.compute.client import ComputeClient, WorkerInfo
from crowdsurf.peer.compute.segments import Segment
from crowdsurf.peer.packets import FrameKind
from crowdsurf.peer.transport import frames
from crowdsurf.peer.transport.base import Stream, Transport
from crowdsurf.protocol.assignment import ELEMENT_BYTES, part_ranges, work_seed
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import Manifest

PLAIN_STREAM = "/crowdsurf/bench/plain"
WORKER_MODULE = "crowdsurf.peer.compute.plain_worker"
"""The worker without digests."""

_PART, _AGGREGATE = 0, 1
_HEAD = struct.Struct(">BQ")
"""What a frame carries (a part, or an aggregate) and of which step; then the raw numbers."""
_SECONDS_MAX = 60.0
"""A step that takes longer than this has failed."""


class PlainReducer:
    """One peer's side. Part j of the vector is aggregated by peer j of `manifest.founders`."""

    def __init__(self, transport: Transport, client: ComputeClient, info: WorkerInfo, manifest: Manifest) -> None:
        self._transport = transport
        self._client = client
        self._rule = manifest.rule
        self._peers = [PeerId(peer) for peer in manifest.founders]
        self._rank = self._peers.index(transport.peer_id)
        ranges = part_ranges(info.vector_elements, len(self._peers))
        self._spans = [(start * ELEMENT_BYTES, stop * ELEMENT_BYTES) for start, stop in ranges]
        start, stop = self._spans[self._rank]
        self._row_bytes = stop - start
        # A peer sends step k + 1 only after it has every aggregate of step k, so one buffer of each kind is enough.
        self._gradient = Segment(info.vector_elements * ELEMENT_BYTES)
        self._aggregate = Segment(info.vector_elements * ELEMENT_BYTES)
        self._inbox = Segment(len(self._peers) * self._row_bytes)
        self._streams: dict[int, Stream] = {}
        self._arrived: dict[tuple[int, int], int] = {}
        self._changed = asyncio.Event()
        self.work_seconds: list[float] = []

    async def start(self) -> None:
        """Accept the others' streams."""
        await self._transport.serve(PLAIN_STREAM, self._serve)

    async def connect(self, addresses: Mapping[PeerId, Sequence[str]]) -> None:
        """Open a stream to everybody else, who must have started. Raises WorldError."""
        for rank, peer in enumerate(self._peers):
            if rank != self._rank:
                await self._transport.connect(peer, addresses.get(peer, ()))
                self._streams[rank] = await self._transport.open(peer, PLAIN_STREAM, 10.0)

    def close(self) -> None:
        """End the streams and give the memory back."""
        for stream in self._streams.values():
            stream.abort()
        for segment in (self._gradient, self._aggregate, self._inbox):
            segment.close()

    async def step(self, number: int) -> None:
        """One whole step, counted from 1. Raises WorldError when a peer is gone, TimeoutError when one hangs."""
        now = asyncio.get_running_loop().time
        async with asyncio.timeout(_SECONDS_MAX):
            began = now()
            seed = work_seed(number.to_bytes(32, "big"), self._transport.peer_id)
            await self._client.work(seed, [], self._gradient)
            self.work_seconds.append(now() - began)
            aggregated = asyncio.Event()
            async with asyncio.TaskGroup() as sending:
                for rank in self._streams:
                    sending.create_task(self._send_both(rank, number, aggregated))
                await self._aggregate_own(number)
                aggregated.set()
                await self._wait(_AGGREGATE, number)
                await self._client.apply(self._aggregate)

    async def _send_both(self, rank: int, number: int, aggregated: asyncio.Event) -> None:
        """A peer's part of our gradient, then our aggregate."""
        await self._send(rank, _PART, number, self._gradient, rank)
        await aggregated.wait()
        await self._send(rank, _AGGREGATE, number, self._aggregate, self._rank)

    async def _send(self, to: int, what: int, number: int, segment: Segment, part: int) -> None:
        start, stop = self._spans[part]
        await frames.send_frame(self._streams[to], FrameKind.BLOB, _HEAD.pack(what, number), segment.view[start:stop])

    async def _aggregate_own(self, number: int) -> None:
        start, stop = self._spans[self._rank]
        own = self._rank * self._row_bytes
        self._inbox.view[own : own + self._row_bytes] = self._gradient.view[start:stop]
        await self._wait(_PART, number)
        rows = [rank * self._row_bytes for rank in range(len(self._peers))]
        elements = self._row_bytes // ELEMENT_BYTES
        rule = self._rule
        await self._client.aggregate(rule.name, rule.parameters, self._inbox, rows, elements, self._aggregate, start)

    async def _wait(self, what: int, number: int) -> None:
        """Until everybody else's bytes of this kind and step are here."""
        while any(self._arrived.get((what, rank), 0) < number for rank in self._streams):
            await self._changed.wait()

    async def _serve(self, stream: Stream) -> None:
        """Receive a peer's frames straight into their places."""
        rank = self._peers.index(stream.peer)
        places = {
            _PART: self._inbox.view[rank * self._row_bytes : (rank + 1) * self._row_bytes],
            _AGGREGATE: self._aggregate.view[self._spans[rank][0] : self._spans[rank][1]],
        }
        while True:
            _, length = await frames.receive_header(stream, self._aggregate.nbytes + _HEAD.size)
            head = bytearray(_HEAD.size)
            await frames.receive_payload(stream, memoryview(head))
            what, number = _HEAD.unpack(head)
            if what not in places or length != _HEAD.size + len(places[what]):
                raise Refusal(Code.MALFORMED, "a frame that has no place in the benchmark")
            await frames.receive_payload(stream, places[what])
            self._arrived[what, rank] = number
            self._changed.set()
            self._changed = asyncio.Event()
