"""What is done to masks: pruned to a number, some dropped and as many grown. Masks change in place, weights do not change here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .criteria import Criterion, Weight
from .selection import ALONE, Candidates, Ranks, choose_largest
from .structures import Structure

CHUNK = 1 << 18


@dataclass(frozen=True)
class Masked:
    """One weight (or this rank's rows of it) with its mask, for an update.

    Attributes:
        structure: in which shape it is kept or dropped.
        gradient, momentum: None unless a criterion reads them. random: see ``Weight``.
    """

    name: str
    weight: Tensor
    mask: Tensor
    structure: Structure
    gradient: Tensor | None
    momentum: Tensor | None
    random: Callable[[], Tensor]


def keep_largest(weights: Sequence[Masked], units: int, criterion: Criterion, step: int, ranks: Ranks = ALONE) -> None:
    """Of all kept units of these weights together keeps those with the largest scores, and drops the others."""
    choose_largest([_candidates(item, criterion, step, grown=False) for item in weights], units, ranks)


def grow_largest(weight: Masked, units: int, criterion: Criterion, step: int, barred: Tensor | None = None, ranks: Ranks = ALONE) -> None:
    """Of the masked units of a weight keeps those with the largest scores too; ``barred`` ones, a mask, stay masked."""
    choose_largest([_candidates(weight, criterion, step, grown=True, barred=barred)], units, ranks)


def exchange(
    weight: Masked,
    kept_units: int,
    total_units: int,
    fraction: float,
    drop: Criterion,
    grow: Criterion,
    step: int,
    *,
    regrow: bool = True,
    ranks: Ranks = ALONE,
) -> None:
    """Drops ceil(fraction * kept) of a weight's units, the smallest ones, and grows as many.

    Args:
        kept_units, total_units: how many are kept before, and after, of how many in all (on all ranks).
        regrow: a unit just dropped may be grown at once, and keeps its value.

    Source: Evci et al. 2020, algorithm 1; Liu et al. 2021, algorithm 1.
    """
    count = min(kept_units, math.ceil(fraction * kept_units))
    if not regrow:
        count = min(count, total_units - kept_units)
    before = None if regrow else weight.mask.clone()
    keep_largest([weight], kept_units - count, drop, step, ranks)
    grow_largest(weight, count, grow, step, before, ranks)


def _candidates(item: Masked, criterion: Criterion, step: int, *, grown: bool, barred: Tensor | None = None) -> Candidates:
    structure = item.structure
    chunked = structure.by_element and criterion.by_element
    if structure.by_element:
        rows, at_once = item.mask.shape[0], max(1, CHUNK // max(1, math.prod(item.mask.shape[1:])))
    else:
        rows = at_once = max(1, structure.active(item.mask).shape[0])
    whole: list[Tensor] = []

    def scores(start: int, stop: int) -> Tensor:
        if chunked:
            return criterion.score(_view(item, step, start, stop))
        if not whole:
            whole.append(structure.reduce(_checked(criterion.score(_view(item, step, 0, item.mask.shape[0])), item, criterion)))
        return whole[0][start:stop]

    def eligible(start: int, stop: int) -> Tensor:
        mask = item.mask[start:stop] if structure.by_element else structure.active(item.mask)[start:stop]
        if not grown:
            return mask
        free = ~mask
        if barred is not None:
            free &= ~(barred[start:stop] if structure.by_element else structure.active(barred)[start:stop])
        return free

    def choose(start: int, stop: int, chosen: Tensor) -> None:
        part = item.mask[start:stop] if structure.by_element else item.mask
        kept = structure.expand(chosen, part)
        part.copy_(part | kept if grown else kept)

    wide = item.weight.dtype == torch.float64
    return Candidates(item.name, rows, at_once, scores, eligible, choose, criterion.must_be_finite, wide)


def _view(item: Masked, step: int, start: int, stop: int) -> Weight:
    def part(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[start:stop]

    return Weight(
        name=item.name,
        step=step,
        weight=item.weight[start:stop],
        mask=item.mask[start:stop],
        gradient=part(item.gradient),
        momentum=part(item.momentum),
        random=partial(_rows, item.random, start, stop),
    )


def _rows(random: Callable[[], Tensor], start: int, stop: int) -> Tensor:
    return random()[start:stop]


def _checked(scores: object, item: Masked, criterion: Criterion) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != item.weight.shape or not scores.is_floating_point():
        found = f"{tuple(scores.shape)} of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{criterion!r} scores {item.name!r} by {found}; expected a floating-point tensor of shape {tuple(item.weight.shape)}"
        )
    return scores
