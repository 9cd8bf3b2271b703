"""What commands print: on a terminal with its colours and width, elsewhere plain text; progress goes to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FxSparseError
from ..whole_files import require_writable


def print_table(table: Any) -> None:
    """Prints a rich table, never narrower than its content where the output is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def show(coloured: Any, plain: str) -> None:
    """Prints what rich can render where the output is a terminal, and a text elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(coloured)
        console.print()
    else:
        print(plain)


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """Says what is being done, on standard error and only if that is a terminal. Yields a function that takes the next stage."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status(first) as status:
        yield status.update


def require_outputs(paths: dict[str, Path | None]) -> None:
    """Refuses files that could not be written, before the long work. paths: by the option that names them.

    Raises:
        FxSparseError: a file cannot be written, or two options name the same one.
    """
    named: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        try:
            target = require_writable(path).resolve()
        except FxSparseError as error:
            raise FxSparseError(f"{option} {error}") from error.__cause__
        if target in named:
            raise FxSparseError(f"{named[target]} and {option} name the same file {str(path)!r}; give each a name of its own")
        named[target] = option
