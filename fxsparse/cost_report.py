"""CostReport: what every node of a compiled model costs, in forward, grad-input and grad-weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fxsparse.cost_model.cost import PassCost, WorkloadCost
from fxsparse.cost_model.estimate import total_cost
from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_model.memory import MemoryTimeline
from fxsparse.cost_model.operands import OperandSparsity
from fxsparse.cost_model.workload import Contraction

from .cost_files import save_report
from .cost_text import ROWS, formulas_text, report_text, rich_report

if TYPE_CHECKING:
    from rich.console import Group

    from .cost_comparison import CostComparison


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """The cost of one execution of one node.

    Attributes:
        name: unique in the report. node, graph, module: where it is. site: the parameter that it multiplies with, empty if none.
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
    module: str = ""

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
            "module",
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
        timeline: the memory at each step of forward and backward; not part of ``to_dict``. None in a report that was put together by hand.
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
    timeline: MemoryTimeline | None = field(default=None, repr=False)

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

    def table(self, rows: int | None = ROWS, *, depth: int | None = None, sort: str | None = None) -> str:
        """The report as plain text: totals, memory, and the nodes that take the most as a tree by module.

        Args:
            rows: how many nodes are shown; None shows all. Modules are summed over all of their nodes.
            depth: modules at this depth are folded to one line.
            sort: the figure by which nodes and modules are sorted, such as "time_s" or "saved_bytes"; None: as they are executed.

        Raises: CostError for an unknown figure, or one that needs a machine where there is none.
        """
        return report_text(self, rows, depth, sort)

    def rich(self, rows: int | None = ROWS, *, depth: int | None = None, sort: str | None = None) -> Group:
        """The same for rich to print in a terminal: with colours, guide lines, and fewer columns where it is narrow."""
        return rich_report(self, rows, depth, sort)

    def __str__(self) -> str:
        return self.table()

    def __rich__(self) -> Group:
        return self.rich()

    def formulas(self) -> str:
        """For each figure of this report: how sure it is, its formula and the source of that."""
        return formulas_text(self)

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
        save_report(self, Path(path))
