"""Codes of groups of elements by native kernels: the same codes as codes/groups.py makes, in one pass over memory."""

from __future__ import annotations

from torch import Tensor

from .library import Library

LARGEST = 1 << 16  # elements in a group: as many as there are different numbers for stochastic rounding


def encode(
    kernels: Library, flat: Tensor, size: int, bits: int, positive: bool, noise: tuple[Tensor, int, int] | None, block: int, rows: int,
    stats: Tensor, packed: Tensor,
) -> None:  # fmt: skip
    """Store codes and statistics of a 1-dim contiguous tensor.

    `noise`: the table of numbers, seed and step; None rounds to the nearest. `block` is the number of the first block of `rows` groups.
    """
    table, seed, step = noise or (0, 0, 0)
    kernels.call("groups_encode", flat.dtype, flat, flat.numel(), size, bits, positive, table, seed, step, block, rows, stats, packed)


def decode(kernels: Library, packed: Tensor, stats: Tensor, size: int, bits: int, positive: bool, out: Tensor) -> None:
    """Store what the codes stand for in `out`, 1-dim and contiguous."""
    kernels.call("groups_decode", out.dtype, packed, stats.contiguous(), out.numel(), size, bits, positive, out)


def gradient(kernels: Library, grad: Tensor, packed: Tensor, stats: Tensor, size: int, bits: int, out: Tensor) -> None:
    """Store `grad` in `out` where the positive code is not 0, 0 elsewhere; NaN in a group of no numbers."""
    kernels.call("groups_gradient", grad.dtype, grad, packed, stats.contiguous(), grad.numel(), size, bits, out)
