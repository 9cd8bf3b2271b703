"""Techniques that mask weights: GraNet, GMP, RigL, SET, static masks and N:M."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fxsparse.passes.masks.criteria import CRITERIA, Criterion, criterion_of
from fxsparse.passes.masks.specs import SCOPES

from .errors import PolicyError
from .techniques import Technique, require_count, require_fraction, require_member

MASK_DISTRIBUTIONS = ("uniform", "er", "erk")
MASK_STRUCTURES = ("element", "kernel", "filter")


@dataclass(frozen=True, kw_only=True)
class MaskTechnique(Technique):
    """What every technique has that masks weights.

    Attributes:
        seed: of what is random in it: first masks, and growth at random. The same seed gives the same masks on every machine.
    """

    seed: int = 0

    sparsifies_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise PolicyError(f"{self.title}.seed is {self.seed!r}; expected a whole number")

    @property
    def is_neutral(self) -> bool:
        """Whether it asks for nothing at all."""
        return False

    def _require_criteria(self, *names: str) -> None:
        for name in names:
            given = getattr(self, name)
            kind = given if isinstance(given, type) else type(given)
            if issubclass(kind, Criterion):
                given = kind().name
                object.__setattr__(self, name, given)
            try:
                if not isinstance(given, str):
                    raise ValueError(f"it is {given!r}")
                criterion_of(given)
            except ValueError as error:
                known = ", ".join(map(repr, CRITERIA))
                raise PolicyError(f"{self.title}.{name}: {error}; expected one of {known}, or a subclass of fxsparse.Criterion") from None

    def _require_schedule(self, begin: int, end: int, interval: int) -> None:
        require_count(f"{self.title}.interval", interval)
        for name, value in (("begin", begin), ("end", end)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise PolicyError(f"{self.title}.{name} is {value!r}; expected a whole number of optimizer steps")
        if begin > end:
            raise PolicyError(f"{self.title} begins at step {begin}, after its end at step {end}; begin must come first")
        if end // interval <= begin // interval:
            raise PolicyError(
                f"{self.title}: no interval of {interval} steps lies between begin={begin} and end={end}; "
                "make the interval shorter or the end later"
            )


@dataclass(frozen=True, kw_only=True)
class _Gradual(MaskTechnique):
    """Sparsity that rises while training."""

    final_sparsity: float
    begin: int
    end: int
    interval: int = 1000
    initial_sparsity: float = 0.0
    scope: str = "global"
    distribution: str = "erk"
    structure: str = "element"
    to_the_end: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("initial_sparsity", "final_sparsity"):
            object.__setattr__(self, name, require_fraction(f"{self.title}.{name}", getattr(self, name)))
        if self.final_sparsity < self.initial_sparsity:
            raise PolicyError(
                f"{self.title}.final_sparsity {self.final_sparsity} is below initial_sparsity {self.initial_sparsity}; "
                "pruning only ever takes weights away"
            )
        self._require_schedule(self.begin, self.end, self.interval)
        require_member(f"{self.title}.scope", self.scope, SCOPES)
        require_member(f"{self.title}.distribution", self.distribution, MASK_DISTRIBUTIONS)
        require_member(f"{self.title}.structure", self.structure, MASK_STRUCTURES)
        if self.structure != "element" and self.scope == "global":
            raise PolicyError(f"{self.title}.scope 'global' compares single weights; structure {self.structure!r} goes with scope 'layer'")
        if not isinstance(self.to_the_end, bool):
            raise PolicyError(f"{self.title}.to_the_end is {self.to_the_end!r}; expected True or False")


@dataclass(frozen=True, kw_only=True)
class GraNet(_Gradual):
    """Gradual pruning with neuroregeneration: sparsity rises, and at every update each layer drops some weights and grows as many.

    Attributes:
        initial_sparsity: of the random ERK masks at the start; 0 starts dense. final_sparsity: after pruning.
        begin, end, total_steps, interval: in optimizer steps. Pruning takes place from begin to end, the last time one interval
            before the end unless ``to_the_end``; dropping and growing goes on to total_steps.
        prune_rate: fraction of a layer's weights that an update drops and grows, at first; it falls in half a cosine to 0.005.
        scope: "global" prunes the smallest weights of all layers, "layer" those of each; the last linear layer then keeps 20 %.
        distribution: of the masks at the start. structure: "element", "kernel" or "filter" (these two with scope "layer").
        drop, grow: names of criteria, or subclasses of ``fxsparse.Criterion``. regrow: what was just dropped may be grown at once.

    Source: Liu et al., NeurIPS 2021, arXiv 2106.10404.
    """

    total_steps: int
    prune_rate: float = 0.5
    drop: Any = "magnitude"
    grow: Any = "gradient"
    regrow: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("GraNet.total_steps", self.total_steps)
        object.__setattr__(self, "prune_rate", require_fraction("GraNet.prune_rate", self.prune_rate))
        if self.total_steps < self.end:
            raise PolicyError(f"GraNet.total_steps {self.total_steps} is before the end of pruning at step {self.end}")
        self._require_criteria("drop", "grow")


@dataclass(frozen=True, kw_only=True)
class GMP(_Gradual):
    """Gradual magnitude pruning: sparsity rises from ``initial_sparsity`` to ``final_sparsity``; nothing is grown.

    Attributes: see ``GraNet``. Source: Zhu & Gupta 2017, arXiv 1710.01878.
    """


@dataclass(frozen=True, kw_only=True)
class _Exchanging(MaskTechnique):
    """A fixed number of weights in each layer, some of which are exchanged now and then."""

    sparsity: float
    end: int
    interval: int = 100
    drop_fraction: float = 0.3
    distribution: str = "erk"
    structure: str = "element"
    drop: Any = "magnitude"
    grow: Any = "gradient"
    regrow: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sparsity", "drop_fraction"):
            object.__setattr__(self, name, require_fraction(f"{self.title}.{name}", getattr(self, name)))
        self._require_schedule(0, self.end, self.interval)
        require_member(f"{self.title}.distribution", self.distribution, MASK_DISTRIBUTIONS)
        require_member(f"{self.title}.structure", self.structure, MASK_STRUCTURES)
        self._require_criteria("drop", "grow")

    @property
    def is_neutral(self) -> bool:
        return self.sparsity == 0


@dataclass(frozen=True, kw_only=True)
class RigL(_Exchanging):
    """Every ``interval`` steps up to ``end`` each layer drops its smallest weights and grows where the gradient is largest.

    Attributes:
        sparsity: of all masked weights together, shared by ``distribution``: "uniform", "er" or "erk".
        drop_fraction: of a layer's weights, at first; it falls in half a cosine to 0 at ``end``.
        drop, grow: names of criteria ("magnitude", "gradient", "momentum", "random"), or subclasses of ``fxsparse.Criterion``.
        structure, regrow: see ``GraNet``.

    Source: Evci et al., ICML 2020, arXiv 1911.11134.
    """


@dataclass(frozen=True, kw_only=True)
class SET(_Exchanging):
    """RigL with growth at random. Attributes: see ``RigL``. Source: Mocanu et al. 2018."""

    grow: Any = "random"


@dataclass(frozen=True, kw_only=True)
class StaticMask(MaskTechnique):
    """Masks that never change.

    Attributes:
        sparsity, distribution, structure: see ``RigL``.
        start: "random", by "magnitude", or the zeros of the "weights" as they are (then sparsity, distribution and structure are not used).
    """

    sparsity: float = 0.0
    distribution: str = "erk"
    structure: str = "element"
    start: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sparsity", require_fraction("StaticMask.sparsity", self.sparsity))
        require_member("StaticMask.distribution", self.distribution, MASK_DISTRIBUTIONS)
        require_member("StaticMask.structure", self.structure, MASK_STRUCTURES)
        require_member("StaticMask.start", self.start, ("random", "magnitude", "weights"))

    @classmethod
    def from_weights(cls, model: nn.Module | None = None, *, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> StaticMask:
        """Masks that keep the weights which are not zero, to fine-tune a sparse model without reviving its zeros.

        Args:
            model: if given, it is asked at once whether it has a weight with zeros.

        Raises:
            PolicyError: it has none.
        """
        if model is not None and not any(bool((p == 0).any()) for p in model.parameters() if p.dim() > 1):
            raise PolicyError("StaticMask.from_weights: no weight of the model has a zero; pass the sparse model, or a sparsity")
        return cls(start="weights", include=tuple(include), exclude=tuple(exclude))

    @property
    def is_neutral(self) -> bool:
        return self.start != "weights" and self.sparsity == 0


@dataclass(frozen=True, kw_only=True)
class NM(MaskTechnique):
    """The ``n`` largest of every ``m`` consecutive weights along the input axis; ``NM(2, 4)`` is what tensor cores take.

    Attributes:
        straight_through: masked weights go on learning, and the mask is chosen anew after every optimizer step. Otherwise it
            stays as it is at the start.
        decay: with straight_through, what masked weights are decayed by in every step (SR-STE; 2e-4 in the paper).

    Source: Zhou et al. 2021, arXiv 2102.04010 (straight-through and SR-STE); Mishra et al. 2021, arXiv 2104.08378.
    """

    n: int
    m: int
    straight_through: bool = False
    decay: float = 0.0

    def __init__(
        self,
        n: int,
        m: int,
        *,
        straight_through: bool = False,
        decay: float = 0.0,
        include: tuple[str, ...] = ("*",),
        exclude: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        given = {"n": n, "m": m, "straight_through": straight_through, "decay": decay, "include": include, "exclude": exclude, "seed": seed}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n", "m"):
            require_count(f"NM.{name}", getattr(self, name))
        if self.n > self.m:
            raise PolicyError(f"NM keeps n of every m weights; got n={self.n}, m={self.m}")
        if not isinstance(self.straight_through, bool):
            raise PolicyError(f"NM.straight_through is {self.straight_through!r}; expected True or False")
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or self.decay < 0:
            raise PolicyError(f"NM.decay is {self.decay!r}; expected a number from 0")
        if self.decay and not self.straight_through:
            raise PolicyError("NM.decay is for masked weights that go on learning; give straight_through=True as well")

    @property
    def is_neutral(self) -> bool:
        return self.n == self.m


MASK_TECHNIQUES: dict[str, type[Technique]] = {kind.__name__: kind for kind in (GraNet, GMP, RigL, SET, StaticMask, NM)}
