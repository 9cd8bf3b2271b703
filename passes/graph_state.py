"""A graph as plain data that can be pickled and copied: nodes keep their order, names and fxsparse metadata."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxsparse.errors import FxSparseError

from .capture.rebuild import Template

_NAMESPACES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch._C._nn": torch._C._nn,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch._VF": torch._VF,
    "operator": operator,
    "builtins": builtins,
    "math": math,
    "torch.Tensor": torch.Tensor,
}


@dataclass(frozen=True)
class Ref:
    """A reference to the node at a position of the graph."""

    position: int


@dataclass(frozen=True)
class FrozenNode:
    """One node: references to others are Refs, a function is its import path."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    custom: Any


@dataclass(frozen=True)
class FrozenGraph:
    """All nodes of a graph, in order."""

    nodes: tuple[FrozenNode, ...]


def freeze(graph: fx.Graph) -> FrozenGraph:
    """The graph as plain data.

    Raises:
        FxSparseError: a function in the graph cannot be imported by name (a lambda, or defined inside a function).
    """
    positions = {node: index for index, node in enumerate(graph.nodes)}

    def referenced(arguments: Any) -> Any:
        replaced: Any = Ref
        return fx.node.map_arg(arguments, lambda node: replaced(positions[node]))

    return FrozenGraph(
        tuple(
            FrozenNode(
                node.op,
                node.name,
                node.target if node.op != "call_function" or isinstance(node.target, Template) else _path_of(node),
                referenced(node.args),
                referenced(node.kwargs),
                node.meta.get("custom"),
            )
            for node in graph.nodes
        )
    )


def thaw(frozen: FrozenGraph | fx.Graph) -> fx.Graph:
    """A new graph from plain data; a graph that was never frozen is returned as it is."""
    if isinstance(frozen, fx.Graph):
        return frozen
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def resolved(arguments: Any) -> Any:
        if isinstance(arguments, Ref):
            return nodes[arguments.position]
        if isinstance(arguments, tuple):
            items = [resolved(item) for item in arguments]
            return type(arguments)(*items) if hasattr(arguments, "_fields") else tuple(items)
        if isinstance(arguments, list):
            return [resolved(item) for item in arguments]
        if isinstance(arguments, dict):
            return {key: resolved(item) for key, item in arguments.items()}
        if isinstance(arguments, slice):
            return slice(resolved(arguments.start), resolved(arguments.stop), resolved(arguments.step))
        return arguments

    for item in frozen.nodes:
        target = _resolve(item.target) if item.op == "call_function" and isinstance(item.target, tuple) else item.target
        node = graph.create_node(item.op, target, resolved(item.args), resolved(item.kwargs), item.name)
        if item.custom is not None:
            node.meta["custom"] = item.custom
        nodes.append(node)
    return graph


def _path_of(node: fx.Node) -> tuple[str, str]:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        overload: Any = target
        return "overload", overload.name()
    name = getattr(target, "__name__", "")
    for namespace, holder in _NAMESPACES.items():
        if getattr(holder, name, None) is target:
            return namespace, name
    module, qualified = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if module and "<" not in qualified:
        try:
            if operator.attrgetter(qualified)(importlib.import_module(module)) is target:
                return module, qualified
        except (ImportError, AttributeError):
            pass
    raise FxSparseError(
        f"node {node.name!r} calls {target!r}, which cannot be imported by name, so that the graph cannot be copied or saved; "
        "define that function at the top of a module"
    )


def _resolve(path: tuple[str, str]) -> Any:
    namespace, name = path
    if namespace == "overload":
        library, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        return getattr(getattr(getattr(torch.ops, library), packet), overload or "default")
    holder = _NAMESPACES.get(namespace)
    return operator.attrgetter(name)(importlib.import_module(namespace) if holder is None else holder)
