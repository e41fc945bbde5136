"""Evidence: what convicted a peer, in one self-contained piece that anybody can check again.

The idea: a ban in a header is a quorum's word; the evidence shows what that word rests on. Everything in it is
signed by somebody, so it can be handed on by anyone. The file adds the certified steps from the founders to the ban,
because who was a member, and who was drawn to validate whom, are facts of the chain: with the manifest alone, a
stranger can check all of it (`recheck.py`). SPEC §6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.messages import Ban, Certificate, DigestBytes, Envelope

FILE_BYTES_MAX = 64 * 1024 * 1024
"""One evidence file. A certified step of 16 members takes 1.9 kB, so this is the past of some 34,000 steps."""
CHAPTERS_MAX = limits.ARRAY_ITEMS_MAX
CHAPTER_STEPS = limits.ARRAY_ITEMS_MAX
"""An array has no more items, so a long past is cut."""


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why one peer is banned."""

    ban: Ban
    accusation: Envelope
    verdicts: Annotated[tuple[Envelope, ...], msgspec.Meta(max_length=limits.ROSTER_PEERS_MAX)]
    """Of members that recomputed the work in question; none for class A."""
    exhibits: Annotated[tuple[Envelope, ...], msgspec.Meta(max_length=4)]
    """What it was judged by: the commit of the accused."""
    certificate: Certificate
    """Of the header that bans it."""


Chapter = Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=CHAPTER_STEPS)]


class EvidenceFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Evidence and the past it stands on."""

    form: Literal["crowdsurf evidence 1"]
    run_id: DigestBytes
    evidence: Evidence
    past: Annotated[tuple[Chapter, ...], msgspec.Meta(max_length=CHAPTERS_MAX)]
    """The canonical bytes of every certificate from step 0 to the one before the ban, in order; nothing at all if
    there was no room for the past of the run."""

    @property
    def past_steps(self) -> int:
        """How many certificates it holds besides the one that bans."""
        return sum(len(chapter) for chapter in self.past)

    @property
    def lacks_past(self) -> bool:
        """Whether the past was left out. Only whoever has those certificates can check the evidence then."""
        return not self.past and self.evidence.certificate.header.step > 0

    def certificates(self) -> Iterator[Certificate]:
        """The past, read one by one. Raises Refusal at the first that is no certificate."""
        for chapter in self.past:
            for data in chapter:
                yield wire.unpack(data, Certificate, limits.CERTIFICATE_BYTES_MAX)


def pack_evidence(run_id: bytes, evidence: Evidence, past: Iterable[bytes], bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """A file's bytes. `past`: the packed certificates from step 0 on; what comes after the ban is not looked at. If one
    is missing, or `bytes_max` is too little for all, the past is left out: one with holes proves nothing."""
    steps = evidence.certificate.header.step
    room = bytes_max - len(wire.pack(evidence)) - 1024
    chapters: list[list[bytes]] = []
    for number, data in zip(range(steps), past, strict=False):
        room -= len(data) + 8  # its length, and now and then a chapter's
        if room < 0:
            break
        if number % CHAPTER_STEPS == 0:
            chapters.append([])
        chapters[-1].append(data)
    if sum(map(len, chapters)) < steps:
        chapters = []
    file = EvidenceFile("crowdsurf evidence 1", run_id, evidence, tuple(map(tuple, chapters)))
    return wire.pack(file)


def unpack_evidence(data: bytes | memoryview) -> EvidenceFile:
    """Parse a file from anybody; nothing is verified yet. Raises Refusal."""
    return wire.unpack(data, EvidenceFile, FILE_BYTES_MAX)
