"""What a mask technique decided: for each weight, and for all of its weights together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .criteria import Criterion
from .schedules import CosineExchange, CubicPruning
from .structures import Elements, Structure

SCOPES = ("global", "layer")
STARTS = ("random", "dense", "magnitude", "weights")


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """A mask on one weight.

    Attributes:
        site: the weight's qualified name. technique: the name of the technique. regime: number of the regime that it belongs to.
        kept: elements that the mask keeps at first. total: elements of the weight.
        start: how the first mask is chosen: "random", "dense", "magnitude", or the non-zeros of the "weights".
        structure: what is kept or dropped as one.
        least: elements that pruning leaves it at least once the sparsity is 0.8 (the classifier of a uniform GraNet).
        straight_through: masked weights go on learning. decay: of masked weights, then (SR-STE).
    """

    site: str
    technique: str
    regime: int
    kept: int
    total: int
    start: str = "random"
    structure: Structure = field(default_factory=Elements)
    least: int = 0
    straight_through: bool = False
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.total or self.total < 1:
            raise ValueError(f"{self.site}: {self.kept} of {self.total} weights cannot be kept")
        if self.start not in STARTS:
            raise ValueError(f"{self.site}: start {self.start!r} is none of {STARTS}")

    @property
    def weight_density(self) -> float:
        """The fraction of the weight that is kept at first."""
        return self.kept / self.total

    @property
    def activation_density(self) -> float:
        """Activations stay dense."""
        return 1.0

    @property
    def follows_momentum(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data."""
        return {**asdict(self), "structure": self.structure.name}


@dataclass(frozen=True, kw_only=True)
class RegimeSpec:
    """How the masks of one technique move, all of them together.

    Attributes:
        technique: its name. settings: its settings as plain data. sites: its weights, in the order of execution.
        pruning: when weights are taken away for good, and how many are left. exchange: when some are dropped and as many grown.
        scope: whether pruning compares all weights with each other ("global") or those of each "layer".
        drop, grow: by what weights are dropped and grown. regrow: a weight just dropped may be grown at once.
        seed: of everything that is random. refresh: N:M masks are chosen anew after every step.
    """

    technique: str
    settings: dict[str, Any]
    sites: tuple[str, ...]
    pruning: CubicPruning | None = None
    exchange: CosineExchange | None = None
    scope: str = "global"
    drop: Criterion | None = None
    grow: Criterion | None = None
    regrow: bool = True
    seed: int = 0
    refresh: bool = False

    @property
    def moves(self) -> bool:
        """Whether the masks change at all after the start."""
        return self.pruning is not None or self.exchange is not None or self.refresh

    @property
    def keeps_state(self) -> bool:
        """Whether the optimizer's state of masked weights is what weights are grown by."""
        return self.grow is not None and self.grow.reads == "momentum"

    def is_due(self, step: int) -> bool:
        """Whether masks change after an optimizer step, the first one being number 1."""
        pruned = self.pruning is not None and self.pruning.sparsity(step) is not None
        return self.refresh or pruned or (self.exchange is not None and self.exchange.fraction(step) > 0)

    def wants_dense_gradient(self, step: int) -> bool:
        """Whether a step needs the gradient of masked weights too."""
        if self.exchange is None or self.grow is None or self.grow.reads == "nothing":
            return False
        if self.grow.reads == "momentum":
            return self.exchange.lasts_beyond(step - 1)
        return self.exchange.fraction(step) > 0
