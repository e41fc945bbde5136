"""`bench simulate`: what it costs to deliver one message in a simulated swarm, beside a toy loop on asyncio.

The idea: simulations are as useful as they are many, and nearly all of their time goes into messages. A message is one
event that reaches a node from the network: a signed message, a certificate, a request for messages, an answer with
certificates, or a blob. Its cost is the processor time of the whole run, rules, timers and checkers included, divided
by the number of messages. The baseline delivers as many through asyncio's queues and does nothing else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crowdsurf.peer.bench import spread
from crowdsurf.peer.clock import process_seconds
from crowdsurf.protocol import events
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.names import NamesCompute
from crowdsurf.protocol.sim.simulation import Plan, Simulation, plain_manifest

SIZES = (16, 64, 256)
STEPS = {16: 20, 64: 2, 256: 1}
"""Steps of one run: a step has about five messages for every pair of peers."""
MESSAGES = (
    events.EnvelopeReceived,
    events.CertificateReceived,
    events.WantReceived,
    events.ChainReceived,
    events.BlobArrived,
)
MICROSECONDS_GOAL = 40.0
GROWTH_GOAL = 1.5


@dataclass(frozen=True, slots=True)
class SimulateBench:
    """What to measure."""

    repeats: int = 5
    sizes: tuple[int, ...] = SIZES

    def __post_init__(self) -> None:
        """Raises MisuseError for what cannot be measured."""
        if self.repeats < 1 or not self.sizes or min(self.sizes) < 2:
            raise MisuseError("bench simulate needs at least 2 peers and 1 repeat")


class Counter(Observer):
    """Counts messages."""

    sees_events = True

    def __init__(self) -> None:
        self.messages = 0

    def on_event(self, host: Host, event: events.Event) -> None:
        """One more, if it came over the network."""
        self.messages += isinstance(event, MESSAGES)


def bench_simulate(plan: SimulateBench, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure all sizes and the baseline in turn; the figures as `bench simulate --json` prints them. Raises
    MisuseError, and WorldError if a simulated swarm broke a promise."""
    costs: dict[int, list[float]] = {size: [] for size in plan.sizes}
    messages: dict[int, int] = {}
    plain: list[float] = []
    load_before = os.getloadavg()[0]
    simulate_once(min(plan.sizes), seed=0)  # what is computed once per process is not counted
    for number in range(1, plan.repeats + 1):
        for size in plan.sizes:
            seconds, messages[size] = simulate_once(size, seed=number)
            costs[size].append(1e6 * seconds / messages[size])
        plain.append(1e6 * deliver_plainly(plan.sizes[0], messages[plan.sizes[0]]) / messages[plan.sizes[0]])
        newest = ", ".join(f"{costs[size][-1]:.1f} µs at {size} peers" for size in plan.sizes)
        tell(f"run {number} of {plan.repeats}: {newest}, baseline {plain[-1]:.1f} µs")
    by_peers = {str(size): spread(costs[size]) for size in plan.sizes}
    first, last = (by_peers[str(size)]["median"] for size in (plan.sizes[0], plan.sizes[-1]))
    baseline = spread(plain)
    return {
        "bench": "simulate",
        "ours": {
            "microseconds_per_message": by_peers[str(plan.sizes[0])],
            "by_peers": by_peers,
            "messages": {str(size): messages[size] for size in plan.sizes},
        },
        "baseline": {"microseconds_per_message": baseline, "messages": messages[plan.sizes[0]]},
        "ratio": round(first / baseline["median"], 3),
        "growth": round(last / first, 3),
        "repeats": plan.repeats,
        "machine": {"cores": os.cpu_count(), "load_average_before": round(load_before, 2)},
    }


def simulate_once(peers: int, seed: int) -> tuple[float, int]:
    """Processor seconds and messages of one run without faults. Raises WorldError if a promise was broken."""
    plan = Plan(peers=peers, seed=seed)
    counter = Counter()
    steps = STEPS.get(peers, max(1, min(20, 5000 // peers**2)))
    began = process_seconds()
    report = Simulation(plan, plain_manifest(plan, steps), NamesCompute(), [counter]).run()
    seconds = process_seconds() - began
    if report.violations:
        raise WorldError(f"the simulated swarm broke a promise: {report.violations[0]}")
    return seconds, counter.messages


def deliver_plainly(peers: int, messages: int) -> float:
    """Processor seconds that as many tasks need to hand as many messages to each other through queues."""
    began = process_seconds()
    asyncio.run(_deliver(peers, messages))
    return process_seconds() - began


async def _deliver(peers: int, messages: int) -> None:
    """Everybody sends to all others in turn; each message goes through the receiver's queue and wakes its task."""
    rounds = max(1, messages // (peers * (peers - 1)))
    queues: list[asyncio.Queue[tuple[int, int]]] = [asyncio.Queue(peers) for _ in range(peers)]
    async with asyncio.timeout(600.0), asyncio.TaskGroup() as group:
        for number in range(peers):
            group.create_task(_send(number, queues, rounds))
            group.create_task(_receive(queues[number], rounds * (peers - 1)))


async def _send(number: int, queues: Sequence[asyncio.Queue[tuple[int, int]]], rounds: int) -> None:
    for count in range(rounds):
        for other, queue in enumerate(queues):
            if other != number:
                await queue.put((number, count))
                await asyncio.sleep(0)


async def _receive(queue: asyncio.Queue[tuple[int, int]], messages: int) -> None:
    for _ in range(messages):
        await queue.get()
