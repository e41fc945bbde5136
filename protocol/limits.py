"""Every bound on what a peer can make us hold, read or do, each with its reason.

One file on purpose: a reviewer who asks "how large can it get?" looks here and nowhere else.
"""

from __future__ import annotations

PROTOCOL_VERSION = 1
"""Version of the wire and of the rules; peers of different versions refuse each other by name."""

ROSTER_PEERS_MAX = 256
"""Members of one group. Above 64 two grid axes are cheaper (protocol.md §8), 256 is the tested range."""

ENVELOPE_BYTES_MAX = 64 * 1024
"""One signed message. The largest is a commit of 256 parts: 256 × 34 bytes of digests and some lists."""

CERTIFICATE_BYTES_MAX = 128 * 1024
"""A header (256 part digests) and 256 signatures of 64 bytes with their indexes."""

MANIFEST_BYTES_MAX = 64 * 1024
"""The run config: a few dozen fields and at most ROSTER_PEERS_MAX founders of 38 bytes."""

FRAME_BYTES_MAX = 160 * 1024
"""One length-prefixed frame on a control stream: the largest packet above plus its frame header."""

ARRAY_ITEMS_MAX = 4 * ROSTER_PEERS_MAX
"""Elements of one array in a message; the largest has one per member."""

BLOB_BYTES_MAX = 8 * 1024**3
"""One raw tensor (a part, an aggregate, a state). A 1-billion-parameter AdamW state has 12 GB; larger
models arrive with sharded state. The real bound of a transfer is always the exact size expected."""

JOINS_PER_COMMIT_MAX = 8
"""Newcomers one commit can name: admission is paced, and a flood of identities cannot fill commits."""

CANDIDATES_MAX = 64
"""Join requests remembered at once; the oldest goes when a newer one comes."""

JOIN_WINDOW_STEPS = 64
"""A join or leave request is valid for this many steps after the step it names, so it cannot be replayed later."""

BUFFERED_MESSAGES_PER_PEER = 16
"""Messages of the next step kept for one member that is ahead of us; a step needs seven in its first view."""

WANTS_PER_MESSAGE_MAX = ROSTER_PEERS_MAX
"""Digests in one request for control messages we lack: at most every commit of a cut."""

CERTIFICATES_PER_RESPONSE_MAX = 64
"""Certificates in one answer of the chain service; a peer further behind asks again."""

CHAIN_ANSWER_BYTES_MAX = 1024 * 1024
"""Bytes of the certificates in one such answer. In a group of 128 it holds 64 of them, and eight of the largest ones;
by their number alone 16 answers that are read at the same time would have 128 MiB."""

VIEWS_MAX = 1 << 16
"""Views of one step. Back-off doubles the wait, so an honest swarm never gets near."""

EVIDENCE_MAX = 256
"""Pairs of contradicting messages a peer keeps, and cases it asks for in one step: one for every member."""

CASE_STEPS = 8
"""A case can be opened and judged in this many steps after the one it is about; what it takes is kept no longer."""

OWED_STEPS = 2
"""So many steps after a void one what is owed from it can still be drawn to be looked at; peers remember the states of
a little longer."""

PAST_STATES = 4
"""States before the present one that a worker remembers. A step is audited during the next one and judged during the
one after that; work that its author hid behind a nonce is audited up to `OWED_STEPS` later."""

PAST_AGGREGATES = 3
"""Steps whose aggregates a worker remembers: the present one before it is over, the last one, which is audited now, and
the one before, which is judged. Where validators wait for bytes to compare with (`tolerance.py`) it is one more."""

TIMES_COMPUTED_MAX = 2
"""So often in one step a work unit is done again for cases: for those that are open when somebody asks, and for those
that have come meanwhile, or are about another aggregate of the same part. What comes later waits for the next step."""

CASES_PER_ACCUSER_MAX = 2 * (CASE_STEPS + 1)
"""Open cases of one accuser that somebody has to recompute: in every step it can be one validator and one target, so
nobody who is drawn honestly gets beyond it."""

OBJECTIONS_PER_ACCUSER_MAX = (CASE_STEPS + 1) * ROSTER_PEERS_MAX
"""Open cases beside these that its objections have become: one against each aggregator of a step."""

CASES_MAX = ROSTER_PEERS_MAX * (CASES_PER_ACCUSER_MAX + 1)
"""Cases a peer keeps open at once: every member's share of disputes, and a proof against each. So nobody's cases crowd
out another's, however many liars accuse; those that are decided or too old make room."""

BANS_PER_HEADER_MAX = 32
"""Peers banned by one header; more wait for the next."""

BANNED_MAX = 1024
"""Banned peers remembered by the roster; beyond them the oldest is forgotten, which probation makes costly to use."""

PROOF_BYTES_MAX = 16 * 1024
"""What an accusation rests on. A projection is the largest: 37 bytes of numbers for each of 256 members."""

ADDRESSES_PER_PEER_MAX = 16
"""Multiaddresses in one DHT record or invite."""

ADDRESS_BYTES_MAX = 256
"""Text of one multiaddress; IPv6, QUIC, certhash and a relay hop fit."""

DHT_RECORD_BYTES_MAX = 8 * 1024
"""A signed DHT record: addresses, step, peer id and signature."""

DHT_RECORD_LIFETIME_SECONDS_MAX = 3600.0
"""Furthest expiry a record may claim; hivemind's own store accepts any."""

DHT_RECORDS_PER_KEY_MAX = 1024
"""Records kept or returned for one key; four times the largest group."""
