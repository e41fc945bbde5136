"""The valid records of one run, as one directory knows them: bounded, newest only, nothing expired.

The idea: validation and storage are one act, so no directory can hold a record that it did not check. A
record costs a signature check only when it is new: the same bytes again, and anything older than what is
held, are settled before. Pure: the clock, chance and the signature check are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from crowdsurf.dht.records import PeerRecord, Verify, check_claims, check_signature, decode_record
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import Code, MisuseError, Refusal
from crowdsurf.protocol.ids import Digest, PeerId

BOOK_BYTES_MAX = 1024 * 1024
"""All records together: they travel in one answer, and hivemind's unary calls end at 2 MiB. A group of 256
with five addresses each needs about 130 KiB."""


class Entry(NamedTuple):
    """A record and the bytes it came in."""

    record: PeerRecord
    data: bytes


class RecordBook:
    """Records of one run by peer.

    When it is full (limits.DHT_RECORDS_PER_KEY_MAX records or BOOK_BYTES_MAX bytes) strangers make room, drawn by
    lot. A crowd of fresh identities can then neither push out those who are at work, nor keep others out: who comes
    again and again, as every peer does, is in the book again and again. By lot, because any order (of expiry, of
    arrival) is one that a crowd can place itself in.
    """

    def __init__(
        self, run_id: Digest, verify: Verify, now: Callable[[], float], chance: Callable[[int], bytes]
    ) -> None:
        """`now` gives wall-clock unix seconds, `chance` as many random bytes as it is asked for."""
        self.run_id = run_id
        self._verify = verify
        self._now = now
        self._chance = chance
        self._own: set[bytes] = set()
        self._contacts: Callable[[], Iterable[bytes]] = lambda: ()
        self._entries: dict[bytes, Entry] = {}
        self._bytes = 0
        self._refused: Container[bytes] = frozenset()

    def refuse(self, peers: Container[bytes]) -> None:
        """Neither take nor hold records of whoever is in `peers`, now or later."""
        self._refused = peers

    def keep(self, contacts: Callable[[], Iterable[bytes]]) -> None:
        """Whoever is among `contacts` when somebody needs room is no stranger."""
        self._contacts = contacts

    def keep_own(self, peer: bytes) -> None:
        """This is a peer of ours, and no stranger."""
        self._own.add(peer)

    def offer(self, data: bytes, peer: bytes) -> PeerRecord:
        """Check a record found under the name `peer` and hold it. Offering what is held already is fine.

        Raises Refusal: what `check_record` raises, BANNED, STALE if a newer one is held, QUEUE_FULL if it is full of
        those who are no strangers.
        """
        now = self._now()
        self._drop_unwanted(now)
        if peer in self._refused:
            raise Refusal(Code.BANNED, "the record is of a banned peer")
        held = self._entries.get(peer)
        if held is not None and held.data == data:
            return held.record
        record = decode_record(data)
        check_claims(record, self.run_id, now, peer)
        if held is not None and held.record.expires_at >= record.expires_at:
            raise Refusal(Code.STALE, "a record of this peer that expires later is known")
        check_signature(record, self._verify)
        self._make_room(peer, len(data))
        self._remove(peer)
        self._entries[peer] = Entry(record, data)
        self._bytes += len(data)
        return record

    def holds(self, data: bytes, peer: bytes) -> bool:
        """Whether exactly these bytes are the record held for `peer`."""
        entry = self._entries.get(peer)
        return entry is not None and entry.data == data

    def entries(self) -> list[Entry]:
        """Everything that has not expired, sorted by peer."""
        self._drop_unwanted(self._now())
        return [self._entries[peer] for peer in sorted(self._entries)]

    def records(self) -> list[PeerRecord]:
        """The records of `entries`."""
        return [entry.record for entry in self.entries()]

    def get(self, peer: PeerId) -> PeerRecord | None:
        """The record of one peer, if there is one that has not expired."""
        self._drop_unwanted(self._now())
        entry = self._entries.get(peer)
        return entry.record if entry else None

    def _make_room(self, peer: bytes, nbytes: int) -> None:
        """Let strangers go until there is room for a record of `peer` instead of the one that is held, if any. Raises
        Refusal(QUEUE_FULL), and nobody goes, if there are not enough of them."""
        held = self._entries.get(peer)
        records_over = len(self._entries) + (held is None) - limits.DHT_RECORDS_PER_KEY_MAX
        bytes_over = self._bytes + nbytes - (len(held.data) if held else 0) - BOOK_BYTES_MAX
        if records_over <= 0 and bytes_over <= 0:
            return
        known = self._own.union(self._contacts(), (peer,))
        strangers = [other for other in self._entries if other not in known]
        going = []
        while records_over > 0 or bytes_over > 0:
            if not strangers:
                raise Refusal(Code.QUEUE_FULL, "the directory has no room for another peer of this run")
            going.append(strangers.pop(int.from_bytes(self._chance(8), "big") % len(strangers)))
            records_over -= 1
            bytes_over -= len(self._entries[going[-1]].data)
        for other in going:
            self._remove(other)

    def _remove(self, peer: bytes) -> None:
        entry = self._entries.pop(peer, None)
        self._bytes -= len(entry.data) if entry else 0

    def _drop_unwanted(self, now: float) -> None:
        """What has expired, and what is of refused peers."""
        held = self._entries.items()
        for peer in [peer for peer, entry in held if entry.record.expires_at <= now or peer in self._refused]:
            self._remove(peer)


def offer_own(book: RecordBook, data: bytes) -> PeerRecord:
    """Put our own record into the book, however full of strangers it is. Raises MisuseError if it is not valid now."""
    try:
        peer = decode_record(data).peer
        book.keep_own(peer)
        return book.offer(data, peer)
    except Refusal as refusal:
        if refusal.code is Code.STALE:
            # Somebody already handed us a newer record of ours: from before a restart, or from a second process.
            raise MisuseError("a newer record of this peer is known; give this one a later expiry") from refusal
        raise MisuseError(f"this peer's directory record was refused: {refusal}") from refusal
