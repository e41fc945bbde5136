"""What a peer says about itself is plain JSON in every phase, and says what it waits for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from crowdsurf.peer.duties import Evaluation
from crowdsurf.peer.metrics import Metrics
from crowdsurf.peer.status import snapshot, waiting_for
from crowdsurf.protocol import events
from crowdsurf.protocol.ids import Digest, peer_text, short
from crowdsurf.protocol.manifest import AuditSection
from crowdsurf.protocol.step_table import Phase
from tests.protocol.swarm import Swarm


@pytest.fixture
def swarm() -> Swarm:
    return Swarm(4)


def status(swarm: Swarm, number: int = 0) -> dict[str, Any]:
    node = swarm.list[number].node
    metrics = Metrics()
    metrics.count_refusal("stale")
    metrics.count_refusal("stale")
    found = snapshot(node, metrics, Evaluation(), {swarm.list[1].id})
    parsed: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return parsed


def test_before_anything_is_known(swarm: Swarm) -> None:
    found = status(swarm)
    assert (found["step"], found["phase"], found["state_step"], found["state_digest"]) == (0, "idle", None, None)
    assert found["waiting_for"] == "a state to start from"
    assert found["refused"] == {"stale": 2}
    assert found["evaluated_step"] is None
    assert [(one["me"], one["connected"]) for one in found["roster"]].count((True, False)) == 1
    assert [one["peer"] for one in found["roster"] if one["connected"]] == [peer_text(swarm.list[1].id)]


def test_every_moment_of_a_run_can_be_shown(swarm: Swarm) -> None:
    phases, waits = set(), set()

    def look() -> bool:
        found = status(swarm)
        phases.add(found["phase"])
        waits.add(found["waiting_for"].split(" of ")[0])
        return all(peer.finished for peer in swarm.list)

    swarm.start()
    assert swarm.run(look)
    assert {phase.value for phase in (Phase.WORK, Phase.COMMIT, Phase.EXCHANGE, Phase.SIGN)} <= phases
    assert {"its own work unit", "commits", "nothing: the run is over for this peer"} <= waits
    assert status(swarm)["step"] == swarm.manifest.steps


def test_a_missing_peer_is_named(swarm: Swarm) -> None:
    gone = swarm.list[3]
    swarm.kill(gone, noticed=False)
    swarm.start()
    swarm.run(lambda: swarm.now > 0.4)
    assert waiting_for(swarm.list[0].node) == f"commits of …{short(gone.id)}"


def test_a_peer_that_is_behind_or_not_a_member_says_so(swarm: Swarm) -> None:
    newcomer = Swarm(3, extra=1).list[3]
    newcomer.begin()
    assert waiting_for(newcomer.node).startswith("the roster to admit it")
    node: Any = SimpleNamespace(
        finished=False, chain=SimpleNamespace(head=SimpleNamespace(step=9)), catch_up=SimpleNamespace(step=4)
    )
    assert waiting_for(node) == "the updates of steps 4 to 8, which others have certified"


def test_a_worker_that_died_leaves_no_state(swarm: Swarm) -> None:
    swarm.start()
    swarm.run(lambda: swarm.now > 0.1)
    swarm.list[0].give(events.StateLost())
    found = status(swarm)
    assert (found["state_step"], found["phase"], found["waiting_for"]) == (None, "idle", "a state to start from")
    swarm.list[0].give(events.StateReady(0, Digest(bytes(32))))
    assert status(swarm)["state_step"] == 0


def test_in_a_checked_run_it_says_whose_projections_are_lacking() -> None:
    swarm = Swarm(5, steps=6, audit=AuditSection(rate=0.0625))
    seen = set()

    def look() -> bool:
        found = status(swarm)
        if found["phase"] == Phase.PROJECT.value:
            seen.add(found["waiting_for"].split(" of ")[0])
        return all(peer.finished for peer in swarm.list)

    swarm.start()
    assert swarm.run(look)
    assert "projections" in seen
    assert seen <= {"projections", "what it works out about the aggregates itself"}
