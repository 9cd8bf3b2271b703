"""The masks that training begins with."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .criteria import Criterion, Magnitude, Random, uniform_numbers
from .specs import MaskSpec
from .structures import OfEvery
from .update import Masked, keep_largest


@torch.no_grad()
def first_mask(spec: MaskSpec, weight: Tensor, seed: int) -> Tensor:
    """A bool tensor of the weight's shape, strides and device that keeps ``spec.kept`` of its elements."""
    weight = weight.detach()
    mask = torch.ones_like(weight, dtype=torch.bool)
    if weight.device.type == "meta" or spec.start == "dense":
        return mask
    if isinstance(spec.structure, OfEvery):
        return mask.copy_(spec.structure.choose(weight.abs()))
    if spec.start == "weights":
        return mask.copy_(weight != 0)
    if spec.kept < spec.total:
        criterion: Criterion = Magnitude() if spec.start == "magnitude" else Random()
        random = partial(numbers, weight, seed, 0, spec.site)
        units = spec.kept // spec.structure.unit(tuple(weight.shape))
        keep_largest([Masked(spec.site, weight, mask, spec.structure, None, None, random)], units, criterion, 0)
    return mask


def numbers(weight: Tensor, seed: int, step: int, site: str) -> Tensor:
    """Random numbers for a weight, on its device."""
    return uniform_numbers(tuple(weight.shape), seed, step, site).to(weight.device)
