"""All planted defects; run it (`python -m tests.simulation.broken`) to count seeds until each is found.

What it prints is written down beside each defect, so that the tests need not search.
"""

from __future__ import annotations

import statistics
import sys

import pytest

from tests.simulation import broken_aggregates, broken_conduct, broken_facts, broken_justice
from tests.simulation.defect import DEFECTS
from tests.simulation.runs import fired, run

__all__ = ["DEFECTS", "broken_aggregates", "broken_conduct", "broken_facts", "broken_justice"]

SEEDS_MAX = 200
"""So many seeds are tried when the list of seeds is renewed."""


def main() -> None:
    """Print, for every defect (or those named), which of the first seeds find it and who sees it."""
    for planted in [DEFECTS[name] for name in sys.argv[1:]] or DEFECTS.values():
        found: dict[int, set[str]] = {}
        for seed in range(SEEDS_MAX):
            with pytest.MonkeyPatch.context() as patch:
                planted.plant(patch)
                seen = fired(run(planted.setting, seed))
            if seen & planted.checkers:
                found[seed] = seen
            if len(found) >= 3:
                break
        gaps = [after - before for before, after in zip([-1, *found], found, strict=False)]
        median = statistics.median(gaps) if gaps else f"none of {SEEDS_MAX}"
        print(planted.name, tuple(found), "median", median, sorted(set().union(*found.values())), flush=True)


if __name__ == "__main__":
    main()
