"""Pictures of the page about attackers: accuracy over steps, and detection times against theory.

The idea: a picture shows the stored runs and nothing else. matplotlib draws them; it belongs to the development
environment and is imported here alone, when a picture is wanted.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdsurf.peer.byzantine import NONE
from crowdsurf.peer.byzantine_page import Results
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.sim import theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
PIXELS_PER_INCH = 80


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw every picture that there are runs for; where they are. Needs matplotlib."""
    drawn = []
    for validators in results.study.validators:
        if any(results.of("audited", attack, None, validators) for attack in results.study.gradient):
            drawn.append(_save(_accuracy(results, validators), folder / f"accuracy-{validators}.png"))
    if (
        any(results.of("detection", "sign_flip", None, m) for m in results.study.validators)
        or "detection" in results.draws
    ):
        drawn.append(_save(_detection(results), folder / "detection.png"))
    return drawn


def check_matplotlib() -> None:
    """Raises MisuseError if it is missing, before hours of simulations and not after them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MisuseError(
            "pictures are drawn with matplotlib, which comes with the development environment: run `make env`"
        )


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, file: Path) -> Path:
    """The same runs give the same bytes: no date and no version go in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return file


def _accuracy(results: Results, validators: int) -> Figure:
    """One small plot for each attack: mean accuracy of the seeds with audits, without them, and without attackers."""
    study = results.study
    shown = [a for a in study.gradient if results.of("audited", a, None, validators)]
    rows = -(-len(shown) // COLUMNS)
    figure = _figure(11, 2.4 * rows)
    grid: Any = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for attack, axes in zip(shown, grid.flat, strict=False):
        lines: dict[str, tuple[str, str | None, int]] = {
            "no attack": (NONE, None, validators),
            f"{validators} validating": (attack, None, validators),
        }
        lines |= {f"{rule}, nobody validating": (attack, rule, 0) for rule in study.baselines}
        for label, (name, rule, number) in lines.items():
            table = "audited" if number else "baselines"
            style: dict[str, Any] = {"linewidth": 2.0 if number else 1.0, "linestyle": "-" if number else "--"}
            values = list(_mean(results.of(table, name, rule, number)))
            if values:
                axes.plot(range(len(values)), [100 * value for value in values], label=label, **style)
        axes.axvline(study.attack_from, color="grey", linewidth=0.8)
        axes.set_title(attack, fontsize=10)
        axes.grid(alpha=0.3)
    figure.supxlabel("certified steps; the attack begins at the grey line")
    figure.supylabel("held-out accuracy, %")
    handles: dict[str, Any] = {}
    for axes in grid.flat[: len(shown)]:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=9)
    return figure


def _mean(found: dict[int, dict[str, Any]]) -> Iterator[float]:
    """Over the seeds; a run that diverged ends early and keeps its last accuracy."""
    runs = [result["accuracy"] for result in found.values()]
    for step in range(max(map(len, runs), default=0)):
        yield statistics.fmean(run[min(step, len(run) - 1)] for run in runs)


def _detection(results: Results) -> Figure:
    """For each number of validators: the share of runs in which all were caught after so many attacked steps."""
    figure = _figure(9, 4)
    axes = figure.subplots()
    for number, validators in enumerate(results.study.validators):
        law = results.law(validators, results.lag("detection", validators))
        end = theory.percentile(law, 0.999)
        cdf, color = theory.cumulative(law), f"C{number}"
        label = f"{validators} of {results.study.peers} validating"
        axes.plot(range(end), [cdf(step) for step in range(end)], color="black", linewidth=3, alpha=0.25)
        swarms = [result["draws"] for result in results.of("detection", "sign_flip", None, validators).values()]
        alone = results.draws.get("detection", {}).get(str(validators), [])
        _steps(axes, swarms, end, f"{label}: {len(swarms)} swarms", color=color)
        _steps(axes, alone, end, f"{label}: {len(alone)} runs of the draw alone", color=color, linestyle=":")
    axes.plot([], [], color="black", linewidth=3, alpha=0.25, label="theory")
    axes.set_xlabel("attacked steps until the last of the attackers is caught")
    axes.set_ylabel("share of runs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def _steps(axes: Axes, times: list[int], end: int, label: str, **style: Any) -> None:
    if times:
        shares = [sum(time <= step for time in times) / len(times) for step in range(end)]
        axes.step(range(end), shares, where="post", label=label, linewidth=1.2, **style)
