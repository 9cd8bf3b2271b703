"""Linear layers with sparse weights, and the gradients of their weights, by native kernels.

Rows are convolutions' samples with one pixel each. A tensor (..., in) has its features innermost in memory: the kernels turn it in blocks
as they read and write it, which costs little next to a product of many outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import sparse_activation, sparse_conv
from .library import Library
from .sparse_activation import SparseActivation
from .sparse_weight import LIMIT, SparseWeight, first_reason, takes_weight

_POINT = ((0, 0),)


def takes(x: Tensor, w: Tensor) -> str | None:
    """Return why the sparse kernels cannot compute a linear layer of x with a weight (out, in), or its gradients; None if they can."""
    return takes_weight(w) or first_reason(
        (lambda: x.dtype != torch.float32, f"its type is {x.dtype}, not torch.float32"),
        (lambda: x.device.type != "cpu", f"it is on {x.device}, not on the CPU"),
        (lambda: x.layout != torch.strided, f"its layout is {x.layout}"),
        (lambda: w.dim() != 2 or x.dim() < 1 or x.shape[-1] != w.shape[1], "the shapes do not fit each other"),
        (lambda: x.numel() > LIMIT, "the input has more elements than 32-bit positions can tell apart"),
        (lambda: math.prod(x.shape[:-1]) * w.shape[0] > LIMIT, "the result has too many elements"),
    )


def linear_forward(x: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias, (..., out), contiguous, for x (..., in)."""
    out = weight.pattern.kernels.empty(*x.shape[:-1], weight.shape[0])
    sparse_conv.multiply(_rows(x), weight, bias, _rows(out), False, (1, 1), _POINT, 1)
    return out


def linear_grad_input(grad: Tensor, weight: SparseWeight) -> Tensor:
    """Return grad @ weight, (..., in), contiguous, for grad (..., out)."""
    out = weight.pattern.kernels.empty(*grad.shape[:-1], weight.shape[1])
    sparse_conv.multiply(_rows(grad), weight, None, _rows(out), True, (1, 1), _POINT, 1)
    return out


def pack_activation(x: Tensor, threshold: float, density: float | None = None, kernels: Library | None = None) -> SparseActivation:
    """Return the elements of x (..., in) that reach a threshold; see sparse_activation.pack_activation."""
    return sparse_activation.pack_activation(_rows(x), threshold, (1, 1), density, kernels)


def linear_grad_weight(grad: Tensor, activation: SparseActivation, w_shape: Sequence[int]) -> Tensor:
    """Return the gradient (out, in) of a weight for that of the result, (..., out), from a sparse activation."""
    return sparse_activation.grad_weight(_rows(grad), activation, tuple(w_shape), (1, 1), _POINT, 1)


def linear_grad_weight_kept(x: Tensor, grad: Tensor, weight: SparseWeight) -> Tensor:
    """Return the gradient (out, in) of the weight at its kept positions, and 0 elsewhere."""
    return sparse_conv.correlate(_rows(x), weight, _rows(grad), (1, 1), _POINT, 1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])[:, :, None, None] if x.shape[-1] else x.new_empty(math.prod(x.shape[:-1]), 0, 1, 1)
