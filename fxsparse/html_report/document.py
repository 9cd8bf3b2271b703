"""Everything that the page shows, as one JSON-able document: the page computes sums and formats numbers, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from fxsparse.cost_model.accelerator import Accelerator

from ..cost_ledger import ledger_of
from ..cost_report import CostReport
from ..errors import CostError, FxSparseError
from ..estimator import arithmetic_of, machine_of
from .before import before_of
from .compact import compact_costs, compact_graph, compact_rows, compact_timeline
from .graph_view import node_rows

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel


def document(
    compiled: CompiledModel,
    *,
    accelerator: str | Accelerator | None = None,
    compare: Any = None,
    title: str | None = None,
    convention: str = "exact",
    batch_size: int | None = None,
    density: str = "target",
) -> dict[str, Any]:
    """The document.

    Args:
        accelerator: a shipped name, a file, an Accelerator; None takes the one that the model was compiled for, if any.
        compare: another compiled model or CostReport, or several by name, to set beside this one. Dense is always among them.
        title: None takes the model's class name.
        convention, batch_size, density: see ``CompiledModel.cost``.

    Raises:
        CostError: the model was compiled without example inputs, an argument is unknown, or what is compared does not fit.
    """
    machine = machine_of(accelerator) or compiled.accelerator
    others = _named(compare, compiled)

    def cost(model: CompiledModel) -> CostReport:
        return model.cost(machine, convention, batch_size or compiled.example_batch, density=density)

    report = cost(compiled)
    views = {"after": _view(compiled, report)}
    compared = []
    before, why_not = before_of(compiled)
    if before is not None:
        dense = cost(before)
        views["before"] = _view(before, dense)
        compared.append({"name": "dense", **_comparison(report, dense)})
    for name, other in others.items():
        baseline = other if isinstance(other, CostReport) else cost(other)
        row = {"name": name, **_comparison(report, baseline)}
        if not isinstance(other, CostReport):
            row |= {"densities": _densities(other), "policy": other.policy.to_dict()}
        compared.append(row)
    dtype, _ = arithmetic_of(ledger_of(compiled))
    return {
        "title": title or report.model,
        "model": report.model,
        "versions": {"fxsparse": _version(), "torch": str(torch.__version__)},
        "policy": compiled.policy.to_dict(),
        "machine": None if machine is None else _machine(machine, dtype),
        "dtype": dtype,
        "modules": {name: type(module).__name__ for name, module in compiled._root.named_modules(remove_duplicate=False)},
        "views": views,
        "without_before": why_not,
        "report": _decisions(compiled),
        "densities": _densities(compiled),
        "compared": compared,
    }


def _view(model: CompiledModel, report: CostReport) -> dict[str, Any]:
    """A graph, its costs, and its memory over a step."""
    timeline = report.timeline
    return {
        "rows": compact_graph([row.to_dict() for row in node_rows(model)]),
        "cost": compact_costs(report.to_dict()),
        "timeline": None if timeline is None else compact_timeline(timeline.to_dict()),
    }


def _comparison(report: CostReport, baseline: CostReport) -> dict[str, Any]:
    found = report.compare(baseline).to_dict()
    nodes = [
        {
            **{key: row[key] for key in ("name", "bound", "baseline_bound", "ratios")},
            **{side: None if row[side] is None else {key: value for key, value in row[side].items() if key != "tags"} for side in _SIDES},
        }
        for row in (*found["nodes"], found["total"])
    ]
    return {
        **{key: found[key] for key in ("speedup", "pays", "verdict", "saved_bytes", "peak_bytes")},
        "model": baseline.model,
        "reduction": dict(baseline.reduction),
        "nodes": compact_rows(nodes[:-1]),
        "total": nodes[-1],
    }


_SIDES = ("cost", "baseline")


def _named(compare: Any, compiled: CompiledModel) -> dict[str, Any]:
    """What is compared with, by name.

    Raises: CostError for what is neither a compiled model nor a report.
    """
    from ..compiled_model import CompiledModel

    given = {} if compare is None else dict(compare) if isinstance(compare, Mapping) else {_name_of(compare): compare}
    for name, other in given.items():
        if not isinstance(other, (CompiledModel, CostReport)):
            raise CostError(
                f"compare={name!r} is a {type(other).__name__}; expected a compiled model, a CostReport, or a mapping from names to these"
            )
    return {str(name): other for name, other in given.items()}


def _name_of(other: Any) -> str:
    policy = getattr(other, "policy", None)
    if policy is None:
        return "the other report"
    return " + ".join(type(technique).__name__ for technique in policy) or "no policy"


def _decisions(compiled: CompiledModel) -> dict[str, Any]:
    """What was done and what was not, with the rule of each site."""
    data = compiled.report.to_dict()
    plan = {name: spec.to_dict() for name, spec in compiled.plan.items()}
    kept = {name: spec.to_dict() for specs in (compiled.kept_plan.blpa, compiled.kept_plan.saved) for name, spec in specs.items()}
    return {**data, "plan": plan, "kept": kept}


def _densities(compiled: CompiledModel) -> list[dict[str, Any]]:
    """Target and actual densities of each site, in the order of execution."""
    try:
        measured = compiled.sparsity()
    except FxSparseError:  # weights that no threshold can be selected from
        return []
    return [{"site": name, **row} for name, row in measured.items()]


def _machine(machine: Accelerator, dtype: str) -> dict[str, Any]:
    """The machine, with the roofs of its roofline."""
    if machine.array is not None:
        peaks = {"all multipliers": 2.0 * machine.array.multipliers * machine.array.clock_hz}
    else:
        assert machine.roofline is not None
        peaks = dict(machine.roofline.peak_flops)
    own = next(iter(peaks)) if machine.array is not None else dtype
    return {
        **machine.to_dict(),
        "roofs": {"flops_per_s": peaks, "own": own, "dram_bytes_per_s": machine.memory.dram_bytes_per_s},
    }


def _version() -> str:
    try:
        return version("fxsparse")
    except PackageNotFoundError:
        return "0+unknown"
