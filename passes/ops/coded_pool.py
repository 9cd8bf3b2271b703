"""Pooling: fxsparse::coded_max_pool2d keeps where in its window each maximum was, fxsparse::lean_avg_pool2d keeps nothing but sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .codes.bits import pack, parts_of, unpack
from .codes.layout import dense, in_memory_order
from .codes.room import room
from .derivative import once
from .operator import operator
from .quantize import Form

aten = torch.ops.aten


def _bits_for(kernel: Sequence[int]) -> int:
    """Bits for a position in the window; 0 if more than a byte would be needed."""
    places = kernel[0] * kernel[1]
    return next((bits for bits in (1, 2, 4, 8) if places <= 1 << bits), 0)


@operator()
def coded_max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Return torch's max_pool2d of x (N, C, H, W), and the place of each maximum in its window, in the fewest bits (uint8).

    The kernel has at most 256 places.
    """
    y, indices = aten.max_pool2d_with_indices.default(x, kernel, stride, padding, dilation, ceil_mode)
    if not wanted or y.numel() == 0:
        return y, x.new_empty(0, dtype=torch.uint8)
    bits = _bits_for(kernel)
    row_start, column_start = _starts(y, stride, padding)
    rows = indices.div(x.shape[3], rounding_mode="floor")
    places = indices.sub_(rows * x.shape[3]).sub_(column_start).div_(dilation[1], rounding_mode="floor")
    places += rows.sub_(row_start).div_(dilation[0], rounding_mode="floor").mul_(kernel[1])
    flat = in_memory_order(dense(places.to(torch.uint8)))
    size = _packed_size(flat.numel(), bits)
    padded = torch.cat([flat, flat.new_zeros(size * parts_of(bits) - flat.numel())])
    packed = room(size, flat)
    pack(padded.view(parts_of(bits), size), bits, 0, packed)
    return y, packed


def _starts(y: Tensor, stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The first row and column of each window, against tensors of the output's shape."""
    rows = torch.arange(y.shape[2], device=y.device).mul_(stride[0]).sub_(padding[0]).unsqueeze(1)
    return rows, torch.arange(y.shape[3], device=y.device).mul_(stride[1]).sub_(padding[1])


def _packed_size(elements: int, bits: int) -> int:
    parts = parts_of(bits)
    return (elements + parts - 1) // parts


@coded_max_pool2d.register_fake
def _(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    y, _ = aten.max_pool2d_with_indices.default(x, kernel, stride, padding, dilation, ceil_mode)
    return y, x.new_empty(_packed_size(y.numel(), _bits_for(kernel)) if wanted else 0, dtype=torch.uint8)


def _setup_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *geometry, _ = inputs
    y, packed = output
    ctx.mark_non_differentiable(packed)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.pooled, ctx.geometry = Form(x), Form(y), geometry
    ctx.save_for_backward(packed)


@once("fxsparse::coded_max_pool2d")
def _backward_max(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    form, geometry = ctx.form, ctx.geometry
    (packed,) = ctx.saved_tensors
    gx = torch.ops.fxsparse.max_pool2d_gradient(grad, packed, form.shape, form.strides, ctx.pooled.strides, *geometry)
    return gx, *(None,) * 6


coded_max_pool2d.register_autograd(_backward_max, setup_context=_setup_max)


@operator()
def max_pool2d_gradient(
    grad: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    pooled_strides: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Return the gradient of fxsparse::coded_max_pool2d's input, whose shape and strides these are."""
    like = torch.empty_strided(list(shape), list(strides), dtype=grad.dtype, device=grad.device)
    if grad.numel() == 0:
        return like.zero_()
    bits = _bits_for(kernel)
    codes = packed.new_empty((parts_of(bits), packed.numel()))
    unpack(packed, bits, 0, codes)
    places = torch.empty_strided(grad.shape, list(pooled_strides), dtype=torch.int64, device=grad.device)
    in_memory_order(places).copy_(codes.view(-1)[: grad.numel()])
    row_start, column_start = _starts(grad, stride, padding)
    rows = places.div(kernel[1], rounding_mode="floor")
    places.sub_(rows * kernel[1]).mul_(dilation[1]).add_(column_start)
    places.add_(rows.mul_(dilation[0]).add_(row_start).mul_(shape[3]))
    out: Tensor = aten.max_pool2d_with_indices_backward.default(grad, like, kernel, stride, padding, dilation, ceil_mode, places)
    return out


@max_pool2d_gradient.register_fake
def _(
    grad: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    pooled_strides: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    return grad.new_empty_strided(list(shape), list(strides))


max_pool2d_gradient.without_derivative()


@operator()
def lean_avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Return torch's avg_pool2d of x, of which only the sizes are kept: its gradient does not depend on values."""
    out: Tensor = aten.avg_pool2d.default(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return out


@lean_avg_pool2d.register_fake
def _(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    out: Tensor = aten.avg_pool2d.default(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return out


def _setup_avg(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.form, ctx.geometry = Form(inputs[0]), inputs[1:]
    ctx.set_materialize_grads(False)


def _backward_avg(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return aten.avg_pool2d_backward.default(grad, ctx.form.placeholder(grad), *ctx.geometry), *(None,) * 6


lean_avg_pool2d.register_autograd(_backward_avg, setup_context=_setup_avg)
