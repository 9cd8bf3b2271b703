"""fxsparse::masked_weight and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxsparse.passes.masks.apply import apply_mask, empty_trust, note_trust
from fxsparse.passes.ops.masked_weight import mask_, mask_gradient, masked, masked_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
OFF, ON = torch.tensor(False), torch.tensor(True)


def pair(dtype: torch.dtype = torch.float32, layout: Any = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, 3, 3, generator=generator).to(dtype).to(memory_format=layout)
    mask = (torch.rand(4, 6, 3, 3, generator=generator) > 0.6).to(memory_format=layout)
    return weight, mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("through", "decay"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_values_and_gradients(dtype: torch.dtype, layout: Any, through: bool, decay: float) -> None:
    weight, mask = pair(dtype, layout)
    grad = torch.randn_like(weight)
    for growing in (OFF, ON):
        leaf = weight.clone().requires_grad_()
        out = masked_weight(leaf, mask, growing, through, decay)
        assert out.dtype == dtype
        assert out.stride() == weight.stride()
        assert torch.equal(out, weight * mask)
        out.backward(grad)
        expected = grad + decay * (weight * ~mask) if through else grad if growing else grad * mask
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, layout: Any) -> None:
    weight, mask = pair(dtype, layout)
    for settings in ((OFF, False, 0.0), (ON, False, 0.0), (OFF, True, 0.1)):
        torch.library.opcheck(torch.ops.fxsparse.masked_weight.default, (weight.clone().requires_grad_(), mask, *settings))
    for growing in (OFF, ON):
        torch.library.opcheck(torch.ops.fxsparse.mask_gradient.default, (weight.clone().requires_grad_(), mask, growing))


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_whatever_is_masked_becomes_plus_zero(dtype: torch.dtype, other: Any) -> None:
    weight, mask = pair(dtype)
    weight = torch.where(mask, weight, torch.tensor([float("nan"), float("inf"), -1.0]).to(dtype))
    mask = mask.to(memory_format=other)
    for found in (masked(weight, mask), mask_(weight.clone(), mask), mask_gradient(weight, mask, OFF)):
        assert torch.equal(found, torch.where(mask, weight, 0))
        assert not bool(torch.signbit(found[~mask]).any())


@pytest.mark.parametrize("shape", [(700, 41, 3, 3), (600_001,), (512, 1025)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "a part of another"])
def test_large_tensors_are_masked_in_parts(shape: tuple[int, ...], layout: str) -> None:
    x = torch.randn(shape)
    if layout == "channels last" and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(0, -1)
    elif layout == "a part of another":
        x = torch.randn(shape[0] + 5, *shape[1:])[3:-2]
    mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.3)
    whole = x.clone() if layout != "a part of another" else x
    expected = torch.where(mask, x, 0)
    assert torch.equal(masked(x, mask), expected)
    assert mask_(whole, mask) is whole
    assert torch.equal(whole, expected)


def test_the_gradient_of_the_gradient_is_masked_too() -> None:
    weight, mask = pair(torch.float64)
    leaf = weight.requires_grad_()
    (first,) = torch.autograd.grad(masked_weight(leaf, mask, OFF, False, 0.0).pow(3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(second, 6 * leaf.detach() * mask)


# The form that copies nothing


def applied(weight: Tensor, mask: Tensor, trust: Tensor, growing: Tensor = OFF, may_write: bool = True) -> Tensor:
    return apply_mask(weight, mask, growing, trust, False, 0.0, may_write)


def clean() -> tuple[nn.Parameter, Tensor, Tensor]:
    weight, mask = pair()
    parameter, trust = nn.Parameter(weight * mask), empty_trust()
    note_trust(trust, parameter, mask)
    return parameter, mask, trust


def test_a_clean_weight_is_not_copied() -> None:
    weight, mask, trust = clean()
    out = applied(weight, mask, trust)
    assert out.data_ptr() == weight.data_ptr()
    for growing in (OFF, ON):
        weight.grad = None
        grad = torch.randn_like(weight)
        expected = grad.clone() if growing else grad * mask
        applied(weight, mask, trust, growing).backward(grad.clone())
        assert torch.equal(weight.grad, expected)  # type: ignore[arg-type]


def in_place(weight: nn.Parameter, mask: Tensor) -> None:
    with torch.no_grad():
        weight.add_(1.0)


def behind(weight: nn.Parameter, mask: Tensor) -> None:
    weight.data.add_(1.0)


def moved(weight: nn.Parameter, mask: Tensor) -> None:
    weight.data = torch.ones_like(weight)


def other_mask(weight: nn.Parameter, mask: Tensor) -> None:
    mask.logical_not_()


@pytest.mark.parametrize("change", [in_place, behind, moved, other_mask])
def test_a_weight_that_was_written_to_is_copied_and_masked(change: Any) -> None:
    weight, mask, trust = clean()
    change(weight, mask)
    out = applied(weight, mask, trust)
    assert out.data_ptr() != weight.data_ptr()
    assert torch.equal(out, weight * mask)


def test_nobody_is_trusted_without_a_gradient_or_where_others_hold_it() -> None:
    weight, mask, trust = clean()
    with torch.no_grad():
        assert applied(weight, mask, trust).data_ptr() != weight.data_ptr()
    assert applied(weight, mask, trust, may_write=False).data_ptr() != weight.data_ptr()
    assert applied(weight, mask, empty_trust()).data_ptr() != weight.data_ptr()
    assert applied(weight.detach(), mask, trust).data_ptr() != weight.data_ptr()


def test_a_mask_of_ones_leaves_nothing_to_sample() -> None:
    weight, trust = nn.Parameter(torch.randn(5, 5)), empty_trust()
    mask = torch.ones(5, 5, dtype=torch.bool)
    note_trust(trust, weight, mask)
    assert applied(weight, mask, trust).data_ptr() == weight.data_ptr()
