"""fxsparse::coded_softmax and coded_attention: softmax keeps a code of its output, attention keeps codes of q, k, v and its output.

Attention's gradient is linear in v and in the output, which have the bits that were asked for, rounded without bias. q and k go
through an exponential, which turns any noise into a bias of half its variance; they are kept in eight bits, where that is a
ten-thousandth, at most.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from .autocast import cast_to_active_dtype, cast_to_float32
from .codes import masks
from .codes.layout import dense, in_memory_order
from .codes.scheme import of_range
from .derivative import once, reduced_to
from .operator import operator
from .quantize import Form, encode, encoded_like

aten = torch.ops.aten
EXPONENT_BITS = 8


@operator()
def coded_softmax(x: Tensor, dim: int, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return torch's softmax of x along `dim`, and its code, of_range(bits, group_size), which is all that is kept."""
    y = torch.softmax(x, dim)
    return y, *encode(y, clock, bits, group_size, seed, wanted)


@coded_softmax.register_fake
def _(x: Tensor, dim: int, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.softmax(x, dim)
    return y, *encoded_like(y, bits, group_size, wanted)


def _setup_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, dim, _, bits, group_size, _, _ = inputs
    y, packed, stats = output
    ctx.mark_non_differentiable(packed, stats)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.scheme, ctx.dim = Form(y), of_range(bits, group_size), dim
    ctx.save_for_backward(packed, stats)


@once("fxsparse::coded_softmax")
def _backward_softmax(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    y = ctx.form.restore(*ctx.saved_tensors, ctx.scheme)
    return aten._softmax_backward_data.default(grad, y, ctx.dim, y.dtype), *(None,) * 6


coded_softmax.register_autograd(_backward_softmax, setup_context=_setup_softmax)
cast_to_float32("coded_softmax", only=("x",))


@operator()
def coded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    causal: bool,
    scale: float,
    clock: Tensor,
    bits: int,
    group_size: int,
    seed: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return torch's scaled_dot_product_attention of q, k, v (..., heads, length, width), and what is kept of it.

    These are packed codes and statistics of q, k (8 bits), v and the output (`bits` bits); the logarithm of each row's sum, where
    torch's kernel for the CPU gives it, else nothing; and with dropout (0 < p < 1) one bit for each weight that was kept.
    """
    out, logsumexp, dropped = _attend(q, k, v, mask, p, causal, scale)
    kept = masks.encode(in_memory_order(dense(dropped != 0))) if dropped is not None and wanted else q.new_empty(0, dtype=torch.uint8)
    codes: list[Tensor] = []
    for index, (tensor, width) in enumerate(((q, EXPONENT_BITS), (k, EXPONENT_BITS), (v, bits), (out, bits))):
        codes += encode(tensor, clock, width, group_size, seed if seed < 0 else seed + index, wanted)
    rows = logsumexp if wanted else q.new_empty(0, dtype=torch.float32)
    return out, *codes, rows, kept  # type: ignore[return-value]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    nothing = q.new_empty(0, dtype=torch.float32)
    if p > 0:
        out, dropped = aten._scaled_dot_product_attention_math.default(q, k, v, mask, p, causal, None, scale=scale)
        return out, nothing, dropped
    if _is_flash_on_cpu(q, k, v, mask, causal, scale):
        added = mask if mask is None or mask.dtype != torch.bool else _additive(mask, q)
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal, attn_mask=added, scale=scale)
        return out, logsumexp, None
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale), nothing, None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -math.inf)


def _is_flash_on_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> bool:
    if q.device.type != "cpu":
        return False
    chosen = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal, scale=scale)
    return bool(chosen == SDPBackend.FLASH_ATTENTION.value)


def _fake_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """What torch's own choice comes to; it cannot be asked about tensors without values."""
    fits = all(x.dim() == 4 and x.stride(-1) == 1 and x.shape[-1] == q.shape[-1] for x in (q, k, v))
    return q.device.type == "cpu" and fits and (mask is None or not mask.requires_grad)


@coded_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    causal: bool,
    scale: float,
    clock: Tensor,
    bits: int,
    group_size: int,
    seed: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    flash = p == 0 and _fake_flash(q, k, v, mask)
    if flash:
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal, attn_mask=None, scale=scale)
    else:
        out, _ = aten._scaled_dot_product_attention_math.default(q, k, v, mask, 0.0, causal, None, scale=scale)
        logsumexp = q.new_empty(0, dtype=torch.float32)
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])  # type: ignore[no-untyped-call]
    weights = math.prod(lead) * q.shape[-2] * k.shape[-2]
    kept = q.new_empty(masks.packed_size(weights) if p > 0 and wanted else 0, dtype=torch.uint8)
    codes: list[Tensor] = []
    for tensor, width in ((q, EXPONENT_BITS), (k, EXPONENT_BITS), (v, bits), (out, bits)):
        codes += encoded_like(tensor, width, group_size, wanted)
    return out, *codes, logsumexp if wanted else q.new_empty(0, dtype=torch.float32), kept


def _setup_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, mask, p, causal, scale, _, bits, group_size, _, _ = inputs
    out, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.forms = tuple(Form(tensor) for tensor in (q, k, v, out))
    ctx.schemes = (*(of_range(EXPONENT_BITS, group_size),) * 2, *(of_range(bits, group_size),) * 2)
    ctx.facts = (p, causal, scale)
    ctx.save_for_backward(mask, *kept)


@once("fxsparse::coded_attention")
def _backward_attention(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    mask, *codes, logsumexp, kept = ctx.saved_tensors
    p, causal, scale = ctx.facts
    q, k, v, out = (form.restore(codes[2 * i], codes[2 * i + 1], ctx.schemes[i]) for i, form in enumerate(ctx.forms))
    if logsumexp.numel():
        added = mask if mask is None or mask.dtype != torch.bool else _additive(mask, q)
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        gq, gk, gv = backward(grad, q, k, v, out, logsumexp, 0.0, causal, attn_mask=added, scale=scale)
        return gq, gk, gv, None, *(None,) * 8
    gq, gk, gv, gm = _gradients(grad, q, k, v, out, mask, kept, p, causal, scale)
    return gq, gk, gv, gm if ctx.needs_input_grad[3] else None, *(None,) * 8


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, mask: Tensor | None, kept: Tensor, p: float, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The definition's gradients. The sum over a row of weights times their gradients is that of the output times its gradient."""
    scores = (q @ k.mT) * scale
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill_(ahead, -math.inf)
    elif mask is not None:
        scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    gw = grad @ v.mT
    if p > 0:
        passed = torch.ops.fxsparse.kept_scale(kept, list(weights.shape), list(weights.stride()), weights.dtype, p)
        gv = (weights * passed).mT @ grad
        gw = gw.mul_(passed)
    else:
        gv = weights.mT @ grad
    gs = gw.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
    gm = reduced_to(gs, mask.shape) if mask is not None and mask.is_floating_point() else None
    gq, gk = (gs @ k).mul_(scale), (gs.mT @ q).mul_(scale)
    return reduced_to(gq, q.shape), reduced_to(gk, k.shape), reduced_to(gv, v.shape), gm


coded_attention.register_autograd(_backward_attention, setup_context=_setup_attention)
cast_to_active_dtype("coded_attention", only=("q", "k", "v", "mask"))
