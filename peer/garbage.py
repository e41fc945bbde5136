"""Python's garbage collector in a process that simulates: seldom, because it finds next to nothing there.

The idea: a simulation makes millions of small objects that die by themselves and hardly any cycles, and collections
look at all of them again and again. What exists at the start is not looked at any more, and new objects far less often.
"""

from __future__ import annotations

import gc

OBJECTS_BETWEEN_COLLECTIONS = 200_000


def collect_rarely() -> None:
    """For the whole process, from now on: call it where a program begins."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, 20, 100)
