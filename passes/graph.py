"""Small tools on fx graphs that several passes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from .capture.fake_twin import UNKNOWN


class Snapshot:
    """The nodes of a graph at one moment, and what each one computes from what."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = {node.name: (node.op, node.target, repr((node.args, node.kwargs))) for node in graph.nodes}


def differences(before: Snapshot, after: Snapshot) -> dict[str, frozenset[str]]:
    """Names of the nodes that were added, removed, or changed in target or arguments."""
    old, new = before.nodes, after.nodes
    return {
        "added": frozenset(new.keys() - old.keys()),
        "removed": frozenset(old.keys() - new.keys()),
        "rewired": frozenset(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }


class Recorder:
    """Inserts nodes and remembers their names, so that a pass can report them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.added: list[str] = []

    def function(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self._noted(self.graph.call_function(target, args, kwargs))

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self._noted(self.graph.call_method(name, args, kwargs))

    def attribute(self, target: str) -> fx.Node:
        return self._noted(self.graph.create_node("get_attr", target))

    def _noted(self, node: fx.Node) -> fx.Node:
        self.added.append(node.name)
        return node

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Everything made inside goes in front of ``node``."""
        with self.graph.inserting_before(node):
            yield

    def take(self) -> tuple[str, ...]:
        """The names noted since the last call."""
        names, self.added = tuple(self.added), []
        return names


def value(node: Any) -> Any:
    """The node's value on fake tensors; UNKNOWN if there is none; what is not a node is its own value."""
    return node.meta.get("val", UNKNOWN) if isinstance(node, fx.Node) else node


def first_real_node(graph: fx.Graph) -> fx.Node:
    """The first node after the graph's inputs."""
    node: fx.Node = next(node for node in graph.nodes if node.op != "placeholder")
    return node


def reserve_self(graph: fx.Graph) -> None:
    """Keeps a node from being called ``self``, which is the name of the module in the code made of a graph."""
    graph._graph_namespace.create_name("self", None)
