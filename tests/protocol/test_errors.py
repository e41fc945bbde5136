"""Refusals: every code says whose fault it may be, and none is a surprise."""

from __future__ import annotations

from crowdsurf.protocol.errors import Code, Refusal, Severity, one_line, printable

IGNORED = {
    *(Code.STALE, Code.FUTURE, Code.DUPLICATE, Code.NOT_MEMBER, Code.LOCKED, Code.QUEUE_FULL, Code.EXPIRED),
    *(Code.UNEXPECTED_BLOB, Code.BANNED),
}


def test_what_a_slow_but_correct_peer_may_cause_is_ignored_and_everything_else_rejected() -> None:
    assert {code for code in Code if Refusal(code, "").severity is Severity.IGNORE} == IGNORED


def test_a_refusal_says_its_code_and_its_reason() -> None:
    assert str(Refusal(Code.BAD_REVEAL, "it is not signed")) == "bad_reveal: it is not signed"
    assert len({code.value for code in Code}) == len(Code)


def test_nothing_in_a_text_for_people_moves_the_cursor_or_hides_what_follows() -> None:
    assert printable("\x1b[2J\x07\x00\x9b\u202e\udc80 plain\ttext\r\n  é 中") == (
        "\\x1b[2J\\x07\\x00\\x9b\\u202e\\udc80 plain\\ttext\\r\n  é 中"
    )
    assert one_line("two\n\n  lines\tand \x1b[0m", 100) == "two lines and \\x1b[0m"
    assert one_line("\x1b" * 1000, 10) == "\\x1b\\x1b\\x"
