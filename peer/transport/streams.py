"""Every open stream of one transport: who may have one, who handles it, who ends it.

The idea: both transports share one table, so that bounds, bans and the ownership of handler tasks are
decided in one place. Whatever happens to a handler, its stream is over when it returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Container

from crowdsurf.peer.transport.base import STREAMS_MAX, STREAMS_PER_PEER_MAX, Handler, Stream
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import PeerId, short

_logger = logging.getLogger(__name__)


class StreamTable:
    """Handlers by protocol, refused peers, open streams, and the tasks that serve the inbound ones."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._refused: Container[PeerId] = frozenset()
        self._streams: dict[PeerId, set[Stream]] = {}
        self._inbound: Counter[PeerId] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def register(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` with `handler`. Raises MisuseError if it is served already."""
        if protocol in self._handlers:
            raise MisuseError(f"protocol {protocol} is served already")
        self._handlers[protocol] = handler

    def serves(self, protocol: str) -> bool:
        """Whether somebody registered `protocol`."""
        return protocol in self._handlers

    def refuse(self, peers: Container[PeerId]) -> None:
        """Refuse whoever is in `peers`, now or later. What they have open stays open."""
        self._refused = peers

    def refuses(self, peer: PeerId) -> bool:
        """Whether `peer` gets nothing from us."""
        return peer in self._refused

    def require_welcome(self, peer: PeerId) -> None:
        """Raise WorldError if `peer` is refused."""
        if peer in self._refused:
            raise WorldError(f"peer {short(peer)} is refused here; no stream is opened to it")

    def add(self, stream: Stream) -> None:
        """Remember an open stream; `remove` it when it ends."""
        self._streams.setdefault(stream.peer, set()).add(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream that ended."""
        of_peer = self._streams.get(stream.peer)
        if of_peer is not None:
            of_peer.discard(stream)
            if not of_peer:
                del self._streams[stream.peer]

    def accept(self, stream: Stream) -> bool:
        """Hand an inbound stream (already added) to its handler in a task of its own, or abort it and say no."""
        handler = self._handlers.get(stream.protocol)
        full = self._inbound[stream.peer] >= STREAMS_PER_PEER_MAX or len(self._tasks) >= STREAMS_MAX
        if handler is None or full or self.refuses(stream.peer):
            stream.abort()
            return False
        self._inbound[stream.peer] += 1
        task = asyncio.create_task(self._serve(handler, stream), name=f"serve {stream.protocol}")
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        task.add_done_callback(lambda _: self._count_down(stream))
        return True

    def has_open(self, peer: PeerId) -> bool:
        """Whether a stream with `peer` is open."""
        return peer in self._streams

    def abort_all(self, peer: PeerId, spared: Collection[Stream] = ()) -> None:
        """Abort the streams with `peer`, in both directions, but for those that are `spared`."""
        for stream in list(self._streams.get(peer, ())):
            if stream not in spared:
                stream.abort()

    def abort_everything(self) -> None:
        """Abort every stream with everybody."""
        for peer in list(self._streams):
            self.abort_all(peer)

    async def close(self) -> None:
        """Abort every stream, cancel every handler and wait until all have ended."""
        self.abort_everything()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, handler: Handler, stream: Stream) -> None:
        try:
            await handler(stream)
            await stream.close()
        except (WorldError, Refusal) as error:
            _logger.debug("stream %s of %s ended: %s", stream.protocol, short(stream.peer), error)
        finally:
            stream.abort()

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Neither the peer's fault nor the world's: a bug of ours, to be seen.
            context = {"message": "a stream handler failed", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(context)

    def _count_down(self, stream: Stream) -> None:
        self._inbound[stream.peer] -= 1
        if not self._inbound[stream.peer]:
            del self._inbound[stream.peer]
