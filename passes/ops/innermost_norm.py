"""fxsparse::innermost_norm, batch normalisation, what is added to it, and the ReLU after it, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import innermost as native
from ..kernels.library import Library, kernels_for
from .codes.layout import as_innermost, empty_innermost, is_innermost
from .derivative import once
from .operator import operator

aten = torch.ops.aten


@operator()
def innermost_norm(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y = relu(batch_norm(x) + added), where it is positive, mean, 1/sigma, and what the running statistics become.

    x is (N, C, *); nothing is added, or a tensor of x's shape. Where x is float32, on the CPU and batch innermost, so is y, and native
    kernels compute it: torch's numbers but for the rounding of sums. Of y, one bit for each element is kept, and nothing where the
    bit follows from x. Elsewhere y is torch's own. Without running statistics, or in training, the batch's own are used.
    """
    mean, var = (t.detach().clone() if t is not None else x.new_empty(0) for t in (running_mean, running_var))
    batch = training or running_mean is None
    kernels = kernels_of(x, weight, bias, running_mean, running_var)
    if kernels is None:
        return _reference(x, added, weight, bias, mean, var, batch, momentum, eps, relu)
    if batch:
        _check_several(x)
    y = kernels.empty_innermost(x.shape)
    mask = _empty_mask(x, added, relu)
    other = None if added is None else as_innermost(added.to(x.dtype))
    tables = (_table(weight), _table(bias))
    running = (mean, var) if running_mean is not None else (None, None)
    found = native.norm(kernels, x, other, tables, running, (batch, relu, momentum, eps), y, mask if mask.numel() else None)
    return y, mask, *found, mean, var


def kernels_of(x: Tensor, *tables: Tensor | None) -> Library | None:
    """The library, if it has kernels for a tensor and tables of one number for each channel."""
    if x.dtype != torch.float32 or not is_innermost(x) or x.numel() == 0:
        return None
    if any(table is not None and table.dtype != torch.float32 for table in tables):
        return None
    return kernels_for(x)


def _reference(
    x: Tensor, added: Tensor | None, weight: Any, bias: Any, mean: Tensor, var: Tensor, batch: bool, momentum: float, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    running = (mean, var) if mean.numel() else (None, None)
    if batch:
        _check_several(x)
    own = (mean.clone(), (var + eps).rsqrt()) if not batch else None
    y, *found = aten.native_batch_norm.default(x, weight, bias, *running, batch, momentum, eps)
    y = y if added is None else y + added
    y = torch.relu(y) if relu else y
    mask = (y > 0).view(torch.uint8) if relu else y.new_empty(0, dtype=torch.uint8)
    return y, mask, *(own or found), mean, var


def _check_several(x: Tensor) -> None:
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")


def _empty_mask(x: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    needed = native.mask_bytes(x.shape[1], x.numel() // max(x.shape[1], 1)) if relu and added is not None else 0
    return x.new_empty(needed, dtype=torch.uint8)


def _table(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.detach().contiguous()


@innermost_norm.register_fake
def _(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    mean, var = (t.new_empty(t.shape) if t is not None else x.new_empty(0) for t in (running_mean, running_var))
    if kernels_of(x, weight, bias, running_mean, running_var) is None:
        return _reference(x, added, weight, bias, mean, var, training or running_mean is None, momentum, eps, relu)
    y, tables = empty_innermost(x, x.shape), (x.new_empty(x.shape[1]), x.new_empty(x.shape[1]))
    return y, _empty_mask(x, added, relu), *tables, mean, var


@operator()
def innermost_norm_backward(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    relu: bool,
    with_added: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, of what was added (empty if not asked for), of weight and of bias for fxsparse::innermost_norm."""
    kernels = kernels_of(x, weight, bias)
    if kernels is not None:
        tables, bits = (_table(weight), _table(bias)), mask if mask.numel() else None
        out, added, gw, gb = native.norm_backward(kernels, as_innermost(grad), x, bits, tables, mean, invstd, training, relu, with_added)
        return out, x.new_empty(0) if added is None else added, gw, gb
    return _reference_backward(grad, x, mask, weight, mean, invstd, training, relu, with_added)


def _reference_backward(
    grad: Tensor, x: Tensor, mask: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, training: bool, relu: bool, with_added: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad = grad * mask if relu else grad
    saved = (None, None, mean, invstd, True, 0.0) if training else (mean, invstd.pow(-2), None, None, False, 0.0)
    found = aten.native_batch_norm_backward.default(grad.to(x.dtype), x, weight, *saved, [True, True, True])
    gx, gw, gb = found
    return gx, grad.clone() if with_added else grad.new_empty(0), gw, gb


@innermost_norm_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    relu: bool,
    with_added: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if kernels_of(x, weight, bias) is None:
        return _reference_backward(grad, x, mask, weight, mean, invstd, training, relu, with_added)
    added = empty_innermost(x, x.shape) if with_added else x.new_empty(0)
    return empty_innermost(x, x.shape), added, mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


innermost_norm_backward.without_derivative()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, added, weight, bias, running_mean, _, training, _, _, relu = inputs
    _, mask, mean, invstd, new_mean, new_var = output
    ctx.mark_non_differentiable(mask, mean, invstd, new_mean, new_var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mask, weight, bias, mean, invstd)
    ctx.added = None if added is None else added.dtype
    ctx.facts = (training or running_mean is None, relu)


@once("fxsparse::innermost_norm")
def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    needs = ctx.needs_input_grad
    wanted = ctx.added is not None and needs[1]
    gx, added, gw, gb = innermost_norm_backward(grad, *ctx.saved_tensors, *ctx.facts, wanted)
    gw, gb = gw if needs[2] else None, gb if needs[3] else None
    return (gx if needs[0] else None, added.to(ctx.added) if wanted else None, gw, gb, *(None,) * 6)


innermost_norm.register_autograd(_backward, setup_context=_setup)
