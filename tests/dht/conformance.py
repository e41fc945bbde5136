"""What every directory must do, whatever carries it. A backend's test module gives the `swarm` fixture.

The idea: one list of promises, and strangers that lie. `Swarm.push` is what a stranger does who ignores our
code: it puts any bytes under any name, straight at a directory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgpack
import pytest

from crowdsurf.dht.base import Directory
from crowdsurf.dht.records import PeerRecord, sign_record
from crowdsurf.peer.clock import ManualClock
from crowdsurf.peer.keys import PeerKey
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.ids import Digest, digest

RUN = digest("test run", b"ours")
OTHER_RUN = digest("test run", b"another")


def record_of(
    key: PeerKey,
    expires_at: float,
    *,
    run_id: Digest = RUN,
    addresses: Sequence[str] = ("/ip4/192.0.2.1/tcp/4001",),
    step: int = 0,
) -> bytes:
    """A signed record."""
    return sign_record(run_id, key.peer_id, addresses, step, expires_at, key.sign)


class Swarm(ABC):
    """Directories of one run that can reach one another, on one clock that the test moves."""

    clock: ManualClock
    directories: list[Directory]

    @abstractmethod
    async def push(self, directory: Directory, name: bytes, data: bytes) -> bool:
        """Put `data` under `name` at a directory as a stranger would; whether it was taken."""


class DirectoryConformance:
    """The suite; subclass it as Test…, marked asyncio, with a `swarm` fixture of at least three directories."""

    async def test_announced_record_is_found_by_everyone(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        data = record_of(
            key, swarm.clock.wall_seconds() + 60, step=12, addresses=("/ip4/192.0.2.9/tcp/1", "/dns4/a/tcp/2")
        )
        await swarm.directories[0].announce(data)
        for directory in swarm.directories:
            (record,) = await directory.find(RUN)
            assert isinstance(record, PeerRecord)
            assert (record.peer, record.step) == (key.peer_id, 12)
            assert record.addresses == ("/ip4/192.0.2.9/tcp/1", "/dns4/a/tcp/2")

    async def test_many_peers_sorted(self, swarm: Swarm) -> None:
        keys = [PeerKey.generate() for _ in range(20)]
        for index, key in enumerate(keys):
            directory = swarm.directories[index % len(swarm.directories)]
            await directory.announce(record_of(key, swarm.clock.wall_seconds() + 60 + index))
        for directory in swarm.directories:
            assert [record.peer for record in await directory.find(RUN)] == sorted(key.peer_id for key in keys)

    async def test_newer_replaces_older_and_never_the_other_way(self, swarm: Swarm) -> None:
        key, now = PeerKey.generate(), swarm.clock.wall_seconds()
        older, newer = record_of(key, now + 60, step=1), record_of(key, now + 120, step=2)
        await swarm.directories[0].announce(older)
        await swarm.directories[0].announce(newer)
        for directory in swarm.directories:
            assert not await swarm.push(directory, key.peer_id, older)
            assert [record.step for record in await directory.find(RUN)] == [2]
        with pytest.raises(MisuseError, match="newer record"):
            await swarm.directories[0].announce(older)
        # An old record that is replayed must not take the newer one with it when it expires.
        swarm.clock.advance(61)
        for directory in swarm.directories:
            assert [record.step for record in await directory.find(RUN)] == [2]

    async def test_announcing_the_same_record_again_is_fine(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        data = record_of(key, swarm.clock.wall_seconds() + 60)
        for _ in range(3):
            await swarm.directories[0].announce(data)
        assert len(await swarm.directories[1].find(RUN)) == 1

    async def test_expired_is_gone_and_cannot_come_back(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        data = record_of(key, swarm.clock.wall_seconds() + 60)
        await swarm.directories[0].announce(data)
        assert len(await swarm.directories[1].find(RUN)) == 1
        swarm.clock.advance(60)
        for directory in swarm.directories:
            assert not await swarm.push(directory, key.peer_id, data)
            assert await directory.find(RUN) == []
        with pytest.raises(MisuseError, match="expired"):
            await swarm.directories[0].announce(data)

    async def test_expiry_too_far_away_is_refused(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        data = record_of(key, swarm.clock.wall_seconds() + limits.DHT_RECORD_LIFETIME_SECONDS_MAX + 1)
        assert not await swarm.push(swarm.directories[0], key.peer_id, data)
        with pytest.raises(MisuseError, match="from now"):
            await swarm.directories[0].announce(data)
        assert await swarm.directories[0].find(RUN) == []

    async def test_forged_records_are_never_returned(self, swarm: Swarm) -> None:
        honest, liar = PeerKey.generate(), PeerKey.generate()
        expires_at = swarm.clock.wall_seconds() + 60
        sound = record_of(honest, expires_at)
        flipped = sound[:-1] + bytes([sound[-1] ^ 1])
        signed_by_liar = sign_record(RUN, honest.peer_id, ("/ip4/203.0.113.1/tcp/1",), 0, expires_at, liar.sign)
        fields = msgpack.unpackb(sound)
        fields[4] += 30.0
        longer_life = msgpack.packb(fields)
        for directory in swarm.directories:
            for forged in (flipped, signed_by_liar, longer_life):
                assert not await swarm.push(directory, honest.peer_id, forged)
        assert await swarm.push(swarm.directories[0], honest.peer_id, sound)
        for directory in swarm.directories:
            assert [record.addresses for record in await directory.find(RUN)] in ([], [("/ip4/192.0.2.1/tcp/4001",)])

    async def test_record_under_another_peers_name_is_refused(self, swarm: Swarm) -> None:
        one, other = PeerKey.generate(), PeerKey.generate()
        data = record_of(one, swarm.clock.wall_seconds() + 60)
        for name in (other.peer_id, b"", b"x" * 5000, one.peer_id[:-1]):
            assert not await swarm.push(swarm.directories[0], name, data)
        assert await swarm.directories[0].find(RUN) == []

    async def test_wrong_run_is_not_stored_and_not_returned(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        data = record_of(key, swarm.clock.wall_seconds() + 60, run_id=OTHER_RUN)
        assert not await swarm.push(swarm.directories[0], key.peer_id, data)
        with pytest.raises(MisuseError, match="another run"):
            await swarm.directories[0].announce(data)
        for directory in swarm.directories:
            assert await directory.find(RUN) == []
            assert await directory.find(OTHER_RUN) == []

    async def test_oversized_and_garbage_are_refused(self, swarm: Swarm) -> None:
        key = PeerKey.generate()
        sound = record_of(key, swarm.clock.wall_seconds() + 60)
        oversized = bytes(limits.DHT_RECORD_BYTES_MAX + 1)
        for data in (
            oversized,
            b"",
            b"\xc1",
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 4000,
            sound + b"\0",
            sound[:-1],
            sound[1:],
        ):
            assert not await swarm.push(swarm.directories[0], key.peer_id, data)
            with pytest.raises(MisuseError):
                await swarm.directories[0].announce(data)
        assert await swarm.directories[0].find(RUN) == []
        assert await swarm.push(swarm.directories[0], key.peer_id, sound)

    async def test_a_flood_of_strangers_keeps_nobody_from_announcing(
        self, swarm: Swarm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "DHT_RECORDS_PER_KEY_MAX", 4)
        key, expires_at = PeerKey.generate(), swarm.clock.wall_seconds() + 60
        crowd = [PeerKey.generate() for _ in range(12)]
        for stranger in crowd[:8]:
            assert await swarm.push(swarm.directories[0], stranger.peer_id, record_of(stranger, expires_at))
        await swarm.directories[0].announce(record_of(key, expires_at))
        for stranger in crowd[8:]:
            assert await swarm.push(swarm.directories[0], stranger.peer_id, record_of(stranger, expires_at))
        found = {record.peer for record in await swarm.directories[0].find(RUN)}
        assert key.peer_id in found
        assert len(found) == 4

    async def test_refused_peers_are_not_found(self, swarm: Swarm) -> None:
        banned_key, honest = PeerKey.generate(), PeerKey.generate()
        expires_at = swarm.clock.wall_seconds() + 60
        for index, key in enumerate((banned_key, honest)):
            await swarm.directories[index].announce(record_of(key, expires_at))
        banned: set[bytes] = set()
        for directory in swarm.directories[:2]:
            directory.refuse(banned)
            assert len(await directory.find(RUN)) == 2
        banned.add(banned_key.peer_id)
        await swarm.push(swarm.directories[1], banned_key.peer_id, record_of(banned_key, expires_at + 1))
        for directory in swarm.directories[:2]:
            assert [record.peer for record in await directory.find(RUN)] == [honest.peer_id]

    async def test_close_twice_then_announce_is_misuse(self, swarm: Swarm) -> None:
        directory = swarm.directories[0]
        await directory.close()
        await directory.close()
        assert await directory.find(RUN) == []
        with pytest.raises(MisuseError, match="closed"):
            await directory.announce(record_of(PeerKey.generate(), swarm.clock.wall_seconds() + 60))
