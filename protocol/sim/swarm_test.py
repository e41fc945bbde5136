"""The swarm test: what to simulate, all of it drawn from one seed.

The idea: one number says everything (how many peers, how long, which faults, who attacks and how), so a failure is
replayed with that number alone, and many seeds visit corners that nobody would think of writing down.
"""

from __future__ import annotations

import random

from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.sim import faults
from crowdsurf.protocol.sim.adversaries import ATTACKS
from crowdsurf.protocol.sim.simulation import Plan, plain_manifest

PEERS_MIN, PEERS_MAX = 2, 12
STEPS_MIN, STEPS_MAX = 5, 30
"""Long enough to come past checkpoints and what is kept of them, short enough for hundreds of seeds."""
RANDOM_ATTACK = "random"
"""An attack that is drawn too."""


def draw_plan(seed: int, attack: str = "none") -> tuple[Plan, Manifest]:
    """Plan and manifest of one seed. `attack` is a name of ATTACKS or RANDOM_ATTACK; what else is drawn does not
    depend on it, but with attackers there are at least three peers, and honest ones are more than half."""
    chance = random.Random(f"swarm test {seed}")
    peers = chance.randint(PEERS_MIN, PEERS_MAX)
    steps = chance.randint(STEPS_MIN, STEPS_MAX)
    table = faults.draw(chance)
    byzantine, start = 0, 0
    if attack != "none":
        peers = max(peers, 3)
        byzantine = chance.randint(1, (peers - 1) // 2)
        start = chance.randrange(steps)
    if attack == RANDOM_ATTACK:
        attack = chance.choice([name for name in ATTACKS if name != "none"])
    plan = Plan(
        peers=peers, byzantine=byzantine, attack=attack, attack_from=start, adaptive=False, seed=seed, faults=table
    )
    return plan, plain_manifest(plan, steps)
