"""Bucketing: rows are shuffled, and every `bucket_rows` of them become their mean; a last, smaller bucket too.

(Karimireddy, He, Jaggi 2022.) The rule behind it sees fewer rows that are more alike, which helps rules that pick one
row or the middle where honest rows differ much. A bad row spoils one bucket, so fewer of them can be borne.

The shuffle comes from public data only: the seed that aggregation is given, which the daemon derives from the cut (the
list of commits) and the part. Whoever commits last, and the proposer who lists the commits, can compute the shuffle
before deciding, and can try many slightly different gradients until it suits them. So chance here evens out what
nature does; it is no secret from an attacker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy
import torch

from crowdsurf.peer.compute.parameters import ParameterReader
from crowdsurf.peer.compute.rules.base import PreStep, Rule
from crowdsurf.peer.compute.rules.gram import Array
from crowdsurf.peer.compute.rules.rows import RowSet
from crowdsurf.peer.compute.seeds import seeded_generator


@dataclass(frozen=True)
class Bucketing(PreStep):
    """Means of random buckets."""

    name = "bucketing"

    bucket_rows: int

    @classmethod
    def parse_before(cls, reader: ParameterReader, inner: Rule) -> Self:
        """Parameter: bucket_rows."""
        return cls(inner, bucket_rows=reader.integer("bucket_rows", 2, 1, 64))

    def byzantine_max(self, count: int) -> int:
        """As many as the rule behind it bears of so many buckets: each bad row spoils one."""
        return self.inner.byzantine_max(-(-count // self.bucket_rows))

    def mixing(self, rows: RowSet, byzantine: int, seed: bytes) -> Array:
        """See `PreStep.mixing`."""
        order = torch.randperm(rows.count, generator=seeded_generator(seed, "bucketing")).tolist()
        buckets = [order[start : start + self.bucket_rows] for start in range(0, rows.count, self.bucket_rows)]
        matrix = numpy.zeros((len(buckets), rows.count))
        for index, bucket in enumerate(buckets):
            matrix[index, bucket] = 1.0 / len(bucket)
        return matrix
