"""Costs of a training step: of a compiled model from its annotated nodes, or of any model in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.cost_model.conventions import CONVENTIONS
from fxsparse.cost_model.cost import WorkloadCost, sum_costs
from fxsparse.cost_model.estimate import CostRequest, estimate_all, total_cost
from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_model.operands import DENSE, OperandSparsity
from fxsparse.cost_model.pointwise import Pointwise
from fxsparse.cost_model.workload import Contraction
from fxsparse.cost_model.workloads import contractions_of
from fxsparse.passes.masks.specs import MaskSpec
from fxsparse.passes.masks.structures import OfEvery
from fxsparse.passes.meta import read, write
from fxsparse.passes.specs import SwatSpec

from .cost_ledger import Entry, Ledger, ledger_of, moved_bytes
from .cost_report import CostReport, NodeCost
from .errors import CostError
from .techniques import Technique, closest

if TYPE_CHECKING:
    from .compiled_model import CompiledModel
    from .policy import Policy


def estimate(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor = (),
    accelerator: str | Accelerator | None = None,
    *,
    policy: Policy | Technique | str | Path | None = None,
    convention: str = "exact",
    batch_size: int | None = None,
    density: str = "target",
    example_kwargs: Mapping[str, Any] | None = None,
) -> CostReport:
    """What a training step of a model costs, dense or under a policy. The model stays as it is, and nothing runs.

    Args:
        model: any nn.Module, or a compiled one (then without ``policy``).
        example_inputs, example_kwargs: one call's arguments; shapes and dtypes matter.
        accelerator: a shipped name, the path of a YAML file, an Accelerator, or None to count operations and bytes only.
        policy, convention, batch_size, density: see ``fxs.compile`` and ``CompiledModel.cost``.

    Raises:
        CostError: an argument is unknown, or shapes are not known.
        TraceError, PolicyError: see ``fxs.compile``.
    """
    from .compiled_model import CompiledModel
    from .compiler import compile

    if isinstance(model, CompiledModel):
        if policy is not None:
            raise CostError("the model is compiled already, with a policy of its own; pass the original model, or leave policy out")
        return cost_of(model, accelerator, convention=convention, batch_size=batch_size, density=density)
    _require(convention, batch_size, density)
    machine = machine_of(accelerator)
    compiled = compile(model, policy, example_inputs, example_kwargs=example_kwargs, accelerator=machine, check_graphs=False)
    return cost_of(compiled, machine, convention=convention, batch_size=batch_size, density=density)


def cost_of(
    model: CompiledModel,
    accelerator: str | Accelerator | None = None,
    *,
    convention: str = "exact",
    batch_size: int | None = None,
    density: str = "target",
) -> CostReport:
    """The costs of a compiled model; see ``CompiledModel.cost``."""
    _require(convention, batch_size, density)
    machine = machine_of(accelerator)
    ledger = ledger_of(model)
    batch = model.example_batch if batch_size is None else batch_size
    densities = _densities(model, density)
    requests, places = [], []
    for index, (entry, workloads) in enumerate(zip(ledger.entries, ledger.workloads(batch), strict=True)):
        for item, workload in zip(entry.items, workloads, strict=True):
            sparsity = _sparsity(workload, densities.get(item.site), model.masks.get(item.site))
            requests.append(CostRequest(workload=workload, sparsity=sparsity))
            places.append(index)
    dtype, bits = arithmetic_of(ledger)
    costs = estimate_all(requests, machine, convention=convention, element_bits=bits, dtype=dtype, device=_device(model))
    grouped: list[list[tuple[CostRequest, WorkloadCost]]] = [[] for _ in ledger.entries]
    for index, request, cost in zip(places, requests, costs, strict=True):
        grouped[index].append((request, cost))
    saved = ledger.saved_bytes(batch)
    nodes = [
        _node(entry, rows, densities.get(entry.site, (1.0, 1.0)), own, batch)
        for entry, rows, own in zip(ledger.entries, grouped, saved, strict=True)
    ]
    timeline = ledger.timeline(batch)
    return CostReport(
        model=type(model._root).__name__,
        convention=convention,
        batch_size=batch,
        accelerator=machine.name if machine else None,
        density=density,
        nodes=tuple(nodes),
        peak_bytes=timeline.peak_bytes,
        peak_node=timeline.peak_step,
        resident_bytes=ledger.resident_bytes(batch),
        coverage=_coverage(nodes, requests),
        timeline=timeline,
    )


def annotate_figures(model: CompiledModel, machine: Accelerator | None) -> None:
    """Adds the figures of the three passes, at the example's batch size, to the facts of the nodes that run in the present mode."""
    try:
        report = cost_of(model, machine)
    except CostError:  # without example inputs there are no shapes
        return
    figures: dict[tuple[str, str], list[NodeCost]] = {}
    for node in report.nodes:
        figures.setdefault((node.graph, node.node), []).append(node)
    for path, graph in model.graphs.items():
        for node in graph.graph.nodes:
            found = figures.get((path, node.name))
            if found:
                passes = {which: sum_costs(getattr(one, which) for one in found).to_dict() for which in PASSES}
                saved = sum(one.saved_bytes for one in found)
                write(node, cost={**read(node)["cost"], **passes, "saved_bytes": saved, "batch_size": report.batch_size})


