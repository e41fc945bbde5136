"""A swarm without a protocol: every member sends its gradient in every step, and the rule does the rest.

It drives `SharedCompute` as the simulator does, in a dozen lines, so that attacks and rules can be judged alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crowdsurf.peer.compute.attacks import DEFAULT_STRENGTH
from crowdsurf.peer.compute.shared import SharedCompute
from crowdsurf.protocol.assignment import work_seed
from crowdsurf.protocol.ids import Digest, digest
from crowdsurf.protocol.sim.compute import Forgery, Work


@dataclass
class PlainSwarm:
    """`members` of which the last `byzantine` attack from step `attack_from` on."""

    compute: SharedCompute
    members: int
    byzantine: int = 0
    attack: str = "sign_flip"
    strength: float | None = None
    attack_from: int = 0
    delay: int = 0
    seed: int = 0
    states: list[Digest] = field(default_factory=list)
    previous: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.states.append(self.compute.initial_state())

    def seeds(self, step: int) -> list[Digest]:
        beacon = digest("test", self.seed.to_bytes(8, "little") + step.to_bytes(8, "little"))
        return [work_seed(beacon, bytes([member])) for member in range(self.members)]

    def cut(self, step: int) -> Digest:
        return digest("test cut", step.to_bytes(8, "little"))

    def forge(self, step: int, member: int) -> Work:
        past = max(0, step - self.delay)
        seeds = self.seeds(past)
        strength = DEFAULT_STRENGTH[self.attack] if self.strength is None else self.strength
        return self.compute.forge(
            Forgery(
                attack=self.attack,
                strength=strength,
                state=self.states[past],
                seed=seeds[member],
                parts=self.members,
                honest_seeds=tuple(seeds[: self.members - self.byzantine]),
                byzantine=self.byzantine,
                previous=self.previous,
                salt=digest("test salt", step.to_bytes(8, "little")),
            )
        )

    def works(self, step: int) -> list[Work]:
        seeds = self.seeds(step)
        honest = self.members - (self.byzantine if step >= self.attack_from else 0)
        works = [self.compute.work(self.states[step], seed, self.members) for seed in seeds[:honest]]
        return works + [self.forge(step, member) for member in range(honest, self.members)]

    def step(self) -> Digest:
        """One step; the new state."""
        step = len(self.states) - 1
        works = self.works(step)
        cut = self.cut(step)
        results = [
            self.compute.aggregate(tuple((member, work.parts[part]) for member, work in enumerate(works)), cut, part)
            for part in range(self.members)
        ]
        self.previous = tuple(result[0] if result else b"" for result in results)
        self.states.append(self.compute.apply(self.states[-1], self.previous))
        return self.states[-1]

    def run(self, steps: int) -> dict[str, float]:
        """`steps` more steps; the figures of the last state."""
        for _ in range(steps):
            self.step()
        return dict(self.compute.evaluate(self.states[-1]))
