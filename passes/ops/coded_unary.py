"""Functions of one tensor: a code of their derivative, one bit where the derivative has two values, or their output's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import groups, masks
from .codes.groups import Rounding
from .codes.layout import dense, in_memory_order
from .codes.scheme import of_positive, of_range
from .derivative import like, once
from .operator import operator
from .quantize import Form, encode, encoded_like

aten = torch.ops.aten


def _ones(x: Tensor) -> Tensor:
    return torch.ones_like(x)


# name: the function, its derivative from its input
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gelu": (F.gelu, lambda x: aten.gelu_backward.default(_ones(x), x)),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: aten.gelu_backward.default(_ones(x), x, approximate="tanh")),
    "silu": (F.silu, lambda x: aten.silu_backward.default(_ones(x), x)),
    "hardswish": (F.hardswish, lambda x: aten.hardswish_backward.default(_ones(x), x)),
    "mish": (F.mish, lambda x: aten.mish_backward.default(_ones(x), x)),
    "sigmoid": (torch.sigmoid, lambda x: aten.sigmoid_backward.default(_ones(x), x.sigmoid())),
    "tanh": (torch.tanh, lambda x: aten.tanh_backward.default(_ones(x), x.tanh())),
    "softplus": (F.softplus, lambda x: aten.softplus_backward.default(_ones(x), x, 1.0, 20.0)),
    "elu": (F.elu, lambda x: aten.elu_backward.default(_ones(x), 1.0, 1.0, 1.0, False, x)),
    "exp": (torch.exp, torch.exp),
    "sqrt": (torch.sqrt, lambda x: x.sqrt().reciprocal().mul_(0.5)),
    "rsqrt": (torch.rsqrt, lambda x: x.pow(-1.5).mul_(-0.5)),
    "square": (lambda x: x.pow(2), lambda x: x * 2),
    "cube": (lambda x: x.pow(3), lambda x: (x * x).mul_(3)),
}


@operator()
def coded_function(
    x: Tensor, name: str, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the function `name` of x, and the code of its derivative (of_range(bits, group_size), as fxsparse::quantize makes it).

    The gradient is the output's times what the code stands for: unbiased with stochastic rounding, since the derivative itself is
    coded, not x.
    """
    function, derivative = FUNCTIONS[name]
    return function(x), *encode(x, clock, bits, group_size, seed, wanted, derivative)


