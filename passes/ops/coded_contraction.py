"""Contractions that keep a code of their activation: fxsparse::coded_convolution, coded_linear and coded_matmul.

Each returns what torch's own operator returns, to the bit. An operand's code is an argument, since several operators may keep the
same one: `packed` and `stats` as fxsparse::quantize (or another) made them, and `scheme`, which says how to read them; "exact"
keeps the operand itself. Gradients for which an operand is needed use what its code stands for; they are linear in it, so that an
unbiased code gives unbiased gradients. The others are exact given the output's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_to_active_dtype
from .derivative import once, reduced_to
from .operator import operator
from .quantize import Kept


@operator()
def coded_convolution(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Return aten.convolution of x (N, C, *space) and weight; of x only the code is kept."""
    return _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


@coded_convolution.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    return _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    out: Tensor = torch.ops.aten.convolution.default(x, weight, bias, *geometry)
    return out


def _setup_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, stats, scheme, weight, _, *geometry = inputs
    ctx.kept = Kept(x, packed, stats, scheme, "coded_convolution")
    ctx.geometry = geometry
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *(ctx.kept.tensors if ctx.needs_input_grad[4] else ()))


@once("fxsparse::coded_convolution")
def _backward_convolution(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    weight, *code = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[index] for index in (0, 4, 5)]
    x = ctx.kept.restore(code) if code else ctx.kept.form.placeholder(grad)
    sizes = [grad.shape[1]] if wanted[2] else None
    gx, gw, gb = torch.ops.aten.convolution_backward.default(grad, x, weight, sizes, *ctx.geometry, wanted)
    return gx, None, None, None, gw, gb, *(None,) * 6


coded_convolution.register_autograd(_backward_convolution, setup_context=_setup_convolution)
cast_to_active_dtype("coded_convolution", only=("x", "weight", "bias"))


@operator()
def coded_linear(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    source: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Return x @ weight.T + bias; of x only the code is kept.

    With `mean` and `rstd`, x is the layer normalisation, with `norm_weight` and `norm_bias`, of `source`, whose code is kept. Of
    `source` itself only the order in memory is used.
    """
    return torch.nn.functional.linear(x, weight, bias)


@coded_linear.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    source: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, stats, scheme, source, mean, rstd, norm_weight, norm_bias, weight, _ = inputs
    ctx.kept = Kept(x, packed, stats, scheme, "coded_linear", source)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *((mean, rstd, norm_weight, norm_bias, *ctx.kept.tensors) if ctx.needs_input_grad[9] else ()))


@once("fxsparse::coded_linear")
def _backward_linear(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    weight, *rest = ctx.saved_tensors
    flat = grad.reshape(-1, weight.shape[0])
    gx = (flat @ weight).reshape(ctx.kept.form.shape) if ctx.needs_input_grad[0] else None
    gw = None
    if ctx.needs_input_grad[9]:
        x = ctx.kept.restore(rest[4:], *rest[:4])
        gw = flat.t() @ x.reshape(-1, weight.shape[1])
    gb = flat.sum(0) if ctx.needs_input_grad[10] else None
    return gx, *(None,) * 8, gw, gb


coded_linear.register_autograd(_backward_linear, setup_context=_setup_linear)
cast_to_active_dtype("coded_linear", only=("x", "weight", "bias"))


@operator()
def coded_matmul(
    a: Tensor, a_packed: Tensor, a_stats: Tensor, a_scheme: str, b: Tensor, b_packed: Tensor, b_stats: Tensor, b_scheme: str
) -> Tensor:
    """Return torch.matmul(a, b) for operands of two dimensions or more; of each only the code is kept."""
    return torch.matmul(a, b)


@coded_matmul.register_fake
def _(a: Tensor, a_packed: Tensor, a_stats: Tensor, a_scheme: str, b: Tensor, b_packed: Tensor, b_stats: Tensor, b_scheme: str) -> Tensor:
    return torch.matmul(a, b)


def _setup_pair(name: str) -> Any:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, a_packed, a_stats, a_scheme, b, b_packed, b_stats, b_scheme = inputs
        ctx.a, ctx.b = Kept(a, a_packed, a_stats, a_scheme, name), Kept(b, b_packed, b_stats, b_scheme, name)
        ctx.set_materialize_grads(False)
        first = ctx.a.tensors if ctx.needs_input_grad[4] else ()
        second = ctx.b.tensors if ctx.needs_input_grad[0] else ()
        ctx.split = len(first)
        ctx.save_for_backward(*first, *second)

    return setup


@once("fxsparse::coded_matmul")
def _backward_matmul(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    saved = ctx.saved_tensors
    ga = gb = None
    if ctx.needs_input_grad[0]:
        ga = reduced_to(grad @ ctx.b.restore(saved[ctx.split :]).mT, ctx.a.form.shape)
    if ctx.needs_input_grad[4]:
        gb = reduced_to(ctx.a.restore(saved[: ctx.split]).mT @ grad, ctx.b.form.shape)
    return ga, None, None, None, gb, None, None, None


coded_matmul.register_autograd(_backward_matmul, setup_context=_setup_pair("coded_matmul"))
cast_to_active_dtype("coded_matmul", only=("a", "b"))


@operator()
def coded_mul(
    a: Tensor, a_packed: Tensor, a_stats: Tensor, a_scheme: str, b: Tensor, b_packed: Tensor, b_stats: Tensor, b_scheme: str
) -> Tensor:
    """Return a * b, broadcast; of each only the code is kept."""
    return torch.mul(a, b)


@coded_mul.register_fake
def _(a: Tensor, a_packed: Tensor, a_stats: Tensor, a_scheme: str, b: Tensor, b_packed: Tensor, b_stats: Tensor, b_scheme: str) -> Tensor:
    return torch.mul(a, b)


@once("fxsparse::coded_mul")
def _backward_mul(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    saved = ctx.saved_tensors
    ga = gb = None
    if ctx.needs_input_grad[0]:
        ga = reduced_to(grad * ctx.b.restore(saved[ctx.split :]), ctx.a.form.shape).to(ctx.a.form.dtype)
    if ctx.needs_input_grad[4]:
        gb = reduced_to(grad * ctx.a.restore(saved[: ctx.split]), ctx.b.form.shape).to(ctx.b.form.dtype)
    return ga, None, None, None, gb, None, None, None


coded_mul.register_autograd(_backward_mul, setup_context=_setup_pair("coded_mul"))
