"""Every checker can fail: each planted defect is seen, and the rules as they are set nothing off."""

from __future__ import annotations

import pytest

from crowdsurf.protocol.sim.checkers import all_checkers
from tests.simulation.broken import DEFECTS
from tests.simulation.defect import Defect
from tests.simulation.runs import Setting, fired, run

FAST = (
    "applies_an_update_twice",
    "applies_what_it_lacks",
    "forgets_the_newest_step",
    "believes_certificates",
    "votes_without_examining",
    "takes_any_nonce",
    "syncs_nothing",
    "signs_anew_to_say_it_again",
    "keeps_half_the_evidence",
    "believes_any_proof",
    "keeps_the_cut_to_itself",
    "has_no_patience",
    "confuses_slots",
    "half_is_a_quorum",
    "never_locks",
    "lets_a_proposer_void_work",
    "keeps_all_that_is_early",
    "says_everything_once",
    "forgets_who_wants_to_join",
    "spins",
    "believes_lines",
    "does_not_add_up_lines",
)
"""Every checker at least once, and quickly."""


def missed(planted: Defect) -> set[str]:
    """The checkers that must see a defect and do not, whichever of its seeds is run."""
    left = set(planted.checkers)
    for seed in planted.seeds:
        if left:
            with pytest.MonkeyPatch.context() as patch:
                planted.plant(patch)
                left -= fired(run(planted.setting, seed))
    return left


@pytest.mark.parametrize("name", FAST)
def test_a_planted_defect_is_found(name: str) -> None:
    assert missed(DEFECTS[name]) == set(), DEFECTS[name].sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DEFECTS if name not in FAST])
def test_a_planted_defect_is_found_too(name: str) -> None:
    assert missed(DEFECTS[name]) == set(), DEFECTS[name].sentence


def runs_of(names: list[str], seeds_max: int) -> dict[str, tuple[Setting, int]]:
    """The runs that find some defects, each once, named after one of the defects and the seed."""
    found: dict[tuple[Setting, int], str] = {}
    for name in names:
        for seed in DEFECTS[name].seeds[:seeds_max]:
            found.setdefault((DEFECTS[name].setting, seed), f"{name}-{seed}")
    return {name: run for run, name in found.items()}


FAST_RUNS = runs_of(list(FAST), 1)
SLOW_RUNS = {name: key for name, key in runs_of(list(DEFECTS), 3).items() if key not in FAST_RUNS.values()}


@pytest.mark.parametrize("name", FAST_RUNS)
def test_the_rules_as_they_are_set_nothing_off(name: str) -> None:
    assert run(*FAST_RUNS[name]).violations == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_RUNS)
def test_the_rules_as_they_are_set_nothing_off_either(name: str) -> None:
    assert run(*SLOW_RUNS[name]).violations == []


def test_every_checker_has_a_defect_that_it_must_see() -> None:
    checkers = {checker.name for checker in all_checkers(lambda *_: True)}
    assert set().union(*(DEFECTS[name].checkers for name in FAST)) == checkers


def test_defects_say_what_they_are() -> None:
    assert len(DEFECTS) >= 25
    for planted in DEFECTS.values():
        assert planted.sentence.endswith(".")
        assert planted.checkers
        assert planted.seeds
