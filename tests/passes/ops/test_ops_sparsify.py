"""sparsify: which elements are kept, exactly, and that the gradient passes whole."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxsparse.passes.ops  # noqa: F401

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OPCHECK_WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
sparsify = torch.ops.fxsparse.sparsify.default


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 6, 5, 5).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    for threshold, reduce_dims, groups, enabled in [
        (torch.tensor(0.5, dtype=wide), [], 1, True),
        (torch.rand(1, 6, 1, 1, dtype=wide), [], 1, True),
        (torch.rand(4, 6, 1, 1, dtype=wide), [], 1, True),
        (torch.tensor(18.0, dtype=wide), [2, 3], 1, True),
        (torch.tensor(36.0, dtype=wide), [1, 3, 4], 2, True),
        (torch.tensor(0.5, dtype=wide), [], 1, False),
    ]:
        torch.library.opcheck(sparsify, (x, threshold, reduce_dims, groups, enabled))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3),
        lambda x: x[:, ::2],
        lambda x: x[:, :1].expand(-1, 8, -1, -1),
    ],
)
@pytest.mark.parametrize("threshold", [torch.tensor(0.5), torch.full((1, 1, 5, 1), 0.5), torch.tensor(0.0)])
def test_strides_are_those_of_empty_like(layout: Callable[[Tensor], Tensor], threshold: Tensor) -> None:
    x = layout(torch.randn(5, 8, 5, 5))
    out = sparsify(x, threshold, [], 1, True)
    assert out.stride() == torch.empty_like(x).stride()
    assert torch.equal(out, torch.where(x.abs() >= threshold, x, 0.0))
    torch.library.opcheck(sparsify, (x, threshold, [], 1, True), test_utils=("test_schema", "test_faketensor"))


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0.0, 1e-45, 6e-8, 1e-40, 0.1, 0.5, 1.0, 1.0 + 2**-20, 65504.0, 1e5, math.inf, math.nan, -1.0])
def test_every_value_of_the_short_dtypes(dtype: torch.dtype, threshold: float) -> None:
    x = every_value(dtype)
    out = sparsify(x, torch.tensor(threshold), [], 1, True)
    bound = torch.tensor(threshold).item()
    expected = [value if not abs(value) < bound else 0.0 for value in x.tolist()]
    assert torch.equal(out.double().nan_to_num(1e300), torch.tensor(expected, dtype=torch.float64).nan_to_num(1e300))
    assert torch.equal(out.isnan(), x.isnan())


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    threshold=st.floats(0, width=32) | st.sampled_from([1e-45, 2e-45, 1.1754943508222875e-38]),
    own=st.booleans(),
)
def test_float32_values_are_kept_exactly_from_the_threshold(values: list[float], threshold: float, own: bool) -> None:
    x = torch.tensor(values)
    if own and math.isfinite(values[0]):
        threshold = abs(values[0])
    bound = torch.tensor(threshold)
    out = sparsify(x, bound, [], 1, True).tolist()
    for value, got in zip(x.tolist(), out, strict=True):
        if abs(value) < bound.item():
            assert got == 0
        else:
            assert got == value or (math.isnan(value) and math.isnan(got))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_threshold_for_each_slice_agrees_with_a_loop(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, 5).to(dtype)
    x[0, 0, 0, 0] = math.nan
    x[0, 0, 0, 1] = -math.inf
    thresholds = torch.rand(3, 4, 1, 1)
    thresholds[1, 1] = x[1, 1, 2, 2].abs()
    out = sparsify(x, thresholds, [], 1, True)
    assert out.dtype == dtype
    for n in range(3):
        for c in range(4):
            expected = x[n, c].masked_fill(x[n, c].double().abs() < thresholds[n, c].double(), 0)
            torch.testing.assert_close(out[n, c], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduce_dims", [[2, 3], [1, 2, 3], [0, 2, 3]])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_structures_are_kept_whole(reduce_dims: list[int], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3).contiguous(memory_format=memory_format)
    norms = w.abs().sum(reduce_dims)
    between = norms.median() * 0.9999
    out = sparsify(w, between, reduce_dims, 1, True)
    for o in range(6):
        for i in range(4):
            norm = norms[tuple(index for dim, index in ((0, o), (1, i)) if dim not in reduce_dims)]
            assert torch.equal(out[o, i], w[o, i] if norm >= between else torch.zeros(3, 3))


def test_structures_of_a_grouped_transposed_weight() -> None:
    w = torch.randn(6, 4, 3, 3)
    norms = w.reshape(2, 3, 4, 9).abs().sum([1, 3])
    out = sparsify(w, norms.flatten().sort().values[3] * 1.0001, [1, 3, 4], 2, True)
    assert out.shape == w.shape
    assert out.stride() == w.stride()
    for group in range(2):
        for channel in range(4):
            part = (slice(3 * group, 3 * group + 3), channel)
            kept = norms[group, channel] > norms.flatten().sort().values[3] * 1.00005
            assert torch.equal(out[part], w[part] if kept else torch.zeros(3, 3, 3))


def test_a_structure_with_nan_is_kept() -> None:
    w = torch.zeros(2, 2, 3, 3)
    w[1, 0, 1, 1] = math.nan
    out = sparsify(w, torch.tensor(1.0), [2, 3], 1, True)
    assert out.isnan().sum() == 1


@pytest.mark.parametrize("reduce_dims", [[], [0]])
def test_selection_and_kept_structures_agree(reduce_dims: list[int]) -> None:
    for dtype in DTYPES:
        x = torch.randn(37, 50).to(dtype)
        clock, density = torch.tensor(0), torch.tensor(0.3, dtype=torch.float64)
        threshold = torch.ops.fxsparse.refresh_threshold.default(
            x, torch.tensor(math.nan, dtype=torch.float64), clock, density, 1, reduce_dims, 1, [], True, "weight:fc"
        )
        out = sparsify(x, threshold, reduce_dims, 1, True)
        scores = x.double().abs().sum(reduce_dims) if reduce_dims else x.double().abs()
        assert out.count_nonzero() >= math.ceil(0.3 * scores.numel()) * (x.shape[0] if reduce_dims else 1) - 5
        if dtype in (torch.float32, torch.float64):
            kept = out.ne(0).any(0).sum() if reduce_dims else out.count_nonzero()
            assert kept == math.ceil(0.3 * scores.numel())


@pytest.mark.parametrize("threshold", [torch.tensor(0.5), torch.full((1, 4), 0.5)])
def test_the_gradient_passes_whole_and_nothing_is_saved(threshold: Tensor) -> None:
    saved: list[Tensor] = []
    x = torch.randn(3, 4, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sparsify(x, threshold, [], 1, True)
    grad = torch.randn(3, 4)
    (passed,) = torch.autograd.grad(out, x, grad)
    assert not saved
    assert torch.equal(passed, grad)


def test_not_enabled_gives_an_empty_tensor() -> None:
    out = sparsify(torch.randn(3, 4, dtype=torch.float16), torch.tensor(0.5), [], 1, False)
    assert out.numel() == 0
    assert out.dtype == torch.float16
