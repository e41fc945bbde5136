"""What one member signs in one step: every slot once, for ever.

The idea: everything a step machine says goes through here, so there is one place that knows which slots are filled,
also by what the journal gave back after a restart. SPEC R-2.7, R-4.17.
"""

from __future__ import annotations

from crowdsurf.protocol.chain import Head
from crowdsurf.protocol.envelope import Opened, Signer, Slot, seal
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Kind, Payload


class Voice:
    """A member's signatures of one step."""

    def __init__(self, signer: Signer, run_id: Digest, head: Head) -> None:
        self._signer = signer
        self._run_id = run_id
        self._head = head
        self._signed: set[Slot] = set()

    def recall(self, opened: Opened) -> None:
        """This was signed before a restart."""
        self._signed.add(opened.slot)

    def has_said(self, kind: Kind, view: int) -> bool:
        """Whether a message without subject was signed."""
        return Slot(self._head.step, view, kind, b"") in self._signed

    def say(self, kind: Kind, view: int, subject: bytes, payload: Payload) -> Opened | None:
        """Sign; None if the slot was filled before."""
        slot = Slot(self._head.step, view, kind, subject)
        if slot in self._signed:
            return None
        self._signed.add(slot)
        return seal(self._signer, self._run_id, slot, payload)

    def nonce(self) -> bytes:
        """This member's share of the next beacon: derived from its key, so a restart draws the same."""
        step = self._head.step.to_bytes(8, "big")
        return self._signer.nonce(self._run_id + step + self._head.previous)
