"""What a threshold is compared with: the magnitude of each element, or the L1 norm of each structure."""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_groups(x: Tensor, groups: int) -> Tensor:
    """Return x with dimension 0 viewed as (groups, size / groups), or x itself for one group."""
    return x if groups == 1 else x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def merge_groups(x: Tensor, groups: int) -> Tensor:
    """Return x as it was before split_groups."""
    return x if groups == 1 else x.flatten(0, 1)


def score(x: Tensor, reduce_dims: Sequence[int]) -> Tensor:
    """Return |x| in x's dtype, or its sum over `reduce_dims`, kept as size 1, in x's dtype promoted to at least float32."""
    if not reduce_dims:
        return x.abs()
    return x.abs().to(at_least_float32(x.dtype)).sum(list(reduce_dims), keepdim=True)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype promoted to float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def threshold_shape(x: Tensor, reduce_dims: Sequence[int], per_dims: Sequence[int]) -> list[int]:
    """Return the shape of the thresholds for a group-split x: () for one threshold, else the scores' with 1 off `per_dims`."""
    if not per_dims:
        return []
    reduced, kept = {dim % x.dim() for dim in reduce_dims}, {dim % x.dim() for dim in per_dims}
    return [size if dim in kept and dim not in reduced else 1 for dim, size in enumerate(x.shape)]
