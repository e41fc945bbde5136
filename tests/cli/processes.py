"""The program as its users run it: a process, watched line by line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 90.0
"""Longest wait for one line or for the end: only a hanging program takes that long."""

PROGRAM = (sys.executable, "-m", "crowdsurf.cli.main")


def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Run a command to its end with `--json`: exit code and answer."""
    command = [*PROGRAM, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    return done.returncode, json.loads(done.stdout)


class RunningPeer:
    """`crowdsurf join … --json` in a process of its own."""

    def __init__(self, *arguments: str | Path, prepare: Callable[[], None] | None = None) -> None:
        """`prepare` runs in the new process before the program."""
        self._process = subprocess.Popen(
            [*PROGRAM, "join", *map(str, arguments), "--device", "cpu", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=prepare,
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self._process.stderr is not None:
            for line in self._process.stderr:
                self._lines.put(line.rstrip())
        self._lines.put(None)

    def wait_for(self, text: str) -> str:
        """The next line on standard error that holds `text`."""
        while (line := self._lines.get(timeout=PATIENCE_SECONDS)) is not None:
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended without saying {text!r}:\n" + "\n".join(self.said))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for its end: exit code and the one JSON object."""
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"it still ran after {PATIENCE_SECONDS:.0f} s:\n" + "\n".join(self._rest())) from None
        self._rest()
        output = self._process.stdout.read() if self._process.stdout is not None else ""
        assert output.count("\n") == 1, output
        answer: dict[str, Any] = json.loads(output)
        return code, answer

    def _rest(self) -> list[str]:
        """All that it has said, once it has ended."""
        while (line := self._lines.get(timeout=PATIENCE_SECONDS)) is not None:
            self.said.append(line)
        return self.said

    def kill(self) -> None:
        """Make sure that nothing is left."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                self._reader.join(PATIENCE_SECONDS)
                stream.close()


@contextlib.contextmanager
def peer(*arguments: str | Path, prepare: Callable[[], None] | None = None) -> Iterator[RunningPeer]:
    """A peer that is gone at the end of the block, whatever happens in it."""
    running = RunningPeer(*arguments, prepare=prepare)
    try:
        yield running
    finally:
        running.kill()
