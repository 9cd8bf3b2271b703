"""Normalisations that keep a code of their input: fxsparse::coded_layer_norm, coded_group_norm and coded_batch_norm.

Each returns what torch's own operator returns, to the bit, and keeps its statistics in full. The gradients are torch's own rule at
what the code stands for; the one of the bias is exact. That of the input is quadratic in the code: the noise of an element meets
itself in mean(g * xh) * xh, which shifts its expectation by 1/n of the noise's variance for n elements that are normalised together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .autocast import cast_to_float32
from .derivative import like, once
from .operator import operator
from .quantize import Kept


@operator()
def coded_layer_norm(
    x: Tensor, packed: Tensor, stats: Tensor, scheme: str, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer normalisation of x over its last dimensions, of sizes `shape`, and each row's mean and 1/sigma."""
    y, mean, rstd = torch.ops.aten.native_layer_norm.default(x, shape, weight, bias, eps)
    return y, mean, rstd


@coded_layer_norm.register_fake
def _(
    x: Tensor, packed: Tensor, stats: Tensor, scheme: str, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = torch.ops.aten.native_layer_norm.default(x, shape, weight, bias, eps)
    return y, mean, rstd


def _setup_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, packed, stats, scheme, shape, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.kept, ctx.shape = Kept(x, packed, stats, scheme, "coded_layer_norm"), shape
    ctx.save_for_backward(weight, bias, mean, rstd, *ctx.kept.tensors)


@once("fxsparse::coded_layer_norm")
def _backward_layer_norm(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    weight, bias, mean, rstd, *code = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], weight is not None and ctx.needs_input_grad[5], bias is not None and ctx.needs_input_grad[6]]
    x = ctx.kept.restore(code)
    gx, gw, gb = torch.ops.aten.native_layer_norm_backward.default(grad, x, ctx.shape, mean, rstd, weight, bias, wanted)
    return gx if wanted[0] else None, None, None, None, None, gw if wanted[1] else None, gb if wanted[2] else None, None


coded_layer_norm.register_autograd(_backward_layer_norm, setup_context=_setup_layer_norm)
cast_to_float32("coded_layer_norm", only=("x", "weight", "bias"))


@operator()
def coded_group_norm(
    x: Tensor, packed: Tensor, stats: Tensor, scheme: str, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the group normalisation of x (N, C, *), and each group's mean and 1/sigma."""
    return _group_norm(x, groups, weight, bias, eps)


@coded_group_norm.register_fake
def _(
    x: Tensor, packed: Tensor, stats: Tensor, scheme: str, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _, mean, rstd = _group_norm(x, groups, weight, bias, eps)
    return torch.empty_like(_of_group_norm(x)), mean, rstd


def _group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    samples, channels = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    y, mean, rstd = torch.ops.aten.native_group_norm.default(_of_group_norm(x), weight, bias, samples, channels, pixels, groups, eps)
    return y, mean, rstd


def _of_group_norm(x: Tensor) -> Tensor:
    """x in a memory format that torch's group_norm works on, which it makes of x itself."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and x.device.type == "cpu"
    return x if last else x.contiguous()


def _setup_group_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, packed, stats, scheme, groups, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.kept, ctx.groups = Kept(x, packed, stats, scheme, "coded_group_norm"), groups
    ctx.save_for_backward(weight, mean, rstd, *ctx.kept.tensors)


@once("fxsparse::coded_group_norm")
def _backward_group_norm(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    weight, mean, rstd, *code = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], weight is not None and ctx.needs_input_grad[5], ctx.needs_input_grad[6]]
    x = _of_group_norm(ctx.kept.restore(code))
    samples, channels = x.shape[:2]
    gx, gw, gb = torch.ops.aten.native_group_norm_backward.default(
        like(grad, x.stride()), x, mean, rstd, weight, samples, channels, math.prod(x.shape[2:]), ctx.groups, wanted
    )
    return gx if wanted[0] else None, None, None, None, None, gw if wanted[1] else None, gb if wanted[2] else None, None


coded_group_norm.register_autograd(_backward_group_norm, setup_context=_setup_group_norm)
cast_to_float32("coded_group_norm", only=("x", "weight", "bias"))


@operator()
def coded_batch_norm(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return torch's batch_norm of x, the mean and 1/sigma (of running statistics: variance) used, and what the running ones become."""
    running = [t.detach().clone() if t is not None else None for t in (running_mean, running_var)]
    cudnn: bool = torch.backends.cudnn.enabled
    use_batch = training or running_mean is None
    y, mean, invstd, *_ = torch._batch_norm_impl_index(x, weight, bias, running[0], running[1], use_batch, momentum, eps, cudnn)
    if not use_batch and running[0] is not None and running[1] is not None:
        mean, invstd = running[0].clone(), running[1].clone()
    first, second = (x.new_empty(0) if t is None else t for t in running)
    return y, mean, invstd, first, second


@coded_batch_norm.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, second = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (running_mean, running_var))
    dtype = x.dtype if weight is None else weight.dtype
    if not (training or running_mean is None) and running_mean is not None:
        dtype = running_mean.dtype
    mean = x.new_empty(x.shape[1], dtype=dtype)
    return torch.empty_like(x, memory_format=suggest_memory_format(x)), mean, torch.empty_like(mean), first, second


def _setup_batch_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, packed, stats, scheme, weight, _, running_mean, _, training, _, eps = inputs
    _, mean, invstd, *running = output
    ctx.mark_non_differentiable(mean, invstd, *running)
    ctx.set_materialize_grads(False)
    ctx.kept, ctx.facts = Kept(x, packed, stats, scheme, "coded_batch_norm"), (training or running_mean is None, eps)
    ctx.save_for_backward(weight, mean, invstd, *ctx.kept.tensors)


@once("fxsparse::coded_batch_norm")
def _backward_batch_norm(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    weight, mean, invstd, *code = ctx.saved_tensors
    use_batch, eps = ctx.facts
    wanted = [ctx.needs_input_grad[0], weight is not None and ctx.needs_input_grad[4], ctx.needs_input_grad[5]]
    x = ctx.kept.restore(code)
    if grad.numel() == 0:  # torch's kernel divides by the number of elements
        sums = (grad.new_zeros(grad.shape[1], dtype=mean.dtype) if needed else None for needed in wanted[1:])
        return grad if wanted[0] else None, None, None, None, *sums, *(None,) * 5
    used = (None, None, mean, invstd, True, eps) if use_batch else (mean, invstd, None, None, False, eps)
    gx, gw, gb = torch.ops.aten.native_batch_norm_backward.default(grad, x, weight, *used, wanted)
    return gx if wanted[0] else None, None, None, None, gw if wanted[1] else None, gb if wanted[2] else None, *(None,) * 5


coded_batch_norm.register_autograd(_backward_batch_norm, setup_context=_setup_batch_norm)
