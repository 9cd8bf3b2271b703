"""Cycles of arrays whose processing elements skip zeros and wait for one another."""

from __future__ import annotations

from math import ceil

import numpy as np

from .density import Floats, binomial_pmf
from .imbalance import expected_maximum, expected_maximum_binomial
from .validate import require_count, require_density


def skipping_cycles(*, macs: int, density: float, elements: int, chunk: int, most_speedup: float | None = None) -> float:
    """Expected cycles when `elements` processing elements skip zeros and meet after `chunk` candidate MACs each.

    most_speedup: what the skipping logic can gain at best over dense (a lookahead of h gives h + 1). Density 1 gives the dense
    cycles. Source: rounds of elements x chunk candidates, the last one shorter, each as long as its slowest element.
    """
    require_density("density", density)
    require_count("chunk", chunk)
    require_count("elements", elements)
    whole, rest = divmod(macs, elements * chunk)
    dense = whole * chunk + ceil(rest / elements)
    cycles = whole * expected_maximum_binomial(candidates=chunk, density=density, elements=elements)
    if rest:
        cycles += expected_maximum_binomial(candidates=ceil(rest / elements), density=density, elements=elements)
    if most_speedup is not None:
        cycles = max(cycles, dense / most_speedup)
    return min(cycles, float(dense))


def cartesian_cycles(
    *,
    channels: int,
    activations: int,
    weights: int,
    density_activation: float,
    density_weight: float,
    elements: int,
    lanes_activation: int,
    lanes_weight: int,
    weight_groups: int = 1,
) -> float:
    """Expected cycles of an array that multiplies all non-zero activations of a channel with all its non-zero weights.

    Every one of `elements` processing elements holds `activations` values of each channel; `weights` values of a channel go to
    all of them, in `weight_groups` rounds over the channels. A channel takes ceil(nnz_a / I)·ceil(nnz_w / F) steps, a round ends
    with the slowest element. The weights' steps enter by their mean, the activations' sum over the channels exactly.
    Source: SCNN (Parashar et al. 2017), section on the PE; counting argument.
    """
    weight_steps = _steps_pmf(weights, density_weight, lanes_weight)
    mean_weight_steps = float(np.dot(np.arange(weight_steps.size), weight_steps))
    slowest = expected_maximum(_sum_pmf(_steps_pmf(activations, density_activation, lanes_activation), channels), elements)
    return weight_groups * mean_weight_steps * slowest


def _steps_pmf(values: int, density: float, lanes: int) -> Floats:
    """Distribution of ceil(non-zeros / lanes)."""
    pmf = binomial_pmf(trials=values, density=require_density("density", density))
    steps = -(-np.arange(values + 1) // lanes)
    found: Floats = np.bincount(steps, weights=pmf).astype(np.float64)
    return found


def _sum_pmf(pmf: Floats, terms: int) -> Floats:
    """Distribution of the sum of independent draws, by the Fourier transform."""
    length = (pmf.size - 1) * terms + 1
    summed = np.fft.irfft(np.fft.rfft(pmf, length) ** terms, length) if length > 1 else np.ones(1)
    clean: Floats = np.clip(summed, 0.0, None)
    clean /= clean.sum()
    return clean
