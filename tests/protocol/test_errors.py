"""Refusals: every code says whose fault it may be, and none is a surprise."""

from __future__ import annotations

from crowdsurf.protocol.errors import Code, Refusal, Severity

IGNORED = {
    *(Code.STALE, Code.FUTURE, Code.DUPLICATE, Code.NOT_MEMBER, Code.LOCKED, Code.QUEUE_FULL, Code.EXPIRED),
    *(Code.UNEXPECTED_BLOB, Code.BANNED),
}


def test_what_a_slow_but_correct_peer_may_cause_is_ignored_and_everything_else_rejected() -> None:
    assert {code for code in Code if Refusal(code, "").severity is Severity.IGNORE} == IGNORED


def test_a_refusal_says_its_code_and_its_reason() -> None:
    assert str(Refusal(Code.BAD_REVEAL, "it is not signed")) == "bad_reveal: it is not signed"
    assert len({code.value for code in Code}) == len(Code)
