"""How a simulated peer gets the bytes that it has to compare recomputed work with.

The idea: as in the live driver, every part is asked for at once, and when all are here, or their holders had their
time, the work is done with what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from crowdsurf.protocol import effects
from crowdsurf.protocol.ids import Digest, PeerId

if TYPE_CHECKING:
    from crowdsurf.protocol.sim.host import Host


class Gathering:
    """What one `RecomputeWork` wants compared; `done` is called once, with the names of what has come."""

    def __init__(
        self,
        host: Host,
        effect: effects.RecomputeWork,
        done: Callable[[effects.RecomputeWork, tuple[bytes, ...]], object],
    ) -> None:
        self._host = host
        self._effect = effect
        self._done = done
        self._is_done = False
        self._open = {part for part, name in enumerate(effect.committed) if name and not host.holds(name)}
        for part in sorted(self._open) if effect.holders else ():
            self._ask(part, effect.holders[part], Digest(effect.committed[part]))
        host.worker.later(effect.patience_seconds if self._open else 0.0, self._finish)

    def _ask(self, part: int, holder: PeerId, name: Digest) -> None:
        self._host.ask(holder, lambda other: other.show_committed(self._host, name, lambda: self._take(part)))

    def _take(self, part: int) -> None:
        if self._host.alive and part in self._open:
            self._host.hold(self._effect.committed[part])
            self._open.discard(part)
            if not self._open:
                self._finish()

    def _finish(self) -> None:
        if not self._is_done:
            self._is_done = True
            names = self._effect.committed
            self._done(self._effect, tuple(name if name and self._host.holds(name) else b"" for name in names))
