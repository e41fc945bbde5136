"""A swarm with as many liars as there may be, and what is told of its honest members.

The idea: whole nodes. What the liars do differently is a subclass's; that every honest one reaches the last step, and
that nobody breaks a rule, is asked of all.
"""

from __future__ import annotations

from typing import Any

from crowdsurf.protocol.manifest import AuditSection
from tests.protocol.swarm import Swarm


class LyingMinority:
    """`count` members; every second one lies, from one that the seed chooses on, (count - 1) // 2 of them."""

    def __init__(self, count: int, seed: int, steps: int, **changes: Any) -> None:
        self.steps = steps
        self.swarm = Swarm(count, seed=seed, steps=steps, audit=AuditSection(rate=0.0625), **changes)
        peers = self.swarm.list
        self.liars = [peers[(seed + 2 * number) % count] for number in range((count - 1) // 2)]
        self.honest = [peer for peer in peers if peer not in self.liars]
        self.lying = {peer.id for peer in self.liars}

    def run(self) -> None:
        """Until every honest member has certified all steps. Raises AssertionError if it takes too long."""
        self.swarm.start()
        heads = [peer.node.chain for peer in self.honest]
        assert self.swarm.run(lambda: all(chain.head.step >= self.steps for chain in heads), 1000.0)
        assert self.swarm.violations == []

    def honest_strikes(self) -> list[int]:
        """Of the honest ones that are members when all is over."""
        roster = self.honest[0].node.chain.head.roster
        return [member.strikes for member in roster.members if member.peer not in self.lying]

    def void_parts(self) -> int:
        """How many parts counted for nothing."""
        return sum(story.void_parts for story in self.honest[0].stories)
