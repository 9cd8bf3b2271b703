"""Writes what every node costs to its metadata: workloads for one sample, what it keeps for backward, and whose storage it shares.

The graphs are walked once on the forms of tensors, from the model's inputs on, with a batch size that no layer has by chance, so
that what grows with the samples can be told from what does not. Every call is run on fake tensors, forward and backward, and
what torch dispatches is priced (see ``pricing``). A module with a graph of its own is priced there, its call only says where;
a module that keeps its Python is priced without its captured children, which are priced in their own graphs.

The fact ``cost`` of a node is plain data, every key but ``kind`` left out where it says nothing:

    kind         "priced", "free", "unknown", "value" (no tensor), "input", "parameter", "graph", "output"
    operator     its name in reports              work         workloads of one sample (or fixed, if not "scales")
    inputs       nodes whose tensors it reads     storages     bytes of the storages it makes, [of a sample, fixed]
    alias        [node, index] of the storage that its output shares
    form         [dtype, sizes for one sample, which of them grow with the samples] of its output, if that is one tensor
    tensor       bytes of its output              saved        [origin, name, index, of a sample, fixed] for each storage kept
    transient    bytes of its work space: forward and backward, each [of a sample, fixed]
    parameters   [name, bytes] of each parameter that gets a gradient here
    unknown      bytes moved by operators that are not known, by name
    calls        graphs that it runs: path, the storage of each input, and of what comes back [index, node, index there];
                 "nodes" has the facts of nodes that are others in this call than in the graph's first
    own_memory   true for a composite whose graph is only read: its storages are those of torch's own Python
    spaces       [index, of a sample, fixed] of the storages that it makes for those graphs

``fxs.compile`` adds, for the batch size of the example and the mode of the model: "forward", "grad_input", "grad_weight" (each the
figures of ``cost_model.PassCost``), "saved_bytes" and "batch_size".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import meta
from .capture.capture import Capture
from .capture.graph_forward import Variant
from .capture.signature import Arguments, Mismatch
from .leaves import leaves_of
from .pricing.calls import CallPricer
from .pricing.facts import Facts
from .pricing.graph_walk import GraphWalk
from .pricing.keys import Held
from .pricing.recording import Spec
from .sites import batch_size_of, graphs_in_order

_UNLIKELY_BATCH = 1013


def annotate_cost(
    captured: Capture, names: Mapping[str, str], example: Arguments | None = None, rewritten: Collection[str] = ()
) -> dict[str, Any]:
    """Prices every node of every graph. Returns the cost of the root's own Python, empty if the root is a graph.

    Args:
        names: the site of each parameter, by the parameter's qualified name.
        example: the model's example inputs. rewritten: paths of graphs that a pass has changed.
    """
    own = example_batch_of(captured, example)
    first = PricingRun(captured, names, own, _UNLIKELY_BATCH, rewritten)
    root = first.over(example)
    if first.failures and own is not None:
        second = PricingRun(captured, names, own, own, rewritten)
        again = second.over(example)
        if second.failures < first.failures:
            return second.written(again)
    return first.written(root)


def example_batch_of(captured: Capture, example: Arguments | None) -> int | None:
    """The first size of the example's first tensor, or of what capture has seen."""
    tensors = [leaf for leaf in leaves_of(example) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    return int(tensors[0].shape[0]) if tensors else batch_size_of(captured)


class PricingRun:
    """All graphs of a capture at one batch size."""

    def __init__(self, captured: Capture, names: Mapping[str, str], own_batch: int | None, batch: int, rewritten: Collection[str]) -> None:
        self.captured = captured
        self.rewritten = rewritten
        self.names = names
        self.own_batch = own_batch
        self.batch = batch
        self.exclusive = batch != own_batch
        self.pricer = CallPricer(batch, self.exclusive)
        self.failures = 0
        self.found: dict[fx.Node, dict[str, Any]] = {}
        tensor_names: dict[int, str] = {}
        for name, tensor in (*captured.root.named_parameters(), *captured.root.named_buffers()):
            tensor_names.setdefault(id(tensor), name)
        self.facts = Facts(batch, tensor_names)

    def over(self, example: Arguments | None) -> dict[str, Any]:
        """Prices everything that the example's call runs, then what it does not. Returns the cost of the root's own Python."""
        root: dict[str, Any] = {}
        if "" in self.captured.forwards:
            for variant in self.captured.forwards[""].variants:
                self.graph("", variant.graph_module, self._inputs_of(variant, example))
        elif example is not None:
            root = self._root_python(example)
        for path, _, gm in graphs_in_order(self.captured):
            if next(iter(gm.graph.nodes)) not in self.found:
                self.graph(path, gm, None)
        return root

    def _inputs_of(self, variant: Variant, example: Arguments | None) -> list[Spec] | None:
        """The forms of a graph's inputs in the example's call; None if that call is not one of this graph's."""
        if example is None:
            return None
        try:
            return [self.at_batch(tensor) for tensor in variant.signature.tensors(*example)]
        except Mismatch:
            return None

    def written(self, root: dict[str, Any]) -> dict[str, Any]:
        """Writes what was found to the nodes' metadata; passes ``root`` on."""
        for node, facts in self.found.items():
            meta.write(node, cost=facts)
        return root

    def _root_python(self, example: Arguments) -> dict[str, Any]:
        def held(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return Held(self.at_batch(leaf), ("input", next(counter)), node="input")

        counter = iter(range(1 << 30))
        args, kwargs = pytree.tree_map(held, example)
        graph = GraphWalk(self, "", None).inner
        try:
            facts, _ = graph.python("(model)", self.captured.root, "", args, kwargs)
        except Exception:  # what depends on data cannot run on fake tensors; the graphs in it are priced by what capture has seen
            calls = [{"graph": below, "inputs": []} for below in graph.inside("").values()]
            return {"kind": "unknown", "unknown": {type(self.captured.root).__name__: [0, 0]}, "calls": calls}
        spaces = [self.facts.amount(leaf.spec) for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Held)]
        return {**facts, "given": [list(amount) for amount in spaces]}

    def graph(self, path: str, gm: fx.GraphModule, bound: Sequence[Any] | None) -> tuple[Any, dict[str, Any]]:
        """Prices a graph. Returns its output, and the facts of its nodes where they differ from those of an earlier call of it."""
        walk = GraphWalk(self, path, gm)
        result = walk.walk(bound)
        other = {}
        for node, facts in walk.facts.items():
            if self.found.setdefault(node, facts) != facts:
                other[node.name] = facts
        return result, other

    def at_batch(self, tensor: torch.Tensor) -> Spec:
        """The form of an example at this run's batch size: in its first dimension of the example's size, or a multiple of it."""
        shape, own = list(tensor.shape), self.own_batch
        if own is not None and own != self.batch and shape:
            place = next((index for index, size in enumerate(shape) if size == own), None)
            if place is None and own > 1:
                place = next((index for index, size in enumerate(shape) if size and size % own == 0), None)
            if place is not None:
                shape[place] = shape[place] // own * self.batch
        device = next((p.device for p in self.captured.root.parameters()), torch.device("cpu")) if tensor.is_meta else tensor.device
        return Spec(tuple(shape), _strides(shape, tensor.stride()), tensor.dtype, device, tensor.requires_grad)


def _strides(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Dense strides of a shape in the order of an example's strides; the example's where a dimension was expanded."""
    if any(step == 0 for step in stride):
        return tuple(stride)
    order = sorted(range(len(shape)), key=lambda index: (stride[index], -index))
    found, step = [0] * len(shape), 1
    for index in order:
        found[index] = step
        step *= max(1, shape[index])
    return tuple(found)
