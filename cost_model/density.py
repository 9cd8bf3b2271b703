"""How non-zeros are spread over a tensor, and what a tile of it therefore holds.

Three kinds: uniformly random positions (hypergeometric), N:M patterns, and a measured mask. Densities are kept fractions.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fxsparse.errors import CostError

from .validate import require_count, require_density

Floats: TypeAlias = npt.NDArray[np.float64]


class Density(abc.ABC):
    """Where the non-zeros of a tensor are; tiles are runs of consecutive elements that start at a multiple of their length."""

    @property
    @abc.abstractmethod
    def density(self) -> float:
        """Kept fraction of the whole tensor, 0..1."""

    @abc.abstractmethod
    def tile_pmf(self, tile: int) -> Floats:
        """Probabilities that a tile of `tile` elements holds 0, 1, ..., `tile` non-zeros; shape (tile + 1,)."""

    def empty_tile_probability(self, tile: int) -> float:
        """Probability that a tile of `tile` elements holds no non-zero."""
        return float(self.tile_pmf(tile)[0])

    def expected_nonzeros(self, tile: int) -> float:
        """Mean number of non-zeros in a tile of `tile` elements."""
        return float(np.dot(np.arange(tile + 1), self.tile_pmf(tile)))


@dataclass(frozen=True, kw_only=True)
class UniformDensity(Density):
    """`nonzeros` non-zeros at uniformly random positions among `size` elements: hypergeometric tiles."""

    size: int
    nonzeros: int

    def __post_init__(self) -> None:
        require_count("UniformDensity.size", self.size)
        require_count("UniformDensity.nonzeros", self.nonzeros, at_least=0)
        if self.nonzeros > self.size:
            raise CostError(f"UniformDensity.nonzeros is {self.nonzeros}; expected at most size = {self.size}")

    @classmethod
    def of(cls, *, size: int, density: float) -> UniformDensity:
        """The spread of a tensor of `size` elements with the nearest whole number of non-zeros."""
        return cls(size=size, nonzeros=round(size * require_density("density", density)))

    @property
    def density(self) -> float:
        return self.nonzeros / self.size

    def tile_pmf(self, tile: int) -> Floats:
        _require_tile(tile, self.size)
        return hypergeometric_pmf(size=self.size, nonzeros=self.nonzeros, tile=tile)

    def empty_tile_probability(self, tile: int) -> float:
        """C(size - nonzeros, tile) / C(size, tile). Source: counting argument."""
        _require_tile(tile, self.size)
        fewer, more = sorted((tile, self.nonzeros))
        if tile + self.nonzeros > self.size:
            return 0.0
        steps = np.arange(fewer, dtype=np.float64)
        return float(np.exp(np.sum(np.log1p(-more / (self.size - steps)))))


@dataclass(frozen=True, kw_only=True)
class NMDensity(Density):
    """Exactly `kept` of every `group` consecutive elements; a part of a group holds uniformly random ones of them."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        require_count("NMDensity.group", self.group)
        require_count("NMDensity.kept", self.kept, at_least=0)
        if self.kept > self.group:
            raise CostError(f"NMDensity keeps {self.kept} of {self.group}; expected kept <= group")

    @property
    def density(self) -> float:
        return self.kept / self.group

    def tile_pmf(self, tile: int) -> Floats:
        """Whole groups hold exactly kept each; the rest of the tile is a part of one more group."""
        _require_tile(tile, None)
        whole, rest = divmod(tile, self.group)
        pmf = np.zeros(tile + 1)
        part = hypergeometric_pmf(size=self.group, nonzeros=self.kept, tile=rest)
        pmf[whole * self.kept : whole * self.kept + rest + 1] = part
        return pmf


class MeasuredDensity(Density):
    """The non-zeros of a real mask (any array; non-zero means kept); tiles are counted, nothing is assumed."""

    def __init__(self, mask: npt.ArrayLike) -> None:
        self._kept = np.ascontiguousarray(np.asarray(mask) != 0).reshape(-1)
        if not self._kept.size:
            raise CostError("a measured mask is empty; expected at least one element")

    @property
    def density(self) -> float:
        return float(np.count_nonzero(self._kept) / self._kept.size)

    def tile_pmf(self, tile: int) -> Floats:
        """Shares of the tiles by their count; a last, shorter tile counts as one."""
        _require_tile(tile, self._kept.size)
        counts = np.add.reduceat(self._kept, np.arange(0, self._kept.size, tile), dtype=np.int64)
        return np.bincount(counts, minlength=tile + 1) / counts.size


@lru_cache(maxsize=512)
def hypergeometric_pmf(*, size: int, nonzeros: int, tile: int) -> Floats:
    """Probabilities of 0..tile non-zeros in a tile drawn without replacement; shape (tile + 1,), read-only.

    Source: ratios of neighbouring terms, C(r, k)·C(S - r, n - k) / C(S, n), summed in logarithms.
    """
    low, high = max(0, tile + nonzeros - size), min(tile, nonzeros)
    k = np.arange(low, high, dtype=np.float64)
    steps = np.log((nonzeros - k) * (tile - k)) - np.log((k + 1) * (size - nonzeros - tile + k + 1))
    return _from_log_ratios(steps, low=low, length=tile + 1)


@lru_cache(maxsize=512)
def binomial_pmf(*, trials: int, density: float) -> Floats:
    """Probabilities of 0..trials successes of independent draws; shape (trials + 1,), read-only."""
    if density in (0.0, 1.0):
        pmf = np.zeros(trials + 1)
        pmf[0 if density == 0.0 else trials] = 1.0
        pmf.flags.writeable = False
        return pmf
    k = np.arange(trials, dtype=np.float64)
    steps = np.log((trials - k) / (k + 1)) + (np.log(density) - np.log1p(-density))
    return _from_log_ratios(steps, low=0, length=trials + 1)


def _from_log_ratios(steps: Floats, *, low: int, length: int) -> Floats:
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logs - logs.max())
    pmf = np.zeros(length)
    pmf[low : low + weights.size] = weights / weights.sum()
    pmf.flags.writeable = False
    return pmf


def _require_tile(tile: int, size: int | None) -> None:
    require_count("tile", tile, at_least=0 if size is None else 1)
    if size is not None and tile > size:
        raise CostError(f"tile is {tile}; expected at most the tensor's {size} elements")
