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
    tensor       bytes of its output              saved        [origin, name, index, of a sample, fixed] for each storage kept
    transient    bytes of its work space: forward and backward, each [of a sample, fixed]
    parameters   [name, bytes] of each parameter that gets a gradient here
    unknown      bytes moved by operators that are not known, by name
    calls        graphs that it runs: path, the storage of each input, and of what comes back [index, node, index there];
                 "nodes" has the facts of nodes that are others in this call than in the graph's first
    own_memory   true for a composite whose graph is only read: its storages are those of torch's own Python
    spaces       [index, of a sample, fixed] of the storages that it makes for those graphs
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsparse.cost_model.recurrent import Recurrent
from fxsparse.cost_model.workload import Contraction

from . import meta
from .capture.capture import Capture
from .capture.fake_twin import UNKNOWN
from .capture.graph_forward import Variant
from .capture.signature import Arguments, Mismatch
from .leaves import leaves_of, map_leaves
from .pricing.calls import Answer, CallPricer, Held, InnerCall, specs_of
from .pricing.price import Leaf, Price
from .pricing.recording import Amount, Spec, amount_of, spec_of
from .pricing.recurrences import FEW_STEPS, recurrent_workload
from .recurrent import recurrent, swat_recurrent
from .sites import batch_size_of, graphs_in_order

_UNLIKELY_BATCH = 1013
_MEMORY = ("storages", "alias", "tensor", "saved", "transient", "parameters", "passes_gradient", "needs_grad")
_INNER = 1 << 16  # storages that a module's Python shares with the graphs that it calls are numbered from here


def annotate_cost(
    captured: Capture, names: Mapping[str, str], example: Arguments | None = None, rewritten: Collection[str] = ()
) -> dict[str, Any]:
    """Prices every node of every graph. Returns the cost of the root's own Python, empty if the root is a graph.

    Args:
        names: the site of each parameter, by the parameter's qualified name.
        example: the model's example inputs. rewritten: paths of graphs that a pass has changed.
    """
    own = example_batch_of(captured, example)
    first = _Annotator(captured, names, own, _UNLIKELY_BATCH, rewritten)
    root = first.run(example)
    if first.failures and own is not None:
        second = _Annotator(captured, names, own, own, rewritten)
        again = second.run(example)
        if second.failures < first.failures:
            return second.written(again)
    return first.written(root)