@coded_function.register_fake
def _(x: Tensor, name: str, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *encoded_like(x, bits, group_size, wanted)


def _setup_function(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, bits, group_size, _, _ = inputs
    _, packed, stats = output
    ctx.mark_non_differentiable(packed, stats)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.scheme = Form(x), of_range(bits, group_size)
    ctx.save_for_backward(packed, stats)


@once("fxsparse::coded_function")
def _backward_function(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return ctx.form.restore(*ctx.saved_tensors, ctx.scheme).mul_(grad), *(None,) * 6


coded_function.register_autograd(_backward_function, setup_context=_setup_function)


@operator()
def masked_function(x: Tensor, name: str, low: float, high: float, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return a function whose derivative has two values, and one bit for each element that says which.

    "relu" (low, high unused), "hardtanh" (bounds low and high), "leaky_relu" (slope `low` below 0), "hardsigmoid".
    """
    if name == "relu":
        y = torch.relu(x)
        inside = y > 0
    elif name == "hardtanh":
        y = F.hardtanh(x, low, high)
        inside = (x > low) & (x < high)
    elif name == "leaky_relu":
        y, inside = F.leaky_relu(x, low), x > 0
    elif name == "hardsigmoid":
        y, inside = F.hardsigmoid(x), (x > -3) & (x < 3)
    else:
        raise ValueError(f"masked_function has no {name!r}")
    if not wanted:
        return y, x.new_empty(0, dtype=torch.uint8)
    inside.logical_or_(x.isnan())
    return y, masks.encode(in_memory_order(dense(inside)))


@masked_function.register_fake
def _(x: Tensor, name: str, low: float, high: float, wanted: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(masks.packed_size(x.numel()) if wanted else 0, dtype=torch.uint8)


def _setup_masked(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, name, low, _, _ = inputs
    _, packed = output
    ctx.mark_non_differentiable(packed)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.slopes = Form(x), {"leaky_relu": (low, 1.0), "hardsigmoid": (0.0, 1 / 6)}.get(name, (0.0, 1.0))
    ctx.save_for_backward(packed)


@once("fxsparse::masked_function")
def _backward_masked(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    outside, inside = ctx.slopes
    return torch.ops.fxsparse.masked_gradient(grad, *ctx.saved_tensors, ctx.form.strides, outside, inside), *(None,) * 4


masked_function.register_autograd(_backward_masked, setup_context=_setup_masked)


@operator()
def masked_gradient(grad: Tensor, packed: Tensor, strides: list[int], outside: float, inside: float) -> Tensor:
    """Return `grad` times `inside` where the mask's bit is set, times `outside` elsewhere (0 drops even NaN), with these strides."""
    grad = like(grad, strides)
    mask = masks.decode(packed, grad.numel()).view(torch.bool)
    flat = in_memory_order(grad)
    kept = flat if inside == 1 else flat * inside
    found = torch.where(mask, kept, torch.zeros((), dtype=grad.dtype, device=grad.device) if outside == 0 else flat * outside)
    return found.as_strided(grad.shape, strides)


@masked_gradient.register_fake
def _(grad: Tensor, packed: Tensor, strides: list[int], outside: float, inside: float) -> Tensor:
    return grad.new_empty_strided(grad.shape, strides)


masked_gradient.without_derivative()


@operator()
def positive_relu(x: Tensor, bits: int, group_size: int, wanted: bool, reference: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return relu(x) and its code, of_positive(bits, group_size): 0 exactly where it is 0, so that the code is the mask as well."""
    y = torch.relu(x)
    if not wanted or x.numel() == 0:
        return y, x.new_empty(0, dtype=torch.uint8), x.new_empty((1, 0), dtype=torch.float32)
    return y, *groups.encode(in_memory_order(dense(y)), group_size, bits, True, Rounding(), None, reference)


@positive_relu.register_fake
def _(x: Tensor, bits: int, group_size: int, wanted: bool, reference: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *encoded_like(x, bits, group_size, wanted, positive=True)


def _setup_positive(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, bits, group_size, _, reference = inputs
    y, packed, stats = output
    ctx.mark_non_differentiable(packed, stats)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.scheme, ctx.facts = Form(y), of_positive(bits, group_size), (group_size, bits, reference)
    ctx.save_for_backward(packed, stats)


@once("fxsparse::positive_relu")
def _backward_positive(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    packed, stats = ctx.saved_tensors
    return torch.ops.fxsparse.positive_gradient(grad, packed, stats, ctx.form.strides, *ctx.facts), *(None,) * 4


positive_relu.register_autograd(_backward_positive, setup_context=_setup_positive)


@operator()
def positive_gradient(
    grad: Tensor, packed: Tensor, stats: Tensor, strides: list[int], group_size: int, bits: int, reference: bool = False
) -> Tensor:
    """Return `grad` where the code of fxsparse::positive_relu is not 0, 0 elsewhere, with these strides."""
    grad = like(grad, strides)
    out = torch.empty_like(grad)
    groups.where_positive(packed, stats, group_size, bits, in_memory_order(grad), in_memory_order(out), reference)
    return out


@positive_gradient.register_fake
def _(grad: Tensor, packed: Tensor, stats: Tensor, strides: list[int], group_size: int, bits: int, reference: bool = False) -> Tensor:
    return grad.new_empty_strided(grad.shape, strides)


positive_gradient.without_derivative()


@operator()
def quantize_positive(x: Tensor, bits: int, group_size: int, wanted: bool, reference: bool = False) -> tuple[Tensor, Tensor]:
    """Return the code, of_positive(bits, group_size), of a tensor without negative numbers; as fxsparse::quantize otherwise."""
    if not wanted or x.numel() == 0:
        return x.new_empty(0, dtype=torch.uint8), x.new_empty((1, 0), dtype=torch.float32)
    return groups.encode(in_memory_order(dense(x.detach())), group_size, bits, True, Rounding(), None, reference)


@quantize_positive.register_fake
def _(x: Tensor, bits: int, group_size: int, wanted: bool, reference: bool = False) -> tuple[Tensor, Tensor]:
    return encoded_like(x, bits, group_size, wanted, positive=True)


quantize_positive.without_derivative()


@operator()
def masked_dropout(x: Tensor, p: float, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return torch's dropout of x in training, 0 < p < 1, with its random numbers, and one bit for each element: whether it was kept."""
    if x.device.type == "cpu":
        noise = torch.empty_like(x).bernoulli_(1 - p)
        kept = noise != 0
        y = x * noise.div_(1 - p)
    else:
        y, kept = torch.ops.aten.native_dropout.default(x, p, True)
    if not wanted:
        return y, x.new_empty(0, dtype=torch.uint8)
    return y, masks.encode(in_memory_order(dense(kept)))


@masked_dropout.register_fake
def _(x: Tensor, p: float, wanted: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(masks.packed_size(x.numel()) if wanted else 0, dtype=torch.uint8)


def _setup_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, p, _ = inputs
    _, packed = output
    ctx.mark_non_differentiable(packed)
    ctx.set_materialize_grads(False)
    ctx.form, ctx.p = Form(x), p
    ctx.save_for_backward(packed)


@once("fxsparse::masked_dropout")
def _backward_dropout(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    scale = torch.ops.fxsparse.kept_scale(*ctx.saved_tensors, ctx.form.shape, ctx.form.strides, ctx.form.dtype, ctx.p)
    return scale.mul_(grad), None, None


masked_dropout.register_autograd(_backward_dropout, setup_context=_setup_dropout)


@operator()
def kept_scale(packed: Tensor, shape: list[int], strides: list[int], dtype: torch.dtype, p: float) -> Tensor:
    """Return the number that dropout multiplied each element by: 0 or 1/(1-p)."""
    out = torch.empty_strided(shape, strides, dtype=dtype, device=packed.device)
    in_memory_order(out).copy_(masks.decode(packed, out.numel()))
    return out.div_(1 - p)


@kept_scale.register_fake
def _(packed: Tensor, shape: list[int], strides: list[int], dtype: torch.dtype, p: float) -> Tensor:
    return packed.new_empty_strided(shape, strides, dtype=dtype)


kept_scale.without_derivative()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout, of which one bit for each element is kept instead of a float."""
    if not training or not 0 < p < 1:
        return F.dropout(x, p, training)
    y: Tensor = torch.ops.fxsparse.masked_dropout(x, p, torch.is_grad_enabled())[0]
    return y
