"""The manifest: everything all peers of a run must share, and its digest, the run id.

The idea: the run config and the node config are two things. Whatever could make two honest peers compute
different bytes or reach different verdicts is in the manifest, is hashed, and is compared at join; what may
differ (addresses, folders, device) is not. Unknown, missing or out-of-range fields make it invalid as a
whole, so a manifest that exists is a manifest every peer can run.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from crowdsurf.protocol import limits, wire
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.ids import Digest, PeerId, digest, public_key_of

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0.0, le=1e12)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Parameter = Integer | float | Text | bool


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's sections: immutable, unknown fields refused."""


class TaskSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained. A swarm never ships code: it names an installed task (entry point group `crowdsurf.tasks`)."""

    name: Name
    """Entry point name of the task, for example `digits`."""
    version: PositiveInt = 1
    """Version of the task's semantics; a peer whose installed task has another one refuses to join."""
    parameters: dict[Name, Parameter] = {}
    """Task parameters (model size, data set choice); checked by the task itself."""
    dataset_digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """BLAKE3 digest of the prepared data set; filled in by `create`, compared by every peer at join."""


class WorkSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The work unit one contributor computes in one step. It fixes the micro-batching, because floating-point
    sums in another order differ by more than a strict comparison forgives."""

    micro_batches: PositiveInt = 1
    """Micro-batches whose gradients are averaged in order."""
    micro_batch_samples: PositiveInt = 32
    """Samples (or sequences) in one micro-batch."""
    precision: Annotated[str, msgspec.Meta(pattern=r"^(float32|bfloat16)\Z")] = "float32"
    """Autocast precision of forward and backward; parameters and gradients stay float32."""


class OptimizerSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The outer optimizer, applied identically by every peer to the aggregated gradient. Its state is part of
    the certified state, so momentum needs no trust."""

    name: Annotated[str, msgspec.Meta(pattern=r"^(sgd|adamw)\Z")]
    """`sgd` (momentum) or `adamw`."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """SGD momentum; AdamW's beta1."""
    second_momentum: Fraction = 0.95
    """AdamW's beta2 (unused by sgd)."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon (unused by sgd)."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    warmup_steps: Count = 0
    """Steps of linear warm-up from zero."""
    decay_steps: Count = 0
    """Length of a cosine decay to `learning_rate_floor` after warm-up; 0 keeps the rate constant."""
    learning_rate_floor: NonNegativeFloat = 0.0
    """Learning rate at the end of the decay."""


class RuleSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The robust aggregation rule applied to every part."""

    name: Name = "centered_clip"
    """Rule name, for example `mean` or `centered_clip`."""
    parameters: dict[Name, Parameter] = {}
    """Rule parameters; checked by the rule itself."""


class AuditSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Random audits: who is drawn recomputes another member's work instead of doing its own."""

    rate: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.0625
    """Share of the members that validate in every step, one at least; it is what security costs in computing. 0 trusts
    everybody."""
    comparison: Annotated[str, msgspec.Meta(pattern=r"^(exact|tolerance)\Z")] = "exact"
    """How recomputed work is compared: `exact` (bit for bit) needs the same software on the same kind of device;
    `tolerance` needs `relative_l2_max`, and members keep the gradients of a few steps."""
    relative_l2_max: Annotated[float, msgspec.Meta(ge=1e-6, le=0.1)] | msgspec.UnsetType = msgspec.UNSET
    """Where honest machines may differ: the largest distance between two gradients of one work unit, as a share of
    their length (`crowdsurf doctor --calibrate` measures it). Decides nothing where the comparison is exact."""


