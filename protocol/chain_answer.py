"""How much of the chain one answer holds: both sides count alike, so that neither has to trust the other.

The idea: certificates are small in a small group and have 128 KiB in the largest one, so a bound on their number alone
lets whoever answers fill the memory of whoever asks. Who serves stops before the bound, who asks refuses what is beyond
it, and whether there may be more follows from the same count. SPEC R-7.7.
"""

from __future__ import annotations

from crowdsurf.protocol import limits


class ChainAnswer:
    """Counts the certificates of one answer."""

    def __init__(self) -> None:
        self.certificates = 0
        self.nbytes = 0

    def takes(self, nbytes: int) -> bool:
        """Count one more certificate of so many bytes; False, and nothing is counted, if it has no place. The first one
        always has: else a step with a large certificate would be the last one that anybody can learn."""
        has_place = self.certificates < limits.CERTIFICATES_PER_RESPONSE_MAX
        if not has_place or self.nbytes + nbytes > limits.CHAIN_ANSWER_BYTES_MAX:
            return False
        self.certificates += 1
        self.nbytes += nbytes
        return True

    @property
    def is_full(self) -> bool:
        """Whether one more certificate might have had no place, so that there may be more to ask for."""
        room_bytes = limits.CHAIN_ANSWER_BYTES_MAX - self.nbytes
        return self.certificates >= limits.CERTIFICATES_PER_RESPONSE_MAX or room_bytes < limits.CERTIFICATE_BYTES_MAX
