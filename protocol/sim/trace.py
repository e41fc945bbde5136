"""The trace of a simulation: a digest over everything that happened, and, when asked for, a file of it.

The idea: equal digests mean equal histories, so a run that is claimed to be reproducible can be checked, and a
change to the rules that should change nothing can be shown to change nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

from crowdsurf.protocol import effects, events
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.evidence import Evidence
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Ban, Kind, reason_name
from crowdsurf.protocol.projection import Line
from crowdsurf.protocol.sim.host import EFFECT_TYPES, Host, Observer

_EVENT_CODES = {
    kind: code
    for code, kind in enumerate(
        (
            events.StateReady,
            events.StateFailed,
            events.StateLost,
            events.EnvelopeReceived,
            events.CertificateReceived,
            events.WantReceived,
            events.ChainReceived,
            events.ChainFailed,
            events.BlobArrived,
            events.BlobFailed,
            events.WorkDone,
            events.WorkFailed,
            events.PartAggregated,
            events.PeerGone,
            events.PeerSeen,
            events.LeaveAsked,
            events.Tick,
            events.WorkRecomputed,
            events.RecomputeFailed,
            events.FindingKnown,
            events.PartProjected,
            events.AggregatesChecked,
        )
    )
}
_KINDS = frozenset(int(kind) for kind in Kind)
_ENTRY = struct.Struct("<dHH")
_AT_ONCE_BYTES = 1 << 16
"""Entries are digested together: an update of a hash costs as much as 300 bytes of it."""


class TraceDigest(Observer):
    """A running digest over (time, host, event, what identifies it) of every event."""

    sees_events = True

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._waiting = bytearray()
        self.events = 0

    def on_event(self, host: Host, event: events.Event) -> None:
        """Take one event into the digest."""
        self.events += 1
        waiting = self._waiting
        waiting += _ENTRY.pack(host.world.timeline.now, host.number, _EVENT_CODES[type(event)])
        if isinstance(event, events.EnvelopeReceived):
            waiting += event.source
            waiting += event.envelope.signature
        elif isinstance(event, events.BlobArrived | events.StateReady | events.PartAggregated):
            waiting += event.digest
        if len(waiting) > _AT_ONCE_BYTES:
            self._flush()

    def on_state(self, host: Host, step: int, digest: Digest) -> None:
        """Take a state into the digest."""
        self._waiting += digest

    def digest(self) -> str:
        """The digest so far."""
        self._flush()
        return "b2:" + self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(self._waiting)
        self._waiting.clear()


class TraceWriter(Observer):
    """One JSON object a line: {"t","host","event"|"effect", fields…}; peers are their numbers."""

    sees_events = True
    sees_effects = tuple(kind for kind in EFFECT_TYPES if kind not in (effects.ExpectPart, effects.ExpectAggregate))

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def on_event(self, host: Host, event: events.Event) -> None:
        """Write what came in."""
        self._line(host, "event", event)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Write what it did."""
        self._line(host, "effect", effect)

    def _line(self, host: Host, what: str, value: Any) -> None:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        plain = {name: _plain(host, item) for name, item in fields.items()}
        head = {"t": round(host.world.timeline.now, 6), "host": host.number, "step": host.step}
        self._write(json.dumps(head | {what: type(value).__name__} | plain, separators=(",", ":")) + "\n")


def _plain(host: Host, value: Any) -> Any:
    """Something JSON can hold, whatever an attacker put into a message: peers by number, messages by kind and slot,
    digests by their first bytes."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        known = host.world.hosts.get(value)  # type: ignore[call-overload]
        return known.number if known is not None else value[:6].hex()
    if isinstance(value, tuple | list):
        return [_plain(host, item) for item in value]
    if isinstance(value, Ban):
        return {"peer": _plain(host, value.peer), "reason": reason_name(value.reason), "step": value.step}
    if isinstance(value, Line):
        return [*value.projections, value.norm]
    if isinstance(value, Evidence):
        return _plain(host, value.ban)
    if hasattr(value, "payload"):
        sender = _plain(host, value.sender)
        kind = Kind(value.kind).name.lower() if value.kind in _KINDS else f"kind {value.kind}"
        return {"kind": kind, "step": value.step, "view": value.view, "sender": sender}
    if hasattr(value, "header"):
        return {"certificate": value.header.step, "votes": len(value.votes)}
    if hasattr(value, "next_roster"):
        return {"header": value.step, "void": sum(1 for part in value.parts if not part)}
    return value
