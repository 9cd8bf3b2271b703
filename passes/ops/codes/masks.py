"""One bit for each element: whether a gradient passes."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import pack, unpack
from .layout import block_elements, blocks
from .room import room

BITS = 8  # of a byte, each of them an element


def packed_size(elements: int) -> int:
    """Return the bytes of so many bits."""
    return (elements + BITS - 1) // BITS


def encode(mask: Tensor) -> Tensor:
    """Return a 1-dim bool tensor as bits: bit i of byte j is element i * bytes + j."""
    size = packed_size(mask.numel())
    padding = size * BITS - mask.numel()
    bits = mask.view(torch.uint8)
    if padding:
        bits = torch.cat([bits, bits.new_zeros(padding)])
    packed = room(size, bits)
    pack(bits.view(BITS, size), 1, 0, packed)
    return packed


def decode(packed: Tensor, elements: int) -> Tensor:
    """Return the bits as uint8, 0 or 1."""
    out = packed.new_empty((BITS, packed.numel()))
    for block in blocks(packed.numel(), BITS, block_elements(packed)):
        unpack(packed[block], 1, 0, out[:, block])
    return out.view(-1)[:elements]
