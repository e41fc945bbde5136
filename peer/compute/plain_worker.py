"""The compute worker without digests and norms: the baseline of `bench step`, and of no other use.

The idea: what they cost can only be measured against a worker that takes none. A twin process says that more
safely than a switch would: nothing a peer or a manifest sends can turn digests off in the real worker.
"""

from __future__ import annotations

from crowdsurf.peer.compute import worker
from crowdsurf.peer.compute.state import State
from crowdsurf.protocol.ids import DIGEST_BYTES, Digest

NO_DIGEST = Digest(bytes(DIGEST_BYTES))


def main() -> None:
    """Entry point of the process: the worker's own, with every digest and norm of bulk bytes left out."""
    worker.blob_digest = lambda data: NO_DIGEST  # type: ignore[attr-defined]
    worker.norm_of = lambda vector: 0.0  # type: ignore[attr-defined]
    State.digest = lambda self: NO_DIGEST  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    main()
