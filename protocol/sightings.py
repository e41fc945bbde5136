"""What was proposed in each view, as far as this member and the others have seen it: whether a header is the only one.

The idea: where nearly half of the members may be liars, two quorums need not have an honest member in common, so
counting votes does not keep a proposer from having two headers certified. Showing each other what was proposed does:
everybody says at once which header of a view it saw first, with the proposer's signature as proof. Who has heard the
same from all others, or has waited long enough for a contradiction to arrive, knows that no honest member will ever act
on another header of this view. SPEC R-4.41.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crowdsurf.protocol import limits
from crowdsurf.protocol.deadlines import Patience
from crowdsurf.protocol.envelope import Opened, Slot, Verify, signed_bytes
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Echo, Kind


def check_echo(opened: Opened, proposer: PeerId, verify: Verify) -> None:
    """Whether the view's proposer has signed what an echo shows. Raises Refusal(BAD_SIGNATURE)."""
    echo, envelope = opened.payload, opened.envelope
    if not isinstance(echo, Echo):
        return
    slot = Slot(envelope.step, envelope.view, Kind.OUTCOME, b"")
    message = signed_bytes(limits.PROTOCOL_VERSION, envelope.run_id, slot, Digest(echo.outcome), proposer)
    if not verify(proposer, message, echo.signature):
        raise Refusal(Code.BAD_SIGNATURE, "the view's proposer has not signed what it shows")


@dataclass(slots=True)
class _Seen:
    """What is known of one view."""

    first: Echo
    by: set[PeerId] = field(default_factory=set)
    """Who saw the same header first."""
    is_contradicted: bool = False
    is_shown: bool = False
    waits_until: float | None = None
    """Since this member shows it: until when a contradiction may still arrive."""
    was_awaited: bool = False


class Sightings:
    """One member's knowledge of one step."""

    def __init__(self, patience: Patience, wait_seconds: float) -> None:
        """`wait_seconds`: one delivery for the others to hear of a header, one to hear what they have seen."""
        self._patience = patience
        self._wait_seconds = wait_seconds
        self._views: dict[int, _Seen] = {}
        self._forgotten: set[int] = set()

    def forget(self, view: int) -> None:
        """A header of a view was shown before a restart: whether others showed another one is not known any more."""
        self._forgotten.add(view)

    def see(self, view: int, shown: Echo, peer: PeerId) -> None:
        """A member, or the proposer itself, shows a header of a view."""
        seen = self._views.setdefault(view, _Seen(shown))
        if shown.outcome == seen.first.outcome:
            seen.by.add(peer)
        else:
            seen.is_contradicted = True

    def show(self, view: int, now: float) -> Echo | None:
        """What this member saw first in a view, to be told to the others now; None if there is nothing new to tell."""
        seen = self._views.get(view)
        if seen is None:
            return None
        if seen.is_shown:
            if seen.waits_until is not None and now >= seen.waits_until:
                seen.waits_until = None
            return None
        seen.is_shown, seen.waits_until = True, now + self._wait_seconds
        return seen.first

    def shown(self, view: int) -> tuple[Digest | None, set[PeerId]]:
        """The header seen first in a view, and who has shown it."""
        seen = self._views.get(view)
        return (Digest(seen.first.outcome), seen.by) if seen is not None else (None, set())

    def is_alone(self, view: int, name: bytes, awaited: set[PeerId]) -> bool:
        """Whether no honest member that follows the rules can act on another header of this view."""
        seen = self._views.get(view)
        if seen is None or not seen.is_shown or seen.is_contradicted or seen.first.outcome != name:
            return False
        if view in self._forgotten:
            return False
        lacking = awaited - seen.by
        if lacking and seen.waits_until is not None:
            return False
        if not seen.was_awaited:
            seen.was_awaited = True
            self._patience.waited_in_vain(lacking - self._patience.spent(), len(awaited))
            for peer in seen.by:
                self._patience.came(peer)
        return True

    def next_deadline(self, view: int) -> float | None:
        """When the wait for contradictions in a view is over, unless it is."""
        seen = self._views.get(view)
        return seen.waits_until if seen is not None else None
