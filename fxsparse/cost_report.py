"""CostReport: what every node of a compiled model costs, in forward, grad-input and grad-weight."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxsparse.cost_model.cost import TAGS, PassCost, WorkloadCost
from fxsparse.cost_model.estimate import total_cost
from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_model.interchange import scalesim_conv_csv, scalesim_gemm_csv, timeloop_problem_yaml
from fxsparse.cost_model.operands import OperandSparsity
from fxsparse.cost_model.workload import Contraction

from .errors import CostError
from .report import render

if TYPE_CHECKING:
    from .cost_comparison import CostComparison

FIGURES = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
_ROWS = 60


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """The cost of one execution of one node.

    Attributes:
        name: unique in the report. node, graph: where it is. site: the parameter that it multiplies with, empty if none.
        operator: what it is. known: False if an operator in it is not; its bytes count all the same.
        weight_density, activation_density: what the three passes were counted at.
        saved_bytes: what it is the first to keep for backward. unknown_bytes: moved by operators that are not known.
        note: what is not known, and why. contractions: its matrix products with their sparsity.
    """

    name: str
    node: str
    graph: str
    site: str
    operator: str
    forward: PassCost
    grad_input: PassCost
    grad_weight: PassCost
    weight_density: float = 1.0
    activation_density: float = 1.0
    saved_bytes: int = 0
    known: bool = True
    unknown_bytes: int = 0
    note: str = ""
    contractions: tuple[tuple[Contraction, OperandSparsity], ...] = field(default=(), repr=False)

    @property
    def total(self) -> PassCost:
        """The three passes one after another."""
        return WorkloadCost(forward=self.forward, grad_input=self.grad_input, grad_weight=self.grad_weight).total

    @property
    def bound(self) -> str | None:
        """What limits it: that of its longest pass. None if no machine was given."""
        passes = (self.forward, self.grad_input, self.grad_weight)
        longest = max(passes, key=lambda cost: cost.time_s or 0.0)
        return longest.bound

    def to_dict(self) -> dict[str, Any]:
        """The node as plain data."""
        names = (
            "name",
            "node",
            "graph",
            "site",
            "operator",
            "weight_density",
            "activation_density",
            "saved_bytes",
            "known",
            "unknown_bytes",
            "note",
        )
        return {**{key: getattr(self, key) for key in names}, **{which: getattr(self, which).to_dict() for which in PASSES}}


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Costs of one training step: every operator of the graphs, in the order of execution.

    Attributes:
        model: class name of the model. convention: how MACs are counted, one of "exact", "torch", "swat", "rigl".
        batch_size: samples of the step. accelerator: the machine, None if only operations and bytes are counted.
        density: whether sparse sites were counted at their "target" or "measured" density.
        peak_bytes: the most memory alive at one moment of the step, parameters, buffers, inputs and gradients included;
            peak_node: the step where that is; resident_bytes: the part of it that is alive throughout.
        coverage: the share of all operands' bytes that belongs to operators that are known.
    """

    model: str
    convention: str
    batch_size: int
    accelerator: str | None
    density: str
    nodes: tuple[NodeCost, ...]
    peak_bytes: int
    peak_node: str
    resident_bytes: int
    coverage: float

    @cached_property
    def total(self) -> WorkloadCost:
        """The three passes, each summed over all nodes."""
        return total_cost([WorkloadCost(forward=n.forward, grad_input=n.grad_input, grad_weight=n.grad_weight) for n in self.nodes])

    @cached_property
    def reduction(self) -> Mapping[str, float]:
        """The fraction of contraction FLOPs saved against dense: ``training`` over three passes, ``inference`` over forward."""
        passes = [self.total.of(which) for which in PASSES]
        dense, sparse = sum(item.dense_macs for item in passes), sum(item.macs for item in passes)
        forward = self.total.forward
        inference = 1.0 - forward.macs / forward.dense_macs if forward.dense_macs else 0.0
        return MappingProxyType({"training": 1.0 - sparse / dense if dense else 0.0, "inference": inference})

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward: each storage once, parameters not counted."""
        return sum(node.saved_bytes for node in self.nodes)

    @property
    def unknown(self) -> tuple[NodeCost, ...]:
        """The nodes in which an operator is not known."""
        return tuple(node for node in self.nodes if not node.known)

    # Texts

    def table(self, rows: int | None = _ROWS) -> str:
        """The report as text: totals, memory, and the nodes that take the most (all of them if ``rows`` is None)."""
        shown = self._shown(rows)
        parts = [self._headline(), render(self._totals()), self._memory_line(), render(self._node_table(shown))]
        left = sum(1 for node in self.nodes if _weight(node) or node.saved_bytes) - len(shown)
        if left > 0:
            parts.append(f"{left} smaller nodes are not shown; table(rows=None) shows all\n")
        if self.unknown:
            parts.append(self._unknown_text())
        return "\n".join(parts)

    def __str__(self) -> str:
        return self.table()

    def _headline(self) -> str:
        machine = f" on {self.accelerator}" if self.accelerator else ""
        saved = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.reduction.items())
        return (
            f"{self.model}: a training step of {self.batch_size} samples{machine}, convention {self.convention!r}, "
            f"{self.density} densities\nFLOPs of contractions saved against dense: {saved}"
        )

    def _totals(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        figures = [figure for figure in FIGURES if any(getattr(self.total.of(which), figure) is not None for which in PASSES)]
        for figure in figures:
            table.add_column(_TITLES[figure], justify="right")
        rows = {**{name: self.total.of(which) for name, which in zip(_PASS_TITLES, PASSES, strict=True)}, "all": self.total.total}
        for name, cost in rows.items():
            table.add_row(name, *(_figure(figure, getattr(cost, figure)) for figure in figures))
        table.add_row("how sure", *(self.total.total.tags.get(figure, "") for figure in figures))
        return table

    def _memory_line(self) -> str:
        coverage = f"{100 * self.coverage:.2f} % of the bytes belong to known operators"
        return (
            f"saved for backward {quantity(self.saved_bytes, 'B')}; peak {quantity(self.peak_bytes, 'B')} at {self.peak_node or 'rest'!r}, "
            f"of which {quantity(self.resident_bytes, 'B')} parameters, buffers and inputs; {coverage}\n"
        )

    def _shown(self, rows: int | None) -> list[NodeCost]:
        nodes = [node for node in self.nodes if _weight(node) or node.saved_bytes]
        if rows is None or len(nodes) <= rows:
            return nodes
        chosen = {id(node) for node in sorted(nodes, key=_weight, reverse=True)[:rows]}
        return [node for node in nodes if id(node) in chosen]

    def _node_table(self, nodes: Sequence[NodeCost]) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("node", "operator"):
            table.add_column(name)
        timed = self.accelerator is not None
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

    def _unknown_text(self) -> str:
        lines = ["not known, counted by their bytes alone:"]
        for node in self.unknown:
            why = f": {node.note}" if node.note else ""
            lines.append(f"  {node.name} ({node.operator}), {quantity(node.unknown_bytes, 'B')}{why}")
        return "\n".join(lines) + "\n"

    # Data

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        names = (
            "model",
            "convention",
            "batch_size",
            "accelerator",
            "density",
            "peak_bytes",
            "peak_node",
            "resident_bytes",
            "saved_bytes",
            "coverage",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "total": self.total.to_dict(),
            "reduction": dict(self.reduction),
            "nodes": [node.to_dict() for node in self.nodes],
        }

    def compare(self, other: CostReport) -> CostComparison:
        """This report beside another's, the baseline (the dense model's): what is saved, and whether it pays.

        Raises: CostError if the two are for other machines, batch sizes or conventions.
        """
        from .cost_comparison import CostComparison

        return CostComparison.of(self, other)

    def save(self, path: str | Path) -> None:
        """Writes the report, by the name's ending: ``.json``; ``.csv``, a row for each node; ``.scalesim.csv``, a topology of every
        contraction and pass; ``.timeloop.yaml``, a problem for each of them, one document after another. A name without an
        ending is a folder that gets all of it, with each Timeloop problem in a file of its own.

        Raises: CostError for another ending.
        """
        target = Path(path)
        name = target.name.lower()
        if name.endswith(".json"):
            target.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        elif name.endswith(".scalesim.csv"):
            target.write_text(scalesim_gemm_csv(self._layers()))
        elif name.endswith(".csv"):
            target.write_text(self._csv())
        elif name.endswith((".timeloop.yaml", ".timeloop.yml")):
            target.write_text("---\n".join(self._problems().values()))
        elif not target.suffix:
            self._save_all(target)
        else:
            raise CostError(
                "a report is saved as .json, .csv, .scalesim.csv or .timeloop.yaml, or into a folder (a name without an ending); "
                f"got {str(path)!r}"
            )

    def _save_all(self, folder: Path) -> None:
        (folder / "timeloop").mkdir(parents=True, exist_ok=True)
        self.save(folder / "report.json")
        self.save(folder / "report.csv")
        (folder / "scalesim_gemm.csv").write_text(scalesim_gemm_csv(self._layers()))
        topology, left_out = scalesim_conv_csv(self._layers())
        (folder / "scalesim_conv.csv").write_text(topology)
        (folder / "scalesim_conv_left_out.txt").write_text("".join(f"{name}\n" for name in left_out))
        for name, text in self._problems().items():
            (folder / "timeloop" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.yaml").write_text(text)

    def _products(self) -> dict[str, tuple[Contraction, OperandSparsity]]:
        found: dict[str, tuple[Contraction, OperandSparsity]] = {}
        for node in self.nodes:
            several = len(node.contractions) > 1
            for index, product in enumerate(node.contractions):
                found[f"{node.name}.{index}" if several else node.name] = product
        return found

    def _layers(self) -> dict[str, Contraction]:
        return {name: product for name, (product, _) in self._products().items()}

    def _problems(self) -> dict[str, str]:
        return {
            f"{name}.{which}": timeloop_problem_yaml(product, which, sparsity)
            for name, (product, sparsity) in self._products().items()
            for which in PASSES
            if product.macs(which) and len(product.kernel) <= 3
        }

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        own = ("name", "graph", "site", "operator", "weight_density", "activation_density", "saved_bytes", "known")
        writer.writerow([*own, *(f"{which}_{figure}" for which in PASSES for figure in (*FIGURES, "bound"))])
        for node in self.nodes:
            values = [getattr(getattr(node, which), figure) for which in PASSES for figure in (*FIGURES, "bound")]
            writer.writerow([*(getattr(node, key) for key in own), *values])
        return buffer.getvalue()


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


def _weight(node: NodeCost) -> float:
    """What a node is sorted by: its time, or where no machine is given its bytes."""
    costs = [getattr(node, which) for which in PASSES]
    return sum(cost.time_s or 0.0 for cost in costs) or sum(cost.dram_bytes + cost.flops for cost in costs)


def least_sure(tags: Sequence[str]) -> str:
    """The least certain of several tags."""
    return max(tags, key=TAGS.index)


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
