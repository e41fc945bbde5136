"""Records: one meaning, one byte string; bounds, signatures and times are checked before anything is used."""

from __future__ import annotations

import math
import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.dht import book as book_module
from crowdsurf.dht.book import RecordBook, offer_own
from crowdsurf.dht.records import PeerRecord, check_record, decode_record, sign_record
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Code, MisuseError, Refusal
from crowdsurf.protocol.ids import PeerId, peer_id_from_public_key, peer_text
from tests.dht.conformance import OTHER_RUN, RUN, record_of

KEY = PeerKey(b"k" * 32)
OTHER = PeerKey(b"o" * 32)
NOW = 1_800_000_000.0

component = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
address = st.lists(component.filter(lambda text: text not in ("p2p", "ipfs")), min_size=2, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@given(
    st.lists(address, max_size=limits.ADDRESSES_PER_PEER_MAX),
    st.integers(0, 2**40),
    st.floats(NOW, NOW + 3600, exclude_min=True),
)
def test_round_trip(addresses: list[str], step: int, expires_at: float) -> None:
    data = sign_record(RUN, KEY.peer_id, addresses, step, expires_at, KEY.sign)
    record = check_record(data, RUN, NOW, verify, KEY.peer_id)
    assert (list(record.addresses), record.step, record.expires_at) == (addresses, step, expires_at)
    assert len(data) <= limits.DHT_RECORD_BYTES_MAX


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal):
        check_record(data, RUN, NOW, verify)


@given(st.data())
def test_no_changed_record_passes(data: st.DataObject) -> None:
    sound = record_of(KEY, NOW + 60)
    index = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    changed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refusal):
        check_record(bytes(changed), RUN, NOW, verify)


@pytest.mark.parametrize(
    ("code", "expires_at", "run_id", "place"),
    [
        (Code.EXPIRED, NOW, RUN, KEY.peer_id),
        (Code.FUTURE, NOW + limits.DHT_RECORD_LIFETIME_SECONDS_MAX + 0.5, RUN, KEY.peer_id),
        (Code.WRONG_RUN, NOW + 60, OTHER_RUN, KEY.peer_id),
        (Code.MALFORMED, NOW + 60, RUN, OTHER.peer_id),
    ],
)
def test_claims(code: Code, expires_at: float, run_id: bytes, place: PeerId) -> None:
    data = record_of(KEY, expires_at)
    with pytest.raises(Refusal) as caught:
        check_record(data, run_id, NOW, verify, place)  # type: ignore[arg-type]
    assert caught.value.code is code


def test_signature_of_another_key() -> None:
    data = sign_record(RUN, KEY.peer_id, (), 0, NOW + 60, OTHER.sign)
    with pytest.raises(Refusal) as caught:
        check_record(data, RUN, NOW, verify)
    assert caught.value.code is Code.BAD_SIGNATURE


BAD_ADDRESSES = [
    "",
    "/",
    "ip4/1.2.3.4/tcp/1",
    "/ip4/1.2.3.4//tcp/1",
    "/ip4/1.2.3.4/tcp/1/",
    "/ip4/1.2.3.4/tcp/1\n",
    "/ip4/\x1b[31m/tcp/1",
    "/ip4/1.2.3.4 /tcp/1",
    "/dns4/münchen/tcp/1",
    "/dns4/" + "x" * limits.ADDRESS_BYTES_MAX,
    f"/ip4/1.2.3.4/tcp/1/p2p/{peer_text(OTHER.peer_id)}",
    f"/ip4/1.2.3.4/tcp/1/ipfs/{peer_text(OTHER.peer_id)}",
]


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_bad_addresses_are_misuse_here_and_refused_there(text: str) -> None:
    with pytest.raises(MisuseError):
        record_of(KEY, NOW + 60, addresses=[text])
    fields = msgpack.unpackb(record_of(KEY, NOW + 60))
    fields[2] = [text]
    with pytest.raises(Refusal) as caught:
        decode_record(msgpack.packb(fields))
    assert caught.value.code is Code.MALFORMED


def test_own_name_and_relays_are_fine_at_the_end_of_an_address() -> None:
    own, relay = peer_text(KEY.peer_id), peer_text(OTHER.peer_id)
    addresses = (f"/ip4/192.0.2.1/tcp/1/p2p/{own}", f"/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit/p2p/{own}")
    assert decode_record(record_of(KEY, NOW + 60, addresses=addresses)).addresses == addresses


@pytest.mark.parametrize("expires_at", [math.nan, math.inf, -math.inf])
def test_expiry_must_be_a_number(expires_at: float) -> None:
    with pytest.raises(MisuseError):
        record_of(KEY, expires_at)
    fields = msgpack.unpackb(record_of(KEY, NOW + 60))
    fields[4] = expires_at
    with pytest.raises(Refusal):
        decode_record(msgpack.packb(fields))


def test_too_many_addresses_and_too_many_bytes() -> None:
    with pytest.raises(MisuseError, match="addresses"):
        record_of(KEY, NOW + 60, addresses=["/ip4/192.0.2.1/tcp/1"] * (limits.ADDRESSES_PER_PEER_MAX + 1))
    with pytest.raises(Refusal) as caught:
        decode_record(bytes(limits.DHT_RECORD_BYTES_MAX + 1))
    assert caught.value.code is Code.OVERSIZED


