"""The k-th largest value of a tensor, exactly, and how many values a density keeps.

Selecting with torch.kthvalue moves every element several times. Here a strided sample brackets the answer, two comparisons
place the bracket's rank, and only the few candidates between its ends are selected from. The sample decides the speed, never
the value: when the rank lies outside the bracket, the side that holds it is searched instead.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..kernels.library import kernels_for
from ..kernels.select import between
from .codes.layout import in_memory_order, is_dense

SAMPLED_FROM = 1 << 15
SAMPLES = 1 << 14
ELEMENTS_PER_SAMPLE = 1 << 7
BRACKET_DEVIATIONS = 4.0
COUNT_TOLERANCE = 1e-6
WORD_BYTES = 8
WORDS_WITHOUT_CARRY = 255


def kept_count(density: float, n: int) -> int:
    """Return ceil(density * n), at least 1 for a positive density and at most n.

    The product is allowed an error of 1e-6, so that a density computed as 1 - 0.7 keeps 3 of 10 values and not 4.

    Raises: ValueError for a density that is NaN or below 0.
    """
    if not density >= 0:
        raise ValueError(f"a density lies between 0 and 1, got {density}")
    if density == 0 or n == 0:
        return 0
    if density >= 1:
        return n
    return max(1, math.ceil(density * n - COUNT_TOLERANCE))


def kth_largest(magnitude: Tensor, k: int) -> Tensor:
    """Return the k-th largest value of `magnitude`, a new 0-dim tensor of its dtype; no random numbers, and no wait for a GPU.

    `magnitude` has any shape, strides and floating dtype; its values are not NaN. Equal values count one each: 1 <= k <= numel.

    Raises: ValueError when k is out of range.
    """
    n = magnitude.numel()
    _check_rank(k, n, "the tensor")
    if k == 1:
        return magnitude.amax()
    if k == n:
        return magnitude.amin()
    if magnitude.device.type != "cpu":
        return _by_topk(magnitude.reshape(1, n), k).reshape(())
    flat = _in_memory_order(magnitude)
    return _kth(flat, k) if n < SAMPLED_FROM else _by_sample(flat, k)


def kth_largest_magnitude(x: Tensor, k: int) -> Tensor | None:
    """Return the k-th largest |x| of a large dense float32 tensor on the CPU by native kernels; None where they do not find it.

    They do not where there are none, where |x| is not finite somewhere, and where the sample misleads.
    """
    n = x.numel()
    kernels = kernels_for(x) if x.dtype == torch.float32 and n >= SAMPLED_FROM and 1 < k < n and is_dense(x) else None
    if kernels is None:
        return None
    flat = in_memory_order(x.detach())
    upper, lower = _bracket(flat[:: _stride(n)].abs(), k, n)
    found = between(kernels, flat, lower, upper, n // 8)
    rank = k - found[0] if found is not None else 0
    return _kth(found[1], rank) if found is not None and 1 <= rank <= found[1].numel() else None


def kth_largest_per_slice(magnitude: Tensor, k: int, dims: Iterable[int]) -> Tensor:
    """Return the k-th largest value of each slice of `magnitude`: sizes kept at `dims`, 1 at every other dimension.

    A slice holds the elements that share their indices along `dims`; without `dims` the whole tensor is one slice, and the
    result has as many dimensions as `magnitude`, each of size 1.

    Raises: ValueError when k is out of range for a slice.
    """
    rows, shape = slices(magnitude, dims)
    n = rows.shape[1]
    _check_rank(k, n, f"a slice along dims {sorted(set(dims))}")
    if rows.device.type == "cpu" and n >= SAMPLED_FROM and rows.shape[0] > 0:
        return torch.stack([kth_largest(row, k) for row in rows.unbind()]).reshape(shape)
    if rows.device.type == "cpu":
        return rows.kthvalue(n - k + 1, dim=1).values.reshape(shape)
    return _by_topk(rows, k).reshape(shape)


def slices(tensor: Tensor, dims: Iterable[int]) -> tuple[Tensor, list[int]]:
    """Return the slices of `tensor` along `dims` as rows, (slices, elements of one), and the shape of one value for each.

    The shape has the sizes of `tensor` at `dims` and 1 elsewhere.
    """
    kept = sorted({dim % max(tensor.dim(), 1) for dim in dims})
    rest = [dim for dim in range(tensor.dim()) if dim not in kept]
    shape = [size if dim in kept else 1 for dim, size in enumerate(tensor.shape)]
    count = math.prod(shape)
    width = math.prod(tensor.shape[dim] for dim in rest)
    return tensor.permute(*kept, *rest).reshape(count, width), shape


def _check_rank(k: int, n: int, where: str) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"the {k}-th largest value was asked for, but {where} has {n} values; k lies between 1 and that number")


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return every element of `tensor` in one dimension, without a copy where the strides allow; the order is of no meaning."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).reshape(-1)


def _by_topk(rows: Tensor, k: int) -> Tensor:
    """Return the k-th largest value of each row, selecting from the nearer end."""
    n = rows.shape[1]
    if 2 * k <= n:
        return rows.topk(k, dim=1, sorted=False).values.amin(1)
    return rows.topk(n - k + 1, dim=1, largest=False, sorted=False).values.amax(1)


def _kth(flat: Tensor, k: int) -> Tensor:
    return flat.kthvalue(flat.numel() - k + 1).values


def _by_sample(flat: Tensor, k: int) -> Tensor:
    """Return the k-th largest value of a long 1-dim CPU tensor, with a sample's help."""
    n = flat.numel()
    upper, lower = _bracket(flat[:: _stride(n)], k, n)
    below_upper = flat < upper
    at_upper_or_more = n - _count(below_upper)
    if k <= at_upper_or_more:
        return _at_bound_or_more(flat, upper, k)
    if lower == upper:
        return _kth(flat.masked_select(below_upper), k - at_upper_or_more)
    inside = below_upper.logical_and_(flat > lower)
    candidates = _select(flat, inside)
    rank = k - at_upper_or_more
    if rank <= candidates.numel():
        return _kth(candidates, rank)
    return _at_bound_or_less(flat, lower, rank - candidates.numel())


