"""fxsparse::swat_linear, a linear layer that keeps only sparse operands for its backward pass."""

from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .operator import operator
from .sparse_operands import W_HAT, X, save_sparse_operands

BIAS = 3


@operator()
def swat_linear(x: Tensor, a_hat: Tensor, w_hat: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ w_hat.T + bias, (..., out), for x and a_hat (..., in), w_hat (out, in) and bias (out,).

    The gradient of w_hat is computed from `a_hat` and that of x from `w_hat`, which alone are saved; a_hat gets none, since x's
    gradient is straight-through. Under autocast the operands are cast to the active dtype.

    Raises: ValueError when w_hat needs a gradient and a_hat is not of x's shape.
    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1.
    """
    return torch.nn.functional.linear(x, w_hat, bias)


@swat_linear.register_fake
def _(x: Tensor, a_hat: Tensor, w_hat: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, w_hat, bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a_hat, w_hat, _ = inputs
    save_sparse_operands(ctx, x, a_hat, w_hat, "swat_linear")


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    if grad is None:
        return None, None, None, None
    a_hat, w_hat = ctx.saved_tensors
    flat = grad.reshape(-1, ctx.w_shape[0])
    grad_x = (flat @ w_hat).reshape(ctx.x_shape) if ctx.needs_input_grad[X] else None
    grad_w = flat.t() @ a_hat.reshape(-1, ctx.w_shape[1]) if ctx.needs_input_grad[W_HAT] else None
    grad_bias = flat.sum(0) if ctx.needs_input_grad[BIAS] else None
    return grad_x, None, grad_w, grad_bias


swat_linear.register_autograd(_backward, setup_context=_setup)
cast_to_active_dtype("swat_linear")
