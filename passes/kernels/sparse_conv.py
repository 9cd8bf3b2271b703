"""Convolutions with sparse weights by native kernels, for tensors whose samples are innermost in memory.

A tensor (N, C, H, W) with the strides of a contiguous (C, H, W, N) tensor lets one vector hold one pixel of many samples, so that every
stride, padding and dilation is an offset. Other memory orders give the same numbers, more slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import Library, ints, library, longs
from .sparse_activation import MOST_PIXELS, tile_of
from .sparse_weight import LIMIT, SparseWeight, first_reason, takes_weight
from .tiles import LANES, Tiling, tiling

Pair = tuple[int, int]


def takes(
    x: Tensor, w: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, transposed: bool = False
) -> str | None:
    """Return why the sparse kernels cannot compute a convolution of x with a weight, or its gradients; None if they can."""
    if x.dim() not in (3, 4):
        return f"it has {x.dim() - 2} dimensions of space, not one or two"
    return takes_weight(w) or first_reason(
        (lambda: x.dtype != torch.float32, f"its type is {x.dtype}, not torch.float32"),
        (lambda: x.device.type != "cpu", f"it is on {x.device}, not on the CPU"),
        (lambda: x.layout != torch.strided, f"its layout is {x.layout}"),
        (lambda: transposed, "it is transposed"),
        (lambda: w.dim() != x.dim() or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups != 0, "the shapes do not fit each other"),
        (lambda: x.numel() > LIMIT, "the input has more elements than 32-bit positions can tell apart"),
        (lambda: min(out_shape(x.shape, w.shape, stride, padding, dilation)[2:]) < 1, "the kernel is larger than the input"),
        (lambda: math.prod(out_shape(x.shape, w.shape, stride, padding, dilation)) > LIMIT, "the result has too many elements"),
        (
            lambda: math.prod(tile_of(_last_two(x.shape[2:]), _last_two(stride))) > MOST_PIXELS,
            "its strides are too long for 16-bit positions",
        ),
    )


def out_shape(
    x_shape: Sequence[int], w_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the shape of a convolution's result."""
    space = zip(x_shape[2:], w_shape[2:], stride, padding, dilation, strict=True)
    return x_shape[0], w_shape[0], *((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, pad, d in space)


def is_batch_innermost(x: Tensor) -> bool:
    """Return whether a tensor (N, C, *space) has the strides of a contiguous (C, *space, N) tensor."""
    return x.movedim(0, -1).is_contiguous()


def batch_innermost(shape: Sequence[int], kernels: Library | None = None) -> Tensor:
    """Return a new float32 tensor of a shape (N, C, *space), not filled, whose samples are innermost."""
    kernels = kernels or library()
    return (kernels.empty if kernels else torch.empty)(*shape[1:], shape[0]).movedim(-1, 0)


def conv_forward(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the convolution of x (N, C, *space), one or two dimensions of space, batch innermost as x should be."""
    out = batch_innermost(out_shape(x.shape, weight.shape, stride, padding, dilation), weight.pattern.kernels)
    kernel, strides, pads, dilations = _pairs(weight.shape[2:], stride, padding, dilation)
    multiply(_plane(x), weight, bias, _plane(out), False, strides, _taps(kernel, pads, dilations), groups)
    return out


def conv_grad_input(
    grad: Tensor,
    weight: SparseWeight,
    x_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the gradient of x, of its shape and batch innermost, for that of the result.

    With strides, the pixels of one remainder by them are a convolution of stride 1 of their own, with those taps that reach them.
    """
    out = batch_innermost(x_shape, weight.pattern.kernels)
    kernel, strides, pads, dilations = _pairs(weight.shape[2:], stride, padding, dilation)
    grad, planes = _plane(grad), _plane(out)
    if any(math.gcd(d, step) > 1 or step > reach for step, reach, d in zip(strides, kernel, dilations, strict=True)):
        out.zero_()  # there may be pixels that no tap reaches
    for top in range(min(strides[0], planes.shape[2])):
        for left in range(min(strides[1], planes.shape[3])):
            found = [
                (top + pads[0] - a * dilations[0], left + pads[1] - b * dilations[1]) for a in range(kernel[0]) for b in range(kernel[1])
            ]
            taps = tuple((a // strides[0], b // strides[1]) if a % strides[0] == b % strides[1] == 0 else None for a, b in found)
            if all(tap is None for tap in taps):
                continue
            multiply(grad, weight, None, planes[:, :, top :: strides[0], left :: strides[1]], True, (1, 1), taps, groups)
    return out


def conv_grad_weight_kept(
    x: Tensor,
    grad: Tensor,
    weight: SparseWeight,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the gradient of the weight at its kept positions, and 0 elsewhere, of its shape and contiguous."""
    kernel, strides, pads, dilations = _pairs(weight.shape[2:], stride, padding, dilation)
    return correlate(_plane(x), weight, _plane(grad), strides, _taps(kernel, pads, dilations), groups)


def multiply(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    out: Tensor,
    is_turned: bool,
    stride: Pair,
    taps: tuple[Pair | None, ...],
    groups: int,
) -> None:
    """Store in `out` (N, C', H', W'), of any strides, the sum over channels and taps of the weight times x (N, C, H, W) there.

    A tap reads the pixel that lies its row and column displacement from `stride` times that of the result. `is_turned`: the weight's input
    channels are those of the result.
    """
    if not out.numel():
        return
    x, out, tiles, plan = _plan(x, out, weight.pattern.kernels.level, stride, taps, groups)
    program, values = weight.ordered(is_turned, groups, tiles)
    work = torch.empty(tiles.work * torch.get_num_threads())
    given = (*plan, program.segments, program.offsets, values, work)
    weight.pattern.kernels.call("sparse_multiply", torch.float32, x, 0 if bias is None else bias.contiguous(), out, *given)


def correlate(x: Tensor, weight: SparseWeight, grad: Tensor, stride: Pair, taps: tuple[Pair | None, ...], groups: int) -> Tensor:
    """Return the gradient of the weight at its kept positions for that of `multiply`'s result, and 0 elsewhere."""
    if not grad.numel():
        return torch.zeros(weight.shape)
    x, grad, tiles, plan = _plan(x, grad, weight.pattern.kernels.level, stride, taps, groups)
    program, count = weight.pattern.program(False, groups, tiles), weight.pattern.count
    found, out = torch.empty(count * torch.get_num_threads()), torch.empty(count)
    work = torch.empty(tiles.work * torch.get_num_threads())
    given = (*plan, program.segments, program.offsets, program.order, count, found, out, work)
    weight.pattern.kernels.call("sparse_kept", torch.float32, x, grad, *given)
    return weight.dense(out)


def _plan(
    x: Tensor, y: Tensor, level: str, stride: Pair, taps: tuple[Pair | None, ...], groups: int
) -> tuple[Tensor, Tensor, Tiling, tuple[Any, ...]]:
    """Return x and y as the kernels are to see them, the tiles, and plan_t, the rows and the columns of a buffer (sparse_tiles.h)."""
    is_dot = taps == ((0, 0),) and stride == (1, 1)
    x, y = merged(x, y) if is_dot else (x, y)
    samples, channels, outputs = x.shape[0], x.shape[1] // groups, y.shape[1] // groups
    x_strides, y_strides, in_size, size, lane_step = list(x.stride()), list(y.stride()), tuple(x.shape[2:]), tuple(y.shape[2:]), 0
    if is_dot and size == (1, 1):  # rows of a matrix: many at a time
        lane_step = LANES[level]
        x_strides[3], y_strides[3] = lane_step * x_strides[0], lane_step * y_strides[0]
        size = in_size = (1, -(-samples // lane_step))
    tiles = tiling(level, channels, outputs, (size[0], size[1]), stride, taps)
    down, across = tiles.down.lines, tiles.across.lines
    numbers = [groups, channels, outputs, tiles.block, tiles.blocks, tiles.part, samples, lane_step]
    numbers += [x_strides[1], *x_strides[2:], x_strides[0], *in_size, y_strides[1], *y_strides[2:], y_strides[0], *size]
    numbers += [*stride, tiles.rows, tiles.columns, len(down), len(across), tiles.work]
    return x, y, tiles, (longs(numbers), ints(down), ints(across))


def _taps(kernel: Pair, pads: Pair, dilations: Pair) -> tuple[Pair, ...]:
    return tuple((a * dilations[0] - pads[0], b * dilations[1] - pads[1]) for a in range(kernel[0]) for b in range(kernel[1]))


def merged(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and samples as one dimension of samples, where both tensors let them be one."""
    if all(_follow(item) for item in (x, out)):
        return _joined(x), _joined(out)
    return x, out


def _follow(x: Tensor) -> bool:
    return x.stride(0) == 1 and x.movedim(0, -1)[0].is_contiguous()


def _joined(x: Tensor) -> Tensor:
    return x.as_strided((x[:, 0].numel(), x.shape[1], 1, 1), (1, x.stride(1), 0, 0))


def _last_two(sizes: Sequence[int]) -> Pair:
    height, width = (1, *sizes)[-2:]
    return height, width


def _plane(x: Tensor) -> Tensor:
    """A tensor with one dimension of space as one of two."""
    return x if x.dim() == 4 else x.unsqueeze(2)


def _pairs(*given: Sequence[int]) -> tuple[Pair, Pair, Pair, Pair]:
    kernel, stride, padding, dilation = ((*(1, 1, 0, 1)[i : i + 1], *item)[-2:] for i, item in enumerate(given))
    return kernel, stride, padding, dilation  # type: ignore[return-value]
