"""LSTM, GRU and plain recurrent calls: their loop bounds, and the price of many steps from that of a few."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxsparse.cost_model.recurrent import GATES, Recurrent

from ..recurrent import recurrent
from .price import Leaf, Price
from .recording import Amount, Spec

FEW_STEPS = (4, 5)


def recurrent_workload(
    batch: int,
    x: Spec,
    hx: Any,
    weights: Any,
    mode: str,
    bias: bool,
    layers: int,
    _dropout: Any,
    _train: Any,
    two_ways: bool,
    batch_first: bool,
) -> Recurrent:
    """The loop bounds of a ``recurrent`` node; tensors are given as their forms."""
    samples, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    cell = _cell(mode)
    hidden, state = weights[0].shape[0] // GATES[cell], weights[1].shape[1]
    states = pytree.tree_leaves(hx, is_leaf=lambda leaf: isinstance(leaf, Spec))
    return Recurrent(
        cell=cell,
        batch=samples,
        steps=steps,
        input_size=x.shape[2],
        hidden_size=hidden,
        layers=layers,
        bidirectional=two_ways,
        projection_size=0 if state == hidden else state,
        bias=bias,
        input_needs_grad=x.requires_grad,
        state_needs_grad=any(isinstance(item, Spec) and item.requires_grad for item in states),
    )


def module_workload(module: nn.RNNBase, x: Spec) -> Recurrent:
    """The loop bounds of a call of an nn.LSTM, nn.GRU or nn.RNN with an input (T, N, C), or (N, T, C) with ``batch_first``."""
    samples, steps = (x.shape[0], x.shape[1]) if module.batch_first else (x.shape[1], x.shape[0])
    return Recurrent(
        cell=_cell(module.mode),
        batch=samples,
        steps=steps,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        layers=module.num_layers,
        bidirectional=module.bidirectional,
        projection_size=module.proj_size,
        bias=bool(module.bias),
        input_needs_grad=x.requires_grad,
    )


def _cell(mode: str) -> str:
    """What the cost model calls a module's mode."""
    return "rnn" if mode.startswith("RNN") else mode.lower()


def time_axis(target: Any, args: Any, x: Spec | None) -> int | None:
    """Which dimension of a recurrent call's input is time; None if this is no such call."""
    if x is None or len(x.shape) != 3:
        return None
    if target is recurrent:
        return 1 if args[9] else 0
    return int(target.batch_first) if isinstance(target, nn.RNNBase) else None


def extrapolated(few: Price, more: Price, steps: int, whole: dict[str, Any]) -> Price:
    """The price of a recurrent call with many steps from its prices with FEW_STEPS: every amount is linear in the steps.

    Args:
        whole: the workload of the many steps, in place of the first workload of either price.
    """
    first, second = FEW_STEPS

    def number(start: Any, end: Any) -> Any:
        return start + (end - start) * (steps - first) // (second - first)

    def value(start: Any, end: Any) -> Any:
        return number(start, end) if isinstance(start, (int, float)) and not isinstance(start, bool) else start

    def amount(start: Amount, end: Amount) -> Amount:
        return Amount(number(start.each, end.each), number(start.fixed, end.fixed))

    def leaf(start: Any, end: Any) -> Any:
        if not isinstance(start, Leaf):
            return start
        shape = tuple(number(*sizes) for sizes in zip(start.spec.shape, end.spec.shape, strict=True))
        stride = tuple(number(*sizes) for sizes in zip(start.spec.stride, end.spec.stride, strict=True))
        return Leaf(start.spec._replace(shape=shape, stride=stride), start.origin, start.fixed)

    starts, structure = pytree.tree_flatten(few.output)
    saved = [_saved(price) for price in (few, more)]
    rest = [{key: value(start[key], end[key]) for key in start} for start, end in zip(few.work[1:], more.work[1:], strict=True)]
    nothing = Amount(0, 0)
    return Price(
        operator=few.operator,
        work=[whole, *rest],
        output=pytree.tree_unflatten([leaf(*pair) for pair in zip(starts, pytree.tree_leaves(more.output), strict=True)], structure),
        storages=[amount(*pair) for pair in zip(few.storages, more.storages, strict=True)],
        output_bytes=amount(few.output_bytes, more.output_bytes),
        saved=[(*place, amount(saved[0].get(place, nothing), end)) for place, end in saved[1].items()],
        forward_transient=amount(few.forward_transient, more.forward_transient),
        backward_transient=amount(few.backward_transient, more.backward_transient),
        passes_gradient=few.passes_gradient,
        needs_grad=few.needs_grad,
        unknown={name: amount(few.unknown.get(name, nothing), end) for name, end in more.unknown.items()},
        note=few.note,
        dtype=few.dtype,
        learned=few.learned,
    )


def at_steps(spec: Spec, axis: int, steps: int) -> Spec:
    """A sequence's form with another number of steps."""
    shape = list(spec.shape)
    shape[axis] = steps
    found = torch.empty(shape, device="meta").stride()
    return spec._replace(shape=tuple(shape), stride=tuple(found))


def _saved(price: Price) -> dict[tuple[str, int], Amount]:
    """What is kept by origin; what the call keeps inside is one amount."""
    found: dict[tuple[str, int], Amount] = {}
    for kind, slot, amount in price.saved:
        known = found.get((kind, slot), Amount(0, 0))
        found[kind, slot] = Amount(known.each + amount.each, known.fixed + amount.fixed)
    return found
