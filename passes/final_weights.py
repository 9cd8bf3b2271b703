"""The weight that inference multiplies with: what is left of a parameter under its mask, or under its threshold in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .masks.specs import MaskSpec
from .ops.masked_weight import masked
from .ops.score import score, split_groups
from .ops.sparsify import sparsify
from .ops.threshold import WEIGHT_SITE, refresh_threshold
from .specs import SwatSpec
from .state import SiteState

_NOT_TRAINING = -1


@dataclass(frozen=True)
class FinalWeight:
    """A weight as inference reads it.

    Attributes:
        values: the weight, 0 where it is dropped; its shape and dtype.
        kept: bool, of the same shape: what is not dropped, zeros that were kept included.
        threshold: the least score that is kept; None under a mask.
    """

    values: Tensor
    kept: Tensor
    threshold: float | None


@torch.no_grad()
def final_weight(weight: Tensor, state: SiteState, mask: MaskSpec | None, swat: SwatSpec | None) -> FinalWeight | None:
    """What the graphs compute from a weight in eval mode, bit for bit; None if no technique makes it sparse. Nothing is stored.

    Raises: NumericalError when a threshold must be selected and the weight holds NaN or inf.
    """
    if mask is not None:
        kept = state.get_buffer("mask")
        return FinalWeight(masked(weight.detach(), kept), kept.clone(), None)
    if swat is None or not swat.sparsifies_weight:
        return None
    threshold = threshold_in_use(weight, state, swat)
    values = sparsify(weight.detach(), threshold, list(swat.reduce_dims), swat.groups, True)
    by_element = not swat.reduce_dims and float(threshold) > 0
    return FinalWeight(values, values != 0 if by_element else kept_under(weight, threshold, swat), float(threshold))


def threshold_in_use(weight: Tensor, state: SiteState, spec: SwatSpec) -> Tensor:
    """The threshold of an eval-mode forward: the one selected last, or where none was selected yet, that of the weight as it is."""
    clock = torch.tensor(_NOT_TRAINING, dtype=torch.int64)
    stored, density = state.get_buffer("weight_threshold"), state.get_buffer("weight_density")
    dims = list(spec.reduce_dims)
    label = f"{WEIGHT_SITE}{spec.site}"
    found: Tensor = refresh_threshold(weight.detach(), stored.clone(), clock, density, 1, dims, spec.groups, [], True, label)
    return found


def kept_under(weight: Tensor, threshold: Tensor, spec: SwatSpec) -> Tensor:
    """bool of the weight's shape, true where its score reaches the threshold."""
    split = split_groups(weight.detach(), spec.groups)
    kept = (score(split, spec.reduce_dims) < threshold).logical_not_()
    return kept.expand_as(split).reshape(weight.shape)
