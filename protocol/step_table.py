"""The phases of a step and every legal move between them, as one table.

The idea: whoever wants to know what can follow what reads this file and nothing else; `step.py` decides *when*
a trigger fires, never where it leads. A trigger that is not listed for a phase does nothing there. SPEC.md §4.
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """Where a peer stands in the current step."""

    WORK = "work"
    """Computing the own work unit."""
    COMMIT = "commit"
    """Own commit is out; collecting the others'."""
    PROPOSE = "propose"
    """Waiting for the view's proposer to propose a cut (or, in later views, an outcome)."""
    EXCHANGE = "exchange"
    """A cut is accepted; collecting the parts this peer aggregates."""
    AGGREGATE = "aggregate"
    """Own parts are being aggregated; collecting every aggregate."""
    REVEAL = "reveal"
    """Own nonce is open; collecting the others'."""
    PROJECT = "project"
    """Collecting what aggregators publish about their aggregates, and working out the own lines; passes at once where
    aggregates are not checked."""
    SIGN = "sign"
    """Waiting for the outcome, then for a quorum of votes."""
    DONE = "done"
    """The step is certified."""


class Trigger(enum.Enum):
    """What moves a peer from one phase to the next."""

    WORK_DONE = "own work unit is computed"
    COMMITS_IN = "every expected commit is here, or the deadline passed with a quorum of them"
    CUT_ACCEPTED = "the view's proposer proposed a cut whose commits are all held"
    PARTS_IN = "every part to aggregate is here, or the deadline passed"
    AGGREGATES_IN = "every aggregate is here, or the deadline passed"
    REVEALS_IN = "every nonce is open, or the deadline passed"
    CHECKS_DONE = "verification has nothing left to ask"
    VIEW_CHANGED = "this peer, or enough others, gave up on the view"
    CERTIFIED = "a quorum signed a header of this step"


TRANSITIONS: dict[Phase, dict[Trigger, Phase]] = {
    Phase.WORK: {
        Trigger.WORK_DONE: Phase.COMMIT,
        Trigger.COMMITS_IN: Phase.PROPOSE,
        Trigger.CUT_ACCEPTED: Phase.EXCHANGE,
    },
    Phase.COMMIT: {
        Trigger.COMMITS_IN: Phase.PROPOSE,
        Trigger.CUT_ACCEPTED: Phase.EXCHANGE,
    },
    Phase.PROPOSE: {Trigger.CUT_ACCEPTED: Phase.EXCHANGE},
    Phase.EXCHANGE: {Trigger.PARTS_IN: Phase.AGGREGATE},
    Phase.AGGREGATE: {Trigger.AGGREGATES_IN: Phase.REVEAL},
    Phase.REVEAL: {Trigger.REVEALS_IN: Phase.PROJECT},
    Phase.PROJECT: {Trigger.CHECKS_DONE: Phase.SIGN},
    Phase.SIGN: {},
    Phase.DONE: {},
}

for _phase in Phase:
    if _phase is not Phase.DONE:
        TRANSITIONS[_phase][Trigger.VIEW_CHANGED] = Phase.PROPOSE
        TRANSITIONS[_phase][Trigger.CERTIFIED] = Phase.DONE


def follow(phase: Phase, trigger: Trigger) -> Phase | None:
    """Where `trigger` leads from `phase`; None where it does nothing."""
    return TRANSITIONS[phase].get(trigger)
