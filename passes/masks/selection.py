"""The k units with the largest scores among several weights, exactly, without copying or sorting them.

The bits of a float, read as an integer, order like the float. So the threshold is found digit by digit, 16 bits at a time: one
histogram over all weights says in which bin the k-th largest score lies and how many lie above it, the next histogram divides
that bin. Scores are made in chunks and never kept. Of equal scores those come first that stand first: by weight, then by
position in it, in logical order. So exactly k units are chosen, the same on every device and for every sharding over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxsparse.errors import NumericalError

_DIGIT = 16
_BINS = 1 << _DIGIT


class Ranks(Protocol):
    """The ranks that hold shards of the same weights: each its rows, in the order of the ranks."""

    index: int

    def sum(self, counts: Tensor) -> Tensor:
        """The sum of an int64 tensor over the ranks."""

    def gather(self, counts: Tensor) -> Tensor:
        """The int64 tensors of all ranks, stacked in their order."""


class Alone:
    """One process that holds whole weights."""

    index = 0

    def sum(self, counts: Tensor) -> Tensor:
        return counts

    def gather(self, counts: Tensor) -> Tensor:
        return counts.unsqueeze(0)


ALONE = Alone()


@dataclass(frozen=True)
class Candidates:
    """The units of one weight (or of this rank's rows of it) that may be chosen.

    Attributes:
        name: of the weight, for messages. rows: size of dimension 0 of the units. at_once: how many rows are looked at at once.
        scores, eligible: of the units in some rows, given the first one and the one after the last.
        choose: told what was chosen in those rows, a bool tensor of their shape.
        must_be_finite: whether scores that are NaN or inf are an error; else they count as 0.
        wide: whether they are compared in float64, else in float32.
    """

    name: str
    rows: int
    at_once: int
    scores: Callable[[int, int], Tensor]
    eligible: Callable[[int, int], Tensor]
    choose: Callable[[int, int, Tensor], None]
    must_be_finite: bool
    wide: bool = False

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows."""
        for start in range(0, self.rows, self.at_once):
            yield start, min(start + self.at_once, self.rows)


def choose_largest(candidates: Sequence[Candidates], k: int, ranks: Ranks = ALONE) -> None:
    """Tells each of the candidates which of its units are among the k with the largest scores of all; all of them if k is more.

    Raises: NumericalError where scores must be finite and are not.
    """
    if k <= 0:
        _choose(candidates, lambda keys, eligible: torch.zeros_like(eligible))
        return
    prefix, left, bits = 0, k, 0
    width = 64 if any(item.wide for item in candidates) else 32
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = ranks.sum(_histogram(candidates, prefix if bits else None, shift, width))
        if not bits and left >= int(counts.sum()):
            _choose(candidates, lambda keys, eligible: eligible)
            return
        above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(above, left))
        left -= int(above[place - 1]) if place else 0
        prefix = (prefix << _DIGIT) | (_BINS - 1 - place)
        bits += _DIGIT
    threshold = _signed(prefix, width)
    ties = _Ties(candidates, threshold, left, width, ranks)
    _choose(candidates, lambda keys, eligible: ((keys > threshold) | ties.take(keys == threshold, eligible)) & eligible, ties, width)


class _Ties:
    """Hands out a number of places among equal scores, the first to the first."""

    def __init__(self, candidates: Sequence[Candidates], threshold: int, places: int, width: int, ranks: Ranks) -> None:
        own = [0] * len(candidates)
        for index, item in enumerate(candidates):
            for start, stop in item.chunks():
                own[index] += int(((_keys(item, start, stop, width) == threshold) & item.eligible(start, stop)).count_nonzero())
        everyone = ranks.gather(torch.tensor(own, dtype=torch.int64))
        before = everyone.sum(0).cumsum(0) - everyone.sum(0) + everyone[: ranks.index].sum(0)
        self._places = [max(0, min(count, places - int(start))) for count, start in zip(own, before, strict=True)]
        self._index = -1

    def next(self) -> None:
        """Goes on to the next of the candidates."""
        self._index += 1

    def take(self, equal: Tensor, eligible: Tensor) -> Tensor:
        """Those of the equal ones that get a place."""
        equal &= eligible
        number, free = int(equal.count_nonzero()), self._places[self._index]
        if number <= free:
            self._places[self._index] -= number
            return equal
        taken = torch.zeros_like(equal, memory_format=torch.contiguous_format)
        taken.view(-1)[equal.reshape(-1).nonzero().squeeze(1)[:free]] = True
        self._places[self._index] = 0
        return taken


def _choose(candidates: Sequence[Candidates], rule: Callable[[Tensor, Tensor], Tensor], ties: _Ties | None = None, width: int = 0) -> None:
    for item in candidates:
        if ties is not None:
            ties.next()
        for start, stop in item.chunks():
            eligible = item.eligible(start, stop)
            item.choose(start, stop, rule(_keys(item, start, stop, width) if width else eligible, eligible))


def _histogram(candidates: Sequence[Candidates], prefix: int | None, shift: int, width: int) -> Tensor:
    """How many eligible keys there are for each value of the 16 bits from ``shift`` on, among those that begin with ``prefix``."""
    total = torch.zeros(_BINS, dtype=torch.int64)
    for item in candidates:
        counts: Tensor | None = None
        for start, stop in item.chunks():
            keys, eligible = _keys(item, start, stop, width), item.eligible(start, stop)
            if prefix is None:
                digits = ((keys >> shift) + (_BINS // 2 + 1)).mul_(eligible)
                found = torch.bincount(digits.reshape(-1), minlength=_BINS + 1)[1:]
            else:
                wanted = _signed(prefix, width - shift - _DIGIT)
                inside = keys[((keys >> (shift + _DIGIT)) == wanted) & eligible]
                found = torch.bincount((inside >> shift) & (_BINS - 1), minlength=_BINS)
            counts = found if counts is None else counts.add_(found)
        if counts is None:
            continue
        if prefix is None and item.must_be_finite:
            exponent = 0x7F80 if width == 32 else 0x7FF0
            if int(counts[_BINS // 2 + exponent :].sum()) or int(counts[: _BINS // 2 - exponent].sum()):
                raise NumericalError(_not_finite(item.name))
        total += counts.cpu()
    return total


def _keys(item: Candidates, start: int, stop: int, width: int) -> Tensor:
    """Integers that are ordered like the scores."""
    scores = item.scores(start, stop)
    if not item.must_be_finite:
        scores = scores.nan_to_num(0.0, 0.0, 0.0)
    kind, integer = (torch.float32, torch.int32) if width == 32 else (torch.float64, torch.int64)
    bits = (scores.to(kind) + 0.0).contiguous().view(integer)  # minus zero becomes zero
    return bits ^ ((bits >> (width - 1)) & ((1 << (width - 1)) - 1))


def _signed(digits: int, width: int) -> int:
    """The signed integer of ``width`` bits whose digits, shifted by half their range, are these."""
    return digits - (1 << (width - 1))


def _not_finite(name: str) -> str:
    return (
        f"{name}: its weights hold NaN or inf, so that the smallest ones cannot be found; they were lost in an earlier step: lower the "
        "learning rate, clip the gradients, or skip steps whose gradients are not finite (torch.amp.GradScaler), and restart from the "
        "last good checkpoint"
    )
