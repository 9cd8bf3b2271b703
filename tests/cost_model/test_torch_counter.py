"""The torch convention against torch.utils.flop_counter itself, on shapes without data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from fxsparse.cost_model import Contraction, pass_macs

from .test_workload import convolutions


def flops_of(layer: Contraction) -> tuple[int, int]:
    """What the counter reports for forward and for backward of one convolution on the meta device."""
    axes = len(layer.kernel)
    extra = {}
    if layer.transposed:
        least = [
            (i - 1) * s - 2 * p + d * (k - 1) + 1
            for i, s, p, d, k in zip(layer.input_size, layer.stride, layer.padding, layer.dilation, layer.kernel, strict=True)
        ]
        extra["output_padding"] = tuple(o - m for o, m in zip(layer.output_size, least, strict=True))
    kinds = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d) if layer.transposed else (torch.nn.Conv1d, torch.nn.Conv2d)
    module = kinds[axes - 1](
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
        device="meta",
        **extra,
    )
    x = torch.empty(layer.batch, layer.in_channels, *layer.input_size, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = module(x)
    assert out.shape[2:] == layer.output_size
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@settings(max_examples=60)
@given(convolutions())
def test_convolutions_equal_the_counter(layer: Contraction) -> None:
    found = pass_macs(layer, "torch")
    assert (2 * found.forward, 2 * (found.grad_input + found.grad_weight)) == flops_of(layer)


@pytest.mark.parametrize("rows", [1, 7])
def test_linear_equals_the_counter(rows: int) -> None:
    x = torch.empty(3, rows, 5, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.nn.Linear(5, 4, device="meta")(x).sum().backward()
    assert counter.get_total_flops() == 2 * sum(pass_macs(Contraction.linear(batch=3, rows=rows, in_features=5, out_features=4), "torch"))


def test_matmul_equals_the_counter() -> None:
    left, right = (torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 3, 4, 5), (2, 3, 5, 6)))
    with FlopCounterMode(display=False) as counter:
        (left @ right).sum().backward()
    assert counter.get_total_flops() == 2 * sum(pass_macs(Contraction.matmul(batch=2, m=4, k=5, n=6, heads=3), "torch"))
