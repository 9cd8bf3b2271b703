"""blpa_norm: torch's outputs to the bit, the gradient contract of BLPA, and the corners of gamma and beta."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxsparse.passes.ops  # noqa: F401
from fxsparse.passes.ops.codes.scheme import of_norm
from fxsparse.passes.ops.normalise import ACTIVATIONS

from .coded_cases import LAYOUTS

ops = torch.ops.fxsparse
OPCHECK_WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (4, 8, 5, 5),
    (4, 7, 5, 5),
    (3, 1, 4, 4),
    (2, 16, 20, 20),
    (6, 5),
    (3, 6, 9),
    (2, 3, 3, 4, 5),
    (1, 6, 4, 4),
    (4, 6, 1, 1),
    (9, 8, 67, 67),
]


def operands(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) * 3 - 1).to(dtype)  # within two sigma of its mean
    w = torch.randn(shape[1], generator=generator)
    b = torch.randn(shape[1], generator=generator)
    return x.requires_grad_(), w.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


def running(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.full((channels,), 0.3, dtype=dtype), torch.full((channels,), 0.8, dtype=dtype)


def coded(x: Tensor, w: Tensor | None, b: Tensor | None, activation: str, bits: int, training: bool = True) -> tuple[Tensor, ...]:
    return ops.blpa_norm(x, w, b, *running(x.shape[1], x.dtype), training, 0.1, 1e-5, activation, bits, True)


def plain(x: Tensor, w: Tensor | None, b: Tensor | None, activation: str, training: bool = True) -> Tensor:
    return ACTIVATIONS[activation](F.batch_norm(x, *running(x.shape[1], x.dtype), w, b, training, 0.1, 1e-5))


def upstream(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)


def decoded(x: Tensor, out: tuple[Tensor, ...], activation: str, bits: int) -> Tensor:
    y = out[0]
    return ops.dequantize(out[1], out[2], of_norm(bits, activation), list(y.shape), list(y.stride()), y.dtype, None, None, None, None)


def normalised(x: Tensor, training: bool = True) -> Tensor:
    return F.batch_norm(x.detach().double(), *running(x.shape[1], torch.float64), None, None, training, 0.1, 1e-5)


@pytest.mark.filterwarnings(OPCHECK_WARNING)
@pytest.mark.parametrize("activation", ["relu", *(pytest.param(a, marks=pytest.mark.slow) for a in ACTIVATIONS if a != "relu")])
@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(activation: str, dtype: torch.dtype, training: bool) -> None:
    x, w, b = operands((4, 8, 5, 5), dtype)
    arguments = (x, w, b, *running(8, dtype), training, 0.1, 1e-5, activation, 4, True)
    tolerance = {} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.library.opcheck(ops.blpa_norm.default, arguments, **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_fake_tensors_tell_sizes_and_strides(shape: tuple[int, ...], activation: str, layout: str) -> None:
    x, w, b = operands(shape)
    x = LAYOUTS[layout](x.detach())
    arguments = (x, w, b, *running(shape[1], x.dtype), shape != (1, 6, 1, 1), 0.1, 1e-5, activation, 4, True)
    torch.library.opcheck(ops.blpa_norm.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_running_statistics_are_torchs(shape: tuple[int, ...], layout: str, dtype: torch.dtype, training: bool) -> None:
    x, w, b = operands(shape, dtype)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    for activation in ACTIVATIONS:
        out = coded(x, w, b, activation, 4, training)
        mean, var = running(shape[1], dtype)
        expected = ACTIVATIONS[activation](F.batch_norm(x, mean, var, w, b, training, 0.1, 1e-5))
        assert torch.equal(out[0], expected), activation
        assert torch.equal(out[4], mean)
        assert torch.equal(out[5], var)
        assert out[1].numel() == x.numel() // shape[1] * math.ceil(shape[1] / 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "reversed"])
@pytest.mark.parametrize("shape", SHAPES[:7], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_the_mask_the_bias_and_what_the_code_stands_for(shape: tuple[int, ...], layout: str, bits: int, training: bool) -> None:
    """The mask is exact; the gradient of beta is, up to the order of its sum; the rest is within half a bin."""
    x, w, b = operands(shape)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    out = coded(x, w, b, "relu", bits, training)
    expected = plain(x, w, b, "relu", training)
    found = decoded(x, out, "relu", bits)
    assert torch.equal(found > 0, expected > 0)
    g = upstream(expected)
    gx, _, gb = torch.autograd.grad(out[0], [x, w, b], g)
    ex, _, eb = torch.autograd.grad(expected, [x, w, b], g)
    torch.testing.assert_close(gb, eb, rtol=1e-5, atol=1e-5)
    if not training:
        torch.testing.assert_close(gx, ex, rtol=1e-6, atol=1e-6)


def columns(v: Tensor, like: Tensor) -> Tensor:
    return v.detach().double().reshape(1, -1, *([1] * (like.dim() - 2)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_approximate_parts_are_within_the_grids_bound(activation: str, bits: int, training: bool, seed: int) -> None:
    """With |xh - xh~| <= d: the gradient of gamma is off by d * sum|g|, that of x by what the rule makes of d."""
    x, w, b = operands((6, 8, 7, 7), seed=seed)
    with torch.no_grad():
        b.mul_(w.abs() / b.abs().clamp(min=1))  # beta/gamma within 1, so that the grid reaches everything
        x.copy_(x if training else x * 0.7)
    g = upstream(x)
    gx, gw, _ = torch.autograd.grad(coded(x, w, b, activation, bits, training)[0], [x, w, b], g)
    y = plain(x, w, b, activation, training)
    ex, ew, _ = torch.autograd.grad(y, [x, w, b], g)
    xh, (mean, var) = normalised(x, training), running(8, torch.float64)
    z = columns(w, x) * xh + columns(b, x)
    passed = {"none": torch.ones_like(z), "relu": (z > 0).double(), "relu6": ((z > 0) & (z < 6)).double()}[activation]
    h = g.double() * passed
    d = 1.001 * 3 / 2**bits + 1e-5  # half a bin of 6/n
    dims = [0, 2, 3]
    assert ((gw - ew).abs() <= d * h.abs().sum(dims) + 1e-3).all()
    sigma = x.detach().double().var(dims, correction=0).add(1e-5).sqrt() if training else var.add(1e-5).sqrt()
    gain = columns(w, x).abs() / columns(sigma, x)
    each = d * (h * xh).mean(dims, keepdim=True).abs() + (xh.abs() + d) * d * h.abs().mean(dims, keepdim=True) if training else 0.0
    assert ((gx - ex).abs() <= gain * each + 1e-4).all()
    assert mean.numel() == 8


GAMMAS = [1.0, -1.0, 1e-3, -1e-3, 1e-8, -1e-20, 1e-31, 0.0, 30.0]
RATIOS = [-100.0, -4.0, -3.001, -2.999, -1.0, 0.0, 1.0, 2.999, 3.001, 4.0, 100.0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("training", [True, False])
def test_corners_of_gamma_and_beta(bits: int, training: bool) -> None:
    """Gamma near 0, 0 and negative, beta/gamma far below and above what the grid covers: one channel for each."""
    pairs = [(gamma, ratio * (abs(gamma) or 1.0)) for gamma in GAMMAS for ratio in RATIOS]
    w, b = (torch.tensor([pair[index] for pair in pairs]).requires_grad_() for index in range(2))
    x = torch.randn(4, len(pairs), 6, 6, generator=torch.Generator().manual_seed(0)).clamp(-2, 2).requires_grad_()
    out, expected = coded(x, w, b, "relu", bits, training), plain(x, w, b, "relu", training)
    assert torch.equal(out[0], expected)
    found = decoded(x, out, "relu", bits)
    assert found.isfinite().all()
    assert torch.equal(found > 0, expected > 0)
    g = upstream(expected)
    gx, gw, gb = torch.autograd.grad(out[0], [x, w, b], g)
    ex, ew, eb = torch.autograd.grad(expected, [x, w, b], g)
    assert gx.isfinite().all()
    torch.testing.assert_close(gb, eb, rtol=1e-5, atol=1e-5)
    if bits == 8:
        told = (w.abs() > 1e-30) | (w == 0)  # below, the code holds the sign alone
        assert ((gw - ew).abs() <= 0.06 * g.abs().sum((0, 2, 3)))[told].all()
        scale = w.detach().abs().view(1, -1, 1, 1)
        assert ((gx - ex).abs() <= 0.25 * scale + 1e-6).all()


@given(
    st.floats(-3, 3, width=32), st.floats(-6, 6, width=32), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.sampled_from([1, 3, 4]),
    st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60)
def test_the_mask_is_exact_whatever_gamma_and_beta(gamma: float, beta: float, bits: int, training: bool, channels: int, seed: int) -> None:
    x = torch.randn(5, channels, 17, generator=torch.Generator().manual_seed(seed))
    w, b = torch.full((channels,), gamma), torch.full((channels,), beta)
    out = coded(x, w, b, "relu", bits, training)
    assert torch.equal(decoded(x, out, "relu", bits) > 0, plain(x, w, b, "relu", training) > 0)


def test_a_norm_without_parameters_or_running_statistics() -> None:
    x, _, _ = operands((4, 8, 5, 5))
    out = ops.blpa_norm(x, None, None, None, None, True, 0.1, 1e-5, "relu", 8, True)
    expected = F.relu(F.batch_norm(x, None, None, None, None, True, 0.1, 1e-5))
    assert torch.equal(out[0], expected)
    g = upstream(expected)
    (gx,), (ex,) = torch.autograd.grad(out[0], [x], g), torch.autograd.grad(expected, [x], g)
    assert (gx - ex).norm() < 0.03 * ex.norm()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bits", [2, 8])
def test_what_is_no_number_comes_out_as_none(value: float, training: bool, activation: str, bits: int) -> None:
    x, w, b = operands((4, 8, 5, 5))
    with torch.no_grad():
        x[1, 3, 2, 2] = value
    out = coded(x, w, b, activation, bits, training)
    gx, gw, gb = torch.autograd.grad(out[0], [x, w, b], upstream(out[0]))
    assert not gx[:, 3].isfinite().any()
    assert not gw[3].isfinite()
    assert not gb[3].isfinite()
    assert not decoded(x, out, activation, bits)[:, 3].isfinite().any()
    others = [channel for channel in range(8) if channel != 3]
    assert gx[:, others].isfinite().all()
    assert gw[others].isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_empty_batch_passes(training: bool, activation: str) -> None:
    x, w, b = operands((4, 8, 5, 5))
    x = x.detach()[:0].requires_grad_()
    out = coded(x, w, b, activation, 4, training)[0]
    assert out.shape == (0, 8, 5, 5)
    gx, gw, gb = torch.autograd.grad(out, [x, w, b], torch.zeros_like(out))
    assert gx.shape == x.shape
    assert torch.equal(gw, torch.zeros(8))
    assert torch.equal(gb, torch.zeros(8))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_same_value_everywhere(activation: str) -> None:
    x, (_, w, b) = torch.full((4, 8, 5, 5), 1.7).requires_grad_(), operands((4, 8, 5, 5))
    out, expected = coded(x, w, b, activation, 8)[0], plain(x, w, b, activation)
    assert torch.equal(out, expected)
    g = upstream(expected)
    found, wanted = torch.autograd.grad(out, [x, w, b], g), torch.autograd.grad(expected, [x, w, b], g)
    assert all(item.isfinite().all() for item in found)
    if activation not in ("silu", "hardswish"):  # their derivatives are taken at the code's value
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-3)


def test_a_second_derivative_is_refused_and_a_retained_graph_works() -> None:
    x, w, b = operands((4, 8, 5, 5))
    out = coded(x, w, b, "relu", 4)[0]
    g = upstream(out)
    first = torch.autograd.grad(out, [x, w, b], g, retain_graph=True)
    second = torch.autograd.grad(out, [x, w, b], g, create_graph=True)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second derivative was asked for through fxsparse::blpa_norm"):
        second[0].sum().backward()


def test_without_gradients_there_is_no_code() -> None:
    x, w, b = (item.detach() for item in operands((4, 8, 5, 5)))
    out = ops.blpa_norm(x, w, b, None, None, True, 0.1, 1e-5, "relu6", 4, False)
    assert out[1].numel() == out[2].numel() == out[3].numel() == 0
    with pytest.raises(RuntimeError, match=r"no gradient is wanted, but one is recorded; pass torch\.is_grad_enabled"):
        ops.blpa_norm(x, w.requires_grad_(), b, None, None, True, 0.1, 1e-5, "relu6", 4, False)
