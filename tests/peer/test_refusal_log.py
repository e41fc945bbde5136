"""The log of refusals tells who does what, and does not grow with how often it is done."""

from __future__ import annotations

from crowdsurf.peer.refusal_log import LINE_SECONDS, LINES_MAX, PEERS_AND_CODES_MAX, LeftOut, RefusalLog
from crowdsurf.protocol.errors import Code
from crowdsurf.protocol.ids import PeerId

NOTHING = LeftOut(0, 0)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(38, "big"))


def test_a_line_a_minute_for_each_peer_and_code() -> None:
    log = RefusalLog()
    assert log.admit(peer(1), Code.BAD_SIGNATURE, 0.0) == NOTHING
    assert log.admit(peer(1), Code.MALFORMED, 0.0) == NOTHING
    assert log.admit(peer(2), Code.BAD_SIGNATURE, 0.0) == NOTHING
    for second in range(1, 60):
        assert log.admit(peer(1), Code.BAD_SIGNATURE, float(second)) is None
    assert log.admit(peer(1), Code.BAD_SIGNATURE, LINE_SECONDS) == LeftOut(59, 0)
    assert log.admit(peer(1), Code.BAD_SIGNATURE, 3 * LINE_SECONDS) == NOTHING


def test_many_peers_make_no_more_than_so_many_lines_and_none_is_uncounted() -> None:
    log, told, left_out = RefusalLog(), 0, 0
    refusals = 5 * PEERS_AND_CODES_MAX
    for number in range(refusals):
        told += log.admit(peer(number), Code.BAD_SIGNATURE, 0.0) is not None
    assert told == LINES_MAX
    assert len(log) == PEERS_AND_CODES_MAX
    for number in range(refusals - PEERS_AND_CODES_MAX, refusals):
        now = LINE_SECONDS * (1 + number)
        line = log.admit(peer(number), Code.BAD_SIGNATURE, now)
        assert line is not None
        left_out += line.alike + line.others
    assert told + left_out == refusals


def test_what_was_left_out_is_said_in_words() -> None:
    assert str(NOTHING) == ""
    assert str(LeftOut(3, 0)) == "; 3 more like it not told"
    assert str(LeftOut(3, 4)) == "; 3 more like it and 4 of others not told"
