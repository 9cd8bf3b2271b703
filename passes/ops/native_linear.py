"""What the operators of linear layers with sparse operands share; see native_convolution.py for the letters of ``native``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import sparse_linear
from ..kernels.library import library
from ..kernels.sparse_weight import index_weight
from .codes.tiles import unpack
from .operator import operator, owned

LEAST_ROWS = 8


def is_native(native: str, x: Tensor, w: Tensor) -> bool:
    """Whether native kernels compute some products of a linear layer."""
    if not native or x.dim() < 2 or x.numel() == 0 or not x.is_contiguous() or math.prod(x.shape[:-1]) < LEAST_ROWS:
        return False
    return library() is not None and sparse_linear.takes(x, w) is None


def forward(native: str, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ w.T + bias for a weight of which many elements are 0."""
    if "f" in native and (bias is None or bias.dtype == x.dtype):
        return owned(sparse_linear.linear_forward(x, index_weight(w), bias))
    return owned(torch.nn.functional.linear(x, w, bias))


@operator()
def native_linear_backward(
    grad: Tensor,
    x: Tensor | None,
    where: Tensor | None,
    values: Tensor | None,
    scheme: str,
    w: Tensor | None,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    native: str,
    kept: Tensor | None,
    growing: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight; the arguments are those of fxsparse::native_convolution_backward."""
    if kept is not None and growing is not None and bool(growing.item()):
        native = native.replace("w", "")
    grad = grad.contiguous()
    flat, gx, gw = grad.reshape(-1, w_shape[0]), grad.new_empty(0), grad.new_empty(0)
    if w is not None:
        gx = owned(sparse_linear.linear_grad_input(grad, index_weight(w))) if "i" in native else (flat @ w).view(list(x_shape))
    if where is not None and values is not None:
        rows = [flat.shape[0], w_shape[1], 1, 1]
        gw = sparse_linear.linear_grad_weight(grad, unpack(where, values, rows, scheme), list(w_shape))
    elif x is not None and kept is not None and "w" in native:
        gw = sparse_linear.linear_grad_weight_kept(x, grad, index_weight(kept.to(grad.dtype), kept))
    elif x is not None:
        gw = flat.t() @ x.reshape(-1, w_shape[1])
    return gx, gw


@native_linear_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor | None,
    where: Tensor | None,
    values: Tensor | None,
    scheme: str,
    w: Tensor | None,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    native: str,
    kept: Tensor | None,
    growing: Tensor | None,
) -> tuple[Tensor, Tensor]:
    gx = grad.new_empty(0) if w is None else grad.new_empty(list(x_shape))
    return gx, grad.new_empty(0) if x is None and where is None else grad.new_empty(list(w_shape))


native_linear_backward.without_derivative()


def native_gradients(
    grad: Tensor,
    kept_of_x: tuple[Tensor | None, Tensor | None, Tensor | None, str],
    w: Tensor | None,
    shapes: tuple[Sequence[int], Sequence[int]],
    native: str,
    kept: Tensor | None = None,
    growing: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the weight, None for what is not asked for."""
    gx, gw = native_linear_backward(grad, *kept_of_x, w, *map(list, shapes), native, kept, growing)
    return None if w is None else gx, None if kept_of_x[0] is None and kept_of_x[1] is None else gw
