"""fxsparse::masked_linear, a linear layer with a masked weight whose gradient is computed at the kept positions alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .codes.scheme import EXACT
from .derivative import once
from .native_linear import forward, is_native, native_gradients
from .operator import operator, owned


@operator()
def masked_linear(x: Tensor, w: Tensor, mask: Tensor, growing: Tensor, bias: Tensor | None, native: str) -> Tensor:
    """Return torch's linear of x (..., in) with w (out, in), which is 0 where `mask`, bool of its shape, is false.

    Native kernels compute the products that `native` names; they compute the gradient of w where the mask is true alone, and all of it
    while `growing`, a 0-dim bool CPU tensor, is true.
    """
    if is_native(native, x, w):
        return forward(native, x, w, bias)
    return owned(torch.nn.functional.linear(x, w, bias))


@masked_linear.register_fake
def _(x: Tensor, w: Tensor, mask: Tensor, growing: Tensor, bias: Tensor | None, native: str) -> Tensor:
    return torch.nn.functional.linear(x, w, bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, mask, growing, _, native = inputs
    ctx.native = native if is_native(native, x, w) else ""
    ctx.shapes = x.shape, w.shape
    ctx.set_materialize_grads(False)
    needs_x, needs_w = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_w else None, w if needs_x else None, mask, growing)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w, mask, growing = ctx.saved_tensors
    flat = grad.reshape(-1, ctx.shapes[1][0])
    if ctx.native:
        gx, gw = native_gradients(grad, (x, None, None, EXACT), w, ctx.shapes, ctx.native, mask, growing)
    else:
        gx = None if w is None else (flat @ w).reshape(ctx.shapes[0])
        gw = None if x is None else flat.t() @ x.reshape(-1, ctx.shapes[1][1])
    return gx, gw, None, None, flat.sum(0) if ctx.needs_input_grad[4] else None, None


_of_native = once("fxsparse::masked_linear")(_gradients)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    found: tuple[Tensor | None, ...] = _of_native(ctx, grad) if ctx.native else _gradients(ctx, grad)
    return found


masked_linear.register_autograd(_backward, setup_context=_setup)
cast_to_active_dtype("masked_linear", only=("x", "w", "bias"))
