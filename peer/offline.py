"""What can be checked of a peer's past without being that peer.

The idea: everything in a run folder proves itself. The manifest is the run id, certificates carry the signatures of
a quorum, updates and states have the digests that certificates name. So anyone with a copy of the folder can check
it; nothing here writes, or takes the journal's lock, so the peer may be running.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from crowdsurf.peer.journal import JOURNAL_FILE, read_journal
from crowdsurf.peer.keys import verify
from crowdsurf.peer.launch import MANIFEST_FILE, load_manifest
from crowdsurf.peer.runs import the_run
from crowdsurf.protocol.assignment import ELEMENT_BYTES, part_ranges
from crowdsurf.protocol.chain import Chain
from crowdsurf.protocol.errors import MisuseError, Refusal
from crowdsurf.protocol.ids import Digest, blob_digest, digest, digest_text
from crowdsurf.protocol.messages import Header, header_digest
from crowdsurf.protocol.recovery import certificates_of


@dataclass(slots=True)
class Checked:
    """What checking one or several journals of a run has shown; every field is documented in the README."""

    steps: int
    """Certified steps found and checked."""
    valid: bool = True
    first_invalid: int | None = None
    """The first step that is not what it claims to be."""
    reason: str | None = None
    journals: int = 1
    states_checked: int = 0
    updates_checked: int = 0
    last_header: str | None = None
    """Digest of the last certified header: two journals with the same one have the same past."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def fail(self, step: int, reason: str) -> None:
        """Note something invalid; the earliest step counts."""
        if self.first_invalid is None or step < self.first_invalid:
            self.valid, self.first_invalid, self.reason = False, step, reason


def verify_path(path: Path) -> Checked:
    """Check a run folder, a home with one run, or a folder of several homes (a demo's), which must agree.

    Raises MisuseError if there is no run, WorldError if a journal is missing or damaged.
    """
    if (path / MANIFEST_FILE).exists() and (path / JOURNAL_FILE).exists():
        return _verify_run(path)[0]
    if list(path.glob(f"runs/*/{MANIFEST_FILE}")):
        return _verify_run(the_run(path))[0]
    folders = sorted(found.parent for found in path.glob(f"*/runs/*/{MANIFEST_FILE}"))
    if not folders:
        raise MisuseError(f"there is no run in {path}; give a run folder, a peer's home or a demo's folder")
    return _verify_together(folders)


def _verify_run(folder: Path) -> tuple[Checked, list[Digest]]:
    """Check one run folder; also the digests of its valid headers, by step."""
    chain = Chain(load_manifest(folder))
    headers: list[Header] = []
    names: list[Digest] = []
    # Opened before the journal is read, so that every file has its certificate although the peer may go on.
    with Kept(folder) as kept:
        problem = None
        try:
            for certificate in certificates_of(read_journal(folder)):
                chain.extend(certificate, verify)
                headers.append(certificate.header)
                names.append(header_digest(certificate.header))
        except Refusal as refusal:
            problem = refusal.detail
        checked = Checked(chain.head.step, last_header=digest_text(names[-1]) if names else None)
        if problem is not None:
            checked.fail(chain.head.step, problem)
        for step, file in kept.states.items():
            if step < len(headers):
                checked.states_checked += 1
                if state_digest(file) != headers[step].state:
                    checked.fail(step, f"the kept state before step {step} is not the certified one")
        for step, file in kept.updates.items():
            if step < len(headers):
                checked.updates_checked += 1
                if not update_matches(file, headers[step]):
                    checked.fail(step, f"the kept update of step {step} is not the certified one")
    return checked, names


def _verify_together(folders: list[Path]) -> Checked:
    """Check several peers of one run, and that nobody's past differs from the longest one."""
    run_folder_names = {folder.name for folder in folders}
    if len(run_folder_names) > 1:
        raise MisuseError(
            f"these peers are of different runs ({', '.join(sorted(run_folder_names))}); verify each alone"
        )
    results = [(folder, *_verify_run(folder)) for folder in folders]
    _, longest, names = max(results, key=lambda result: result[1].steps)
    total = Checked(longest.steps, journals=len(folders), last_header=longest.last_header)
    for folder, checked, others in results:
        owner = folder.parents[1].name
        total.states_checked += checked.states_checked
        total.updates_checked += checked.updates_checked
        if checked.first_invalid is not None:
            total.fail(checked.first_invalid, f"{owner}: {checked.reason}")
        differing = [step for step, (ours, theirs) in enumerate(zip(names, others, strict=False)) if ours != theirs]
        if differing:
            total.fail(differing[0], f"{owner} has another certified step {differing[0]} than the others")
    return total


# --- kept files ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Kept:
    """The states and updates of a run folder, opened at one moment: what the peer deletes later stays readable."""

    folder: Path
    states: dict[int, BinaryIO] = field(default_factory=dict)
    """State before the step, by rising step."""
    updates: dict[int, BinaryIO] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Kept:
        self.states = self._open("states", ".state")
        self.updates = self._open("updates", ".update")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, name: str, suffix: str) -> dict[int, BinaryIO]:
        found = {}
        for path in (self.folder / name).glob(f"*{suffix}"):
            step = path.name.removesuffix(suffix)
            with contextlib.suppress(FileNotFoundError):  # deleted by its peer just now
                if step.isdigit():
                    file = self._stack.enter_context(path.open("rb"))
                    if _hold(file):
                        found[int(step)] = file
        return dict(sorted(found.items()))


@contextlib.contextmanager
def mapped(file: BinaryIO) -> Iterator[memoryview]:
    """A file's bytes, without reading them all into memory."""
    if os.fstat(file.fileno()).st_size == 0:
        yield memoryview(b"")
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        yield view


def state_digest(file: BinaryIO) -> Digest:
    """What a certified header would call this state."""
    with mapped(file) as view:
        return digest("state", view)


def update_matches(file: BinaryIO, header: Header) -> bool:
    """Whether every part of an update that is not void has the digest the header names."""
    with mapped(file) as view:
        elements, rest = divmod(len(view), ELEMENT_BYTES)
        ranges = part_ranges(elements, len(header.parts))
        return not rest and all(
            not name or _part_digest(view, start, stop) == name
            for name, (start, stop) in zip(header.parts, ranges, strict=True)
        )


def _hold(file: BinaryIO) -> bool:
    """Keep a running peer from writing over a file that is being read; False if it has just begun to, or the file
    is no longer the one its path names."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except (BlockingIOError, FileNotFoundError):
        return False


def _part_digest(view: memoryview, start: int, stop: int) -> Digest:
    with view[start * ELEMENT_BYTES : stop * ELEMENT_BYTES] as part:
        return blob_digest(part)
