"""CostReport: what every priced node of a compiled model costs, in forward, grad-input and grad-weight."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.cost_model.conventions import CONVENTIONS
from fxsparse.cost_model.cost import PassCost, WorkloadCost
from fxsparse.cost_model.estimate import CostRequest, estimate_all, total_cost
from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_model.operands import OperandSparsity
from fxsparse.cost_model.workload import Contraction
from fxsparse.passes.sites import Call, Site
from fxsparse.passes.specs import SwatSpec

from .errors import CostError
from .report import render
from .techniques import closest

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """The cost of one contraction: three passes, and the densities they were counted at."""

    name: str
    graph: str
    site: str
    operator: str
    forward: PassCost
    grad_input: PassCost
    grad_weight: PassCost
    weight_density: float = 1.0
    activation_density: float = 1.0
    saved_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The node as plain data."""
        own = {key: getattr(self, key) for key in ("name", "graph", "site", "operator", "weight_density", "activation_density", "saved_bytes")}
        return {**own, **{which: getattr(self, which).to_dict() for which in PASSES}}


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Costs of one training step.

    Attributes:
        convention: how MACs are counted, one of "exact", "torch", "swat", "rigl".
        batch_size: samples of the step. accelerator: the machine, None if only operations and bytes are counted.
        nodes: every contraction in the order of execution.
    """

    convention: str
    batch_size: int
    accelerator: str | None
    nodes: tuple[NodeCost, ...]

    @property
    def total(self) -> WorkloadCost:
        """The three passes, each summed over all nodes."""
        return total_cost([WorkloadCost(forward=n.forward, grad_input=n.grad_input, grad_weight=n.grad_weight) for n in self.nodes])

    @property
    def reduction(self) -> Mapping[str, float]:
        """The fraction of FLOPs saved against dense: ``training`` over three passes, ``inference`` over forward."""
        total = self.total
        passes = [total.of(which) for which in PASSES]
        dense, sparse = sum(item.dense_macs for item in passes), sum(item.macs for item in passes)
        inference = 1.0 - total.forward.macs / total.forward.dense_macs if total.forward.dense_macs else 0.0
        return MappingProxyType({"training": 1.0 - sparse / dense if dense else 0.0, "inference": inference})

    def table(self) -> str:
        """The report as text: a row for each node, and the totals."""
        table = Table(box=None, pad_edge=False)
        table.add_column("node")
        for name in ("forward", "grad-input", "grad-weight", "dense, all three", "weight density", "activation density"):
            table.add_column(name, justify="right")
        for node in self.nodes:
            dense = sum(getattr(node, which).dense_macs for which in PASSES)
            table.add_row(
                node.site,
                *(_macs(getattr(node, which).macs) for which in PASSES),
                _macs(dense),
                f"{node.weight_density:.4f}",
                f"{node.activation_density:.4f}",
            )
        total = self.total
        table.add_row("total", *(_macs(total.of(which).macs) for which in PASSES), _macs(total.total.dense_macs), "", "")
        machine = f" on {self.accelerator}" if self.accelerator else ""
        head = f"MACs of a training step of {self.batch_size} samples{machine}, convention {self.convention!r}"
        saved = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.reduction.items())
        return f"{head}\n{render(table)}saved against dense: {saved}\n"

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "convention": self.convention,
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
            "total": self.total.to_dict(),
            "reduction": dict(self.reduction),
            "nodes": [node.to_dict() for node in self.nodes],
        }

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON, or as CSV if the name ends in .csv.

        Raises: CostError for another ending.
        """
        target = Path(path)
        if target.suffix == ".json":
            target.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        elif target.suffix == ".csv":
            target.write_text(self._csv())
        else:
            raise CostError(f"a report is saved as .json or .csv, got {str(path)!r}")

    def _csv(self) -> str:
        figures = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["node", "graph", "site", "operator", *(f"{which}_{figure}" for which in PASSES for figure in figures)])
        for node in self.nodes:
            values = [getattr(getattr(node, which), figure) for which in PASSES for figure in figures]
            writer.writerow([node.name, node.graph, node.site, node.operator, *values])
        return buffer.getvalue()


