"""fxsparse::masked_weight, a weight with zeros where its mask is false, whose gradient is masked except on the steps that grow."""

from typing import Any

import torch
from torch import Tensor

from .operator import operator

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART = 1 << 18


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return a new tensor, ``x`` where ``mask``, 0 elsewhere, whatever x holds there.

    On the CPU the bits of x are multiplied by 0 or 1, which takes a third of the time of torch.where.
    """
    if x.device.type != "cpu" or not _is_plain(x, mask):
        return torch.where(mask, x, 0)
    out = torch.empty_like(x)
    for part, bits, kept in zip(_parts(out), _parts(x), _parts(mask), strict=True):
        torch.mul(bits, kept, out=part)
    return out


def mask_(x: Tensor, mask: Tensor) -> Tensor:
    """Put ``x`` to 0 where ``mask`` is false, in place, and return it."""
    if x.device.type != "cpu" or not _is_plain(x, mask):
        return x.masked_fill_(~mask, 0)
    for bits, kept in zip(_parts(x), _parts(mask), strict=True):
        bits.mul_(kept)
    return x


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The bits of a tensor as integers, in the order of its memory, in parts: so a mask is widened where a cache still holds it."""
    bits = x.detach().view(_INTEGERS[x.element_size()])
    return (bits,) if bits.numel() <= _PART else torch.split(bits.as_strided((bits.numel(),), (1,)), _PART)


def _is_plain(x: Tensor, mask: Tensor) -> bool:
    return x.stride() == mask.stride() and x.is_floating_point() and x.element_size() in _INTEGERS and _is_dense(x)


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor fills the memory from its first element to its last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


@operator()
def masked_weight(weight: Tensor, mask: Tensor, growing: Tensor, straight_through: bool, decay: float) -> Tensor:
    """Return ``weight`` where ``mask``, 0 elsewhere: a new tensor of the weight's shape, dtype and memory format.

    ``mask`` is bool of the weight's shape. ``growing`` is a 0-dim bool CPU tensor, read by the backward pass: while it is false, the
    gradient is 0 where the mask is; while it is true, all of it passes, and the optimizer's hooks take what the masked weights must
    not get. ``straight_through``: all of it passes always, plus ``decay`` times the masked weights, which decays them.

    Source: the gradients are those of RigL, Evci et al. 2020, arXiv 1911.11134; ``decay`` is lambda_w of SR-STE, Zhou et al. 2021,
    arXiv 2102.04010, equation 7.
    """
    return masked(weight, mask)


@masked_weight.register_fake
def _(weight: Tensor, mask: Tensor, growing: Tensor, straight_through: bool, decay: float) -> Tensor:
    return torch.where(mask, weight, 0)


@operator()
def mask_gradient(grad: Tensor, mask: Tensor, growing: Tensor) -> Tensor:
    """Return ``grad`` where ``mask``, 0 elsewhere; all of it while ``growing``, a 0-dim bool CPU tensor, is true. Always a new tensor."""
    return grad.clone() if bool(growing.item()) else masked(grad, mask)


@mask_gradient.register_fake
def _(grad: Tensor, mask: Tensor, growing: Tensor) -> Tensor:
    return torch.where(mask, grad, 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, mask, growing, straight_through, decay = inputs
    ctx.set_materialize_grads(False)
    ctx.straight_through, ctx.decay = straight_through, decay
    if straight_through:
        ctx.save_for_backward(*((weight, mask) if decay else ()))
    else:
        ctx.save_for_backward(mask, growing)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None
    if not ctx.straight_through:
        mask, growing = ctx.saved_tensors
        grad = mask_gradient(grad, mask, growing)
    elif ctx.decay:
        weight, mask = ctx.saved_tensors
        grad = grad + ctx.decay * torch.where(mask, 0, weight)
    return grad, None, None, None, None


masked_weight.register_autograd(_backward, setup_context=_setup)


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_of_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return mask_gradient(grad, *ctx.saved_tensors), None, None


mask_gradient.register_autograd(_backward_of_gradient, setup_context=_setup_gradient)
