"""Small networks of one class of operators each, whose training steps tell what a machine reaches in that class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH = 4

Make = Callable[[], nn.Module]
Sized = tuple[Make, tuple[int, ...]]


@dataclass(frozen=True)
class Chain:
    """A network of like operators, their class, and the shape of one sample of its input."""

    kind: str
    make: Make
    shape: tuple[int, ...]


class Repeated(nn.Module):
    """A function applied again and again, with a tensor that learns beside it."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.step = step
        self.other = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(LENGTH):
            y = self.step(y, self.other)
        return y


class Residual(nn.Module):
    """Sums of a tensor with itself, as residual blocks make them."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(LENGTH):
            y = y + x
        return y


class SelfAttention(nn.Module):
    """Scaled dot-product attention of a tensor (N, heads, length, size) with itself."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.scaled_dot_product_attention(x, x, x)
        return x


class Concatenated(nn.Module):
    """Concatenations along the channels, as dense blocks make them."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(LENGTH):
            y = torch.cat([y, x], 1)
        return y


class Permuted(nn.Module):
    """Copies into another order of dimensions, as windowed attention makes them."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(LENGTH):
            x = x.permute(0, 2, 3, 1).contiguous()
        return x


def repeat(make: Make) -> Make:
    """A chain of several modules of one kind."""
    return lambda: nn.Sequential(*(make() for _ in range(LENGTH)))


def several(*layers: Callable[[], nn.Module]) -> Make:
    """These modules one after another."""
    return lambda: nn.Sequential(*(layer() for layer in layers))


def _conv(channels: int, kernel: int, size: int, groups: int = 1) -> Sized:
    return repeat(partial(nn.Conv2d, channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)), (channels, size, size)


def _pair(first: int, second: int, size: int) -> Sized:
    there, back = partial(nn.Conv2d, first, second, 1, bias=False), partial(nn.Conv2d, second, first, 1, bias=False)
    return several(there, back, there, back), (first, size, size)


def _mlp(width: int, hidden: int, tokens: int) -> Sized:
    there, back = partial(nn.Linear, width, hidden), partial(nn.Linear, hidden, width)
    return several(there, back, there, back), (tokens, width)


_PLANES = ((64, 112, 112), (128, 56, 56), (512, 14, 14))
_KINDS: dict[str, list[Sized]] = {
    "gemm": [_mlp(768, 3072, 197), _mlp(96, 384, 3136), _mlp(384, 1536, 196)],
    "conv": [
        *(_conv(64, 3, 112), _conv(64, 3, 56), _conv(128, 3, 28), _conv(256, 3, 14), _conv(512, 3, 7)),
        (several(partial(nn.Conv2d, 64, 128, 3, 2, 1), partial(nn.Conv2d, 128, 256, 3, 2, 1)), (64, 56, 56)),
    ],
    "pointwise_conv": [_pair(64, 256, 56), _pair(512, 128, 28), _pair(1024, 256, 14), _pair(2048, 512, 7), _pair(112, 672, 14)],
    "narrow_conv": [_pair(16, 96, 112), _pair(24, 144, 56), _pair(40, 240, 28)],
    "grouped_conv": [_conv(128, 3, 56, 32), _conv(256, 3, 28, 32), _conv(512, 3, 14, 32)],
    "depthwise": [_conv(64, 3, 112, 64), _conv(144, 3, 56, 144), _conv(240, 5, 28, 240), _conv(480, 3, 14, 480)],
    "large_depthwise": [_conv(96, 7, 56, 96), _conv(384, 7, 14, 384)],
    "attention": [(SelfAttention, (12, 197, 64)), (SelfAttention, (64 * 3, 49, 32))],
    "batch_norm": [(repeat(partial(nn.BatchNorm2d, shape[0])), shape) for shape in _PLANES],
    "layer_norm": [(repeat(partial(nn.LayerNorm, 768)), (197, 768)), (repeat(partial(nn.LayerNorm, 96)), (3136, 96))],
    "relu": [(repeat(nn.ReLU), shape) for shape in _PLANES],
    "activation": [
        (several(nn.GELU, nn.GELU), (197, 3072)),
        (several(nn.SiLU, nn.SiLU), (96, 112, 112)),
        (several(nn.Hardswish, nn.Hardswish), (72, 56, 56)),
    ],
    "mul": [(partial(Repeated, torch.mul, 1, 128, 1, 1), (128, 56, 56)), (partial(Repeated, torch.mul, 1, 480, 1, 1), (480, 14, 14))],
    "elementwise": [(Residual, (64, 112, 112)), (Residual, (256, 56, 56)), (Residual, (197, 768))],
    "softmax": [(repeat(partial(nn.Softmax, -1)), (12, 197, 197))],
    "dropout": [(repeat(nn.Dropout), (4096,)), (repeat(partial(nn.Dropout, 0.1)), (197, 768))],
    "max_pool": [(partial(nn.MaxPool2d, 3, 2, 1), (64, 112, 112)), (partial(nn.MaxPool2d, 2, 2), (128, 112, 112))],
    "avg_pool": [(partial(nn.AvgPool2d, 2, 2), (128, 56, 56)), (partial(nn.AvgPool2d, 2, 2), (256, 28, 28))],
    "reduce": [(partial(nn.AdaptiveAvgPool2d, 1), (512, 14, 14)), (partial(nn.AdaptiveAvgPool2d, 1), (96, 56, 56))],
    "copy": [(Concatenated, (64, 56, 56)), (Permuted, (96, 56, 56))],
}
CHAINS = tuple(Chain(kind, make, shape) for kind, networks in _KINDS.items() for make, shape in networks)
