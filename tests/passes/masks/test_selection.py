"""The k largest of several weights: exact, by position where scores are equal, the same for every division among ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.errors import NumericalError
from fxsparse.passes.masks.selection import Candidates, choose_largest


def candidates(scores: Tensor, eligible: Tensor, out: Tensor, at_once: int = 3, finite: bool = False) -> Candidates:
    return Candidates(
        name="w",
        rows=scores.shape[0],
        at_once=at_once,
        scores=lambda start, stop: scores[start:stop],
        eligible=lambda start, stop: eligible[start:stop],
        choose=lambda start, stop, chosen: out[start:stop].copy_(chosen),
        must_be_finite=finite,
        wide=scores.dtype == torch.float64,
    )


def expected(scores: list[Tensor], eligible: list[Tensor], k: int) -> Tensor:
    flat = np.concatenate([s.double().nan_to_num(0, 0, 0).reshape(-1).numpy() for s in scores])
    allowed = np.concatenate([e.reshape(-1).numpy() for e in eligible])
    order = [i for i in np.argsort(-flat, kind="stable") if allowed[i]][:k]
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order] = True
    return chosen


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_as_sorting_would_choose(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    scores = []
    for _ in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
        scores.append((torch.randn(shape, generator=generator) * data.draw(st.sampled_from([1.0, 1e-30, 3.0]))).to(dtype))
    if data.draw(st.booleans()):
        scores = [score.round() for score in scores]
    if data.draw(st.booleans()):
        for score in scores:
            score.view(-1)[::5] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0]))
    eligible = [torch.rand(score.shape, generator=generator) > 0.3 for score in scores]
    k = data.draw(st.integers(0, sum(score.numel() for score in scores) + 1))
    out = [torch.zeros_like(mask) for mask in eligible]
    choose_largest([candidates(*row, at_once=data.draw(st.integers(1, 4))) for row in zip(scores, eligible, out, strict=True)], k)
    assert torch.equal(torch.cat([mask.reshape(-1) for mask in out]), expected(scores, eligible, k))


def test_scores_that_must_be_finite() -> None:
    scores, eligible = torch.tensor([1.0, float("nan"), 2.0]), torch.ones(3, dtype=torch.bool)
    with pytest.raises(NumericalError, match="w: its weights hold NaN or inf"):
        choose_largest([candidates(scores, eligible, eligible.clone(), finite=True)], 1)
    masked = torch.tensor([True, False, True])
    out = torch.zeros(3, dtype=torch.bool)
    choose_largest([candidates(scores, masked, out, finite=True)], 1)
    assert out.tolist() == [False, False, True], "only what may be chosen is looked at"
    with pytest.raises(NumericalError):
        choose_largest([candidates(torch.tensor([1.0, -float("inf")]), eligible[:2], eligible[:2].clone(), finite=True)], 1)


def test_little_memory_is_taken() -> None:
    """Chunks are gone when the next one comes: never is a second copy of the scores alive."""
    sizes: list[int] = []

    def scores(start: int, stop: int) -> Tensor:
        sizes.append(stop - start)
        return torch.arange(float(start), float(stop))

    out = torch.zeros(1000, dtype=torch.bool)
    choose_largest(
        [Candidates("w", 1000, 64, scores, lambda a, b: torch.ones(b - a, dtype=torch.bool), lambda a, b, c: out[a:b].copy_(c), False)], 10
    )
    assert out.nonzero().squeeze(1).tolist() == list(range(990, 1000))
    assert max(sizes) == 64


class Rank:
    """One of several ranks that are run in turns, as threads of a barrier would be: all numbers are recorded beforehand."""

    def __init__(self, index: int, meeting: Any) -> None:
        self.index = index
        self._meeting = meeting

    def sum(self, counts: Tensor) -> Tensor:
        return self.gather(counts).sum(0)

    def gather(self, counts: Tensor) -> Tensor:
        return self._meeting(self.index, counts)


@pytest.mark.parametrize("rounded", [False, True])
def test_rows_divided_among_ranks_are_chosen_alike(rounded: bool) -> None:
    import threading

    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(7, 5, generator=generator), torch.randn(3, generator=generator), torch.randn(6, 2, generator=generator)]
    scores = [score.round() for score in scores] if rounded else scores
    eligible = [torch.rand(score.shape, generator=generator) > 0.2 for score in scores]
    world, barrier, board = 3, threading.Barrier(3), {}

    def meeting(index: int, counts: Tensor) -> Tensor:
        board[index] = counts
        barrier.wait()
        found = torch.stack([board[rank] for rank in range(world)])
        barrier.wait()
        return found

    for k in (0, 1, 13, 30, 100):
        out = [torch.zeros_like(mask) for mask in eligible]

        def work(index: int, k: int = k, out: list[Tensor] = out) -> None:
            parts = []
            for row in zip(scores, eligible, out, strict=True):
                parts.append(candidates(*(tensor.tensor_split(world)[index] for tensor in row)))
            choose_largest(parts, k, Rank(index, meeting))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert torch.equal(torch.cat([mask.reshape(-1) for mask in out]), expected(scores, eligible, k))