def example_batch_of(captured: Capture, example: Arguments | None) -> int | None:
    tensors = [leaf for leaf in leaves_of(example) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    return int(tensors[0].shape[0]) if tensors else batch_size_of(captured)


class _Annotator:
    def __init__(self, captured: Capture, names: Mapping[str, str], own_batch: int | None, batch: int, rewritten: Collection[str]) -> None:
        self.captured = captured
        self.rewritten = rewritten
        self.names = names
        self.own_batch = own_batch
        self.batch = batch
        self.exclusive = batch != own_batch
        self.pricer = CallPricer(batch, self.exclusive)
        self.failures = 0
        self.facts: dict[fx.Node, dict[str, Any]] = {}
        self.tensor_names: dict[int, str] = {}
        for name, tensor in (*captured.root.named_parameters(), *captured.root.named_buffers()):
            self.tensor_names.setdefault(id(tensor), name)

    def run(self, example: Arguments | None) -> dict[str, Any]:
        root: dict[str, Any] = {}
        if "" in self.captured.forwards:
            for variant in self.captured.forwards[""].variants:
                self._graph("", variant.graph_module, self._inputs_of(variant, example))
        elif example is not None:
            root = self._root_python(example)
        for path, _, gm in graphs_in_order(self.captured):
            if next(iter(gm.graph.nodes)) not in self.facts:
                self._graph(path, gm, None)
        return root

    def _inputs_of(self, variant: Variant, example: Arguments | None) -> list[Spec] | None:
        """The forms of a graph's inputs in the example's call; None if that call is not one of this graph's."""
        if example is None:
            return None
        try:
            return [self._at_batch(tensor) for tensor in variant.signature.tensors(*example)]
        except Mismatch:
            return None

    def written(self, root: dict[str, Any]) -> dict[str, Any]:
        for node, facts in self.facts.items():
            meta.write(node, cost=facts)
        return root

    def _root_python(self, example: Arguments) -> dict[str, Any]:
        def held(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return Held(self._at_batch(leaf), ("input", next(counter)), node="input")

        counter = iter(range(1 << 30))
        args, kwargs = pytree.tree_map(held, example)
        graph = _Graph(self, "", None)
        try:
            facts, _ = graph.python("(model)", self.captured.root, "", args, kwargs)
        except Exception:  # what depends on data cannot run on fake tensors; the graphs in it are priced one by one
            return {"kind": "unknown", "unknown": {type(self.captured.root).__name__: [0, 0]}}
        spaces = [self._amount(leaf.spec) for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Held)]
        return {**facts, "given": [list(amount) for amount in spaces]}

    def _amount(self, spec: Spec) -> Amount:
        number = spec.stored_elements * spec.dtype.itemsize
        return amount_of(number, self.batch, False)

    def _graph(self, path: str, gm: fx.GraphModule, bound: Sequence[Any] | None) -> tuple[Any, dict[str, Any]]:
        """Prices a graph. Returns its output, and the facts of its nodes where they differ from those of an earlier call of it."""
        walk = _Graph(self, path, gm)
        result = walk.walk(bound)
        other = {}
        for node, facts in walk.facts.items():
            if self.facts.setdefault(node, facts) != facts:
                other[node.name] = facts
        return result, other

    def _at_batch(self, tensor: torch.Tensor) -> Spec:
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


class _Graph:
    """One walk over one graph."""

    def __init__(self, annotator: _Annotator, path: str, gm: fx.GraphModule | None) -> None:
        self.all = annotator
        self.path = path
        self.gm = gm
        self.values: dict[fx.Node, Any] = {}
        self.facts: dict[fx.Node, dict[str, Any]] = {}

    def walk(self, bound: Sequence[Any] | None) -> Any:
        assert self.gm is not None
        given = iter(bound or ())
        result: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                facts, value = self._placeholder(node, next(given, UNKNOWN))
            elif node.op == "output":
                result = self._resolved(node.args[0])
                facts, value = {"kind": "output", "inputs": self._read_by(node)}, None
            elif node.op == "get_attr":
                facts, value = self._attribute(node)
            else:
                facts, value = self._call(node)
            self.values[node] = value
            self.facts[node] = {key: item for key, item in facts.items() if key == "kind" or item}
        self._add_gradient_sums()
        return result

    def _resolved(self, arguments: Any) -> Any:
        return fx.node.map_aggregate(arguments, lambda item: self.values[item] if isinstance(item, fx.Node) else item)

    # Nodes without a call

    def _placeholder(self, node: fx.Node, given: Any) -> tuple[dict[str, Any], Any]:
        known = node.meta.get("val", UNKNOWN)
        if isinstance(given, (Held, Spec)):
            spec = given.spec if isinstance(given, Held) else given
        elif isinstance(known, torch.Tensor):
            spec = self.all._at_batch(known)
        else:
            return {"kind": "unknown", "operator": "input", "note": "its shape is not known"}, known
        fixed = isinstance(given, Held) and given.fixed
        held = Held(spec, (node.name, 0), node=node.name, fixed=fixed, parameter=isinstance(given, Held) and given.parameter)
        amount = list(self.all._amount(spec))
        return {"kind": "input", "storages": [amount], "tensor": amount, "needs_grad": spec.requires_grad}, held

    def _attribute(self, node: fx.Node) -> tuple[dict[str, Any], Any]:
        try:
            value = operator.attrgetter(str(node.target))(self.gm)
        except AttributeError:
            value = UNKNOWN
        if not isinstance(value, torch.Tensor):
            return {"kind": "value"}, value
        own = f"{self.path}.{node.target}" if self.path else str(node.target)
        name = self.all.tensor_names.get(id(value), own)
        amount = Amount(0, value.numel() * value.element_size())
        held = Held(spec_of(value), ("", name), node=node.name, fixed=True, parameter=isinstance(value, nn.Parameter))
        return {"kind": "parameter", "tensor": list(amount)}, held

    def _read_by(self, node: fx.Node) -> list[str]:
        return [other.name for other in node.all_input_nodes if _has_tensor(self.values.get(other)) and other.op != "get_attr"]

    # Calls

    def _call(self, node: fx.Node) -> tuple[dict[str, Any], Any]:
        args, kwargs = self._resolved(node.args), self._resolved(node.kwargs)
        if any(leaf is UNKNOWN for leaf in leaves_of((args, kwargs))):
            return self._unknown(node, args, kwargs, "its inputs are not known before it runs")
        target: Any = node.target
        if target is operator.getitem and not isinstance(args[0], Held):
            return self._part(node, args)
        inner = ""
        if node.op == "call_module":
            inner = f"{self.path}.{target}" if self.path else str(target)
            if inner in self.all.captured.forwards:
                return self._nested(node, inner, args, kwargs)
        try:
            if node.op == "call_module":
                assert self.gm is not None
                module = self.gm.get_submodule(str(target))
                facts, value = self.python(node.name, module, inner, args, kwargs)
            else:
                run, given = self._shortened(target if node.op == "call_function" else str(target), args)
                answer = self.all.pricer.function(run, given, kwargs)
                self._note_learned(node, answer.price, args, kwargs)
                facts, value = self._facts(node.name, answer, args, kwargs), None
                value = self._value(node.name, answer, args, kwargs)
                if target is swat_recurrent:
                    self._unroll(node, facts, args)
        except Exception as error:  # whatever fails on fake tensors is reported with its bytes; the model itself may well run
            return self._unknown(node, args, kwargs, (str(error).strip().splitlines() or [type(error).__name__])[0])
        facts["inputs"] = self._read_by(node)
        return facts, value

    @staticmethod
    def _shortened(target: Any, args: Any) -> tuple[Any, Any]:
        """What is run to see a call's memory: a long unrolled recurrence is taken for the fused layer, whose steps cost no time here."""
        if target is swat_recurrent and isinstance(args[0], Held) and args[0].spec.shape[1 if args[9] else 0] > FEW_STEPS[1]:
            return recurrent, args[:10]
        return target, args

    def _part(self, node: fx.Node, args: Any) -> tuple[dict[str, Any], Any]:
        """An element of a tuple: no operator at all."""
        try:
            value = args[0][args[1]]
        except (LookupError, TypeError):
            return self._unknown(node, args, {}, "its inputs are not known before it runs")
        if not isinstance(value, Held):
            return {"kind": "value", "inputs": self._read_by(node) if _has_tensor(value) else []}, value
        return {
            "kind": "free",
            "operator": "reshape",
            "inputs": self._read_by(node),
            "alias": list(value.owner),
            "tensor": list(self.all._amount(value.spec)),
            "needs_grad": value.spec.requires_grad,
        }, value

    def _facts(self, name: str, answer: Answer, args: Any, kwargs: Any) -> dict[str, Any]:
        price = answer.price
        held = _held(args, kwargs)
        leaves = [leaf for leaf in leaves_of(price.output) if isinstance(leaf, Leaf)]
        if not leaves and not price.work and not price.saved and not answer.inner:
            return {"kind": "value"}
        saved = []
        for position, (kind, slot, amount) in enumerate(price.saved):
            if kind == "in":
                owner = held[slot].owner
                saved.append(["parameter" if owner[0] == "" else "node", *_named(owner), *self._size(held[slot], amount)])
            elif kind == "attr":
                saved.append(["parameter", self._tensor_name(answer.attributes[slot]), 0, *amount])
            else:
                index = slot + _INNER * (kind == "inner")
                saved.append(["own", name, position, *amount] if kind == "own" else ["node", name, index, *amount])
        own = {("new", index) for index in range(len(price.storages))}
        alias = next((self._owner(leaf, name, held, answer) for leaf in leaves if leaf.origin not in own), None)
        return {
            "kind": "unknown" if price.unknown and not price.work else "priced" if price.work else "free",
            "operator": price.operator,
            "work": price.work,
            "storages": [list(amount) for amount in price.storages],
            "alias": list(alias) if alias is not None and not price.storages else None,
            "tensor": list(price.output_bytes),
            "saved": saved,
            "transient": [*price.forward_transient, *price.backward_transient]
            if any((*price.forward_transient, *price.backward_transient))
            else None,
            "parameters": self._learning(price, answer, held),
            "passes_gradient": price.passes_gradient,
            "needs_grad": price.needs_grad,
            "unknown": {key: list(amount) for key, amount in price.unknown.items()},
            "note": price.note,
            "dtype": price.dtype,
        }

    def _size(self, item: Held, amount: Amount) -> Amount:
        return self.all._amount(item.spec) if item.owner[0] else amount

    def _learning(self, price: Price, answer: Answer, held: list[Held]) -> list[list[Any]]:
        if not price.storages:
            return []
        found = {
            str(item.owner[1]): item.spec.stored_elements * item.spec.dtype.itemsize
            for item in held
            if item.parameter and item.spec.requires_grad
        }
        for attribute in answer.attributes:
            if isinstance(attribute[1], nn.Parameter) and attribute[1].requires_grad:
                found[self._tensor_name(attribute)] = attribute[1].numel() * attribute[1].element_size()
        return [[name, size] for name, size in found.items()]

    def _tensor_name(self, attribute: tuple[str, torch.Tensor]) -> str:
        return self.all.tensor_names.get(id(attribute[1]), attribute[0])

    def _owner(self, leaf: Leaf, name: str, held: list[Held], answer: Answer) -> tuple[str, int | str]:
        kind, slot = leaf.origin
        if kind in ("new", "inner"):
            return name, slot + _INNER * (kind == "inner")
        return held[slot].owner if kind == "in" else ("", self._tensor_name(answer.attributes[slot]))

    def _value(self, name: str, answer: Answer, args: Any, kwargs: Any) -> Any:
        held = _held(args, kwargs)

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, Leaf):
                return leaf
            owner = self._owner(leaf, name, held, answer)
            parameter = held[leaf.origin[1]].parameter if leaf.origin[0] == "in" else False
            return Held(leaf.spec, owner, node=name, fixed=leaf.fixed, parameter=parameter)

        found = map_leaves(value, answer.price.output)
        if isinstance(found, (tuple, list)):
            found = type(found)(*_told_apart(found)) if hasattr(found, "_fields") else type(found)(_told_apart(found))
        return found

    def _note_learned(self, node: fx.Node, price: Price, args: Any, kwargs: Any) -> None:
        """A tensor into which something that learns was written needs a gradient from now on."""
        if not price.learned:
            return
        held = _held(args, kwargs)
        changed = {held[slot].owner for slot in price.learned}
        for other, value in list(self.values.items()):
            self.values[other] = pytree.tree_map_only(
                Held,
                lambda item: (
                    Held(item.spec._replace(requires_grad=True), item.owner, item.node, item.fixed, item.parameter)
                    if item.owner in changed
                    else item
                ),
                value,
            )

    def _unknown(self, node: fx.Node, args: Any, kwargs: Any, reason: str) -> tuple[dict[str, Any], Any]:
        """A node that cannot be followed: its inputs and, where capture knows it, its output are its bytes."""
        self.all.failures += 1
        value = pytree.tree_map_only(torch.Tensor, self.all._at_batch, node.meta.get("val", UNKNOWN))
        made: list[Amount] = []

        def held(leaf: Any) -> Any:
            if not isinstance(leaf, Spec):
                return leaf
            made.append(self.all._amount(leaf))
            return Held(leaf, (node.name, len(made) - 1), node=node.name)

        value = pytree.tree_map(held, value, is_leaf=lambda leaf: isinstance(leaf, Spec))
        moved = [*made, *(self.all._amount(item.spec) for item in _held(args, kwargs))]
        calls = []
        if node.op == "call_module" and self.gm is not None:
            path = f"{self.path}.{node.target}" if self.path else str(node.target)
            inside = self._inside(path)
            calls = [{"graph": below, "inputs": []} for below in inside.values()]
            moved += [
                Amount(0, parameter.numel() * parameter.element_size())
                for name, parameter in self.gm.get_submodule(str(node.target)).named_parameters()
                if not any(name.startswith(f"{child}.") for child in inside)
            ]
        name = str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
        each, fixed = sum(amount.each for amount in moved), sum(amount.fixed for amount in moved)
        return {
            "kind": "unknown",
            "operator": name,
            "work": [{"kind": "pointwise", "operator": name, "batch": 1, "read_bytes": each, "fixed_bytes": fixed, "scales": True}],
            "inputs": self._read_by(node),
            "storages": [list(amount) for amount in made],
            "tensor": [sum(amount.each for amount in made), sum(amount.fixed for amount in made)],
            "needs_grad": any(item.spec.requires_grad for item in _held(args, kwargs)),
            "unknown": {name: [each, fixed]},
            "note": reason,
            "calls": calls,
        }, value

    def _unroll(self, node: fx.Node, facts: dict[str, Any], args: Any) -> None:
        """A sparse recurrent layer: each of its products with the site of its weight."""
        whole = recurrent_workload(self.all.batch, *specs_of(args[:10]))
        weights: Any = node.args[2]
        others = [work for work in facts.get("work", ()) if work["kind"] == "pointwise"]
        sites = [self._site_of(weight) for weight in weights]
        facts["work"] = [
            *({**self._sample(product), "site": sites[index]} for product, index in _products_of(whole)),
            *others,
        ]
        facts["operator"] = whole.cell

    def _sample(self, product: Contraction) -> dict[str, Any]:
        each, rest = divmod(product.batch, self.all.batch)
        return {**(product if rest else product.with_batch(each)).to_dict(), "scales": not rest}

    def _site_of(self, weight: Any) -> str:
        while isinstance(weight, fx.Node):
            if weight.op == "get_attr":
                target = f"{self.path}.{weight.target}" if self.path else str(weight.target)
                return self.all.names.get(target, "")
            weight = weight.args[0] if weight.args else None
        return ""

    # Modules

    def python(self, name: str, module: nn.Module, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any]:
        """A module that runs its own Python, and the graphs that it calls."""
        inside = self._inside(path)
        answer = self.all.pricer.module(module, args, kwargs, inside)
        facts = self._facts(name, answer, args, kwargs)
        value = self._value(name, answer, args, kwargs)
        held = _held(args, kwargs)

        def owner(place: tuple[str, int]) -> list[Any]:
            kind, slot = place
            return list(held[slot].owner) if kind == "in" else [name, slot + _INNER]

        if answer.spaces:
            facts["spaces"] = [[index + _INNER, *amount] for index, amount in answer.spaces.items()]
        for call in answer.inner:
            forward = self.all.captured.forwards[call.path]
            variant = forward.current_variant()
            try:
                tensors = variant.signature.tensors(*call.arguments)
            except Mismatch:
                continue
            result, differing = self.all._graph(call.path, variant.graph_module, [spec_of(tensor) for tensor in tensors])
            inputs = [owner(answer.places[call.storages[id(tensor)]]) for tensor in tensors]
            results = [answer.places[storage][1] + _INNER for storage in call.results]
            made = [list(leaf.owner) for leaf in leaves_of(result) if isinstance(leaf, Held)]
            row: dict[str, Any] = {"graph": call.path, "inputs": inputs, **({"nodes": differing} if differing else {})}
            own = self._own_memory_of_inner(f"{name}@{call.path}", call, owner, answer)
            if own is not None:
                memory, given = own
                made = [list(leaf.owner) for leaf in leaves_of(given) if isinstance(leaf, Held)]
                kept = {key: memory[key] for key in _MEMORY if memory.get(key)}
                head = {"kind": "graph", "operator": type(forward.owner).__name__, "own_memory": True}
                row = {"node": f"{name}@{call.path}", "inputs": inputs, "facts": {**head, **kept, "calls": [{**row, "outputs": []}]}}
            row["outputs"] = [[index, *inner] for index, inner in zip(results, made, strict=False)]
            facts.setdefault("calls", []).append(row)
        return facts, value

    def _inside(self, path: str) -> dict[str, str]:
        """Captured modules below a path, but for those that another captured module below it contains."""
        below = [other for other in self.all.captured.forwards if other.startswith(f"{path}." if path else "") and other != path]
        outer = [other for other in below if not any(other.startswith(f"{another}.") for another in below)]
        return {other[len(path) + 1 :] if path else other: other for other in outer}

    def _nested(self, node: fx.Node, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any]:
        forward = self.all.captured.forwards[path]
        variant = forward.current_variant()
        tokens: dict[Held, torch.Tensor] = {}

        def token(leaf: Any) -> Any:
            return tokens.setdefault(leaf, torch.empty(0, device="meta")) if isinstance(leaf, Held) else leaf

        try:
            stand_ins = variant.signature.tensors(*pytree.tree_map(token, (args, kwargs)))
        except Mismatch as mismatch:
            return self._unknown(node, args, kwargs, f"its graph is for another call: {mismatch}")
        owners = {id(stand_in): leaf for leaf, stand_in in tokens.items()}
        bound = [owners[id(stand_in)] for stand_in in stand_ins]
        result, differing = self.all._graph(path, variant.graph_module, bound)
        for other in forward.variants:
            if other is not variant:
                self.all._graph(path, other.graph_module, bound)
        placeholders = [inner.name for inner in variant.graph_module.graph.nodes if inner.op == "placeholder"]
        outside = dict(zip(placeholders, bound, strict=True))
        outputs: list[list[Any]] = []

        def back(leaf: Any) -> Any:
            if not isinstance(leaf, Held):
                return leaf
            if leaf.owner[0] in outside:
                owner = outside[str(leaf.owner[0])].owner
            elif leaf.owner[0] == "":
                owner = leaf.owner
            else:
                owner = (node.name, len(outputs))
                outputs.append([len(outputs), *leaf.owner])
            return Held(leaf.spec, owner, node=node.name, fixed=leaf.fixed, parameter=leaf.parameter)

        value = map_leaves(back, result)
        held = [leaf for leaf in leaves_of(value) if isinstance(leaf, Held)]
        sizes = [self.all._amount(leaf.spec) for leaf in held]
        facts = {
            "kind": "graph",
            "operator": type(forward.owner).__name__,
            "tensor": [sum(size.each for size in sizes), sum(size.fixed for size in sizes)],
            "needs_grad": any(leaf.spec.requires_grad for leaf in held),
        }
        own = self._own_memory(node, path, args, kwargs)
        if own is not None:
            memory, value = own
            facts |= {key: memory[key] for key in _MEMORY if key in memory} | {"own_memory": True}
        facts["inputs"] = self._read_by(node)
        row = {"graph": path, "inputs": [list(item.owner) for item in bound], "outputs": [] if own else outputs}
        facts["calls"] = [{**row, "nodes": differing} if differing else row]
        return facts, value

    def _own_memory(self, node: fx.Node, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any] | None:
        """What a composite keeps whose graph is there to be read only, because torch's own Python runs; None if its graph runs."""
        if path not in self.all.captured.composites or any(other == path or other.startswith(f"{path}.") for other in self.all.rewritten):
            return None
        return self._memory_of(node.name, path, args, kwargs)

    def _own_memory_of_inner(
        self, name: str, call: InnerCall, owner: Callable[[tuple[str, int]], list[Any]], outer: Answer
    ) -> tuple[dict[str, Any], Any] | None:
        path = call.path
        if path not in self.all.captured.composites or any(other == path or other.startswith(f"{path}.") for other in self.all.rewritten):
            return None

        def held(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            source = owner(outer.places[call.storages[id(leaf)]])
            return Held(spec_of(leaf), (source[0], source[1]), node=str(id(leaf)))

        return self._memory_of(name, path, *pytree.tree_map(held, call.arguments))

    def _memory_of(self, name: str, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any] | None:
        try:
            answer = self.all.pricer.module(self.all.captured.root.get_submodule(path), args, kwargs, {})
        except Exception:  # then its graph says the nearest there is
            return None
        return self._facts(name, answer, args, kwargs), self._value(name, answer, args, kwargs)

    # Where gradients meet

    def _add_gradient_sums(self) -> None:
        """A tensor read by several nodes that learn gets the sum of their gradients: adds that no node stands for."""
        assert self.gm is not None
        for node in self.gm.graph.nodes:
            value = self.values.get(node)
            if not isinstance(value, Held) or not value.spec.requires_grad or not value.spec.dtype.is_floating_point:
                continue
            more = sum(1 for user in node.users if user.op != "output" and self.facts[user].get("needs_grad")) - 1
            if more < 1:
                continue
            amount = self.all._amount(value.spec)
            elements = Amount(amount.each // value.spec.dtype.itemsize, amount.fixed // value.spec.dtype.itemsize)
            facts = self.facts[node]
            sums = {
                "kind": "pointwise",
                "operator": "gradient_sum",
                "batch": 1,
                "backward_read_bytes": 2 * more * amount.each,
                "backward_write_bytes": more * amount.each,
                "fixed_backward_bytes": 3 * more * amount.fixed,
                "backward_flops": float(more * elements.each),
                "fixed_backward_flops": float(more * elements.fixed),
                "scales": True,
            }
            self.facts[node] = {**facts, "work": [*facts.get("work", ()), sums]}


def _products_of(whole: Recurrent) -> list[tuple[Any, int]]:
    """Each product of a recurrent layer with the position of its weight in the list of weights."""
    size = 2 + (2 if whole.bias else 0) + (1 if whole.projection_size else 0)
    products = iter(whole.contractions())
    found = []
    for slot in range(whole.layers * (2 if whole.bidirectional else 1)):
        found.append((next(products), slot * size))
        found.append((next(products), slot * size + 1))
        if whole.steps > 1:
            found.append((next(products), slot * size + 1))
        if whole.projection_size:
            found.append((next(products), (slot + 1) * size - 1))
    return found


def _held(args: Any, kwargs: Any) -> list[Held]:
    return list(dict.fromkeys(leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Held)))


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Held) for leaf in leaves_of(value))


def _told_apart(items: Any) -> list[Any]:
    """Tensors of one form and storage in a tuple are different tensors all the same."""
    return [
        Held(item.spec, item.owner, f"{item.node}:{index}", item.fixed, item.parameter) if isinstance(item, Held) else item
        for index, item in enumerate(items)
    ]


def _named(owner: tuple[str, int | str]) -> tuple[str, int]:
    return (str(owner[1]), 0) if owner[0] == "" else (str(owner[0]), int(owner[1]))


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
