"""One walk over one graph on the forms of tensors: what each node costs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsparse.cost_model.recurrent import Recurrent
from fxsparse.cost_model.workload import Contraction

from ..capture.fake_twin import UNKNOWN
from ..leaves import leaves_of
from ..recurrent import recurrent, swat_recurrent
from .facts import has_tensor, held_in
from .inner_graphs import InnerGraphs
from .keys import Held, specs_of
from .price import Price
from .recording import Amount, Spec, spec_of
from .recurrences import FEW_STEPS, recurrent_workload

if TYPE_CHECKING:
    from ..annotate_cost import PricingRun


class GraphWalk:
    """One walk over one graph."""

    def __init__(self, run: PricingRun, path: str, gm: fx.GraphModule | None) -> None:
        self.run = run
        self.path = path
        self.gm = gm
        self.values: dict[fx.Node, Any] = {}
        self.facts: dict[fx.Node, dict[str, Any]] = {}
        self.inner = InnerGraphs(self)

    def walk(self, bound: Sequence[Any] | None) -> Any:
        """Prices every node. Returns the graph's output, with Held in place of tensors.

        Args:
            bound: what the call gives to the placeholders, None if that is not known.
        """
        assert self.gm is not None
        given = iter(bound or ())
        result: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                facts, value = self._placeholder(node, next(given, UNKNOWN))
            elif node.op == "output":
                result = self._resolved(node.args[0])
                facts, value = {"kind": "output", "inputs": self.read_by(node)}, None
            elif node.op == "get_attr":
                facts, value = self._attribute(node)
            else:
                facts, value = self._call(node)
            self.values[node] = value
            self.facts[node] = {key: item for key, item in {**facts, "form": self._form(value)}.items() if key == "kind" or item}
        self._add_gradient_sums()
        return result

    def _resolved(self, arguments: Any) -> Any:
        return fx.node.map_aggregate(arguments, lambda item: self.values[item] if isinstance(item, fx.Node) else item)

    def _form(self, value: Any) -> list[Any] | None:
        """Dtype and sizes of a tensor for one sample, and which of them grow with the samples."""
        if not isinstance(value, Held):
            return None
        shape, batch = value.spec.shape, self.run.batch
        may = self.run.exclusive and not value.fixed  # else only the first size can be told from others
        grows = [size > 0 and size % batch == 0 and (may or (index == 0 and not value.fixed)) for index, size in enumerate(shape)]
        sizes = [size // batch if own else size for size, own in zip(shape, grows, strict=True)]
        return [str(value.spec.dtype).removeprefix("torch."), sizes, grows]

    # Nodes without a call

    def _placeholder(self, node: fx.Node, given: Any) -> tuple[dict[str, Any], Any]:
        known = node.meta.get("val", UNKNOWN)
        if isinstance(given, (Held, Spec)):
            spec = given.spec if isinstance(given, Held) else given
        elif isinstance(known, torch.Tensor):
            spec = self.run.at_batch(known)
        else:
            return {"kind": "unknown", "operator": "input", "note": "its shape is not known"}, known
        fixed = isinstance(given, Held) and given.fixed
        held = Held(spec, (node.name, 0), node=node.name, fixed=fixed, parameter=isinstance(given, Held) and given.parameter)
        amount = list(self.run.facts.amount(spec))
        return {"kind": "input", "storages": [amount], "tensor": amount, "needs_grad": spec.requires_grad}, held

    def _attribute(self, node: fx.Node) -> tuple[dict[str, Any], Any]:
        try:
            value = operator.attrgetter(str(node.target))(self.gm)
        except AttributeError:
            value = UNKNOWN
        if not isinstance(value, torch.Tensor):
            return {"kind": "value"}, value
        own = f"{self.path}.{node.target}" if self.path else str(node.target)
        name = self.run.facts.tensor_names.get(id(value), own)
        amount = Amount(0, value.numel() * value.element_size())
        held = Held(spec_of(value), ("", name), node=node.name, fixed=True, parameter=isinstance(value, nn.Parameter))
        return {"kind": "parameter", "tensor": list(amount)}, held

    def read_by(self, node: fx.Node) -> list[str]:
        """The nodes whose tensors a node reads."""
        return [other.name for other in node.all_input_nodes if has_tensor(self.values.get(other)) and other.op != "get_attr"]

    # Calls

    def _call(self, node: fx.Node) -> tuple[dict[str, Any], Any]:
        args, kwargs = self._resolved(node.args), self._resolved(node.kwargs)
        if any(leaf is UNKNOWN for leaf in leaves_of((args, kwargs))):
            return self.unknown(node, args, kwargs, "its inputs are not known before it runs")
        target: Any = node.target
        if target is operator.getitem and not isinstance(args[0], Held):
            return self._part(node, args)
        inner = ""
        if node.op == "call_module":
            inner = f"{self.path}.{target}" if self.path else str(target)
            if inner in self.run.captured.forwards:
                return self.inner.nested(node, inner, args, kwargs)
        try:
            if node.op == "call_module":
                assert self.gm is not None
                module = self.gm.get_submodule(str(target))
                facts, value = self.inner.python(node.name, module, inner, args, kwargs)
            else:
                run, given = self._shortened(target if node.op == "call_function" else str(target), args)
                answer = self.run.pricer.function(run, given, kwargs)
                self._note_learned(node, answer.price, args, kwargs)
                facts, value = self.run.facts.of(node.name, answer, args, kwargs), None
                value = self.run.facts.value(node.name, answer, args, kwargs)
                if target is swat_recurrent:
                    self._unroll(node, facts, args)
        except Exception as error:  # whatever fails on fake tensors is reported with its bytes; the model itself may well run
            return self.unknown(node, args, kwargs, (str(error).strip().splitlines() or [type(error).__name__])[0])
        facts["inputs"] = self.read_by(node)
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
            return self.unknown(node, args, {}, "its inputs are not known before it runs")
        if not isinstance(value, Held):
            return {"kind": "value", "inputs": self.read_by(node) if has_tensor(value) else []}, value
        return {
            "kind": "free",
            "operator": "reshape",
            "inputs": self.read_by(node),
            "alias": list(value.owner),
            "tensor": list(self.run.facts.amount(value.spec)),
            "needs_grad": value.spec.requires_grad,
        }, value

    def _note_learned(self, node: fx.Node, price: Price, args: Any, kwargs: Any) -> None:
        """A tensor into which something that learns was written needs a gradient from now on."""
        if not price.learned:
            return
        held = held_in(args, kwargs)
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

    def unknown(self, node: fx.Node, args: Any, kwargs: Any, reason: str) -> tuple[dict[str, Any], Any]:
        """A node that cannot be followed: its inputs and, where capture knows it, its output are its bytes."""
        self.run.failures += 1
        value = pytree.tree_map_only(torch.Tensor, self.run.at_batch, node.meta.get("val", UNKNOWN))
        made: list[Amount] = []

        def held(leaf: Any) -> Any:
            if not isinstance(leaf, Spec):
                return leaf
            made.append(self.run.facts.amount(leaf))
            return Held(leaf, (node.name, len(made) - 1), node=node.name)

        value = pytree.tree_map(held, value, is_leaf=lambda leaf: isinstance(leaf, Spec))
        moved = [*made, *(self.run.facts.amount(item.spec) for item in held_in(args, kwargs))]
        calls = []
        if node.op == "call_module" and self.gm is not None:
            path = f"{self.path}.{node.target}" if self.path else str(node.target)
            inside = self.inner.inside(path)
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
            "inputs": self.read_by(node),
            "storages": [list(amount) for amount in made],
            "tensor": [sum(amount.each for amount in made), sum(amount.fixed for amount in made)],
            "needs_grad": any(item.spec.requires_grad for item in held_in(args, kwargs)),
            "unknown": {name: [each, fixed]},
            "note": reason,
            "calls": calls,
        }, value

    def _unroll(self, node: fx.Node, facts: dict[str, Any], args: Any) -> None:
        """A sparse recurrent layer: each of its products with the site of its weight."""
        whole = recurrent_workload(self.run.batch, *specs_of(args[:10]))
        weights: Any = node.args[2]
        others = [work for work in facts.get("work", ()) if work["kind"] == "pointwise"]
        sites = [self._site_of(weight) for weight in weights]
        facts["work"] = [
            *({**self._sample(product), "site": sites[index]} for product, index in _products_of(whole)),
            *others,
        ]
        facts["operator"] = whole.cell

    def _sample(self, product: Contraction) -> dict[str, Any]:
        each, rest = divmod(product.batch, self.run.batch)
        return {**(product if rest else product.with_batch(each)).to_dict(), "scales": not rest}

    def _site_of(self, weight: Any) -> str:
        while isinstance(weight, fx.Node):
            if weight.op == "get_attr":
                target = f"{self.path}.{weight.target}" if self.path else str(weight.target)
                return self.run.names.get(target, "")
            weight = weight.args[0] if weight.args else None
        return ""

    # Modules

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
            amount = self.run.facts.amount(value.spec)
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
