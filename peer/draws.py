"""The rules' dice without a swarm: how soon audits find everybody, and what withholding a nonce is worth.

The idea: who is drawn is a function of certified headers alone, so a strategy against the draw can be played on headers
alone, many thousand times, with the product's own rules for beacons, audits and rosters. Colluders here are as strong
as the network lets them be: they see every other nonce, and what each of their choices would lead to, before they
choose. Nobody else's nonce can be known or changed; here it is a digest of the seed, the trial and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdsurf.protocol import assignment, beacon
from crowdsurf.protocol.chain import Head, following_audits, following_roster
from crowdsurf.protocol.ids import Digest, PeerId
from crowdsurf.protocol.messages import Ban, Header, Reason, bitmap_of
from crowdsurf.protocol.roster import founding_roster
from crowdsurf.protocol.sim import theory
from crowdsurf.protocol.sim.names import name_of
from crowdsurf.protocol.sim.simulation import Plan, founders

EVENT = 0.05
"""Probability of the event that `event` is after."""
MISSED_STEPS_MAX = 5
FILE = "draws.json"


@dataclass(frozen=True, slots=True)
class Game:
    """Many trials of one strategy."""

    strategy: str
    """A name of `STRATEGIES`."""
    identities: int = 0
    """How many of the colluders may be sacrificed."""
    validators: int = 1
    peers: int = 16
    byzantine: int = 7
    trials: int = 10_000
    seed: int = 0


class Table:
    """Where a trial is played: the rules, and which of the peers collude."""

    def __init__(self, game: Game, trial: int) -> None:
        peers = founders(Plan(peers=game.peers))
        self.game = game
        self.colluders = frozenset(peers[: game.byzantine])
        self._salt = name_of("draws", game.strategy, game.identities, game.validators, game.seed, trial)
        self.head = Head(0, self._salt, founding_roster(peers), Digest(self._salt))

    def nonces(self) -> dict[PeerId, bytes]:
        """What everybody commits to in this step, before anybody knows another's."""
        return {peer: name_of(self._salt, self.head.step, peer) for peer in self.head.roster.peers}

    def after(
        self, nonces: dict[PeerId, bytes], banned: tuple[PeerId, ...] = (), joined: tuple[PeerId, ...] = ()
    ) -> Head:
        """The head after this step if just these nonces are opened. Who keeps its own makes the step void."""
        head = self.head
        opened = tuple(nonces.get(peer, b"") for peer in head.roster.peers)
        size, anything = len(head.roster), bytes(self._salt)
        header = Header(
            step=head.step,
            previous=head.previous,
            roster=head.roster.digest,
            state=anything,
            cut=anything,
            contributors=bitmap_of(list(range(size)), size),
            parts=(anything if all(opened) else b"",) * size,
            nonces=opened,
            beacon=beacon.next_beacon(head.beacon, opened),
            joined=joined,
            left=(),
            next_roster=b"",
            excused=bytes((size + 7) // 8),
            bans=tuple(Ban(peer, Reason.WRONG_GRADIENT, head.step, anything) for peer in sorted(banned)),
        )
        roster = following_roster(head, header, MISSED_STEPS_MAX)
        audits = following_audits(head, header, roster, self.game.validators / self.game.peers)
        return Head(head.step + 1, name_of(head.previous), roster, Digest(header.beacon), audits)

    def caught(self, head: Head) -> list[PeerId]:
        """Colluders whose work an honest member will recompute."""
        audits = [a for a in head.audits if a.target in self.colluders and a.validator not in self.colluders]
        return [audit.target for audit in audits]


def dodge(table: Table) -> bool:
    """All colluders cheat; whenever that would be found, one of those who would be caught keeps its nonce, so that the
    step is void. Whether the step that counts in the end catches nobody."""
    return _rerun(table, lambda head: not table.caught(head), lambda head: table.caught(head)[0])


def event(table: Table) -> bool:
    """Keep a nonce, and lose an identity, until the beacon has a property of probability `EVENT`."""

    def wanted(head: Head) -> bool:
        return int.from_bytes(beacon.derive(head.beacon, "event")[:8], "big") < EVENT * 2**64

    return _rerun(table, wanted, lambda head: min(table.colluders & set(table.head.roster.peers)))


def _rerun(table: Table, wanted: Callable[[Head], bool], victim: Callable[[Head], PeerId]) -> bool:
    left = table.game.identities
    while True:
        nonces = table.nonces()
        head = table.after(nonces)
        if wanted(head) or not left:
            return wanted(head)
        left -= 1
        del nonces[victim(head)]
        table.head = table.after(nonces)


def proposer(table: Table) -> bool:
    """One colluder may keep its nonce, whichever is best: whether a colluder is the next step's first proposer. A void
    step draws no audit, but the next step's duties are dealt by its beacon."""
    nonces = table.nonces()
    heads = [table.after(nonces)]
    if table.game.identities:
        for peer in sorted(table.colluders):
            heads.append(table.after({other: nonce for other, nonce in nonces.items() if other != peer}))
    firsts = (head.roster.peers[assignment.proposers(head.beacon, head.roster)[0]] for head in heads)
    return any(peer in table.colluders for peer in firsts)


def detection(table: Table) -> int:
    """How many draws it takes until every colluder was caught; who is caught is banned by the next header."""
    caught: tuple[PeerId, ...] = ()
    draws, left = 0, len(table.colluders)
    while left:
        table.head = table.after(table.nonces(), caught)
        caught = tuple(table.caught(table.head))
        draws, left = draws + 1, left - len(caught)
    return draws


def lasting(table: Table, steps: int) -> tuple[int, int]:
    """All colluders cheat as long as they are members, keep a nonce whenever it would be found, and join again as soon
    as they may: (steps of so many that were not void, gradients of colluders in those). None of them is ever banned."""
    counted = gradients = 0
    for _ in range(steps):
        roster, nonces = table.head.roster, table.nonces()
        out = table.colluders - set(roster.peers) - roster.kept_out(table.head.step + 1)
        joined = tuple(sorted(PeerId(peer) for peer in out))
        head = table.after(nonces, joined=joined)
        caught = table.caught(head)
        if caught:
            del nonces[caught[0]]
            head = table.after(nonces, joined=joined)
        else:
            counted += 1
            gradients += len(table.colluders & set(roster.peers))
        table.head = head
    return counted, gradients


STRATEGIES: dict[str, Callable[[Table], bool]] = {"dodge": dodge, "event": event, "proposer": proposer}


def expected(game: Game) -> float:
    """The probability that the theory gives a strategy."""
    if game.strategy == "event":
        return theory.rerun_probability(EVENT, game.identities)
    if game.strategy == "proposer":
        first, later = game.byzantine / game.peers, (game.byzantine - 1) / (game.peers - 1)
        return 1 - (1 - first) * (1 - later) ** (game.byzantine if game.identities else 0)
    # The group shrinks with every sacrifice, and with it changes what the next draw catches.
    draws = range(game.identities + 1)
    return 1 - math.prod(
        1 - theory.catch_distribution(game.peers - k, game.byzantine - k, _audits(game, k))[0] for k in draws
    )


def _audits(game: Game, sacrificed: int) -> int:
    return assignment.validators_of(game.peers - sacrificed, game.validators / game.peers)


GAMES = (
    *(Game("event", identities) for identities in (0, 1, 3, 7)),
    *(Game("dodge", identities, m) for m in (1, 2) for identities in (0, 1, 3)),
    *(Game("proposer", identities) for identities in (0, 1)),
)


def play(game: Game) -> dict[str, Any]:
    """How often the colluders got what they wanted, beside what the theory says."""
    strategy = STRATEGIES[game.strategy]
    hits = sum(strategy(Table(game, trial)) for trial in range(game.trials))
    return asdict(game) | {"hits": hits, "expected": expected(game)}


def play_lasting(validators: int, steps: int, trials: int, seed: int = 0) -> dict[str, Any]:
    """How much of a long run is left to the others, and how many colluders are in it, if they never risk a ban."""
    game = Game("lasting", validators=validators, trials=trials, seed=seed)
    played = [lasting(Table(game, trial), steps) for trial in range(trials)]
    counted, gradients = (sum(figures) for figures in zip(*played, strict=True))
    return asdict(game) | {"steps": steps, "void": 1 - counted / (steps * trials), "members": gradients / counted}


def detection_times(validators: int, runs: int, seed: int = 0) -> list[int]:
    """Draws until all were caught, in many runs of the rules alone."""
    game = Game("detection", validators=validators, seed=seed)
    return [detection(Table(game, trial)) for trial in range(runs)]


LASTING_STEPS = (50, 200, 1000)


def measure(folder: Path, validators: tuple[int, ...], games: tuple[Game, ...] = GAMES, runs: int = 2000) -> None:
    """Play all games, and for each number of validators the long run and so many detection times; keep everything in
    the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "games": [play(game) for game in games],
        "lasting": [play_lasting(number, steps, 50) for number in validators for steps in LASTING_STEPS],
        "detection": {str(number): detection_times(number, runs) for number in validators},
    }
    (folder / FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """What `measure` kept; None if it has not been, or was cut off."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