def cost_of(
    model: CompiledModel,
    accelerator: str | Accelerator | None = None,
    *,
    convention: str = "exact",
    batch_size: int | None = None,
    density: str = "target",
) -> CostReport:
    """The costs of a compiled model; see ``CompiledModel.cost``."""
    if convention not in CONVENTIONS:
        raise CostError(f"convention {convention!r} is none of {', '.join(CONVENTIONS)}{closest(convention, CONVENTIONS)}")
    if density not in ("target", "measured"):
        raise CostError(f"density is {density!r}; expected 'target' or 'measured'")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise CostError(f"batch_size is {batch_size!r}; expected a whole number of samples from 1")
    machine = Accelerator.load(accelerator) if isinstance(accelerator, str) else accelerator
    densities = _densities(model, density)
    calls = list(_calls(model))
    unknown = [site.name for site, call in calls if call.workload is None]
    if not calls or unknown:
        what = f"the shapes at {unknown[0]!r} are not known" if unknown else "no contraction with a parameter was found"
        raise CostError(f"{what}: compile the model with example_inputs")
    own_batch = model.example_batch
    wanted = own_batch if batch_size is None else batch_size
    requests, first = [], next(iter(model.sites))
    for site, call in calls:
        assert call.workload is not None
        weight, activation = densities[site.name]
        requests.append(
            CostRequest(
                workload=_at_batch(call.workload, own_batch, wanted),
                sparsity=OperandSparsity(density_weight=weight, density_activation=activation),
                is_first=site.name == first and not call.workload.input_needs_grad,
            )
        )
    costs = estimate_all(requests, machine, convention=convention)
    nodes = tuple(
        NodeCost(
            name=call.node,
            graph=call.graph,
            site=site.name,
            operator=call.operator,
            forward=cost.forward,
            grad_input=cost.grad_input,
            grad_weight=cost.grad_weight,
            weight_density=densities[site.name][0],
            activation_density=densities[site.name][1],
        )
        for (site, call), cost in zip(calls, costs, strict=True)
    )
    return CostReport(convention=convention, batch_size=wanted, accelerator=machine.name if machine else None, nodes=nodes)


def _calls(model: CompiledModel) -> Iterable[tuple[Site, Call]]:
    """Every contraction that the present mode of the model executes."""
    current = model.current_variants()
    for site in model.sites.values():
        for call in site.calls:
            if call.variant == current[call.graph]:
                yield site, call


def _densities(model: CompiledModel, kind: str) -> dict[str, tuple[float, float]]:
    if kind == "measured":
        measured = model.sparsity()
        return {name: (row["weight"]["actual"], _or_target(row["activation"])) for name, row in measured.items()}
    return {name: _target(model.plan.get(name), model) for name in model.sites}


def _or_target(row: Mapping[str, Any]) -> float:
    return float(row["target"] if row["actual"] is None else row["actual"])


def _target(spec: SwatSpec | None, model: CompiledModel) -> tuple[float, float]:
    """The densities that were asked for: the wish itself where it is uniform, the exact count elsewhere."""
    if spec is None:
        return 1.0, 1.0
    if spec.follows_momentum:
        row = model.sparsity()[spec.site]
        return row["weight"]["target"], row["activation"]["target"]
    return spec.weight_density, spec.activation_density


def _at_batch(workload: Contraction, own: int, wanted: int) -> Contraction:
    if wanted == own:
        return workload
    scaled = workload.batch * wanted
    if scaled % own == 0:
        return workload.with_batch(scaled // own)
    return replace(workload, batch=max(1, round(scaled / own)))


def _macs(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3f} {unit}"
    return f"{number:.0f}"
