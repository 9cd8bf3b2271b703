"""fxsparse::innermost_max_pool, max pooling that keeps a maximum's place in its window in one byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import innermost as native
from ..kernels.library import kernels_for
from .codes.layout import as_innermost, empty_innermost, is_innermost
from .derivative import once
from .operator import operator

PLACES = 256  # in a window, that one byte can tell apart


@operator()
def innermost_max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows of x (N, C, H, W) as torch's max_pool2d finds them, and their places.

    Where x is float32, on the CPU and batch innermost, so are the maxima, and a place is a number in the window (uint8); else torch's own.
    """
    if not _is_native(x, kernel):
        return torch.ops.aten.max_pool2d_with_indices.default(x, kernel, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]
    kernels = kernels_for(x)
    assert kernels is not None
    y, places = _empty(x, kernel, stride, padding, dilation, ceil_mode)
    native.max_pool(kernels, x, [*kernel, *stride, *padding, *dilation], y, places)
    return y, places


def _is_native(x: Tensor, kernel: Sequence[int]) -> bool:
    fits = x.dtype == torch.float32 and is_innermost(x) and x.numel() > 0 and kernel[0] * kernel[1] <= PLACES
    return fits and kernels_for(x) is not None


def _empty(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    shape = torch.ops.aten.max_pool2d_with_indices.default(x.detach().to("meta"), *window)[0].shape
    places = empty_innermost(x, shape)
    return places, torch.empty_like(places, dtype=torch.uint8)


@innermost_max_pool.register_fake
def _(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    window = (kernel, stride, padding, dilation, ceil_mode)
    found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices.default(x, *window)
    if not _is_native(x, kernel):
        return found
    y = empty_innermost(x, found[0].shape)
    return y, torch.empty_like(y, dtype=torch.uint8)


@operator()
def innermost_max_pool_backward(
    grad: Tensor,
    x: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    shape: Sequence[int],
) -> Tensor:
    """Return the gradient of fxsparse::innermost_max_pool, of `shape`; x is empty where the places are native ones."""
    window = (kernel, stride, padding, dilation, ceil_mode)
    if places.dtype != torch.uint8:
        return torch.ops.aten.max_pool2d_with_indices_backward.default(grad, x, *window, places)  # type: ignore[no-any-return]
    kernels = kernels_for(grad)
    assert kernels is not None
    out = kernels.empty_innermost(shape)
    native.max_pool_backward(kernels, as_innermost(grad), places, [*kernel, *stride, *padding, *dilation], out)
    return out


@innermost_max_pool_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    shape: Sequence[int],
) -> Tensor:
    if places.dtype != torch.uint8:
        window = (kernel, stride, padding, dilation, ceil_mode)
        return torch.ops.aten.max_pool2d_with_indices_backward.default(grad, x, *window, places)  # type: ignore[no-any-return]
    return empty_innermost(grad, shape)


innermost_max_pool_backward.without_derivative()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.shape = x.shape
    ctx.save_for_backward(x.new_empty(0) if output[1].dtype == torch.uint8 else x, output[1])


@once("fxsparse::innermost_max_pool")
def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return (innermost_max_pool_backward(grad, *ctx.saved_tensors, *ctx.window, ctx.shape), *(None,) * 5)


innermost_max_pool.register_autograd(_backward, setup_context=_setup)
