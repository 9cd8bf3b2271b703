"""By what weights are dropped and grown: a score for each, the larger the more it is wanted."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """What a criterion may look at: tensors of one shape, a weight or a slice of its first dimension.

    Attributes:
        name: of the site. step: the optimizer step after which masks change.
        weight, mask: as they are. gradient: of all weights, dense ones included; momentum: the optimizer's. None unless asked for.
        random: makes uniform random numbers of the weight's shape, the same on every rank and after every resume.
    """

    name: str
    step: int
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    momentum: Tensor | None
    random: Callable[[], Tensor]


class Criterion:
    """A score for each weight. To write one's own, derive from it and implement ``score``.

    Attributes:
        reads: "nothing" beside the weight, the "gradient", or the "momentum". Weights can be grown by a gradient only where all
            weights have one, so that some steps compute it dense; by the momentum only where all steps do.
        by_element: a weight's score depends on that weight alone, so that ``score`` may be given a slice.
        must_be_finite: a score that is NaN or inf is an error; elsewhere such scores count as the smallest.
    """

    reads: str = "nothing"
    by_element: bool = False
    must_be_finite: bool = False

    def score(self, at: Weight) -> Tensor:
        """A tensor of the weight's shape and any floating dtype."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name in policies: of a built-in criterion its own, else "module:class"."""
        kind = type(self)
        return next((known for known, built_in in CRITERIA.items() if built_in is kind), f"{kind.__module__}:{kind.__qualname__}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Magnitude(Criterion):
    """|weight|."""

    by_element = True
    must_be_finite = True

    def score(self, at: Weight) -> Tensor:
        return at.weight.abs()


class Gradient(Criterion):
    """|gradient|. Source: RigL, Evci et al. 2020."""

    reads = "gradient"
    by_element = True

    def score(self, at: Weight) -> Tensor:
        assert at.gradient is not None
        return at.gradient.abs()


class Momentum(Criterion):
    """|momentum| of the optimizer, that of masked weights included. Source: sparse momentum, Dettmers & Zettlemoyer 2019."""

    reads = "momentum"
    by_element = True

    def score(self, at: Weight) -> Tensor:
        assert at.momentum is not None
        return at.momentum.abs()


class Random(Criterion):
    """A random number. Source: SET, Mocanu et al. 2018."""

    def score(self, at: Weight) -> Tensor:
        return at.random()


CRITERIA: dict[str, type[Criterion]] = {"magnitude": Magnitude, "gradient": Gradient, "momentum": Momentum, "random": Random}


def criterion_of(name: str) -> Criterion:
    """A built-in criterion by its name, or a user's by "module:class".

    Raises: ValueError if there is none of that name.
    """
    if name in CRITERIA:
        return CRITERIA[name]()
    module, colon, path = name.partition(":")
    if not colon:
        raise ValueError(f"there is no criterion {name!r}; built in are {', '.join(CRITERIA)}, your own is written as 'module:class'")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the criterion {name!r} cannot be imported: {error}") from None
    if not isinstance(found, type) or not issubclass(found, Criterion):
        raise ValueError(f"{name!r} is no subclass of fxsparse.Criterion")
    return found()


def seed_of(seed: int, step: int, site: str) -> int:
    """The seed of the random numbers for one weight at one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{site}".encode()).digest()[:8], "little") >> 1


def uniform_numbers(shape: tuple[int, ...], seed: int, step: int, site: str) -> Tensor:
    """Random numbers in [0, 1), float32 on the CPU, in logical order; they depend on nothing but the arguments."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed_of(seed, step, site)))
