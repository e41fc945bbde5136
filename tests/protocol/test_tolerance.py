"""Comparing work where machines differ: a cheat is far, honest work is near, and what is not seen convicts nobody."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.manifest import AuditSection, Manifest, decode_manifest, encode_manifest
from crowdsurf.protocol.tolerance import (
    ACCUSING,
    SKETCH_DIRECTIONS,
    SKETCH_TAIL,
    Compared,
    Gap,
    as_it_should_be,
    gap_between,
    is_worth_accusing,
    pack_sketch,
    relative_bound,
    sketch_seed,
    sketches_apart,
)
from tests.protocol.swarm import FakeSigner, manifest_for

BOUND = 1e-3
NAMES = [bytes([number]) * 32 for number in range(64)]

numbers = st.floats(min_value=-1e3, max_value=1e3, width=32)
vectors = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6)
"""What was recomputed, what was committed to, and what else there might be, number by number; a part each."""


def compare(own: list[float], said: list[float], hidden: frozenset[int] = frozenset()) -> Gap:
    """Every number is a part."""
    return gap_between(
        NAMES[: len(said)],
        [abs(number) for number in said],
        [NAMES[part] if own[part] == said[part] else NAMES[part + 32] for part in range(len(own))],
        [abs(number) for number in own],
        [
            None if part in hidden else Compared(abs(one - other), abs(other))
            for part, (one, other) in enumerate(zip(own, said, strict=True))
        ],
    )


@given(vectors)
def test_the_gap_is_the_relative_distance_of_the_whole_vectors(drawn: list[tuple[float, float, float]]) -> None:
    own, said, _ = (list(column) for column in zip(*drawn, strict=True))
    gap = compare(own, said)
    length = math.dist(own, [0.0] * len(own))
    distance = math.dist(own, said)
    assert gap.is_whole
    if length:
        assert gap.at_least == pytest.approx(distance / length)
    else:
        assert gap.at_least == (math.inf if distance else 0.0)


@given(vectors, st.frozensets(st.integers(0, 5)))
def test_what_is_not_seen_never_makes_the_distance_larger(
    drawn: list[tuple[float, float, float]], hidden: frozenset[int]
) -> None:
    own, said, _ = (list(column) for column in zip(*drawn, strict=True))
    whole, seen = compare(own, said), compare(own, said, hidden)
    assert seen.at_least <= whole.at_least * (1 + 1e-9)
    differing = {part for part in range(len(own)) if own[part] != said[part]}
    assert seen.is_whole == (not hidden & differing)
    if as_it_should_be(seen, BOUND) is False:
        assert as_it_should_be(whole, BOUND / (1 + 1e-6)) is False


@given(vectors, st.floats(min_value=1e-6, max_value=0.1))
def test_an_honest_accuser_is_never_found_wrong_by_machines_within_the_bound(
    drawn: list[tuple[float, float, float]], bound: float
) -> None:
    """Two honest machines differ by less than the bound: whatever one accuses, the other one convicts."""
    own, said, noise = (list(column) for column in zip(*drawn, strict=True))
    length = math.hypot(*own)
    if not length:
        return
    step = 0.4 * bound * length / max(1.0, math.hypot(*noise))
    judged = [number + step * other for number, other in zip(own, noise, strict=True)]
    if is_worth_accusing(compare(own, said), bound):
        assert as_it_should_be(compare(judged, said), bound) is False


def test_between_the_bound_and_what_is_accused_nobody_is_accused() -> None:
    between = Gap(1.5 * BOUND, is_whole=True)
    assert ACCUSING == 2.0
    assert not is_worth_accusing(between, BOUND)
    assert is_worth_accusing(Gap(2.1 * BOUND, is_whole=False), BOUND)


def test_who_accuses_falsely_is_known_only_if_everything_was_seen() -> None:
    assert as_it_should_be(Gap(0.5 * BOUND, is_whole=True), BOUND) is True
    assert as_it_should_be(Gap(0.5 * BOUND, is_whole=False), BOUND) is None
    assert as_it_should_be(Gap(1.1 * BOUND, is_whole=False), BOUND) is False


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_infinitely_far(wrong: float) -> None:
    gap = gap_between(NAMES[:1], [1.0], NAMES[1:2], [1.0], [Compared(wrong, wrong)])
    assert gap.at_least == math.inf
    unchecked = gap_between(NAMES[:1], [], NAMES[1:2], [1.0], [Compared(wrong, wrong)])
    assert unchecked.at_least == math.inf


def test_a_lie_about_the_length_of_ones_bytes_is_infinitely_far() -> None:
    seen = [Compared(1e-7, 1.0)]
    assert gap_between(NAMES[:1], [1.0 + 1e-8], NAMES[1:2], [1.0], seen).at_least == math.inf
    assert gap_between(NAMES[:1], [1.0 + 1e-11], NAMES[1:2], [1.0], seen).at_least < 1e-6
    same = gap_between(NAMES[:1], [1.1], NAMES[:1], [1.0], [])
    assert same.at_least == math.inf  # the very bytes, and another length


@pytest.mark.parametrize("claimed", [2.0, 1e200, math.inf])
def test_of_bytes_that_are_kept_back_the_length_must_still_be_right(claimed: float) -> None:
    assert gap_between(NAMES[:1], [claimed], NAMES[1:2], [1.0], [None]).at_least >= 1.0
    assert gap_between(NAMES[:1], [1.0 + 1e-7], NAMES[1:2], [1.0], []).at_least < 1e-6


def test_without_anything_to_compare_with_nothing_is_found() -> None:
    assert gap_between(NAMES[:2], [1.0, 1.0], (), (), ()) == Gap(0.0, is_whole=False)


# --- sketches --------------------------------------------------------------------------------------------

sketches = st.lists(st.floats(-9, 9, width=32), min_size=SKETCH_DIRECTIONS, max_size=SKETCH_DIRECTIONS)


@given(sketches, sketches)
def test_sketches_are_as_far_apart_as_their_numbers(one: list[float], other: list[float]) -> None:
    apart = sketches_apart(pack_sketch(one), pack_sketch(other))
    mean_square = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / SKETCH_DIRECTIONS
    assert apart == pytest.approx(math.sqrt(mean_square) / SKETCH_TAIL)


@given(st.binary(max_size=40))
def test_any_bytes_of_a_stranger_have_a_distance(said: bytes) -> None:
    assert sketches_apart(said, pack_sketch([0.0] * SKETCH_DIRECTIONS)) >= 0.0


def test_what_is_no_sketch_is_infinitely_far() -> None:
    own = pack_sketch([1.0] * SKETCH_DIRECTIONS)
    assert sketches_apart(b"", own) == math.inf
    assert sketches_apart(struct.pack("<8f", *[math.nan] * SKETCH_DIRECTIONS), own) == math.inf
    assert sketches_apart(struct.pack("<8f", *[math.inf] * SKETCH_DIRECTIONS), own) == math.inf


def test_every_validator_has_directions_of_its_own() -> None:
    assert sketch_seed(PeerId(b"one")) != sketch_seed(PeerId(b"two"))


# --- the manifest ----------------------------------------------------------------------------------------


def with_audit(audit: AuditSection) -> Manifest:
    return manifest_for([FakeSigner(0)], audit=audit)


def test_a_bound_is_part_of_the_manifest_only_where_it_is_set() -> None:
    exact = with_audit(AuditSection())
    assert relative_bound(exact) is None
    assert b"relative_l2_max" not in encode_manifest(exact)
    tolerant = with_audit(AuditSection(comparison="tolerance", relative_l2_max=BOUND))
    assert relative_bound(decode_manifest(encode_manifest(tolerant))) == BOUND
    prepared = with_audit(AuditSection(relative_l2_max=BOUND))
    assert relative_bound(decode_manifest(encode_manifest(prepared))) is None


def test_tolerance_without_a_bound_is_no_manifest() -> None:
    with pytest.raises(ValueError, match="relative_l2_max"):
        with_audit(AuditSection(comparison="tolerance"))


@pytest.mark.parametrize("bound", [0.0, 0.5, math.nan])
def test_bounds_that_let_everything_pass_or_nothing_are_refused(bound: float) -> None:
    whole = encode_manifest(with_audit(AuditSection(comparison="tolerance", relative_l2_max=BOUND)))
    forged = whole.replace(struct.pack(">d", BOUND), struct.pack(">d", bound))
    with pytest.raises(Refusal):
        decode_manifest(forged)
