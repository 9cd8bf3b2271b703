"""Prices of calls that are like one already recorded, but for their sizes; and those of plain convolutions, from their shapes.

Elementwise calls and batch norms move bytes in proportion to the elements of a sample, and to the channels for what does not
depend on the samples. So one recording (two where there are channels) prices every size. The recorder stays the reference.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .price import Leaf, Price
from .recording import Amount, BatchLeak, Spec, amount_of

_ZERO = Amount(0, 0)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Dropout)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = frozenset((operator.add, operator.iadd, operator.mul, torch.add, torch.relu, F.relu, F.gelu, F.silu, F.hardswish, F.sigmoid))
_FIXED = ("fixed_bytes", "fixed_backward_bytes", "fixed_flops", "fixed_backward_flops")
_EACH = (
    *("read_bytes", "write_bytes", "made_bytes", "flops"),
    *("backward_read_bytes", "backward_write_bytes", "backward_made_bytes", "backward_flops"),
)


class Alike:
    """Knows prices by what their calls have in common.

    Args:
        batch: the size that marks what grows with the samples. exclusive: nothing else has that size.
    """

    def __init__(self, batch: int, exclusive: bool) -> None:
        self.batch = batch
        self.exclusive = exclusive
        self._known: dict[Any, list[tuple[int, int, Price]]] = {}

    def key_of(self, target: Any, module: Any, specs: Sequence[Spec], rest: Any) -> Any:
        """What a call has in common with others, sizes left out; None if it is not of a kind that can be resized.

        Args:
            module: a key of the module's settings without its sizes, None for a function. specs: the forms of its tensors.
            rest: the other arguments, hashable.
        """
        if not specs or any(spec[:2] != specs[0][:2] for spec in specs):
            return None
        shape, stride = specs[0].shape, specs[0].stride
        order = _order(shape, stride)
        each, left = divmod(math.prod(shape), self.batch)
        if order is None or left or (self.exclusive and each % self.batch == 0):
            return None
        if isinstance(target, nn.Module):
            is_norm = type(target) in _NORMS
            if (not is_norm and type(target) not in _ACTIVATIONS) or (is_norm and (len(shape) < 2 or shape[1] != target.num_features)):
                return None
        elif target not in _FUNCTIONS:
            return None
        return type(target) in _NORMS, target if module is None else module, order, tuple(spec[2:] for spec in specs), rest

    def find(self, key: Any, spec: Spec) -> Price | None:
        """The price of a call with this key whose tensors have this form; None if too little is known."""
        known = self._known.get(key, ())
        each, channels = self._sizes(key, spec)
        for own_each, own_channels, price in known:
            if own_channels == channels:
                return _resized(price, price, spec, (own_each, each), (0, 1), 0)
        if len(known) < 2:
            return None
        (one_each, one, first), (_, two, second) = known[:2]
        return _resized(first, second, spec, (one_each, each), (one, two), channels)

    def learn(self, key: Any, spec: Spec, price: Price) -> None:
        """Keeps a recorded price, if it is one that can be resized."""
        leaf = price.output
        if not isinstance(leaf, Leaf) or (leaf.spec.shape, leaf.spec.stride) != (spec.shape, spec.stride):
            return
        if price.unknown or price.note or any(work["kind"] != "pointwise" for work in price.work):
            return
        each, channels = self._sizes(key, spec)
        if not channels and any(work[name] for work in price.work for name in _FIXED):
            return
        self._known.setdefault(key, []).append((each, channels, price))

    def _sizes(self, key: Any, spec: Spec) -> tuple[int, int]:
        """Elements of a sample, and the channels of a norm."""
        return math.prod(spec.shape) // self.batch, spec.shape[1] if key[0] else 0

    def convolution(self, module: Any, x: Spec, tensors: dict[str, Spec]) -> Price | None:
        """The price of a plain convolution of a batch; None for any other call.

        Args:
            tensors: the forms of its parameters.
        """
        if type(module) not in _CONVOLUTIONS or getattr(module, "padding_mode", "") != "zeros" or isinstance(module.padding, str):
            return None
        weight, bias = tensors["weight"], tensors.get("bias")
        axes = len(weight.shape) - 2
        if len(x.shape) != axes + 2 or x.shape[1] != weight.shape[1] * module.groups or len({x.dtype, weight.dtype}) != 1:
            return None
        if any(_order(spec.shape, spec.stride) != tuple(range(len(spec.shape))) for spec in (x, weight)) or x.shape[0] % self.batch:
            return None
        if bias is not None and bias.requires_grad != weight.requires_grad:
            return None
        sizes = zip(x.shape[2:], module.padding, module.dilation, module.kernel_size, module.stride, strict=True)
        out = tuple((size + 2 * pad - step * (kernel - 1) - 1) // stride + 1 for size, pad, step, kernel, stride in sizes)
        if min(out) < 1:
            return None
        shape = (x.shape[0], weight.shape[0], *out)
        needs_grad = x.requires_grad or weight.requires_grad
        spec = Spec(shape, contiguous_stride(shape), x.dtype, x.device, needs_grad)
        try:
            output, given = (self._amount(math.prod(item.shape) * item.dtype.itemsize) for item in (spec, x))
        except BatchLeak:
            return None
        learned = (math.prod(weight.shape) + (weight.shape[0] if bias is not None else 0)) * weight.dtype.itemsize
        work = {
            "kind": "contraction",
            "operator": "conv",
            "batch": 1,
            "in_channels": x.shape[1],
            "out_channels": shape[1],
            "rows": x.shape[0] // self.batch,
            "groups": module.groups,
            "kernel": list(weight.shape[2:]),
            "stride": list(module.stride),
            "dilation": list(module.dilation),
            "padding": list(module.padding),
            "input_size": list(x.shape[2:]),
            "output_size": list(out),
            "bias": False,
            "input_needs_grad": x.requires_grad,
            "weight_needs_grad": weight.requires_grad,
            "shared_weight": True,
            "repeats": 1,
            "scales": True,
        }
        return Price(
            operator="conv",
            work=[work],
            output=Leaf(spec, ("new", 0), False),
            storages=[output],
            output_bytes=output,
            saved=[("in", 0, given)] if needs_grad else [],
            backward_transient=Amount(0, learned) if weight.requires_grad else _ZERO,
            needs_grad=needs_grad,
            dtype=str(x.dtype).removeprefix("torch."),
        )

    def _amount(self, number: int) -> Amount:
        return amount_of(number, self.batch, self.exclusive)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    found, step = [], 1
    for size in reversed(shape):
        found.append(step)
        step *= max(1, size)
    return tuple(reversed(found))


def _order(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """Dimensions from the outermost in memory to the innermost; None for a tensor that is not dense, or empty."""
    order = tuple(sorted(range(len(shape)), key=lambda index: (-stride[index], index)))
    step = 1
    for index in reversed(order):
        if not shape[index] or (stride[index] != step and shape[index] != 1):
            return None
        step *= shape[index]
    return order


def _resized(first: Price, second: Price, spec: Spec, each: tuple[int, int], channels: tuple[int, int], wanted: int) -> Price:
    """A price for other sizes: what grows with the samples in proportion, the rest on the line through two prices."""

    def samples(number: float) -> Any:
        return number * each[1] / each[0] if isinstance(number, float) else number * each[1] // each[0]

    def fixed(start: float, end: float) -> Any:
        slope = (end - start) * (wanted - channels[0])
        return start + (slope / (channels[1] - channels[0]) if isinstance(start, float) else slope // (channels[1] - channels[0]))

    def amount(start: Amount, end: Amount) -> Amount:
        return Amount(samples(start.each), fixed(start.fixed, end.fixed))

    def work(start: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
        return {**start, **{key: samples(start[key]) for key in _EACH}, **{key: fixed(start[key], end[key]) for key in _FIXED}}

    leaf = first.output
    return Price(
        operator=first.operator,
        work=[work(*pair) for pair in zip(first.work, second.work, strict=True)],
        output=Leaf(leaf.spec._replace(shape=spec.shape, stride=spec.stride), leaf.origin, leaf.fixed),
        storages=[amount(*pair) for pair in zip(first.storages, second.storages, strict=True)],
        output_bytes=amount(first.output_bytes, second.output_bytes),
        saved=[(kind, slot, amount(size, second.saved[index][2])) for index, (kind, slot, size) in enumerate(first.saved)],
        forward_transient=amount(first.forward_transient, second.forward_transient),
        backward_transient=amount(first.backward_transient, second.backward_transient),
        passes_gradient=first.passes_gradient,
        needs_grad=first.needs_grad,
        dtype=first.dtype,
        learned=first.learned,
    )
