"""Where the elements stand that a sparse tensor keeps: one bit for each element, or the gaps between those kept.

"bitmap": a bit for each element. "gaps": for each kept element the number of dropped ones before it, in digits of four bits: 15 stands
for fifteen of them and goes on, less ends the gap. At density 0.1 that is half a bit for each element; from 0.2 on a bitmap is smaller.

The layout is the device's own (on the CPU numpy's), and is read where it was written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import masks
from .bits import pack, unpack

GO_ON = 15
DENSEST_GAPS = 0.18  # where gaps and bits take the same room, about


def digits_expected(elements: int, kept: int) -> int:
    """Return how many digits the gaps take if positions are random, which decides nothing but what is foretold."""
    if not kept or not elements:
        return 0
    further = (1 - kept / elements) ** GO_ON
    return int(kept * (1 + further / max(1 - further, 1e-9))) + 1


def indices(mask: Tensor) -> Tensor:
    """Return the indices (int64) of the true elements of a 1-dim bool tensor, in order."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().view(-1)


def encode_bitmap(mask: Tensor) -> Tensor:
    """Return a 1-dim bool tensor in bits, uint8."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy()))
    return masks.encode(mask)


def decode_bitmap(packed: Tensor, elements: int) -> Tensor:
    """Return the bool tensor."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements)).view(torch.bool)
    return masks.decode(packed, elements).view(torch.bool)


def encode_gaps(where: Tensor) -> Tensor:
    """Return the digits of rising indices, two in a byte (uint8)."""
    if not where.numel():
        return where.new_empty(0, dtype=torch.uint8)
    gaps = where.to(torch.int32) if int(where[-1]) < 1 << 31 else where.clone()
    gaps[1:] -= gaps[:-1] + 1
    long = indices(gaps >= GO_ON)
    further = gaps.index_select(0, long).div_(GO_ON, rounding_mode="floor")
    last = torch.ones_like(where).index_add_(0, long, further.to(torch.int64)).cumsum(0).sub_(1)
    count = int(last[-1]) + 1
    digits = torch.full((count + count % 2,), GO_ON, dtype=torch.uint8, device=where.device)
    digits.index_copy_(0, last, gaps.index_add_(0, long, further, alpha=-GO_ON).to(torch.uint8))
    packed = digits.new_empty(len(digits) // 2)
    pack(digits.view(2, -1), 4, 0, packed)
    return packed


def decode_gaps(packed: Tensor) -> Tensor:
    """Return the indices (int64) that the digits stand for."""
    digits = packed.new_empty((2, packed.numel()))
    unpack(packed, 4, 0, digits)
    digits = digits.view(-1)
    ends = digits != GO_ON
    steps = (digits + ends.view(torch.uint8)).cumsum(0)
    return steps.index_select(0, indices(ends)).sub_(1)
