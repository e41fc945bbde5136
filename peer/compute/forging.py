"""The numbers of a rehearsed attack, made by the worker of the peer that rehearses it.

The idea: what to send instead of honest work is decided elsewhere, as a `Forgery`; here it becomes a vector, with
the worker's own engine. The seeds of all work are public, so the worker computes the honest members' gradients at the
present state just as they do. An honest peer's worker never loads this file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from crowdsurf.peer.compute.attacks import find_attack
from crowdsurf.peer.compute.attacks.alone import random_unit
from crowdsurf.peer.compute.attacks.base import FLOAT32_MAX, View
from crowdsurf.peer.compute.engine import Engine
from crowdsurf.peer.compute.seeds import seeded_generator
from crowdsurf.protocol.sim.compute import Forgery

KEPT_BYTES_MAX = 256 * 1024**2
"""Own gradients kept for delayed_gradient: all 1,000 steps of a small network, the last few of a large one."""
HONEST = "none"
"""A forgery that is none: the honest gradient, kept for later."""
DELAYED = "delayed_gradient"


class Forger:
    """Makes wrong gradients with an engine, at whatever state that is in."""

    def __init__(self, engine: Engine, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._engine = engine
        self._kept_bytes_max = kept_bytes_max
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def forge(
        self,
        forgery: Forgery,
        usual_strength: bool,
        seed: bytes,
        out: torch.Tensor,
        previous: torch.Tensor | None,
        should_stop: Callable[[], bool],
    ) -> tuple[float, int]:
        """Write what the forgery asks for to `out`, float32 (elements,); may be non-finite. The honest unit of `seed`
        gives (mean loss, samples).

        `usual_strength` takes the strength of the literature instead of the forgery's. `previous` is the aggregate of
        the last certified step, float32 (elements,). A delayed gradient is that of the forgery's seed, or the oldest
        one of ours that is still kept. Raises as `Engine.work`, and MisuseError for an unknown attack.
        """
        loss, samples = self._engine.work(seed, out, should_stop)
        if forgery.attack in (HONEST, DELAYED):
            self._keep(seed, out)
        if forgery.attack == HONEST:
            return loss, samples
        attack = find_attack(forgery.attack)
        own = out
        if forgery.attack == DELAYED:
            own = self._kept.get(forgery.seed, next(iter(self._kept.values())))
        elif attack.flips_labels:
            own = torch.empty_like(out)
            self._engine.work(seed, own, should_stop, flip_labels=True)
        salt = forgery.salt + forgery.seed if attack.own_chance else forgery.salt
        view = View(
            own,
            forgery.byzantine,
            attack.default_strength if usual_strength else forgery.strength,
            seeded_generator(salt, f"attack {attack.name}"),
            lambda: self._gradients(forgery.honest_seeds or (seed,), should_stop),
            lambda: None if previous is None else torch.nan_to_num(previous, nan=0.0, posinf=0.0, neginf=0.0),
        )
        out.copy_(attack.row(view))
        return loss, samples

    def _gradients(self, seeds: Sequence[bytes], should_stop: Callable[[], bool]) -> torch.Tensor:
        """Honest work units at the present state, float32 (seeds, elements)."""
        rows = torch.empty(len(seeds), self._engine.elements)
        for row, seed in zip(rows, seeds, strict=True):
            self._engine.work(seed, row, should_stop)
        return rows

    def _keep(self, seed: bytes, gradient: torch.Tensor) -> None:
        self._kept[seed] = gradient.clone()
        while len(self._kept) * gradient.nbytes > self._kept_bytes_max and len(self._kept) > 1:
            self._kept.popitem(last=False)


def distort(aggregate: torch.Tensor, strength: float, salt: bytes) -> None:
    """Move an aggregate, float32 (k,), in place by `strength` times its norm (by `strength`, if it is zero) in a random
    direction drawn from the salt."""
    true = aggregate.double()
    step = strength * (float(true.norm()) or 1.0)
    wrong = true + step * random_unit(len(true), seeded_generator(salt, "distort"))
    aggregate.copy_(wrong.clamp(-FLOAT32_MAX, FLOAT32_MAX))
