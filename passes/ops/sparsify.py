"""fxsparse::sparsify, the elements or structures of a tensor that reach a threshold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .operator import operator
from .score import merge_groups, score, split_groups


@operator()
def sparsify(x: Tensor, threshold: Tensor, reduce_dims: Sequence[int], groups: int, enabled: bool) -> Tensor:
    """Return x where its score is `threshold` or more, 0 elsewhere: a new tensor of x's shape, dtype and memory format.

    The scores are those of fxsparse::refresh_threshold, and `threshold` is broadcast against them. Ties are kept, and so is what
    cannot be compared (a NaN in either). The gradient passes whole to x, straight-through, and nothing is saved for it.

    Not `enabled`: an empty tensor.

    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1.
    """
    if not enabled:
        return x.new_empty(0)
    if x.device.type == "cpu" and threshold.numel() == 1 and not reduce_dims and x.is_floating_point():
        return _shrink(x, float(threshold.item()))
    split = split_groups(x, groups)
    bound = threshold.reshape((1,) * split.dim()) if threshold.numel() == 1 else threshold
    dropped = score(split, reduce_dims) < bound
    out = torch.empty_like(split)
    if x.device.type == "cpu":
        torch.mul(split, dropped.logical_not_(), out=out).add_(0.0)
    else:
        torch.where(dropped, split.new_zeros(()), split, out=out)
    return merge_groups(out, groups)


@sparsify.register_fake
def _(x: Tensor, threshold: Tensor, reduce_dims: Sequence[int], groups: int, enabled: bool) -> Tensor:
    return torch.empty_like(x) if enabled else x.new_empty(0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.enabled = inputs[-1]


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
    return grad if ctx.enabled else None, None, None, None, None


sparsify.register_autograd(_backward, setup_context=_setup)


def _shrink(x: Tensor, threshold: float) -> Tensor:
    """Return x where |x| >= threshold in one pass: hardshrink keeps |x| > bound, for the last bound below the threshold."""
    if not threshold > 0:
        return x.clone()
    return torch.nn.functional.hardshrink(x, _largest_below(threshold, x.dtype))


def _largest_below(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of a floating dtype below a positive value, 0 if there is none that is positive."""
    if math.isinf(value):
        return torch.finfo(dtype).max
    if dtype == torch.float32:
        single = np.float32(value)
        return float(single if single < value else np.nextafter(single, np.float32(0)))
    rounded = torch.tensor(value, dtype=dtype)
    if rounded.item() < value:
        return float(rounded.item())
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rounded.element_size()]
    return float((rounded.view(bits) - 1).view(dtype).item())
