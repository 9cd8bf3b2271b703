"""fxsparse::refresh_threshold, the threshold of a top-K that is selected every `period` steps and reused in between."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fxsparse.errors import NumericalError

from .operator import operator
from .score import at_least_float32, score, split_groups, threshold_shape
from .selection import kept_count, kth_largest, kth_largest_magnitude, kth_largest_per_slice, slices

WEIGHT_SITE = "weight:"
EXACT_DECIMALS_OF_FLOAT32 = 7


@operator(mutates=("stored",))
def refresh_threshold(
    x: Tensor,
    stored: Tensor,
    clock: Tensor,
    density: Tensor,
    period: int,
    reduce_dims: Sequence[int],
    groups: int,
    per_dims: Sequence[int],
    enabled: bool,
    site: str,
) -> Tensor:
    """Return the K-th largest score of x, K = kept_count(density, scores): selected now, or the one `stored` at the last refresh.

    The scores are |x|, or the L1 norms over `reduce_dims`; `groups` > 1 first views dimension 0 as (groups, size / groups), and
    all dims then count in the split tensor. One threshold, 0-dim, without `per_dims`; else one for each index along them, with
    size 1 elsewhere. Its dtype is x's promoted to at least float32. x is detached.

    `clock` is a 0-dim int64 CPU tensor, the step t in a training forward, -1 otherwise; `density` is a 0-dim CPU tensor. A refresh
    is due when t >= 0 and t % period == 0, and while `stored` is NaN; it is stored when t >= 0. `stored` has the threshold's shape;
    only with 0 in `per_dims` may it have another, and then nothing is reused. On a GPU a training step off the period waits for
    nothing: there an unset `stored` is returned as it is, NaN, which keeps every element. A density of 1 or more gives 0 at once.

    Not `enabled`: an empty tensor, and nothing is stored.

    Raises: NumericalError when a refresh finds NaN or inf and `site` begins with "weight:"; elsewhere such scores are left out of
    the selection. ValueError for a period below 1, a density below 0, or a `stored` of the wrong shape.
    Source: SWAT, Raihan & Aamodt 2020, arXiv 2001.01969, algorithm 1.
    """
    if not enabled:
        return x.new_empty(0)
    if period < 1:
        raise ValueError(f"{site or 'a threshold'}: the period is a number of steps from 1, got {period}")
    x = split_groups(x.detach(), groups)
    shape = threshold_shape(x, reduce_dims, per_dims)
    dtype = at_least_float32(x.dtype)
    step, wanted = int(clock.item()), _as_float(density)
    is_training, on_period = step >= 0, step >= 0 and step % period == 0
    reusable = _is_reusable(stored, shape, x, per_dims, site)

    if wanted >= 1:
        threshold = torch.zeros(shape, dtype=dtype, device=x.device)
        keep = on_period
    elif reusable and not on_period and not _is_unset(stored, is_training):
        return stored.detach().to(dtype, copy=True)
    else:
        threshold = _select(x, wanted, reduce_dims, per_dims, site).to(dtype).reshape(shape)
        keep = is_training
    if keep and reusable:
        stored.copy_(threshold)
    return threshold


@refresh_threshold.register_fake
def _(
    x: Tensor,
    stored: Tensor,
    clock: Tensor,
    density: Tensor,
    period: int,
    reduce_dims: Sequence[int],
    groups: int,
    per_dims: Sequence[int],
    enabled: bool,
    site: str,
) -> Tensor:
    if not enabled:
        return x.new_empty(0)
    shape = threshold_shape(split_groups(x, groups), reduce_dims, per_dims)
    return x.new_empty(shape, dtype=at_least_float32(x.dtype))


def _as_float(density: Tensor) -> float:
    """Return the density as it was written: a float32 0.1 is 0.10000000149, which would keep one too many of a million values."""
    value = float(density.item())
    return value if density.dtype == torch.float64 else float(f"{value:.{EXACT_DECIMALS_OF_FLOAT32}g}")


def _is_reusable(stored: Tensor, shape: list[int], x: Tensor, per_dims: Sequence[int], site: str) -> bool:
    if list(stored.shape) == shape:
        return True
    if any(dim % x.dim() == 0 for dim in per_dims):
        return False
    raise ValueError(
        f"{site or 'a threshold'}: thresholds per dims {list(per_dims)} of a tensor of shape {list(x.shape)} have the shape {shape}, "
        f"but the buffer that stores them has {list(stored.shape)}; make the buffer of that shape, filled with NaN"
    )


def _is_unset(stored: Tensor, is_training: bool) -> bool:
    if is_training and stored.device.type != "cpu":
        return False
    return bool(stored.isnan().any())


def _select(x: Tensor, density: float, reduce_dims: Sequence[int], per_dims: Sequence[int], site: str) -> Tensor:
    shape = threshold_shape(x, reduce_dims, per_dims)
    if not reduce_dims and not per_dims:
        found = kth_largest_magnitude(x, kept_count(density, x.numel()))
        if found is not None:
            return found
    scores = score(x, reduce_dims)
    if scores.numel() == 0:
        return scores.new_zeros(shape)
    is_finite = math.isfinite(float(scores.amax().item()))
    if not is_finite and site.startswith(WEIGHT_SITE):
        raise NumericalError(_not_finite(x, site))
    k = kept_count(density, scores.numel() // math.prod(shape))
    if k == 0:
        return scores.new_full(shape, math.inf)
    if not is_finite:
        return _select_finite(scores, density, per_dims)
    return kth_largest_per_slice(scores, k, per_dims) if per_dims else kth_largest(scores, k)


def _not_finite(x: Tensor, site: str) -> str:
    bad = x.numel() - int(torch.isfinite(x).sum())
    return (
        f"{site}: {bad} of {x.numel()} values are NaN or inf (shape {list(x.shape)}, {x.dtype}), so no threshold can be selected; "
        "the weights were lost in an earlier step: lower the learning rate, clip the gradients, or skip steps whose gradients are "
        "not finite (torch.amp.GradScaler), and restart from the last good checkpoint"
    )


def _select_finite(scores: Tensor, density: float, per_dims: Sequence[int]) -> Tensor:
    """Return the threshold among the finite scores of each slice, 0 for a slice that has none."""
    rows, shape = slices(scores, per_dims)
    return torch.stack([_kth_finite(row[row.isfinite()], density) for row in rows.unbind()]).reshape(shape)


def _kth_finite(finite: Tensor, density: float) -> Tensor:
    if finite.numel() == 0:
        return finite.new_zeros(())
    return kth_largest(finite, kept_count(density, finite.numel()))
