"""What was done to a model, and what was not: changes, skips, and the parts that kept their Python, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fxsparse.passes.base import Change, Skip

from .module_tree import Line, module_tree
from .quantities import quantity
from .tree_table import Bar, Column, TreeTable, render


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
    """The outcome of a compilation. ``str()`` is a table in plain text, rich prints it with colours, ``to_dict()`` is JSON-able.

    Attributes:
        model: class name of the model. graphs: number of nodes of each graph, by module path ("" is the root).
        sites: one row for each contraction with a parameter. changes, skips: what the passes did and did not do.
        left: modules that keep their Python, with the reason.
        recorded: paths of the graphs that one call was recorded for; the others were traced.
        kernels: what makes the codes of saved activations on a CPU; nothing where there are none.
    """

    model: str
    graphs: dict[str, int]
    sites: tuple[SiteRow, ...]
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    left: dict[str, str]
    recorded: tuple[str, ...] = ()
    kernels: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "model": self.model,
            "graphs": dict(self.graphs),
            "sites": [{**asdict(row), "shape": list(row.shape)} for row in self.sites],
            "changes": [_listed(asdict(change)) for change in self.changes],
            "skips": [asdict(skip) for skip in self.skips],
            "left": dict(self.left),
            "recorded": list(self.recorded),
            "kernels": self.kernels,
        }

    def table(self, depth: int | None = None) -> str:
        """The report as plain text: the sites as a tree by module, then what was left, with reasons. Modules at ``depth`` are folded."""
        left = [render(table) for table in self._left_tables()]
        return "\n".join([self._headline(), tree_of(self.sites, self.model, depth).text(), *left])

    def __str__(self) -> str:
        return self.table()

    def __rich__(self) -> Group:
        return self.rich()

    def rich(self, depth: int | None = None) -> Group:
        """What rich prints in a terminal."""
        return Group(Text(self._headline()), "", tree_of(self.sites, self.model, depth), *(_spaced(table) for table in self._left_tables()))

    def _left_tables(self) -> list[Table]:
        tables = []
        if self.skips:
            tables.append(_two_columns("left exact", "reason", _grouped(self.skips)))
        if self.left:
            tables.append(_two_columns("keeps its Python", "because", [(path or "(root)", why) for path, why in self.left.items()]))
        return tables

    def _headline(self) -> str:
        rewritten = sum(1 for row in self.sites if row.technique)
        nodes = sum(self.graphs.values())
        kept, total = kept_and_total(self.sites)
        weights = f"; {quantity(kept)} of {quantity(total)} weights kept ({100 * kept / total:.1f} %)" if total else ""
        kernels = f"; codes by {self.kernels}" if self.kernels else ""
        return (
            f"{self.model}: {len(self.graphs)} graph{'s' * (len(self.graphs) != 1)}, {nodes} nodes, {len(self.sites)} sites; "
            f"{rewritten} rewritten, {len(self.skips)} left exact, {len(self.left)} modules keep their Python{weights}{kernels}"
        )


_COLUMNS = (
    Column("site"),
    Column("operator", rank=5),
    Column("weight", rank=3),
    Column("technique", rank=1),
    Column("weights kept", "right", rank=4),
    Column("", rank=2),
    Column("density", "right"),
    Column("activation", "right", rank=3),
    Column("calls", "right", rank=6),
    Column("kernel", rank=6),
)


def tree_of(rows: Sequence[SiteRow], root: str, depth: int | None = None) -> TreeTable:
    """The sites as a tree by module, each module with what all of its sites keep."""
    lines = module_tree(rows, lambda row: row.site.rpartition(".")[0], lambda row: row.site, root=root, depth=depth)
    return TreeTable(_COLUMNS, [(line, _cells(line)) for line in lines])


def kept_and_total(rows: Iterable[SiteRow]) -> tuple[int, int]:
    """Weights that are kept, by the densities that were asked for, and all weights."""
    sizes = [(math.prod(row.shape), row.weight_density) for row in rows]
    return sum(round(size * density) for size, density in sizes), sum(size for size, _ in sizes)


def _cells(line: Line[SiteRow]) -> list[str | Bar]:
    kept, total = kept_and_total(line.rows)
    density = kept / total if total else 1.0
    weights: list[str | Bar] = [f"{quantity(kept)} of {quantity(total)}", Bar(density)]
    if line.is_row:
        [row] = line.rows
        shape = "x".join(map(str, row.shape))
        own = [f"{row.weight_density:.4f}", f"{row.activation_density:.4f}", str(row.calls), row.backend]
        return [row.operator, shape, row.technique or "-", *weights, *own]
    rewritten = sum(1 for row in line.rows if row.technique)
    return [f"{len(line.rows)} sites", "", f"{rewritten} rewritten", *weights, f"{density:.4f}", "", "", ""]


def _spaced(table: Table) -> Padding:
    return Padding(table, (1, 0, 0, 0))


def _two_columns(first: str, second: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    table.add_column(second)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _grouped(skips: Iterable[Skip]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((skip.site, skip.reason) for skip in skips))


def _listed(data: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
