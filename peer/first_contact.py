"""How a peer learns the certified past before it takes part in the present, from strangers if need be.

The idea: certificates prove themselves, so it does not matter who hands them over. Whom to ask is drawn by lot, and
each of them is followed by itself until it has no more: all of them feed one chain, which grows as fast as the quickest
of them hands over, and none of them waits for another. Only that there is nothing more to learn takes many: it cannot
be proven, and a few strangers could say so. So it takes members enough for an honest one among them, or all. Every
certificate is checked when it arrives; whoever hands over a bad one is not read any further, and not asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from crowdsurf.peer.clock import Clock
from crowdsurf.peer.links import Refuse
from crowdsurf.protocol.errors import Code, Refusal, Unreachable, WorldError
from crowdsurf.protocol.ids import PeerId, short
from crowdsurf.protocol.messages import Certificate
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.roster import enough_for_an_honest_one, quorum_of

CHAIN_ANSWER_SECONDS_MAX = 8.0
"""How long one peer may take to hand over one answer, connecting included and our own checking not."""
BETWEEN_ROUNDS_SECONDS = 0.3
"""From one round of such questions to the next."""
CHAIN_ASKED_AT_ONCE_MAX = 16
"""Peers asked for their certificates at the same time. One honest answer among them is enough."""
CHAIN_ASKED_MEMBERS_MAX = CHAIN_ASKED_AT_ONCE_MAX // 2
"""Of these, peers that we take for members: a newcomer knows only the founders, and they may all be gone."""

log = logging.getLogger(__name__)


class Reader(Protocol):
    """One answer, certificate by certificate; see `fetch.ChainReader`."""

    @property
    def may_be_more(self) -> bool:
        """Once it has been read: whether it ended because it was full."""

    async def next(self) -> Certificate | None:
        """The next one; None at the end. Raises Refusal, WorldError."""


Read = Callable[[PeerId, int], AbstractAsyncContextManager[Reader]]
"""Connects to a peer and asks it for the certificates from a step on. Raises Refusal, WorldError."""
Take = Callable[[PeerId, Certificate], Awaitable[Refusal | None]]
"""Hands a certificate to the rules and keeps it; why it is refused, if it is. Raises WorldError if the disk fails."""


class FirstContact:
    """Follows several peers at once along the chain, until it is known to its end."""

    def __init__(
        self,
        node: Node,
        known: Callable[[], Sequence[PeerId]],
        read: Read,
        take: Take,
        refuse: Refuse,
        clock: Clock,
        chance: Callable[[int], bytes],
    ) -> None:
        """`known`: everybody who could be asked. `refuse` hears of every refusal, `chance` gives random bytes."""
        self._node = node
        self._known = known
        self._read = read
        self._take = take
        self._refuse = refuse
        self._clock = clock
        self._chance = chance
        self._asked: dict[PeerId, bool | None] = {}
        """Who was asked since everybody was, and whether it has said that this is all; None if it has not answered
        well."""
        self._refused: set[PeerId] = set()
        """Whose answers were no chain. Nobody asks them again; a round adds a few, and rounds come to an end."""
        self._turn = asyncio.Lock()

    async def run(self, patience_seconds: float) -> None:
        """Learn the past. A founder of a run that has not begun may start without anybody; everyone else needs somebody
        that answers within that time. Raises Unreachable, WorldError."""
        clock, node = self._clock, self._node
        self._asked.clear()
        may_begin = node.is_member and node.chain.head.step == 0
        give_up_at = clock.monotonic_seconds() + (0.0 if may_begin else patience_seconds)
        while not await self.round():
            alone = node.chain.head.roster.peers == (node.me,)
            if alone or clock.monotonic_seconds() >= give_up_at:
                if node.is_member or self._has_heard:
                    return
                raise Unreachable(
                    "nobody of this swarm answers; check the network, and that the swarm is still running"
                )
            await asyncio.sleep(BETWEEN_ROUNDS_SECONDS)

    async def round(self) -> bool:
        """Ask several and hear each of them to its end; whether that is all there is to learn.

        That there is nothing more to know is believed of an honest member, or once everybody was asked: else a few
        strangers could say so, again and again, or hand over an old beginning, and nobody else would ever be heard.
        Raises WorldError if what was learned cannot be kept.
        """
        if not self._unasked():
            self._asked.clear()  # nobody has answered, else we would be done: perhaps somebody does now
        drawn = draw(self._unasked(), set(self._node.contacts()), self._chance)
        self._asked.update(dict.fromkeys(drawn))
        try:
            async with asyncio.TaskGroup() as group:
                for peer in drawn:
                    group.create_task(self._follow(peer))
        except* _NotKept as failed:
            raise failed.exceptions[0].__cause__ or failed from None
        return self._is_vouched_for() or (self._has_heard and not self._unasked())

    @property
    def _has_heard(self) -> bool:
        """Whether anybody has answered since everybody was asked."""
        return any(said is not None for said in self._asked.values())

    def _is_vouched_for(self) -> bool:
        """Whether so many members of the newest step known here have said that this is all that one of them is honest.
        That nothing has happened at all founders may think that have lost everything."""
        node = self._node
        roster, quorum = node.chain.head.roster, node.manifest.quorum
        vouching = sum(1 for peer, said in self._asked.items() if said and peer in roster.indexes)
        return self._step > 0 and vouching >= enough_for_an_honest_one(len(roster), quorum_of(len(roster), quorum))

    @property
    def _step(self) -> int:
        return self._node.chain.head.step

    def _unasked(self) -> list[PeerId]:
        passed_over = {self._node.me, *self._asked, *self._refused}
        return [peer for peer in self._known() if peer not in passed_over]

    async def _follow(self, peer: PeerId) -> None:
        """Take what one peer has, until it says that this is all. Raises _NotKept."""
        try:
            while await self._ask(peer):
                self._asked[peer] = False
            self._asked[peer] = True
        except Refusal as refusal:
            self._refused.add(peer)
            self._refuse(peer, refusal)
        except (WorldError, TimeoutError) as error:
            log.debug("…%s does not answer: %s", short(peer), error)

    async def _ask(self, peer: PeerId) -> bool:
        """One question, from where the chain ends by now; whether this peer may have more. Raises Refusal, WorldError,
        TimeoutError, _NotKept."""
        step, loop = self._step, asyncio.get_running_loop()
        async with asyncio.timeout(CHAIN_ANSWER_SECONDS_MAX) as limit, self._read(peer, step) as reader:
            while (certificate := await reader.next()) is not None:
                if certificate.header.step != step:
                    # Old ones are not checked: without this an answer could consist of them, and never be the last.
                    raise Refusal(Code.UNKNOWN_KIND, f"step {certificate.header.step} where {step} was asked for")
                step += 1
                left_seconds = (limit.when() or 0.0) - loop.time()
                limit.reschedule(None)  # who breaks off between the rules and the journal leaves a gap in it
                await self._take_in_turn(peer, certificate)
                limit.reschedule(loop.time() + left_seconds)
            return reader.may_be_more

    async def _take_in_turn(self, peer: PeerId, certificate: Certificate) -> None:
        """One after the other, and with a pause for everything else: each has up to 256 signatures. Raises Refusal,
        _NotKept."""
        await self._turn.acquire()
        try:
            known = certificate.header.step < self._step
            refusal = None if known else await self._take(peer, certificate)
        except WorldError as error:
            # Nobody else has a turn after this: the next certificate must not be kept without this one.
            raise _NotKept from error
        self._turn.release()
        await asyncio.sleep(0)
        if refusal is not None:
            raise refusal


class _NotKept(Exception):
    """A certificate that our own disk does not take; not to be mistaken for a peer that does not answer."""


def draw(peers: list[PeerId], contacts: set[PeerId], chance: Callable[[int], bytes]) -> list[PeerId]:
    """Whom to ask in one round. By lot: anybody can be in the directory, and choose how its id sorts. Some of our
    contacts first, because who is a member has more to say."""
    drawn = sorted(peers, key=lambda peer: chance(16))
    members = [peer for peer in drawn if peer in contacts][:CHAIN_ASKED_MEMBERS_MAX]
    return (members + [peer for peer in drawn if peer not in members])[:CHAIN_ASKED_AT_ONCE_MAX]
