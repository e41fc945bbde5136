"""The program `crowdsurf`: its commands, and how fast it answers.

The idea: the table below is all that `crowdsurf --help` needs. A command's module, and with it everything heavy
(torch, hivemind, the daemon), is imported when that command is called. What goes wrong in any of them ends in
`errors.report`, which knows the sentence and the exit code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from crowdsurf.cli import errors

COMMANDS = {
    "demo": "Run a real swarm on this machine and watch it train.",
    "create": "Make a new run: check its config, write its manifest and keys, print the invite.",
    "join": "Take part in a run: start the long-lived peer of this machine.",
    "doctor": "Test this machine, and measure how exactly peers of a mixed swarm can be compared.",
    "status": "What the peer running here sees: step, loss, who is here, what it waits for.",
    "leave": "Ask the peer running here to leave its run in order.",
    "why": "Why a peer is banned, or has strikes; checked again here, offline.",
    "verify": "Re-check the certified steps in a journal, offline.",
    "export": "Write the model at the last certified step as safetensors.",
    "simulate": "Rehearse a whole swarm in one process, with faults and attackers, from a seed.",
    "story": "Tell one step of a simulation's trace.",
    "robustness": "Measure every aggregation rule under every attack, and write the page about it.",
    "byzantine": "Measure how soon attackers are caught and what they achieve, and write the page about it.",
    "bench": "Measure this program beside the obvious alternative.",
}
"""Name and one line of help; the function `name` is in the module `crowdsurf.cli.name`."""


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands = {
            name: TyperCommand(name, help=text)
            for name, text in COMMANDS.items()
            if importlib.util.find_spec(f"crowdsurf.cli.{name}")
        }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the whole command line for whoever has to report an error."""
        ctx.obj = errors.CommandLine(tuple(args))
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # our own bug: or typer's word on a wrong command line, which goes on to typer
            errors.note_wrong_usage(error, ctx.obj)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the line of help by the command itself."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and _load(known.name or ""), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; every error becomes a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:  # our own bug: said to be one, if it is none of our errors
            if errors.is_typers_own(error):
                errors.note_wrong_usage(error, ctx.obj)
                raise
            raise typer.Exit(errors.report(error, ctx.obj)) from error


def _load(name: str) -> Any:
    function = getattr(importlib.import_module(f"crowdsurf.cli.{name}"), name)
    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"crowdsurf {importlib.metadata.version('crowdsurf')}")
        raise typer.Exit


@app.callback()
def crowdsurf(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Train a model together with strangers who are checked, not trusted.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the swarm, 4 nothing reachable.
    """


def run() -> None:
    """Entry point of the program."""
    app(prog_name="crowdsurf")


if __name__ == "__main__":
    run()
