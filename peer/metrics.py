"""Counters of one peer: plain numbers that `status`, `demo` and the benchmarks read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Metrics:
    """What went over the wire and what was refused, since the daemon started."""

    control_bytes_sent: int = 0
    """Frames on control links, frame headers included; transport encryption excluded."""
    control_bytes_received: int = 0
    part_bytes_sent: int = 0
    """Parts and aggregates pushed or served."""
    part_bytes_received: int = 0
    state_bytes_sent: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Refusals by code."""

    def count_refusal(self, code: str) -> None:
        """One more refusal with this code."""
        self.refused[code] = self.refused.get(code, 0) + 1
