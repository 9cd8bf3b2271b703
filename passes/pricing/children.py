"""A module that keeps its Python, run with the captured modules in it set apart: they are priced in graphs of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..leaves import leaves_of
from .price import Price
from .recording import Amount, Recorder, Recording, storage_of


@dataclass
class InnerCall:
    """A call of a captured module by a module that keeps its Python.

    Attributes:
        storages: of each tensor argument, by the tensor's id. results: storages of the tensors that it returns, in order.
    """

    path: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    storages: dict[int, int]
    results: list[int]


@dataclass
class Answer:
    """The price of a call, the parameters and buffers that it read by itself, and the captured modules that it called.

    Attributes:
        places: of the storages that it gave to those modules or got back: its inputs ("in", i), or ("inner", i).
        spaces: bytes of what it made for them.
    """

    price: Price
    attributes: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    inner: list[InnerCall] = field(default_factory=list)
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    spaces: dict[int, Amount] = field(default_factory=dict)


@contextmanager
def children_apart(module: nn.Module, inside: dict[str, str], recorder: Recorder, calls: list[InnerCall]) -> Iterator[None]:
    """The module's captured children run unnoticed; what they return is cut off from what they were given."""

    def stand_in(child: nn.Module, path: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with recorder.pause():
                out = type(child).forward(child, *args, **kwargs)
                tensors = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, torch.Tensor)]
                found = pytree.tree_map_only(torch.Tensor, lambda tensor: _cut(tensor, recorder), out)
                results = [leaf for leaf in leaves_of(found) if isinstance(leaf, torch.Tensor)]
                recorder.record.tensors += [*tensors, *results]
                storages = {id(tensor): storage_of(tensor) for tensor in tensors}
                calls.append(InnerCall(path, (args, kwargs), storages, [storage_of(tensor) for tensor in results]))
                return found

        return forward

    replaced = []
    for name, path in inside.items():
        child = module.get_submodule(name)
        child.__dict__["forward"] = stand_in(child, path)
        replaced.append(child)
    try:
        yield
    finally:
        for child in replaced:
            child.__dict__.pop("forward", None)


def place(answer: Answer, record: Recording, sources: list[torch.Tensor], batch: int) -> None:
    """Names the storages that go into and come out of captured children."""
    answer.places = {storage_of(tensor): ("in", slot) for slot, tensor in enumerate(sources)}
    for call in answer.inner:
        for storage in call.storages.values():
            if storage not in answer.places:
                answer.places[storage] = ("inner", len(answer.places))
                answer.spaces[answer.places[storage][1]] = record.made.get(storage, Amount(0, 0))
        for storage in call.results:
            answer.places[storage] = ("inner", len(answer.places))


def _cut(tensor: torch.Tensor, recorder: Recorder) -> torch.Tensor:
    """A tensor of the same form without its history."""
    cut = tensor.detach().clone()
    if not tensor.requires_grad:
        return cut
    recorder.leaves.append(cut.requires_grad_())
    return cut.clone()
