"""The table of phases: complete, without dead ends, and final where it says so."""

from __future__ import annotations

import pytest

from crowdsurf.protocol.step_table import TRANSITIONS, Phase, Trigger, follow

ORDER = list(Phase)


def reachable(start: Phase) -> set[Phase]:
    found, new = {start}, [start]
    while new:
        targets = set(TRANSITIONS[new.pop()].values()) - found
        found |= targets
        new += sorted(targets, key=ORDER.index)
    return found


def test_every_phase_has_a_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert reachable(Phase.WORK) == set(Phase)


def test_every_phase_can_end_and_done_is_final() -> None:
    assert all(Phase.DONE in reachable(phase) for phase in Phase)
    assert TRANSITIONS[Phase.DONE] == {}
    assert all(follow(Phase.DONE, trigger) is None for trigger in Trigger)


def test_every_trigger_is_used() -> None:
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.DONE])
def test_certification_ends_any_phase_and_a_view_change_leads_to_a_proposal(phase: Phase) -> None:
    assert follow(phase, Trigger.CERTIFIED) is Phase.DONE
    assert follow(phase, Trigger.VIEW_CHANGED) is Phase.PROPOSE


def test_only_a_view_change_goes_back() -> None:
    for phase, row in TRANSITIONS.items():
        for trigger, target in row.items():
            assert trigger is Trigger.VIEW_CHANGED or ORDER.index(target) > ORDER.index(phase)
