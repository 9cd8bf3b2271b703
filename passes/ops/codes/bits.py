"""Several codes in one byte, and back. Part i of `parts = 8 / bits` equal parts of a tensor stands in bits i*bits and up of each byte.

Codes that share a byte lie far apart in memory, so that packing is an addition of whole rows and unpacking a shift of whole rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (1, 2, 4, 8)


def parts_of(bits: int) -> int:
    """Return how many codes of `bits` bits share a byte.

    Raises: ValueError for a width other than 1, 2, 4 or 8.
    """
    if bits not in WIDTHS:
        raise ValueError(f"codes have 1, 2, 4 or 8 bits, got {bits}")
    return 8 // bits


def pack(codes: Tensor, bits: int, dim: int, out: Tensor) -> None:
    """Store codes below 2**bits (uint8, of size `parts` at `dim`) in `out`, uint8, which lacks that dimension."""
    rows = codes.unbind(dim)
    if len(rows) == 1:
        out.copy_(rows[0])
        return
    torch.add(rows[0], rows[1], alpha=1 << bits, out=out)
    for index in range(2, len(rows)):
        out.add_(rows[index], alpha=1 << (bits * index))


def unpack(packed: Tensor, bits: int, dim: int, out: Tensor) -> None:
    """Store the codes of `packed` in `out`, uint8, which has `parts` entries at `dim` more than `packed` has dimensions."""
    rows = out.unbind(dim)
    if len(rows) == 1:
        rows[0].copy_(packed)
        return
    last = len(rows) - 1
    for index, row in enumerate(rows):
        if index == 0:
            torch.bitwise_and(packed, (1 << bits) - 1, out=row)
            continue
        torch.bitwise_right_shift(packed, bits * index, out=row)
        if index != last:
            row.bitwise_and_((1 << bits) - 1)


def to_codes(values: Tensor, bits: int, codes: Tensor) -> None:
    """Store values in [0, 2**bits), cut to integers, in `codes` (uint8). `values` is overwritten.

    float to int8 is a vector instruction and float to uint8 is none, so eight bits go by way of an offset.
    """
    signed = codes.view(torch.int8)
    if bits < 8:
        signed.copy_(values)
        return
    signed.copy_(values.floor_().sub_(128))
    codes.bitwise_xor_(128)
