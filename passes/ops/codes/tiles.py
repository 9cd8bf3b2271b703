"""Sparse activations in the form that the native kernels of convolutions read, as two tensors: values, and everything else as bytes.

The scheme is "tiles:SH:SW:KIND": the strides of the convolutions that read it divide SH and SW. What is not batch innermost float32 on
the CPU when the model runs is kept as KIND says, "gaps" or "bitmap". Rows (..., C), contiguous, are samples of one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.library import library
from ...kernels.sparse_activation import CHUNK, MOST_PIXELS, SAMPLES, STRIPS, SparseActivation, pack_activation, tile_of
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
    ordered = is_innermost(x) if x.dim() == 4 else x.dim() in (2, 3) and x.is_contiguous()
    fits = ordered and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 and library() is not None
    fits = fits and math.prod(form(x.shape, scheme)[0]) <= MOST_PIXELS
    return scheme if fits else of_sparse(scheme.rpartition(":")[2])


def form(shape: Sequence[int], scheme: str) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Rows and columns of a tile of a tensor (N, C, H, W) or (..., C), and the shape of its table of where lists start."""
    n, channels, height, width = shape if len(shape) == 4 else (math.prod(shape[:-1]), shape[-1], 1, 1)
    classes, groups = _classes(scheme), -(-n // SAMPLES)
    single = (height, width) == (1, 1)
    size = (1, groups) if single else (height, width)
    tile = tile_of(size, classes)
    tiles = (1 if single else groups) * -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    return tile, (tiles, -(-channels // CHUNK), CHUNK * STRIPS * classes[0] * classes[1] + 1)


def pack(x: Tensor, threshold: float, scheme: str, density: float) -> tuple[Tensor, Tensor]:
    """Return the bytes and the values of those elements of x that reach the threshold."""
    made = pack_activation(x if x.dim() == 4 else x.reshape(-1, x.shape[-1]), threshold, _classes(scheme), density)
    return torch.cat([item.reshape(-1).view(torch.uint8) for item in (made.starts, made.positions)]), made.values


def unpack(where: Tensor, values: Tensor, shape: Sequence[int], scheme: str) -> SparseActivation:
    """Return what ``pack`` kept of a tensor of this shape (N, C, H, W), without a copy."""
    kernels = library()
    assert kernels is not None
    n, channels, height, width = shape
    tile, starts = form(shape, scheme)
    end, lane_step = 4 * math.prod(starts), SAMPLES if (height, width) == (1, 1) else 0
    tables = where[:end].view(torch.int32).view(starts), values, where[end:].view(torch.int16)
    return SparseActivation(kernels, (n, channels, height, width), tile, _classes(scheme), (1, 1), lane_step, *tables)


def _classes(scheme: str) -> tuple[int, int]:
    _, rows, columns, _ = scheme.split(":")
    return int(rows), int(columns)
