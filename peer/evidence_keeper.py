"""Keeping evidence while the peer runs: at once what convicted somebody, behind the driver the long past it stands on.

The idea: a ban must cost honest members little, since a liar can have as many identities banned as it likes. So the
driver waits for a small file only; one task adds the past, one file after the other. What it does not get to, in a
crash or because too many wait, is on disk nevertheless, and `crowdsurf why --export` adds the past later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from crowdsurf.peer.evidence_store import EvidenceStore
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import WorldError
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import PeerId, short

WAITING_MAX = 2 * limits.BANS_PER_HEADER_MAX
"""Files that wait for their past, two headers full of bans; more stay without."""

log = logging.getLogger(__name__)


class EvidenceKeeper:
    """Saves evidence for a driver. `finish` or `close` it."""

    def __init__(self, store: EvidenceStore) -> None:
        self._store = store
        self._waiting: deque[Evidence] = deque()
        self._task: asyncio.Task[None] | None = None

    async def keep(self, evidence: Evidence) -> None:
        """Save it durably; its past is added later. The journal must have been synced since the ban was certified.

        Raises WorldError if it cannot be saved."""
        if not await asyncio.to_thread(self._store.save, evidence):
            return
        if len(self._waiting) >= WAITING_MAX:
            _say_it_lacks_the_past(evidence, "many were banned at once")
            return
        self._waiting.append(evidence)
        if self._task is None or self._task.done():
            await self.finish()  # nothing to wait for; a bug is not hidden
            self._task = asyncio.create_task(self._add_pasts(), name="adding the past to evidence")

    async def finish(self) -> None:
        """Wait until everything that was saved has its past, or cannot have it."""
        if self._task is not None:
            await asyncio.wait([self._task])  # whoever waits may be cancelled, the task is not
            self._task.result()

    async def close(self) -> None:
        """End with the file that is being written; the others stay without their past."""
        self._waiting.clear()
        await self.finish()

    async def _add_pasts(self) -> None:
        while self._waiting:
            evidence = self._waiting.popleft()
            try:
                if not await asyncio.to_thread(self._store.add_past, evidence):
                    _say_it_lacks_the_past(evidence, "there is no room for it")
            except WorldError as error:
                _say_it_lacks_the_past(evidence, str(error))


def _say_it_lacks_the_past(evidence: Evidence, why: str) -> None:
    peer = short(PeerId(evidence.ban.peer))
    log.info("the evidence against …%s is kept without the steps before the ban: %s", peer, why)
