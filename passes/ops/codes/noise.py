"""Numbers for stochastic rounding: a window into a fixed table, at an offset that depends on seed, step and block.

Drawing a random number for each element costs more than all the rest of quantising on a CPU. The table holds every multiple of
2**-16 in [0, 1) once, in a fixed random order. An element's number is the one at (its position + offset) mod 2**16; the offset is
a hash, uniform over the table, so that over steps each element sees a uniform number, and its rounding is unbiased to 2**-17 of a
bin. Elements whose positions differ by a multiple of 2**16 share a number in one block; blocks have offsets of their own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SIZE = 1 << 16
_MASK = (1 << 64) - 1


@lru_cache(maxsize=16)
def table(device: torch.device) -> Tensor:
    """Return the table twice in a row, so that every window of SIZE elements is contiguous."""
    generator = torch.Generator().manual_seed(0x5EED)
    order = torch.randperm(SIZE, generator=generator).to(torch.float32).add_(0.5).div_(SIZE)
    return torch.cat([order, order]).to(device)


def offset_of(seed: int, step: int, block: int) -> int:
    """Return a position in the table: the finaliser of splitmix64 over the three numbers."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + block * 0x8CB92BA72F3D8DD7 + 0x632BE59BD9B4E019) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) & (SIZE - 1)


def add_noise(values: Tensor, offset: int) -> None:
    """Add to each element of a contiguous float32 tensor its number in [0, 1)."""
    flat = values.view(-1)
    window = table(values.device)[offset : offset + SIZE]
    whole = flat.numel() // SIZE * SIZE
    if whole:
        flat[:whole].view(-1, SIZE).add_(window)
    if whole < flat.numel():
        flat[whole:].add_(window[: flat.numel() - whole])
