"""Where the model was a few steps ago, so that a work unit of then can be computed again.

The idea: whether a peer computed what it says can only be found out at the state it computed at, and by then that
state is history. A gradient depends on the parameters alone, so no optimizer vectors are kept; the states of the
last steps are enough, and their memory is taken once.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from crowdsurf.peer.compute.errors import StateForgotten
from crowdsurf.protocol.ids import Digest, digest_text
from crowdsurf.protocol.limits import PAST_STATES


class PastStates:
    """Parameter vectors by state digest, on the CPU; the oldest goes when there are more than `limit`."""

    def __init__(self, limit: int = PAST_STATES) -> None:
        self._limit = limit
        self._vectors: OrderedDict[Digest, torch.Tensor] = OrderedDict()
        self._unused: list[torch.Tensor] = []

    def remember(self, state: Digest, parameters: torch.Tensor) -> None:
        """Copy the parameters, float32 (elements,), of a state that is about to be left."""
        if state in self._vectors:
            vector = self._vectors.pop(state)
        elif len(self._vectors) >= self._limit:
            _, vector = self._vectors.popitem(last=False)
        else:
            vector = self._unused.pop() if self._unused else torch.empty_like(parameters)
        self._vectors[state] = vector.copy_(parameters)

    def parameters(self, state: Digest) -> torch.Tensor:
        """Those of a remembered state, float32 (elements,), not to be changed. Raises StateForgotten."""
        if state not in self._vectors:
            raise StateForgotten(
                f"state {digest_text(state)} is neither the present one nor one of the {self._limit} before it "
                "that this worker has been at; what was computed there cannot be computed again here"
            )
        return self._vectors[state]

    def clear(self) -> None:
        """Forget all states and keep their memory for the next ones."""
        self._unused += self._vectors.values()
        self._vectors.clear()
