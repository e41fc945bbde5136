"""Seeds become generators: all chance in the compute side is a function of bytes somebody agreed on.

The idea: one generator per purpose, on the CPU whatever the device, its seed derived from the agreed bytes and
a label. Only draws that are exact integer arithmetic everywhere are used (`rand`, `randint`, `randperm`);
normal numbers need logarithms and cosines, whose last bit differs between machines.
"""

from __future__ import annotations

import torch

from crowdsurf.protocol.ids import digest


def seeded_generator(seed: bytes, label: str) -> torch.Generator:
    """A CPU generator for one purpose, the same stream for the same seed and label.

    torch's CPU generator uses 32 bits of its seed, so two purposes share a stream with odds of 2^-32. That is
    enough for sampling, and never to be used where a stream must be hard to guess or to hit.
    """
    derived = digest(f"seed {label}", seed)
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(derived[:8], "little") >> 1)
    return generator


def centered_uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """float32 values uniform in [-bound, bound), the same bytes on every machine (each operation is rounded once)."""
    return torch.rand(shape, generator=generator).mul_(2.0).sub_(1.0).mul_(bound)
