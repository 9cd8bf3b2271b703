"""In which shape weights are kept or dropped: single elements, kernel slices, filters, N of every M."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.score import merge_groups, split_groups


@dataclass(frozen=True)
class Structure:
    """What is kept or dropped as one: a unit.

    A tensor of the weight's shape becomes one of units by ``reduce``, and a tensor of units one of the weight's shape by ``expand``.
    """

    @property
    def name(self) -> str:
        """What it is called in policies and reports."""
        return type(self).__name__.lower()

    @property
    def by_element(self) -> bool:
        """Whether a unit is one element."""
        return False

    def unit(self, shape: tuple[int, ...]) -> int:
        """Elements in a unit."""
        raise NotImplementedError

    def reduce(self, scores: Tensor) -> Tensor:
        """The score of each unit: the sum over its elements, in float32 or wider."""
        raise NotImplementedError

    def active(self, mask: Tensor) -> Tensor:
        """Which units a mask keeps."""
        raise NotImplementedError

    def expand(self, units: Tensor, like: Tensor) -> Tensor:
        """The mask of ``like``'s shape that keeps these units."""
        raise NotImplementedError


@dataclass(frozen=True)
class Elements(Structure):
    """Single weights."""

    @property
    def name(self) -> str:
        return "element"

    @property
    def by_element(self) -> bool:
        return True

    def unit(self, shape: tuple[int, ...]) -> int:
        return 1

    def reduce(self, scores: Tensor) -> Tensor:
        return scores

    def active(self, mask: Tensor) -> Tensor:
        return mask

    def expand(self, units: Tensor, like: Tensor) -> Tensor:
        return units


@dataclass(frozen=True)
class Slices(Structure):
    """All elements that differ only along ``dims``; with ``groups`` > 1 dimension 0 is first split into (groups, size / groups)."""

    kind: str
    dims: tuple[int, ...]
    groups: int = 1

    @property
    def name(self) -> str:
        return self.kind

    def unit(self, shape: tuple[int, ...]) -> int:
        split = (self.groups, shape[0] // self.groups, *shape[1:]) if self.groups > 1 else shape
        return math.prod(split[dim] for dim in self.dims)

    def reduce(self, scores: Tensor) -> Tensor:
        return split_groups(scores, self.groups).to(torch.promote_types(scores.dtype, torch.float32)).sum(self.dims, keepdim=True)

    def active(self, mask: Tensor) -> Tensor:
        return split_groups(mask, self.groups).amax(self.dims, keepdim=True)

    def expand(self, units: Tensor, like: Tensor) -> Tensor:
        return merge_groups(units.expand(split_groups(like, self.groups).shape), self.groups)


@dataclass(frozen=True)
class OfEvery(Structure):
    """The ``n`` largest of every ``m`` consecutive elements along ``axis``, in logical order whatever the memory format."""

    n: int
    m: int
    axis: int = 1

    @property
    def name(self) -> str:
        return f"{self.n}:{self.m}"

    def unit(self, shape: tuple[int, ...]) -> int:
        return 1

    def choose(self, scores: Tensor) -> Tensor:
        """The mask: of equal scores the first ones are kept, so that there are always exactly ``n``."""
        groups = scores.movedim(self.axis, -1)
        groups = groups.reshape(*groups.shape[:-1], -1, self.m)
        order = groups.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
        chosen = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device).scatter_(-1, order, True)
        return chosen.flatten(-2).movedim(-1, self.axis)
