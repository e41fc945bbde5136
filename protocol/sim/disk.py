"""A simulated peer's disk: what is still there after a crash.

The idea: the journal is written in batches, and only a batch whose `sync` came back is relied on. A crash in
between leaves some of it, torn at any byte: records that were written whole are there, the torn one and all
after it are not (`peer/journal_format.py` tells exactly that from the checksums). States and updates are
written whole or not at all, as the live store does.
"""

from __future__ import annotations

import random

from crowdsurf.protocol import effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Certificate, Envelope
from crowdsurf.protocol.recovery import Recovered, pack_grounds, record_of, recover, unpack_grounds

CHECKPOINT_STEPS = 10
"""A state is kept every so many steps, as in the live daemon."""
STATES_KEPT = 2
UPDATES_KEPT = 2 * CHECKPOINT_STEPS

Persist = effects.PersistSigned | effects.PersistLock | effects.PersistCertificate


class Disk:
    """Journal, states and updates of one peer."""

    def __init__(self) -> None:
        self.certificates: list[Certificate] = []
        """Durable certified steps, the first one of step 0."""
        self.states: dict[int, Digest] = {}
        """States by the step they precede."""
        self.updates: dict[int, tuple[bytes, ...]] = {}
        """What a step changed, by step: the digests of its aggregated parts."""
        self.grounds: tuple[Envelope, ...] = ()
        """What the newest lock follows from."""
        self._durable: list[Persist] = []
        self._pending: list[Persist] = []

    def append(self, effect: Persist) -> None:
        """A record for the next `sync`."""
        self._pending.append(effect)

    def sync(self) -> None:
        """Everything appended is durable."""
        for effect in self._pending:
            self._durable.append(effect)
            if isinstance(effect, effects.PersistCertificate):
                self.certificates.append(effect.certificate)
                # What was signed in a step that is over is of no use any more; `recover` drops it too.
                self._durable = [kept for kept in self._durable if _step_of(kept) > effect.certificate.header.step]
        self._pending = []

    def crash(self, chance: random.Random) -> None:
        """The power goes: of what was not synced, a part that ends at any byte is left."""
        sizes = [len((record_of(effect) or (0, b""))[1]) for effect in self._pending]
        left = chance.randrange(sum(sizes) + 1)
        whole = 0
        while whole < len(sizes) and left >= sizes[whole]:
            left -= sizes[whole]
            whole += 1
        self._pending = self._pending[:whole]
        self.sync()

    def recovered(self) -> Recovered:
        """What a restarted peer reads: the bytes of the journal, parsed by the code that parses the live one."""
        said = [effect for effect in self._durable if not isinstance(effect, effects.PersistCertificate)]
        kept: list[Effect] = [effects.PersistCertificate(certificate) for certificate in self.certificates]
        records = (record_of(effect) for effect in [*kept, *said])
        recovered = recover(record for record in records if record is not None)
        recovered.heard = unpack_grounds(pack_grounds(self.grounds))
        return recovered

    def signed(self) -> set[bytes]:
        """Signatures of the messages of the current step that are durable."""
        return {effect.envelope.signature for effect in self._durable if isinstance(effect, effects.PersistSigned)}

    def save_state(self, step: int, digest: Digest) -> None:
        """Keep the state before a step."""
        self.states[step] = digest
        while len(self.states) > STATES_KEPT:
            del self.states[min(self.states)]

    def save_update(self, step: int, parts: tuple[bytes, ...]) -> None:
        """Keep what a step changes; a later outcome of the same step takes its place."""
        self.updates[step] = parts
        while len(self.updates) > UPDATES_KEPT:
            del self.updates[min(self.updates)]

    def has_part(self, digest: bytes) -> bool:
        """Whether an aggregated part is in a kept update."""
        return any(digest in parts for parts in self.updates.values())


def _step_of(effect: Persist) -> int:
    if isinstance(effect, effects.PersistSigned):
        return effect.envelope.step
    if isinstance(effect, effects.PersistLock):
        return effect.header.step
    return -1
