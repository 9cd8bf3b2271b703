"""The facts of a node from the price of its call: storages by name in place of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..leaves import leaves_of, map_leaves
from .children import Answer
from .keys import Held
from .price import Leaf, Price
from .recording import Amount, Spec, amount_of

INNER = 1 << 16  # storages that a module's Python shares with the graphs that it calls are numbered from here


class Facts:
    """Writes facts at one batch size.

    Args:
        tensor_names: of parameters and buffers, by the tensor's id.
    """

    def __init__(self, batch: int, tensor_names: Mapping[int, str]) -> None:
        self.batch = batch
        self.tensor_names = tensor_names

    def amount(self, spec: Spec) -> Amount:
        """The bytes of a form."""
        return amount_of(spec.stored_elements * spec.dtype.itemsize, self.batch, False)

    def of(self, name: str, answer: Answer, args: Any, kwargs: Any) -> dict[str, Any]:
        """The facts of a call."""
        price = answer.price
        held = held_in(args, kwargs)
        leaves = [leaf for leaf in leaves_of(price.output) if isinstance(leaf, Leaf)]
        if not leaves and not price.work and not price.saved and not answer.inner:
            return {"kind": "value"}
        saved = []
        for position, (kind, slot, amount) in enumerate(price.saved):
            if kind == "in":
                owner = held[slot].owner
                saved.append(["parameter" if owner[0] == "" else "node", *named(owner), *self._size(held[slot], amount)])
            elif kind == "attr":
                saved.append(["parameter", self._tensor_name(answer.attributes[slot]), 0, *amount])
            else:
                index = slot + INNER * (kind == "inner")
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
        return self.amount(item.spec) if item.owner[0] else amount

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
        return self.tensor_names.get(id(attribute[1]), attribute[0])

    def _owner(self, leaf: Leaf, name: str, held: list[Held], answer: Answer) -> tuple[str, int | str]:
        kind, slot = leaf.origin
        if kind in ("new", "inner"):
            return name, slot + INNER * (kind == "inner")
        return held[slot].owner if kind == "in" else ("", self._tensor_name(answer.attributes[slot]))

    def value(self, name: str, answer: Answer, args: Any, kwargs: Any) -> Any:
        """What a call returns, with Held in place of tensors."""
        held = held_in(args, kwargs)

        def one(leaf: Any) -> Any:
            if not isinstance(leaf, Leaf):
                return leaf
            owner = self._owner(leaf, name, held, answer)
            parameter = held[leaf.origin[1]].parameter if leaf.origin[0] == "in" else False
            return Held(leaf.spec, owner, node=name, fixed=leaf.fixed, parameter=parameter)

        found = map_leaves(one, answer.price.output)
        if isinstance(found, (tuple, list)):
            found = type(found)(*told_apart(found)) if hasattr(found, "_fields") else type(found)(told_apart(found))
        return found


def held_in(args: Any, kwargs: Any) -> list[Held]:
    """The tensors among a call's arguments, each once."""
    return list(dict.fromkeys(leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Held)))


def has_tensor(value: Any) -> bool:
    """Whether a tensor is anywhere in a value."""
    return any(isinstance(leaf, Held) for leaf in leaves_of(value))


def told_apart(items: Any) -> list[Any]:
    """Tensors of one form and storage in a tuple are different tensors all the same."""
    return [
        Held(item.spec, item.owner, f"{item.node}:{index}", item.fixed, item.parameter) if isinstance(item, Held) else item
        for index, item in enumerate(items)
    ]


def named(owner: tuple[str, int | str]) -> tuple[str, int]:
    """An owner as a name and a number."""
    return (str(owner[1]), 0) if owner[0] == "" else (str(owner[0]), int(owner[1]))
