"""One step of a trace as a readable story: who said what when, what was lost, late or refused, what came of it.

The idea: a trace file has one line for everything that happened to anybody, which nobody can read. `StoryWriter` adds
the few lines a reader needs besides (who was started again, what a cut lists, which promise was broken), and
`tell_story` picks the lines of one step out of the file and puts them in order. Peers are their numbers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from crowdsurf.protocol import effects, events, limits, wire
from crowdsurf.protocol.effects import Effect
from crowdsurf.protocol.errors import Refusal
from crowdsurf.protocol.messages import Cut, Kind
from crowdsurf.protocol.sim.checkers import Violation
from crowdsurf.protocol.sim.host import Host
from crowdsurf.protocol.sim.trace import TraceWriter

Line = dict[str, Any]

NAMES_SHOWN_MAX = 24
"""Peers or links listed in one line of a story; more are counted."""
_KINDS = frozenset(int(kind) for kind in Kind)


class StoryWriter(TraceWriter):
    """The trace file with what a story needs besides: `note` lines."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(write)
        self._nodes: dict[int, object] = {}

    def on_event(self, host: Host, event: events.Event) -> None:
        """Write what came in; a host whose memory is new was started (again)."""
        if self._nodes.get(host.number) is not host.node:
            self._note(host, "restarted" if host.number in self._nodes else "started", honest=host.honest)
            self._nodes[host.number] = host.node
        super().on_event(host, event)

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Write what it did, and of a proposal whom it lists."""
        super().on_effect(host, effect)
        if not isinstance(effect, effects.SendEnvelope) or effect.envelope.sender != host.id:
            return
        if effect.envelope.kind == Kind.PROPOSAL:
            self._note(host, "cut", view=effect.envelope.view, members=_listed(host, effect.envelope.payload))

    def finish(self, violations: Iterable[Violation]) -> None:
        """Write the promises that were broken."""
        for broken in violations:
            line = {"t": round(broken.time, 6), "host": broken.host, "note": "violation", "text": str(broken)}
            self._write(json.dumps(line, separators=(",", ":")) + "\n")

    def _note(self, host: Host, what: str, **fields: object) -> None:
        head = {"t": round(host.world.timeline.now, 6), "host": host.number, "step": host.step, "note": what}
        self._write(json.dumps(head | fields, separators=(",", ":")) + "\n")


def _listed(host: Host, payload: bytes) -> list[int]:
    """Numbers of the peers in a proposed cut; an attacker's may be nonsense."""
    roster = host.node.chain.head.roster.peers
    try:
        indexes = [index for index, _ in wire.unpack(payload, Cut, limits.ENVELOPE_BYTES_MAX).commits]
    except Refusal:
        return []
    return [host.world.hosts[roster[index]].number for index in indexes if index < len(roster)]


