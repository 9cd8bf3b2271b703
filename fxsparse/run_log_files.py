"""Where a run's log goes: a CSV file, and TensorBoard."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .errors import FxSparseError
from .whole_files import require_writable

COLUMNS = (
    "step",
    "event",
    "site",
    "weight_target",
    "weight_density",
    "activation_target",
    "activation_density",
    "weight_threshold",
    "activation_threshold",
    "bits",
    "saved_bytes",
    "kept",
    "total",
    "dropped",
    "grown",
    "churn",
    "multiplier",
)
TOTAL = "(total)"
_HISTOGRAMS = ("weight_density", "activation_density", "churn")


class Sink(Protocol):
    """Something that rows of a log are written to."""

    def write(self, step: int, rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Any]) -> None:
        """Writes what is known at a step. rows: columns by name, the total last. tensors: what is better seen as a histogram."""

    def close(self) -> None:
        """No more rows will come."""


class CsvSink:
    """A row for each site and event, whole after every ``write``.

    Raises: FxSparseError if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool) -> None:
        target = require_writable(path)
        goes_on = append and target.exists() and target.stat().st_size > 0
        if goes_on:
            _require_same_columns(target)
        self._file = target.open("a" if goes_on else "w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="", lineterminator="\n")
        if not goes_on:
            self._writer.writeheader()
            self._file.flush()

    def write(self, step: int, rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Any]) -> None:
        for row in rows:
            self._writer.writerow({"step": step, **{name: _plain(value) for name, value in row.items()}})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """A scalar for each figure of each site, histograms over all sites, and histograms of thresholds that are many.

    Args:
        target: a SummaryWriter (or what has its methods), which is left open, or the folder of one that is made here.

    Raises: FxSparseError if a folder is given and tensorboard is not installed.
    """

    def __init__(self, target: Any) -> None:
        self._is_ours = isinstance(target, (str, os.PathLike))
        self._writer: Any = summary_writer(Path(target)) if self._is_ours else target

    def write(self, step: int, rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Any]) -> None:
        for row in rows:
            for name in COLUMNS[3:]:
                value = _plain(row.get(name))
                if isinstance(value, (int, float)):
                    tag = f"total/{name}" if row["site"] == TOTAL else f"{name}/{row['site']}"
                    self._writer.add_scalar(tag, value, step)
        for name in _HISTOGRAMS:
            values = [value for row in rows if row["site"] != TOTAL and isinstance(value := _plain(row.get(name)), (int, float))]
            if values:
                self._add_histogram(f"over_sites/{name}", values, step)
        for name, tensor in tensors.items():
            self._add_histogram(name, tensor, step)
        self._writer.flush()

    def _add_histogram(self, name: str, values: Any, step: int) -> None:
        import torch

        self._writer.add_histogram(name, torch.as_tensor(values), step)

    def close(self) -> None:
        if self._is_ours:
            self._writer.close()


def summary_writer(folder: Path) -> Any:
    """TensorBoard's writer for a folder. Raises: FxSparseError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise FxSparseError(
            f"TensorBoard files need the package tensorboard; {error.name!r} is not installed: pip install 'fxsparse[report]' "
            "(a CSV file needs nothing)"
        ) from None
    writer: Any = SummaryWriter(str(folder))
    return writer


def _require_same_columns(target: Path) -> None:
    with target.open(encoding="utf-8", newline="") as file:
        found = next(csv.reader(file), [])
    if found != list(COLUMNS):
        raise FxSparseError(
            f"{str(target)!r} has other columns than a log of this version; name another file, or write it anew (append=False)"
        )


def _plain(value: Any) -> Any:
    """A number, or a text; None for what is not known, as a threshold that was never selected."""
    return None if isinstance(value, float) and math.isnan(value) else value
