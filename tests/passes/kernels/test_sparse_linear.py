"""Sparse weights, and linear layers with them, by native kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxsparse.passes.kernels import sparse_linear
from fxsparse.passes.kernels.library import library
from fxsparse.passes.kernels.sparse_linear import (
    linear_forward,
    linear_grad_input,
    linear_grad_weight,
    linear_grad_weight_kept,
    pack_activation,
)
from fxsparse.passes.kernels.sparse_weight import index_weight, takes_weight

from .sparse_cases import DENSITIES, SEEDS, assert_rounded, cut_small, levels, noise, thinned

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")
LEVELS = levels()
FEATURES = st.sampled_from([1, 3, 16, 17, 33, 64, 100])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 16, 33]), max_size=3), FEATURES, FEATURES, DENSITIES, SEEDS, st.booleans(), st.booleans(),
    st.floats(0, 3),
)  # fmt: skip
def test_all_products(
    rows: list[int], features: int, outputs: int, density: float, seed: int, is_turned: bool, is_small: bool, threshold: float
) -> None:
    x, grad, w = (
        noise((*rows, features), seed),
        noise((*rows, outputs), seed + 1),
        thinned(noise((outputs, features), seed + 2), density, seed),
    )
    bias, count = (noise((outputs,), seed + 3) if seed % 2 else None), x.numel() // features
    if is_turned and x.dim() > 1:
        x, grad = (item.transpose(0, -1).contiguous().transpose(0, -1) for item in (x, grad))
    flat, wide, kept = x.double().reshape(-1, features), grad.double().reshape(-1, outputs), torch.where(x.abs() >= threshold, x, 0)
    sparse, w64, own = kept.double().reshape(-1, features), w.double(), torch.zeros(outputs) if bias is None else bias
    with cut_small(is_small):
        for kernels in LEVELS:
            weight = index_weight(w, None, kernels)
            forward, magnitude = flat @ w64.t() + own.double(), flat.abs() @ w64.abs().t() + own.double().abs()
            assert_rounded(linear_forward(x, weight, bias).reshape(-1, outputs), forward, magnitude, features)
            assert_rounded(linear_grad_input(grad, weight).reshape(-1, features), wide @ w64, wide.abs() @ w64.abs(), outputs)
            activation = pack_activation(x, threshold, None, kernels)
            found = linear_grad_weight(grad, activation, w.shape)
            assert_rounded(found, wide.t() @ sparse, wide.t().abs() @ sparse.abs(), count)
            found = linear_grad_weight_kept(x, grad, weight)
            assert_rounded(found, (wide.t() @ flat) * (w != 0), wide.t().abs() @ flat.abs(), count)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(1, 1), (7, 40), (64, 3, 3, 3), (5, 70, 2), (3, 0)]), DENSITIES, SEEDS)
def test_an_index_holds_the_non_zeros_or_the_mask(shape: tuple[int, ...], density: float, seed: int) -> None:
    w = thinned(noise(shape, seed), density, seed)
    mask = noise(shape, seed + 1) > 0.5
    for kernels in LEVELS:
        weight = index_weight(w, None, kernels)
        assert torch.equal(weight.values, w[w != 0])
        assert torch.equal(weight.dense(), w)
        masked = index_weight(w, mask, kernels)
        assert torch.equal(masked.values, w[mask])
        refreshed = masked.with_values(w + 1)
        assert refreshed.pattern is masked.pattern
        assert torch.equal(refreshed.dense(), torch.where(mask, w + 1, 0))
        assert torch.equal(masked.dense(), torch.where(mask, w, 0))


def test_an_index_of_a_weight_in_another_memory_order() -> None:
    w = thinned(noise((8, 4, 3, 3), 0), 0.2, 0)
    assert torch.equal(index_weight(w.to(memory_format=torch.channels_last)).dense(), w)


def test_new_values_are_used_and_the_program_is_kept() -> None:
    x, w = noise((40, 30), 0), thinned(noise((20, 30), 1), 0.2, 2)
    first = index_weight(w)
    second = first.with_values(3 * w)
    torch.testing.assert_close(linear_forward(x, second, None), 3 * linear_forward(x, first, None))
    assert len(first.pattern._programs) == 1


def test_refusals() -> None:
    w = torch.ones(3, 4)
    for bad, reason in ((w.bfloat16(), "bfloat16"), (w.to("meta"), "on meta"), (torch.ones(1).expand(2**16, 2**16), "32-bit")):
        assert reason in str(takes_weight(bad))
        with pytest.raises(ValueError, match=r"sparse kernels do not take a tensor"):
            index_weight(bad)
        assert reason in str(sparse_linear.takes(torch.ones(2, 4), bad))
    with pytest.raises(ValueError, match="must be bool and of its shape"):
        index_weight(w, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="were to come from"):
        index_weight(w).with_values(torch.ones(4, 3))
    assert sparse_linear.takes(torch.ones(2, 4), w) is None
    assert "do not fit" in str(sparse_linear.takes(torch.ones(2, 5), w))
    assert "too many" in str(sparse_linear.takes(torch.ones(1).expand(2**28, 4), torch.ones(16, 4)))
