"""One answer about the chain is bounded in number and in bytes, and says by its size whether there may be more."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from crowdsurf.protocol import limits
from crowdsurf.protocol.chain_answer import ChainAnswer


def test_an_answer_is_bounded_in_number_and_in_bytes() -> None:
    small, large = ChainAnswer(), ChainAnswer()
    assert [small.takes(100) for _ in range(100)].count(True) == limits.CERTIFICATES_PER_RESPONSE_MAX
    fit = limits.CHAIN_ANSWER_BYTES_MAX // limits.CERTIFICATE_BYTES_MAX
    assert [large.takes(limits.CERTIFICATE_BYTES_MAX) for _ in range(100)].count(True) == fit
    assert small.is_full
    assert large.is_full


def test_the_first_certificate_always_has_a_place() -> None:
    assert ChainAnswer().takes(limits.CERTIFICATE_BYTES_MAX)


sizes = st.lists(st.integers(1, limits.CERTIFICATE_BYTES_MAX), max_size=2 * limits.CERTIFICATES_PER_RESPONSE_MAX)


@given(sizes)
def test_what_has_no_place_is_always_asked_for_again(all_bytes: list[int]) -> None:
    served, heard = ChainAnswer(), ChainAnswer()
    count = 0
    while count < len(all_bytes) and served.takes(all_bytes[count]):
        count += 1
    assert all(heard.takes(nbytes) for nbytes in all_bytes[:count])
    assert heard.nbytes == sum(all_bytes[:count]) <= limits.CHAIN_ANSWER_BYTES_MAX
    assert heard.is_full or count == len(all_bytes)


@given(sizes)
def test_an_answer_that_is_not_full_has_room_for_any_certificate(all_bytes: list[int]) -> None:
    answer = ChainAnswer()
    for nbytes in all_bytes:
        answer.takes(nbytes)
    assert answer.is_full or answer.takes(limits.CERTIFICATE_BYTES_MAX)
