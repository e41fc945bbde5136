"""The runs in a home: which there are, which one is meant, and the peer that is running one of them.

The idea: a user names a home and, only where that is not enough, the beginning of a run id.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from crowdsurf.peer.control_socket import ask
from crowdsurf.peer.journal import JOURNAL_FILE
from crowdsurf.peer.launch import MANIFEST_FILE
from crowdsurf.protocol.errors import MisuseError, Unreachable, WorldError

LEFT_SECONDS_MAX = 15.0
"""How long `leave` waits for the peer's end."""
LEFT_POLL_SECONDS = 0.2


def run_folders(home: Path, run: str | None = None) -> list[Path]:
    """The run folders in a home, in order of name; `run` is the beginning of a run id. Raises MisuseError."""
    wanted = (run or "").removeprefix("b3:").lower()
    folders = sorted(path.parent for path in home.glob(f"runs/*/{MANIFEST_FILE}"))
    if not folders:
        raise MisuseError(f"there is no run in {home}; name its folder with --home")
    # A folder is named by the first 16 digits of the run id.
    found = [folder for folder in folders if wanted[:16] == folder.name[: len(wanted)]]
    if not found:
        raise MisuseError(f"there is no run {run} in {home}; it has {', '.join(folder.name for folder in folders)}")
    return found


def the_run(home: Path, run: str | None = None) -> Path:
    """The one run folder meant. Raises MisuseError if there are several or none."""
    if (home / MANIFEST_FILE).exists() and (home / JOURNAL_FILE).exists():
        return home
    found = run_folders(home, run)
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise MisuseError(f"there are several runs in {home}; choose one with --run: {names}")
    return found[0]


def running_peer(home: Path, run: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Run folder and status of the peer that is running in a home. Raises Unreachable if there is none, MisuseError
    if there are several."""
    found = []
    nobody = Unreachable(f"no peer is running in {home}; start one with `crowdsurf join INVITE --home {home}`")
    if run is None and not list(home.glob(f"runs/*/{MANIFEST_FILE}")):
        raise nobody
    for folder in run_folders(home, run):
        with contextlib.suppress(WorldError):
            found.append((folder, ask(folder, "status")))
    if not found:
        raise nobody
    if len(found) > 1:
        names = ", ".join(folder.name for folder, _ in found)
        raise MisuseError(f"several peers are running in {home}; choose one with --run: {names}")
    return found[0]


async def leave(folder: Path) -> bool:
    """Ask the peer of a run folder to leave, and wait for its end; False if it still answers after a while."""
    await asyncio.to_thread(ask, folder, "leave")
    with contextlib.suppress(WorldError, TimeoutError):
        async with asyncio.timeout(LEFT_SECONDS_MAX):
            while True:
                await asyncio.sleep(LEFT_POLL_SECONDS)
                await asyncio.to_thread(ask, folder, "status")
    with contextlib.suppress(WorldError):
        await asyncio.to_thread(ask, folder, "status")
        return False
    return True
