"""A cost report as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fxsparse.cost_model.cost import TAGS, sum_costs
from fxsparse.cost_model.formulas import MEANINGS, formulas_for
from fxsparse.cost_model.gemm import PASSES

from .errors import CostError
from .module_tree import Line, module_tree
from .quantities import quantity
from .techniques import closest
from .tree_table import Bar, Column, TreeTable, render

if TYPE_CHECKING:
    from .cost_report import CostReport, NodeCost

FIGURES = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
SORTS = (*FIGURES, "saved_bytes")
ROWS = 60

_OF_A_MACHINE = ("sram_bytes", "cycles", "energy_pj", "time_s")

_PASS_TITLES = ("forward", "grad-input", "grad-weight")
_TITLES = {
    "macs": "MACs",
    "dense_macs": "dense MACs",
    "flops": "FLOPs",
    "dram_bytes": "DRAM",
    "sram_bytes": "SRAM",
    "cycles": "cycles",
    "energy_pj": "energy",
    "time_s": "time",
}


def report_text(report: CostReport, rows: int | None = ROWS, depth: int | None = None, sort: str | None = None) -> str:
    """Totals, memory, and the nodes as a tree by module; see ``CostReport.table``."""
    tree, left = _tree(report, rows, depth, sort)
    parts = [_headline(report), render(_totals(report)), _memory_line(report), tree.text()]
    return "\n".join([*parts, *([f"{left}\n"] if left else []), *([_unknown_text(report)] if report.unknown else [])])


def rich_report(report: CostReport, rows: int | None = ROWS, depth: int | None = None, sort: str | None = None) -> Group:
    """What rich prints in a terminal."""
    tree, left = _tree(report, rows, depth, sort)
    texts = [left, _unknown_text(report) if report.unknown else ""]
    return Group(
        Text(_headline(report)), "", _totals(report), "", Text(_memory_line(report)), tree, *(Text(f"\n{text}") for text in texts if text)
    )


def formulas_text(report: CostReport) -> str:
    """For each figure of a report: how sure it is, its formula and the source of that."""
    total = report.total.total
    machine = "none" if report.accelerator is None else "array" if total.cycles is not None else "roofline"
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "how sure", "formula", "source", "file in cost_model"):
        table.add_column(name)
    tags = {"saved_bytes": "exact", "peak_bytes": "expected", **total.tags}
    for formula in formulas_for(machine):
        table.add_row(formula.figure, tags.get(formula.figure, ""), formula.formula, formula.source, formula.where)
    return render(table) + "\n".join(f"{tag}: {MEANINGS[tag]}" for tag in TAGS) + "\n"


def _headline(report: CostReport) -> str:
    machine = f" on {report.accelerator}" if report.accelerator else ""
    saved = ", ".join(f"{name} {100 * value:.1f} %" for name, value in report.reduction.items())
    return (
        f"{report.model}: a training step of {report.batch_size} samples{machine}, convention {report.convention!r}, "
        f"{report.density} densities\nFLOPs of contractions saved against dense: {saved}"
    )


def _totals(report: CostReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    figures = [figure for figure in FIGURES if any(getattr(report.total.of(which), figure) is not None for which in PASSES)]
    for figure in figures:
        table.add_column(_TITLES[figure], justify="right")
    rows = {**{name: report.total.of(which) for name, which in zip(_PASS_TITLES, PASSES, strict=True)}, "all": report.total.total}
    for name, cost in rows.items():
        table.add_row(name, *(_figure(figure, getattr(cost, figure)) for figure in figures))
    table.add_row("how sure", *(report.total.total.tags.get(figure, "") for figure in figures))
    return table


def _memory_line(report: CostReport) -> str:
    peak = f"peak {quantity(report.peak_bytes, 'B')} at {report.peak_node or 'rest'!r}"
    resident = f"{quantity(report.resident_bytes, 'B')} parameters, buffers and inputs"
    coverage = f"{100 * report.coverage:.2f} % of the bytes belong to known operators"
    return f"saved for backward {quantity(report.saved_bytes, 'B')}; {peak}, of which {resident}; {coverage}\n"


def _tree(report: CostReport, rows: int | None, depth: int | None, sort: str | None) -> tuple[TreeTable, str]:
    """The nodes that take the most, as a tree by module, and what is to be said of the others."""
    nodes = [node for node in report.nodes if _weight(node) or node.saved_bytes]
    chosen = {id(node) for node in sorted(nodes, key=_weight, reverse=True)[:rows]}
    figure = None if sort is None else _figure_of(sort, report)
    lines = module_tree(
        nodes, lambda node: node.module, _name, root=report.model, depth=depth, sort=figure, shown=lambda node: id(node) in chosen
    )
    timed = report.accelerator is not None
    whole = sum(_share(node, timed) for node in nodes) or 1.0
    columns = [
        Column("node"),
        Column("operator", rank=2),
        *(Column(title, "right", rank=5) for title in ("MACs forward", "grad-input", "grad-weight")),
        Column("DRAM bytes", "right", rank=3),
        Column("saved", "right", rank=4),
        Column("", rank=1),
        Column("of time" if timed else "of FLOPs", "right"),
        *((Column("time", "right", rank=1), Column("bound", rank=3)) if timed else ()),
        *(Column(title, "right", rank=6) for title in ("weight", "activation")),
    ]
    left = len(nodes) - len(chosen)
    note = f"{left} smaller nodes are not shown; table(rows=None) shows all" if left > 0 and depth is None else ""
    return TreeTable(columns, [(line, _cells(line, timed, whole)) for line in lines]), note


def _name(node: NodeCost) -> str:
    return (node.site if node.contractions else "") or node.name


def _cells(line: Line[NodeCost], timed: bool, whole: float) -> list[str | Bar]:
    share = sum(_share(node, timed) for node in line.rows) / whole
    total = sum_costs(cost for node in line.rows for cost in (node.forward, node.grad_input, node.grad_weight))
    cells: list[str | Bar] = [
        *(quantity(sum(getattr(node, which).macs for node in line.rows)) for which in PASSES),
        quantity(total.dram_bytes, "B"),
        quantity(sum(node.saved_bytes for node in line.rows), "B"),
        Bar(share),
        f"{100 * share:.1f} %",
    ]
    if timed:
        cells += [quantity(total.time_s or 0.0, "s"), (line.rows[0].bound if line.is_row else total.bound) or ""]
    if not line.is_row:
        return [f"{len(line.rows)} nodes", *cells, "", ""]
    [node] = line.rows
    densities = [f"{node.weight_density:.4f}", f"{node.activation_density:.4f}"] if node.site and node.contractions else ["", ""]
    return [node.operator + ("" if node.known else " (?)"), *cells, *densities]


def _share(node: NodeCost, timed: bool) -> float:
    costs = [getattr(node, which) for which in PASSES]
    return sum((cost.time_s or 0.0) if timed else cost.flops for cost in costs)


def require_sort(sort: str, *, timed: bool) -> None:
    """Raises CostError if nodes cannot be sorted by a figure of that name."""
    if sort not in SORTS:
        raise CostError(f"nodes cannot be sorted by {sort!r}{closest(sort, SORTS)}; expected one of {', '.join(SORTS)}")
    if sort in _OF_A_MACHINE and not timed:
        raise CostError(f"nodes cannot be sorted by {sort!r} without a machine; name an accelerator")


def _figure_of(sort: str, report: CostReport) -> Callable[[NodeCost], float]:
    require_sort(sort, timed=report.accelerator is not None)
    if sort == "saved_bytes":
        return lambda node: node.saved_bytes
    return lambda node: float(sum(getattr(getattr(node, which), sort) or 0 for which in PASSES))


def _unknown_text(report: CostReport) -> str:
    lines = ["not known, counted by their bytes alone:"]
    for node in report.unknown:
        why = f": {node.note}" if node.note else ""
        lines.append(f"  {node.name} ({node.operator}), {quantity(node.unknown_bytes, 'B')}{why}")
    return "\n".join(lines) + "\n"


def _weight(node: NodeCost) -> float:
    """What a node is sorted by: its time, or where no machine is given its bytes."""
    costs = [getattr(node, which) for which in PASSES]
    return sum(cost.time_s or 0.0 for cost in costs) or sum(cost.dram_bytes + cost.flops for cost in costs)


def _figure(name: str, number: float | None) -> str:
    if number is None:
        return "-"
    if name == "energy_pj":
        return quantity(number * 1e-12, "J")
    return quantity(number, {"dram_bytes": "B", "sram_bytes": "B", "time_s": "s"}.get(name, ""))
