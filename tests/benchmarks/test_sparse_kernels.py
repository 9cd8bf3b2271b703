"""What the native sparse kernels gain on ResNet-50's layers and on linear ones, measured. Run with ``-m benchmark -s``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxsparse.passes.kernels import sparse_linear
from fxsparse.passes.kernels.library import library
from fxsparse.passes.kernels.sparse_activation import conv_grad_weight, pack_activation
from fxsparse.passes.kernels.sparse_conv import batch_innermost, conv_forward, conv_grad_input, conv_grad_weight_kept
from fxsparse.passes.kernels.sparse_weight import index_weight

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(library() is None, reason="the native kernels were not built"),
]

BATCH = int(os.environ.get("BATCH", "32"))
SPARSITIES = (0.8, 0.9, 0.95)
# Input and output channels, kernel, input size, stride: each kind of layer of ResNet-50 but the first.
LAYERS = [
    (64, 64, 1, 56, 1), (64, 64, 3, 56, 1), (64, 256, 1, 56, 1), (256, 64, 1, 56, 1), (256, 128, 1, 56, 1), (128, 128, 3, 56, 2),
    (256, 512, 1, 56, 2), (128, 512, 1, 28, 1), (512, 128, 1, 28, 1), (128, 128, 3, 28, 1), (512, 256, 1, 28, 1), (256, 256, 3, 28, 2),
    (512, 1024, 1, 28, 2), (256, 1024, 1, 14, 1), (1024, 256, 1, 14, 1), (256, 256, 3, 14, 1), (1024, 512, 1, 14, 1), (512, 512, 3, 14, 2),
    (1024, 2048, 1, 14, 2), (512, 2048, 1, 7, 1), (2048, 512, 1, 7, 1), (512, 512, 3, 7, 1),
]  # fmt: skip
LINEAR = [(128, 784, 512), (128, 1024, 1024), (1024, 768, 3072), (2048, 512, 2048), (64, 2048, 1000)]  # rows, in, out


def ratios(dense: list[Callable[[], object]], sparse: list[Callable[[], object]], rounds: int = 5) -> tuple[float, list[float]]:
    """Return the seconds of the fastest dense contender, and how many times faster each sparse one is; they take turns.

    With one thread the processor's time is measured, which other processes disturb less.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    contenders = dense + sparse
    times: list[list[float]] = [[] for _ in contenders]
    for index in range(-1, rounds):
        for one, found in zip(contenders, times, strict=True):
            began = clock()
            one()
            if index >= 0:
                found.append(clock() - began)
    medians = [median(found) for found in times]
    best = min(medians[: len(dense)])
    return best, [best / seconds for seconds in medians[len(dense) :]]


def line(name: str, best: float, found: list[float]) -> str:
    return f"  {name:<34} {1e3 * best:8.2f} ms  " + "  ".join(f"{ratio:5.2f}x" for ratio in found)


def title(what: str) -> None:
    header = "  ".join(f"{100 * sparsity:4.0f} %" for sparsity in SPARSITIES)
    print(f"\n{what}; {torch.get_num_threads()} threads, ratios to the faster of PyTorch's contiguous and channels_last\n{'':>48}{header}")


def thin(w: Tensor, sparsity: float) -> Tensor:
    return torch.where(w.abs() >= w.abs().flatten().kthvalue(max(1, int(sparsity * w.numel()))).values, w, 0)


def bound_of(x: Tensor, sparsity: float) -> float:
    return float(x.flatten()[:200_000].abs().quantile(sparsity))


