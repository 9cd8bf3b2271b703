"""A cost report as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from fxsparse.cost_model.cost import TAGS
from fxsparse.cost_model.formulas import MEANINGS, formulas_for
from fxsparse.cost_model.gemm import PASSES

from .report import render

if TYPE_CHECKING:
    from .cost_report import CostReport, NodeCost

FIGURES = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
ROWS = 60

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


def report_text(report: CostReport, rows: int | None) -> str:
    """Totals, memory, and the nodes that take the most (all of them if ``rows`` is None)."""
    shown = _shown(report, rows)
    parts = [_headline(report), render(_totals(report)), _memory_line(report), render(_node_table(report, shown))]
    left = sum(1 for node in report.nodes if _weight(node) or node.saved_bytes) - len(shown)
    if left > 0:
        parts.append(f"{left} smaller nodes are not shown; table(rows=None) shows all\n")
    if report.unknown:
        parts.append(_unknown_text(report))
    return "\n".join(parts)


def formulas_text(report: CostReport) -> str:
    """For each figure of a report: how sure it is, its formula and the source of that."""
    total = report.total.total
    machine = "none" if report.accelerator is None else "array" if total.cycles is not None else "roofline"
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "how sure", "formula", "source", "file in cost_model"):
        table.add_column(name)
    tags = {"saved_bytes": "exact", "peak_bytes": "expected", **total.tags}
    for formula in formulas_for(machine):
        table.add_row(formula.figure, tags.get(formula.figure, ""), formula.formula, escape(formula.source), formula.where)
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


def _shown(report: CostReport, rows: int | None) -> list[NodeCost]:
    nodes = [node for node in report.nodes if _weight(node) or node.saved_bytes]
    if rows is None or len(nodes) <= rows:
        return nodes
    chosen = {id(node) for node in sorted(nodes, key=_weight, reverse=True)[:rows]}
    return [node for node in nodes if id(node) in chosen]


def _node_table(report: CostReport, nodes: Sequence[NodeCost]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("node", "operator"):
        table.add_column(name)
    timed = report.accelerator is not None
    columns = [
        "MACs forward",
        "grad-input",
        "grad-weight",
        "DRAM bytes",
        "saved",
        *(("time", "bound") if timed else ()),
        "weight",
        "activation",
    ]
    for name in columns:
        table.add_column(name, justify="right")
    for node in nodes:
        total = node.total
        time = (quantity(total.time_s or 0.0, "s"), node.bound or "") if timed else ()
        table.add_row(
            (node.site if node.contractions else "") or node.name,
            node.operator + ("" if node.known else " (?)"),
            *(quantity(getattr(node, which).macs) for which in PASSES),
            quantity(total.dram_bytes, "B"),
            quantity(node.saved_bytes, "B"),
            *time,
            f"{node.weight_density:.4f}" if node.site and node.contractions else "",
            f"{node.activation_density:.4f}" if node.site and node.contractions else "",
        )
    return table


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


def quantity(number: float, unit: str = "") -> str:
    """A number with an SI prefix (1024 for bytes), to four digits."""
    if unit == "B":
        for prefix, size in (("Gi", 2.0**30), ("Mi", 2.0**20), ("Ki", 2.0**10)):
            if abs(number) >= size:
                return f"{number / size:.4g} {prefix}B"
        return f"{number:.0f} B"
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.4g} {prefix}{unit}"
    if unit and 0 < abs(number) < 1:
        for prefix, size in (("m", 1e-3), ("µ", 1e-6), ("n", 1e-9), ("p", 1e-12)):
            if abs(number) >= size:
                return f"{number / size:.4g} {prefix}{unit}"
    return f"{number:.4g} {unit}".rstrip()
