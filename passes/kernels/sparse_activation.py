"""Sparse activations, and the gradient of a convolution's weight from them, by native kernels (sparse_pack.h, sparse_grad.h)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .library import Library, ints, library, longs
from .tiles import LANES, ROOM, axis, even

SAMPLES, STRIP, STRIPS, CHUNK = 16, 4, 4, 32  # of a tile; see sparse_pack.h
MOST_TAPS = 9  # that are summed at a time
PIXELS = 56  # of a tile: enough for lists of some length, few enough for the gradient of a tile to stay in a first-level cache
MOST_PIXELS = 2**16 // SAMPLES  # of a tile, whose positions are 16-bit numbers
GRADIENT_BYTES = 41 << 10  # of a strip of a tile: some more than a first-level cache
PART_BYTES = 512 << 10  # of sums that a thread works on: a share of a second-level cache


@dataclass(frozen=True)
class SparseActivation:
    """The kept elements of a tensor `shape` (N, C, H, W) in lists for each tile, channel, strip of samples and class of pixels.

    Attributes:
        tile: rows and columns of a tile.
        classes: pixels are told apart by the remainders of row and column by these.
        step: only every so many rows and columns of the tensor that was packed are in `shape`.
        lane_step: 0, or how many samples each step to the right passes: x has rows alone, which stand as pixels.
        starts: where each list starts, (tiles, chunks of channels, lists of a chunk + 1).
    """

    kernels: Library
    shape: tuple[int, int, int, int]
    tile: tuple[int, int]
    classes: tuple[int, int]
    step: tuple[int, int]
    lane_step: int
    starts: Tensor
    values: Tensor
    positions: Tensor

    @property
    def count(self) -> int:
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """The number of bytes that are kept."""
        return sum(item.numel() * item.element_size() for item in (self.starts, self.values, self.positions))

    @property
    def size(self) -> tuple[int, int]:
        return (1, -(-self.shape[0] // SAMPLES)) if self.lane_step else self.shape[2:]


def pack_activation(
    x: Tensor,
    threshold: float,
    stride: Sequence[int] = (1, 1),
    density: float | None = None,
    kernels: Library | None = None,
    is_for_points: bool = False,
) -> SparseActivation:
    """Return the elements of x (N, C, *space) or rows (N, C) with |x| >= threshold but 0, and what cannot be compared, in one pass.

    `stride` must be a multiple of that of the convolutions that the activation is for. `density`, the share that is expected to be kept,
    tells how much room to make; without it, or where it is wrong, the elements are counted first. Samples are best innermost in memory.
    `is_for_points`: the convolutions have kernels of one element, this stride and no padding, so that other pixels need not be kept.

    Raises: ValueError for a type other than float32 and for strides too long for 16-bit positions; RuntimeError without native kernels.
    """
    kernels = kernels or library()
    if kernels is None:
        raise RuntimeError("the native kernels were not built: install fxsparse where there is a C compiler")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"a sparse activation is made of float32 on the CPU, got {x.dtype} on {x.device}")
    x = x.detach()
    plane = x if x.dim() == 4 else x.unsqueeze(2) if x.dim() == 3 else x[:, :, None, None]
    classes = (1, *stride)[-2:]
    step = (classes[0], classes[1]) if is_for_points else (1, 1)
    if is_for_points:
        plane, classes = plane[:, :, :: step[0], :: step[1]], (1, 1)
    shape = plane.shape[0], plane.shape[1], plane.shape[2], plane.shape[3]
    strides, lane_step, size = list(plane.stride()), 0, shape[2:]
    if size == (1, 1):
        lane_step, size = SAMPLES, (1, -(-shape[0] // SAMPLES))
        strides[3] = SAMPLES * strides[0]
    rows, columns = tile_of((size[0], size[1]), (classes[0], classes[1]))
    if rows * columns > MOST_PIXELS:
        raise ValueError(f"strides of {list(stride)} are too long for a sparse activation")
    down, across = -(-size[0] // rows), -(-size[1] // columns)
    tiles, lists = (1 if lane_step else -(-shape[0] // SAMPLES)) * down * across, STRIPS * classes[0] * classes[1]
    numbers = [shape[1], shape[0], lane_step, strides[1], *strides[2:], strides[0], *size, rows, columns, down, across, *classes]
    starts = torch.empty(tiles, -(-shape[1] // CHUNK), CHUNK * lists + 1, dtype=torch.int32)
    elements = rows * columns * SAMPLES
    need = 2 * CHUNK * elements + 2 * (elements + SAMPLES) + (CHUNK * elements + SAMPLES) // 2 + SAMPLES
    total, work = ctypes.c_int64(), torch.empty(need * torch.get_num_threads())
    room = 0 if density is None else min(math.ceil(plane.numel() * density * 1.05) + SAMPLES, plane.numel())
    while True:
        values, positions = kernels.empty(room), torch.empty(room, dtype=torch.int16)
        given = (plane, threshold, longs(numbers), room, starts, values, positions, ctypes.addressof(total), work, need)
        kernels.call("sparse_pack", torch.float32, *given)
        if total.value <= room:
            break
        room = total.value
    if room - total.value > room // 8:
        values, positions = values[: total.value].clone(), positions[: total.value].clone()
    values, positions = values[: total.value], positions[: total.value]
    return SparseActivation(kernels, shape, (rows, columns), (classes[0], classes[1]), step, lane_step, starts, values, positions)


def tile_of(size: tuple[int, int], classes: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of a tile, multiples of the classes."""
    pixels = PIXELS * min(classes[0] * classes[1], 2)  # classes have short lists
    side = max(int(pixels**0.5) + 1, 1)
    columns = even(size[1], side if size[0] > side else max(pixels // size[0], 1)) if size[1] else 1
    rows = even(size[0], max(pixels // columns, 1)) if size[0] else 1
    return -(-rows // classes[0]) * classes[0], -(-columns // classes[1]) * classes[1]


def conv_grad_weight(
    grad: Tensor,
    activation: SparseActivation,
    w_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    vectors: int | None = None,
) -> Tensor:
    """Return the gradient (O, I / groups, *kernel) of a weight for that of the result, (N, O, *space), from a sparse activation.

    Raises: ValueError if the activation was packed for other strides.
    """
    is_line = grad.dim() == 3
    g = grad.unsqueeze(2) if is_line else grad
    kernel = (1, *w_shape[2:]) if is_line else tuple(w_shape[2:])
    sh, sw = (1, *stride)[-2:]
    ph, pw = (0, *padding)[-2:] if is_line else padding
    dh, dw = (1, *dilation)[-2:]
    if activation.step != (1, 1):
        if activation.step != (sh, sw) or kernel != (1, 1) or (ph, pw) != (0, 0):
            raise ValueError(f"a sparse activation for kernels of one element and strides {list(activation.step)} was given to another one")
        sh, sw = 1, 1
    if activation.classes[0] % sh or activation.classes[1] % sw:
        raise ValueError(f"a sparse activation packed for strides {list(activation.classes)} was given to a convolution of {list(stride)}")
    taps = [(a * dh - ph, b * dw - pw) for a in range(kernel[0]) for b in range(kernel[1])]
    return grad_weight(g, activation, (w_shape[0], w_shape[1], *w_shape[2:]), (sh, sw), tuple(taps), groups, vectors)


def grad_weight(
    g: Tensor,
    activation: SparseActivation,
    w_shape: tuple[int, ...],
    stride: tuple[int, int],
    taps: tuple[tuple[int, int], ...],
    groups: int,
    vectors: int | None = None,
) -> Tensor:
    """Return the gradient of a weight (O, I / groups, taps...) for the gradient g (N, O, H, W)."""
    out = torch.empty(w_shape)
    if not out.numel():
        return out
    if not g.numel():
        return out.zero_()
    level, lane_step = activation.kernels.level, activation.lane_step
    lanes, (rows, columns), (cd, ca), size = LANES[level], activation.tile, activation.classes, activation.size
    channels, outputs = activation.shape[1] // groups, w_shape[0] // groups
    strides, g_size = list(g.stride()), tuple(g.shape[2:])
    if lane_step:
        strides[3], g_size = lane_step * strides[0], size
    # A pixel of remainder a reaches result a // stride further: e for each class and tap, None where they do not meet.
    found = [[_meet(k // ca, k % ca, tap, stride) for tap in taps] for k in range(cd * ca)]
    runs: list[list[int]] = []
    numbers: list[int] = []
    ends: list[tuple[int, int]] = []
    for k in range(cd * ca):
        if runs and found[k] == found[runs[-1][0]]:
            runs[-1][1] = k + 1
            continue
        own = [(number, end) for number, end in enumerate(found[k]) if end is not None]
        runs.append([k, k + 1, len(own)])
        numbers += [number for number, _ in own]
        ends += [end for _, end in own]
    down = axis(tuple(end[0] for end in ends), 1, rows // stride[0])
    across = axis(tuple(end[1] for end in ends), 1, columns // stride[1])
    pitch, pixels = len(across.lines), len(down.lines) * len(across.lines)
    v = vectors or best_vectors(outputs, lanes, ROOM[level], max(run[2] for run in runs), pixels)
    width = v * lanes
    leads = [(a * pitch + b) * STRIP * width for a, b in zip(down.starts, across.starts, strict=True)]
    table = [
        (((strip * pixels) + row // stride[0] * pitch + column // stride[1]) * STRIP + sample) * width
        for strip in range(STRIPS) for row in range(rows) for column in range(columns) for sample in range(STRIP)
    ]  # fmt: skip
    blocks = groups * -(-outputs // width)
    part = min(channels, max(PART_BYTES // (4 * len(taps) * width), 16), -(-channels * blocks // (2 * torch.get_num_threads())))
    part = -(-channels // -(-channels // part))
    work = part * len(taps) * width + (SAMPLES + 2) * pixels * width
    joined = STRIPS if len(taps) == 1 and len(runs) == 1 else 1
    plan_numbers = [groups, channels, outputs, activation.shape[0], lane_step, strides[1], *strides[2:], strides[0], *g_size, rows, columns]
    plan_numbers += [-(-size[0] // rows), -(-size[1] // columns), *stride, len(down.lines), pitch, v, part, -(-channels // part)]
    plan_numbers += [cd * ca, len(runs), len(taps), joined, work]
    arrays = [longs(plan_numbers), ints(down.lines), ints(across.lines), longs([n for run in runs for n in run]), longs(numbers)]
    given = (*arrays, longs(leads), ints(table), activation.starts, activation.values, activation.positions, out)
    room = torch.empty(work * torch.get_num_threads())
    activation.kernels.call("sparse_grad", torch.float32, g, *given, room)
    return out


def best_vectors(outputs: int, lanes: int, room: int, taps: int, pixels: int) -> int:
    """Return how many vectors of output channels are summed at a time, of at most `taps` taps and over a tile of `pixels`."""
    fit = max(GRADIENT_BYTES // (pixels * STRIP * 4 * lanes), 1)
    most = min(fit, room // min(taps, MOST_TAPS), -(-outputs // lanes))
    return max(v for v in (1, 2, 3, 4, 6, 8) if v <= max(most, 1))


def _meet(row: int, column: int, tap: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int] | None:
    a, b = row % stride[0] - tap[0], column % stride[1] - tap[1]
    return None if a % stride[0] or b % stride[1] else (a // stride[0], b // stride[1])
