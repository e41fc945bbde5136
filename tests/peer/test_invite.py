"""Invites: what goes in comes out, and every other string is refused in one plain sentence."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.peer.invite import (
    INVITE_BYTES_MAX,
    Invite,
    InviteError,
    WrongVersion,
    decode_invite,
    encode_invite,
)
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, digest

KEY = PeerKey(bytes(range(32)))
RUN = Digest(bytes([7]) * 32)
ADDRESSES = ("/ip4/203.0.113.7/tcp/31337/p2p/12D3KooWQk", "/ip6/::1/tcp/1")
TEXT = encode_invite(RUN, ADDRESSES, KEY.peer_id, KEY.sign)

addresses = st.lists(st.from_regex(r"/[!-~]{1,40}", fullmatch=True), min_size=1, max_size=16)


def text_of(fields: list[object]) -> str:
    """An invite with any fields, signed by KEY."""
    signature = KEY.sign(digest("invite", wire.pack(fields)))
    return "crowdsurf1:" + base64.urlsafe_b64encode(wire.pack([*fields, signature])).rstrip(b"=").decode()


@given(run=st.binary(min_size=32, max_size=32), addresses=addresses, seed=st.binary(min_size=32, max_size=32))
def test_round_trip(run: bytes, addresses: list[str], seed: bytes) -> None:
    key = PeerKey(seed)
    text = encode_invite(Digest(run), addresses, key.peer_id, key.sign)
    expected = Invite(run_id=run, addresses=tuple(addresses), organizer=key.peer_id)
    assert decode_invite(text, verify) == expected


def test_the_largest_invite_fits() -> None:
    largest = ["/" + "a" * (limits.ADDRESS_BYTES_MAX - 1)] * limits.ADDRESSES_PER_PEER_MAX
    text = encode_invite(RUN, largest, KEY.peer_id, KEY.sign)
    assert decode_invite(text, verify).addresses == tuple(largest)


@given(position=st.integers(0, len(TEXT) - 1), character=st.characters(max_codepoint=0x2FF))
def test_no_changed_character_passes(position: int, character: str) -> None:
    changed = TEXT[:position] + character + TEXT[position + 1 :]
    if "".join(changed.split()) == TEXT:
        return
    with pytest.raises(InviteError):
        decode_invite(changed, verify)


@given(st.data())
def test_no_changed_byte_passes_and_none_looks_like_another_version(data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TEXT.removeprefix("crowdsurf1:") + "=="))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InviteError, match="damaged") as caught:
        decode_invite("crowdsurf1:" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), verify)
    assert not isinstance(caught.value, WrongVersion)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map("crowdsurf1:".__add__)))
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InviteError):
        decode_invite(text, verify)


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InviteError):
        decode_invite("crowdsurf1:" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), verify)


def test_copying_may_break_lines() -> None:
    assert decode_invite(f"  {TEXT[:40]}\n   {TEXT[40:]}\n", verify).run_id == RUN


@pytest.mark.parametrize("length", [0, 20, len(TEXT) - 1])
def test_a_cut_invite_is_refused(length: int) -> None:
    with pytest.raises(InviteError, match=r"not an invite|damaged"):
        decode_invite(TEXT[:length], verify)


def test_what_is_no_invite_is_called_that() -> None:
    with pytest.raises(InviteError, match="an invite begins with crowdsurf1:"):
        decode_invite("https://example.org", verify)


def test_too_long_text_is_refused_unread() -> None:
    with pytest.raises(InviteError, match="far too long"):
        decode_invite("crowdsurf1:" + "A" * 4 * INVITE_BYTES_MAX, verify)


def test_deeply_nested_bytes_are_refused() -> None:
    raw = b"\x91" * 1000 + b"\x01"
    with pytest.raises(InviteError, match="damaged"):
        decode_invite("crowdsurf1:" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), verify)


@pytest.mark.parametrize("item", [b"\xd4\x05x", b"\x82\x01\x02\xa1a\x03"], ids=["extension", "mixed keys"])
def test_bytes_of_a_kind_that_no_invite_has_are_refused(item: bytes) -> None:
    raw = b"\x94\x01" + item + b"\xc4\x01o" + b"\xc4\x01s"
    with pytest.raises(InviteError, match="damaged"):
        decode_invite("crowdsurf1:" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), verify)


@pytest.mark.parametrize("extra", [[], ["a later field"]])
def test_an_intact_invite_for_another_version_is_called_that(extra: list[object]) -> None:
    text = text_of([7, RUN, list(ADDRESSES), *extra, KEY.peer_id])
    with pytest.raises(WrongVersion, match="protocol version 7; this program speaks 1: update crowdsurf"):
        decode_invite(text, verify)


def test_another_form_is_another_version() -> None:
    with pytest.raises(WrongVersion, match="update crowdsurf"):
        decode_invite(TEXT.replace("crowdsurf1:", "crowdsurf2:"), verify)


@pytest.mark.parametrize(
    "fields",
    [
        [1, RUN[:-1], list(ADDRESSES)],
        [1, RUN, []],
        [1, RUN, ["/a"] * 17],
        [1, RUN, ["no slash"]],
        [1, RUN, ["/newline\n"]],
        [1, RUN, ["/" + "a" * 256]],
        [1, RUN, list(ADDRESSES), "extra"],
        [1],
    ],
)
def test_a_signed_invite_that_makes_no_sense_is_refused(fields: list[object]) -> None:
    with pytest.raises(InviteError, match="makes no sense") as caught:
        decode_invite(text_of([*fields, KEY.peer_id]), verify)
    assert not isinstance(caught.value, WrongVersion)


def test_another_organizers_signature_is_refused() -> None:
    other = PeerKey(bytes(32))
    with pytest.raises(InviteError, match="damaged"):
        decode_invite(encode_invite(RUN, ADDRESSES, KEY.peer_id, other.sign), verify)


@pytest.mark.parametrize("addresses", [[], ["tcp/1"], ["/a"] * 17, ["/" + "a" * 256]])
def test_unusable_addresses_are_our_own_misuse(addresses: list[str]) -> None:
    with pytest.raises(MisuseError, match="an invite needs 1 to 16 addresses"):
        encode_invite(RUN, addresses, KEY.peer_id, KEY.sign)
