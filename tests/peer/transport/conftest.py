"""Which event loops the tests run on: uvloop too where the transport touches sockets itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops for classes that set `on_every_loop`, asyncio's own for all others."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if getattr(getattr(item, "cls", None), "on_every_loop", False):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