class DeadlineSection(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the adaptive deadlines, in seconds. Inside them a deadline is the median of recent arrivals plus
    `deviations` median absolute deviations."""

    work_seconds_min: PositiveFloat = 0.5
    """Shortest wait for commits after a step began."""
    work_seconds_max: PositiveFloat = 60.0
    """Longest wait for commits; the wait before any arrival has been seen."""
    transfer_seconds_min: PositiveFloat = 0.5
    """Shortest wait for parts and for aggregates."""
    transfer_seconds_max: PositiveFloat = 30.0
    """Longest wait for parts and for aggregates."""
    delivery_seconds: PositiveFloat = 1.0
    """Assumed bound on the delivery of a small message between honest peers (the synchrony assumption)."""
    deviations: PositiveFloat = 8.0
    """Median absolute deviations added to the median."""


class Manifest(Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole run config. `run_id` is the digest of its canonical bytes."""

    name: Name
    """Name of the run, for people."""
    protocol_version: Annotated[int, msgspec.Meta(ge=1, le=65535)] = limits.PROTOCOL_VERSION
    """Version of wire and rules all peers must speak."""
    organizer: bytes
    """Peer id of the organizer's key; it signs the invite."""
    founders: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=limits.ROSTER_PEERS_MAX)]
    """Peer ids of the first roster. Everybody else joins by certified header."""
    task: TaskSection
    work: WorkSection = WorkSection()
    optimizer: OptimizerSection
    rule: RuleSection = RuleSection()
    deadlines: DeadlineSection = DeadlineSection()
    audit: AuditSection = AuditSection()
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    """Seed of the initial parameters and of the first beacon."""
    steps: Count = 0
    """Certified steps after which the run ends; 0 never ends."""
    codec: Annotated[str, msgspec.Meta(pattern=r"^float32\Z")] = "float32"
    """How parts travel. Others come with their issue."""
    peers_max: Annotated[int, msgspec.Meta(ge=1, le=limits.ROSTER_PEERS_MAX)] = 64
    """Members of the group; join requests beyond it wait."""
    quorum: Annotated[str, msgspec.Meta(pattern=r"^(majority|two_thirds)\Z")] = "majority"
    """Signatures that make a certificate: more than half, or more than two thirds of the roster."""
    missed_steps_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 5
    """Consecutive certified steps without a member's work after which it leaves the roster, unharmed."""
    admission: Annotated[str, msgspec.Meta(pattern=r"^(open|founders)\Z")] = "open"
    """`open`: anyone may ask to join; `founders`: nobody but the founders."""

    def __post_init__(self) -> None:
        """Checks that span fields. Raises ValueError (msgspec turns it into ValidationError on decode)."""
        for problem in manifest_problems(self):
            raise ValueError(problem)


def manifest_problems(manifest: Manifest) -> list[str]:
    """Every rule that spans several fields, as sentences; empty when all hold."""
    problems = []
    try:
        public_key_of(PeerId(manifest.organizer))
        for founder in manifest.founders:
            public_key_of(PeerId(founder))
    except Refusal:
        problems.append("organizer and founders must be Ed25519 libp2p peer ids")
    if len(set(manifest.founders)) != len(manifest.founders):
        problems.append("founders must be distinct")
    if len(manifest.founders) > manifest.peers_max:
        problems.append("there are more founders than peers_max")
    for low, high in (("work_seconds_min", "work_seconds_max"), ("transfer_seconds_min", "transfer_seconds_max")):
        if getattr(manifest.deadlines, low) > getattr(manifest.deadlines, high):
            problems.append(f"deadlines.{low} must not exceed deadlines.{high}")
    if manifest.audit.comparison == "tolerance" and manifest.audit.relative_l2_max is msgspec.UNSET:
        problems.append(
            "audit.comparison tolerance needs audit.relative_l2_max; crowdsurf doctor --calibrate measures it"
        )
    for section in (manifest.task.parameters, manifest.rule.parameters):
        for key, value in section.items():
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"parameter {key} must be finite")
    return problems


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes: one manifest has exactly one encoding."""
    return wire.pack(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Parse and validate a manifest received from anybody. Raises Refusal."""
    return wire.unpack(data, Manifest, limits.MANIFEST_BYTES_MAX)


def run_id_of(manifest: Manifest) -> Digest:
    """The run id: digest of the manifest's canonical bytes."""
    return digest("manifest", encode_manifest(manifest))
