"""The torch convention against torch.utils.flop_counter itself, on shapes without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from fxsparse.cost_model import Attention, Contraction, Recurrent, Workload, pass_macs

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


def counted(function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[int, int]:
    """What the counter reports for forward and backward of a function of real tensors on the CPU."""
    inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    with FlopCounterMode(display=False) as forward:
        out = function(*inputs)
    with FlopCounterMode(display=False) as backward:
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


SDPA = torch.nn.functional.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("function", "shapes", "workload"),
    [
        (
            torch.nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True),
            [(2, 5, 4)],
            Recurrent(cell="gru", batch=2, steps=5, input_size=4, hidden_size=3, layers=2, bidirectional=True),
        ),
        (torch.nn.RNN(4, 3, batch_first=True), [(2, 5, 4)], Recurrent(cell="rnn", batch=2, steps=5, input_size=4, hidden_size=3)),
        (torch.nn.LSTM(4, 3, batch_first=True), [(2, 5, 4)], Recurrent(cell="lstm", batch=2, steps=5, input_size=4, hidden_size=3)),
        (torch.nn.LSTMCell(4, 3), [(2, 4)], Recurrent(cell="lstm", batch=2, steps=1, input_size=4, hidden_size=3, projection_size=0)),
        (SDPA, [(1, 2, 4, 8)] * 3, Attention(batch=1, heads=2, query_length=4, key_length=4, head_size=8, value_size=8)),
        (torch.nn.Bilinear(4, 5, 3), [(2, 4), (2, 5)], Contraction(operator="bilinear", batch=2, in_channels=20, out_channels=3)),
    ],
    ids=["gru", "rnn", "lstm", "lstm cell", "attention", "bilinear"],
)
def test_other_layers_equal_the_counter(function: Callable[..., Any], shapes: list[tuple[int, ...]], workload: Workload) -> None:
    found = pass_macs(workload, "torch")
    if isinstance(function, torch.nn.LSTMCell):  # a cell is not fused, so its products are seen
        found = pass_macs(workload, "exact")
    assert (2 * found.forward, 2 * (found.grad_input + found.grad_weight)) == counted(function, *shapes)
