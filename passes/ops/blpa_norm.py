"""fxsparse::blpa_norm, batch normalisation and what follows it, of which a few-bit code of the normalised value is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import norm as native
from ..kernels.library import kernels_for
from .codes import channels as rows
from .codes import masks
from .codes.layout import by_channel, dense_strides, is_dense
from .codes.pieces import Pieces
from .codes.room import give_back_free_pages
from .derivative import like, once
from .normalise import ACTIVATIONS, DERIVATIVES, Forward, Norm, packed_size
from .operator import operator


@operator()
def blpa_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    bits: int,
    wanted: bool,
    settle: bool = False,
    reference: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y, packed, stats, mask, new_mean, new_var.

    y is `activation` ("none", "relu", "relu6", "hardswish", "silu") of torch's batch_norm of x (N, C, *), to the bit. `packed`
    (uint8) holds a code of `bits` bits for each element, `stats` (float32) what reads it: the scheme is of_norm(bits, activation).
    `mask` has one bit for each element where z lies inside ReLU6's range, else nothing. `new_mean` and `new_var` are what the
    running statistics become; the operator writes to none of its inputs. Not `wanted`: empty codes. To `settle` is to give free
    pages of the heap back to the system in backward, before the code is read. `reference`: without native kernels.

    The gradients are those of BLPA: exact for `bias` and for what passes a ReLU or ReLU6, approximate for `weight` and x, whose
    normalised value comes from the code. After Hardswish and SiLU the derivative is taken at the code's value.

    Source: Chakrabarti & Moseley, NeurIPS 2019, arXiv 1901.07988, section 3; see codes/channels.py for the grid.
    """
    mean, var = (t.detach().clone() if t is not None else x.new_empty(0) for t in (running_mean, running_var))
    running = [mean, var]
    norm, nothing = Norm(training, momentum, eps), x.new_empty(0, dtype=torch.uint8)
    if not wanted or x.numel() == 0:
        z, *_ = norm(x, weight, bias, *(item if item.numel() else None for item in running))
        return ACTIVATIONS[activation](z), nothing, x.new_empty((rows.ROWS, 0), dtype=torch.float32), nothing.clone(), mean, var
    kernels = None if reference or not is_dense(x) else kernels_for(x)
    work = Forward(x, (weight, bias), running, norm, activation, bits, kernels)
    return work.y, work.packed, work.stats, work.mask(), mean, var


@blpa_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    bits: int,
    wanted: bool,
    settle: bool = False,
    reference: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    running = [t.new_empty(t.shape) if t is not None else x.new_empty(0) for t in (running_mean, running_var)]
    y = x.new_empty_strided(x.shape, dense_strides(x.shape, x.stride()))
    size = packed_size(x, bits) if wanted else 0
    inside = masks.packed_size(x.numel()) if wanted and activation == "relu6" else 0
    stats = x.new_empty((rows.ROWS, x.shape[1] if wanted else 0), dtype=torch.float32)
    return y, x.new_empty(size, dtype=torch.uint8), stats, x.new_empty(inside, dtype=torch.uint8), running[0], running[1]