def of_layer(what: str, channels: int, outputs: int, kernel: int, size: int, stride: int) -> tuple[float, list[float]]:
    """Measures one product of a convolution."""
    geometry = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    x, w = torch.randn(BATCH, channels, size, size), torch.randn(outputs, channels, kernel, kernel) / (channels * kernel) ** 0.5
    g = torch.randn_like(F.conv2d(x, w, None, *geometry))
    x_inner, g_inner = batch_innermost(x.shape).copy_(x), batch_innermost(g.shape).copy_(g)
    orders = [[item.to(memory_format=order) for item in (x, w, g)] for order in (torch.contiguous_format, torch.channels_last)]

    def backward(x: Tensor, w: Tensor, g: Tensor) -> object:
        mask = [what == "grad-input", what != "grad-input", False]
        return torch.ops.aten.convolution_backward(g, x, w, None, *geometry[:3], False, (0, 0), 1, mask)

    def forward(x: Tensor, w: Tensor, g: Tensor) -> object:
        return F.conv2d(x, w, None, *geometry)

    def sparse(sparsity: float) -> Callable[[], object]:
        bound = bound_of(x, sparsity)
        if what == "pack":
            return lambda: pack_activation(x_inner, bound, (stride, stride), 1 - sparsity, is_for_points=kernel == 1)
        if what == "grad-weight":
            packed = pack_activation(x_inner, bound, (stride, stride), is_for_points=kernel == 1)
            return lambda: conv_grad_weight(g_inner, packed, w.shape, *geometry)
        weight = index_weight(thin(w, sparsity))
        if what == "forward":
            return lambda: conv_forward(x_inner, weight, None, *geometry)
        if what == "grad-input":
            return lambda: conv_grad_input(g_inner, weight, x.shape, *geometry)
        return lambda: conv_grad_weight_kept(x_inner, g_inner, weight, *geometry)

    dense = forward if what in ("forward", "pack") else backward
    return ratios([partial(dense, *order) for order in orders], [sparse(sparsity) for sparsity in SPARSITIES])


def of_linear(what: str, rows: int, features: int, outputs: int) -> tuple[float, list[float]]:
    """Measures one product of a linear layer."""
    x, w, g = torch.randn(rows, features), torch.randn(outputs, features) / features**0.5, torch.randn(rows, outputs)
    dense: dict[str, Callable[[], object]] = {"forward": lambda: x @ w.t(), "grad-input": lambda: g @ w}

    def sparse(sparsity: float) -> Callable[[], object]:
        if what == "grad-weight":
            packed = sparse_linear.pack_activation(x, bound_of(x, sparsity))
            return lambda: sparse_linear.linear_grad_weight(g, packed, w.shape)
        weight = index_weight(thin(w, sparsity))
        if what == "forward":
            return lambda: sparse_linear.linear_forward(x, weight, None)
        if what == "grad-input":
            return lambda: sparse_linear.linear_grad_input(g, weight)
        return lambda: sparse_linear.linear_grad_weight_kept(x, g, weight)

    return ratios([dense.get(what, lambda: g.t() @ x)], [sparse(sparsity) for sparsity in SPARSITIES], rounds=15)


@pytest.mark.parametrize("what", ["forward", "grad-input", "grad-weight", "grad-weight-kept", "pack"])
def test_layers_of_resnet_50(what: str) -> None:
    """Against the dense product; packing against the dense forward one."""
    title(f"{what}, batch {BATCH}")
    totals = [0.0] * (1 + len(SPARSITIES))
    for channels, outputs, kernel, size, stride in LAYERS:
        best, found = of_layer(what, channels, outputs, kernel, size, stride)
        print(line(f"{kernel}x{kernel} {channels}->{outputs}, {size}x{size}, stride {stride}", best, found), flush=True)
        totals[0] += best
        for index, ratio in enumerate(found):
            totals[1 + index] += best / ratio
    print(line("all of them, once each", totals[0], [totals[0] / total for total in totals[1:]]))


@pytest.mark.parametrize("what", ["forward", "grad-input", "grad-weight", "grad-weight-kept"])
def test_linear_layers(what: str) -> None:
    title(what)
    for rows, features, outputs in LINEAR:
        print(line(f"{rows} x {features} -> {outputs}", *of_linear(what, rows, features, outputs)), flush=True)
