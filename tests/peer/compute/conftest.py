"""Shared by the compute tests: manifests of small runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from crowdsurf.protocol.ids import peer_id_from_public_key
from crowdsurf.protocol.manifest import Manifest, OptimizerSection, TaskSection

torch.set_num_threads(1)

FOUNDER = peer_id_from_public_key(bytes(range(32)))


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """A manifest of a tiny MLP on digits; any section can be given instead."""

    def make(**sections: Any) -> Manifest:
        chosen = {
            "task": TaskSection(name="digits", parameters={"model": "mlp", "hidden": 8}),
            "optimizer": OptimizerSection(name="adamw", learning_rate=0.01),
        }
        return Manifest(name="test", organizer=FOUNDER, founders=(FOUNDER,), **(chosen | sections))

    return make
