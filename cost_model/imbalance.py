"""The cost of waiting for the slowest: the exact expected maximum of many equal, independent random loads."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .density import Floats, binomial_pmf, hypergeometric_pmf
from .validate import require_count, require_density


def expected_maximum(pmf: Floats, elements: int) -> float:
    """E[max] of `elements` independent draws from the distribution over 0, 1, 2, ... given by `pmf`.

    Source: E[max] = sum_k k (F(k)^P - F(k-1)^P) = sum_k (1 - F(k)^P), the tail summed from above so that no digits are lost.
    """
    require_count("elements", elements)
    above = np.cumsum(pmf[::-1])[::-1][1:]
    with np.errstate(divide="ignore"):
        return float(-np.sum(np.expm1(elements * np.log1p(-np.minimum(above, 1.0)))))


@lru_cache(maxsize=4096)
def expected_maximum_binomial(*, candidates: int, density: float, elements: int) -> float:
    """E[max] over `elements` workers of their kept MACs among `candidates`, each kept independently with probability `density`."""
    require_count("candidates", candidates)
    return expected_maximum(binomial_pmf(trials=candidates, density=require_density("density", density)), elements)


@lru_cache(maxsize=4096)
def expected_maximum_hypergeometric(*, candidates: int, size: int, nonzeros: int, elements: int) -> float:
    """E[max] when each worker's candidates are a tile of a tensor of `size` elements with `nonzeros` non-zeros."""
    return expected_maximum(hypergeometric_pmf(size=size, nonzeros=nonzeros, tile=candidates), elements)


def imbalance_factor(*, candidates: int, density: float, elements: int) -> float:
    """How many times longer than the mean load the slowest of `elements` workers takes; 1 when nothing or all is kept."""
    if density == 0.0:
        return 1.0
    return expected_maximum_binomial(candidates=candidates, density=density, elements=elements) / (candidates * density)
