"""Adaptive deadlines: wait as long as this swarm usually takes, within the manifest's bounds.

The idea: the median of recent arrivals plus a few median absolute deviations is not moved by a minority of
stragglers (who would otherwise teach everyone patience), and bounds keep it sane at the start and under
attack. SPEC R-4.30.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median_high, median_low

from crowdsurf.protocol.ids import PeerId
from crowdsurf.protocol.limits import ROSTER_PEERS_MAX
from crowdsurf.protocol.manifest import Manifest

_WINDOW = 128
"""Arrivals remembered: a few steps of a large group, a few dozen of a small one."""
_USUAL_TIMES = 2.0
"""As many times the median are always allowed. A group that is much alike would else starve the one honest member whose
link is a little slower; it costs little, because nobody is waited for that was absent twice in a row."""
_WAITS_IN_VAIN = 2
"""So often before patience ends."""
_FIRST_SPARED_STEPS = 8
"""For so many steps at first, then for twice as many every time."""
_IN_TIME_STEPS = 8
"""So many steps in a row in which it came in time, and all is forgotten. Were it fewer, it would pay to be late every
other step."""
_SPARED_DOUBLINGS_MAX = 6


class Estimator:
    """Recent durations of one kind of wait, and the deadline they imply."""

    def __init__(self, seconds_min: float, seconds_max: float, deviations: float) -> None:
        self._seconds_min = seconds_min
        self._seconds_max = seconds_max
        self._deviations = deviations
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, seconds: float) -> None:
        """Record one arrival, in seconds after the wait began."""
        self._recent.append(seconds)

    def observe_lacking(self, count: int) -> None:
        """Record so many that were not left the time to come: as if they took the longest. Those in a hurry would else
        be all that is learned from."""
        self._recent.extend([self._seconds_max] * count)

    def bound_seconds(self) -> float:
        """Longest sensible wait now: the maximum until something was observed."""
        if not self._recent:
            return self._seconds_max
        # Half of the others may be liars that are in no time here: the upper median is not below somebody honest's.
        middle = median_high(self._recent)
        deviation = median_low([abs(value - middle) for value in self._recent])
        return self.within_bounds(max(middle + self._deviations * deviation, _USUAL_TIMES * middle))

    def within_bounds(self, seconds: float) -> float:
        """The wait nearest to this one that the manifest allows."""
        return min(self._seconds_max, max(self._seconds_min, seconds))


@dataclass(slots=True)
class _Record:
    """Of one peer that was awaited in vain."""

    in_vain: int = 0
    spared: int = 0
    """For how many steps more."""
    in_time: int = 0
    """For how many steps in a row."""
    was_late: bool = False
    """In this step."""
    came: bool = False
    """In this step."""

    def next_step(self, is_member: bool) -> None:
        """What this step leaves."""
        self.in_time = 0 if self.was_late else self.in_time + self.came
        self.spared = max(0, self.spared - is_member)
        self.was_late = self.came = False


class Patience:
    """Whose bytes of one kind this peer has awaited in vain lately. For some steps it is not waited for, longer every
    time, until they came in time for some steps in a row: who keeps them back, or is late whenever that hurts, would
    otherwise cost everybody the longest wait again and again. Nobody is blamed for anything."""

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}

    def waited_in_vain(self, peers: set[PeerId], among: int) -> None:
        """A wait for some `among` so many was given up. If it was for half of them, not they failed but the network."""
        for peer in peers if 2 * len(peers) < among else ():
            record = self._records.setdefault(peer, _Record())
            record.was_late = True
            record.in_vain += 1
            if record.in_vain >= _WAITS_IN_VAIN:
                record.spared = _FIRST_SPARED_STEPS << min(record.in_vain - _WAITS_IN_VAIN, _SPARED_DOUBLINGS_MAX)

    def came(self, peer: PeerId) -> None:
        """It was in time."""
        if peer in self._records:
            self._records[peer].came = True

    def spent(self) -> set[PeerId]:
        """Those that are not waited for."""
        return {peer for peer, record in self._records.items() if record.spared}

    def next_step(self, members: set[PeerId]) -> None:
        """A step of these members begins. Others are remembered too, because it would pay to drop out and come back."""
        for peer, record in self._records.items():
            record.next_step(peer in members)
        absent = [peer for peer in self._records if peer not in members]
        forgotten = set(absent[: max(0, len(absent) - ROSTER_PEERS_MAX)])
        self._records = {
            peer: record
            for peer, record in self._records.items()
            if record.in_time < _IN_TIME_STEPS and peer not in forgotten
        }


@dataclass(slots=True)
class Timing:
    """Adaptive waits, kept across steps by the node."""

    work: Estimator
    transfer: Estimator
    delivery_seconds: float
    commits: Patience = field(default_factory=Patience)
    """With members that are to commit."""
    parts: Patience = field(default_factory=Patience)
    """With contributors whose parts this peer aggregates."""
    aggregates: Patience = field(default_factory=Patience)
    """With aggregators."""
    projections: Patience = field(default_factory=Patience)
    """With aggregators that are to show that they were right."""
    echoes: Patience = field(default_factory=Patience)
    """With members that are to show what was proposed."""

    def spent_on_commits(self) -> set[PeerId]:
        """Whose commits are not waited for."""
        return self.echoes.spent() | self.commits.spent()

    @property
    def transfer_to_name(self) -> float:
        """How long this peer would wait for a transfer, in seconds, rounded up to a power of two: that is all others
        need know, and what is signed does not hang on every millisecond."""
        mantissa, exponent = math.frexp(self.transfer.bound_seconds())
        return math.ldexp(1.0, exponent - (mantissa == 0.5))

    def transfers(self, named: list[float], enough: int) -> tuple[float, float]:
        """How long to wait for parts, and how long for aggregates where nobody honest waits longer for its parts, given
        what those in a cut have named. Whom liars make wait has learned to wait longer than others: by a common wait no
        honest one waits for parts until its aggregate is too late for the rest. `enough` are so many that somebody
        honest is among them: what that many name or less is no less than what somebody honest has named, however few
        honest ones the proposer has let in (SPEC R-4.30)."""
        common = self.transfer.within_bounds(sorted(named)[min(enough, len(named)) - 1])
        own = self.transfer.bound_seconds()
        return min(own, common), max(own, common)

    def next_step(self, members: set[PeerId]) -> None:
        """A step of these members begins."""
        for patience in (self.commits, self.parts, self.aggregates, self.projections, self.echoes):
            patience.next_step(members)


def timing_of(manifest: Manifest) -> Timing:
    """Fresh estimators with the manifest's bounds."""
    bounds = manifest.deadlines
    return Timing(
        Estimator(bounds.work_seconds_min, bounds.work_seconds_max, bounds.deviations),
        Estimator(bounds.transfer_seconds_min, bounds.transfer_seconds_max, bounds.deviations),
        bounds.delivery_seconds,
    )