@dataclass(slots=True)
class Story:
    """What happened in one step. Times are seconds since `began`, links are `from→to`."""

    step: int
    began: float = 0.0
    """Virtual second of the first thing anybody did in this step."""
    ended: float | None = None
    """Virtual second at which the first peer had it certified."""
    contributors: list[int] = field(default_factory=list)
    void_parts: int | None = None
    happened: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Of the checkers, about this step."""
    complaints_in_all: int = 0


def tell_story(trace: Iterable[str], step: int) -> Story:
    """The story of `step` from the lines of a trace file. Raises ValueError for what is no trace."""
    told = _Teller(step)
    for text in trace:
        line = json.loads(text)
        if not isinstance(line, dict) or "t" not in line or "host" not in line:
            raise ValueError("a line lacks time or peer")
        told.take(line)
    return told.finish()


_MESSAGES = {
    "commit": "commits",
    "proposal": "proposes a cut in view {view}",
    "aggregate": "sends its aggregates",
    "reveal": "opens its nonce",
    "projection": "publishes the lines of its aggregates",
    "outcome": "proposes the header in view {view}",
    "vote": "votes in view {view}",
    "view_change": "asks for view {view}",
    "join": "asks to join",
    "leave": "says goodbye",
}
_OWN = {
    "WorkFailed": "cannot compute its work unit",
    "StateLost": "loses its worker and the state",
    "BlobFailed": "asked everybody in vain for some bytes",
    "StateFailed": "finds nobody who gives it a state",
    "RequestState": "asks for a whole state",
    "PeerGone": "sees the connection to peer {peer} break",
    "Finished": "is done: {reason}",
    "StepCertified": "has it certified",
    "started": "begins",
    "restarted": "is back after a crash",
    "cut": "lists {members}",
}


class _Teller:
    """Collects the lines of one step."""

    def __init__(self, step: int) -> None:
        self._story = Story(step)
        self._step = step
        self._acts: list[tuple[float, int, str]] = []
        """(time, peer, what it does)."""
        self._said: set[tuple[object, ...]] = set()
        self._sent: Counter[tuple[str, int, int]] = Counter()
        """Copies of a message by (kind, from, to); the same for those that arrived, and those that came too late."""
        self._came: Counter[tuple[str, int, int]] = Counter()
        self._late: Counter[tuple[str, int, int]] = Counter()
        self._refused: Counter[tuple[int, str]] = Counter()
        self._violations: list[tuple[float, str]] = []

    def take(self, line: Line) -> None:
        """One line of the trace."""
        name = str(line.get("event") or line.get("effect") or line.get("note"))
        envelope = line.get("envelope")
        if name == "violation":
            self._violations.append((line["t"], str(line["text"])))
        elif envelope is not None:
            if envelope["step"] == self._step:
                self._message(line, name, envelope)
        elif line.get("step") == self._step:
            self._own(line, name)

    def _message(self, line: Line, name: str, envelope: Line) -> None:
        host, kind = line["host"], str(envelope["kind"])
        if name == "EnvelopeReceived":
            self._came[kind, line["source"], host] += 1
            self._late[kind, line["source"], host] += line["step"] > self._step
        elif name == "SendEnvelope":
            self._sent.update((kind, host, receiver) for receiver in line["to"] if receiver != host)
            said = (kind, host, envelope["view"])
            if envelope["sender"] == host and said not in self._said:
                self._said.add(said)
                text = _MESSAGES.get(kind, f"sends a message of {kind}").format(view=envelope["view"])
                self._acts.append((line["t"], host, text))

    def _own(self, line: Line, name: str) -> None:
        """What happens inside one peer."""
        if name == "Refused":
            self._refused[line["host"], str(line["code"])] += 1
        elif name in _OWN:
            shown = line | ({"members": _some(map(str, line["members"]))} if name == "cut" else {})
            text = _OWN[name].format(**shown) + ("" if line.get("honest", True) else " (an attacker)")
            self._acts.append((line["t"], line["host"], text))
        if name == "StepCertified" and self._story.ended is None:
            self._story.ended = line["t"]
            self._story.contributors, self._story.void_parts = line["contributors"], line["void_parts"]

    def finish(self) -> Story:
        """Everything in order."""
        story = self._story
        self._acts.sort(key=lambda act: act[0])
        if self._acts:
            story.began = self._acts[0][0]
        story.happened = _merged(self._acts, story.began)
        story.lost = _by_kind(self._sent - self._came)
        story.late = _by_kind(self._late)
        story.refused = [f"peer {host}: {count} as {code}" for (host, code), count in sorted(self._refused.items())]
        mentioned = re.compile(rf"\bstep {self._step}\b")
        ended = self._acts[-1][0] if self._acts else story.began
        story.complaints = [
            text for time, text in self._violations if mentioned.search(text) or story.began <= time <= ended
        ]
        story.complaints_in_all = len(self._violations)
        return story


def _merged(acts: list[tuple[float, int, str]], began: float) -> list[str]:
    """One line for each run of peers that do the same."""
    lines: list[str] = []
    index = 0
    while index < len(acts):
        first = index
        while index < len(acts) and acts[index][2] == acts[first][2]:
            index += 1
        run = acts[first:index]
        start, stop = run[0][0] - began, run[-1][0] - began
        when = f"+{start:.3f} s" if len(run) == 1 else f"+{start:.3f} to +{stop:.3f} s"
        who = f"peer {run[0][1]}" if len(run) == 1 else "each of peers " + _some(str(host) for _, host, _ in run)
        lines.append(f"{when}  {who} {run[0][2]}")
    return lines


def _by_kind(counts: Counter[tuple[str, int, int]]) -> list[str]:
    """One line for each kind of message: how many, and on which links."""
    lines = []
    for kind in dict.fromkeys(kind for kind, _, _ in counts):
        links = [(source, to) for (name, source, to), count in counts.items() if name == kind for _ in range(count)]
        if links:
            lines.append(f"{len(links)} × {kind}: {_some(f'{source}→{to}' for source, to in sorted(links))}")
    return lines


def _some(words: Iterable[str]) -> str:
    """All of them, or the first ones and how many more."""
    listed = list(words)
    more = len(listed) - NAMES_SHOWN_MAX
    return " ".join(listed[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
