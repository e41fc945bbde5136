"""A whole swarm on one machine: real peers, real training, watched from outside.

The idea: the demo is an organizer and a few volunteers in a hurry. It makes a manifest and a home for every peer,
starts each peer the way a volunteer would (a process of its own over libp2p, or a daemon in this process over the
memory transport), asks each for its status now and then, and adds up what they report at the end. It has no path
into a peer that a user would not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crowdsurf.peer.clock import monotonic_seconds
from crowdsurf.peer.compute.client import ComputeClient
from crowdsurf.peer.config import load_config
from crowdsurf.peer.control_socket import ask
from crowdsurf.peer.daemon import Daemon, Place
from crowdsurf.peer.invite import encode_invite
from crowdsurf.peer.keys import PeerKey
from crowdsurf.peer.launch import KEY_FILE, MemorySwarm, run_folder, save_manifest
from crowdsurf.protocol.errors import CrowdsurfError, MisuseError, WorldError
from crowdsurf.protocol.ids import Digest, peer_text
from crowdsurf.protocol.manifest import Manifest, run_id_of

if TYPE_CHECKING:
    from crowdsurf.peer.rehearsal import Rehearsal

WATCH_SECONDS = 0.25
STOP_SECONDS_MAX = 10.0
LIARS_SECONDS_MAX = 5.0
"""How long peers that misbehave may take to end once the honest ones have."""
BYZANTINE_SHARE_MAX = 0.499
"""No rule defends against half or more."""
PEERS_MAX = 64
TRANSPORTS = ("p2pd", "memory")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to rehearse."""

    folder: Path
    """Where the peers live; the journals stay there."""
    peers: int = 4
    steps: int | None = None
    task: str = "digits"
    transport: str = "p2pd"
    seed: int = 0
    rule: str | None = None
    kill_one_at: int | None = None
    evaluate_steps: int = 10
    byzantine: int = 0
    """How many of the peers, the last ones, misbehave."""
    attack: str | None = None
    attack_from: int | None = None
    strength: float | None = None


@dataclass(slots=True)
class PeerView:
    """What the watcher knows of one peer."""

    number: int
    peer: str
    byzantine: bool = False
    status: dict[str, Any] = field(default_factory=dict)
    killed: bool = False
    ended: bool = False


@dataclass(slots=True)
class View:
    """What the watcher knows of the whole demo; handed to whoever draws it."""

    task: str
    steps: int
    transport: str
    invite: str
    seconds: float
    peers: list[PeerView]

    @property
    def leader(self) -> dict[str, Any]:
        """The status that is furthest, among those of honest peers."""
        honest = (peer.status for peer in self.peers if not peer.byzantine)
        return max(honest, key=lambda status: status.get("step") or 0)


class Actor(ABC):
    """One peer of the demo, however it is run."""

    def __init__(self, number: int, key: PeerKey, home: Path) -> None:
        self.number = number
        self.key = key
        self.home = home
        self.killed = False
        self.byzantine = False

    @abstractmethod
    async def start(self) -> None:
        """Begin."""

    @abstractmethod
    async def status(self) -> dict[str, Any]:
        """Its own word; empty while it does not answer."""

    @abstractmethod
    async def kill(self) -> None:
        """As SIGKILL would."""

    @abstractmethod
    async def result(self) -> dict[str, Any]:
        """Wait for its end; its outcome. Raises WorldError if it failed."""

    @abstractmethod
    async def stop(self) -> None:
        """Make sure that nothing of it is left."""


class ProcessActor(Actor):
    """A peer in a process of its own, started with the command a volunteer types."""

    def __init__(self, number: int, key: PeerKey, home: Path, folder: Path, command: Sequence[str]) -> None:
        super().__init__(number, key, home)
        self._folder = folder
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self.home / "log.txt").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    async def status(self) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(ask, self._folder, "status")
        except WorldError:
            return {}

    async def kill(self) -> None:
        self.killed = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def result(self) -> dict[str, Any]:
        if self._process is None:
            return {}
        output, _ = await self._process.communicate()
        if self.killed:
            return {}
        answer = _last_object(output.decode("utf-8", "replace"))
        if self._process.returncode != 0 or "error" in answer or not answer:
            said = answer.get("error", {}).get("message") or self._last_words()
            raise WorldError(f"peer {self.number} failed: {said}")
        return answer

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _last_words(self) -> str:
        lines = (self.home / "log.txt").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


