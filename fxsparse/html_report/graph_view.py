"""The nodes of a compiled model as rows for the page: every execution of a node, nested graphs in place, under the names of the ledger."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxsparse.passes.meta import read as facts_of

from .techniques import Techniques

if TYPE_CHECKING:
    from ..compiled_model import CompiledModel

Ids = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One execution of one node.

    Attributes:
        name: as in the cost report. kind: the node's fx op. target: what it calls. module: path of the module that it stands for.
        line: "FILE:LINE: CODE" of the model, the file as it is imported. made_by: the pass that put it there.
        inputs: names of the rows that it reads.
        shape: of its result for the example, "" if it is not known. technique, bits: see ``Techniques``.
    """

    name: str
    graph: str
    kind: str
    target: str
    module: str
    role: str = ""
    site: str = ""
    line: str = ""
    made_by: str = ""
    shape: str = ""
    technique: str = ""
    bits: int | None = None
    inputs: Ids = ()

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def node_rows(model: CompiledModel) -> list[NodeRow]:
    """The rows of a model in its present mode, in the order of execution."""
    return _Walk(model).rows


class _Walk:
    def __init__(self, model: CompiledModel) -> None:
        self.graphs = model.graphs
        self.techniques = Techniques(model)
        self.rows: list[NodeRow] = []
        if "" in self.graphs:
            self._graph("", "", None, {})
        elif model.root_cost:
            self._execution("(model)", "", "", dict(model.root_cost), None, ())
        else:
            for path in self.graphs:
                if not any(path.startswith(f"{other}.") for other in self.graphs):
                    self._graph(path, f"{path}/", None, {})

    def _graph(self, path: str, prefix: str, bound: Sequence[Ids] | None, other: Mapping[str, Any]) -> Ids:
        """Adds the rows of a graph, whose inputs are ``bound``; the names of what its result comes from."""
        made: dict[str, Ids] = {}
        given = iter(bound or ())
        for node in self.graphs[path].graph.nodes:
            inputs = tuple(dict.fromkeys(name for item in node.all_input_nodes for name in made.get(item.name, ())))
            if node.op == "output":
                if prefix == "":
                    self._row(f"{prefix}{node.name}", path, node, inputs)
                return inputs
            if node.op == "placeholder":
                made[node.name] = next(given, ()) if bound is not None else self._row(f"{prefix}{node.name}", path, node, ())
            else:
                facts = other.get(node.name) or facts_of(node).get("cost", {})
                made[node.name] = self._execution(node.name, path, prefix, facts, node, inputs, made)
        return ()

    def _execution(
        self,
        node_name: str,
        path: str,
        prefix: str,
        facts: Mapping[str, Any],
        node: fx.Node | None,
        inputs: Ids,
        made: Mapping[str, Ids] | None = None,
    ) -> Ids:
        """Adds a node, or where it runs graphs theirs; the names of what its result comes from."""
        name = f"{prefix}{node_name}"
        runs_only = facts.get("kind") == "graph" and not facts.get("own_memory")
        own: Ids = () if runs_only else self._row(name, path, node, inputs)
        results = own
        for number, call in enumerate(facts.get("calls", ())):
            bound = [() if source is None else (made or {}).get(source[0], own or inputs) for source in call.get("inputs", ())]
            if "node" in call:
                results += self._execution(call["node"], path, prefix, call["facts"], None, own or inputs, made)
            else:
                graph = call["graph"]
                inner = f"{name}/" if facts.get("kind") == "graph" else f"{name}/{graph}{f'#{number}' if number else ''}/"
                results += self._graph(graph, inner, bound, call.get("nodes") or {})
        return tuple(dict.fromkeys(results)) or inputs

    def _row(self, name: str, path: str, node: fx.Node | None, inputs: Ids) -> Ids:
        if node is None:
            module = name.rpartition("@")[2] if "@" in name else path
            self.rows.append(NodeRow(name=name, graph=path, kind="python", target="its own Python", module=module, inputs=inputs))
            return (name,)
        facts = facts_of(node)
        technique, bits = self.techniques.of(node)
        self.rows.append(
            NodeRow(
                name=name,
                graph=path,
                kind=node.op,
                target=_target(node),
                module=facts.get("module", path),
                role=facts.get("role", ""),
                site=facts.get("site", ""),
                line=_short(facts.get("line", "")),
                made_by=facts.get("made_by", ""),
                shape=_shape(node.meta.get("val")),
                technique=technique,
                bits=bits,
                inputs=inputs,
            )
        )
        return (name,)


def _short(line: str) -> str:
    """The line with its file as it is imported, without the folders of the machine that it lies on."""
    roots = sorted((os.path.join(path, "") for path in sys.path if path), key=len, reverse=True)
    root = next((root for root in roots if line.startswith(root)), None)
    if root is not None:
        return line[len(root) :]
    file, mark, rest = line.partition(".py:")
    return "/".join(file.split(os.sep)[-2:]) + mark + rest


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        overload: Any = node.target
        return str(overload.name()).removesuffix(".default")
    module = getattr(node.target, "__module__", "") or ""
    name = getattr(node.target, "__qualname__", None) or getattr(node.target, "__name__", str(node.target))
    return f"{module.lstrip('_')}.{name}" if module and module not in ("builtins", "torch._C._nn") else str(name)


def _shape(value: Any) -> str:
    """The form of a result: "8x64x56x56 float32", of the first tensor and how many more there are."""
    if isinstance(value, torch.Tensor):
        return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
        more = f" and {len(value) - 1} more" if len(value) > 1 else ""
        return _shape(value[0]) + more
    return ""
