"""fxsparse::pack_sparse, the elements of a tensor that reach a threshold: where they stand, and their values."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from .codes import groups, positions
from .codes.groups import Rounding
from .codes.layout import block_elements, blocks, dense, in_memory_order
from .codes.masks import packed_size
from .codes.scheme import Scheme, parse
from .codes.tiles import TILES, form, pack, scheme_for
from .operator import operator

NEAREST = -1


@operator()
def pack_sparse(
    x: Tensor, threshold: Tensor, enabled: bool, clock: Tensor, scheme: str, seed: int, density: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where |x| >= threshold and x is not 0 (uint8), the values there, the statistics of their codes, and their number.

    `threshold` is broadcast against x. Ties are kept, and so is what cannot be compared (a NaN in either). What it stands for equals
    fxsparse::sparsify of x. The scheme is of_sparse(...): with 0 bits the values are x's own, (kept,) of its dtype, and there are no
    statistics; else they are codes (uint8) as fxsparse::quantize makes them of the values in order, padded to whole groups with the last
    one, with (2, groups) statistics. Rounding follows `seed` and `clock` as there. `density` is the share expected to be kept, which
    tells how much room is wanted where there are no values to count. The number is a 0-dim int64. With of_tiles(...) as scheme, and one
    threshold, it is what the native kernels of convolutions read (see codes/tiles.py).

    Not `enabled`: everything is empty.
    """
    scheme, nothing = scheme_for(x, scheme), x.new_empty((2, 0), dtype=torch.float32)
    if not enabled:
        return x.new_empty(0, dtype=torch.uint8), x.new_empty(0), nothing, torch.zeros((), dtype=torch.int64, device=x.device)
    if scheme.startswith(TILES):
        where, values = pack(x, float(threshold.item()), scheme, density)
        return where, values, nothing, torch.tensor(values.numel(), dtype=torch.int64)
    read = parse(scheme)
    source = dense(x.detach())
    flat, mask = in_memory_order(source), _kept(source, threshold)
    where = positions.indices(mask)
    values = flat.index_select(0, where)
    packed = positions.encode_gaps(where) if read.kind == "gaps" else positions.encode_bitmap(mask)
    kept = torch.tensor(where.numel(), dtype=torch.int64, device=x.device)
    if not read.bits:
        return packed, values, nothing, kept
    if not where.numel():
        return packed, values.new_empty(0, dtype=torch.uint8), nothing, kept
    padding = -where.numel() % read.group
    if padding:
        values = torch.cat([values, values[-1:].expand(padding)])
    rounding = Rounding() if seed == NEAREST else Rounding(seed, int(clock.item()))
    return packed, *groups.encode(values, read.group, read.bits, False, rounding), kept


def _kept(source: Tensor, threshold: Tensor) -> Tensor:
    """The elements that are kept, as a 1-dim bool tensor in memory order."""
    if threshold.numel() != 1:
        return in_memory_order((source.abs() < threshold).logical_not_().logical_and_(source != 0))
    flat, bound = in_memory_order(source), threshold.reshape(())
    if flat.device.type != "cpu":
        return (flat.abs() < bound).logical_not_().logical_and_(flat != 0)
    dropped, size = torch.empty_like(flat, dtype=torch.bool), block_elements(flat)
    for block in blocks(flat.numel(), 1, size):  # in a cache's worth of elements
        torch.lt(flat[block].abs(), bound, out=dropped[block])
    kept = dropped.logical_not_()
    return kept if bool(bound > 0) else kept.logical_and_(flat != 0)


@pack_sparse.register_fake
def _(
    x: Tensor, threshold: Tensor, enabled: bool, clock: Tensor, scheme: str, seed: int, density: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scheme, kept = scheme_for(x, scheme), x.new_empty((), dtype=torch.int64)
    if not enabled:
        return x.new_empty(0, dtype=torch.uint8), x.new_empty(0), x.new_empty((2, 0), dtype=torch.float32), kept
    expected = math.ceil(density * x.numel()) if isinstance(x.numel(), int) else 0
    samples = x.shape[0] if x.dim() and isinstance(x.shape[0], int) else 1
    if scheme.startswith(TILES):
        count = dynamic_size(expected, samples)
        size = 4 * math.prod(form(x.shape, scheme)[1]) + 2 * count
        return x.new_empty(size, dtype=torch.uint8), x.new_empty(count), x.new_empty((2, 0), dtype=torch.float32), kept
    read = parse(scheme)
    where = (
        dynamic_size((positions.digits_expected(x.numel(), expected) + 1) // 2, samples) if read.kind == "gaps" else packed_size(x.numel())
    )
    values, count = _sizes_of_values(read, expected, samples)
    made = x.new_empty(values, dtype=torch.uint8 if read.bits else x.dtype)
    return x.new_empty(where, dtype=torch.uint8), made, x.new_empty((2, count), dtype=torch.float32), kept


def _sizes_of_values(read: Scheme, expected: int, samples: int) -> tuple[int, int]:
    """The size of the values, and the number of groups."""
    if not read.bits:
        return dynamic_size(expected, samples), 0
    count = dynamic_size(-(-expected // read.group), samples)
    return count * (read.group * read.bits // 8), count


def dynamic_size(expected: int, samples: int = 1) -> int:
    """A size that only values decide, as a symbol; where sizes must be numbers, the expected one, as much for each of the samples."""
    try:
        return cast(int, torch.library.get_ctx().new_dynamic_size())
    except (DynamicOutputShapeException, RuntimeError):
        return -(-expected // max(samples, 1)) * samples


pack_sparse.without_derivative()


def unpack_sparse(read: Scheme, packed: Tensor, values: Tensor, stats: Tensor, out: Tensor) -> None:
    """Store what fxsparse::pack_sparse kept in `out`, a 1-dim tensor in memory order, and 0 elsewhere."""
    out.zero_()
    if not values.numel():
        return
    if read.bits:
        whole = stats.shape[1] * read.group
        decoded = out.new_empty(whole)
        groups.decode(values, stats, whole, read.group, read.bits, False, decoded)
        values = decoded
    if read.kind == "bitmap" and out.device.type != "cpu":
        out.masked_scatter_(positions.decode_bitmap(packed, out.numel()), values.to(out.dtype))
        return
    where = positions.decode_gaps(packed) if read.kind == "gaps" else positions.indices(positions.decode_bitmap(packed, out.numel()))
    out.index_copy_(0, where, values[: where.numel()].to(out.dtype))
