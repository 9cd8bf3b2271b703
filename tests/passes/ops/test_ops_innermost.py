"""Norms, pooling and convolutions on tensors that are batch innermost, against PyTorch's own in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.passes.kernels.library import library
from fxsparse.passes.ops.codes.layout import as_innermost, is_innermost
from fxsparse.passes.ops.codes.tiles import of_tiles, scheme_for, unpack
from fxsparse.passes.ops.selection import kth_largest, kth_largest_magnitude

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")

ops = torch.ops.fxsparse
SIZES = st.tuples(st.integers(2, 35), st.integers(1, 9), st.integers(1, 11), st.integers(1, 11))
SEEDS = st.integers(0, 10_000)
CLOCK = torch.tensor(0)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def innermost(x: Tensor) -> Tensor:
    return as_innermost(x).detach()


def close(found: Tensor, expected: Tensor, of: float = 2e-5) -> bool:
    """Whether two tensors differ by rounding alone."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and bool(((found.double() - expected).abs() <= of * scale).all())


def needs_grad(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.detach().requires_grad_() for x in tensors]


# Memory orders


@settings(max_examples=100, deadline=None)
@given(
    SIZES,
    st.sampled_from(["contiguous", "channels_last", "innermost", "transposed"]),
    st.sampled_from(["innermost", "contiguous", "channels_last"]),
)
def test_reorder_changes_strides_alone(size: tuple[int, ...], source: str, order: str) -> None:
    x = randn(*size, seed=1)
    x = {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last), "innermost": innermost(x)}.get(
        source, x.transpose(2, 3).contiguous().transpose(2, 3)
    )
    x.requires_grad_()
    out = ops.reorder(x, order)
    assert torch.equal(out, x)
    expected = (
        is_innermost
        if order == "innermost"
        else lambda t: t.is_contiguous(memory_format=getattr(torch, f"{order}_format", torch.channels_last))
    )
    assert expected(out)
    out.backward(torch.ones_like(out))
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


def test_reorder_refuses_an_order_that_is_none() -> None:
    with pytest.raises(ValueError, match="'sideways' is no memory order"):
        ops.reorder(randn(2, 2, 2, 2, seed=0), "sideways")


# Norms


@settings(max_examples=150, deadline=None)
@given(SIZES, SEEDS, *[st.booleans()] * 5)
def test_norm(size: tuple[int, ...], seed: int, relu: bool, residual: bool, affine: bool, training: bool, tracked: bool) -> None:
    x, added = 3 * randn(*size, seed=seed) + 1, randn(*size, seed=seed + 1) if residual else None
    weight, bias = (randn(size[1], seed=seed + i) if affine else None for i in (2, 3))
    running = [randn(size[1], seed=seed + 4), randn(size[1], seed=seed + 5).square() + 0.1] if tracked or not training else [None, None]
    grad = randn(*size, seed=seed + 6)
    results = []
    for change in (innermost, Tensor.double):
        own = [None if t is None else change(t) if t.dim() == 4 or change is Tensor.double else t.clone() for t in (x, added, weight, bias)]
        leaves = needs_grad(*own)
        mean, var = (None if t is None else t.clone() if change is innermost else t.double() for t in running)
        if change is innermost:
            y, _, _, _, *after = ops.innermost_norm(*leaves, mean, var, training, 0.1, 1e-5, relu)
            assert is_innermost(y)
        else:
            y = F.batch_norm(leaves[0], mean, var, *leaves[2:], training, 0.1, 1e-5)  # type: ignore[arg-type]
            y = y if leaves[1] is None else y + leaves[1]
            y, after = torch.relu(y) if relu else y, [mean, var]
        decided = y.detach()
        y.backward(change(grad))
        results.append([decided, *(t for t in after if t is not None and t.numel()), *(t.grad for t in leaves if t is not None)])  # type: ignore[union-attr]
    edge = relu and bool(((results[1][0] != 0) != (results[0][0] != 0)).any())  # rounded to the other side of 0
    for found, expected in zip(*results, strict=True):
        assert edge or close(found, expected, 1e-4)


