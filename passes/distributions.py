"""How a sparsity is shared among layers: uniform, Erdős–Rényi, Erdős–Rényi-Kernel. Integer counts, exact in sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

Shape = tuple[int, ...]


def kept(density: float, count: int) -> int:
    """ceil(density * count), robust against the last bits of a float: 0.3 of 10 is 3. At least 1 for a positive density."""
    return min(count, max(1 if density > 0 else 0, math.ceil(density * count - 1e-6)))


def uniform(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, int]:
    """Elements kept in each layer if every layer has the same sparsity."""
    return {name: kept(1.0 - sparsity, math.prod(shape)) for name, shape in shapes.items()}


def erdos_renyi(shapes: Mapping[str, Shape], sparsity: float, *, kernel: bool) -> dict[str, int]:
    """Elements kept in each layer, in proportion to the sum of its dimensions; layers that would exceed 1 are dense.

    The counts sum to ceil((1 - sparsity) * all elements) exactly: remainders go to the largest fractions.

    Args:
        shapes: weight shapes, (out, in, kernel...).
        kernel: True for ERK, where kernel sizes count as dimensions; False for ER.

    Source: Mocanu et al. 2018; Evci et al. 2020, section 3 (1), with saturated layers taken off the budget.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = kept(1.0 - sparsity, sum(sizes.values()))
    raw = {name: _raw_density(shape, kernel) for name, shape in shapes.items()}
    return spread(raw, sizes, budget)


def spread(raw: Mapping[str, float], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Integer counts that sum to ``budget``, each layer's density proportional to ``raw`` and at most 1.

    No layer is left without a weight as long as the budget has one for each.
    """
    dense: set[str] = set()
    while True:
        free = [name for name in sizes if name not in dense]
        left = budget - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in free)
        scale = left / weight if weight > 0 else 0.0
        over = [name for name in free if scale * raw[name] > 1.0]
        if not over:
            break
        peak = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == peak}
    exact = {name: sizes[name] if name in dense else scale * raw[name] * sizes[name] for name in sizes}
    counts = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (exact[name] - counts[name], name), reverse=True)
    missing = budget - sum(counts.values())
    while missing > 0:
        open_names = [name for name in by_remainder if counts[name] < sizes[name]]
        if not open_names:
            break
        for name in open_names[:missing]:
            counts[name] += 1
        missing = budget - sum(counts.values())
    for name in [name for name, count in counts.items() if count == 0]:
        richest = max(counts, key=lambda other: counts[other])
        if counts[richest] > 1:
            counts[richest] -= 1
            counts[name] = 1
    return counts


def _raw_density(shape: Shape, kernel: bool) -> float:
    counted = shape if kernel else shape[:2]
    return sum(counted) / math.prod(counted)
