"""Norms, max pooling and changes of memory order by native kernels, for float32 tensors that are batch innermost."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .library import Library

PLANE, TILE = 128, 1024  # bytes of the mask of a tile, and its elements; innermost.h says the same


def mask_bytes(channels: int, length: int) -> int:
    """The size of the mask that ``norm`` makes."""
    return channels * -(-length // TILE) * PLANE


def norm(
    kernels: Library,
    x: Tensor,
    added: Tensor | None,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    settings: tuple[bool, bool, float, float],
    y: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Store relu(batch_norm(x) + added) in `y`, and where it is positive in `mask`. Return mean and 1/sigma of each channel.

    x, `added` and y are batch innermost; the running statistics are moved. Settings: training, whether there is a ReLU, momentum, eps.
    """
    channels = x.shape[1]
    mean, invstd = x.new_empty(channels), x.new_empty(channels)
    length = x.numel() // max(channels, 1)
    given = [_address(item) for item in (added, *affine, *running)]
    kernels.call("channel_norm", torch.float32, x, *given, channels, length, *settings, y, _address(mask), mean, invstd)
    return mean, invstd


def norm_backward(
    kernels: Library,
    grad: Tensor,
    x: Tensor,
    mask: Tensor | None,
    affine: tuple[Tensor | None, Tensor | None],
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    relu: bool,
    with_added: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, of what was added (None if not asked for), of weight and of bias."""
    channels = x.shape[1]
    out, added = kernels.empty_innermost(x.shape), kernels.empty_innermost(x.shape) if with_added else None
    weight, bias = mean.new_empty(channels), mean.new_empty(channels)
    tables = [_address(item) for item in (mask, *affine)]
    length = x.numel() // max(channels, 1)
    results = (out, _address(added), weight, bias)
    kernels.call("channel_norm_backward", torch.float32, grad, x, *tables, mean, invstd, channels, length, training, relu, *results)
    return out, added, weight, bias


def max_pool(kernels: Library, x: Tensor, window: Sequence[int], y: Tensor, places: Tensor) -> None:
    """Store the maxima of windows in `y`, and their places in `places` (uint8, y's size). Window: sizes, strides, padding, dilation."""
    n, channels, height, width = x.shape
    sizes = (channels, height, width, n, y.shape[2], y.shape[3])
    kernels.call("innermost_max_pool", torch.float32, x, *sizes, (ctypes.c_int64 * 8)(*window), y, places)


def max_pool_backward(kernels: Library, grad: Tensor, places: Tensor, window: Sequence[int], out: Tensor) -> None:
    """Store the gradient of x in `out`."""
    n, channels, height, width = out.shape
    sizes = (channels, height, width, n, grad.shape[2], grad.shape[3])
    kernels.call("innermost_max_pool_backward", torch.float32, grad, places, *sizes, (ctypes.c_int64 * 8)(*window), out)


def swap_outer(kernels: Library, x: Tensor, rows: int, middle: int, columns: int, out: Tensor) -> None:
    """Store x, (rows, middle, columns) in memory, in `out` as (columns, middle, rows)."""
    kernels.call("swap_outer", torch.float32, x, rows, middle, columns, out)


def _address(item: Tensor | None) -> int | None:
    return None if item is None else item.data_ptr()
