"""Whether a number that Python asks for depends on how many samples there are: the graph so far, evaluated for another number."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from .fake_twin import UNKNOWN, FakeTwin, given


class BatchProbe:
    """The values of a graph's nodes for another number of samples, in their fact ``probe``.

    Args:
        twin: gives the twin for that number. examples: the example's tensors, one for each input of the graph.
        absolute: a node's target as it is called from the model's root.
    """

    def __init__(self, twin: Callable[[], FakeTwin], examples: list[Any], absolute: Callable[[str, Any], Any]) -> None:
        self._twin = twin
        self._examples = examples
        self._absolute = absolute

    def agrees(self, node: fx.Node) -> bool:
        """Whether every number that the node's value was computed from is the same there."""
        twin = self._twin()
        examples: Iterator[Any] = iter(self._examples)
        for earlier in node.graph.nodes:
            if earlier.op == "placeholder":
                example = next(examples, UNKNOWN)
                earlier.meta.setdefault("probe", twin.example(example) if isinstance(example, torch.Tensor) else UNKNOWN)
            elif "probe" not in earlier.meta:
                earlier.meta["probe"] = self._value(twin, earlier)
            if earlier is node:
                break
        return _same_readings(node)

    def _value(self, twin: FakeTwin, node: fx.Node) -> Any:
        try:
            return twin.run(node.op, self._absolute(node.op, node.target), given(node.args, "probe"), given(node.kwargs, "probe"))
        except Exception:  # a model that refuses another batch size depends on it
            return UNKNOWN


def names_read(node: fx.Node) -> Iterator[str]:
    """What is asked of tensors on the way to a node's value."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        inputs = current.all_input_nodes
        if any(isinstance(other.meta.get("val"), torch.Tensor) for other in inputs):
            yield reading(current)
        else:
            waiting += inputs


def reading(node: fx.Node) -> Any:
    """What a node asks of a tensor: the name of an attribute or a method."""
    return node.args[1] if node.target is getattr else node.target


def _same_readings(node: fx.Node) -> bool:
    value, probe = node.meta.get("val", UNKNOWN), node.meta.get("probe", UNKNOWN)
    inputs = node.all_input_nodes
    is_reading = not inputs or any(isinstance(other.meta.get("val"), torch.Tensor) for other in inputs)
    is_part = node.target is operator.getitem and isinstance(inputs[0].meta.get("val"), tuple)
    if is_reading or is_part:
        return value is not UNKNOWN and type(value) is type(probe) and bool(value == probe)
    return all(_same_readings(other) for other in inputs)
