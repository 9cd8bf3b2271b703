"""What the operators of convolutions with sparse operands share: which of their three products native kernels compute, and how.

A setting `native` names the products by letters: "f" forward, "i" the gradient of the input, "w" that of the weight. The others are
PyTorch's own, between changes of memory order where the region around them is batch innermost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import sparse_conv
from ..kernels.library import library
from ..kernels.sparse_activation import conv_grad_weight
from ..kernels.sparse_weight import index_weight
from .codes.layout import as_innermost, empty_innermost, is_innermost
from .codes.tiles import unpack
from .operator import operator, owned
from .reorder import CHANNELS_LAST, INNERMOST, reorder

aten = torch.ops.aten


@dataclass(frozen=True)
class Geometry:
    """Of a convolution of two dimensions of space."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> Geometry:
        """From aten.convolution's arguments after the bias."""
        stride, padding, dilation, _, _, groups = arguments
        return cls(tuple(stride), tuple(padding), tuple(dilation), groups)

    @property
    def parts(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    @property
    def of_aten(self) -> tuple[Any, ...]:
        """Aten.convolution's arguments after the bias."""
        return (*self.parts[:3], False, [0] * len(self.stride), self.groups)


def is_native(native: str, x: Tensor, w: Tensor, arguments: Sequence[Any]) -> bool:
    """Whether a convolution takes part in a region that is batch innermost."""
    if not native or not is_innermost(x) or x.numel() == 0 or library() is None:
        return False
    stride, padding, dilation, transposed, _, groups = arguments
    return sparse_conv.takes(x, w, stride, padding, dilation, groups, transposed) is None


def forward(native: str, x: Tensor, w: Tensor, bias: Tensor | None, arguments: Sequence[Any]) -> Tensor:
    """Return the convolution of x, batch innermost as the result is, with a weight of which many elements are 0."""
    geometry = Geometry.of(arguments)
    if "f" in native and (bias is None or bias.dtype == x.dtype):
        return owned(sparse_conv.conv_forward(x, index_weight(w), bias, *geometry.parts))
    return owned(as_innermost(aten.convolution.default(reorder(x, CHANNELS_LAST), w, bias, *geometry.of_aten)))


def forward_like(x: Tensor, w: Tensor, arguments: Sequence[Any]) -> Tensor:
    """Return a tensor of the form that ``forward`` returns."""
    shape = aten.convolution.default(x, w, None, *Geometry.of(arguments).of_aten).shape
    return empty_innermost(x, shape)


@operator()
def native_convolution_backward(
    grad: Tensor,
    x: Tensor | None,
    where: Tensor | None,
    values: Tensor | None,
    scheme: str,
    w: Tensor | None,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    native: str,
    kept: Tensor | None,
    growing: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, batch innermost, and of the weight of a convolution by ``forward``; each empty if not asked for.

    The gradient of x is asked for by giving the weight, that of the weight by giving x or what is kept of it, in `scheme`. With
    `kept` (bool, of the weight's shape), the weight's is 0 where it is false, but while `growing`, a 0-dim bool CPU tensor, is true.
    """
    if kept is not None and growing is not None and bool(growing.item()):
        native = native.replace("w", "")
    geometry, grad = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups), as_innermost(grad)
    gx, gw = grad.new_empty(0), grad.new_empty(0)
    dense_x, dense_w = w is not None and "i" not in native, x is not None and "w" not in native
    if w is not None and not dense_x:
        gx = owned(sparse_conv.conv_grad_input(grad, index_weight(w), list(x_shape), *geometry.parts))
    if where is not None and values is not None:
        gw = conv_grad_weight(grad, unpack(where, values, x_shape, scheme), list(w_shape), *geometry.parts)
    elif x is not None and not dense_w and kept is not None:
        weight = index_weight(kept.to(grad.dtype), kept)
        gw = sparse_conv.conv_grad_weight_kept(x, grad, weight, *geometry.parts)
    if not (dense_x or dense_w):
        return gx, gw
    out = reorder(grad, CHANNELS_LAST)
    given = reorder(x, CHANNELS_LAST) if x is not None and dense_w else grad.new_empty(1).expand(list(x_shape))
    other = w if w is not None and dense_x else grad.new_empty(1).expand(list(w_shape))
    mask = [dense_x, dense_w, False]
    own_x, own_w, _ = aten.convolution_backward.default(out, given, other, None, *geometry.of_aten, mask)
    return reorder(own_x, INNERMOST) if dense_x else gx, owned(own_w) if dense_w else gw


@native_convolution_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor | None,
    where: Tensor | None,
    values: Tensor | None,
    scheme: str,
    w: Tensor | None,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    native: str,
    kept: Tensor | None,
    growing: Tensor | None,
) -> tuple[Tensor, Tensor]:
    gx = grad.new_empty(0) if w is None else empty_innermost(grad, x_shape)
    return gx, grad.new_empty(0) if x is None and where is None else grad.new_empty(list(w_shape))


native_convolution_backward.without_derivative()


def native_gradients(
    grad: Tensor,
    kept_of_x: tuple[Tensor | None, Tensor | None, Tensor | None, str],
    w: Tensor | None,
    shapes: tuple[Sequence[int], Sequence[int]],
    arguments: Sequence[Any],
    native: str,
    kept: Tensor | None = None,
    growing: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the weight, None for what is not asked for; see fxsparse::native_convolution_backward.

    `kept_of_x`: x itself, or where its elements stand, their values, and the scheme.
    """
    geometry, (x_shape, w_shape) = Geometry.of(arguments), shapes
    gx, gw = native_convolution_backward(grad, *kept_of_x, w, list(x_shape), list(w_shape), *geometry.parts, native, kept, growing)
    return None if w is None else gx, None if kept_of_x[0] is None and kept_of_x[1] is None else gw
