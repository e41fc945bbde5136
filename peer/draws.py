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

import msgspec

from crowdsurf.protocol import assignment, beacon
from crowdsurf.protocol.chain import Head, beacon_after, following_audits, following_roster, owed_after
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
LASTING_TRIALS = 200


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
            beacon=bytes(32),
            joined=joined,
            left=(),
            next_roster=b"",
            excused=bytes((size + 7) // 8),
            bans=tuple(Ban(peer, Reason.WRONG_GRADIENT, head.step, anything) for peer in sorted(banned)),
        )
        header = msgspec.structs.replace(header, beacon=beacon_after(head.beacon, header))
        roster = following_roster(head, header, MISSED_STEPS_MAX)
        audits = following_audits(head, header, roster, assignment.rate_of(self.game.validators, self.game.peers))
        drawn, owed = Digest(header.beacon), owed_after(head, header, audits)
        return Head(head.step + 1, name_of(head.previous), roster, drawn, audits, owed=owed)

    def caught(self, head: Head) -> list[PeerId]:
        """Colluders whose work an honest member will recompute."""
        audits = [a for a in head.audits if a.target in self.colluders and a.validator not in self.colluders]
        return [audit.target for audit in audits]


def dodge(table: Table) -> bool:
    """All colluders cheat; whenever that would be found, one of those who would be caught keeps its nonce, so that the
    step is void; for one that has done so before another one. Whether the step that counts in the end catches nobody,
    work that was done in the void ones included."""

    def victim(head: Head) -> PeerId:
        still = table.colluders & set(table.head.roster.peers)
        return next((peer for peer in table.caught(head) if peer in still), min(still))

    return _rerun(table, lambda head: not table.caught(head), victim)


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
    """One colluder may keep its nonce, whichever is best: whether a colluder is the next step's first proposer. Whoever
    does so, the beacon of the void step is the same; but the member that is left out shifts the others' places."""
    nonces = table.nonces()
    heads = [table.after(nonces)]
    if table.game.identities:
        for peer in sorted(table.colluders):
            heads.append(table.after({other: nonce for other, nonce in nonces.items() if other != peer}))
    firsts = (head.roster.peers[assignment.proposers(head.beacon, head.roster, head.step)[0]] for head in heads)
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


def lasting(table: Table, steps_max: int = 2000) -> tuple[int, int, int]:
    """All colluders cheat as long as they are members, keep a nonce whenever that would be found, and join again as
    soon as they may, until all of them are banned: (steps, void ones among them, gradients in the others)."""
    void = gradients = step = 0
    banned: set[PeerId] = set()
    while banned != table.colluders and step < steps_max:
        step += 1
        roster, nonces = table.head.roster, table.nonces()
        out = table.colluders - set(roster.peers) - roster.kept_out(table.head.step + 1)
        joined = tuple(sorted(PeerId(peer) for peer in out))
        head = table.after(nonces, joined=joined)
        caught, still = table.caught(head), table.colluders & set(roster.peers)
        if caught and still:
            void += 1
            victim = next((peer for peer in caught if peer in still), min(still))
            del nonces[victim]
            head = table.after(nonces, joined=joined)
        else:
            gradients += len(still)
            new = tuple(set(caught) - banned)
            banned |= set(new)
            head = table.after(nonces, new, tuple(peer for peer in joined if peer not in new))
        table.head = head
    return step, void, gradients


STRATEGIES: dict[str, Callable[[Table], bool]] = {"dodge": dodge, "event": event, "proposer": proposer}


def expected(game: Game) -> float:
    """The probability that the theory gives a strategy."""
    if game.strategy == "event":
        return theory.rerun_probability(EVENT, game.identities)
    if game.strategy == "proposer":
        first = 1 - game.byzantine / game.peers
        return 1 - first * (1 - _best_place(game) if game.identities else 1.0)
    # The group shrinks with every sacrifice, and all that was sacrificed is looked at in every later draw.
    return 1 - math.prod(1 - _clean(game, k) for k in range(game.identities + 1))


def _best_place(game: Game) -> float:
    """The probability that a colluder comes first in the order of all but one, if the one left out is chosen among
    them. Members stand in the order of their ids, which is the same in every trial: the first place falls on one of two
    neighbours."""
    table = Table(game, 0)
    members, colluders = table.head.roster.peers, table.colluders
    orders = [[peer for peer in members if peer != left_out] for left_out in colluders]
    places = range(len(members) - 1)
    return sum(any(order[place] in colluders for order in orders) for place in places) / len(places)


def _clean(game: Game, sacrificed: int) -> float:
    """The probability that a draw after so many sacrifices catches nobody: no honest validator has a colluder to look
    at, and everybody that looks at what the sacrificed ones did is a colluder."""
    n, b = game.peers - sacrificed, game.byzantine - sacrificed
    m = assignment.validators_of(n, assignment.rate_of(game.validators, game.peers))
    more = min(assignment.OWED_VALIDATORS * sacrificed, n // 2 - m)
    total = 0.0
    for colluding in range(max(0, m - (n - b)), min(m, b) + 1):
        honest = m - colluding
        drawn = math.comb(b, colluding) * math.comb(n - b, honest) / math.comb(n, m)
        spared = math.prod((n - b - honest - k) / (n - m - k) for k in range(honest))
        owed = math.comb(b - colluding, more) / math.comb(n - m, more)
        total += drawn * max(0.0, spared) * owed
    return total


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


def play_lasting(validators: int, trials: int, seed: int = 0) -> dict[str, Any]:
    """How long colluders last, and what it costs the others, if they dodge every audit they can."""
    game = Game("lasting", validators=validators, trials=trials, seed=seed)
    played = [lasting(Table(game, trial)) for trial in range(trials)]
    steps, void, gradients = (sum(figures) for figures in zip(*played, strict=True))
    return asdict(game) | {"steps": steps / trials, "void": void / steps, "gradients": gradients / trials}


def detection_times(validators: int, runs: int, seed: int = 0) -> list[int]:
    """Draws until all were caught, in many runs of the rules alone."""
    game = Game("detection", validators=validators, seed=seed)
    return [detection(Table(game, trial)) for trial in range(runs)]


def measure(folder: Path, validators: tuple[int, ...], games: tuple[Game, ...] = GAMES, runs: int = 2000) -> None:
    """Play all games, and for each number of validators the long run and so many detection times; keep everything in
    the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "games": [play(game) for game in games],
        "lasting": [play_lasting(number, LASTING_TRIALS) for number in validators],
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