def test_norm_keeps_a_bit_for_each_element_of_a_residual_and_nothing_else() -> None:
    x, added = innermost(randn(16, 8, 16, 16, seed=0)), innermost(randn(16, 8, 16, 16, seed=1))
    assert ops.innermost_norm(x, None, None, None, None, None, True, 0.1, 1e-5, True)[1].numel() == 0
    assert ops.innermost_norm(x, added, None, None, None, None, True, 0.1, 1e-5, True)[1].numel() == x.numel() // 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_norm_of_another_order_or_type_is_torchs(dtype: torch.dtype, relu: bool, training: bool) -> None:
    x, added = needs_grad(randn(3, 4, 5, 6, seed=0).to(dtype), randn(3, 4, 5, 6, seed=1).to(dtype))
    weight, bias = needs_grad(randn(4, seed=2), randn(4, seed=3))
    mean, var = torch.zeros(4), torch.ones(4)
    y = ops.innermost_norm(x, added, weight, bias, mean, var, training, 0.1, 1e-5, relu)[0]
    expected = F.batch_norm(x, mean, var, weight, bias, training, 0.1, 1e-5) + added  # type: ignore[arg-type, operator]
    expected = torch.relu(expected) if relu else expected
    assert torch.equal(y, expected)
    grads = [torch.autograd.grad(z.float().square().sum(), [x, added, weight, bias]) for z in (y, expected)]  # type: ignore[list-item]
    assert all(torch.allclose(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_norm_refuses_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ops.innermost_norm(randn(1, 4, 1, 1, seed=0), None, None, None, None, None, True, 0.1, 1e-5, False)


def test_norm_refuses_a_second_derivative() -> None:
    x = innermost(randn(4, 3, 2, 2, seed=0)).requires_grad_()
    y = ops.innermost_norm(x, None, None, None, None, None, True, 0.1, 1e-5, True)[0]
    [grad] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


# Pooling


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(2, 70), st.integers(1, 4), st.integers(5, 12), st.integers(5, 12)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 2), st.booleans(),
    SEEDS,
)  # fmt: skip
def test_max_pool(size: Any, kernel: Any, stride: Any, dilation: int, ceil_mode: bool, seed: int) -> None:
    x = randn(*size, seed=seed)
    window = (list(kernel), list(stride), [k // 2 for k in kernel], [dilation] * 2, ceil_mode)
    given_x, plain = innermost(x).requires_grad_(), x.clone().requires_grad_()
    y, places = ops.innermost_max_pool(given_x, *window)
    expected = F.max_pool2d(plain, *window)
    assert is_innermost(y)
    assert places.dtype == torch.uint8
    assert torch.equal(y, expected)
    grad = randn(*expected.shape, seed=seed + 1)
    y.backward(grad)
    expected.backward(grad)
    assert close(given_x.grad, plain.grad.double())  # type: ignore[arg-type, union-attr]


# Convolutions


def kept_of(w: Tensor, density: float) -> Tensor:
    return w.abs() >= w.abs().flatten().kthvalue(max(1, round(w.numel() * (1 - density)))).values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 33), st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(1, 2),
    st.integers(0, 1), st.sampled_from(["d", "f", "i", "fi", "fiw", "fw"]), st.sampled_from([0.1, 0.5, 1.0]), SEEDS,
)  # fmt: skip
def test_swat_convolution(
    n: int,
    groups: int,
    inputs: int,
    outputs: int,
    side: int,
    kernel: int,
    stride: int,
    padding: int,
    native: str,
    density: float,
    seed: int,
) -> None:
    x, w = randn(n, groups * inputs, side + 2, side + 2, seed=seed), randn(groups * outputs, inputs, kernel, kernel, seed=seed + 1)
    w_hat, threshold = torch.where(kept_of(w, density), w, 0), torch.tensor(0.7)
    scheme = of_tiles([stride, stride], "gaps")
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
    x = innermost(x).requires_grad_()
    w_hat = w_hat.requires_grad_()
    if "w" in native:
        where, values, stats, kept = ops.pack_sparse(x.detach(), threshold, True, CLOCK, scheme, -1, 0.5)
        out = ops.swat_convolution(x, where, w_hat, None, *geometry, scheme, values, stats, None, None, [], 1, native)
        assert int(kept) == int((x.abs() >= threshold).sum())
    else:
        a_hat = torch.where(x.detach().abs() >= threshold, x.detach(), 0)
        out = ops.swat_convolution(x, a_hat, w_hat, None, *geometry, "exact", None, None, None, None, [], 1, native)
    assert is_innermost(out)
    grad = randn(*out.shape, seed=seed + 2)
    out.backward(grad)
    dense_x, dense_w = x.detach().double().requires_grad_(), w_hat.detach().double().requires_grad_()
    a_hat = torch.where(x.detach().abs() >= threshold, x.detach(), 0).double()
    expected = F.conv2d(dense_x, dense_w, None, stride, padding, 1, groups)
    expected.backward(grad.double())
    again = w_hat.detach().double().requires_grad_()
    F.conv2d(a_hat, again, None, stride, padding, 1, groups).backward(grad.double())
    for found, wanted in ((out, expected), (x.grad, dense_x.grad), (w_hat.grad, again.grad)):
        assert found is not None
        assert wanted is not None
        assert close(found.detach(), wanted.detach(), 1e-4)


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("native", ["d", "f", "fi", "fiw"])
@pytest.mark.parametrize("order", ["innermost", "contiguous"])
def test_masked_convolution(growing: bool, native: str, order: str) -> None:
    x, w = randn(20, 4, 7, 6, seed=0), randn(6, 2, 3, 3, seed=1)
    mask = kept_of(w, 0.3)
    x, bias = (innermost(x) if order == "innermost" else x).requires_grad_(), randn(6, seed=2).requires_grad_()
    w_hat = torch.where(mask, w, 0).requires_grad_()
    geometry = ([2, 1], [1, 0], [1, 2], 2)
    out = ops.masked_convolution(x, w_hat, mask, torch.tensor(growing), bias, *geometry, native)
    leaves = [t.detach().double().requires_grad_() for t in (x, w_hat, bias)]
    expected = F.conv2d(*leaves, *geometry)
    grad = randn(*out.shape, seed=3)
    out.backward(grad)
    expected.backward(grad.double())
    only_kept = not growing and "w" in native and order == "innermost"
    of_w = torch.where(mask, leaves[1].grad, 0) if only_kept else leaves[1].grad  # type: ignore[arg-type]
    assert close(out.detach(), expected.detach())
    assert all(close(a, b) for a, b in ((x.grad, leaves[0].grad), (w_hat.grad, of_w), (bias.grad, leaves[2].grad)))  # type: ignore[arg-type]


