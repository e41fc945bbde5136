"""`crowdsurf story`: one step of a simulation's trace, told in the order in which it happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from crowdsurf.cli.output import JsonOption, answer, people
from crowdsurf.cli.simulate_view import story_lines
from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.sim.story import tell_story


def story(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `crowdsurf simulate --trace` wrote.")],
    step: Annotated[int, typer.Option(min=0, help="The step to tell.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Tell one step of a trace: who said what when, what was lost or refused, what came of it."""
    try:
        with file.open(encoding="utf-8") as lines:
            told = tell_story(lines, step)
    except FileNotFoundError as error:
        raise MisuseError(f"there is no file {file}; `crowdsurf simulate --trace {file}` writes one") from error
    except (ValueError, LookupError) as error:
        raise MisuseError(f"{file} is no trace of a simulation: {error}") from error
    if json_output:
        answer(context, dataclasses.asdict(told))
        return
    for text in story_lines(told):
        people(False).print(text)
