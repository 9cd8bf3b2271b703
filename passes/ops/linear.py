"""fxsparse::swat_linear, a linear layer that keeps only sparse operands for its backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .native_linear import forward, is_native, native_gradients
from .operator import operator, owned
from .sparse_operands import W_HAT, SparseOperands, X, rule

BIAS = 3


@operator()
def swat_linear(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    bias: Tensor | None,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
    native: str = "",
) -> Tensor:
    """Return x @ w_hat.T + bias, (..., out), for x and a_hat (..., in), w_hat (out, in) and bias (out,).

    The gradient of w_hat is computed from `a_hat` and that of x from `w_hat`, which alone are saved, or what they follow from (see
    sparse_operands.py); a_hat gets none, since x's gradient is straight-through. Under autocast the operands are cast to the active
    dtype. Native kernels compute the products that `native` names, of contiguous float32 tensors on the CPU (see native_linear.py).

    Raises: ValueError when w_hat needs a gradient and a_hat is neither of x's shape nor packed.
    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1.
    """
    if is_native(native, x, w_hat):
        return forward(native, x, w_hat, bias)
    return owned(torch.nn.functional.linear(x, w_hat, bias))


@swat_linear.register_fake
def _(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    bias: Tensor | None,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
    native: str = "",
) -> Tensor:
    return torch.nn.functional.linear(x, w_hat, bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a_hat, w_hat, _, *kept, native = inputs
    ctx.arguments = len(inputs)
    ctx.native = native if is_native(native, x, w_hat) else ""
    ctx.operands = SparseOperands(ctx, "swat_linear", x, a_hat, w_hat, kept)
    ctx.operands.is_plain = ctx.operands.is_plain and not ctx.native


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    operands, saved = ctx.operands, ctx.saved_tensors
    flat = grad.reshape(-1, operands.w_shape[0])
    if ctx.native:
        shapes = (operands.x.shape, operands.w_shape)
        gx, gw = native_gradients(grad, operands.kept(saved), operands.w_hat(saved), shapes, ctx.native)
        return (gx, None, gw, flat.sum(0) if ctx.needs_input_grad[BIAS] else None, *(None,) * (ctx.arguments - 4))
    grad_x = (flat @ operands.w_hat(saved)).reshape(operands.x.shape) if ctx.needs_input_grad[X] else None
    grad_w = flat.t() @ operands.a_hat(saved).reshape(-1, operands.w_shape[1]) if ctx.needs_input_grad[W_HAT] else None
    grad_bias = flat.sum(0) if ctx.needs_input_grad[BIAS] else None
    return (grad_x, None, grad_w, grad_bias, *(None,) * (ctx.arguments - 4))


swat_linear.register_autograd(rule("swat_linear", _backward), setup_context=_setup)
cast_to_active_dtype("swat_linear", only=("x", "a_hat", "w_hat", "bias", "values"))
