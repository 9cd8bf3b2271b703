"""A tree of lines with columns: plain text for ``str()``, and for rich colours, guide lines, bars, and fewer columns where it is narrow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .module_tree import Line

BAR_CELLS = 10
_WIDE, _LEAST_LABEL, _ALL = 100_000, 8, 0.9995  # sums of shares miss 1 by rounding


@dataclass(frozen=True)
class Bar:
    """A fraction of 1 as a bar."""

    fraction: float

    def text(self, full: str = "#", small: str = ":", empty: str = ".") -> str:
        """The bar; all but everything is not the whole, and the smallest part of something is not nothing."""
        share = min(max(self.fraction, 0.0), 1.0)
        cells = min(round(share * BAR_CELLS), BAR_CELLS - (share < _ALL))
        start = small if share > 0 and not cells else ""
        return start + full * cells + empty * (BAR_CELLS - cells - len(start))


@dataclass(frozen=True)
class Column:
    """A column. Those with the highest ``rank`` go first where a terminal is too narrow; rank 0 always stays."""

    title: str
    justify: Literal["left", "right"] = "left"
    rank: int = 0


@dataclass(frozen=True)
class TreeTable:
    """Lines of a tree, each with a cell for each column after the first, which has the label."""

    columns: Sequence[Column]
    lines: Sequence[tuple[Line[Any], Sequence[str | Bar]]]

    def text(self) -> str:
        """Plain text, indented by depth, as wide as it needs to be."""
        table = _empty(self.columns)
        for line, cells in self.lines:
            label = f"{'  ' * line.depth}{line.label}{' ...' if line.folded and line.depth else ''}"
            table.add_row(label, *(cell.text() if isinstance(cell, Bar) else cell for cell in cells))
        return render(table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ranks = sorted({column.rank for column in self.columns}, reverse=True)
        for rank in ranks:
            table = self._coloured([index for index, column in enumerate(self.columns) if column.rank <= rank], options.ascii_only)
            excess = Measurement.get(console, options.update(max_width=_WIDE), table).maximum - options.max_width
            if excess <= 0:
                break
        else:
            longest = max(label.cell_len for label in (_label(line, options.ascii_only) for line, _ in self.lines))
            table.columns[0].max_width = max(_LEAST_LABEL, longest - excess)
        yield table

    def _coloured(self, kept: Sequence[int], ascii_only: bool) -> Table:
        table = _empty([self.columns[index] for index in kept], header_style="bold")
        table.columns[0].overflow = "ellipsis"
        for line, cells in self.lines:
            shown = [_label(line, ascii_only), *(_cell(cell, ascii_only) for cell in cells)]
            table.add_row(*(shown[index] for index in kept), style="" if line.is_row else "bold")
        return table


def render(table: Table) -> str:
    """A rich table as plain text, as wide as it needs to be; its texts are no markup."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=_WIDE, color_system=None, force_terminal=False, markup=False, emoji=False, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _empty(columns: Sequence[Column], header_style: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style=header_style)
    for column in columns:
        table.add_column(Text(column.title), justify=column.justify, no_wrap=True)
    return table


def _label(line: Line[Any], ascii_only: bool) -> Text:
    gap, bar, tee, corner = ("   ", "|  ", "|- ", "`- ") if ascii_only else ("   ", "│  ", "├─ ", "╰─ ")
    guides = "".join(gap if last else bar for last in line.last[:-1])
    if line.last:
        guides += corner if line.last[-1] else tee
    before, dot, own = line.label.rpartition(".")
    if line.is_row and dot:  # a parameter is known by its module, too
        upper, _, module = before.rpartition(".")
        before, own = upper, f"{module}.{own}"
        dot = "." if upper else ""
    return Text.assemble((guides, "dim not bold"), (before + dot, "dim"), own, (" …" if line.folded and line.depth else "", "dim"))


def _cell(cell: str | Bar, ascii_only: bool) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    drawn = cell.text("#", ":", " ") if ascii_only else cell.text("━", "╸", " ")
    filled = drawn.rstrip()
    return Text.assemble((filled, "cyan"), drawn[len(filled) :])
