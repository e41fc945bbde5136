"""What was said in one step: every signed message kept, found again by slot and by digest.

The idea: one place answers "have I heard this already?", "did its sender say something else for the same
slot?" and "can I forward it to somebody who lacks it?". Bounded by the roster: a member fills a known number
of slots per view, and only so many views are kept. SPEC.md §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crowdsurf.protocol import limits
from crowdsurf.protocol.beacon import nonce_digest
from crowdsurf.protocol.cases import cut_objected_to
from crowdsurf.protocol.envelope import Equivocation, Opened, Slot, slot_of
from crowdsurf.protocol.errors import Code, Refusal
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import (
    Accusation,
    Aggregate,
    Commit,
    Cut,
    Envelope,
    Header,
    Kind,
    Projection,
    Reveal,
)

_MESSAGES_OF_A_KIND_MAX = limits.ROSTER_PEERS_MAX // 2
"""Slots of one kind that one member can fill in a step: an objection to every liar there may be, messages of so many
views or about parts of so many cuts. Each kind has a share of its own: votes in far views must leave room for a
nonce."""


class Transcript:
    """All messages of one step that were accepted for storage."""

    def __init__(self) -> None:
        self._slots: dict[tuple[PeerId, Slot], Opened] = {}
        self._said: dict[tuple[PeerId, int], int] = {}
        """How many messages of a kind a member has filled its share with."""
        self._by_digest: dict[bytes, dict[PeerId, Opened]] = {}
        """By payload digest and sender: anybody can sign what somebody else has said."""
        self.commits: dict[PeerId, Opened] = {}
        self._committed: dict[tuple[PeerId, bytes], Opened] = {}
        """By sender and digest of the nonce, every commit that was signed; of those with one nonce, the first."""
        self.reveals: dict[PeerId, dict[bytes, Opened]] = {}
        """By sender and digest of the nonce, of which a liar may open several."""
        self._proposals: dict[tuple[PeerId, int], Opened] = {}
        self._outcomes: dict[tuple[PeerId, int], Opened] = {}
        self.proposed_twice: set[PeerId] = set()
        """Who has signed two cuts of one view: honest members may have acted on either."""
        self.aggregates: dict[tuple[bytes, int, PeerId], Opened] = {}
        """By cut digest, part and sender; whether the sender is the part's aggregator is for the caller to ask."""
        self.projections: dict[tuple[bytes, int, PeerId], Opened] = {}
        """By cut digest, part and sender, as aggregates."""
        self._projections_said: dict[tuple[bytes, int, PeerId], list[Opened]] = {}
        """Every projection signed for a part, also by a liar that signed several."""
        self._aggregates_said: dict[tuple[bytes, int, PeerId], dict[bytes, list[Opened]]] = {}
        """Every aggregate signed for a part by its name, also by a liar that signed several. Of messages with the same
        name, which include others, two are enough: then it is good for nothing."""
        self._reveals_said: dict[bytes, list[Opened]] = {}
        """By cut; also all that a liar signed."""
        self._witnesses: dict[tuple[bytes, int], dict[bytes, set[PeerId]]] = {}
        """Whose reveals name which aggregate, by cut and part."""
        self._objectors: dict[tuple[bytes, bytes], set[PeerId]] = {}

    def check_slot(self, opened: Opened) -> Equivocation | None:
        """Proof of equivocation if the sender filled this slot differently.

        Raises Refusal(DUPLICATE) for a message heard before and Refusal(QUEUE_FULL) beyond the sender's share.
        """
        known = self.said(opened.sender, opened.slot)
        if known is not None:
            if known.digest == opened.digest:
                raise Refusal(Code.DUPLICATE, "heard before")
            return Equivocation(known.envelope, opened.envelope)
        if self._has_said_enough(opened):
            raise Refusal(Code.QUEUE_FULL, "too many messages of one kind in one step")
        return None

    def _has_said_enough(self, opened: Opened) -> bool:
        return self._said.get((opened.sender, opened.envelope.kind), 0) >= _MESSAGES_OF_A_KIND_MAX

    def _note(self, opened: Opened) -> None:
        key = opened.sender, opened.envelope.kind
        self._said[key] = self._said.get(key, 0) + 1

    def add(self, opened: Opened) -> None:
        """Keep a message whose slot was checked."""
        sender, payload = opened.sender, opened.payload
        self._slots[(sender, opened.slot)] = opened
        self._note(opened)
        if isinstance(payload, Aggregate):
            self.aggregates[(payload.cut, payload.part, sender)] = opened
            self._messages_of(payload, sender).append(opened)
        elif isinstance(payload, Reveal):
            self._add_reveal(opened, payload)
        elif isinstance(payload, Accusation):
            self._objectors.setdefault((cut_objected_to(payload), payload.accused), set()).add(sender)
        elif isinstance(payload, Projection):
            self._add_projection(opened, payload)
            self.projections[(payload.cut, payload.part, sender)] = opened
        elif isinstance(payload, Commit):
            self._add_commit(opened, payload)
            self.commits[sender] = opened
        elif isinstance(payload, Cut):
            self._by_digest.setdefault(opened.digest, {})[sender] = opened
            self._proposals[(sender, opened.envelope.view)] = opened
        elif isinstance(payload, Header):
            self._by_digest.setdefault(opened.digest, {})[sender] = opened
            self._outcomes[(sender, opened.envelope.view)] = opened

    def recall(self, opened: Opened) -> None:
        """Keep a message this peer had accepted before it was restarted; which of two a liar signed does not matter."""
        known = self.said(opened.sender, opened.slot)
        if known is None:
            self.add(opened)
        elif known.digest != opened.digest:
            self.add_conflicting(opened)

    def find(self, digest: bytes) -> list[Opened]:
        """The commit, cut, projection or header with this payload digest, every aggregate message that names this blob;
        with a cut all reveals, and the commits that they open and the cut does not name."""
        found = list(self._by_digest.get(digest, {}).values())
        found += (opened for said in self._aggregates_said.values() for opened in said.get(digest, ()))
        cut = self.cut(digest)
        if cut is not None:
            reveals = [opened for said in self._reveals_said.values() for opened in said]
            found += [*self._commits_behind(reveals, cut), *reveals]
        return found

    @property
    def revealed_cut(self) -> Digest | None:
        """The cut that a reveal names; one that was heard of."""
        return next((Digest(cut) for cut in self._reveals_said if self.cut(cut) is not None), None)

    def unheard_cuts(self) -> list[tuple[Digest, list[PeerId]]]:
        """Cuts that reveals name and that were not heard of, each with those whose reveals name it. Of a liar that
        signed several only the first one counts, so there are no more than members."""
        named: dict[Digest, list[PeerId]] = {}
        for opened in self.of_kind(Kind.REVEAL):
            if isinstance(opened.payload, Reveal) and self.cut(opened.payload.cut) is None:
                named.setdefault(Digest(opened.payload.cut), []).append(opened.sender)
        return list(named.items())

    def reveals_of(self, cut: bytes) -> list[Opened]:
        """The reveals that name a cut."""
        return self._reveals_said.get(cut, [])

    def opening(self, peer: PeerId, digest: bytes) -> Opened | None:
        """The reveal by which a member opens the nonce with this digest, whatever else it opened."""
        return self.reveals.get(peer, {}).get(digest)

    def cut(self, digest: bytes) -> Cut | None:
        """The cut with this payload digest, if heard."""
        said = (opened.payload for opened in self._by_digest.get(digest, {}).values())
        return next((payload for payload in said if isinstance(payload, Cut)), None)

    def header(self, digest: bytes) -> Header | None:
        """The header with this payload digest, if heard."""
        said = (opened.payload for opened in self._by_digest.get(digest, {}).values())
        return next((payload for payload in said if isinstance(payload, Header)), None)

    def names_case(self, case: bytes) -> bool:
        """Whether an outcome that was heard bans somebody for this case."""
        headers = [opened.payload for opened in self._outcomes.values()]
        return any(ban.case == case for header in headers if isinstance(header, Header) for ban in header.bans)

    def proposal(self, proposer: PeerId, view: int) -> Opened | None:
        """The cut a member proposed in a view, if heard."""
        return self._proposals.get((proposer, view))

    def outcome(self, proposer: PeerId, view: int) -> Opened | None:
        """The header a member proposed in a view, if heard."""
        return self._outcomes.get((proposer, view))

    def aggregate(self, cut: bytes, part: int, aggregator: PeerId) -> Aggregate | None:
        """What the aggregator of a part said about it under this cut, if heard."""
        found = self.aggregates.get((cut, part, aggregator))
        return found.payload if found is not None and isinstance(found.payload, Aggregate) else None

    def aggregate_with(
        self, cut: bytes, part: int, aggregator: PeerId, digest: bytes, included: bytes | None = None
    ) -> Aggregate | None:
        """What its aggregator said about a part and this very aggregate, whatever else it said; with `included`, that
        it is made of just these members' parts."""
        said = (opened.payload for opened in self.messages_with(cut, part, aggregator, digest))
        found = (one for one in said if isinstance(one, Aggregate) and included in (None, one.included))
        return next(found, None)

    def messages_with(self, cut: bytes, part: int, aggregator: PeerId, digest: bytes) -> Sequence[Opened]:
        """The messages behind `aggregate_with`: two if it said that the same aggregate includes some, and others."""
        return self._aggregates_said.get((cut, part, aggregator), {}).get(digest, ())

    def aggregates_said(self, cut: bytes, part: int, aggregator: PeerId) -> list[bytes]:
        """The names of all aggregates that the aggregator of a part has signed for it, the smallest first."""
        return sorted(self._aggregates_said.get((cut, part, aggregator), ()))

    def projection(self, cut: bytes, part: int, aggregator: PeerId) -> Opened | None:
        """What the aggregator of a part published about it, if heard."""
        return self.projections.get((cut, part, aggregator))

    def projections_said(self, cut: bytes, part: int, aggregator: PeerId) -> Sequence[Opened]:
        """All that the aggregator of a part has published about it, in the order heard."""
        return self._projections_said.get((cut, part, aggregator), ())

    def projection_with(self, digest: bytes, aggregator: PeerId) -> Opened | None:
        """The projection with this payload digest that an aggregator has signed, if heard."""
        found = self._by_digest.get(digest, {}).get(aggregator)
        return found if found is not None and isinstance(found.payload, Projection) else None

    def named_aggregate(self, cut: bytes, part: int, enough: int) -> Digest | None:
        """The one aggregate of a part that the reveals of so many members name; None if there is none, or several. All
        that a liar signed counts, so that whoever has heard more does not think otherwise."""
        named = [name for name, senders in self.witnesses(cut, part).items() if len(senders) >= enough]
        return Digest(named[0]) if len(named) == 1 else None

    def witnesses(self, cut: bytes, part: int) -> Mapping[bytes, set[PeerId]]:
        """Whose reveals name which aggregate of a part."""
        return self._witnesses.get((cut, part), {})

    def objectors(self, cut: bytes, aggregator: PeerId) -> set[PeerId]:
        """Members that object to what an aggregator published about a cut."""
        return self._objectors.get((cut, aggregator), set())

    def objections(self, cut: bytes) -> list[Opened]:
        """One objection for each aggregator of a cut that somebody objects to."""
        found: dict[bytes, Opened] = {}
        for said in self.of_kind(Kind.ACCUSATION) if self._objectors else ():
            if isinstance(said.payload, Accusation) and cut_objected_to(said.payload) == cut:
                found.setdefault(said.payload.accused, said)
        return list(found.values())

    def of_kind(self, kind: Kind) -> list[Opened]:
        """Every message of a kind, in the order heard."""
        return [opened for (_, slot), opened in self._slots.items() if slot.kind == kind]

    def said(self, peer: PeerId, slot: Slot) -> Opened | None:
        """What a member said in a slot, if heard."""
        return self._slots.get((peer, slot))

    def said_in(self, envelope: Envelope) -> Opened | None:
        """What the sender of an envelope said in its slot, if heard. The envelope need not have been opened."""
        return self.said(PeerId(envelope.sender), slot_of(envelope))

    def own(self, peer: PeerId) -> list[Opened]:
        """Everything a member said, in the order heard; what a peer sends again when a step stalls."""
        return [opened for (sender, _), opened in self._slots.items() if sender == peer]

    def commit_of(self, peer: PeerId) -> Commit | None:
        """The commit of a member, if heard."""
        opened = self.commits.get(peer)
        return opened.payload if opened is not None and isinstance(opened.payload, Commit) else None

    def add_conflicting(self, opened: Opened) -> bool:
        """Keep a commit, cut, aggregate, reveal or projection whose sender also sent another one: a cut, a nonce or a
        header may need either, and whoever accepted that must be able to show it. The proof against the sender is the
        caller's. Counts against the sender's share. Whether it was new."""
        sender, payload = opened.sender, opened.payload
        if isinstance(payload, Cut):
            self.proposed_twice.add(sender)
        if sender in self._by_digest.get(opened.digest, {}) or (
            self._has_said_enough(opened) and not self._is_named(opened)
        ):
            return False
        if isinstance(payload, Projection):
            self._add_projection(opened, payload)
        elif isinstance(payload, Commit):
            self._add_commit(opened, payload)
        elif isinstance(payload, Cut):
            self._by_digest.setdefault(opened.digest, {})[sender] = opened
        elif isinstance(payload, Reveal):
            if any((one.sender, one.digest) == (sender, opened.digest) for one in self.reveals_of(payload.cut)):
                return False
            self._add_reveal(opened, payload)
        elif isinstance(payload, Aggregate):
            said_of_it = self._messages_of(payload, sender)
            if len(said_of_it) == 2 or any(one.digest == opened.digest for one in said_of_it):
                return False
            said_of_it.append(opened)
        else:
            return False
        self._note(opened)
        return True

    def _is_named(self, opened: Opened) -> bool:
        """Whether a cut, a header or a reveal that was heard needs just this message: it is taken, however much else
        its author signs."""
        said, name = opened.payload, opened.digest
        headers = [shown.payload for shown in self._outcomes.values() if isinstance(shown.payload, Header)]
        if isinstance(said, Commit):
            cuts = [shown.payload for shown in self._proposals.values() if isinstance(shown.payload, Cut)]
            return any(name == commit for cut in cuts for _, commit in cut.commits)
        if isinstance(said, Cut):
            return name in self._reveals_said or any(header.cut == name for header in headers)
        if isinstance(said, Aggregate):
            return said.digest in self.witnesses(said.cut, said.part)
        if isinstance(said, Projection):
            return any(name in header.projections for header in headers)
        if not isinstance(said, Reveal):
            return False
        known = [shown.payload for shown in self.reveals_of(said.cut) if shown.sender == opened.sender]
        return all(isinstance(one, Reveal) and one.nonce != said.nonce for one in known)

    def _messages_of(self, aggregate: Aggregate, sender: PeerId) -> list[Opened]:
        said = self._aggregates_said.setdefault((aggregate.cut, aggregate.part, sender), {})
        return said.setdefault(aggregate.digest, [])

    def _add_commit(self, opened: Opened, commit: Commit) -> None:
        self._by_digest.setdefault(opened.digest, {})[opened.sender] = opened
        self._committed.setdefault((opened.sender, commit.nonce_digest), opened)

    def _add_projection(self, opened: Opened, projection: Projection) -> None:
        self._by_digest.setdefault(opened.digest, {})[opened.sender] = opened
        self._projections_said.setdefault((projection.cut, projection.part, opened.sender), []).append(opened)

    def _add_reveal(self, opened: Opened, reveal: Reveal) -> None:
        self._reveals_said.setdefault(reveal.cut, []).append(opened)
        self.reveals.setdefault(opened.sender, {}).setdefault(nonce_digest(reveal.nonce), opened)
        for part, name in enumerate(reveal.aggregates):
            if name:
                self._witnesses.setdefault((reveal.cut, part), {}).setdefault(name, set()).add(opened.sender)

    def opens_commit(self, sender: PeerId, digest: bytes) -> bool:
        """Whether a nonce of this digest is one a member has committed to; a liar may have committed to several."""
        return (sender, digest) in self._committed

    def named_by(self, cut: Cut, peers: tuple[PeerId, ...]) -> dict[PeerId, Opened]:
        """The messages behind `commits_in`, by their senders."""
        found = self.commits_in(cut, peers)
        named = ((peers[index], name) for index, name in cut.commits if index in found)
        return {peer: self._by_digest[name][peer] for peer, name in named}

    def commits_in(self, cut: Cut, peers: tuple[PeerId, ...]) -> dict[int, Commit]:
        """The commits a cut names, by rising member index, as far as they were heard from these members."""
        found = {}
        for index, name in cut.commits:
            held = self._by_digest.get(name, {}).get(peers[index])
            if held is not None and isinstance(held.payload, Commit):
                found[index] = held.payload
        return found

    def grounds(self, header: Header, peers: tuple[PeerId, ...], duties: tuple[PeerId, ...]) -> list[Opened]:
        """The messages a header follows from, as far as they were heard; `peers` are the members, `duties` the
        aggregators of its cut."""
        cut = self.cut(header.cut)
        if cut is None:
            return []
        found = list(self._by_digest[header.cut].values())[:1] + list(self.named_by(cut, peers).values())
        for part, (peer, name) in enumerate(zip(duties, header.parts, strict=True)):
            found += self.messages_with(header.cut, part, peer, name)
        for peer, name in zip(duties, header.projections, strict=False):
            shown = self.projection_with(name, peer)
            found += [shown] if shown is not None else []
        reveals = self._reveals_behind(header, peers) if header.projections else []
        return [*found, *self._commits_behind(reveals, cut), *reveals]

    def _commits_behind(self, reveals: Sequence[Opened], cut: Cut) -> list[Opened]:
        """Commits that reveals open and that a cut does not name, so that who has accepted it may not have heard them:
        without its commit nobody believes a reveal."""
        named = {name for _, name in cut.commits}
        found: dict[Opened, None] = {}
        for said in reveals:
            nonce = said.payload.nonce if isinstance(said.payload, Reveal) else b""
            commit = self._committed.get((said.sender, nonce_digest(nonce)))
            if commit is not None and commit.digest not in named:
                found[commit] = None
        return list(found)

    def _reveals_behind(self, header: Header, peers: tuple[PeerId, ...]) -> list[Opened]:
        """Reveals that name the header's cut, and those that open its nonces: in a later view they may name another."""
        opens = {peer for peer, nonce in zip(peers, header.nonces, strict=True) if nonce}
        said = self._reveals_said.items()
        return [one for cut, reveals in said for one in reveals if cut == header.cut or one.sender in opens]

    def missing_commits(self, cut: Cut, peers: tuple[PeerId, ...]) -> list[Digest]:
        """Digests of the cut's commits that were not heard."""
        held = self.commits_in(cut, peers)
        return [Digest(name) for index, name in cut.commits if index not in held]
