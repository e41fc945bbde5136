"""From any certified past to the present: apply what can be had, ask for a whole state otherwise."""

from __future__ import annotations

import msgspec

from crowdsurf.protocol.assignment import part_bytes
from crowdsurf.protocol.catchup import RECENT_CERTIFICATES, CatchUp
from crowdsurf.protocol.effects import ApplyUpdate, ExpectAggregate, FetchBlob, RequestState
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Certificate
from tests.protocol.builders import CompleteStep
from tests.protocol.swarm import ELEMENTS, name

STEP = CompleteStep(4)
OTHERS = STEP.peers[1:]


def certificate(step: int, void: tuple[int, ...] = ()) -> Certificate:
    """Catch-up checks nothing: only verified certificates reach it."""
    parts = tuple(b"" if part in void else name("part of", step, part) for part in range(4))
    header = msgspec.structs.replace(STEP.header, step=step, state=name("state", step), parts=parts)
    return Certificate(header, STEP.certificate().votes)


def behind(have: int | None, head: int, first: int = 0) -> CatchUp:
    catch_up = CatchUp(ELEMENTS)
    for step in range(first, head):
        catch_up.remember(certificate(step))
    if have is not None:
        assert catch_up.accept_state(have, name("state", have), False, head)
    return catch_up


def first_expectation(step: int) -> ExpectAggregate:
    size = part_bytes(ELEMENTS, 4, 0)
    return ExpectAggregate(step, 0, 4, Digest(certificate(step).header.parts[0]), size)


def test_at_the_head_or_without_a_state_there_is_nothing_to_do() -> None:
    assert behind(3, 3).advance(3, OTHERS) == []
    assert behind(None, 3).advance(3, OTHERS) == []


def test_missing_parts_are_fetched_once_and_then_applied() -> None:
    catch_up = behind(1, 2)
    parts = certificate(1).header.parts
    catch_up.on_blob(parts[2])
    asked = catch_up.advance(2, OTHERS)
    fetched = [effect for effect in asked if isinstance(effect, FetchBlob)]
    assert [effect.digest for effect in fetched] == [parts[part] for part in (0, 1, 3)]
    assert all(set(effect.candidates) == set(OTHERS) for effect in fetched)
    assert asked[0] == first_expectation(1)
    assert catch_up.advance(2, OTHERS) == []
    for part in (0, 1, 3):
        catch_up.on_blob(parts[part])
    assert catch_up.advance(2, OTHERS) == [ApplyUpdate(1, parts)]
    assert catch_up.advance(2, OTHERS) == []


def test_everybody_who_is_behind_asks_another_member_for_each_part() -> None:
    """Seven peers that rested once asked the first member for everything, and it was late with its own work for it."""
    asked = [effect for effect in behind(1, 2).advance(2, OTHERS) if isinstance(effect, FetchBlob)]
    assert {effect.candidates[0] for effect in asked} == set(OTHERS)


def test_void_parts_are_not_fetched() -> None:
    catch_up = CatchUp(ELEMENTS)
    catch_up.remember(certificate(0, void=(0, 1, 2, 3)))
    catch_up.accept_state(0, name("state", 0), False, 1)
    assert catch_up.advance(1, OTHERS) == [ApplyUpdate(0, (b"", b"", b"", b""))]


def test_several_steps_are_applied_one_after_the_other() -> None:
    catch_up = behind(0, 3)
    for step in range(3):
        parts = certificate(step).header.parts
        catch_up.hold({*parts})
        assert catch_up.advance(3, OTHERS) == [ApplyUpdate(step, parts)]
        assert catch_up.accept_state(step + 1, name("state", step + 1), False, 3)
    assert catch_up.advance(3, OTHERS) == []


def test_a_part_that_is_the_same_in_two_steps_is_asked_for_in_both() -> None:
    """The bytes go with the step that they were held for: a layer that has died has the same update in every step."""
    catch_up, parts = CatchUp(ELEMENTS), certificate(0).header.parts
    for step in range(2):
        header = msgspec.structs.replace(certificate(step).header, parts=parts)
        catch_up.remember(Certificate(header, STEP.certificate().votes))
    for step in range(2):
        assert catch_up.accept_state(step, name("state", step), False, 2)
        fetched = [effect.digest for effect in catch_up.advance(2, OTHERS) if isinstance(effect, FetchBlob)]
        assert fetched == list(parts)
        for part in parts:
            catch_up.on_blob(part)
        assert catch_up.advance(2, OTHERS) == [ApplyUpdate(step, parts)]


def test_parts_nobody_has_any_more_mean_a_whole_state() -> None:
    catch_up = behind(1, 4)
    catch_up.advance(4, OTHERS)
    lost = certificate(1).header.parts[0]
    assert catch_up.blob_failed(name("something else"), OTHERS) == []
    assert catch_up.blob_failed(lost, OTHERS) == [RequestState(OTHERS)]
    assert catch_up.blob_failed(lost, OTHERS) == []
    catch_up.state_failed()
    # Nobody had a state either: the parts may have come back meanwhile, so all is tried again.
    assert FetchBlob(OTHERS, Digest(lost)) in catch_up.advance(4, OTHERS)
    (again,) = catch_up.blob_failed(lost, OTHERS)
    assert again == RequestState((*OTHERS[1:], OTHERS[0])), "what the first one has is no help, certified or not"


def test_too_far_behind_or_not_the_certified_state_means_a_whole_state() -> None:
    assert behind(0, 5, first=2).advance(5, OTHERS) == [RequestState(OTHERS)]
    astray = CatchUp(ELEMENTS)
    assert astray.accept_state(1, name("my own"), False, 1)
    astray.remember(certificate(1))
    assert astray.advance(2, OTHERS) == [RequestState(OTHERS)]


def test_a_fetched_state_must_be_certified_and_one_of_ours_not_contradicted() -> None:
    catch_up = behind(None, 5)
    assert not catch_up.accept_state(3, name("forged"), True, 5)
    assert not catch_up.accept_state(5, name("state", 5), True, 5)
    assert not catch_up.accept_state(3, name("astray"), False, 5)
    assert not catch_up.accept_state(6, name("state", 6), False, 5)
    assert catch_up.step is None
    assert catch_up.accept_state(3, name("state", 3), True, 5)
    assert catch_up.advance(4, OTHERS)[0] == first_expectation(3)


def test_a_lost_state_starts_over() -> None:
    catch_up = behind(1, 2)
    catch_up.hold({*certificate(1).header.parts})
    assert catch_up.advance(2, OTHERS)
    catch_up.lose_state()
    assert catch_up.step is None
    assert catch_up.accept_state(1, name("state", 1), False, 2)
    assert catch_up.advance(2, OTHERS)[0] == first_expectation(1), "what was held then may be gone with the worker"


def test_memory_is_bounded_and_answers_have_no_gaps() -> None:
    catch_up = behind(None, RECENT_CERTIFICATES + 10)
    assert catch_up.since(9) == ()
    assert [c.header.step for c in catch_up.since(10)] == list(range(10, RECENT_CERTIFICATES + 10))
    assert catch_up.since(RECENT_CERTIFICATES + 10) == ()
    assert catch_up.certificate(9) is None