_NO_COST = total_cost([])


def _node(entry: Entry, rows: list[tuple[CostRequest, WorkloadCost]], densities: tuple[float, float], saved: int, batch: int) -> NodeCost:
    cost = rows[0][1] if len(rows) == 1 else total_cost([row for _, row in rows]) if rows else _NO_COST
    unknown = sum(size[0] * batch + size[1] for size in entry.unknown.values())
    note = entry.note
    if entry.unknown and not note:
        note = f"operators {', '.join(entry.unknown)} are not in the table"
    return NodeCost(
        name=entry.name,
        node=entry.node,
        graph=entry.graph,
        module=entry.module,
        site=entry.site,
        operator=entry.operator,
        forward=cost.forward,
        grad_input=cost.grad_input,
        grad_weight=cost.grad_weight,
        weight_density=densities[0],
        activation_density=densities[1],
        saved_bytes=saved,
        known=not entry.unknown and not entry.note,
        unknown_bytes=unknown,
        note=note,
        contractions=tuple((product, request.sparsity) for request, _ in rows for product in contractions_of(request.workload)),
    )


def _coverage(nodes: list[NodeCost], requests: list[CostRequest]) -> float:
    whole = sum(moved_bytes(request.workload) for request in requests)
    return 1.0 - sum(node.unknown_bytes for node in nodes) / whole if whole else 1.0


def _sparsity(workload: Any, densities: tuple[float, float] | None, mask: MaskSpec | None = None) -> OperandSparsity:
    if densities is None or isinstance(workload, Pointwise) or densities == (1.0, 1.0):
        return DENSE
    weight, activation = densities
    if mask is None or activation < weight:
        return OperandSparsity(density_weight=weight, density_activation=activation)
    structure = mask.structure
    pattern = (structure.n, structure.m) if isinstance(structure, OfEvery) else None
    return OperandSparsity(density_weight=weight, rule="growing" if mask.straight_through else "masked", pattern=pattern)


def arithmetic_of(ledger: Ledger) -> tuple[str, int]:
    """The dtype in which most MACs are made, and its bits."""
    macs: dict[str, int] = {}
    for entry in ledger.entries:
        if entry.dtype:
            own = sum(item.workload.macs("forward") for item in entry.items if isinstance(item.workload, Contraction))
            macs[entry.dtype] = macs.get(entry.dtype, 0) + own
    dtype = max(macs, key=lambda name: macs[name], default="float32")
    kind = getattr(torch, dtype)
    return dtype, 8 * int(kind.itemsize)


def _device(model: CompiledModel) -> str:
    return "cuda" if any(tensor.is_cuda for tensor in model.parameters()) else "cpu"


def machine_of(accelerator: str | Accelerator | None) -> Accelerator | None:
    """The machine that a name, a file or an Accelerator stands for. Raises: CostError."""
    if accelerator is None or isinstance(accelerator, Accelerator):
        return accelerator
    return Accelerator.load(accelerator)


def _require(convention: str, batch_size: int | None, density: str) -> None:
    if convention not in CONVENTIONS:
        raise CostError(f"convention {convention!r} is none of {', '.join(CONVENTIONS)}{closest(convention, CONVENTIONS)}")
    if density not in ("target", "measured"):
        raise CostError(f"density is {density!r}; expected 'target' or 'measured'")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise CostError(f"batch_size is {batch_size!r}; expected a whole number of samples from 1")


def _densities(model: CompiledModel, kind: str) -> dict[str, tuple[float, float]]:
    if kind == "measured":
        measured = model.sparsity()
        return {name: (row["weight"]["actual"], _or_target(row["activation"])) for name, row in measured.items()}
    wished = {name: _target(model.swat.get(name), model) for name in model.sites}
    for regime in model.regimes:
        for name, kept in zip(regime.spec.sites, regime.kept.tolist(), strict=True):
            if name in model.masks:
                wished[name] = (kept / model.masks[name].total, wished[name][1])
    return wished


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
