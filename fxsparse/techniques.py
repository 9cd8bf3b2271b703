"""The techniques that a policy is made of: frozen wishes, checked when they are written down."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from fxsparse.passes.specs import DISTRIBUTIONS, GRANULARITIES, STRUCTURES
from fxsparse.passes.specs_saved import BITS, ROUNDINGS

from .errors import PolicyError


@dataclass(frozen=True, kw_only=True)
class Technique:
    """What every technique has: which sites it is for.

    Attributes:
        include, exclude: globs over qualified names of parameters or modules ("layer4.*", "fc"), or "type:Linear".
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    sparsifies_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str):
                patterns = (patterns,)
            if name == "include" and patterns in ((), []):
                raise PolicyError(f"{self.title}.include is empty, so that it selects nothing; leave it out to select every contraction")
            if not isinstance(patterns, (tuple, list)) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
                raise PolicyError(
                    f"{self.title}.{name} is {patterns!r}; expected non-empty glob patterns such as 'layer4.*' or 'type:Linear'"
                )
            object.__setattr__(self, name, tuple(patterns))

    @property
    def title(self) -> str:
        """The technique's name."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """The technique as plain data; settings at their defaults are left out."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"technique": self.title, **{n: v for n, v in values.items() if getattr(self, n) != defaults[n]}}


def require_fraction(where: str, number: Any) -> float:
    """A sparsity as a float. Raises PolicyError outside [0, 1)."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0.0 <= number < 1.0:
        raise PolicyError(f"{where} is {number!r}; expected a fraction of zeros in [0, 1), such as 0.9")
    return float(number)


def require_member(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises PolicyError, with the closest allowed name, if ``value`` is not one of them."""
    if not isinstance(value, str) or value not in allowed:
        raise PolicyError(f"{where} is {value!r}{closest(value, allowed)}; expected one of {', '.join(map(repr, allowed))}")


def require_count(where: str, value: Any) -> None:
    """Raises PolicyError if ``value`` is not a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PolicyError(f"{where} is {value!r}; expected a whole number of steps, at least 1")


def closest(name: Any, known: Any) -> str:
    """A hint "; did you mean ...?" if a known name is near; else nothing."""
    near = difflib.get_close_matches(str(name), [str(item) for item in known], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


@dataclass(frozen=True, kw_only=True)
class SWAT(Technique):
    """Sparse weights in forward and grad-input, sparse activations in grad-weight; the optimizer updates dense weights.

    Attributes:
        weight_sparsity: fraction of zeros of the weights, in [0, 1); 0 leaves them dense.
        activation_sparsity: fraction of zeros of the activations that grad-weight sees; None: each layer's own weight sparsity.
        distribution: how the sparsity is shared among layers: "uniform", "er", "erk" (the sum of kept weights is exact),
            or "momentum" (the layers with the largest mean momentum keep more; needs ``compiled.attach(optimizer)``).
        structure: what is kept or dropped as one: "element", "kernel" (one slice (out, in) of a convolution) or "filter".
        granularity: over what the top-K of activations is taken: the whole "tensor", each "sample", "channel" or "sample_channel".
        period: training forwards between two selections of a threshold; between them it is reused. Structures and thresholds
            for each sample are selected anew in every forward.
        linear_period: the same for linear layers and matrix products; the authors select theirs in every forward.
        dense_first: leave the first contraction of the model dense.

    Source: Raihan & Aamodt, NeurIPS 2020, arXiv 2001.01969.
    """

    weight_sparsity: float
    activation_sparsity: float | None = None
    distribution: str = "uniform"
    structure: str = "element"
    granularity: str = "tensor"
    period: int = 10
    linear_period: int = 1
    dense_first: bool = True

    sparsifies_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight_sparsity", require_fraction("SWAT.weight_sparsity", self.weight_sparsity))
        if self.activation_sparsity is not None:
            object.__setattr__(self, "activation_sparsity", require_fraction("SWAT.activation_sparsity", self.activation_sparsity))
        require_member("SWAT.distribution", self.distribution, DISTRIBUTIONS)
        require_member("SWAT.structure", self.structure, STRUCTURES)
        require_member("SWAT.granularity", self.granularity, GRANULARITIES)
        require_count("SWAT.period", self.period)
        require_count("SWAT.linear_period", self.linear_period)
        if not isinstance(self.dense_first, bool):
            raise PolicyError(f"SWAT.dense_first is {self.dense_first!r}; expected True or False")
        if self.distribution == "momentum" and self.structure != "element":
            raise PolicyError(
                f"SWAT.distribution 'momentum' counts elements; structure {self.structure!r} goes with 'uniform', 'er' or 'erk'"
            )

    @property
    def is_neutral(self) -> bool:
        """Whether it asks for nothing at all."""
        return self.weight_sparsity == 0 and not self.activation_sparsity


@dataclass(frozen=True, kw_only=True)
class BLPA(Technique):
    """Of each chain norm - ReLU - [pool] - contraction only a few-bit code is kept for backward; the forward pass is exact.

    The ReLU's mask, the gradient of beta and what passes to the layer below are exact too; the gradients of the weight and of gamma,
    and the normalised value in the norm's own gradient, come from the code. A contraction is selected with the chain that ends in it.

    Attributes:
        bits: 1, 2, 4 or 8 for each element.

    Source: Chakrabarti & Moseley, NeurIPS 2019, arXiv 1901.07988.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bits("BLPA.bits", self.bits)


@dataclass(frozen=True, kw_only=True)
class SavedActivations(Technique):
    """What operators keep for backward, as few-bit codes; the forward pass is exact.

    With stochastic rounding, gradients are those of exact training in expectation. Patterns select modules: those that are called
    and keep something ("type:GELU"), and those whose forward calls functions that do.

    Attributes:
        bits: 1, 2, 4 or 8 for each element. group_size: elements that share a minimum and a step, a power of two from 8.
        rounding: "stochastic" (unbiased, the same for the same step and place) or "nearest".

    Source: Chen et al., ActNN, ICML 2021; Liu et al., GACT, ICML 2022.
    """

    bits: int = 4
    group_size: int = 256
    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bits("SavedActivations.bits", self.bits)
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size & (size - 1):
            raise PolicyError(f"SavedActivations.group_size is {size!r}; expected a power of two from 8, such as 256")
        require_member("SavedActivations.rounding", self.rounding, ROUNDINGS)


def require_bits(where: str, value: Any) -> None:
    """Raises PolicyError if ``value`` is no number of bits that codes have."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in BITS:
        raise PolicyError(f"{where} is {value!r}; expected one of {', '.join(map(str, BITS))}")


TECHNIQUES: dict[str, type[Technique]] = {kind.__name__: kind for kind in (SWAT, BLPA, SavedActivations)}
