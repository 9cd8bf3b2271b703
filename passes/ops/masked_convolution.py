"""fxsparse::masked_convolution, a convolution with a masked weight whose gradient is computed at the kept positions alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .codes.scheme import EXACT
from .derivative import once
from .native_convolution import forward, forward_like, is_native, native_gradients
from .operator import operator, owned

aten = torch.ops.aten
BIAS = 4


@operator()
def masked_convolution(
    x: Tensor,
    w: Tensor,
    mask: Tensor,
    growing: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    native: str,
) -> Tensor:
    """Return torch's conv2d of x (N, C, H, W) with w, which is 0 where `mask`, bool of its shape, is false.

    Where x is batch innermost, native kernels compute the products that `native` names (see native_convolution.py); they compute the
    gradient of w where the mask is true alone, and all of it while `growing`, a 0-dim bool CPU tensor, is true.
    """
    arguments = _arguments(stride, padding, dilation, groups)
    if is_native(native, x, w, arguments):
        return forward(native, x, w, bias, arguments)
    return owned(aten.convolution.default(x, w, bias, *arguments))


def _arguments(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> tuple[Any, ...]:
    return stride, padding, dilation, False, [0] * len(stride), groups


@masked_convolution.register_fake
def _(
    x: Tensor,
    w: Tensor,
    mask: Tensor,
    growing: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    native: str,
) -> Tensor:
    arguments = _arguments(stride, padding, dilation, groups)
    if is_native(native, x, w, arguments):
        return forward_like(x, w, arguments)
    out: Tensor = aten.convolution.default(x, w, bias, *arguments)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, mask, growing, _, *geometry, native = inputs
    ctx.arguments = _arguments(*geometry)
    ctx.native = native if is_native(native, x, w, ctx.arguments) else ""
    ctx.shapes = x.shape, w.shape
    ctx.set_materialize_grads(False)
    needs_x, needs_w = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_w else None, w if needs_x else None, mask, growing)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w, mask, growing = ctx.saved_tensors
    wanted = [w is not None, x is not None, ctx.needs_input_grad[BIAS]]
    if ctx.native:
        gx, gw = native_gradients(grad, (x, None, None, EXACT), w, ctx.shapes, ctx.arguments, ctx.native, mask, growing)
        gb = grad.sum((0, 2, 3)) if wanted[2] else None
    else:
        given = (grad.new_empty(1).expand(shape) if item is None else item for item, shape in zip((x, w), ctx.shapes, strict=True))
        gx, gw, gb = aten.convolution_backward.default(grad, *given, [grad.shape[1]] if wanted[2] else None, *ctx.arguments, wanted)
    return gx, gw, None, None, gb, *(None,) * 5


_of_native = once("fxsparse::masked_convolution")(_gradients)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    found: tuple[Tensor | None, ...] = _of_native(ctx, grad) if ctx.native else _gradients(ctx, grad)
    return found


masked_convolution.register_autograd(_backward, setup_context=_setup)
cast_to_active_dtype("masked_convolution", only=("x", "w", "bias"))