def test_tiles_are_kept_only_where_kernels_read_them() -> None:
    scheme = of_tiles([1, 2], "gaps")
    x = randn(16, 3, 4, 4, seed=0)
    assert scheme_for(innermost(x), scheme) == scheme
    assert scheme_for(x, scheme) == scheme_for(innermost(x).bfloat16(), scheme) == "gaps:0:256"
    where, values, _, _ = ops.pack_sparse(innermost(x), torch.tensor(1.0), True, CLOCK, scheme, -1, 0.1)
    assert unpack(where, values, x.shape, scheme).count == int((x.abs() >= 1).sum())


# The dispatcher


def cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, added = (innermost(randn(9, 4, 5, 5, seed=i)).requires_grad_() for i in (0, 1))
    w = torch.where(kept_of(randn(6, 4, 3, 3, seed=2), 0.3), 1.0, 0).requires_grad_()
    affine, geometry = (torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)), ([1, 1], [1, 1], [1, 1])
    swat = (*geometry, False, [0, 0], 1, "exact", None, None, None, None, [], 1, "fi")
    return {
        "reorder": (ops.reorder, (randn(9, 4, 5, 5, seed=0).requires_grad_(), "innermost")),
        "norm": (ops.innermost_norm, (x, added, *affine, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, True)),
        "norm of another order": (ops.innermost_norm, (x.detach().contiguous(), None, *affine, None, None, True, 0.1, 1e-5, True)),
        "max_pool": (ops.innermost_max_pool, (x, [3, 3], [2, 2], [1, 1], [1, 1], False)),
        "masked": (ops.masked_convolution, (x, w, w.detach() != 0, torch.tensor(False), None, *geometry, 1, "fiw")),
        "swat": (ops.swat_convolution, (x, x.detach(), w, None, *swat)),
    }


@pytest.mark.parametrize("name", ["reorder", "norm", "norm of another order", "max_pool", "masked", "swat"])
def test_opcheck(name: str) -> None:
    op, arguments = cases()[name]
    torch.library.opcheck(op.default, arguments)


def test_results_do_not_depend_on_the_run() -> None:
    op, arguments = cases()["norm"]
    first, second = (op(*arguments)[0] for _ in range(2))
    assert torch.equal(first, second)


# Selection


@settings(max_examples=60, deadline=None)
@given(st.integers(1 << 15, 1 << 17), st.floats(0.0, 1.0), st.sampled_from(["normal", "positive", "few values"]), SEEDS)
def test_the_kth_magnitude_is_exact_or_left_to_pytorch(n: int, share: float, kind: str, seed: int) -> None:
    x = randn(n, seed=seed)
    x = torch.relu(x) if kind == "positive" else (2 * x).round() if kind == "few values" else x
    k = min(n, max(1, round(share * n)))
    found = kth_largest_magnitude(x, k)
    assert found is None or torch.equal(found, kth_largest(x.abs(), k))


def test_a_magnitude_that_is_no_number_is_left_to_pytorch() -> None:
    x = randn(1 << 16, seed=0)
    assert kth_largest_magnitude(x, 1000) is not None
    for value in (float("nan"), float("inf")):
        x[77] = value
        assert kth_largest_magnitude(x, 1000) is None
