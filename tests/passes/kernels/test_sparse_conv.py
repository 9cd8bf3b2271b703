"""Convolutions with sparse weights and activations by native kernels, against PyTorch's dense ones in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.passes.kernels import sparse_conv
from fxsparse.passes.kernels.library import library
from fxsparse.passes.kernels.sparse_activation import conv_grad_weight, pack_activation
from fxsparse.passes.kernels.sparse_conv import batch_innermost, conv_forward, conv_grad_input, conv_grad_weight_kept, is_batch_innermost
from fxsparse.passes.kernels.sparse_weight import index_weight

from .sparse_cases import ORDERS, SEEDS, Case, assert_rounded, cases, cut_small, laid_out, levels, noise

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")
LEVELS = levels()


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_forward(case: Case, is_small: bool) -> None:
    exact = case.dense(case.x.double(), case.w.double(), None if case.bias is None else case.bias.double())
    magnitude = case.dense(case.x.double().abs(), case.w.double().abs(), None if case.bias is None else case.bias.double().abs())
    with cut_small(is_small):
        for kernels in LEVELS:
            found = conv_forward(case.x, index_weight(case.w, None, kernels), case.bias, *case.geometry)
            assert is_batch_innermost(found)
            assert_rounded(found, exact, magnitude, case.w[0].numel())


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_gradient_of_the_input(case: Case, is_small: bool) -> None:
    exact, _ = case.gradients(case.x, case.w, case.grad)
    magnitude, _ = case.gradients(case.x, case.w.abs(), case.grad.abs())
    with cut_small(is_small):
        for kernels in LEVELS:
            found = conv_grad_input(case.grad, index_weight(case.w, None, kernels), case.x.shape, *case.geometry)
            assert is_batch_innermost(found)
            assert_rounded(found, exact, magnitude, case.w[:, 0].numel())


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans(), st.sampled_from([0.0, 0.3, 1.5, 100.0]), st.sampled_from([None, 0.01, 1.0]), st.integers(1, 2))
def test_gradient_of_the_weight_from_a_sparse_activation(
    case: Case, is_small: bool, threshold: float, density: float | None, factor: int
) -> None:
    kept = torch.where(case.x.abs() >= threshold, case.x, 0)
    _, exact = case.gradients(kept, case.w, case.grad)
    _, magnitude = case.gradients(kept.abs(), case.w, case.grad.abs())
    with cut_small(is_small):
        for kernels in LEVELS:
            activation = pack_activation(case.x, threshold, [factor * step for step in case.stride], density, kernels)
            assert activation.count == int((kept != 0).sum())
            found = conv_grad_weight(case.grad, activation, case.w.shape, *case.geometry)
            assert found.is_contiguous()
            assert_rounded(found, exact, magnitude, case.grad[:, 0].numel())


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_gradient_of_the_weight_at_kept_positions(case: Case, is_small: bool) -> None:
    kept = case.w != 0
    _, exact = case.gradients(case.x, case.w, case.grad)
    _, magnitude = case.gradients(case.x.abs(), case.w, case.grad.abs())
    with cut_small(is_small):
        for kernels in LEVELS:
            found = conv_grad_weight_kept(case.x, case.grad, index_weight(case.w, None, kernels), *case.geometry)
            assert not found[~kept].any()
            assert_rounded(found, exact * kept, magnitude, case.grad[:, 0].numel())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_the_same_bits_each_time(threads: int) -> None:
    x, w, grad = (laid_out(noise(shape, 0), "batch innermost") for shape in ((20, 40, 9, 9), (50, 40, 3, 3), (20, 50, 9, 9)))
    geometry, before = ((1, 1), (1, 1), (1, 1), 1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for _ in range(3):
            weight, activation = index_weight(torch.where(w.abs() > 1, w, 0)), pack_activation(x, 1.0)
            made = [conv_forward(x, weight, None, *geometry), conv_grad_input(grad, weight, x.shape, *geometry)]
            made += [conv_grad_weight(grad, activation, w.shape, *geometry), conv_grad_weight_kept(x, grad, weight, *geometry)]
            results.append(made)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)], ids=str)
def test_nothing_in(shape: tuple[int, ...]) -> None:
    x, w, geometry = torch.zeros(shape), torch.ones(4, shape[1], 3, 3), ((1, 1), (0, 0), (1, 1), 1)
    weight, grad = index_weight(w), torch.ones(shape[0], 4, 3, 3)
    assert torch.equal(conv_forward(x, weight, torch.ones(4), *geometry), torch.ones(shape[0], 4, 3, 3))
    assert conv_grad_input(grad, weight, shape, *geometry).shape == shape
    assert not conv_grad_weight_kept(x, grad, weight, *geometry).any()
    assert not conv_grad_weight(grad, pack_activation(x, 0.0), w.shape, *geometry).any()


@settings(max_examples=50, deadline=None)
@given(SEEDS, ORDERS, st.floats(0, 3))
def test_what_cannot_be_compared_is_kept(seed: int, order: str, threshold: float) -> None:
    x = noise((18, 3, 4, 5), seed)
    x.view(-1)[seed % 100 : seed % 100 + 4] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    expected = int(((x.abs() < threshold).logical_not() & (x != 0)).sum())
    for kernels in LEVELS:
        packed = pack_activation(laid_out(x, order), threshold, kernels=kernels)
        assert packed.count == expected
        assert torch.equal(
            packed.values.sort().values.nan_to_num(9.0), x[(~(x.abs() < threshold)) & (x != 0)].sort().values.nan_to_num(9.0)
        )


def test_bytes_of_a_sparse_activation() -> None:
    x = batch_innermost((32, 64, 28, 28)).copy_(noise((32, 64, 28, 28), 0))
    packed = pack_activation(x, float(x.abs().flatten()[:10000].quantile(0.9)), density=0.1)
    assert 6 * packed.count <= packed.nbytes <= 6.8 * packed.count
    assert packed.nbytes < 0.17 * 4 * x.numel()


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([0.0, 0.7]))
def test_an_activation_for_points_holds_what_they_read(case: Case, step: int, threshold: float) -> None:
    w = case.w[(..., *[slice(1)] * (case.x.dim() - 2))]
    geometry = (step,) * (w.dim() - 2), (0,) * (w.dim() - 2), (1,) * (w.dim() - 2), case.groups
    points = Case(case.x, w, None, case.x, *geometry)
    grad = noise(tuple(points.dense(case.x, w, None).shape), 3)
    kept = torch.where(case.x.abs() >= threshold, case.x, 0)
    (_, exact), (_, magnitude) = points.gradients(kept, w, grad), points.gradients(kept.abs(), w, grad.abs())
    for kernels in LEVELS:
        activation = pack_activation(case.x, threshold, geometry[0], None, kernels, is_for_points=True)
        assert_rounded(conv_grad_weight(grad, activation, w.shape, *geometry), exact, magnitude, grad[:, 0].numel())
    if step > 1:
        with pytest.raises(ValueError, match="was given to another one"):
            conv_grad_weight(grad, activation, w.shape, (1,) * (w.dim() - 2), *geometry[1:])


def test_an_activation_for_other_strides_is_refused() -> None:
    with pytest.raises(ValueError, match=r"packed for strides \[1, 1\] was given to a convolution of \[2, 2\]"):
        conv_grad_weight(torch.ones(1, 1, 2, 2), pack_activation(torch.ones(1, 1, 4, 4), 0.5), (1, 1, 1, 1), (2, 2), (0, 0), (1, 1), 1)


def expanded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(1, dtype=dtype).expand(shape)


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        (torch.ones(1, 2, 4, 4, 4), torch.ones(2, 2, 1, 1, 1), {}, "3 dimensions of space"),
        (torch.ones(1, 2, 4, 4, dtype=torch.bfloat16), torch.ones(2, 2, 1, 1), {}, "bfloat16"),
        (torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1, dtype=torch.float64), {}, "float64"),
        (torch.ones(1, 2, 4, 4, device="meta"), torch.ones(2, 2, 1, 1), {}, "on meta"),
        (torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1), {"transposed": True}, "transposed"),
        (torch.ones(1, 3, 4, 4), torch.ones(2, 2, 1, 1), {}, "do not fit"),
        (torch.ones(1, 2, 2, 2), torch.ones(2, 2, 3, 3), {}, "larger than the input"),
        (expanded(2, 2, 2**15, 2**15), torch.ones(2, 2, 1, 1), {}, "32-bit"),
        (expanded(2, 2, 2**14, 2**14), torch.ones(4, 2, 1, 1), {}, "too many elements"),
        (expanded(2, 2, 999, 999), torch.ones(4, 2, 1, 1), {"stride": (99, 99)}, "strides are too long"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_is_refused(x: Tensor, w: Tensor, options: dict[str, object], reason: str) -> None:
    space = x.dim() - 2
    given_ = {"stride": (1,) * space, "padding": (0,) * space, "dilation": (1,) * space, "groups": 1, **options}
    assert reason in str(sparse_conv.takes(x, w, **given_))  # type: ignore[arg-type]
    assert sparse_conv.takes(torch.ones(2, 4, 5, 5), torch.ones(6, 2, 3, 3), (2, 2), (1, 1), (1, 1), 2) is None
