"""fxsparse::divide_bins, what a code of a norm lacks to say which elements reach a threshold: one bit for those whose bin it divides.

The code of BLPA's norm says of most elements on which side of a threshold they lie. So the activation that SWAT keeps costs nothing
beside the code that the norm keeps anyway, but for the bins around the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .codes import channels as rows
from .codes import positions
from .codes.layout import by_channel, dense, in_memory_order
from .codes.scheme import Scheme, parse
from .normalise import decode_norm
from .operator import operator
from .pack_sparse import dynamic_size

_BOUNDS = 3  # rows after those of the norm: the lowest and the highest value of a bin that is divided, and the threshold
_ROUNDING = 1e-3  # of a bin: what two ways of computing a normalised value may differ by
_SHARE = 0.05  # of the elements that are expected in those bins


@operator()
def divide_bins(x: Tensor, threshold: Tensor, packed: Tensor, stats: Tensor, scheme: str, enabled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return one bit for each element of x in a bin that the threshold divides, the statistics to read them, the number kept.

    `packed` and `stats` are the code of x, the output of fxsparse::blpa_norm with a ReLU, whose scheme is of_norm(bits, "relu"), and
    `threshold` has one element. An element is kept if it is `threshold` or more, and not 0. The bits (uint8) are in memory order, the
    statistics are those of the norm with three rows more, (ROWS + 3, C), and the number is a 0-dim int64.

    Not `enabled`: everything is empty.
    """
    if not enabled or x.numel() == 0:
        return packed.new_empty(0), stats.new_empty((0, 0)), torch.zeros((), dtype=torch.int64, device=x.device)
    source, read = dense(x.detach()), parse(scheme)
    decoded = torch.empty_like(source, dtype=torch.float32)
    decode_norm(packed, stats, read.activation, read.bits, decoded)
    bounded = torch.cat([stats, _bounds(stats, read, threshold.reshape(()).to(torch.float32))])
    divided = in_memory_order(_divided(decoded, bounded))
    kept = in_memory_order(source)
    kept = (kept < threshold.reshape(())).logical_not_().logical_and_(kept != 0)
    return positions.encode_bitmap(kept[divided]), bounded, kept.count_nonzero()


def _bounds(stats: Tensor, read: Scheme, threshold: Tensor) -> Tensor:
    slope, offset = stats[rows.SLOPE], stats[rows.OFFSET]
    reach = slope * (0.5 + _ROUNDING)
    last, first = slope * ((1 << read.bits) - 1) + offset, slope * (stats[rows.FIRST] + 0.5) + offset
    low = torch.where(last < threshold, torch.minimum(threshold - reach, last), threshold - reach)
    high = torch.where(first > threshold, torch.maximum(threshold + reach, first), threshold + reach)
    return torch.stack([low, high, threshold.expand_as(low)])


def _divided(decoded: Tensor, bounded: Tensor) -> Tensor:
    """Where a bin is divided; of the shape and memory order of ``decoded``."""
    low, high, _ = bounded[-_BOUNDS:, None, :, None]
    values = by_channel(decoded)
    out = torch.empty_like(decoded, dtype=torch.bool)
    by_channel(out).copy_((values >= low).logical_and_(values <= high).logical_and_(values > 0))
    return out


def keep_reaching(packed: Tensor, bits: Tensor, bounded: Tensor, read: Scheme, out: Tensor) -> None:
    """Store in `out`, dense, what the code says of the elements that fxsparse::divide_bins kept, and 0 elsewhere."""
    decoded = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    decode_norm(packed, bounded[:-_BOUNDS], read.activation, read.bits, decoded)
    divided = in_memory_order(_divided(decoded, bounded))
    kept = torch.empty_like(decoded, dtype=torch.bool)
    by_channel(kept).copy_(by_channel(decoded) > bounded[-1, None, :, None])
    where = positions.indices(divided)
    in_memory_order(kept).index_copy_(0, where, positions.decode_bitmap(bits, where.numel()))
    decoded.mul_(kept)
    if decoded is not out:
        out.copy_(decoded)


@divide_bins.register_fake
def _(x: Tensor, threshold: Tensor, packed: Tensor, stats: Tensor, scheme: str, enabled: bool) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty((), dtype=torch.int64)
    if not enabled:
        return packed.new_empty(0), stats.new_empty((0, 0)), kept
    expected = int(_SHARE * x.numel()) // 8 + 1 if isinstance(x.numel(), int) else 1
    return (
        packed.new_empty(dynamic_size(expected, x.shape[0] if isinstance(x.shape[0], int) else 1)),
        stats.new_empty((rows.ROWS + _BOUNDS, x.shape[1])),
        kept,
    )


divide_bins.without_derivative()