class MemoryActor(Actor):
    """A daemon in this process."""

    def __init__(self, number: int, home: Path, swarm: MemorySwarm, manifest: Manifest, place: Place) -> None:
        super().__init__(number, place.key, home)
        self._swarm = swarm
        self._daemon = Daemon(manifest, place)
        self._transport = place.transport
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._daemon.run())

    async def status(self) -> dict[str, Any]:
        return self._daemon.status()

    async def kill(self) -> None:
        self.killed = True
        self._swarm.kill(self.key)
        await self.stop()

    async def result(self) -> dict[str, Any]:
        if self._task is None or self.killed:
            return {}
        try:
            found: dict[str, Any] = (await self._task).as_json()
            return found
        except asyncio.CancelledError:
            if self.killed:
                return {}
            raise

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._transport.close()


def check_options(options: DemoOptions) -> None:
    """Raises MisuseError with everything that is wrong."""
    problems = []
    if not 1 <= options.peers <= PEERS_MAX:
        problems.append(f"--peers must be between 1 and {PEERS_MAX}, not {options.peers}")
    if options.transport not in TRANSPORTS:
        problems.append(f"--transport must be one of {', '.join(TRANSPORTS)}, not {options.transport}")
    if options.steps is not None and options.steps < 1:
        problems.append(f"--steps must be at least 1, not {options.steps}")
    if options.kill_one_at is not None and options.peers < 3:
        problems.append("--kill-one-at needs at least 3 peers: the others must be more than half")
    if options.kill_one_at is not None and options.steps is not None and options.kill_one_at >= options.steps:
        problems.append(f"--kill-one-at {options.kill_one_at} is after the last step")
    problems += _wrong_attack(options)
    if problems:
        raise MisuseError("\n".join(problems))


def _wrong_attack(options: DemoOptions) -> list[str]:
    problems = []
    if not 0 <= 2 * options.byzantine < max(options.peers, 1):
        problems.append(
            f"--byzantine must be less than half of --peers, not {options.byzantine} of {options.peers}: "
            "whatever this program promises, it promises to an honest majority"
        )
    said = {"--attack-from": options.attack_from, "--strength": options.strength}
    if options.attack is None:
        problems += [f"{name} needs --attack: what the liars do" for name, value in said.items() if value is not None]
        if options.byzantine > 0:
            problems.append("--byzantine needs --attack: what those peers do")
    else:
        # Imported here: an honest demo has no use for it.
        from crowdsurf.peer.rehearsal import wrong_attack

        problem = wrong_attack(options.attack)
        if problem is not None:
            problems.append(f"--attack {problem}")
        if not options.byzantine:
            problems.append("--attack needs --byzantine: how many peers attack")
    if options.strength is not None and not 0.0 <= options.strength < math.inf:
        problems.append(f"--strength must be a number that is not negative, not {options.strength}")
    if options.attack_from is not None and options.attack_from < 0:
        problems.append(f"--attack-from must be a step, not {options.attack_from}")
    if options.byzantine and options.kill_one_at is not None and options.peers - options.byzantine < 2:
        problems.append("--kill-one-at needs at least 2 honest peers")
    return problems


