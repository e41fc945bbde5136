"""The page about attackers, written from whatever has been measured so far.

The idea: a figure is shown with the number of runs behind it or not at all, so an unfinished study gives an honest
page. Nothing is typed in by hand: bans, strikes and accuracies are those of the stored runs, and what they are held
against is `protocol/sim/theory.py`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crowdsurf.peer.byzantine import BORNE, BY_AGGREGATORS, NONE, TABLES, Cell, Study, cells_of
from crowdsurf.protocol.assignment import rate_of
from crowdsurf.protocol.sim import theory

Result = dict[str, Any]


class Results:
    """What was measured of a study, and what the theory says about it."""

    def __init__(self, study: Study, stored: dict[Cell, Result], draws: dict[str, Any]) -> None:
        self.study = study
        self.draws = draws
        self.cells = list(cells_of(study))
        self._found: dict[tuple[str, str, str | None, int], list[tuple[int, Result]]] = {}
        for cell in self.cells:
            if cell in stored:
                key = cell.table, cell.attack, cell.rule, cell.validators
                self._found.setdefault(key, []).append((cell.seed, stored[cell]))

    def of(self, table: str, attack: str, rule: str | None, validators: int) -> dict[int, Result]:
        """By seed."""
        return dict(self._found.get((table, attack, rule, validators), ()))

    def stored(self, table: str) -> tuple[int, int]:
        """(measured, wanted) simulations of a table."""
        wanted = sum(cell.table == table for cell in self.cells)
        return sum(len(found) for key, found in self._found.items() if key[0] == table), wanted

    def broken(self) -> list[str]:
        """Promises that did not hold, with the run in which."""
        found = [(key, seed, result) for key, runs in self._found.items() for seed, result in runs]
        return [
            f"{table}, {attack}, {rule or validators}, seed {seed}: {result['violations'][0]}"
            for (table, attack, rule, validators), seed, result in found
            if result.get("violations")
        ]

    def lag(self, table: str, validators: int) -> int:
        """How many further draws whoever is caught takes part in, in most cases."""
        lags: Counter[int] = Counter()
        for (kind, attack, _, number), found in self._found.items():
            if (kind, number) == (table, validators) and attack != NONE:
                lags.update(result["lag"] for _, result in found if table == "detection")
                lags.update(header - step - 1 for _, result in found for step, header, *_ in result.get("bans", ()))
        return lags.most_common(1)[0][0] if lags else 0

    def law(self, validators: int, lag: int) -> list[float]:
        """Of the time until all are caught. Their share is fixed, so there are fewer validators in a smaller group."""
        study = self.study
        rate = rate_of(validators, study.peers)
        return theory.ban_times(study.peers, study.byzantine, audit_rate=rate, lag=lag, idle_validators=True)


def caught_after(cell_from: int, result: Result, byzantine: int) -> int | None:
    """Attacked steps until the last attacker did what it was banned for; None if one is left."""
    steps = [step for step, _, _, deserved in result["bans"] if deserved]
    return max(steps) - cell_from + 1 if steps and len(steps) == byzantine else None


def honest_banned(results: Iterable[Result]) -> int:
    """All together."""
    return sum(not deserved for result in results for *_, deserved in result["bans"])


def page(results: Results, said: str, plots: Sequence[str]) -> str:
    """The page in Markdown; `said` is the command that made it, `plots` the pictures beside it."""
    study = results.study
    counts = [f"{table} {found} of {wanted}" for table in TABLES for found, wanted in [results.stored(table)] if wanted]
    lines = [
        "# Attackers against verification",
        "",
        f"{study.peers} simulated peers, {study.byzantine} of which attack. They know all honest gradients.",
        "`peer/byzantine.py` says what is played, `protocol/sim/theory.py` how soon audits should catch everybody.",
        "",
        f"Runs measured so far: {', '.join(counts)}. What is missing is left empty.",
        "",
        f"Promises (docs/simulation.md) that were broken in these runs: {len(results.broken())}.",
        "",
        *(f"- {text}" for text in results.broken()),
        "",
        "Made with",
        "",
        f"    {said}",
        "",
    ]
    for validators in study.validators:
        lines += [*_audited(results, validators), *_pictures(plots, f"accuracy-{validators}"), ""]
    lines += [*_longer(results), ""]
    lines += [*_baselines(results), "", *_protocol(results), "", *_detection(results), ""]
    lines += [*_pictures(plots, "detection"), "", *_withholding(results), "", *_again(results), ""]
    return "\n".join(lines)


def _pictures(plots: Sequence[str], name: str) -> Iterator[str]:
    for plot in plots:
        if Path(plot).stem == name:
            yield from ("", f"![{name}]({plot})")


def _audited(results: Results, validators: int) -> Iterator[str]:
    study, lag = results.study, results.lag("audited", validators)
    bound = theory.percentile(results.law(validators, lag), 0.99)
    clean = results.of("audited", NONE, None, validators)
    yield f"## Learning with {validators} of {study.peers} validating"
    yield ""
    yield f"Digits with the preset's network and centered_clip, {study.steps} steps. The attack begins with"
    yield f"step {study.attack_from}, while the learning rate is high."
    yield ""
    yield "- all caught after: attacked steps, up to the one that the last attacker was caught for, by seed;"
    yield f"  99 % of runs should need {bound} at most"
    yield "- final: accuracy in percent after the last step, mean (lowest–highest)"
    yield "- against no attack: how many points that is from the run of the same seed without attackers, mean"
    yield "- lowest: accuracy after any step since the attack began, in any run"
    yield ""
    yield f"| attack | all caught after | in {bound} | honest banned | final | against no attack | lowest |"
    yield "|---|---|---|---|---|---|---|"
    for attack in (NONE, *study.gradient):
        found = results.of("audited", attack, None, validators)
        if not found:
            yield f"| {attack} |  |  |  |  |  |  |"
            continue
        times = [caught_after(study.attack_from, result, study.byzantine) for result in found.values()]
        said = _times(study, found) if attack != NONE else "–"
        within = f"{sum(t is not None and t <= bound for t in times)} of {len(times)}" if attack != NONE else "–"
        lowest = [100 * min(result["accuracy"][study.attack_from + 1 :], default=math.nan) for result in found.values()]
        yield (
            f"| {attack} | {said} | {within} | {honest_banned(found.values())} | {_range(_finals(found))} | "
            f"{_against(found, clean) if attack != NONE else '–'} | {min(lowest):.1f} |"
        )


def _longer(results: Results) -> Iterator[str]:
    study, validators = results.study, results.study.validators[0]
    clean = results.of("longer", NONE, None, validators)
    yield "## Whether harm lasts"
    yield ""
    yield f"The attacks that leave most behind, {validators} of {study.peers} validating, in runs of"
    yield f"{study.longer_steps} steps, not {study.steps}; the learning rate falls until the end. Columns as above."
    yield ""
    yield "| attack | all caught after | final | against no attack |"
    yield "|---|---|---|---|"
    for attack in (NONE, *study.slow_to_heal):
        found = results.of("longer", attack, None, validators)
        if attack == NONE or not found:
            yield f"| {attack} | {'–' if found else ''} | {_range(_finals(found))} | {'–' if found else ''} |"
            continue
        yield f"| {attack} | {_times(study, found)} | {_range(_finals(found))} | {_against(found, clean)} |"


def _times(study: Study, found: dict[int, Result]) -> str:
    """After how many attacked steps all were caught, by seed."""
    times = [caught_after(study.attack_from, result, study.byzantine) for result in found.values()]
    return ", ".join("not all" if time is None else str(time) for time in times)


def _finals(found: dict[int, Result]) -> list[float]:
    return [100 * result["accuracy"][-1] for result in found.values()]


def _range(figures: Sequence[float]) -> str:
    return f"{statistics.fmean(figures):.1f} ({min(figures):.1f}–{max(figures):.1f})" if figures else ""


def _against(found: dict[int, Result], clean: dict[int, Result]) -> str:
    both = [100 * (found[seed]["accuracy"][-1] - clean[seed]["accuracy"][-1]) for seed in found if seed in clean]
    return f"{statistics.fmean(both):+.1f}" if both else ""


def _baselines(results: Results) -> Iterator[str]:
    study = results.study
    yield "## The same without verification"
    yield ""
    yield "A trusted server that aggregates right and checks nobody: the same runs with `--validators 0` and another"
    yield "rule, and the audited ones from above. Final accuracy in percent, mean (lowest–highest). What only"
    yield f"aggregators can do ({', '.join(BY_AGGREGATORS)}) is missing: the server is the only one."
    yield ""
    audited = [f"audits, {m} of {study.peers}" for m in study.validators]
    yield "| attack | " + " | ".join((*audited, *study.baselines)) + " |"
    yield "|---" * (1 + len(study.validators) + len(study.baselines)) + "|"
    for attack in study.against_server:
        row = [_range(_finals(results.of("audited", attack, None, m))) for m in study.validators]
        row += [_range(_finals(results.of("baselines", attack, rule, 0))) for rule in study.baselines]
        yield f"| {attack} | " + " | ".join(row) + " |"


def _protocol(results: Results) -> Iterator[str]:
    study, validators = results.study, results.study.validators[0]
    clean = results.of("protocol", NONE, None, validators)
    yield "## Attacks on the protocol"
    yield ""
    yield f"Nothing is learned (`--task names`). {validators} of {study.peers} validate, {study.protocol_steps} steps,"
    yield f"attack from step {study.protocol_from}, seeds {', '.join(map(str, study.seeds))}."
    yield ""
    yield "- banned: attackers in a run (of each seed, where they differ)"
    yield "- after: attacked steps until the first and the last of them did what it was banned for"
    yield "- honest: banned / left out / strikes, all runs together"
    yield "- left out: attackers that had to rest, unharmed, because they did not keep their promises"
    yield "- void: steps without any update"
    yield "- throughput: certified steps per virtual second since the attack began, against the run of the same seed"
    yield "  without attack, lowest of the seeds"
    yield ""
    yield "| attack | banned | after | honest | left out | void | throughput | so |"
    yield "|---|---|---|---|---|---|---|---|"
    for attack in study.protocol:
        found = results.of("protocol", attack, None, validators)
        if not found:
            yield f"| {attack} |  |  |  |  |  |  | not measured yet |"
            continue
        runs = list(found.values())
        banned = [sum(ban[3] for ban in run["bans"]) for run in runs]
        steps = [ban[0] - study.protocol_from + 1 for run in runs for ban in run["bans"] if ban[3]]
        after = f"{min(steps)}–{max(steps)}" if steps else "–"
        speeds = [100 * _speed(found[seed], study) / _speed(clean[seed], study) for seed in found if seed in clean]
        left_out, strikes = (sum(run[name] for run in runs) for name in ("honest_rested", "honest_strikes"))
        yield (
            f"| {attack} | {_each(banned)} | {after} | {honest_banned(runs)} / {left_out} / {strikes} | "
            f"{_each([run['attackers_rested'] for run in runs])} | {_each([run['void_steps'] for run in runs])} | "
            f"{_lowest(speeds)} | {_verdict(attack, runs, study)} |"
        )
    yield ""
    yield "Of lazy validators only those are found whose target is honest, so they last about as long as cheats."


def _each(figures: Sequence[int]) -> str:
    return str(figures[0]) if len(set(figures)) == 1 else ", ".join(map(str, figures))


def _lowest(figures: Sequence[float]) -> str:
    return f"{min(figures):.0f} %" if figures else ""


def _speed(result: Result, study: Study) -> float:
    return float(result["certified_steps"] - study.protocol_from) / result["attacked_s"]


def _verdict(attack: str, runs: Sequence[Result], study: Study) -> str:
    banned = [sum(ban[3] for ban in run["bans"]) for run in runs]
    if min(banned) == study.byzantine:
        return "banned"
    if max(banned):
        return "banned in part"
    if any(run["attackers_rested"] for run in runs):
        return "cannot be proven; left out for a while"
    return "borne" if attack in BORNE else "**not caught yet**"


def _detection(results: Results) -> Iterator[str]:
    study = results.study
    yield "## How soon everybody is caught"
    yield ""
    yield "Whole swarms without learning (`--task names --attack sign_flip`), attack from step 0, until the last of"
    yield f"{study.byzantine} attackers is banned; and the draw alone (`peer/draws.py`), headers without a network."
    yield "Attacked steps, against the exact law. The share of validators is fixed, so there are fewer of them once"
    yield "attackers are gone; for comparison the law if their number were fixed."
    yield ""
    yield "| validators | what | runs | median | p95 | p99 | Kolmogorov–Smirnov p |"
    yield "|---|---|---|---|---|---|---|"
    for validators in study.validators:
        lag = results.lag("detection", validators)
        law = results.law(validators, lag)
        swarms = [result["draws"] for result in results.of("detection", "sign_flip", None, validators).values()]
        alone = results.draws.get("detection", {}).get(str(validators), [])
        yield _law(f"| {validators} | theory | – ", law)
        for name, times, expected in (("swarms", swarms, law), ("draw alone", alone, results.law(validators, 0))):
            if times:
                p = theory.kolmogorov_smirnov(times, theory.cumulative(expected))[1]
                shares = " | ".join(str(_percentile(times, share)) for share in (0.5, 0.95, 0.99))
                yield f"| {validators} | {name} | {len(times)} | {shares} | {p:.2f} |"
        if validators > 1:
            fixed = theory.ban_times(study.peers, study.byzantine, validators, lag=lag, idle_validators=True)
            yield _law(f"| {validators} | theory, number fixed | – ", fixed)


def _law(begin: str, law: list[float]) -> str:
    return begin + "".join(f"| {theory.percentile(law, share)} " for share in (0.5, 0.95, 0.99)) + "| – |"


def _percentile(times: Sequence[int], share: float) -> int:
    return sorted(times)[math.ceil(share * len(times)) - 1]


_STRATEGIES = {
    "event": "the beacon has a property of probability {event}: withhold until it does",
    "dodge": "all cheat, {validators} of {peers} validate: withhold when it would be found",
    "proposer": "a colluder proposes first in the next step: withhold whichever nonce is best",
}


def _withholding(results: Results) -> Iterator[str]:
    from crowdsurf.peer.draws import EVENT

    yield "## What withholding a nonce is worth"
    yield ""
    yield "Colluders see everybody's nonce before they open their own. Who keeps its nonce makes the step void and is"
    yield "left out; the step is done again without it, with new nonces. Played on headers with the product's rules"
    yield "(`peer/draws.py`). Theory is 1 − (1 − p)^(k+1) for k identities sacrificed and a chance p of one draw, which"
    yield "changes a little as the group shrinks; deviation is in standard errors."
    yield ""
    yield "| goal | identities | trials | measured | theory | deviation |"
    yield "|---|---|---|---|---|---|"
    for game in results.draws.get("games", ()):
        goal = _STRATEGIES[game["strategy"]].format(event=EVENT, **game)
        rate, expected = game["hits"] / game["trials"], game["expected"]
        error = math.sqrt(expected * (1 - expected) / game["trials"])
        yield (
            f"| {goal} | {game['identities']} | {game['trials']} | {rate:.3f} | {expected:.3f} | "
            f"{(rate - expected) / error:+.1f} |"
        )
    yield ""
    yield "The last goal is no audit: the beacon of a void step, the same whoever made it void, still deals the"
    yield "next step's duties. Who is left out shifts the others' places by one; the row's theory counts from where"
    yield "the colluders stand, which is the same in every trial."
    yield ""
    yield "A nonce that is kept back postpones an audit and does not prevent it: three others look at that work as"
    yield "soon as there is a beacon again. Colluders that all cheat, withhold whenever one would be found, and join"
    yield "again as soon as they may, until all of them are banned:"
    yield ""
    yield "| validators | steps until all are banned, mean | void steps | forged gradients that counted, mean |"
    yield "|---|---|---|---|"
    for game in results.draws.get("lasting", ()):
        yield (
            f"| {game['validators']} of {game['peers']} | {game['steps']:.0f} | {game['void']:.0%} | "
            f"{game['gradients']:.0f} |"
        )


def _again(results: Results) -> Iterator[str]:
    yield "## One figure again"
    yield ""
    decay, longer = max(results.study.steps - 3, 0), max(results.study.longer_steps - 3, 0)
    yield "Every run is a line of a `.jsonl` file in the folder beside this page, with all that decides it, its bans as"
    yield "(step of the offence, step of the header, reason, whether deserved) and the digest of its trace. Take the"
    yield "line out and run the command above: that run alone is played again. After a change of the rules take out all"
    yield "lines. Runs that learn differ from `crowdsurf simulate` with the same options in one thing:"
    yield f"`optimizer.decay_steps` is {decay}, in longer runs {longer}: the learning rate falls until the end."
