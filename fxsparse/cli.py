"""The command line: ``fxsparse demo``, ``presets``, ``accelerators``, ``inspect`` and ``calibrate``.

Whatever is refused ends in one line on standard error and a status other than 0. Torch is imported by the commands that need it.
"""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from .commands.calibrate import calibrate
from .commands.demo import demo
from .commands.inspect import inspect
from .commands.listings import accelerators, presets
from .commands.refusals import OneLineErrors

# Importing torch and making graphs creates objects that stay; looking through them time and again is a tenth of a short run.
_OBJECTS_BETWEEN_COLLECTIONS = 200_000

app = typer.Typer(
    cls=OneLineErrors,
    help="Sparse training of PyTorch models: what a policy does to a model, what it saves, and a demonstration.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, presets, accelerators, inspect, calibrate):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fxsparse {sys.modules['fxsparse'].__dict__['__version__']}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The entry point."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        app(prog_name="fxsparse")
    finally:
        gc.freeze()  # the interpreter ends without looking through them all once more


if __name__ == "__main__":
    main()
