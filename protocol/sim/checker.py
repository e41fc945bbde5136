"""What every checker is: an observer that keeps its own record and reports what breaks a promise."""

from __future__ import annotations

import functools
from typing import ClassVar, NamedTuple

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Envelope, Header, Kind, ViewChange, header_digest
from crowdsurf.protocol.sim.host import Host, Observer


@functools.lru_cache(maxsize=256)
def name_of_header(header: Header) -> Digest:
    """The digest of a header. Every checker asks for those of the newest few, of every host."""
    return header_digest(header)


class Violation(NamedTuple):
    """A promise that was broken."""

    checker: str
    time: float
    """Virtual seconds."""
    host: int
    text: str

    def __str__(self) -> str:
        return f"{self.checker}: t={self.time:.3f} peer {self.host}: {self.text}"


class Checker(Observer):
    """Base of all checkers."""

    name: ClassVar[str]
    VIOLATIONS_MAX: ClassVar[int] = 20
    """Kept of one kind; the first one is what matters."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def report(self, host: Host, text: str) -> None:
        """Note a violation."""
        if len(self.violations) < self.VIOLATIONS_MAX:
            self.violations.append(Violation(self.name, host.world.timeline.now, host.number, text))


def claimed_lock(host: Host, envelope: Envelope) -> tuple[Header, int] | None:
    """The header a host says it is locked on when it asks for a view, and the view it voted for it in."""
    if envelope.kind != Kind.VIEW_CHANGE or envelope.sender != host.id:
        return None
    try:
        change = wire.unpack(envelope.payload, ViewChange, limits.ENVELOPE_BYTES_MAX)
    except Refusal:
        return None  # a liar's; nobody can use it either
    return (change.lock, change.lock_view) if change.lock is not None else None
