"""The codec: one meaning has one byte string, and no byte string can raise anything but a refusal or take much."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import Certificate, Commit, Envelope, Header, ViewChange, Want
from tests.protocol.builders import refused

SIZE = 64 * 1024


class Sample(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One field of every type the messages use."""

    number: int
    real: float
    raw: bytes
    text: str
    pairs: tuple[tuple[int, bytes], ...]
    optional: bytes | None


class Mapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A map, as the manifest is one."""

    alpha: int
    beta: dict[str, float]


samples = st.builds(
    Sample,
    number=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False),
    raw=st.binary(max_size=300),
    text=st.text(max_size=40),
    pairs=st.lists(st.tuples(st.integers(0, 2**32), st.binary(max_size=40)), max_size=20).map(tuple),
    optional=st.none() | st.binary(max_size=40),
)


@given(samples)
def test_what_is_packed_comes_back(sample: Sample) -> None:
    assert wire.unpack(wire.pack(sample), Sample, SIZE) == sample


@given(st.integers(0, 2**32), st.dictionaries(st.text(max_size=10), st.floats(allow_nan=False), max_size=8))
def test_maps_are_sorted_whatever_the_order_they_were_made_in(alpha: int, beta: dict[str, float]) -> None:
    backwards = dict(reversed(list(beta.items())))
    data = wire.pack(Mapped(alpha, beta))
    assert data == wire.pack(Mapped(alpha, backwards))
    assert wire.unpack(data, Mapped, SIZE).beta == beta


@pytest.mark.parametrize("kind", [Envelope, Certificate, Header, Commit, ViewChange, Want, Manifest, Sample, Mapped])
@settings(max_examples=30)
@given(data=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_a_refusal(kind: type, data: bytes) -> None:
    try:
        value: object = wire.unpack(data, kind, SIZE)
    except Refusal:
        return
    assert wire.pack(value) == data


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=10)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.just(b"")),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=30,
)


@pytest.mark.parametrize("kind", [Envelope, Certificate, Header, Manifest, Sample])
@settings(max_examples=30)
@given(value=plain_values)
def test_well_formed_msgpack_of_the_wrong_shape_is_refused(kind: type, value: Any) -> None:
    data = msgpack.packb(value, use_bin_type=True)
    with pytest.raises(Refusal):
        wire.unpack(data, kind, SIZE)


@given(samples, st.data())
def test_a_flipped_byte_is_refused_or_means_something_else(sample: Sample, draw: st.DataObject) -> None:
    data = bytearray(wire.pack(sample))
    position = draw.draw(st.integers(0, len(data) - 1))
    data[position] ^= draw.draw(st.integers(1, 255))
    try:
        other = wire.unpack(bytes(data), Sample, SIZE)
    except Refusal:
        return
    assert wire.pack(other) == data != wire.pack(sample)


HEAD = b"\x96"  # an array of six
REST = b"\xcb\x00\x00\x00\x00\x00\x00\x00\x00" + b"\xc4\x01r" + b"\xa1t" + b"\x90" + b"\xc0"


def test_the_reference_sample_is_canonical() -> None:
    assert wire.unpack(HEAD + b"\x05" + REST, Sample, SIZE) == Sample(5, 0.0, b"r", "t", (), None)


@pytest.mark.parametrize(
    ("spelling", "data"),
    [
        ("uint8 for a small number", HEAD + b"\xcc\x05" + REST),
        ("uint16 for a small number", HEAD + b"\xcd\x00\x05" + REST),
        ("uint64 for a small number", HEAD + b"\xcf" + bytes(7) + b"\x05" + REST),
        ("int64 for a positive number", HEAD + b"\xd3" + bytes(7) + b"\x05" + REST),
        ("array16 for six elements", b"\xdc\x00\x06\x05" + REST),
        ("array32 for six elements", b"\xdd\x00\x00\x00\x06\x05" + REST),
        ("float32", HEAD + b"\x05\xca" + bytes(4) + REST[9:]),
        ("an integer for a float", HEAD + b"\x05\x00" + REST[9:]),
        ("bin16 for one byte", HEAD + b"\x05" + REST[:9] + b"\xc5\x00\x01r" + REST[12:]),
        ("str8 for one character", HEAD + b"\x05" + REST[:12] + b"\xd9\x01t" + REST[14:]),
    ],
)
def test_another_spelling_of_the_same_meaning_is_refused(spelling: str, data: bytes) -> None:
    refused(lambda: wire.unpack(data, Sample, SIZE), Code.NOT_CANONICAL)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"\x05" + REST[:9] + b"\xa4cmF3" + REST[12:],  # text (base64, too) where bytes belong
        HEAD + b"\x05" + REST[:12] + b"\xc4\x01t" + REST[14:],  # bytes where text belongs
        HEAD + b"\xc3" + REST,  # a boolean where a number belongs
        HEAD + b"\x05" + REST[:14] + b"\x80" + REST[15:],  # a map where an array belongs
        HEAD + b"\x05" + REST[:14] + b"\xc7\x00\x05" + REST[15:],  # an extension type of length nought
    ],
)
def test_another_type_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        wire.unpack(data, Sample, SIZE)
    assert caught.value.code in (Code.MALFORMED, Code.NOT_CANONICAL)


def test_map_order_doubled_keys_and_trailing_bytes_are_refused() -> None:
    good = b"\x82\xa5alpha\x01\xa4beta\x80"
    assert wire.unpack(good, Mapped, SIZE) == Mapped(1, {})
    refused(lambda: wire.unpack(b"\x82\xa4beta\x80\xa5alpha\x01", Mapped, SIZE), Code.NOT_CANONICAL)
    refused(lambda: wire.unpack(b"\x83\xa5alpha\x02\xa5alpha\x01\xa4beta\x80", Mapped, SIZE), Code.NOT_CANONICAL)
    refused(lambda: wire.unpack(b"\x81\xa5alpha\x01", Mapped, SIZE), Code.MALFORMED)
    refused(lambda: wire.unpack(b"\x83\xa5alpha\x01\xa4beta\x80\xa1c\x01", Mapped, SIZE), Code.MALFORMED)
    refused(lambda: wire.unpack(good + b"\xc0", Mapped, SIZE), Code.MALFORMED)
    refused(lambda: wire.unpack(good[:-1], Mapped, SIZE), Code.MALFORMED)
    refused(lambda: wire.unpack(b"", Mapped, SIZE), Code.MALFORMED)


@pytest.mark.parametrize("data", [b"\xa1\xff", b"\xc1", b"\xd6\xff\x00\x00\x00\x00", b"\x81\x01\x01", b"\x81\xc0\x01"])
def test_bad_text_extensions_and_strange_keys_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal):
        wire.unpack(b"\x82\xa5alpha\x01\xa4beta" + data, Mapped, SIZE)


def test_one_byte_too_many_is_oversized() -> None:
    data = wire.pack(Sample(1, 0.0, b"r", "t", (), None))
    assert wire.unpack(data, Sample, len(data)).number == 1
    refused(lambda: wire.unpack(data, Sample, len(data) - 1), Code.OVERSIZED)


@pytest.mark.parametrize(
    "claim",
    [b"\xdc\xff\xff", b"\xdd\x00\x00\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdc\x03\xff", b"\xde\xff\xff", b"\x81\xa1a"],
    ids=["array16", "array32", "array32 huge", "array of 1023", "map16", "maps"],
)
@pytest.mark.parametrize("levels", [1, 1000, 20_000])
def test_nested_bombs_take_little_memory(claim: bytes, levels: int) -> None:
    """A message of the largest size in which every level claims as many elements as it may."""
    data = (claim * levels)[:SIZE].ljust(SIZE, b"\xc0")
    tracemalloc.start()
    try:
        with pytest.raises(Refusal):
            wire.unpack(data, Envelope, limits.ENVELOPE_BYTES_MAX)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024**2


@pytest.mark.parametrize("kind", [Envelope, Certificate, Manifest, list[bytes], tuple[bytes, ...]])
@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\xa0"], ids=["arrays", "maps", "texts"])
def test_what_has_no_place_in_a_type_takes_no_memory(kind: type, item: bytes) -> None:
    """One byte each on the wire, up to 72 in memory."""
    data = b"\xdc\x00\x40" + (b"\xdc\x04\x00" + item * 1024) * 64
    tracemalloc.start()
    try:
        refused(partial(wire.unpack, data, kind, 2 * SIZE), Code.MALFORMED)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < SIZE


def test_long_strings_are_bounded_by_the_message() -> None:
    for head in (b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05"):
        refused(partial(wire.unpack, head + bytes(100), Envelope, SIZE), Code.MALFORMED)


@pytest.mark.parametrize(
    "item",
    [b"\xd4\x05x", b"\x82\x01\x02\xa1a\x03", b"\x82\xc0\x01\xa1a\x03"],
    ids=["extension", "mixed keys", "no key"],
)
def test_what_we_never_write_is_refused_where_a_type_holds_anything(item: bytes) -> None:
    refused(partial(wire.unpack, b"\x92\x01" + item, list, SIZE), Code.MALFORMED)


HIDING = "\x1b]0;title\x07\x1b[2J\u202eEverything holds.\nNo, really."


def test_a_refusal_quotes_names_that_the_sender_chose_short_and_in_visible_characters() -> None:
    for text in (HIDING, HIDING + "A" * 60_000, "\n" * 60_000):
        with pytest.raises(Refusal) as caught:
            wire.unpack(msgpack.packb({text: 1}), Mapped, SIZE * 2)
        assert caught.value.detail.isprintable()
        assert caught.value.detail.startswith("Mapped: Object contains unknown field")
        assert len(caught.value.detail) <= wire.REASON_CHARACTERS_MAX + len("Mapped: ")
