"""Peers that break the rules: one small class for each attack, over two hooks.

The idea: an adversary is an honest peer (the same node, disk and network) whose results and messages are changed
on the way out. `work` and `aggregate` change what it computes, `change` changes what it sends; a class overrides
what it needs and nothing else. Attackers of one simulation share a `Mind`, in which they agree on whatever must
be alike. Since work seeds are public they know every honest gradient; what they can not do is sign for others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from crowdsurf.protocol import assignment, effects
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.sim.compute import GRADIENT_ATTACKS, Forgery, Work
from crowdsurf.protocol.sim.names import name_of

if TYPE_CHECKING:
    from crowdsurf.protocol.sim.host import Host


@dataclass(slots=True)
class Mind:
    """What colluding attackers share."""

    attack: str
    strength: float
    start: int = 0
    """First step of the attack."""
    stop: int | None = None
    """First step after it; None: never stops."""
    adaptive: bool = False
    """Behave for `CALM_STEPS` whenever one of them looks suspected."""
    chance: random.Random = field(default_factory=random.Random)
    members: list[PeerId] = field(default_factory=list)
    past: dict[PeerId, list[tuple[Digest, Digest]]] = field(default_factory=dict)
    """Every member's (state, seed) of its work units, oldest first."""
    calm_until: int = 0

    def salt(self, *fields: object) -> Digest:
        """Shared chance: the same for all members that ask for the same."""
        return name_of("salt", self.attack, *fields)


CALM_STEPS = 20
DELAY_STEPS = 1000
"""How old the gradients of delayed_gradient are (BTARD, section 4.1); younger while the run is."""


class Adversary:
    """Base: does nothing wrong. One object for each attacking host."""

    name: ClassVar[str] = "none"

    def __init__(self, mind: Mind) -> None:
        self.mind = mind

    def attacking(self, step: int) -> bool:
        """Whether the attack is on in this step."""
        mind = self.mind
        in_time = step >= mind.start and (mind.stop is None or step < mind.stop)
        return in_time and not (mind.adaptive and step < mind.calm_until)

    # --- what it computes --------------------------------------------------------------------------------

    def work(self, host: Host, effect: effects.ComputeWork, honest: Work) -> Work:
        """Its work unit, given the honest one."""
        return honest

    def aggregate(self, host: Host, effect: effects.AggregatePart, honest: Digest) -> Digest:
        """Its aggregate of a part, given the right one."""
        return honest

    # --- what it sends -----------------------------------------------------------------------------------

    def change(self, host: Host, wanted: list[Effect]) -> list[Effect]:
        """What it does, given what an honest peer would do."""
        if not self.attacking(host.step):
            return wanted
        return [changed for effect in wanted for changed in self.send(host, effect)]

    def send(self, host: Host, effect: Effect) -> Iterable[Effect]:
        """What becomes of one effect while the attack is on."""
        return (effect,)

    def serves(self, host: Host) -> bool:
        """Whether it answers requests for bytes."""
        return True

    def serve_state(self, host: Host, honest: Digest) -> Digest:
        """The state it gives to newcomers."""
        return honest


class GradientAttack(Adversary):
    """Any attack on the gradient: `Compute.forge` knows the formula."""

    def work(self, host: Host, effect: effects.ComputeWork, honest: Work) -> Work:
        mind = self.mind
        past = mind.past.setdefault(host.id, [])
        past.append((host.state, effect.seed))
        del past[: -DELAY_STEPS - 1]
        if not self.attacking(effect.step):
            return honest
        state, seed = past[0] if mind.attack == "delayed_gradient" else (host.state, effect.seed)
        head = host.node.chain.head
        honest_members = [peer for peer in head.roster.peers if peer not in mind.members]
        certificate = host.node.catch_up.certificate(effect.step - 1)
        forgery = Forgery(
            attack=mind.attack,
            strength=mind.strength,
            state=state,
            seed=seed,
            parts=effect.parts,
            honest_seeds=tuple(assignment.work_seed(head.beacon, peer) for peer in honest_members),
            byzantine=len(head.roster.peers) - len(honest_members),
            previous=certificate.header.parts if certificate is not None else (),
            salt=mind.salt(effect.step),
        )
        return host.world.compute.forge(forgery)


ATTACKS: dict[str, type[Adversary]] = {"none": Adversary} | dict.fromkeys(GRADIENT_ATTACKS, GradientAttack)
"""Every attack by its name on the command line."""
