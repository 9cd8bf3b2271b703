"""Whatever a command refuses ends in one line on standard error and a status other than 0."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import FxSparseError

STOPPED = 130


class OneLineErrors(TyperGroup):
    """Commands whose refusals, wrong arguments included, are one line: status 1, 2 for wrong arguments, 130 for Ctrl-C."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            return super(OneLineErrors, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        try:
            status = run()
            if status == STOPPED:  # typer has seen Ctrl-C before
                _say("stopped")
            sys.exit(status if isinstance(status, int) else 0)
        except FxSparseError as error:
            _say(str(error))
            sys.exit(1)
        except OSError as error:
            _say(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
            sys.exit(1)
        except (typer.Abort, KeyboardInterrupt):
            _say("stopped")
            sys.exit(STOPPED)
        except Exception as error:
            # typer's own refusals; their class stands in another module from version to version.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            _say(f"{message()} {_usage(error)}")
            sys.exit(getattr(error, "exit_code", 2))


def _say(message: str) -> None:
    print(f"fxsparse: {' '.join(message.split())}", file=sys.stderr)


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"(try '{context.command_path} --help')" if context is not None else "(try 'fxsparse --help')"
