"""Hypothesis strategies for every payload: within the bounds of its fields, otherwise without sense."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from crowdsurf.protocol import limits
from crowdsurf.protocol.ids import DIGEST_BYTES, PEER_ID_BYTES, SIGNATURE_BYTES
from crowdsurf.protocol.messages import (
    LINE_FLOATS,
    Accusation,
    Aggregate,
    Ban,
    Commit,
    Cut,
    Echo,
    Header,
    Join,
    Leave,
    Prepare,
    Projection,
    Reveal,
    Verdict,
    ViewChange,
    Vote,
)

digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
signatures = st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES)
optional_digests = st.just(b"") | digests
peers = st.binary(min_size=PEER_ID_BYTES, max_size=PEER_ID_BYTES)
members = st.integers(0, limits.ROSTER_PEERS_MAX - 1)
bitmaps = st.binary(max_size=limits.ROSTER_PEERS_MAX // 8)
steps = st.integers(0, 2**48)
reasons = st.integers(1, 255)
numbers = st.floats(allow_nan=False)
"""Any but one that is not even equal to itself."""


def tuples(values: st.SearchStrategy[Any], min_size: int = 0, max_size: int = 6) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=min_size, max_size=max_size).map(tuple)


bans = st.builds(Ban, peer=peers, reason=reasons, step=steps, case=digests)
headers = st.builds(
    Header,
    step=steps,
    previous=digests,
    roster=digests,
    state=digests,
    cut=digests,
    contributors=bitmaps,
    parts=tuples(optional_digests, 1),
    nonces=tuples(optional_digests, 1),
    beacon=digests,
    joined=tuples(peers),
    left=tuples(peers),
    next_roster=digests,
    excused=bitmaps,
    bans=tuples(bans, max_size=3),
    projections=tuples(optional_digests),
)
PAYLOADS: dict[type, st.SearchStrategy[Any]] = {
    Commit: st.builds(
        Commit,
        previous=digests,
        state=digests,
        parts=tuples(digests),
        nonce_digest=digests,
        loss=numbers,
        samples=st.integers(0, 2**40),
        joins=tuples(peers),
        leaves=tuples(peers),
        finding=optional_digests,
        norms=tuples(numbers),
    ),
    Cut: st.builds(Cut, previous=digests, commits=tuples(st.tuples(members, digests), 1)),
    Aggregate: st.builds(Aggregate, cut=digests, part=members, digest=digests, included=bitmaps),
    Reveal: st.builds(Reveal, cut=digests, nonce=digests, aggregates=tuples(optional_digests)),
    Projection: st.builds(
        Projection,
        cut=digests,
        part=members,
        aggregate=digests,
        included=bitmaps,
        norm=numbers,
        lines=tuples(tuples(numbers, LINE_FLOATS, LINE_FLOATS), 1),
    ),
    Header: headers,
    Echo: st.builds(Echo, outcome=digests, signature=signatures),
    Prepare: st.builds(Prepare, header=digests),
    Vote: st.builds(Vote, header=digests),
    ViewChange: st.builds(ViewChange, lock=st.none() | headers, lock_view=st.integers(0, limits.VIEWS_MAX - 1)),
    Join: st.just(Join()),
    Leave: st.just(Leave()),
    Accusation: st.builds(
        Accusation, accused=peers, reason=reasons, step=steps, proof=st.binary(max_size=limits.PROOF_BYTES_MAX)
    ),
    Verdict: st.builds(Verdict, case=digests, guilty=peers),
}
