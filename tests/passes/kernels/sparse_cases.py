"""Random convolutions for the tests of the sparse kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from fxsparse.passes.kernels import sparse_activation, tiles
from fxsparse.passes.kernels.library import FILE, Library, library

SEEDS = st.integers(0, 10_000)
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0])


def levels() -> list[Library]:
    """The library at each level of instructions that this build and this machine have."""
    best = library()
    if best is None:
        return []
    order = ["portable", "avx2", "avx512"]
    names = order[: order.index(best.level) + 1] if hasattr(best._library, f"fxs_sparse_multiply_float32_{order[1]}") else order[:1]
    return [Library(FILE, name) for name in names]


@dataclass(frozen=True)
class Case:
    """A convolution of x with w, the gradient of its result, and its strides, padding, dilation and groups."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    grad: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def dense(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return (F.conv1d if x.dim() == 3 else F.conv2d)(x, w, bias, *self.geometry)

    def gradients(self, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and w, in float64."""
        x, w = x.double().requires_grad_(), w.double().requires_grad_()
        found = torch.autograd.grad(self.dense(x, w, None), (x, w), grad.double())
        return found[0], found[1]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thinned(x: Tensor, density: float, seed: int) -> Tensor:
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < density)


def laid_out(x: Tensor, order: str) -> Tensor:
    """The tensor with its memory in another order."""
    if order == "batch innermost":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if order == "channels innermost":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if order == "with gaps":
        return torch.stack([x, x + 1], -1)[..., 0]
    return x.contiguous()


ORDERS = st.sampled_from(["batch innermost", "batch innermost", "channels innermost", "contiguous", "with gaps"])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([1, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    samples, channels, outputs = draw(st.sampled_from([1, 2, 5, 16, 17, 33])), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kernel = tuple(draw(st.sampled_from([1, 1, 2, 3, 5])) for _ in range(dims))
    is_point = draw(st.sampled_from([False, False, False, True]))
    if is_point:
        kernel, stride, padding, dilation = (1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims
    else:
        stride, padding, dilation = (tuple(draw(st.integers(low, high)) for _ in range(dims)) for low, high in ((1, 3), (0, 4), (1, 3)))
    needed = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = tuple(least + draw(st.integers(0, 14)) for least in needed)
    seed = draw(SEEDS)
    x, w = noise((samples, channels * groups, *size), seed), noise((outputs * groups, channels, *kernel), seed + 1)
    w = thinned(w, draw(DENSITIES), seed)
    if draw(st.booleans()):
        w[draw(st.integers(0, outputs * groups - 1))] = 0
    bias = noise((outputs * groups,), seed + 2) if draw(st.booleans()) else None
    plain = Case(x, w, bias, x, stride, padding, dilation, groups)
    grad = noise(tuple(plain.dense(x, w, None).shape), seed + 3)
    return Case(laid_out(x, draw(ORDERS)), w, bias, laid_out(grad, draw(ORDERS)), stride, padding, dilation, groups)


@contextmanager
def cut_small(is_small: bool) -> Iterator[None]:
    """Tiles of few channels and outputs, as only large layers have them."""
    if not is_small:
        yield
        return
    tiles.tiling.cache_clear()
    with mock.patch.multiple(tiles, BUFFER=2 << 10, SUMS=1 << 10), mock.patch.multiple(sparse_activation, PART_BYTES=1 << 10, PIXELS=8):
        yield
    tiles.tiling.cache_clear()


def assert_rounded(found: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """`found` is the float32 sum of `terms` products, whose exact sum and sum of magnitudes are given, whatever the order."""
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    bound = (terms + 2) * torch.finfo(torch.float32).eps * magnitude
    wrong = ((found.double() - exact).abs() > bound) | found.isnan()
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} differ, by up to {float((found.double() - exact).abs().max())}"