class Demo:
    """Runs one demo. `run` returns the answer that `demo --json` prints."""

    def __init__(self, options: DemoOptions, peer_command: Callable[[str, Path, int], Sequence[str]]) -> None:
        """`peer_command` makes the command line of a peer from its invite, home and evaluation interval."""
        check_options(options)
        self._options = options
        self._peer_command = peer_command
        self._began = monotonic_seconds()
        self._setup_seconds: float | None = None
        self._actors: list[Actor] = []
        self.on_view: Callable[[View], None] = lambda view: None

    async def run(self) -> dict[str, Any]:
        """Rehearse. Raises MisuseError, WorldError."""
        options = self._options
        homes = [options.folder / f"peer-{number}" for number in range(options.peers)]
        keys = [PeerKey.load_or_create(home / KEY_FILE) for home in homes]
        manifest = await self._make_manifest(keys)
        invite, listen = self._make_invite(manifest, keys[0])
        self._make_actors(manifest, homes, keys, invite, listen)
        views = [PeerView(actor.number, peer_text(actor.key.peer_id), actor.byzantine) for actor in self._actors]
        view = View(options.task, manifest.steps, options.transport, invite, 0.0, views)
        try:
            for actor in self._actors:
                await actor.start()
            results = await self._results(view)
        finally:
            await asyncio.gather(*(actor.stop() for actor in self._actors))
        self.on_view(view)
        return self._answer(manifest, [result for result in results if result])

    # --- preparing -----------------------------------------------------------------------------------------

    async def _make_manifest(self, keys: list[PeerKey]) -> Manifest:
        options = self._options
        founders = tuple(key.peer_id for key in keys)
        overrides: dict[str, Any] = {"seed": options.seed, "steps": options.steps}
        draft = load_config(options.task)
        rule = draft.build(founders[0], founders, Digest(b"")).rule
        if options.rule not in (None, rule.name):
            rule = msgspec.structs.replace(rule, name=options.rule, parameters={})
        if options.byzantine:
            # As an organizer who expects them would.
            share = min(options.byzantine / options.peers, BYZANTINE_SHARE_MAX)
            rule = msgspec.structs.replace(rule, parameters={**rule.parameters, "byzantine_share": share})
        overrides |= {"rule.name": rule.name, "rule.parameters": rule.parameters}
        client = ComputeClient()
        try:
            info = await client.start(draft.build(founders[0], founders, Digest(b""), **overrides), "cpu")
        finally:
            await client.close()
        manifest = draft.build(founders[0], founders, info.dataset_digest, **overrides)
        if options.kill_one_at is not None and options.kill_one_at >= manifest.steps:
            raise MisuseError(f"--kill-one-at {options.kill_one_at} is after the last step ({manifest.steps})")
        return manifest

    def _make_invite(self, manifest: Manifest, key: PeerKey) -> tuple[str, str]:
        """The invite, and where the first peer listens."""
        listen = f"/ip4/127.0.0.1/tcp/{_free_port()}"
        address = f"{listen}/p2p/{peer_text(key.peer_id)}"
        return encode_invite(run_id_of(manifest), (address,), key.peer_id, key.sign), listen

    def _make_actors(
        self, manifest: Manifest, homes: list[Path], keys: list[PeerKey], invite: str, listen: str
    ) -> None:
        run_id, swarm = run_id_of(manifest), MemorySwarm()
        honest = self._options.peers - self._options.byzantine
        rehearsal = self._rehearsal(keys[honest:])
        for number, (home, key) in enumerate(zip(homes, keys, strict=True)):
            folder = run_folder(home, run_id)
            save_manifest(folder, manifest)
            evaluate_steps = self._options.evaluate_steps if number == 0 else 0
            if self._options.transport == "memory":
                place = swarm.place(manifest, home, key, evaluate_steps)
                place.rehearsal = rehearsal if number >= honest else None
                self._actors.append(MemoryActor(number, home, swarm, manifest, place))
                continue
            address = listen if number == 0 else "/ip4/127.0.0.1/tcp/0"
            (home / "node.yaml").write_text(f"listen: ['{address}']\n", "utf-8")
            command = [*self._peer_command(invite, home, evaluate_steps)]
            if rehearsal is not None and number >= honest:
                command += rehearsal.arguments()
            self._actors.append(ProcessActor(number, key, home, folder, command))
        for actor in self._actors[honest:]:
            actor.byzantine = True

    def _rehearsal(self, liars: list[PeerKey]) -> Rehearsal | None:
        """What the liars are told."""
        if not liars or self._options.attack is None:
            return None
        # Imported here: an honest demo has no use for it.
        from crowdsurf.peer.rehearsal import Rehearsal

        options, members = self._options, tuple(key.peer_id for key in liars)
        return Rehearsal(self._options.attack, options.strength, options.attack_from or 0, members)

    async def _results(self, view: View) -> list[dict[str, Any]]:
        """Watch until every honest peer has ended, and give their results. The first failure of one of them, or of the
        watching, ends it all; how a liar ends is its own affair."""
        watching = asyncio.create_task(self._watch(view))
        ending = [asyncio.create_task(self._ended(actor, view)) for actor in self._honest]
        lying = [asyncio.create_task(self._liar_ended(actor, view)) for actor in self._actors if actor.byzantine]
        running: set[asyncio.Task[Any]] = {watching, *ending}
        try:
            while not all(task.done() for task in ending):
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if lying:
                await asyncio.wait(lying, timeout=LIARS_SECONDS_MAX)
            return [task.result() for task in ending]
        finally:
            for task in (watching, *ending, *lying):
                task.cancel()
            await asyncio.gather(watching, *ending, *lying, return_exceptions=True)

    @property
    def _honest(self) -> list[Actor]:
        return [actor for actor in self._actors if not actor.byzantine]

    # --- watching ------------------------------------------------------------------------------------------

    async def _watch(self, view: View) -> None:
        while True:
            for actor, seen in zip(self._actors, view.peers, strict=True):
                if not seen.ended and not actor.killed:
                    seen.status = await actor.status() or seen.status
                seen.killed = actor.killed
            view.seconds = monotonic_seconds() - self._began
            step = view.leader.get("step") or 0
            if step and self._setup_seconds is None:
                self._setup_seconds = view.seconds
            kill_at = self._options.kill_one_at
            if kill_at is not None and step >= kill_at and not any(actor.killed for actor in self._actors):
                await self._honest[-1].kill()
            self.on_view(view)
            await asyncio.sleep(WATCH_SECONDS)

    async def _ended(self, actor: Actor, view: View) -> dict[str, Any]:
        result = await actor.result()
        view.peers[actor.number].ended = True
        if result:
            view.peers[actor.number].status |= {"step": result["certified_steps"], "phase": "done"}
        return result

    async def _liar_ended(self, actor: Actor, view: View) -> None:
        try:
            await self._ended(actor, view)
        except CrowdsurfError as error:
            view.peers[actor.number].ended = True
            view.peers[actor.number].status |= {"phase": f"ended: {error}"}

    def _answer(self, manifest: Manifest, results: list[dict[str, Any]]) -> dict[str, Any]:
        """The demo's JSON, about honest peers; every field is documented in the README."""
        options = self._options
        evaluated = next((result for result in results if result["test_loss"] is not None), {})
        digests = {result["peer"]: result["state_digest"] for result in results}
        peer_steps = sum(max(1, result["steps_here"]) for result in results)
        control = sum(result["control_bytes_sent"] for result in results)
        parts = sum(result["part_bytes_sent"] for result in results)
        certified = min((result["certified_steps"] for result in results), default=0)
        seconds = monotonic_seconds() - self._began
        liars = {peer_text(actor.key.peer_id) for actor in self._actors if actor.byzantine}
        longest: list[dict[str, Any]] = max((result["banned"] for result in results), key=len, default=[])
        banned = [{**row, "byzantine": row["peer"] in liars} for row in longest]
        return {
            "peers": options.peers,
            "byzantine": options.byzantine,
            "attack": options.attack,
            "task": options.task,
            "transport": options.transport,
            "steps": manifest.steps,
            "certified_steps": certified,
            "wall_s": round(seconds, 2),
            "setup_s": round(self._setup_seconds if self._setup_seconds is not None else seconds, 2),
            "test_accuracy": evaluated.get("test_accuracy"),
            "initial_test_accuracy": evaluated.get("initial_test_accuracy"),
            "test_loss": _finite(evaluated.get("test_loss")),
            "initial_test_loss": evaluated.get("initial_test_loss"),
            "state_digests": digests,
            "consensus": _are_alike(digests) and certified == manifest.steps,
            "banned": banned,
            "honest_banned": sum(1 for row in banned if not row["byzantine"]),
            "killed": [peer_text(actor.key.peer_id) for actor in self._actors if actor.killed],
            "bytes_sent_per_peer_step": round((parts + control) / max(1, peer_steps)),
            "control_bytes_sent_per_peer_step": round(control / max(1, peer_steps)),
            "journal": str(options.folder),
        }


def _finite(value: float | None) -> float | None:
    """JSON has no infinities."""
    return value if value is not None and math.isfinite(value) else None


def _are_alike(digests: dict[str, str | None]) -> bool:
    """Whether all peers that ended hold a state, and the same one."""
    return len(set(digests.values())) == 1 and None not in digests.values()


def _last_object(output: str) -> dict[str, Any]:
    """The JSON object in the last line of a program's output; empty if there is none."""
    lines = output.strip().splitlines()
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(lines[-1])
        if isinstance(found, dict):
            return found
    return {}


def _free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def failed(answer: dict[str, Any]) -> CrowdsurfError | None:
    """Why a demo that ran did not end as it should, if so."""
    if not answer["consensus"]:
        states = len(set(answer["state_digests"].values()))
        return WorldError(
            f"the peers did not end alike: {answer['certified_steps']} of {answer['steps']} steps are certified and "
            f"there are {states} different states; the logs are in {answer['journal']}"
        )
    return None