class CountingBook(RecordBook):
    """A book that counts the signature checks it paid for."""

    def __init__(self, clock: ManualClock) -> None:
        self.checks = 0
        super().__init__(RUN, self.count, clock.wall_seconds, random.Random(5).randbytes)

    def count(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Check and count."""
        self.checks += 1
        return verify(peer, message, signature)


def test_only_new_records_cost_a_signature_check() -> None:
    clock = ManualClock()
    book = CountingBook(clock)
    older, newer = record_of(KEY, clock.wall_seconds() + 50), record_of(KEY, clock.wall_seconds() + 60)
    for _ in range(5):
        book.offer(newer, KEY.peer_id)
        with pytest.raises(Refusal, match="later"):
            book.offer(older, KEY.peer_id)
    assert book.checks == 1
    assert book.get(KEY.peer_id) == decode_record(newer)


def test_full_book_refuses_newcomers_and_keeps_who_is_there_if_they_are_no_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "DHT_RECORDS_PER_KEY_MAX", 2)
    clock = ManualClock()
    book = CountingBook(clock)
    book.keep(lambda: [KEY.peer_id])
    third = PeerKey.generate()
    book.offer(record_of(KEY, clock.wall_seconds() + 10), KEY.peer_id)
    offer_own(book, record_of(OTHER, clock.wall_seconds() + 60))
    with pytest.raises(Refusal) as caught:
        book.offer(record_of(third, clock.wall_seconds() + 60), third.peer_id)
    assert caught.value.code is Code.QUEUE_FULL
    book.offer(record_of(OTHER, clock.wall_seconds() + 70), OTHER.peer_id)
    clock.advance(10)
    book.offer(record_of(third, clock.wall_seconds() + 60), third.peer_id)
    assert {record.peer for record in book.records()} == {OTHER.peer_id, third.peer_id}


def test_a_crowd_of_strangers_shuts_nobody_out() -> None:
    """2,048 fresh identities and a book for 1,024: whoever is no stranger stays, and a stranger that comes is taken."""
    clock = ManualClock()
    # What is to be seen is who makes room; signatures are looked at by the other tests.
    book = RecordBook(RUN, lambda *_: True, clock.wall_seconds, random.Random(5).randbytes)
    contact, later = PeerKey(b"c" * 32), PeerKey(b"l" * 32)
    book.keep(lambda: [contact.peer_id])
    soon, late = clock.wall_seconds() + 600, clock.wall_seconds() + limits.DHT_RECORD_LIFETIME_SECONDS_MAX - 1
    book.offer(record_of(contact, soon), contact.peer_id)
    crowd = [
        PeerRecord(RUN, peer_id_from_public_key(number.to_bytes(32, "big")), (), 0, late, bytes(64))
        for number in range(2 * limits.DHT_RECORDS_PER_KEY_MAX)
    ]
    for record in crowd[: len(crowd) // 2]:
        book.offer(wire.pack(record), record.peer)
    offer_own(book, record_of(KEY, soon))
    book.offer(record_of(later, soon), later.peer_id)
    assert {KEY.peer_id, contact.peer_id, later.peer_id} < {record.peer for record in book.records()}
    for record in crowd[len(crowd) // 2 :]:
        book.offer(wire.pack(record), record.peer)
    there = {record.peer for record in book.records()}
    assert {KEY.peer_id, contact.peer_id} < there
    assert len(there) == limits.DHT_RECORDS_PER_KEY_MAX
    # By lot: some of either half.
    assert all(200 < len(there & {record.peer for record in half}) < 900 for half in (crowd[:1024], crowd[1024:]))


def test_book_is_bounded_in_bytes_and_gets_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    book = CountingBook(clock)
    book.keep(lambda: [KEY.peer_id])
    large = record_of(KEY, clock.wall_seconds() + 10, addresses=["/dns4/" + "x" * 200] * 10)
    monkeypatch.setattr(book_module, "BOOK_BYTES_MAX", len(large))
    book.offer(large, KEY.peer_id)
    with pytest.raises(Refusal, match="no room"):
        book.offer(record_of(OTHER, clock.wall_seconds() + 60), OTHER.peer_id)
    book.offer(record_of(KEY, clock.wall_seconds() + 20), KEY.peer_id)
    book.offer(record_of(OTHER, clock.wall_seconds() + 60), OTHER.peer_id)
    assert len(book.entries()) == 2
    book.offer(record_of(KEY, clock.wall_seconds() + 30, addresses=["/dns4/" + "x" * 200] * 10), KEY.peer_id)
    assert [record.peer for record in book.records()] == [KEY.peer_id]  # the stranger has made room


def test_a_banned_peers_record_is_refused_and_the_one_that_is_held_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DHT_RECORDS_PER_KEY_MAX", 1)
    clock = ManualClock()
    book = CountingBook(clock)
    banned: set[bytes] = set()
    book.refuse(banned)
    data = record_of(KEY, clock.wall_seconds() + 60)
    book.offer(data, KEY.peer_id)
    banned.add(KEY.peer_id)
    with pytest.raises(Refusal) as caught:
        book.offer(data, KEY.peer_id)
    assert caught.value.code is Code.BANNED
    assert book.get(KEY.peer_id) is None
    assert not book.holds(data, KEY.peer_id)
    with pytest.raises(Refusal):
        book.offer(record_of(KEY, clock.wall_seconds() + 61), KEY.peer_id)
    assert book.checks == 1  # the signature is not even looked at
    book.offer(record_of(OTHER, clock.wall_seconds() + 60), OTHER.peer_id)  # there is room again
