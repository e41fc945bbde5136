"""Names: peer ids hold keys, digests of different kinds of things never meet."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import (
    PEER_ID_BYTES,
    PeerId,
    blob_digest,
    digest,
    digest_text,
    peer_from_text,
    peer_id_from_public_key,
    peer_text,
    public_key_of,
    short,
)
from tests.protocol.builders import refused


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_key_and_survives_its_text(key: bytes) -> None:
    peer = peer_id_from_public_key(key)
    assert (len(peer), public_key_of(peer)) == (PEER_ID_BYTES, key)
    assert peer_text(peer).startswith("12D3KooW")
    assert peer_from_text(peer_text(peer)) == peer
    assert peer_text(peer).endswith(short(peer))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_our_own_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_from_public_key(bytes(length))


@pytest.mark.parametrize("peer", [b"", bytes(38), b"\x00\x24\x08\x01\x12\x20" + bytes(31), b"\x12\x20" + bytes(32)])
def test_other_kinds_of_peer_ids_are_refused(peer: bytes) -> None:
    refused(lambda: public_key_of(PeerId(peer)), Code.MALFORMED)
    refused(lambda: peer_from_text(base58.b58encode(peer).decode()), Code.MALFORMED)


@pytest.mark.parametrize("text", ["", "0OIl", "12D3KooW", "ä" * 20, "1" * 65, "12D3KooW " + "a" * 40, "1" * 64])
def test_text_that_is_no_peer_id_is_refused(text: str) -> None:
    refused(lambda: peer_from_text(text), Code.MALFORMED)


@given(st.text(max_size=80))
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    refused(lambda: peer_from_text(text), Code.MALFORMED)


def test_digests_of_different_kinds_of_things_differ() -> None:
    assert len({digest(context, b"same") for context in ("blob", "payload", "header", "blob ", "")}) == 5
    assert blob_digest(memoryview(b"same")) == digest("blob", b"same")
    assert digest_text(blob_digest(b"")).startswith("b3:")
