"""The nemesis: what happens to hosts and links while faults are on.

The idea: every kind of trouble is a Poisson process of its own, drawn ahead event by event. `stop` ends them all:
cuts heal, the dead come back, and from then on the network only has latency.
"""

from __future__ import annotations

from collections.abc import Callable

from crowdsurf.protocol import events
from crowdsurf.protocol.roster import quorum_of
from crowdsurf.protocol.sim.host import WENT, Host, World

NOTICE_SECONDS_MAX = 1.0
"""How long it takes until others see that a connection broke."""


class Nemesis:
    """Crashes, cuts, dying workers, newcomers and leavers."""

    def __init__(self, world: World, hosts: list[Host], members: int) -> None:
        self._world = world
        self._hosts = hosts
        self._strangers = hosts[members:]
        self._on = False

    def begin(self) -> None:
        """Faults are on."""
        self._on = True
        faults, peers = self._world.network.faults, len(self._hosts) - len(self._strangers)
        self._repeat(faults.crash_rate * peers, self._crash_somebody)
        self._repeat(faults.worker_death_rate * peers, self._kill_a_worker)
        self._repeat(faults.partition_rate, self._cut)
        self._repeat(faults.join_rate, self._let_join)
        self._repeat(faults.leave_rate * peers, self._let_leave)

    def stop(self) -> None:
        """Faults are off: cuts heal, the dead come back, connections are there again."""
        self._on = False
        network = self._world.network
        network.faults = network.faults.calm()
        network.heal()
        for host in self._hosts:
            host.crash_at_effect = None
            if host.started and not host.alive and not host.finished:
                self._restart(host)
        for host in self._hosts:
            for other in self._hosts:
                if host is not other and host.alive:
                    self._notice(host, events.PeerSeen(other.id))

    # --- kinds of trouble --------------------------------------------------------------------------------

    def _repeat(self, per_minute: float, action: Callable[[], None]) -> None:
        if per_minute <= 0.0:
            return

        def happen() -> None:
            if self._on:
                action()
                self._repeat(per_minute, action)

        self._world.timeline.after(self._world.chance.expovariate(per_minute / 60.0), happen)

    def _somebody(self) -> Host | None:
        there = [host for host in self._hosts if host.alive and not host.finished]
        return self._world.chance.choice(there) if there else None

    def _crash_somebody(self) -> None:
        host = self._somebody()
        if host is None:
            return
        chance, faults = self._world.chance, self._world.network.faults
        # In the middle of what it does next: before the so-manieth effect of its coming events.
        host.crash_at_effect = int(chance.expovariate(1 / 20))
        back = chance.random() * faults.restart_seconds_max
        noticed = chance.random() >= faults.crash_unnoticed
        self._world.timeline.after(1.0, self._look_after, host, back, noticed)

    def _look_after(self, host: Host, back: float, noticed: bool) -> None:
        """By now it has died in the middle of something, or it dies idle."""
        if not self._on:
            return
        if host.alive:
            host.crash()
        if noticed:
            self._tell_others(host, events.PeerGone(host.id))
        self._world.timeline.after(back, self._come_back, host)

    def _come_back(self, host: Host) -> None:
        if self._on and not host.alive and not host.finished:
            self._restart(host)

    def _restart(self, host: Host) -> None:
        host.start()
        self._tell_others(host, events.PeerSeen(host.id))

    def _kill_a_worker(self) -> None:
        host = self._somebody()
        if host is not None:
            host.lose_worker()

    def _cut(self) -> None:
        chance, network, faults = self._world.chance, self._world.network, self._world.network.faults
        numbers = [host.number for host in self._hosts if host.started]
        side = chance.sample(numbers, chance.randrange(1, max(2, len(numbers) // 2 + 1)))
        rest = [number for number in numbers if number not in side]
        asymmetric = chance.random() < faults.partition_asymmetric
        heal = network.cut(side, rest, asymmetric)
        noticed = not asymmetric and chance.random() >= faults.crash_unnoticed
        if noticed:
            self._tell_across(side, rest, gone=True)
        seconds = chance.random() * faults.partition_seconds_max
        self._world.timeline.after(seconds, self._heal, heal, side, rest, noticed)

    def _heal(self, heal: Callable[[], None], side: list[int], rest: list[int], noticed: bool) -> None:
        heal()
        if noticed:
            self._tell_across(side, rest, gone=False)

    def _let_join(self) -> None:
        for host in self._strangers:
            if not host.started:
                host.start()
                return

    def _let_leave(self) -> None:
        """One at a time, and only while the others could go on if it went without being let go: a quorum of the
        roster that is there and honest is what every promise of progress asks for."""
        host = self._somebody()
        if host is None or any(other.leaving and not other.finished for other in self._hosts):
            return
        if self._others_can_go_on(host):
            host.leave(self._others_can_go_on)

    def _others_can_go_on(self, host: Host) -> bool:
        newest = max((other for other in self._hosts if other.alive), key=lambda other: other.step)
        roster = newest.node.chain.head.roster
        members = [self._world.hosts[peer] for peer in roster.peers if peer != host.id]
        there = [member for member in members if member.honest and not member.finished]
        # Who has asked to join, and goes before it is let in, may be let in all the same.
        late = {host, *(other for other in self._strangers if other.finished == WENT)}
        size = len(roster) + sum(other.id not in roster.indexes for other in late)
        return len(there) >= quorum_of(size, newest.node.chain.manifest.quorum)

    # --- who is told -------------------------------------------------------------------------------------

    def _tell_others(self, host: Host, event: events.Event) -> None:
        for other in self._hosts:
            if other is not host and other.alive:
                self._notice(other, event)

    def _tell_across(self, side: list[int], rest: list[int], gone: bool) -> None:
        for one, other in [(one, other) for one in side for other in rest]:
            for left, right in ((one, other), (other, one)):
                peer = self._hosts[right].id
                self._notice(self._hosts[left], events.PeerGone(peer) if gone else events.PeerSeen(peer))

    def _notice(self, host: Host, event: events.Event) -> None:
        self._world.timeline.after(self._world.chance.random() * NOTICE_SECONDS_MAX, host.give, event)
