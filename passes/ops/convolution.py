"""fxsparse::swat_convolution, a convolution that keeps only sparse operands for its backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .native_convolution import forward, forward_like, is_native, native_gradients
from .operator import operator, owned
from .sparse_operands import W_HAT, SparseOperands, X, rule

BIAS = 3
GEOMETRY = 6  # arguments from stride to groups
OPERANDS = ("x", "a_hat", "w_hat", "bias", "values")


@operator()
def swat_convolution(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
    native: str = "",
) -> Tensor:
    """Return aten.convolution of x and w_hat, for x and a_hat (N, C_in, *space) with one to three space dimensions.

    The gradient of w_hat is computed from `a_hat` and that of x from `w_hat`, which alone are saved, or what they follow from (see
    sparse_operands.py); a_hat gets none, since x's gradient is straight-through. Under autocast the operands are cast to the active
    dtype. Where x is batch innermost, native kernels compute the products that `native` names (see native_convolution.py).

    Raises: ValueError when w_hat needs a gradient and a_hat is neither of x's shape nor packed.
    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1.
    """
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    if is_native(native, x, w_hat, geometry):
        return forward(native, x, w_hat, bias, geometry)
    return owned(_convolution(x, w_hat, bias, *geometry))


@swat_convolution.register_fake
def _(
    x: Tensor,
    a_hat: Tensor,
    w_hat: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    scheme: str = "exact",
    values: Tensor | None = None,
    stats: Tensor | None = None,
    w: Tensor | None = None,
    threshold: Tensor | None = None,
    dims: Sequence[int] | None = None,
    w_groups: int = 1,
    native: str = "",
) -> Tensor:
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    if is_native(native, x, w_hat, geometry):
        return forward_like(x, w_hat, geometry)
    return _convolution(x, w_hat, bias, *geometry)


def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    out: Tensor = torch.ops.aten.convolution.default(x, w, bias, *geometry)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a_hat, w_hat, _, *rest, native = inputs
    ctx.arguments, ctx.geometry = len(inputs), rest[:GEOMETRY]
    ctx.native = native if is_native(native, x, w_hat, ctx.geometry) else ""
    ctx.operands = SparseOperands(ctx, "swat_convolution", x, a_hat, w_hat, rest[GEOMETRY:])
    ctx.operands.is_plain = ctx.operands.is_plain and not ctx.native


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = [ctx.needs_input_grad[X], ctx.needs_input_grad[W_HAT], ctx.needs_input_grad[BIAS]]
    if ctx.native:
        kept, w_hat = ctx.operands.kept(ctx.saved_tensors), ctx.operands.w_hat(ctx.saved_tensors)
        gx, gw = native_gradients(grad, kept, w_hat, (ctx.operands.x.shape, ctx.operands.w_shape), ctx.geometry, ctx.native)
        grad_bias = grad.sum((0, 2, 3)) if mask[2] else None
        return (gx, None, gw, grad_bias, *(None,) * (ctx.arguments - 4))
    a_hat, w_hat = ctx.operands.a_hat(ctx.saved_tensors), ctx.operands.w_hat(ctx.saved_tensors)
    grad_x, grad_w, grad_bias = torch.ops.aten.convolution_backward.default(
        grad,
        grad.new_empty(1).expand(ctx.operands.x.shape) if a_hat is None else a_hat,
        grad.new_empty(1).expand(ctx.operands.w_shape) if w_hat is None else w_hat,
        [grad.shape[1]] if mask[2] else None,
        *ctx.geometry,
        mask,
    )
    return (grad_x, None, grad_w, grad_bias, *(None,) * (ctx.arguments - 4))


swat_convolution.register_autograd(rule("swat_convolution", _backward), setup_context=_setup)
cast_to_active_dtype("swat_convolution", only=OPERANDS)
