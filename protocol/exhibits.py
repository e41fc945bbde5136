"""What has to be seen to compare somebody's work in a run where machines differ, and who may have it.

The idea: a part of a gradient is in two places, with its author and with its aggregator, and later with whoever
has fetched it to accuse. Liars may keep it back, but of two that disagree about it one is honest and shows it.
Validators must not see it before they have committed to what they found. SPEC R-6.15, R-6.16.
"""

from __future__ import annotations

from crowdsurf.protocol import assignment
from crowdsurf.protocol.cases import Record
from crowdsurf.protocol.chain import Audit
from crowdsurf.protocol.effects import RecomputeWork
from crowdsurf.protocol.messages import Commit, Projection, indexes_of
from crowdsurf.protocol.tolerance import COMPARED_STEPS

DISCLOSED_STEPS = 2
"""So many steps later the work of a step is shown: validators have committed in the one between."""


def can_be_compared(step: int, head_step: int, attempts: int) -> bool:
    """Whether work of a step can be compared after so many attempts: at once with what is here, then with what others
    show."""
    return step + (DISCLOSED_STEPS if attempts else 0) <= head_step <= step + COMPARED_STEPS


def comparison(
    record: Record, audit: Audit, attempts: int, patience_seconds: float, projection: Projection | None = None
) -> RecomputeWork | None:
    """The work of an audit again, to be compared with what its target committed to; None where that is not known.
    `record` is that of its step. With a `projection` what matters is one part, and the line about it; without, all of
    them, and all lines.

    The first attempt (0) asks nobody: whoever aggregates has some parts of everybody itself, and a gradient that is
    wrong everywhere is wrong there. Every later one asks somebody else: whoever keeps bytes back shall not hold up what
    others show."""
    said = record.commits.get(audit.target)
    if said is None or not isinstance(said.payload, Commit) or len(said.payload.parts) != audit.parts:
        return None
    names, header = said.payload.parts, record.header
    aggregates: tuple[bytes, ...] = header.parts
    if projection is not None:
        part = projection.part
        names = tuple(name if index == part else b"" for index, name in enumerate(names))
        aggregates = tuple(projection.aggregate if index == part else b"" for index in range(audit.parts))
    peers = record.head.roster.peers
    duties = assignment.aggregators(record.head.beacon, tuple(indexes_of(header.contributors)), len(peers))
    turns = ((peers[index], audit.target, audit.validator) for index in duties)
    if projection is not None:  # one part only: whoever has something to say about it has it
        turns = ((audit.validator, audit.target, peers[index]) for index in duties)
    holders = tuple(turn[(attempts - 1) % len(turn)] for turn in turns) if attempts else ()
    beacon = header.beacon if any(aggregates) else b""
    return RecomputeWork(
        audit.step,
        audit.seed,
        audit.parts,
        audit.state,
        audit.validator,
        aggregates if beacon else (),
        beacon,
        names,
        holders,
        patience_seconds if holders else 0.0,
    )
