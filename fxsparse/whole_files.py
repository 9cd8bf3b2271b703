"""Files that are the old one or the new one, never half of it, and paths that are refused before the work."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FxSparseError


def require_writable(path: str | os.PathLike[str], error: type[FxSparseError] = FxSparseError) -> Path:
    """The path, checked before the long work.

    Raises: ``error`` if no file can be written there.
    """
    target = Path(path)
    if target.is_dir():
        raise error(f"{str(target)!r} is a folder; expected the name of a file to write")
    if not target.parent.is_dir():
        raise error(f"{str(target)!r} lies in a folder that does not exist; make it first")
    try:
        with temporary(target) as probe:
            probe.touch()
    except OSError as problem:
        raise error(f"{str(target)!r} cannot be written: {problem.strerror or problem}") from problem
    return target


def write_text(target: Path, text: str, error: type[FxSparseError] = FxSparseError) -> None:
    """Writes a text; the new file takes the old one's name only when it is complete.

    Raises: ``error`` if it cannot be written; the old file is then as it was.
    """
    try:
        with temporary(target) as unfinished:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
    except OSError as problem:
        raise error(f"{str(target)!r} cannot be written: {problem.strerror or problem}; what was there is as it was") from problem


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A name in the same folder; what is left under it in the end is removed."""
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
