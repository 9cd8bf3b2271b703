"""fxsparse::reorder, the same tensor in another memory order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import innermost as native
from ..kernels.library import kernels_for
from .codes.layout import empty_innermost, is_innermost
from .operator import operator

INNERMOST, CONTIGUOUS, CHANNELS_LAST = "innermost", "contiguous", "channels_last"


@operator()
def reorder(x: Tensor, order: str) -> Tensor:
    """Return a copy of x (N, C, H, W) whose memory order is "innermost" (C, H, W, N), "contiguous" or "channels_last".

    Its gradient comes back in x's own order. Raises: ValueError for another order.
    """
    kernels = kernels_for(x) if x.dtype == torch.float32 and x.numel() else None
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    source = order_of(x)
    out = kernels.empty_innermost(x.shape) if kernels is not None and order == INNERMOST else empty_in(x, order)
    if kernels is None or source is None or (source == INNERMOST) == (order == INNERMOST):
        return out.copy_(x)
    inwards = order == INNERMOST
    other = source if inwards else order
    outer, columns = (n, channels) if inwards else (channels, n)
    if other == CHANNELS_LAST:
        native.swap_outer(kernels, x, outer, pixels, columns, out)
    else:
        size = channels * pixels
        native.swap_outer(kernels, x, n if inwards else size, 1, size if inwards else n, out)
    return out


@reorder.register_fake
def _(x: Tensor, order: str) -> Tensor:
    return empty_in(x, order)


def empty_in(x: Tensor, order: str) -> Tensor:
    """A new tensor of x's shape and dtype in a memory order.

    Raises: ValueError if it is none.
    """
    if order == INNERMOST:
        return empty_innermost(x, x.shape)
    if order not in (CONTIGUOUS, CHANNELS_LAST):
        raise ValueError(f"{order!r} is no memory order; there are 'innermost', 'contiguous' and 'channels_last'")
    return torch.empty_like(x, memory_format=torch.channels_last if order == CHANNELS_LAST else torch.contiguous_format)


def order_of(x: Tensor) -> str | None:
    """The memory order of a tensor of four dimensions; None if it is none of these."""
    if is_innermost(x):
        return INNERMOST
    if x.is_contiguous():
        return CONTIGUOUS
    return CHANNELS_LAST if x.is_contiguous(memory_format=torch.channels_last) else None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.order = order_of(inputs[0]) or CONTIGUOUS


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.fxsparse.reorder.default(grad, ctx.order), None


reorder.register_autograd(_backward, setup_context=_setup)
