"""A volunteer's peer from the command to its end: what it is told, what it tells, how it stops.

The idea: `Daemon` lives; this file gives it a place from an invite and a node config, says in plain sentences what
happens, and turns signals into an end: the first one leaves in order (others are told, the model is saved), and when
that takes too long, or a second one comes, it stops at once. Nothing is lost either way: everything that others rely
on is in the journal before it is sent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.compute.errors import WorkerDied
from crowdsurf.peer.config import NodeConfig, load_node_config
from crowdsurf.peer.config_reader import ConfigErrors, ConfigProblem, check_value, fields_of
from crowdsurf.peer.control_socket import ask
from crowdsurf.peer.daemon import Daemon, Outcome, Place
from crowdsurf.peer.invite import INVITE_BYTES_MAX, Invite, InviteError, decode_invite
from crowdsurf.peer.keys import PeerKey, verify
from crowdsurf.peer.launch import KEY_FILE, home_of, p2pd_place, run_folder
from crowdsurf.peer.organize import NODE_CONFIG_FILE
from crowdsurf.protocol.effects import StepCertified
from crowdsurf.protocol.errors import MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, PeerId, digest_text, peer_text, short
from crowdsurf.protocol.manifest import Manifest
from crowdsurf.protocol.messages import reason_name

if TYPE_CHECKING:
    from crowdsurf.peer.rehearsal import Rehearsal

LEAVE_SECONDS_MAX = 8.0
"""How long the others may take to let this peer go. Closing everything may take as long again."""
WATCH_SECONDS = 0.25

STOPPED = "stopped on request"


# --- what a volunteer says ---------------------------------------------------------------------------------


def read_invite(text: str) -> Invite:
    """The invite, given as itself or as a file that holds it. Raises MisuseError; WrongVersion among them."""
    if not text.strip().startswith("crowdsurf"):
        try:
            with Path(text).expanduser().open(encoding="ascii", errors="replace") as file:
                text = file.read(4 * INVITE_BYTES_MAX)
        except (OSError, ValueError) as error:
            raise InviteError(f"{text[:80]!r} is no invite (crowdsurf1:…), and no file that holds one") from error
    return decode_invite(text, verify)


def node_config(path: Path | None, environment: Mapping[str, str], options: Mapping[str, object | None]) -> NodeConfig:
    """The node config: the file (by default `node.yaml` in the home), then the environment, then the command line.

    `options` are values by field name; None means not given. Raises ConfigErrors with every problem.
    """
    home = options.get("home") or environment.get("CROWDSURF_HOME") or "~/.crowdsurf"
    in_home = Path(str(home)).expanduser() / NODE_CONFIG_FILE
    if path is None and in_home.is_file():
        path = in_home
    problems: list[ConfigProblem] = []
    given = {}
    for name, value in options.items():
        if value is not None:
            given[name], problem = check_value(value, fields_of(NodeConfig)[name].type)
            if problem:
                problems.append(ConfigProblem("command line", None, f"--{name.replace('_', '-')}", problem))
    try:
        config = load_node_config(path, environment)
    except ConfigErrors as errors:
        raise ConfigErrors([*errors.problems, *problems]) from errors
    if problems:
        raise ConfigErrors(problems)
    return msgspec.structs.replace(config, **given)


# --- the peer ----------------------------------------------------------------------------------------------


class VolunteerDaemon(Daemon):
    """A daemon that leaves the question how to leave to its owner, and has a last word when it is cut off."""

    def __init__(self, manifest: Manifest, place: Place) -> None:
        super().__init__(manifest, place)
        self.on_leave_asked: Callable[[], None] = self.ask_others_to_let_go

    def ask_to_leave(self) -> None:
        """Somebody asks this peer to leave: a signal, or `crowdsurf leave`."""
        self.on_leave_asked()

    def ask_others_to_let_go(self) -> None:
        """Say goodbye; the next certified steps take this peer out of the roster."""
        super().ask_to_leave()

    def outcome_so_far(self, reason: str) -> Outcome | None:
        """How a run that was cut off ended; None if it had not begun."""
        if self._node is None:
            return None
        return dataclasses.replace(self._outcome(self._node), reason=self._driver.finished or reason)


class Volunteer:
    """One peer, run from the command line. Set `tell` and `on_status` before `run`."""

    def __init__(
        self, invite: Invite, config: NodeConfig, evaluate_steps: int = 0, rehearsal: Rehearsal | None = None
    ) -> None:
        """`rehearsal` is what the peer is to do wrong, on purpose."""
        self.tell: Callable[[str], None] = lambda sentence: None
        """Gets one plain sentence per event."""
        self.on_step: Callable[[StepCertified], None] = lambda story: None
        self.on_status: Callable[[dict[str, Any]], None] = lambda status: None
        """Gets a snapshot several times a second."""
        self._invite = invite
        self._config = config
        self._evaluate_steps = evaluate_steps
        self._rehearsal = rehearsal
        self._peer = ""
        self._daemon: VolunteerDaemon | None = None
        self._life: asyncio.Task[Outcome] | None = None
        self._leaving = self._cut_off = False
        self._roster: tuple[PeerId, ...] = ()

    async def run(self) -> Outcome:
        """Live until the run is over or a signal ends it. Raises MisuseError for what the user gave, WorldError,
        Unreachable, RefusedBySwarm."""
        loop = asyncio.get_running_loop()
        self._life = asyncio.create_task(self._live(), name="volunteer")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            return await self._life
        except asyncio.CancelledError:
            if not self._cut_off:
                raise
            return self._outcome_cut_off()
        except WorkerDied:
            if not self._leaving:
                raise
            return self._outcome_cut_off()  # whoever signalled us signalled the worker too
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _live(self) -> Outcome:
        self._preflight()
        async with p2pd_place(self._invite, self._config, self._evaluate_steps, self.tell) as (manifest, place):
            place.rehearsal = self._rehearsal
            daemon = VolunteerDaemon(manifest, place)
            daemon.on_leave_asked = self.leave
            daemon.on_step = self._on_step
            self._daemon = daemon
            watching = asyncio.create_task(self._watch(daemon), name="watch")
            try:
                return await daemon.run()
            except MisuseError as error:
                # Arguments were checked before: what is wrong now is this machine (device, data, a second process).
                raise WorldError(str(error)) from error
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    def _preflight(self) -> None:
        """Say what this peer is, and find what would fail later. Raises MisuseError, WorldError."""
        home = home_of(self._config)
        run_id = Digest(self._invite.run_id)
        folder = run_folder(home, run_id)
        key = PeerKey.load_or_create(home / KEY_FILE)
        self._peer = peer_text(key.peer_id)
        if not os.access(home, os.W_OK | os.X_OK):
            raise WorldError(f"the home {home} cannot be written; choose another one with --home")
        if _is_running(folder):
            raise WorldError(
                f"this identity is in use: a peer of this run is running in {home} already; "
                f"look at it with `crowdsurf status --home {home}`, or choose another --home"
            )
        self.tell(f"This peer is …{short(key.peer_id)}; its key, journal and model are in {home}.")
        self.tell(f"The invite is good: run {digest_text(run_id)[:19]}…, signed by its organizer.")
        self.tell(f"It computes on device {self._config.device}; CPU threads: {self._config.threads}.")
        if self._rehearsal is not None:
            self.tell(self._rehearsal.sentence())

    # --- the end -------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._leaving:
            self._cut()
        else:
            self.leave()

    def leave(self) -> None:
        """Begin to leave in order."""
        if self._leaving:
            return
        self._leaving = True
        if self._daemon is None or self._is_alone():
            self.tell("Stopping.")
            self._cut()
            return
        asyncio.get_running_loop().call_later(LEAVE_SECONDS_MAX, self._cut)
        self.tell("Leaving in order; once more Ctrl-C to stop at once.")
        self._daemon.ask_others_to_let_go()

    def _cut(self) -> None:
        """Stop now, wherever we are; once."""
        if self._life is not None and not self._cut_off:
            self._cut_off = True
            self._life.cancel()

    def _is_alone(self) -> bool:
        """Whether there is nobody to take leave of. The last member stays in the roster: it can come back and go on."""
        status = self._daemon.status() if self._daemon is not None else {}
        return all(member["me"] for member in status.get("roster", ()))

    def _outcome_cut_off(self) -> Outcome:
        found = self._daemon.outcome_so_far(STOPPED) if self._daemon is not None else None
        nothing: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Outcome))
        numbers = dict.fromkeys(("certified_steps", "part_bytes_sent", "control_bytes_sent", "steps_here"), 0)
        return found or Outcome(
            **nothing | numbers | {"peer": self._peer, "reason": STOPPED, "seconds": 0.0, "banned": []}
        )

    # --- news ----------------------------------------------------------------------------------------------

    async def _watch(self, daemon: Daemon) -> None:
        """Tell how the start goes, and give snapshots."""
        said = "starting"
        began = monotonic_seconds()
        loaded = member = False
        while True:
            status = daemon.status()
            phase = status["phase"]
            if status["step"] is None and phase != said:
                said = phase
                self.tell(f"{phase.capitalize()}.")
            if not loaded and status.get("state_step") is not None:
                loaded = True
                self.tell(
                    f"The model as of step {status['state_step']} is loaded ({monotonic_seconds() - began:.1f} s)."
                )
            if loaded and not member and status["member"]:
                member = True
                self.tell(f"In the roster at step {status['step']}, which has {_count(status['roster'])}.")
            self.on_status(status)
            await asyncio.sleep(WATCH_SECONDS)

    def _on_step(self, story: StepCertified) -> None:
        before, self._roster = set(self._roster), story.roster
        left = set(story.left)
        mine = {peer for peer in {*story.joined, *left} if peer_text(peer) == self._peer}
        for peer in sorted(set(story.joined) - mine):
            self.tell(f"…{short(peer)} joined; the roster has {_count(story.roster)}.")
        for peer in sorted(left - mine):
            self.tell(f"…{short(peer)} left.")
        banned = {PeerId(ban.peer) for ban in story.banned}
        for ban in story.banned:
            name, reason = short(PeerId(ban.peer)), reason_name(ban.reason).replace("_", " ")
            self.tell(f"…{name} is banned for {reason} in step {ban.step}; see why: crowdsurf why {name}")
        if story.is_void:
            self.tell(f"Step {story.step} is void: somebody kept its nonce to itself. It is done again.")
        for peer in sorted(before - set(story.roster) - left - banned):
            self.tell(f"…{short(peer)} is left out: it missed too many steps, or did not keep its promises.")
        self.on_step(story)
        if self._leaving and self._is_alone():
            self._cut()  # the others were faster


def _count(peers: Sequence[object]) -> str:
    return "1 peer" if len(peers) == 1 else f"{len(peers)} peers"


def _is_running(folder: Path) -> bool:
    try:
        ask(folder, "status")
    except WorldError:
        return False
    return True
