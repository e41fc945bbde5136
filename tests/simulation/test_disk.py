"""The simulated disk: what a crash leaves is a prefix of what was written, and a node accepts it."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from crowdsurf.protocol import effects
from crowdsurf.protocol.envelope import Slot, seal
from crowdsurf.protocol.ids import Digest
from crowdsurf.protocol.messages import Kind, Leave
from crowdsurf.protocol.node import Node
from crowdsurf.protocol.recovery import record_of
from crowdsurf.protocol.sim import disk as disk_module
from crowdsurf.protocol.sim.disk import Disk
from crowdsurf.protocol.sim.host import Host, Observer
from crowdsurf.protocol.sim.keys import SimulatedSigner
from tests.simulation.runs import Setting, simulation

SIGNER = SimulatedSigner(1, 1)


class Torn(random.Random):
    """Chance that leaves a chosen number of bytes."""

    def __init__(self, left: int) -> None:
        super().__init__(0)
        self._left = left

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert stop is None
        assert start == step or self._left < start
        return self._left


def message(step: int, view: int = 0) -> effects.PersistSigned:
    slot = Slot(step, view, Kind.LEAVE, b"")
    return effects.PersistSigned(seal(SIGNER, bytes(32), slot, Leave()).envelope)


def size(effect: effects.PersistSigned) -> int:
    record = record_of(effect)
    assert record is not None
    return len(record[1])


@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_a_crash_leaves_whole_records_up_to_a_byte(durable: int, pending: int, data: st.DataObject) -> None:
    written = [message(1, view) for view in range(durable + pending)]
    sizes = [size(effect) for effect in written[durable:]]
    left = data.draw(st.integers(0, sum(sizes)), label="bytes left")
    disk = Disk()
    for effect in written[:durable]:
        disk.append(effect)
    disk.sync()
    for effect in written[durable:]:
        disk.append(effect)
    disk.crash(Torn(left))
    whole = max(count for count in range(pending + 1) if sum(sizes[:count]) <= left)
    assert disk.recovered().signed == [effect.envelope for effect in written[: durable + whole]]
    assert disk.signed() == {effect.envelope.signature for effect in written[: durable + whole]}


def test_what_was_not_synced_is_not_durable_and_a_second_crash_changes_nothing() -> None:
    disk = Disk()
    disk.append(message(1))
    assert disk.signed() == set()
    assert disk.recovered().signed == []
    disk.crash(Torn(0))
    disk.crash(Torn(0))
    assert disk.recovered().signed == []


def test_real_chance_tears_everywhere() -> None:
    """Every number of surviving records occurs."""
    survivors = set()
    for seed in range(60):
        disk = Disk()
        for view in range(3):
            disk.append(message(1, view))
        disk.crash(random.Random(seed))
        survivors.add(len(disk.recovered().signed))
    assert survivors >= {0, 1, 2}


def test_states_and_updates_are_kept_within_bounds() -> None:
    disk = Disk()
    for step in range(100):
        disk.save_state(step, Digest(bytes([step]) * 32))
        disk.save_update(step, (bytes([step]) * 32, b""))
    assert sorted(disk.states) == [98, 99]
    assert sorted(disk.updates) == list(range(100 - disk_module.UPDATES_KEPT, 100))
    assert disk.has_part(bytes([99]) * 32)
    assert not disk.has_part(bytes([3]) * 32)


def test_a_later_outcome_of_a_step_takes_the_place_of_an_earlier_one() -> None:
    disk = Disk()
    disk.save_update(3, (b"first",))
    disk.save_update(3, (b"second",))
    assert disk.updates == {3: (b"second",)}


@given(st.integers(0, 2**16))
def test_a_restarted_node_accepts_whatever_a_crash_leaves(seed: int) -> None:
    """A peer of a real run is cut off in the middle of its next write; its certified steps and locks come back."""
    disk, node = _written()
    again = Disk()
    again.certificates, again._durable, again._pending = list(disk.certificates), list(disk._durable), []
    for effect in disk._durable:
        if isinstance(effect, effects.PersistSigned):
            again.append(message(effect.envelope.step + 1, seed % 7))
    again.crash(random.Random(seed))
    made = node()
    made.restore(again.recovered())
    assert made.chain.head.step == len(disk.certificates) >= 3


def test_observers_see_every_certificate_that_a_crash_leaves() -> None:
    """Also one that was on the disk when the host died, before it had said so to anybody; one that is alone certifies
    whatever it signs at once."""
    made = simulation(Setting(peers=1, steps=200), 1)
    seen: set[int] = set()

    class Seeing(Observer):
        sees_effects = (effects.PersistCertificate,)

        def on_effect(self, host: Host, effect: effects.Effect) -> None:
            assert isinstance(effect, effects.PersistCertificate)
            seen.add(effect.certificate.header.step)

    made.world.watch(Seeing())
    (dying,) = made.hosts
    dying.start()
    for effect in range(60):
        dying.crash_at_effect = effect
        assert made.timeline.run(lambda: not dying.alive, 1000.0)
        assert set(range(len(dying.disk.certificates))) <= seen
        dying.start()
    assert len(seen) > 5


_RUN: list[tuple[Disk, Callable[[], Node]]] = []


def _written() -> tuple[Disk, Callable[[], Node]]:
    if not _RUN:
        made = simulation(Setting(peers=3, steps=6), 1)
        for host in made.hosts:
            host.start()
        made.timeline.run(lambda: made.hosts[0].step >= 4 and len(made.hosts[0].disk.signed()) >= 2, 100.0)
        host = made.hosts[0]
        _RUN.append((host.disk, lambda: made._make_node(host.signer)))
    return _RUN[0]
