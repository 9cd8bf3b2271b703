"""Resolved wishes: what a technique decided for one site. Specs check themselves and never change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .masks.specs import MaskSpec

STRUCTURES = ("element", "kernel", "filter")
GRANULARITIES = ("tensor", "sample", "channel", "sample_channel")
DISTRIBUTIONS = ("uniform", "er", "erk", "momentum")


@dataclass(frozen=True, kw_only=True)
class SwatSpec:
    """SWAT on one weight.

    Attributes:
        site: the weight's qualified name.
        weight_kept, weight_scores: how many of how many scores are kept; a score is an element, a kernel slice or a filter.
        activation_sparsity: fraction of zeros of the activation that grad-weight sees.
        weight_period, activation_period: forward passes between two selections of a threshold.
        reduce_dims, groups: the dimensions of the weight over which a score is an L1 norm, the first one split into groups.
        follows_momentum: densities move with the optimizer's momentum.
    """

    site: str
    weight_kept: int
    weight_scores: int
    activation_sparsity: float
    structure: str = "element"
    granularity: str = "tensor"
    distribution: str = "uniform"
    weight_period: int = 10
    activation_period: int = 10
    reduce_dims: tuple[int, ...] = ()
    groups: int = 1
    follows_momentum: bool = False
    activation_follows_weight: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight_kept <= self.weight_scores or self.weight_scores < 1:
            raise ValueError(f"{self.site}: {self.weight_kept} of {self.weight_scores} scores cannot be kept")
        if not 0.0 <= self.activation_sparsity < 1.0:
            raise ValueError(f"{self.site}: activation_sparsity {self.activation_sparsity} is outside [0, 1)")
        for name, allowed in (("structure", STRUCTURES), ("granularity", GRANULARITIES), ("distribution", DISTRIBUTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{self.site}: {name} {getattr(self, name)!r} is none of {allowed}")
        if self.weight_period < 1 or self.activation_period < 1:
            raise ValueError(f"{self.site}: a period is at least 1")

    @property
    def weight_density(self) -> float:
        """The fraction of the weight that is kept."""
        return self.weight_kept / self.weight_scores

    @property
    def activation_density(self) -> float:
        """The fraction of the activation that grad-weight sees."""
        return 1.0 - self.activation_sparsity

    @property
    def sparsifies_weight(self) -> bool:
        return self.follows_momentum or self.weight_kept < self.weight_scores

    @property
    def sparsifies_activation(self) -> bool:
        return self.activation_sparsity > 0 or (self.follows_momentum and self.activation_follows_weight)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data."""
        return {"technique": "SWAT", **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}


@dataclass(frozen=True, kw_only=True)
class CombinedSpec:
    """Several techniques on one site: a mask on its weight, and SWAT on its activations."""

    site: str
    specs: tuple[MaskSpec, SwatSpec]

    @property
    def weight_density(self) -> float:
        """The fraction of the weight that is kept at first."""
        return self.specs[0].weight_density

    @property
    def activation_density(self) -> float:
        """The fraction of the activation that grad-weight sees."""
        return self.specs[1].activation_density

    def to_dict(self) -> dict[str, Any]:
        """The specs as JSON-able data."""
        return {"site": self.site, "specs": [spec.to_dict() for spec in self.specs]}
