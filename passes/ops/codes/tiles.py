"""Sparse activations in the form that the native kernels of convolutions read, as two tensors: values, and everything else as bytes.

The scheme is "tiles:SH:SW:KIND": the strides of the convolutions that read it divide SH and SW. What is not batch innermost float32 on
the CPU when the model runs is kept as KIND says, "gaps" or "bitmap".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.library import library
from ...kernels.sparse_activation import SAMPLES, STRIPS, SparseActivation, pack_activation, tile_of
from .layout import is_innermost
from .scheme import of_sparse

TILES = "tiles"


def of_tiles(stride: Sequence[int], kind: str) -> str:
    """The scheme for strides, and what it falls back to."""
    return f"{TILES}:{stride[0]}:{stride[1]}:{kind}"


def scheme_for(x: Tensor, scheme: str) -> str:
    """The scheme in which a tensor is kept where ``scheme`` was asked for."""
    if not scheme.startswith(TILES):
        return scheme
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and is_innermost(x) and x.numel() > 0 and library() is not None
    return scheme if fits else of_sparse(scheme.rpartition(":")[2])


def sizes(shape: Sequence[int], scheme: str) -> tuple[int, int]:
    """The number of tiles of a tensor (N, C, H, W), and that of its lists in each with one more."""
    n, channels, height, width = shape
    classes = _classes(scheme)
    lists = channels * STRIPS * classes[0] * classes[1] + 1
    if (height, width) == (1, 1):
        blocks = -(-n // SAMPLES)
        rows, columns = tile_of((1, blocks), classes)
        return -(-1 // rows) * -(-blocks // columns), lists
    rows, columns = tile_of((height, width), classes)
    return -(-n // SAMPLES) * -(-height // rows) * -(-width // columns), lists


def pack(x: Tensor, threshold: float, scheme: str, density: float) -> tuple[Tensor, Tensor]:
    """Return the bytes and the values of those elements of x that reach the threshold."""
    made = pack_activation(x, threshold, _classes(scheme), density)
    return torch.cat([item.reshape(-1).view(torch.uint8) for item in (made.bases, made.starts, made.positions)]), made.values


def unpack(where: Tensor, values: Tensor, shape: Sequence[int], scheme: str) -> SparseActivation:
    """Return what ``pack`` kept of a tensor of this shape (N, C, H, W), without a copy."""
    kernels = library()
    assert kernels is not None
    n, channels, height, width = shape
    tiles, lists = sizes(shape, scheme)
    classes, ends = _classes(scheme), (8 * tiles, 8 * tiles + 4 * tiles * lists)
    bases, starts, positions = where[: ends[0]], where[ends[0] : ends[1]], where[ends[1] :]
    lane_step = SAMPLES if (height, width) == (1, 1) else 0
    tile = tile_of((1, -(-n // SAMPLES)) if lane_step else (height, width), classes)
    return SparseActivation(
        kernels, (n, channels, height, width), tile, classes, lane_step,
        bases.view(torch.int64), starts.view(torch.int32).view(tiles, lists), values, positions.view(torch.int16),
    )  # fmt: skip


def _classes(scheme: str) -> tuple[int, int]:
    _, rows, columns, _ = scheme.split(":")
    return int(rows), int(columns)
