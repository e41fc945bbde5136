"""Keeping evidence: at once what convicts, the long past behind, one file after the other, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from crowdsurf.peer import evidence_keeper
from crowdsurf.peer.evidence_keeper import EvidenceKeeper
from crowdsurf.protocol.errors import WorldError
from tests.peer.shell import key_of, soon, until

pytestmark = pytest.mark.usefixtures("tidy")


def evidence(number: int) -> Any:
    """As far as a keeper looks."""
    return SimpleNamespace(ban=SimpleNamespace(peer=key_of(number).peer_id), number=number)


class SlowStore:
    """`gate` holds up whoever adds a past; `story` is what happened, in order."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.known: set[int] = set()

    def save(self, evidence: Any) -> bool:
        self.story.append(f"save {evidence.number}")
        return evidence.number not in self.known

    def add_past(self, evidence: Any) -> bool:
        self.story.append(f"begin {evidence.number}")
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.story.append(f"end {evidence.number}")
        return True


def keeper_of(store: Any) -> EvidenceKeeper:
    return EvidenceKeeper(store)


async def test_nobody_waits_for_the_past_and_one_is_added_after_the_other() -> None:
    store = SlowStore()
    keeper = keeper_of(store)
    for number in range(3):
        await soon(keeper.keep(evidence(number)))
    await until(lambda: "begin 0" in store.story)
    assert sorted(store.story) == ["begin 0", "save 0", "save 1", "save 2"]
    store.gate.set()
    await soon(keeper.finish())
    assert [line for line in store.story if "save" not in line] == [
        f"{what} {number}" for number in range(3) for what in ("begin", "end")
    ]
    await soon(keeper.keep(evidence(3)))
    await soon(keeper.finish())
    assert store.story[-1] == "end 3"
    await soon(keeper.close())


async def test_what_is_there_already_is_left_alone() -> None:
    store = SlowStore()
    store.known = {1}
    keeper = keeper_of(store)
    await soon(keeper.keep(evidence(1)))
    await soon(keeper.finish())
    assert store.story == ["save 1"]


async def test_when_too_many_wait_the_rest_is_kept_without_its_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_keeper, "WAITING_MAX", 2)
    store = SlowStore()
    keeper = keeper_of(store)
    await soon(keeper.keep(evidence(0)))
    await until(lambda: "begin 0" in store.story)
    for number in range(1, 5):
        await soon(keeper.keep(evidence(number)))
    store.gate.set()
    await soon(keeper.finish())
    assert [line for line in store.story if "save" in line] == [f"save {number}" for number in range(5)]
    assert [line for line in store.story if "end" in line] == ["end 0", "end 1", "end 2"]


async def test_the_end_waits_for_the_file_that_is_written_and_for_no_other() -> None:
    store = SlowStore()
    keeper = keeper_of(store)
    for number in range(2):
        await soon(keeper.keep(evidence(number)))
    await until(lambda: "begin 0" in store.story)
    finishing = asyncio.create_task(keeper.finish())
    await asyncio.sleep(0)
    finishing.cancel()
    closing = asyncio.create_task(keeper.close())
    await asyncio.gather(finishing, return_exceptions=True)
    assert not closing.done()
    store.gate.set()
    await soon(closing)
    assert [line for line in store.story if "end" in line] == ["end 0"]


async def test_a_disk_that_is_full_stops_nobody() -> None:
    store = SlowStore()
    store.gate.set()
    keeper = keeper_of(store)
    store.error = WorldError("the disk is full")
    await soon(keeper.keep(evidence(0)))
    await soon(keeper.finish())
    store.error = None
    await soon(keeper.keep(evidence(1)))
    await soon(keeper.finish())
    assert [line for line in store.story if "end" in line] == ["end 1"]


async def test_a_bug_is_not_hidden() -> None:
    store = SlowStore()
    store.gate.set()
    store.error = KeyError("a bug")
    keeper = keeper_of(store)
    await soon(keeper.keep(evidence(0)))
    with pytest.raises(KeyError):
        await soon(keeper.finish())
    with pytest.raises(KeyError):
        await soon(keeper.keep(evidence(1)))
