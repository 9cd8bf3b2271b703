"""Metadata of an ONNX graph: at each contraction its site, densities and costs; at the model, what ``facts`` collects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxsparse.cost_model.gemm import PASSES

from .facts import PREFIX, SiteFacts, dumps, figures

if TYPE_CHECKING:
    from ..cost_report import NodeCost

CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})
_CARRIERS = frozenset(
    ["Transpose", "Reshape", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Identity", "Split", "Gather", "Flatten", "Expand"]
)


def contractions_of(model: Any, initializer: str) -> list[Any]:
    """The nodes that multiply with a weight, directly or through views of it, in the order of the graph."""
    carried, found = {initializer}, []
    for node in model.graph.node:
        reads = carried.intersection(node.input)
        if not reads:
            continue
        if node.op_type in CONTRACTIONS or node.domain == "fxsparse":
            found.append(node)
        elif node.op_type in _CARRIERS and node.input[0] in carried | ({*node.input} if node.op_type == "Concat" else set()):
            carried.update(node.output)
    return found


def annotate_nodes(
    sites: Mapping[str, SiteFacts],
    costs: Mapping[str, Sequence[NodeCost]],
    accelerator: str | None,
    consumers: Mapping[str, list[Any]],
) -> None:
    """Writes the facts of each site to the nodes that multiply with it.

    A node with several weights (an LSTM) has lists. Where the graph multiplies in more or fewer nodes than the model did, the first one
    carries the cost of all.
    """
    rows: dict[int, tuple[Any, list[tuple[SiteFacts, Sequence[NodeCost]]]]] = {}
    for name, site in sites.items():
        nodes, own = consumers.get(name, []), costs.get(name, ())
        shares = [[cost] for cost in own] if len(own) == len(nodes) else [list(own)]
        for index, node in enumerate(nodes):
            rows.setdefault(id(node), (node, []))[1].append((site, shares[index] if index < len(shares) else ()))
    for node, found in rows.values():
        own_sites = [site for site, _ in found]
        passes = [cost for _, shared in found for cost in shared]
        facts: dict[str, Any] = {
            "site": _one([site.site for site in own_sites]),
            "technique": _one([site.technique for site in own_sites]),
            "target_density": _one([site.target for site in own_sites]),
            "density": _one([site.kept / site.total for site in own_sites]),
            "kept": _one([f"{site.kept}/{site.total}" for site in own_sites]),
        }
        for which in PASSES if passes else ():
            facts[which] = _summed(getattr(cost, which) for cost in passes)
        if passes and accelerator is not None:
            facts["accelerator"] = accelerator
        put(node, facts)


def put(holder: Any, facts: Mapping[str, Any]) -> None:
    """Adds facts to the metadata_props of a node or a model; text as it is, all else as JSON."""
    for key, value in facts.items():
        entry = holder.metadata_props.add()
        entry.key = key if key.startswith(PREFIX) else f"{PREFIX}{key}"
        entry.value = value if isinstance(value, str) else dumps(value)


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _summed(costs: Iterable[Any]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for cost in costs:
        for name, value in figures(cost).items():
            total[name] = total.get(name, 0) + value
    return total