@operator()
def blpa_norm_backward(
    grad: Tensor,
    packed: Tensor,
    stats: Tensor,
    mask: Tensor,
    strides: Sequence[int],
    training: bool,
    activation: str,
    bits: int,
    settle: bool = False,
    reference: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias (the last two float32) of fxsparse::blpa_norm; `strides` are those of its y."""
    if settle:
        give_back_free_pages(packed)
    grad = like(grad, strides)
    if grad.numel() == 0:
        return torch.empty_like(grad), stats.new_zeros(grad.shape[1]), stats.new_zeros(grad.shape[1])
    kernels = None if reference or activation == "silu" else kernels_for(grad)
    if kernels is not None:
        return native.backward(kernels, grad, packed, stats, mask, training, activation, bits)
    out = torch.empty_like(grad)
    source, target = by_channel(grad), by_channel(out)
    pieces = Pieces(grad, source.shape, bits, all_samples=True)
    source, target = pieces.split(source), pieces.split(target)
    inside = pieces.split(masks.decode(mask, grad.numel()).view(by_channel(grad).shape)) if activation == "relu6" else None
    found = []
    for piece in pieces:
        g = pieces.of(source, piece)
        g = g.reshape(g.shape[0], -1, pieces.pixels).contiguous()
        picked = pieces.columns(stats, piece)
        q = pieces.load(pieces.bytes_of(packed, piece)).to(grad.dtype)
        if inside is not None:
            g = torch.ops.aten.threshold_backward.default(g, pieces.of(inside, piece).reshape(g.shape).to(grad.dtype), 0)
        elif activation == "relu":
            g = torch.ops.aten.threshold_backward.default(g, q - picked[rows.FIRST].to(grad.dtype), 0)
        elif activation != "none":
            z = q.to(torch.float32, copy=True).mul_(picked[rows.SLOPE]).add_(picked[rows.OFFSET])
            g = DERIVATIVES[activation](g, z.to(grad.dtype))
        into = pieces.of(target, piece)
        gx, *sums = _norm_backward(g, q, [item.flatten() for item in picked], training)
        into.copy_(gx.view(into.shape))
        found.append(sums)
    grad_weight, grad_bias = (pieces.joined(list(parts)) for parts in zip(*found, strict=True))
    return out, grad_weight, grad_bias


def _norm_backward(g: Tensor, q: Tensor, stats: list[Tensor], training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own rule, for the code itself as input: a mean and a sigma that turn it into the normalised value, and the gain that remains.

    With batch statistics: (g - mean(g) - xh * mean(g * xh)) * gain, xh = (q - center) * step. Sums of a channel whose 1/sigma is NaN are.
    """
    center, step, unknown = stats[rows.CENTER], stats[rows.STEP], stats[rows.INVSTD] * 0
    backward = torch.ops.aten.native_batch_norm_backward.default
    wanted = [True, True, True]
    if training:
        gx, gw, gb = backward(g, q, stats[rows.GAIN] / step, None, None, center, step, True, 0.0, wanted)
        return gx, gw + unknown, gb + unknown
    size = step.abs()
    gx, gw, gb = backward(g, q, stats[rows.GAIN] / size, center, size.pow(-2), None, None, False, 0.0, wanted)
    return gx, gw * step.sign() + unknown, gb + unknown


@blpa_norm_backward.register_fake
def _(
    grad: Tensor,
    packed: Tensor,
    stats: Tensor,
    mask: Tensor,
    strides: Sequence[int],
    training: bool,
    activation: str,
    bits: int,
    settle: bool = False,
    reference: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    out = grad.new_empty_strided(grad.shape, list(strides))
    return out, stats.new_empty(grad.shape[1]), stats.new_empty(grad.shape[1])


blpa_norm_backward.without_derivative()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, bias, running_mean, _, training, _, _, activation, bits, wanted, settle, reference = inputs
    y, packed, stats, mask, new_mean, new_var = output
    if not wanted:
        raise RuntimeError("blpa_norm was told that no gradient is wanted, but one is recorded; pass torch.is_grad_enabled()")
    ctx.mark_non_differentiable(packed, stats, mask, new_mean, new_var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(packed, stats, mask)
    ctx.strides = y.stride()
    ctx.facts = (training or running_mean is None, activation, bits, settle, reference)
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))


@once("fxsparse::blpa_norm")
def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 13
    packed, stats, mask = ctx.saved_tensors
    gx, gw, gb = torch.ops.fxsparse.blpa_norm_backward(grad, packed, stats, mask, ctx.strides, *ctx.facts)
    weight, bias = ctx.dtypes
    return (
        gx if ctx.needs_input_grad[0] else None,
        gw.to(weight) if weight is not None and ctx.needs_input_grad[1] else None,
        gb.to(bias) if bias is not None and ctx.needs_input_grad[2] else None,
        *(None,) * 10,
    )


blpa_norm.register_autograd(_backward, setup_context=_setup)