def _bracket(sample: Tensor, k: int, n: int) -> tuple[float, float]:
    """Return bounds between which the k-th largest of n values lies, as far as a sample of them tells."""
    m = sample.numel()
    expected = k / n * m
    margin = BRACKET_DEVIATIONS * math.sqrt(expected * (1 - k / n)) + 1
    rank_of_upper, rank_of_lower = math.floor(expected - margin), math.ceil(expected + margin)
    upper = float(_kth(sample, rank_of_upper).item()) if rank_of_upper >= 1 else math.inf
    lower = float(_kth(sample, rank_of_lower).item()) if rank_of_lower <= m else -math.inf
    return upper, lower


def _at_bound_or_more(flat: Tensor, bound: float, k: int) -> Tensor:
    """Return the k-th largest of `flat`, which is known to be `bound` or more."""
    above = flat > bound
    return _kth(flat.masked_select(above), k) if k <= _count(above) else flat.new_tensor(bound)


def _at_bound_or_less(flat: Tensor, bound: float, k: int) -> Tensor:
    """Return the k-th largest of the values of `flat` that are `bound` or less."""
    equal = _count(flat == bound)
    return flat.new_tensor(bound) if k <= equal else _kth(flat.masked_select(flat < bound), k - equal)


def _stride(n: int) -> int:
    """Return the first odd stride that leaves about SAMPLES of n elements, or one in 128, and shares no factor with n.

    n is the product of a tensor's sizes, so that such a stride visits every index of every dimension.
    """
    stride = max(1, min(n // SAMPLES, ELEMENTS_PER_SAMPLE)) | 1
    while math.gcd(stride, n) != 1:
        stride += 2
    return stride


def _count(mask: Tensor) -> int:
    """Return how many elements of a contiguous 1-dim bool tensor are true: eight at a time, in the bytes of 64-bit sums."""
    block = WORD_BYTES * WORDS_WITHOUT_CARRY
    whole = mask.numel() // block * block
    sums = mask[:whole].view(torch.int64).reshape(-1, WORDS_WITHOUT_CARRY).sum(1)
    return int(sums.view(torch.uint8).sum()) + int(torch.count_nonzero(mask[whole:]))


def _select(flat: Tensor, mask: Tensor) -> Tensor:
    """Return flat[mask] for a mask with few true elements: words of eight first, then the elements of the words left."""
    whole = mask.numel() // WORD_BYTES * WORD_BYTES
    words = mask[:whole].view(torch.int64).nonzero().squeeze(1)
    values = flat[:whole].view(-1, WORD_BYTES).index_select(0, words)
    keep = mask[:whole].view(-1, WORD_BYTES).index_select(0, words)
    return torch.cat([values[keep], flat[whole:][mask[whole:]]])
