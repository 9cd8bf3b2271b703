"""Calls that run other graphs: of captured modules, and of modules that keep their Python and call captured ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..capture.signature import Mismatch
from ..leaves import leaves_of, map_leaves
from .children import Answer, InnerCall
from .facts import INNER, held_in
from .keys import Held
from .recording import spec_of

if TYPE_CHECKING:
    from .graph_walk import GraphWalk

_MEMORY = ("storages", "alias", "tensor", "saved", "transient", "parameters", "passes_gradient", "needs_grad")


class InnerGraphs:
    """Prices those calls for one walk."""

    def __init__(self, walk: GraphWalk) -> None:
        self.walk = walk
        self.run = walk.run

    def python(self, name: str, module: nn.Module, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any]:
        """A module that runs its own Python, and the graphs that it calls."""
        inside = self.inside(path)
        answer = self.run.pricer.module(module, args, kwargs, inside)
        facts = self.run.facts.of(name, answer, args, kwargs)
        value = self.run.facts.value(name, answer, args, kwargs)
        held = held_in(args, kwargs)

        def owner(place: tuple[str, int]) -> list[Any]:
            kind, slot = place
            return list(held[slot].owner) if kind == "in" else [name, slot + INNER]

        if answer.spaces:
            facts["spaces"] = [[index + INNER, *amount] for index, amount in answer.spaces.items()]
        for call in answer.inner:
            forward = self.run.captured.forwards[call.path]
            variant = forward.current_variant()
            try:
                tensors = variant.signature.tensors(*call.arguments)
            except Mismatch:
                continue
            result, differing = self.run.graph(call.path, variant.graph_module, [spec_of(tensor) for tensor in tensors])
            inputs = [owner(answer.places[call.storages[id(tensor)]]) for tensor in tensors]
            results = [answer.places[storage][1] + INNER for storage in call.results]
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

    def inside(self, path: str) -> dict[str, str]:
        """Captured modules below a path, but for those that another captured module below it contains."""
        below = [other for other in self.run.captured.forwards if other.startswith(f"{path}." if path else "") and other != path]
        outer = [other for other in below if not any(other.startswith(f"{another}.") for another in below)]
        return {other[len(path) + 1 :] if path else other: other for other in outer}

    def nested(self, node: fx.Node, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any]:
        """A call of a captured module: its graph is walked with what the call gives it."""
        forward = self.run.captured.forwards[path]
        variant = forward.current_variant()
        tokens: dict[Held, torch.Tensor] = {}

        def token(leaf: Any) -> Any:
            return tokens.setdefault(leaf, torch.empty(0, device="meta")) if isinstance(leaf, Held) else leaf

        try:
            stand_ins = variant.signature.tensors(*pytree.tree_map(token, (args, kwargs)))
        except Mismatch as mismatch:
            return self.walk.unknown(node, args, kwargs, f"its graph is for another call: {mismatch}")
        owners = {id(stand_in): leaf for leaf, stand_in in tokens.items()}
        bound = [owners[id(stand_in)] for stand_in in stand_ins]
        result, differing = self.run.graph(path, variant.graph_module, bound)
        for other in forward.variants:
            if other is not variant:
                self.run.graph(path, other.graph_module, bound)
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
        sizes = [self.run.facts.amount(leaf.spec) for leaf in held]
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
        facts["inputs"] = self.walk.read_by(node)
        row = {"graph": path, "inputs": [list(item.owner) for item in bound], "outputs": [] if own else outputs}
        facts["calls"] = [{**row, "nodes": differing} if differing else row]
        return facts, value

    def _own_memory(self, node: fx.Node, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any] | None:
        """What a composite keeps whose graph is there to be read only, because torch's own Python runs; None if its graph runs."""
        if path not in self.run.captured.composites or any(other == path or other.startswith(f"{path}.") for other in self.run.rewritten):
            return None
        return self._memory_of(node.name, path, args, kwargs)

    def _own_memory_of_inner(
        self, name: str, call: InnerCall, owner: Callable[[tuple[str, int]], list[Any]], outer: Answer
    ) -> tuple[dict[str, Any], Any] | None:
        path = call.path
        if path not in self.run.captured.composites or any(other == path or other.startswith(f"{path}.") for other in self.run.rewritten):
            return None

        def held(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            source = owner(outer.places[call.storages[id(leaf)]])
            return Held(spec_of(leaf), (source[0], source[1]), node=str(id(leaf)))

        return self._memory_of(name, path, *pytree.tree_map(held, call.arguments))

    def _memory_of(self, name: str, path: str, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any] | None:
        try:
            answer = self.run.pricer.module(self.run.captured.root.get_submodule(path), args, kwargs, {})
        except Exception:  # then its graph says the nearest there is
            return None
        return self.run.facts.of(name, answer, args, kwargs), self.run.facts.value(name, answer, args, kwargs)
