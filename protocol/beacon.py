"""The beacon: one public random string per step, and everything that is drawn from it.

The idea: every choice nobody may influence (who proposes, who aggregates what, which batch a peer computes,
later who is audited) is drawn from the beacon through a label of its own, with an extendable hash, so all
peers draw the same. The beacon itself is commit–reveal: nonces are committed with the work and opened after
the aggregates are fixed. SPEC R-4.17 to R-4.19.
"""

from __future__ import annotations

from blake3 import blake3

from crowdsurf.protocol import wire
from crowdsurf.protocol.ids import Digest, digest


def first_beacon(run_id: bytes) -> Digest:
    """Beacon before step 0."""
    return digest("first beacon", run_id)


def next_beacon(previous: bytes, nonces: tuple[bytes, ...]) -> Digest:
    """Beacon after a step: digest of the previous one and of the nonces of all contributors in member order. After a
    void step of none: else those who keep theirs would choose among as many beacons as there are sets of them."""
    return digest("beacon", wire.pack([previous, list(nonces)]))


def nonce_digest(nonce: bytes) -> Digest:
    """What a commit publishes of its nonce."""
    return digest("nonce", nonce)


def derive(beacon: bytes, label: str, subject: bytes = b"") -> Digest:
    """32 bytes drawn from the beacon for one purpose and one subject."""
    return digest("draw " + label, beacon + subject)


def shuffle(beacon: bytes, label: str, count: int) -> list[int]:
    """A uniform permutation of range(count): Fisher–Yates with rejection sampling on a BLAKE3 stream."""
    stream = blake3(derive(beacon, label)).digest(length=8 * (count + 64))
    position = 0
    order = list(range(count))
    for index in range(count - 1, 0, -1):
        bound = index + 1
        limit = (1 << 64) - (1 << 64) % bound
        while True:
            value = int.from_bytes(stream[position : position + 8], "little")
            position += 8
            if value < limit:
                break
        choice = value % bound
        order[index], order[choice] = order[choice], order[index]
    return order
