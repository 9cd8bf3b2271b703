"""One graph for every number of samples, from two recordings that differ in it."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .refusals import Diverged


def opened(first: fx.Graph, other: fx.Graph, sizes: tuple[int, int], source: int) -> fx.Graph:
    """``first`` with every number that grows with the samples computed from its input number ``source``.

    Args:
        sizes: how many samples there are in the two recordings.

    Raises:
        Diverged: a number differs in the two that is no multiple of the samples.
    """
    opener = _Opener(first, sizes, source)
    pairs = list(zip(first.nodes, other.nodes, strict=False))
    if len(pairs) != len(list(other.nodes)):
        raise Diverged
    positions = {node: index for index, (node, _) in enumerate(pairs)} | {node: index for index, (_, node) in enumerate(pairs)}
    opener.positions = positions
    merged = [(node, opener.merge(node.args, partner.args), opener.merge(node.kwargs, partner.kwargs)) for node, partner in pairs]
    for node, args, kwargs in merged:
        if opener.uses_size(args) or opener.uses_size(kwargs):
            node.args, node.kwargs = opener.filled(args), opener.filled(kwargs)
    return first


class _Factor:
    """So many times the number of samples."""

    def __init__(self, times: int) -> None:
        self.times = times


class _Opener:
    def __init__(self, graph: fx.Graph, sizes: tuple[int, int], source: int) -> None:
        self.graph = graph
        self.sizes = sizes
        self.positions: dict[fx.Node, int] = {}
        self._inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._source = self._inputs[source]
        self._made: dict[int, fx.Node] = {}

    def merge(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            if self.positions[a] != self.positions[b]:
                raise Diverged
            return a
        if type(a) is int and type(b) is int:
            if a == b:
                return a
            here, there = self.sizes
            if a % here == 0 and a // here * there == b:
                return _Factor(a // here)
            raise Diverged
        if type(a) is not type(b):
            raise Diverged
        if isinstance(a, slice):
            return slice(self.merge(a.start, b.start), self.merge(a.stop, b.stop), self.merge(a.step, b.step))
        if isinstance(a, (tuple, list)):
            if len(a) != len(b):
                raise Diverged
            items = [self.merge(x, y) for x, y in zip(a, b, strict=True)]
            return items if isinstance(a, list) else type(a)(*items) if hasattr(a, "_fields") else tuple(items)
        if isinstance(a, dict):
            if list(a) != list(b):
                raise Diverged
            return {key: self.merge(item, b[key]) for key, item in a.items()}
        if a is not b and a != b and not (isinstance(a, float) and a != a and b != b):
            raise Diverged
        return a

    def uses_size(self, value: Any) -> bool:
        if isinstance(value, slice):
            return any(map(self.uses_size, (value.start, value.stop, value.step)))
        if isinstance(value, (tuple, list)):
            return any(map(self.uses_size, value))
        if isinstance(value, dict):
            return any(map(self.uses_size, value.values()))
        return isinstance(value, _Factor)

    def filled(self, value: Any) -> Any:
        if isinstance(value, _Factor):
            return self._size(value.times)
        if isinstance(value, slice):
            return slice(self.filled(value.start), self.filled(value.stop), self.filled(value.step))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.filled, value))
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.filled, value))
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        return value

    def _size(self, times: int) -> fx.Node:
        if 1 not in self._made:
            with self.graph.inserting_after(self._inputs[-1]):
                node = self.graph.call_method("size", (self._source, 0))
            node.meta["val"] = self.sizes[0]
            self._made[1] = node
        if times not in self._made:
            with self.graph.inserting_after(self._made[1]):
                node = self.graph.call_function(operator.mul, (self._made[1], times))
            node.meta["val"] = self.sizes[0] * times
            self._made[times] = node
        return self._made[times]
