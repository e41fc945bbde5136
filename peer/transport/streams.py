"""Every open stream of one transport: who may have one, who handles it, who ends it.

The idea: both transports share one table, so that bounds, bans and the ownership of handler tasks are
decided in one place. Whatever happens to a handler, its stream is over when it returns.

Nobody can use up the places of others: whoever has few streams gets another one at the cost of who has many, and
whoever is preferred at the cost of who is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container

from crowdsurf.peer.transport.base import (
    STRANGER_STREAMS_MAX,
    STRANGER_STREAMS_PER_PEER_MAX,
    STREAMS_MAX,
    STREAMS_PER_PEER_MAX,
    Handler,
    Stream,
)
from crowdsurf.protocol.errors import MisuseError, Refusal, WorldError
from crowdsurf.protocol.ids import PeerId, short

_logger = logging.getLogger(__name__)


class StreamTable:
    """Handlers by protocol, refused peers, open streams, and the tasks that serve the inbound ones."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._refused: Container[PeerId] = frozenset()
        self._streams: dict[PeerId, set[Stream]] = {}
        self._preferred: Container[PeerId] | None = None
        self._inbound: dict[PeerId, dict[Stream, asyncio.Task[None]]] = {}
        """Streams that others opened and who serves them, by peer; in the order in which they came."""
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

    def prefer(self, peers: Container[PeerId]) -> None:
        """Keep room for whoever is in `peers`, now or later; until this is called, for everybody."""
        self._preferred = peers

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
        if handler is None or self.refuses(stream.peer) or not self._make_room(stream.peer):
            stream.abort()
            return False
        task = asyncio.create_task(self._serve(handler, stream), name=f"serve {stream.protocol}")
        self._inbound.setdefault(stream.peer, {})[stream] = task
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        task.add_done_callback(lambda _: self._forget_inbound(stream))
        return True

    def _make_room(self, peer: PeerId) -> bool:
        """Whether one more stream of `peer` may be served, if need be in place of one of somebody else."""
        is_stranger, has = self._is_stranger(peer), len(self._inbound.get(peer, ()))
        if has >= (STRANGER_STREAMS_PER_PEER_MAX if is_stranger else STREAMS_PER_PEER_MAX):
            return False
        counts = {other: len(streams) for other, streams in self._inbound.items()}
        of_strangers = {other: count for other, count in counts.items() if self._is_stranger(other)}
        strangers_are_full = is_stranger and sum(of_strangers.values()) >= STRANGER_STREAMS_MAX
        if sum(counts.values()) < STREAMS_MAX and not strangers_are_full:
            return True
        rivals = of_strangers if is_stranger else of_strangers or counts
        most = max(rivals, key=rivals.__getitem__, default=peer)
        is_outranked = self._is_stranger(most) and not is_stranger
        if not is_outranked and counts.get(most, 0) <= has + 1:
            return False
        self._give_up_newest(most)
        return True

    def _is_stranger(self, peer: PeerId) -> bool:
        return self._preferred is not None and peer not in self._preferred

    def _give_up_newest(self, peer: PeerId) -> None:
        """The newest one: of a peer that wants much at once, what it has begun with goes on."""
        stream, task = next(reversed(self._inbound[peer].items()))
        self._forget_inbound(stream)
        stream.abort()
        task.cancel()  # it may wait for something else than its stream

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

    def _forget_inbound(self, stream: Stream) -> None:
        of_peer = self._inbound.get(stream.peer)
        if of_peer is not None:
            of_peer.pop(stream, None)
            if not of_peer:
                del self._inbound[stream.peer]
