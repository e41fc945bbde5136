"""The last chance of members that have not opened their nonce, before a header may void the step for it.

The idea: waits are adaptive, so an honest member from which parts are withheld may still wait for them when the
others have opened their nonces and call it silent. Therefore nobody votes to void a step before it has shown the
silent ones what it heard and has left them time to answer; an honest one opens its nonce when it sees that enough
others have. Where too few are heard, the longest wait anybody may have decides. SPEC R-4.18, R-4.19.
"""

from __future__ import annotations

from crowdsurf.protocol.manifest import DeadlineSection


class Grace:
    """One member's patience with silent ones, in one step."""

    def __init__(self, bounds: DeadlineSection, began: float) -> None:
        self._bounds = bounds
        self._over = False
        self._answer_at: float | None = None
        self._may_answer = False
        self._last_call: float | None = None
        self._until: float | None = None
        self._longest = began + bounds.work_seconds_max + self._after_cut

    @property
    def _after_cut(self) -> float:
        """Nobody honest is heard to open its nonce later than this after this member has accepted a cut: it accepts the
        cut three deliveries later at most, waits for parts, aggregates (a delivery at least, `lay_out`) and three
        deliveries more; its nonce takes one, and one more if it answers to those of others."""
        transfer, delivery = self._bounds.transfer_seconds_max, self._bounds.delivery_seconds
        return transfer + max(transfer, delivery) + 8 * delivery

    @property
    def has_begun(self) -> bool:
        """Whether the silent ones were shown what others opened."""
        return self._over or self._until is not None

    def begin(self, now: float) -> None:
        """They are shown it now: one delivery to hear it, one that they may wait before they answer, one to answer."""
        self._until = now + 3 * self._bounds.delivery_seconds

    def on_cut(self, now: float) -> None:
        """A cut is accepted, perhaps again in a later view: some accept it only now, so all chances begin anew."""
        self._over = self._may_answer = False
        self._until = self._answer_at = self._last_call = None
        self._longest = now + self._after_cut

    def advance(self, now: float) -> None:
        """Time goes on."""
        if self._until is not None and now >= self._until:
            self._over, self._until = True, None
        if self._answer_at is not None and now >= self._answer_at:
            self._may_answer, self._answer_at = True, None

    def last_call(self, now: float) -> float:
        """Until when to wait for nonces, seen that so many are open that everybody honest opens its own: one delivery
        for it to hear of them, one that it still waits, one for its answer."""
        if self._last_call is None:
            self._last_call = now + 3 * self._bounds.delivery_seconds
        return self._last_call

    def may_answer(self, now: float) -> bool:
        """Whether a member that still waits for aggregates, and has seen that others opened their nonces, opens its
        own: after half of the time that they leave it."""
        if self._answer_at is None and not self._may_answer:
            self._answer_at = now + self._bounds.delivery_seconds
        return self._may_answer

    def answered(self) -> None:
        """This member has opened its nonce."""
        self._answer_at = None

    def next_deadline(self) -> float | None:
        """When it is over, or this member is to answer, whichever is next to come."""
        return min((time for time in (self._until, self._answer_at) if time is not None), default=None)

    def is_over(self, now: float) -> bool:
        """Whether a step may be voided for those who are still silent."""
        return self._over or now >= self._longest
