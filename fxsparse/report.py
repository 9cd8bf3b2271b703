"""What was done to a model, and what was not: changes, skips, and the parts that kept their Python, each with its reason."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fxsparse.passes.base import Change, Skip


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One site in the report."""

    site: str
    operator: str
    shape: tuple[int, ...]
    technique: str
    weight_density: float
    activation_density: float
    backend: str
    calls: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a compilation. ``str()`` is a table, ``to_dict()`` is JSON-able.

    Attributes:
        model: class name of the model. graphs: number of nodes of each graph, by module path ("" is the root).
        sites: one row for each contraction with a parameter. changes, skips: what the passes did and did not do.
        left: modules that keep their Python, with the reason.
    """

    model: str
    graphs: dict[str, int]
    sites: tuple[SiteRow, ...]
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "model": self.model,
            "graphs": dict(self.graphs),
            "sites": [{**asdict(row), "shape": list(row.shape)} for row in self.sites],
            "changes": [_listed(asdict(change)) for change in self.changes],
            "skips": [asdict(skip) for skip in self.skips],
            "left": dict(self.left),
        }

    def __str__(self) -> str:
        parts = [self._headline(), render(self._site_table())]
        if self.skips:
            parts.append(render(_two_columns("left exact", "reason", _grouped(self.skips))))
        if self.left:
            parts.append(render(_two_columns("keeps its Python", "because", [(path or "(root)", why) for path, why in self.left.items()])))
        return "\n".join(parts)

    def _headline(self) -> str:
        rewritten = sum(1 for row in self.sites if row.technique)
        nodes = sum(self.graphs.values())
        return (
            f"{self.model}: {len(self.graphs)} graph{'s' * (len(self.graphs) != 1)}, {nodes} nodes, {len(self.sites)} sites; "
            f"{rewritten} rewritten, {len(self.skips)} left exact, {len(self.left)} modules keep their Python"
        )

    def _site_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name, side in (("site", "left"), ("operator", "left"), ("weight", "left"), ("technique", "left")):
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for name in ("weight density", "activation density", "calls"):
            table.add_column(name, justify="right")
        table.add_column("kernel")
        for row in self.sites:
            table.add_row(
                row.site,
                row.operator,
                "x".join(map(str, row.shape)),
                row.technique or "-",
                f"{row.weight_density:.4f}",
                f"{row.activation_density:.4f}",
                str(row.calls),
                row.backend,
            )
        return table


def render(table: Table, width: int = 160) -> str:
    """A rich table as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _two_columns(first: str, second: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    table.add_column(second)
    for row in rows:
        table.add_row(*row)
    return table


def _grouped(skips: Iterable[Skip]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((skip.site, skip.reason) for skip in skips))


def _listed(data: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
