"""What a peer can say about itself: one snapshot, for `status`, `demo` and logs.

The idea: everything a person asks ("which step? how good? who is here? what are you waiting for, and why?") is
read from the node and the counters in one place, as plain JSON values. Every field is documented in the README.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crowdsurf.peer.duties import Evaluation
from crowdsurf.peer.metrics import Metrics
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.ids import PeerId, digest_text, peer_text, short
from crowdsurf.protocol.messages import reason_name
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.step import StepMachine
from crowdsurf.protocol.step_table import Phase


def snapshot(node: Node, metrics: Metrics, evaluation: Evaluation, connected: set[PeerId]) -> dict[str, Any]:
    """The state of a running peer as JSON values."""
    head = node.chain.head
    return {
        "peer": peer_text(node.me),
        "run": digest_text(node.chain.run_id),
        "name": node.manifest.name,
        "task": node.manifest.task.name,
        "step": head.step,
        "steps": node.manifest.steps,
        "phase": node.machine.phase.value if node.machine is not None else "idle",
        "view": node.machine.ballot.view if node.machine is not None else 0,
        "member": node.is_member,
        "waiting_for": waiting_for(node),
        "roster": [
            {
                "peer": peer_text(PeerId(member.peer)),
                "missed": member.missed,
                "strikes": member.strikes,
                "connected": member.peer in connected,
                "me": member.peer == node.me,
            }
            for member in head.roster.members
        ],
        "validating": head.audit_of(node.me) is not None,
        "banned": banned(node.chain),
        "resting": [
            {"peer": peer_text(PeerId(rest.peer)), "until": rest.until}
            for rest in head.roster.resting
            if rest.until > head.step
        ],
        "candidates": [peer_text(peer) for peer in sorted(node.membership.candidates())],
        "state_digest": digest_text(node.catch_up.digest) if node.catch_up.step is not None else None,
        "state_step": node.catch_up.step,
        "evaluated_step": evaluation.step if evaluation.step >= 0 else None,
        "test_loss": evaluation.test_loss,
        "test_accuracy": evaluation.test_accuracy,
        "control_bytes_sent": metrics.control_bytes_sent,
        "part_bytes_sent": metrics.part_bytes_sent,
        "part_bytes_received": metrics.part_bytes_received,
        "refused": dict(sorted(metrics.refused.items())),
    }


def banned(chain: Chain) -> list[dict[str, Any]]:
    """Everybody who was banned: by the header of which step, why, and in which step it did what it did."""
    return [
        {
            "peer": peer_text(PeerId(ban.peer)),
            "step": step,
            "reason": reason_name(ban.reason),
            "offence_step": ban.step,
        }
        for step, ban in chain.bans
    ]


def waiting_for(node: Node) -> str:
    """What this peer waits for and why, as one sentence."""
    step = node.chain.head.step
    if node.finished:
        return "nothing: the run is over for this peer"
    if node.catch_up.step is None:
        return "a state to start from"
    if node.catch_up.step < step:
        return f"the updates of steps {node.catch_up.step} to {step - 1}, which others have certified"
    if node.machine is None:
        return "the roster to admit it: more than half of a step's contributors must name it"
    return _waiting_in_step(node.machine)


def _waiting_in_step(machine: StepMachine) -> str:
    phase, accepted = machine.phase, machine.accepted
    if phase is Phase.WORK:
        audit = machine.facts.head.audit_of(machine.me)
        return "its own work unit" if audit is None else f"the work of …{short(audit.target)}, which it validates"
    if phase is Phase.COMMIT:
        return _names("commits of", machine.commits_lacking())
    if phase is Phase.PROPOSE or accepted is None:
        return f"a proposal of …{short(machine.proposer(machine.ballot.view))} (view {machine.ballot.view})"
    if phase is Phase.EXCHANGE:
        return _names("parts of", [item.peer for item in machine.parts_lacking()])
    if phase is Phase.AGGREGATE:
        return _names("aggregates of", [accepted.duties[part] for part in machine.aggregates_lacking()])
    if phase is Phase.REVEAL:
        return _names("nonces of", accepted.reveals_lacking(set()))
    if phase is Phase.PROJECT:
        lacking = list(accepted.projections_lacking(set()))
        return _names("projections of", lacking) if lacking else "what it works out about the aggregates itself"
    return f"{machine.facts.quorum} votes for the outcome of …{short(machine.proposer(machine.ballot.view))}"


def _names(what: str, waited_for: Iterable[PeerId]) -> str:
    peers = sorted(set(waited_for))
    if not peers:
        return f"{what} nobody in particular"
    return f"{what} " + ", ".join(f"…{short(peer)}" for peer in peers)
