"""The compiled model as a networkx graph: every execution of every node, with all that is known of it.

Nodes are named as in ``CostReport.nodes``. A graph inside another one stands behind its call: "encoder" is the call, "encoder/linear" a
node in it, and what reads the call's result is joined to "encoder/output". Edges lead from a value to what reads it. Each node has its
costs, and each edge those of the node it leads to, so that a path is as long as its nodes are expensive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import networkx as nx
from torch import fx

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.cost_model.gemm import PASSES
from fxsparse.passes.meta import read

from .errors import CostError

if TYPE_CHECKING:
    from .compiled_model import CompiledModel
    from .cost_report import NodeCost

FIGURES = ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj", "time_s")
_COUNTED = ("macs", "dense_macs", "flops", "dram_bytes")


def to_networkx(
    model: CompiledModel,
    accelerator: str | Accelerator | None = None,
    *,
    convention: str = "exact",
    batch_size: int | None = None,
    density: str = "target",
) -> nx.DiGraph[str]:
    """The graph of a compiled model; see ``CompiledModel.to_networkx``."""
    about: dict[str, Any] = {"model": model.report.model, "accelerator": None, "batch_size": None, "convention": convention}
    try:
        report = model.cost(accelerator, convention, batch_size, density=density)
        costs = {node.name: node for node in report.nodes}
        about |= {"accelerator": report.accelerator, "batch_size": report.batch_size}
    except CostError:  # without example inputs there are no shapes; but an argument that is wrong is wrong
        if accelerator is not None or batch_size is not None or model.example is not None:
            raise
        costs = {}
    network: nx.DiGraph[str] = nx.DiGraph()
    network.graph.update(about)
    known = [name for name in FIGURES if name in _COUNTED or any(getattr(cost.total, name) is not None for cost in costs.values())]
    walk = _Walk(model, network, costs, known, about["batch_size"] or 1)
    walk.whole()
    return network


@dataclass
class _Walk:
    model: CompiledModel
    network: nx.DiGraph[str]
    costs: Mapping[str, NodeCost]
    known: Sequence[str]
    batch: int
    techniques: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graphs = self.model.graphs
        for row in self.model.report.sites:
            self.techniques[row.site] = row.technique.split(" + ") if row.technique else []

    def whole(self) -> None:
        if "" in self.graphs:
            self.graph("", "", None)
        else:
            root = dict(self.model.root_cost)
            self._add("(model)", "", "", op="python", target=self.model.report.model)
            inner = [call["graph"] for call in root.get("calls", ()) if "graph" in call] or self._outermost("")
            for number, path in enumerate(inner):
                self.graph(path, f"(model)/{path}{f'#{number}' if number and root.get('calls') else ''}/", "(model)")
        for name in self.costs.keys() - self.network.nodes:
            cost = self.costs[name]
            self._add(name, cost.node, cost.graph, op="python", target=cost.operator, module=cost.module)
            outer = name.rpartition("/")[0]
            if outer in self.network:
                self._join(outer, name)

    def graph(self, path: str, prefix: str, caller: str | None) -> str:
        """Adds a graph. Returns the name of its output."""
        ends: dict[fx.Node, str] = {}
        for node in self.graphs[path].graph.nodes:
            name = f"{prefix}{node.name}"
            ends[node] = name
            facts = read(node)
            self._add(name, node.name, path, op=node.op, target=_target(node), facts=facts)
            for other in node.all_input_nodes:
                self._join(ends[other], name)
            if node.op == "placeholder" and caller is not None:
                self._join(caller, name)
            inside = list(self._inner_graphs(node, path, name, facts.get("cost", {})))
            results = [self.graph(inner, inner_prefix, name) for inner, inner_prefix in inside]
            if len(results) == 1:
                ends[node] = results[0]
            elif results:
                ends[node] = f"{name}/return"
                self._add(ends[node], node.name, path, op="python", target="return")
                for result in results:
                    self._join(result, ends[node])
        return name

    def _inner_graphs(self, node: fx.Node, path: str, name: str, cost: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Path of each graph that a node runs, and what stands before the names in it, as in the report of costs."""
        calls = cost.get("calls")
        if calls is not None:
            for number, call in enumerate(calls):
                if "graph" in call:
                    several = f"{name}/{call['graph']}{f'#{number}' if number else ''}/"
                    yield call["graph"], f"{name}/" if cost["kind"] == "graph" else several
        elif node.op == "call_module":
            inner = f"{path}.{node.target}" if path else str(node.target)
            for other in [inner] if inner in self.graphs else self._outermost(f"{inner}."):
                yield other, f"{name}/" if other == inner else f"{name}/{other}/"

    def _outermost(self, start: str) -> list[str]:
        below = [path for path in self.graphs if path.startswith(start)]
        return [path for path in below if not any(path.startswith(f"{other}.") for other in below)]

    def _add(self, name: str, node: str, graph: str, *, op: str, target: str, facts: Mapping[str, Any] | None = None, **more: Any) -> None:
        facts = facts or {}
        site = facts.get("site", "")
        known: dict[str, Any] = {
            "node": node,
            "graph": graph,
            "op": op,
            "target": target,
            "module": facts.get("module", graph),
            "line": facts.get("line", ""),
            "made_by": facts.get("made_by", ""),
            "site": site,
            "role": facts.get("role", ""),
            "techniques": list(self.techniques.get(site, [])),
            **self._form(facts.get("cost", {})),
            **more,
        }
        self.network.add_node(name, **known, **_figures(self.costs.get(name), self.known))

    def _form(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        """Shape and dtype of a node's result, and its bytes, for the batch size that is asked for."""
        form: dict[str, Any] = {}
        if "tensor" in cost:
            form["tensor_bytes"] = cost["tensor"][0] * self.batch + cost["tensor"][1]
        if "form" in cost:
            dtype, shape, scaled = cost["form"]
            form |= {"dtype": dtype, "shape": [size * self.batch if grows else size for size, grows in zip(shape, scaled, strict=True)]}
        return form

    def _join(self, source: str, name: str) -> None:
        known, reader = self.network.nodes[source], self.network.nodes[name]
        carried = {key: known[key] for key in ("shape", "dtype", "tensor_bytes") if key in known}
        self.network.add_edge(source, name, **carried, **{key: reader[key] for key in (*FIGURES, "saved_bytes") if key in reader})


def _figures(cost: NodeCost | None, known: Sequence[str]) -> dict[str, Any]:
    """A node's costs: its three passes, their sum figure by figure, 0 where it costs nothing, and its densities."""
    if cost is None:
        return {**dict.fromkeys(known, 0), "saved_bytes": 0}
    total = cost.total
    return {
        "operator": cost.operator,
        **{name: getattr(total, name) or 0 for name in known},
        **{which: getattr(cost, which).to_dict() for which in PASSES},
        "saved_bytes": cost.saved_bytes,
        "weight_density": cost.weight_density,
        "activation_density": cost.activation_density,
        "known": cost.known,
        **({"bound": cost.bound} if cost.bound else {}),
    }


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
